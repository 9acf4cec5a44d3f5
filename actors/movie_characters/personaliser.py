"""Personalise Stable Diffusion to one character: textual inversion, DreamBooth, LoRA."""

import math
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BeforeValidator
from torch import Tensor, nn

from actors.core import storage
from actors.core.checkpoints import metrics_of, pack, unpack
from actors.core.errors import UserError
from actors.core.stage import Batch
from actors.core.store import Store
from actors.media.images import ImageError, read_image
from actors.movie_characters.diffusion import (
    TRAIN_TIMESTEPS,
    DiffusionConfig,
    StableDiffusion,
    Texts,
    check_size,
    crop,
    embed_prompt,
    encode_pictures,
    load_diffusion,
    load_texts,
    predict_noise,
    tokens,
)
from actors.movie_characters.identities import LORA, OPTIMIZED, TARGET, TEXT, write_embedding
from actors.movie_characters.names import Picture, class_of

DONE = "personalised.json"
"""In the folder of an identity, written last: settings, losses, seconds."""
WORD = "<character>"
"""The word of textual inversion while it is learnt."""
LORA_LAYERS = ["to_k", "to_q", "to_v", "to_out.0"]
"""Of every attention of the UNet."""


# In YAML a bare no is false.
Precision = Annotated[Literal["no", "fp16", "bf16"], BeforeValidator(lambda given: "no" if given is False else given)]


@dataclass(frozen=True)
class PersonaliseConfig:
    """Settings of `personalise`."""

    input_image: str | tuple[str, ...]
    """A picture <class>_<n>.jpg, a folder of them, or a .txt that lists one a line: a path or s3://."""
    output_dir: str
    """Where the folders <class>_<n>/ go: a path or s3://."""
    pretrained_model_name_or_path: str = "CompVis/stable-diffusion-v1-4"
    """A Stable Diffusion by hub name, or a folder that diffusers saved."""
    target_text: str = "a photo of {}"
    """The prompt; {} stands for the class, its underscores made spaces."""
    method: Literal["lora", "imagic", "textual_inversion"] = "lora"
    """What is learnt."""
    together: bool = False
    """Learn one identity, <class>_0, from all pictures of a class, instead of one from each picture."""
    resolution: int = 512
    """Sides of the square that is cut out of a picture, which is scaled until it just covers it."""
    center_crop: bool = False
    """Cut in the middle, not at a place that the seed draws once for each picture."""
    train_batch_size: int = 4
    """Noisy latents of one piece of a step."""
    emb_train_steps: int = 500
    """Steps of the embedding, or of the word of textual inversion."""
    max_train_steps: int = 1000
    """Steps of the UNet or its LoRA."""
    gradient_accumulation_steps: int = 1
    """Pieces of a step."""
    gradient_checkpointing: bool = False
    """Compute parts of the UNet twice, to hold less in memory."""
    emb_learning_rate: float = 1e-3
    """Of the embedding."""
    learning_rate: float = 1e-6
    """Of the UNet."""
    lora_learning_rate: float = 1e-4
    """Of a LoRA, in place of that of the UNet."""
    lora_rank: int = 4
    """Of a LoRA."""
    scale_lr: bool = False
    """Multiply learning rates by train_batch_size and gradient_accumulation_steps."""
    use_8bit_adam: bool = False
    """Hold Adam's state in 8 bits, with bitsandbytes."""
    adam_beta1: float = 0.9
    """Of Adam, as all that follow."""
    adam_beta2: float = 0.999
    """The same."""
    adam_weight_decay: float = 1e-2
    """Of the UNet or its LoRA, decoupled (AdamW); an embedding has none, since it would drift to zero."""
    adam_epsilon: float = 1e-8
    """The same."""
    max_grad_norm: float = 1.0
    """Gradients longer than that are cut to it."""
    mixed_precision: Precision = "no"
    """What the UNet computes in; what is learnt is always kept in float32."""
    seed: int = 0
    """Of all that is drawn."""
    log_interval: int = 10
    """Steps of which the mean loss is recorded."""
    push_to_hub: bool = False
    """Upload the folders to the hub when all are done, with HF_TOKEN."""
    hub_model_id: str | None = None
    """The repository that they go to."""
    checkpoint_s: float = 300.0
    """Seconds between two checkpoints of an identity; 0 means every step."""
    diffusion: DiffusionConfig = field(default_factory=lambda: DiffusionConfig(batch_size=1))
    """Workers, each of which learns one identity at a time; its dtype and evaluations_per_call do not matter here."""
    autoscaling: bool = False
    """The cluster grows by what is asked for, so that pools need not fit it now."""

    def __post_init__(self) -> None:
        check_size(resolution=self.resolution)
        counts = ("train_batch_size", "gradient_accumulation_steps", "lora_rank", "log_interval")
        for name in counts:
            if getattr(self, name) < 1:
                raise UserError(f"{name} starts at 1, not {getattr(self, name)}")
        for name in ("emb_train_steps", "max_train_steps", "seed", "checkpoint_s", "adam_weight_decay"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} starts at 0, not {getattr(self, name)}")
        for name in ("emb_learning_rate", "learning_rate", "lora_learning_rate", "max_grad_norm", "adam_epsilon"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} is above 0, not {getattr(self, name)}")
        if self.push_to_hub and not self.hub_model_id:
            raise UserError("push_to_hub needs a repository: hub_model_id=ORGANISATION/NAME")
        if self.method == "textual_inversion" and "{}" not in self.target_text:
            raise UserError(f"target_text={self.target_text!r} has no {{}}: textual inversion learns that word")
        if self.mixed_precision == "fp16" and not self.diffusion.num_gpus:
            raise UserError("mixed_precision=fp16 needs a GPU (diffusion.num_gpus=1); bf16 also works on a CPU")

    def learns(self) -> dict[str, Any]:
        """All settings that change what is learnt, as JSON values."""
        elsewhere = ("input_image", "output_dir", "checkpoint_s", "push_to_hub", "hub_model_id", "autoscaling")
        return {
            **{name: value for name, value in asdict(self).items() if name not in (*elsewhere, "diffusion")},
            "gpu": self.diffusion.num_gpus > 0,
        }


@dataclass(frozen=True)
class Task:
    """One identity to be learnt."""

    name: str
    pictures: tuple[Picture, ...]
    settings: str
    """Digest of the settings and the pictures' names and sizes."""

    @property
    def of(self) -> str:
        """Its class, as it stands in a prompt."""
        return class_of(self.name).replace("_", " ")


# ------------------------------------------------------------------------------------------------------------- learning


class NotFinite(ArithmeticError):
    """A loss that is no number."""


class Personaliser:
    """Learn identities and write their folders.

    Reads:  number  int (N,), of the tasks
    Adds:   error   str (N,), "" where it was learnt, else diverged or a code of ImageError; message says more
    """

    def __init__(self, config: PersonaliseConfig, tasks: Sequence[Task]) -> None:
        dtype = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[config.mixed_precision]
        stage = config.diffusion
        loading = DiffusionConfig(num_cpus=stage.num_cpus, num_gpus=stage.num_gpus, dtype="float32")
        model = load_diffusion(config.pretrained_model_name_or_path, loading, "pretrained_model_name_or_path")
        self._texts = load_texts(config.pretrained_model_name_or_path, None, "pretrained_model_name_or_path")
        self._texts.encoder.to(model.device)
        if config.gradient_checkpointing:
            model.unet.enable_gradient_checkpointing()
            # diffusers only does so in training mode; there is no dropout in these UNets.
            model.unet.train()
        if config.method == "textual_inversion":
            self._texts.tokenizer.add_tokens([WORD])
            self._texts.encoder.resize_token_embeddings(len(self._texts.tokenizer), mean_resizing=False)
            self._texts.encoder.requires_grad_(False)
        self._base: dict[str, Tensor] = {}
        if config.method == "imagic":
            self._base = {name: tensor.cpu().clone() for name, tensor in model.unet.state_dict().items()}
        elif config.mixed_precision != "no":
            model.unet.to(dtype)
        self._config, self._tasks, self._model, self._dtype = config, tasks, model, dtype

    def __call__(self, batch: Batch) -> Batch:
        errors = []
        for number in batch["number"]:
            try:
                self.learn(self._tasks[int(number)])
                errors.append(("", ""))
            except ImageError as bad:
                errors.append((bad.code, str(bad)))
            except NotFinite as bad:
                errors.append(("diverged", str(bad)))
        codes, messages = zip(*errors, strict=True)
        return {**batch, "error": np.array(codes, object), "message": np.array(messages, object)}

    def learn(self, task: Task) -> None:
        """Learn one identity, from its checkpoint where there is one, and write its folder."""
        config, began = self._config, time.monotonic()
        self._reset()
        latents = self._latents(task)
        text = config.target_text.replace("{}", task.of)
        target = embed_prompt(self._texts, text)
        run = _Run(config, task, self._model.device)
        word = None
        if config.method == "textual_inversion":
            word = self._word(task)
            with self._reading(word) as condition:
                run.steps("embedding", [word], condition, self._loss(latents), config.emb_train_steps)
                with torch.no_grad():
                    optimized = condition().float()
        else:
            embedding = nn.Parameter(target.clone().to(self._model.device))
            run.steps("embedding", [embedding], lambda: embedding, self._loss(latents), config.emb_train_steps)
            optimized = embedding.detach()
            self._tune(run, optimized, latents)
        self._write(task, text, target, optimized.cpu(), word, run, time.monotonic() - began)

    def _latents(self, task: Task) -> Tensor:
        size, found = self._config.resolution, []
        for picture in task.pictures:
            at = (0.5, 0.5)
            if not self._config.center_crop:
                drawn = np.random.default_rng([self._config.seed, zlib.crc32(picture.name.encode())])
                at = (float(drawn.random()), float(drawn.random()))
            pixels = crop(read_image(picture.uri), size, size, at)
            found.append(encode_pictures(self._model, pixels[None]))
        return torch.cat(found).clone()

    def _loss(self, latents: Tensor) -> Callable[[Tensor, int], Tensor]:
        """The mean squared error of the noise for a condition (1, 77, d), in the numbered piece of a step."""
        model, config = self._model, self._config

        def loss(condition: Tensor, number: int) -> Tensor:
            generator = torch.Generator().manual_seed(number)
            size = config.train_batch_size
            which = torch.randint(len(latents), (size,), generator=generator)
            times = torch.randint(TRAIN_TIMESTEPS, (size,), generator=generator)
            noise = torch.randn((size, *latents.shape[1:]), generator=generator).to(model.device)
            times, clear = times.to(model.device), latents[which.to(model.device)]
            noisy = model.scheduler.add_noise(clear, noise, times)
            with torch.autocast(model.device, self._dtype, enabled=self._dtype != torch.float32):
                found = predict_noise(self._computing(), noisy, times, condition.expand(size, -1, -1))
            return nn.functional.mse_loss(found, noise)

        return loss

    def _computing(self) -> StableDiffusion:
        return StableDiffusion(
            self._model.unet, self._model.vae, self._model.scheduler, self._model.device, self._model.unet.dtype
        )

    def _reset(self) -> None:
        """Bring the UNet back to what it was before an identity."""
        unet = self._model.unet
        if self._base:
            unet.load_state_dict(self._base)
        elif getattr(unet, "peft_config", {}):
            unet.delete_adapters("default")
        unet.requires_grad_(False)

    def _tune(self, run: "_Run", optimized: Tensor, latents: Tensor) -> None:
        """Learn the UNet or its LoRA with the embedding fixed."""
        config, unet = self._config, self._model.unet
        if config.method == "imagic":
            unet.requires_grad_(True)
            rate = config.learning_rate
        else:
            from peft import LoraConfig

            # It draws its first weights.
            torch.manual_seed(config.seed)
            lora = LoraConfig(
                r=config.lora_rank,
                lora_alpha=config.lora_rank,
                init_lora_weights="gaussian",
                target_modules=LORA_LAYERS,
            )
            unet.add_adapter(lora)
            rate = config.lora_learning_rate
        learnt = [parameter for parameter in unet.parameters() if parameter.requires_grad]
        for parameter in learnt:
            parameter.data = parameter.data.float()
        run.steps("unet", learnt, lambda: optimized, self._loss(latents), config.max_train_steps, rate)

    def _word(self, task: Task) -> nn.Parameter:
        """The vector of the new word, float32 (d,): at first the mean of the class's own."""
        numbers = self._texts.tokenizer(task.of, add_special_tokens=False, return_tensors="pt").input_ids[0]
        vectors = self._texts.encoder.get_input_embeddings().weight
        return nn.Parameter(vectors[numbers.to(vectors.device)].float().mean(0).detach().clone())

    def _reading(self, word: nn.Parameter) -> "_Reading":
        return _Reading(self._texts, self._config.target_text.replace("{}", WORD), word)

    def _write(
        self,
        task: Task,
        text: str,
        target: Tensor,
        optimized: Tensor,
        word: nn.Parameter | None,
        run: "_Run",
        seconds: float,
    ) -> None:
        from safetensors.torch import save

        config, name = self._config, task.name
        store = Store(config.output_dir)
        write_embedding(target.cpu().numpy(), store.root, name, TARGET)
        write_embedding(optimized.numpy(), store.root, name, OPTIMIZED)
        storage.write_bytes(store.uri(name, TEXT), text.encode())
        if word is not None:
            learnt = save({f"<{class_of(name)}>": word.detach().cpu()})
            storage.write_bytes(store.uri(name, "learned_embeds.safetensors"), learnt)
        with tempfile.TemporaryDirectory(prefix="filmray-") as folder:
            if config.method != "textual_inversion":
                _pipeline_files(self._model, self._texts, config.method, folder)
            for path in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
                storage.upload(path, store.uri(name, path.relative_to(folder).as_posix()))
        about = {
            "settings_digest": task.settings,
            "settings": config.learns(),
            "pictures": [picture.name for picture in task.pictures],
            "losses": run.losses,
            "seconds": round(seconds, 1),
        }
        store.write_json(about, name, DONE)
        run.forget()


def _pipeline_files(model: StableDiffusion, texts: Texts, method: str, folder: str) -> None:
    """Write the LoRA of the UNet, or the whole pipeline with its UNet, as diffusers does."""
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    if method == "lora":
        from diffusers.utils.state_dict_utils import convert_state_dict_to_diffusers
        from peft import get_peft_model_state_dict

        layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(model.unet))
        StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=layers, weight_name=LORA)
        return
    parts: Any = {
        "vae": model.vae,
        "text_encoder": texts.encoder,
        "tokenizer": texts.tokenizer,
        "unet": model.unet,
        # The loss has it from 0, and pictures are drawn from 1.
        "scheduler": DDIMScheduler.from_config(model.scheduler.config, steps_offset=1),
        "safety_checker": None,
        "feature_extractor": None,
    }
    StableDiffusionPipeline(**parts, requires_safety_checker=False).save_pretrained(folder)


class _Reading:
    """The text encoder while it reads a vector in place of WORD; what it gives is the condition, (1, 77, d)."""

    def __init__(self, texts: Texts, prompt: str, word: nn.Parameter) -> None:
        self._texts, self._word = texts, word
        self._prompt = tokens(texts, prompt).to(texts.encoder.device)
        self._number = texts.tokenizer.convert_tokens_to_ids(WORD)

    def __enter__(self) -> Callable[[], Tensor]:
        def replaced(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            return torch.where((inputs[0] == self._number)[..., None], self._word.to(output), output)

        self._hook = self._texts.encoder.get_input_embeddings().register_forward_hook(replaced)
        return lambda: self._texts.encoder(self._prompt)[0]

    def __exit__(self, *_: object) -> None:
        self._hook.remove()


class _Run:
    """The steps of one identity, with a checkpoint of each phase."""

    def __init__(self, config: PersonaliseConfig, task: Task, device: str) -> None:
        self._config, self._task, self._device = config, task, device
        self.losses: dict[str, list[list[float]]] = {}
        """By phase, after how many steps and the mean loss since the last time."""
        self._saved = time.monotonic()

    def steps(
        self,
        phase: str,
        parameters: list[nn.Parameter],
        condition: Callable[[], Tensor],
        loss: Callable[[Tensor, int], Tensor],
        count: int,
        rate: float | None = None,
    ) -> None:
        """Make the steps of a phase that are missing; rate: of the UNet's, none means the embedding's.

        Raises NotFinite.
        """
        config, unet = self._config, phase == "unet"
        rate = config.emb_learning_rate if rate is None else rate
        if config.scale_lr:
            rate *= config.train_batch_size * config.gradient_accumulation_steps
        optimizer = _optimizer(config, parameters, rate, config.adam_weight_decay if unet else 0.0)
        model = nn.ParameterList(parameters)
        scaler = torch.amp.GradScaler(self._device, enabled=config.mixed_precision == "fp16")
        begin, total = self._restore(phase, model, optimizer, scaler)
        losses = self.losses.setdefault(phase, [])
        pieces = config.gradient_accumulation_steps
        for step in range(begin, count):
            optimizer.zero_grad()
            for piece in range(pieces):
                state = np.random.SeedSequence([config.seed, unet, step, piece]).generate_state(1)
                value = loss(condition(), int(state[0])) / pieces
                scaler.scale(value).backward()
                total += float(value.detach())
            if not math.isfinite(total):
                raise NotFinite(f"the loss of the {phase} is no number in step {step + 1}: lower its learning rate")
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
            scaler.step(optimizer)
            scaler.update()
            done = step + 1
            if done % config.log_interval == 0 or done == count:
                losses.append([done, total / (done - (losses[-1][0] if losses else 0))])
                total = 0.0
            # The next phase begins with the embedding as it is at the end of its own.
            if time.monotonic() - self._saved >= config.checkpoint_s or (done == count and not unet):
                self._save(phase, done, total, model, optimizer, scaler)

    def _uri(self, phase: str) -> str:
        return storage.join(self._config.output_dir, "checkpoints", self._task.name, f"{phase}.safetensors")

    def _save(
        self,
        phase: str,
        done: int,
        total: float,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
    ) -> None:
        metrics = {
            "settings": self._task.settings,
            "step": done,
            "total": total,
            "losses": self.losses[phase],
            "scaler": scaler.state_dict(),
        }
        with tempfile.TemporaryDirectory(prefix="filmray-") as folder:
            path = Path(folder, "state.safetensors")
            pack(path, metrics, model, optimizer)
            storage.upload(path, self._uri(phase))
        self._saved = time.monotonic()

    def _restore(
        self, phase: str, model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler
    ) -> tuple[int, float]:
        """Go on where these settings were at; returns the steps that are done, and the losses since the last record."""
        if not storage.exists(self._uri(phase)):
            return 0, 0.0
        with storage.local(self._uri(phase)) as path:
            metrics = metrics_of(path)
            if metrics["settings"] != self._task.settings:
                return 0, 0.0
            unpack(path, model, optimizer)
        self.losses[phase] = metrics["losses"]
        scaler.load_state_dict(metrics["scaler"])
        return metrics["step"], metrics["total"]

    def forget(self) -> None:
        """Remove the checkpoints: the identity is done."""
        for phase in ("embedding", "unet"):
            storage.delete(self._uri(phase))


def _optimizer(
    config: PersonaliseConfig, parameters: list[nn.Parameter], rate: float, decay: float
) -> torch.optim.Optimizer:
    """AdamW, which without decay is Adam."""
    kind = adam8bit() if config.use_8bit_adam else torch.optim.AdamW
    betas = config.adam_beta1, config.adam_beta2
    return kind(parameters, lr=rate, betas=betas, eps=config.adam_epsilon, weight_decay=decay)


def adam8bit() -> Any:
    try:
        from bitsandbytes.optim.adamw import AdamW8bit
    except ImportError as error:
        raise UserError(
            'use_8bit_adam needs the extra adam8bit: pip install -c constraints.txt -e ".[adam8bit]"'
        ) from error
    return AdamW8bit

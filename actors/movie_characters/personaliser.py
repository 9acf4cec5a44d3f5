"""Personalise Stable Diffusion to one character: textual inversion, DreamBooth, LoRA."""

import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from actors.core import storage
from actors.core.stage import Batch
from actors.core.store import Store
from actors.core.temporary import TemporaryFolder
from actors.media.images import ImageError, read_image
from actors.models.devices import moved
from actors.movie_characters.bases import base_of
from actors.movie_characters.diffusion import (
    DiffusionConfig,
    PipelineTexts,
    StableDiffusion,
    Texts,
    embed_prompt,
    encode_pictures,
    load_diffusion,
    load_texts,
    placed_crop,
    tokens,
)
from actors.movie_characters.identities import LORA, OPTIMIZED, TARGET, TEXT, write_embedding
from actors.movie_characters.names import class_of
from actors.movie_characters.noise_losses import drawn_timesteps, predict
from actors.movie_characters.peers import Peers
from actors.movie_characters.personalise_settings import DONE, PersonaliseConfig, Task
from actors.movie_characters.personalise_steps import NotFinite, Steps, Trained
from actors.movie_characters.sharding import divide, gathered, own, plain

WORD = "<character>"
"""The new word of textual inversion while it is trained."""


class Personaliser:
    """Train identities and write their folders.

    Reads:  number  int (N,), which of the tasks
    Adds:   error   str (N,), "" where it was trained, else diverged or a code of ImageError; message: details
    """

    def __init__(self, config: PersonaliseConfig, tasks: Sequence[Task], peers: Peers | None = None) -> None:
        """peers: workers that train each identity together; all call `train` for the same tasks in the same order."""
        dtype = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[config.precision]
        self._config, self._tasks, self._dtype, self._peers = config, tasks, dtype, peers or Peers()
        stage = config.diffusion
        if stage.device == "cuda":
            # For what is computed in float32: text encoder, VAE, and all with mixed_precision=no.
            torch.backends.cuda.matmul.fp32_precision = "tf32"
        sharded = self._peers.sharded
        # What is divided need not fit the device whole.
        gpus = 0.0 if sharded else stage.num_gpus
        loading = DiffusionConfig(num_cpus=stage.num_cpus, num_gpus=gpus, dtype="float32")
        base = config.pretrained_model_name_or_path, "pretrained_model_name_or_path"
        texts = load_texts(base[0], None, base[1])
        texts.to(stage.device)
        self._targets = {text: embed_prompt(texts, text) for text in {self._text(task) for task in tasks}}
        self._texts: Any = None if isinstance(texts, PipelineTexts) else texts
        # Before the network is loaded: together they may not fit.
        del texts
        # A whole UNet is trained in float32.
        network = None if config.method == "imagic" else dtype
        model = load_diffusion(base[0], loading, base[1], network)
        self.base, self._kind = base_of(model, base[0]), type(model.unet)
        if config.gradient_checkpointing:
            model.unet.enable_gradient_checkpointing()
            # diffusers only does so in training mode; there is no dropout in these UNets.
            model.unet.train()
        if config.method == "textual_inversion":
            self._texts.tokenizer.add_tokens([WORD])
            self._texts.encoder.resize_token_embeddings(len(self._texts.tokenizer), mean_resizing=False)
            self._texts.encoder.requires_grad_(False)
        if sharded:
            # Trained weights stay in float32, and are rounded where they are gathered.
            divide(model.unet, stage.device, self._peers.count, dtype if config.method == "imagic" else None)
            model = replace(model, device=stage.device)
            if self._texts is not None and config.method != "textual_inversion":
                self._texts.to("cpu")
        self._base: dict[str, Tensor] = {}
        if config.method == "imagic":
            self._base = {name: own(tensor).cpu().clone() for name, tensor in model.unet.state_dict().items()}
        if not sharded:
            # diffusers would warn of modules that must stay in float32, of which these UNets have none.
            nn.Module.to(model.unet, dtype)
        self._model = model

    def __call__(self, batch: Batch) -> Batch:
        codes, messages = zip(*(self.train(self._tasks[int(number)]) for number in batch["number"]), strict=True)
        return {**batch, "error": np.array(codes, object), "message": np.array(messages, object)}

    def train(self, task: Task) -> tuple[str, str]:
        """Train one identity and write its folder; returns the code and the message of what went wrong, "" for none."""
        try:
            self.learn(task)
        except ImageError as bad:
            return bad.code, str(bad)
        except NotFinite as bad:
            return "diverged", str(bad)
        return "", ""

    def learn(self, task: Task) -> None:
        """Train one identity, from its checkpoint where there is one, and write its folder."""
        config, began = self._config, time.monotonic()
        self._reset()
        latents = self._all_latents(task)
        text = self._text(task)
        target = self._targets[text]
        run = Steps(config, task, self._model.device, self._peers)
        word = None
        if config.method == "textual_inversion":
            word = self._word(task)
            with self._reading(word) as condition:
                run.steps("embedding", Trained([word]), condition, self._loss(latents), config.emb_train_steps)
                with torch.no_grad():
                    optimized = condition().float()
        else:
            embedding = nn.Parameter(target.clone().to(self._model.device))
            run.steps("embedding", Trained([embedding]), lambda: embedding, self._loss(latents), config.emb_train_steps)
            optimized = embedding.detach()
            self._tune(run, optimized, latents)
        network = self._whole()
        # No worker looks for checkpoints that the first one has deleted by then.
        self._peers.each(None)
        if self._peers.rank == 0:
            model = replace(self._model, unet=network)
            self._write(model, task, text, target, optimized.cpu(), word, run, time.monotonic() - began)

    def _text(self, task: Task) -> str:
        return self._config.target_text.replace("{}", task.of)

    def _all_latents(self, task: Task) -> tuple[Tensor, Tensor]:
        """The latents and sizes of an identity; raises the ImageError of any worker on all of them."""
        latents, bad = None, None
        try:
            latents = self._latents(task)
        except ImageError as error:
            bad = error.code, str(error)
        if bad := next((one for one in self._peers.each(bad) if one), None):
            raise ImageError(*bad)
        assert latents is not None
        return latents

    def _latents(self, task: Task) -> tuple[Tensor, Tensor]:
        """Latents (N, C, h, w), and the sizes (N, 6) of pictures and crops that `predict` takes."""
        side, pixels, sizes = self._config.resolution, [], []
        for picture in task.pictures:
            at = (0.5, 0.5)
            if not self._config.center_crop:
                drawn = np.random.default_rng([self._config.seed, zlib.crc32(picture.name.encode())])
                at = (float(drawn.random()), float(drawn.random()))
            image = read_image(picture.uri)
            cut, place = placed_crop(image, side, side, at)
            pixels.append(cut)
            sizes.append([image.height, image.width, *place, side, side])
        self._model.vae.to(self._model.device)
        # Tensors of inference cannot take part in training.
        latents = encode_pictures(self._model, np.stack(pixels)).clone()
        if self._peers.sharded:
            self._model.vae.to("cpu")
        return latents, moved(torch.tensor(sizes, dtype=torch.float32), self._model.device)

    def _loss(self, pictures: tuple[Tensor, Tensor]) -> Callable[[Tensor, int, slice], Tensor]:
        """The mean squared error for a condition (1, S, d), over some rows of the numbered piece of a step."""
        config, (latents, sizes) = self._config, pictures
        model = replace(self._model, dtype=self._dtype)

        def loss(condition: Tensor, number: int, rows: slice) -> Tensor:
            generator = torch.Generator().manual_seed(number)
            size = config.train_batch_size
            which = torch.randint(len(latents), (size,), generator=generator)
            times = drawn_timesteps(model, size, generator)
            noise = torch.randn((size, *latents.shape[1:]), generator=generator)
            which, times, noise = (moved(one[rows], model.device) for one in (which, times, noise))
            clear = latents[which]
            noisy = model.scheduler.add_noise(clear, noise, times)
            found = predict(model, noisy, times, condition.expand(len(which), -1, -1), sizes[which])
            return nn.functional.mse_loss(found, model.target(clear, noise))

        return loss

    def _reset(self) -> None:
        """Restore the UNet to its state before any identity."""
        unet: Any = self._model.unet
        if not self._peers.sharded:
            nn.Module.to(unet, self._dtype)
        unet.zero_grad()
        if self._base:
            with torch.no_grad():
                for name, tensor in unet.state_dict().items():
                    own(tensor).copy_(self._base[name])
        elif getattr(unet, "peft_config", {}):
            unet.delete_adapters("default")
        unet.requires_grad_(False)

    def _tune(self, run: Steps, optimized: Tensor, latents: tuple[Tensor, Tensor]) -> None:
        """Train the UNet or its LoRA with the embedding fixed."""
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
                target_modules=list(self._model.family.layers),
            )
            unet.add_adapter(lora)
            rate = config.lora_learning_rate
        named = {name: one for name, one in unet.named_parameters() if one.requires_grad}
        exact = None
        if self._dtype != torch.float32 and not (self._peers.sharded and self._base):
            # The UNet itself has rounded ones.
            exact = [
                (self._base[name] if self._base else one.detach()).to(self._model.device, torch.float32, copy=True)
                for name, one in named.items()
            ]
        trained = Trained(list(named.values()), exact)
        run.steps("unet", trained, lambda: optimized, self._loss(latents), config.max_train_steps, rate)
        trained.finish()

    def _whole(self) -> Any:
        """The network as it is saved; of one that is divided and trained the first worker has it whole."""
        unet: Any = self._model.unet
        if not (self._peers.sharded and self._base):
            return unet
        weights = gathered(unet.state_dict(), keep=self._peers.rank == 0)
        return plain(unet, self._kind, weights) if weights else None

    def _word(self, task: Task) -> nn.Parameter:
        """The vector of the new word, float32 (d,): at first the mean of the class's own."""
        numbers = self._texts.tokenizer(task.of, add_special_tokens=False, return_tensors="pt").input_ids[0]
        vectors = self._texts.encoder.get_input_embeddings().weight
        return nn.Parameter(vectors[numbers.to(vectors.device)].float().mean(0).detach().clone())

    def _reading(self, word: nn.Parameter) -> "_Reading":
        return _Reading(self._texts, self._config.target_text.replace("{}", WORD), word)

    def _write(
        self,
        model: StableDiffusion,
        task: Task,
        text: str,
        target: Tensor,
        optimized: Tensor,
        word: nn.Parameter | None,
        run: Steps,
        seconds: float,
    ) -> None:
        from safetensors.torch import save

        config, name = self._config, task.name
        store = Store(config.output)
        write_embedding(target.cpu().numpy(), store.root, name, TARGET)
        write_embedding(optimized.numpy(), store.root, name, OPTIMIZED)
        storage.write_bytes(store.uri(name, TEXT), text.encode())
        if word is not None:
            learnt = save({f"<{class_of(name)}>": word.detach().cpu()})
            storage.write_bytes(store.uri(name, "learned_embeds.safetensors"), learnt)
        with TemporaryFolder() as folder:
            if config.method != "textual_inversion":
                _pipeline_files(model, self._texts, config.method, str(folder))
            for path in sorted(path for path in folder.rglob("*") if path.is_file()):
                storage.upload(path, store.uri(name, path.relative_to(folder).as_posix()))
        about = {
            "settings_digest": task.settings,
            "settings": config.learns(),
            "base": self.base,
            "pictures": [picture.name for picture in task.pictures],
            "losses": run.losses,
            "seconds": round(seconds, 1),
        }
        store.write_json(about, name, DONE)
        run.forget()


def _pipeline_files(model: StableDiffusion, texts: Texts, method: str, folder: str) -> None:
    """Write the LoRA of the network, or the whole pipeline with its UNet, as diffusers does."""
    if method == "lora":
        import diffusers
        from diffusers.utils.state_dict_utils import convert_state_dict_to_diffusers
        from peft import get_peft_model_state_dict

        layers = get_peft_model_state_dict(model.unet)
        if model.family.network == "unet":
            # The names that LoRAs of UNets have, and those of transformers have not.
            layers = convert_state_dict_to_diffusers(layers)
        named: Any = {f"{model.family.network}_lora_layers": layers, "weight_name": LORA}
        getattr(diffusers, model.family.pipeline).save_lora_weights(folder, **named)
        return
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

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

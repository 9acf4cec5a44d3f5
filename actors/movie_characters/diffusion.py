"""Stable Diffusion: loading a model and its parts, prompts to embeddings, pictures to latents."""

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from PIL import Image

from actors.core import storage
from actors.core.errors import UserError
from actors.core.loading import loading
from actors.core.stage import ModelStage
from actors.core.temporary import private_folder
from actors.models.devices import moved
from actors.models.hub import check_hub
from actors.movie_characters.families import INDEX, SD, TRAIN_TIMESTEPS, Family, family_of, is_local, pack

if TYPE_CHECKING:
    # Only workers that hold a model pay for importing torch.
    import torch

ENCODED_AT_ONCE = 8
"""Pictures that the VAE encodes in one call on a GPU. On a CPU more than one gain nothing."""
ROWS, ROWS_ON_A_GPU = 8, 64
"""Rows in one call of a worker by default. With 64 images most calls of the UNet are full, also late in a race."""


@dataclass(frozen=True)
class DiffusionConfig(ModelStage):
    """Workers and precision of Stable Diffusion."""

    LEAST_BATCH: ClassVar[int] = 0

    batch_size: int = 0
    """Rows in one call of a worker, which is the most that a kill can cost it; 0: 64 on a GPU, 8 on a CPU. The more
    images there are in a call, the fuller are batches of the UNet with method=staged."""
    evaluations_per_call: int = 32
    """Pairs of a noisy latent and a condition in one forward pass of the UNet. Lower it when memory runs out."""
    compile: bool = False
    """Compile the base UNet with torch at the start of each worker, which takes minutes; UNets of single identities are
    not compiled. The effect depends on the UNet: on a CPU one took a sixth less time, another a quarter more."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.workers < 1 or self.evaluations_per_call < 1:
            raise UserError(f"workers and evaluations_per_call start at 1: {self}")

    @property
    def rows_per_call(self) -> int:
        """batch_size, with 0 resolved."""
        return self.batch_size or (ROWS_ON_A_GPU if self.num_gpus else ROWS)


@dataclass(frozen=True)
class OneByOne(DiffusionConfig):
    """Workers and precision of Stable Diffusion, where a row takes long."""

    LEAST_BATCH: ClassVar[int] = 1

    batch_size: int = 1
    """Rows in one call of a worker."""


# ------------------------------------------------------------------------------------------------------------ the model


@dataclass(frozen=True)
class StableDiffusion:
    """The parts of a model that the loss needs, in evaluation mode, weights without gradients."""

    unet: Any
    """The network that predicts: a UNet, or the transformer of a family that has one."""
    vae: Any
    scheduler: Any
    """A DDIMScheduler with the schedule of `noise_schedule`, or a FlowSchedule."""
    device: str
    dtype: "torch.dtype"
    family: Family = SD

    def target(self, latents: "torch.Tensor", noise: "torch.Tensor") -> "torch.Tensor":
        """What the network is to predict: the noise, or the velocity of a flow."""
        return noise - latents if self.family.flow else noise


class FlowSchedule:
    """The straight way from a latent (t = 0) to noise (t = 999): z_t = (1 - sigma) z + sigma noise.

    Its sigmas are those of the model's own scheduler in training, FlowMatchEulerDiscreteScheduler.
    """

    def __init__(self, scheduler: Any) -> None:
        self.config = scheduler.config
        self.sigmas: torch.Tensor = scheduler.sigmas.flip(0)
        """By t, float32 (1000,)."""

    def set_timesteps(self, steps: int) -> None:
        """Spread timesteps as DDIM does."""
        import torch

        self.timesteps = torch.arange(steps).flip(0) * (TRAIN_TIMESTEPS // steps)

    def sigma(self, times: "torch.Tensor") -> "torch.Tensor":
        """Shares of noise at timesteps int64 (B,): float32 (B,)."""
        # Once a device, since a copy waits.
        self.sigmas = self.sigmas.to(times.device)
        return self.sigmas[times]

    def add_noise(self, latents: "torch.Tensor", noise: "torch.Tensor", times: "torch.Tensor") -> "torch.Tensor":
        """Latents (B, C, h, w) at timesteps int64 (B,)."""
        sigma = self.sigma(times)[:, None, None, None]
        return (1 - sigma) * latents + sigma * noise


@dataclass(frozen=True)
class Texts:
    """A tokenizer and the text encoder that belongs to it."""

    tokenizer: Any
    encoder: Any

    def to(self, device: str) -> None:
        """Move it to a device."""
        self.encoder.to(device)


@dataclass(frozen=True)
class PipelineTexts:
    """The text encoders of a model, as a pipeline of diffusers that has nothing else."""

    pipeline: Any
    family: Family

    def to(self, device: str) -> None:
        """Move them to a device."""
        for name, part in self.pipeline.components.items():
            # The network has no weights here.
            if name.startswith("text_encoder") and part is not None:
                part.to(device)


def check_diffusion(model: str, setting: str) -> Family:
    """Return the kind of a model; raises UserError where it cannot be found or downloaded. Loads no weights.

    setting: name of the setting that holds the model.
    """
    _check_extra()
    folder = Path(model)
    if (folder / INDEX).is_file() or all((folder / part / "config.json").is_file() for part in ("unet", "vae")):
        return family_of(model, setting)
    if is_local(model):
        raise UserError(
            f"{setting}={model} has no {INDEX}; give a folder that a Stable Diffusion pipeline of diffusers saved"
        )
    there = check_hub(
        f"{setting}={model}", model, (INDEX,), "a folder that a Stable Diffusion pipeline of diffusers saved"
    )
    return family_of(model, setting) if there else SD


def _check_extra() -> None:
    # Importing them takes 10 CPU-seconds, which a refusal need not cost.
    if not all(importlib.util.find_spec(name) for name in ("peft", "transformers")):
        raise UserError(
            "Movie characters need the extra movie-characters. Install it: "
            'pip install -c constraints.txt -e ".[movie-characters]"'
        )


def load_part(model: str, part: str, setting: str, dtype: "torch.dtype | None" = None, family: Family = SD) -> Any:
    """One component of a model: unet, transformer, vae, text_encoder or tokenizer.

    model: a hub name, or a folder that diffusers saved; a text encoder may also lie in a repository of its own.
    Raises ValueError where it cannot be loaded.
    """
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from transformers import CLIPTextModel, CLIPTokenizer

    classes: dict[str, Any] = {
        "vae": AutoencoderKL,
        "text_encoder": CLIPTextModel,
        "tokenizer": CLIPTokenizer,
        family.network: getattr(import_module("diffusers"), family.network_class),
    }
    # Other weights are pickles, which may run code.
    how = {} if part == "tokenizer" else {"torch_dtype": dtype, "use_safetensors": True}
    alone = part in ("text_encoder", "tokenizer") and not (Path(model) / part).is_dir()
    last: Exception | None = None
    for where in ({"subfolder": part}, {}) if alone else ({"subfolder": part},):
        try:
            return classes[part].from_pretrained(model, **where, **how)
        except (OSError, ValueError, TypeError) as error:
            last = last or error
    raise UserError(f"{setting}={model}: its {part} cannot be loaded by diffusers: {last}") from last


@loading()
def load_diffusion(
    model: str, config: DiffusionConfig, setting: str = "sd_model_name", network: "torch.dtype | None" = None
) -> StableDiffusion:
    """Load network, VAE and schedule to the device of the stage; raises UserError where they cannot be loaded.

    network: precision of the network, where it is not that of the stage.
    """
    import torch

    dtype, device, family = getattr(torch, config.precision), config.device, family_of(model, setting)
    if device == "cpu":
        torch.set_num_threads(max(1, int(config.num_cpus)))
    unet = load_part(model, family.network, setting, network or dtype, family)
    vae = load_part(model, "vae", setting, dtype)
    for module in (unet, vae):
        module.to(device).eval().requires_grad_(False)
    if config.compile:
        # Compiled code is loaded from there, and torch's own folder in TMPDIR may be another user's.
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(private_folder("torchinductor")))
        _check_compiler(device)
        unet.compile()
    schedule = _flow_schedule(model, setting) if family.flow else noise_schedule(prediction_type(model))
    return StableDiffusion(unet, vae, schedule, device, dtype, family)


def _flow_schedule(model: str, setting: str) -> FlowSchedule:
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

    try:
        return FlowSchedule(FlowMatchEulerDiscreteScheduler.from_pretrained(model, subfolder="scheduler"))
    except OSError as error:
        raise UserError(f"{setting}={model}: its scheduler cannot be loaded by diffusers: {error}") from error


def _check_compiler(device: str) -> None:
    """Raise UserError where torch finds no compiler on a CPU; on a GPU its own error is clear."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    if device == "cpu":
        try:
            get_cpp_compiler()
        except InvalidCxxCompiler as error:
            raise UserError(
                "diffusion.compile=true needs a C++ compiler on every machine that runs workers, and none is found: "
                "install g++, name another in CXX, or leave diffusion.compile=false"
            ) from error


def with_unet(model: StableDiffusion, folder: str) -> StableDiffusion:
    """A model with its UNet replaced by one that diffusers saved in a folder or below s3://."""
    with storage.local_folder(folder) as path:
        unet = load_part(str(path.parent), path.name, "imagic_pretrained_path", model.dtype)
    return replace(model, unet=unet.to(model.device).eval().requires_grad_(False))


def load_texts(
    model: str, clip_model: str | None, setting: str = "sd_model_name", dtype: "torch.dtype | None" = None
) -> Texts | PipelineTexts:
    """The text encoders of a model, or for a StableDiffusion those of a CLIP model by hub name or folder.

    dtype: None: float32, whatever the precision of the network, where what they embed is embedded once.
    """
    import torch

    dtype = dtype or torch.float32

    family = SD if clip_model else family_of(model, setting)
    if family.embed:
        return PipelineTexts(_text_pipeline(model, family, setting, dtype), family)
    where, named = (clip_model, "clip_model_name") if clip_model else (model, setting)
    tokenizer = load_part(where, "tokenizer", named)
    # Also where it was saved in another precision, which transformers would keep.
    encoder = load_part(where, "text_encoder", named, dtype)
    return Texts(tokenizer, encoder.eval().requires_grad_(False))


def _text_pipeline(model: str, family: Family, setting: str, dtype: "torch.dtype") -> Any:
    """A pipeline with the text encoders of a model, and the settings of its network."""
    import diffusers
    import torch

    kind, network = getattr(diffusers, family.pipeline), getattr(diffusers, family.network_class)
    try:
        index = kind.load_config(model)
        texts = [name for name in parts_of(kind) if name.startswith(("text_encoder", "tokenizer"))]
        # Also those that a model was saved without, such as the T5 of a StableDiffusion3.
        others = {name: None for name in parts_of(kind) if name not in texts or not (index.get(name) or [None])[0]}
        pipeline = kind.from_pretrained(model, torch_dtype=dtype, use_safetensors=True, **others)
        about = network.load_config(model, subfolder=family.network)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{setting}={model}: its text encoders cannot be loaded by diffusers: {error}") from error
    # The width of what a missing text encoder would give is that of the network.
    with torch.device("meta"):
        pipeline.register_modules(**{family.network: network.from_config(about)})
    return pipeline


def parts_of(pipeline: Any) -> list[str]:
    """Names of the components that a class of diffusers' pipelines asks for."""
    given = signature(pipeline.__init__).parameters.values()
    return [one.name for one in given if one.default is one.empty and one.name != "self"]


def prediction_type(model: str) -> str:
    """What the UNet of a model predicts: epsilon, or v_prediction."""
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    try:
        config: Any = DDIMScheduler.load_config(model, subfolder="scheduler")
    except OSError:
        return "epsilon"
    return config.get("prediction_type", "epsilon")


def noise_schedule(predicts: str = "epsilon") -> Any:
    """DDIM's scheduler with Stable Diffusion's betas: .00085 to .012, scaled linear."""
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    if predicts not in ("epsilon", "v_prediction"):
        raise UserError(f"a model that predicts {predicts}: only epsilon and v_prediction are known")
    return DDIMScheduler(
        num_train_timesteps=TRAIN_TIMESTEPS,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        prediction_type=predicts,
    )


def embed_prompt(texts: Texts | PipelineTexts, prompt: str) -> "torch.Tensor":
    """The condition of a prompt: float32 (1, S, d); what is longer than the text encoders read is cut off."""
    import torch

    with torch.inference_mode():
        if isinstance(texts, PipelineTexts):
            assert texts.family.embed is not None
            return pack(*texts.family.embed(texts.pipeline, prompt)).float().clone()
        return texts.encoder(tokens(texts, prompt).to(texts.encoder.device))[0].float().clone()


def tokens(texts: Texts, prompt: str) -> "torch.Tensor":
    """Numbers of the tokens of a prompt, padded to what the encoder reads: int64 (1, 77)."""
    length = min(texts.tokenizer.model_max_length, texts.encoder.config.max_position_embeddings)
    return texts.tokenizer(
        prompt, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    ).input_ids


# ------------------------------------------------------------------------------------------------------------- pictures


def crop(picture: Image.Image, height: int, width: int, at: tuple[float, float] = (0.5, 0.5)) -> np.ndarray:
    """A picture scaled (bilinear) until it just covers height × width, and cut there: uint8 (height, width, 3) RGB.

    at: where the crop lies from top to bottom and from left to right, in 0..1; default: the middle.
    """
    return placed_crop(picture, height, width, at)[0]


def placed_crop(
    picture: Image.Image, height: int, width: int, at: tuple[float, float]
) -> tuple[np.ndarray, tuple[int, int]]:
    """What `crop` gives, and where it begins in the scaled picture: top and left, in pixels."""
    scale = max(height / picture.height, width / picture.width)
    size = max(width, round(picture.width * scale)), max(height, round(picture.height * scale))
    pixels = np.asarray(picture.resize(size, Image.Resampling.BILINEAR))
    y, x = (round((there - wanted) * share) for there, wanted, share in zip(pixels.shape, (height, width), at))  # noqa: B905
    return pixels[y : y + height, x : x + width].copy(), (y, x)


def encode_pictures(model: StableDiffusion, pixels: np.ndarray) -> "torch.Tensor":
    """Latents of pictures uint8 (N, H, W, 3): float32 (N, C, H / f, W / f), scaling × (mean of the VAE's posterior -
    shift)."""
    import torch

    found = []
    with torch.inference_mode():
        for some in torch.from_numpy(pixels).split(1 if model.device == "cpu" else ENCODED_AT_ONCE):
            scaled = moved(some, model.device).permute(0, 3, 1, 2).to(model.dtype).div(127.5).sub(1)
            found.append(model.vae.encode(scaled).latent_dist.mean.float())
    about = model.vae.config
    return (torch.cat(found) - (about.get("shift_factor") or 0)) * about.scaling_factor


def copy_all(into: "Sequence[torch.Tensor]", of: "Sequence[torch.Tensor]") -> None:
    """Copy the values of tensors into others on the same device, in few launches, which nothing waits for."""
    import torch

    with torch.no_grad():
        torch._foreach_copy_([*into], [*of])  # pyright: ignore[reportPrivateImportUsage]


def latent_shape(vae: Any, height: int, width: int) -> tuple[int, int, int]:
    """Shape (C, h, w) of the latent of a picture of that size."""
    factor = shrinks(vae)
    return vae.config.latent_channels, height // factor, width // factor


def shrinks(vae: Any) -> int:
    """Pixels of a picture's side for each of its latent's."""
    return 2 ** (len(vae.config.block_out_channels) - 1)


def check_size(multiple: int = 8, **sizes: int) -> None:
    """Raise UserError where a height or width is no multiple of what a family asks for."""
    for name, size in sizes.items():
        if size < multiple or size % multiple:
            raise UserError(f"{name}={size}: pictures for this model have sides that are multiples of {multiple}")

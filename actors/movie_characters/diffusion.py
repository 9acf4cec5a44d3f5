"""Stable Diffusion: loading a model and its parts, prompts to embeddings, pictures to latents."""

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from PIL import Image

from actors.core import storage
from actors.core.errors import UserError
from actors.core.stage import ModelStage
from actors.core.temporary import private_folder
from actors.models.devices import moved
from actors.models.hub import check_hub

if TYPE_CHECKING:
    # Only workers that hold a model pay for importing torch.
    import torch

TRAIN_TIMESTEPS = 1000
"""Timesteps of the noise schedule."""
INDEX = "model_index.json"
"""The file that diffusers writes into the folder of a pipeline."""
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
    vae: Any
    scheduler: Any
    """A DDIMScheduler with the schedule of `noise_schedule`."""
    device: str
    dtype: "torch.dtype"


@dataclass(frozen=True)
class Texts:
    """A tokenizer and the text encoder that belongs to it."""

    tokenizer: Any
    encoder: Any


def check_diffusion(model: str, setting: str) -> None:
    """Raise UserError where the model cannot be found or downloaded; loads no weights.

    setting: name of the setting that holds the model.
    """
    _check_extra()
    folder = Path(model)
    if (folder / INDEX).is_file() or all((folder / part / "config.json").is_file() for part in ("unet", "vae")):
        return
    if folder.exists() or model.startswith(("/", ".", "~")):
        raise UserError(
            f"{setting}={model} has no {INDEX}; give a folder that a Stable Diffusion pipeline of diffusers saved"
        )
    check_hub(f"{setting}={model}", model, (INDEX,), "a folder that a Stable Diffusion pipeline of diffusers saved")


def _check_extra() -> None:
    # Importing them takes 10 CPU-seconds, which a refusal need not cost.
    if not all(importlib.util.find_spec(name) for name in ("peft", "transformers")):
        raise UserError(
            "Movie characters need the extra movie-characters. Install it: "
            'pip install -c constraints.txt -e ".[movie-characters]"'
        )


def load_part(model: str, part: str, setting: str, dtype: "torch.dtype | None" = None) -> Any:
    """One component of a Stable Diffusion model: unet, vae, text_encoder or tokenizer.

    model: a hub name, or a folder that diffusers saved; a text encoder may also lie in a repository of its own.
    Raises ValueError where it cannot be loaded.
    """
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    classes: dict[str, Any] = {
        "unet": UNet2DConditionModel,
        "vae": AutoencoderKL,
        "text_encoder": CLIPTextModel,
        "tokenizer": CLIPTokenizer,
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


def load_diffusion(model: str, config: DiffusionConfig, setting: str = "sd_model_name") -> StableDiffusion:
    """Load UNet, VAE and schedule to the device of the stage; raises UserError where they cannot be loaded."""
    import torch

    dtype, device = getattr(torch, config.precision), config.device
    if device == "cpu":
        torch.set_num_threads(max(1, int(config.num_cpus)))
    unet, vae = (load_part(model, part, setting, dtype) for part in ("unet", "vae"))
    for module in (unet, vae):
        module.to(device).eval().requires_grad_(False)
    if config.compile:
        # Compiled code is loaded from there, and torch's own folder in TMPDIR may be another user's.
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(private_folder("torchinductor")))
        _check_compiler(device)
        unet.compile()
    return StableDiffusion(unet, vae, noise_schedule(prediction_type(model)), device, dtype)


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


def load_texts(model: str, clip_model: str | None, setting: str = "sd_model_name") -> Texts:
    """The tokenizer and text encoder of a Stable Diffusion model, or those of a CLIP model by hub name or folder.

    The encoder is in float32, whatever the precision of the UNet: what it embeds is embedded once.
    """
    import torch

    where, named = (clip_model, "clip_model_name") if clip_model else (model, setting)
    tokenizer = load_part(where, "tokenizer", named)
    # In float32 also where it was saved in half precision, which transformers would keep.
    encoder = load_part(where, "text_encoder", named, torch.float32)
    return Texts(tokenizer, encoder.eval().requires_grad_(False))


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


def embed_prompt(texts: Texts, prompt: str) -> "torch.Tensor":
    """The text encoder's output for a prompt: float32 (1, 77, d); what is longer than it reads is cut off."""
    import torch

    with torch.inference_mode():
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
    scale = max(height / picture.height, width / picture.width)
    size = max(width, round(picture.width * scale)), max(height, round(picture.height * scale))
    pixels = np.asarray(picture.resize(size, Image.Resampling.BILINEAR))
    y, x = (round((there - wanted) * share) for there, wanted, share in zip(pixels.shape, (height, width), at))  # noqa: B905
    return pixels[y : y + height, x : x + width].copy()


def encode_pictures(model: StableDiffusion, pixels: np.ndarray) -> "torch.Tensor":
    """Latents of pictures uint8 (N, H, W, 3): float32 (N, C, H / f, W / f), scaling × mean of the VAE's posterior."""
    import torch

    found = []
    with torch.inference_mode():
        for some in torch.from_numpy(pixels).split(1 if model.device == "cpu" else ENCODED_AT_ONCE):
            scaled = moved(some, model.device).permute(0, 3, 1, 2).to(model.dtype).div(127.5).sub(1)
            found.append(model.vae.encode(scaled).latent_dist.mean.float())
    return torch.cat(found) * model.vae.config.scaling_factor


def copy_all(into: "Sequence[torch.Tensor]", of: "Sequence[torch.Tensor]") -> None:
    """Copy the values of tensors into others on the same device, in few launches, which nothing waits for."""
    import torch

    with torch.no_grad():
        torch._foreach_copy_([*into], [*of])  # pyright: ignore[reportPrivateImportUsage]


def latent_shape(vae: Any, height: int, width: int) -> tuple[int, int, int]:
    """Shape (C, h, w) of the latent of a picture of that size."""
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    return vae.config.latent_channels, height // factor, width // factor


def check_size(**sizes: int) -> None:
    """Raise UserError where a height or width is no multiple of 8."""
    for name, size in sizes.items():
        if size < 8 or size % 8:
            raise UserError(f"{name}={size}: pictures for Stable Diffusion have sides that are multiples of 8")

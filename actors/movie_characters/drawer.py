"""Generate images of a character with its personalised model."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from actors.core import storage
from actors.core.errors import UserError
from actors.core.stage import Batch
from actors.movie_characters.bases import check_base
from actors.movie_characters.diffusion import (
    OneByOne,
    StableDiffusion,
    check_size,
    embed_prompt,
    latent_shape,
    load_diffusion,
    load_texts,
    parts_of,
)
from actors.movie_characters.diffusion_classifier import Identity, Unets
from actors.movie_characters.families import FLUX, SD, as_squares
from actors.movie_characters.identities import Learnt
from actors.movie_characters.names import drawn_name

Range = tuple[float, ...]
"""(value), (first, last) with a step of 1, or (first, last, step); the last is included."""


@dataclass(frozen=True)
class GenerateConfig:
    """Settings of `generate`."""

    ALIASES: ClassVar[dict[str, Any]] = {
        "input_files": "input",
        "output_folder": "output",
        "num_gpus": "diffusion.num_gpus",
    }

    imagic_pretrained_path: str
    """The folder of the identities CLASS_NUMBER/, the output of `personalise`: a path or s3://."""
    output: str
    """Where the images are written: a path or s3://. Images that exist are not drawn again."""
    input: str | tuple[str, ...] = ()
    """Which identities to draw, by name, or by images that have their names; none: all."""
    imagic_pipe: bool = False
    """Draw each identity with its own UNet or LoRA; false draws with the base model."""
    sd_model_name: str = "CompVis/stable-diffusion-v1-4"
    """The model that the identities were trained on: a name on the Hugging Face Hub, or a folder. Where
    `personalise` recorded which one it was, another is refused."""
    clip_model_name: str | None = None
    """A text encoder in place of a StableDiffusion's own, for the empty prompt and for prompts without a stored
    embedding."""
    seed_range: tuple[int, ...] = (0,)
    """Seeds of the initial noise: [seed], [first, last] or [first, last, step]; the last is included, the default step
    is 1."""
    alpha_range: Range = (0.0,)
    """Values of alpha in 0..1, as [value], [first, last] or [first, last, step]. The condition is alpha · embedding of
    the prompt + (1 - alpha) · trained embedding: higher alphas are nearer to the prompt."""
    guidance_scale_range: Range = (7.5,)
    """Values of the guidance scale, as [value], [first, last] or [first, last, step]; up to 1 there is no guidance."""
    height: int = 512
    """Height of the images in pixels, a multiple of 8."""
    width: int = 512
    """Width of the images in pixels, a multiple of 8."""
    num_inference_steps: int = 50
    """Denoising steps (DDIM, or Euler of flows) per image; more take longer."""
    diffusion: OneByOne = field(default_factory=OneByOne)
    """Workers and precision of the model."""
    autoscaling: bool = False
    """The cluster grows on demand, so worker pools need not fit its present size."""

    def __post_init__(self) -> None:
        check_size(height=self.height, width=self.width)
        for name in ("seed_range", "alpha_range", "guidance_scale_range"):
            values(getattr(self, name), name)
        if min(self.seed_range) < 0:
            raise UserError(f"seed_range={list(self.seed_range)}: seeds start at 0")
        alphas = values(self.alpha_range, "alpha_range")
        if min(alphas) < 0 or max(alphas) > 1:
            raise UserError(f"alpha_range={list(self.alpha_range)}: alphas lie in 0..1")


def values(given: Sequence[float], name: str) -> list[float]:
    """All values of a range; raises UserError where it is none."""
    if not 1 <= len(given) <= 3:
        raise UserError(f"{name}={list(given)}: give [value], [first, last] or [first, last, step]")
    first, last, step = (*given, given[0], 1)[:3] if len(given) == 1 else (*given, 1)[:3]
    if step <= 0 or last < first:
        raise UserError(f"{name}={list(given)}: the first is at most the last, and the step is above 0")
    count = int((last - first) / step + 1e-9) + 1
    # Without the noise of adding .1 ten times, since values become names.
    return [round(first + number * step, 6) for number in range(count)]


@dataclass(frozen=True)
class Drawing:
    """One image to be drawn."""

    identity: str
    seed: int
    alpha: float
    guidance: float

    @property
    def file(self) -> str:
        """The name of its file."""
        return drawn_name(self.identity, self.seed, self.alpha, self.guidance)


class Drawer:
    """Draw images and write them.

    Reads:  number  int (N,), which of the drawings
    Adds:   error   str (N,), "" where it was drawn, else a code: no_target, no_weights; message: details
    """

    def __init__(self, config: GenerateConfig, learnt: Sequence[Learnt], drawings: Sequence[Drawing]) -> None:
        self._config, self._learnt, self._drawings = config, learnt, drawings
        self._model = load_diffusion(config.sd_model_name, config.diffusion)
        check_base({one.name: one.base for one in learnt if one.base}, self._model, config.sd_model_name)
        # They stay beside the model for other prompts: on a GPU in its precision, to which conditions are cast anyway.
        dtype = self._model.dtype if config.diffusion.device == "cuda" else None
        self._texts = load_texts(config.sd_model_name, config.clip_model_name, dtype=dtype)
        self._empty = embed_prompt(self._texts, "")
        self._numbers = {one.name: number for number, one in enumerate(learnt)}
        own = [
            Identity(
                one.name,
                one.optimized,
                one.lora if config.imagic_pipe and not one.unet else "",
                one.unet if config.imagic_pipe else "",
            )
            for one in learnt
        ]
        self._unets = Unets(self._model, own)

    def __call__(self, batch: Batch) -> Batch:
        told = [self._draw(self._drawings[int(number)]) for number in batch["number"]]
        codes, messages = zip(*told, strict=True)
        return {**batch, "error": np.array(codes, object), "message": np.array(messages, object)}

    def _draw(self, drawing: Drawing) -> tuple[str, str]:
        number = self._numbers[drawing.identity]
        one = self._learnt[number]
        if self._config.imagic_pipe and not (one.lora or one.unet):
            return "no_weights", f"{one.name} has neither a LoRA nor a UNet. Set imagic_pipe=false."
        try:
            blend = one.blend(drawing.alpha, lambda prompt: embed_prompt(self._texts, prompt)[0].numpy())
        except ValueError as error:
            return "no_target", str(error)
        model = self._unets.of(number)
        found = self._pipeline(model)(
            **self._conditions(model, blend, drawing.guidance),
            height=self._config.height,
            width=self._config.width,
            num_inference_steps=self._config.num_inference_steps,
            latents=self._noise(model, drawing.seed),
        )
        image = io.BytesIO()
        found.images[0].save(image, format="png")
        storage.write_bytes(storage.join(self._config.output, drawing.file), image.getvalue())
        return "", ""

    def _pipeline(self, model: StableDiffusion) -> Any:
        """The pipeline of diffusers without its text encoders, whose precision prompts would be cast to."""
        import diffusers
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler
        from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

        kind, family = getattr(diffusers, model.family.pipeline), model.family
        parts: dict[str, Any] = dict.fromkeys(parts_of(kind))
        how: dict[str, Any] = {"requires_safety_checker": False} if family is SD else {}
        if family.flow:
            schedule = FlowMatchEulerDiscreteScheduler.from_config(model.scheduler.config)
        else:
            schedule = DDIMScheduler.from_config(model.scheduler.config, steps_offset=1)
        parts |= {"vae": model.vae, family.network: model.unet, "scheduler": schedule}
        pipeline = kind(**parts, **how)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def _conditions(self, model: StableDiffusion, blend: np.ndarray, guidance: float) -> dict[str, Any]:
        """Arguments of the pipeline: embedded prompts and guidance. A distilled model takes guidance in one pass."""
        import torch

        found: dict[str, Any] = {"guidance_scale": guidance}
        given = {"": torch.from_numpy(blend)[None], "negative_": self._empty}
        if model.family is FLUX:
            del given["negative_"]
        for prefix, condition in given.items():
            tokens, pooled = model.family.unpack(model.unet, condition.to(model.device, model.dtype))
            found[f"{prefix}prompt_embeds"] = tokens
            if pooled.numel():
                found[f"{prefix}pooled_prompt_embeds"] = pooled
        return found

    def _noise(self, model: StableDiffusion, seed: int) -> Any:
        """The first latents as the pipeline takes them."""
        import torch

        # Drawn in float32, so that a seed gives one picture in all precisions: PyTorch 2.11 draws others in bfloat16.
        shape = latent_shape(model.vae, self._config.height, self._config.width)
        noise = torch.randn((1, *shape), generator=torch.Generator().manual_seed(seed))
        if model.family is FLUX:
            noise = as_squares(noise)
        return noise.to(model.device, model.dtype)

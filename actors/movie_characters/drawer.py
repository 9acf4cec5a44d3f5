"""Generate images of a character with its personalised Stable Diffusion."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from actors.core import storage
from actors.core.errors import UserError
from actors.core.stage import Batch
from actors.movie_characters.diffusion import (
    DiffusionConfig,
    check_size,
    embed_prompt,
    load_diffusion,
    load_texts,
)
from actors.movie_characters.diffusion_classifier import Identity, Unets
from actors.movie_characters.identities import Learnt

Range = tuple[float, ...]
"""(value), (first, last) with steps of 1, or (first, last, step); the last is included."""


@dataclass(frozen=True)
class GenerateConfig:
    """Settings of `generate`."""

    imagic_pretrained_path: str
    """The folder of the identities, <class>_<n>/, as `personalise` made it: a path or s3://."""
    output_folder: str
    """Where the pictures go: a path or s3://."""
    input_files: str | tuple[str, ...] = ()
    """Which identities: their names, or pictures named like them; none: all."""
    imagic_pipe: bool = False
    """Each identity with its own UNet or LoRA, not with the base UNet."""
    sd_model_name: str = "CompVis/stable-diffusion-v1-4"
    """The Stable Diffusion that the identities were learnt with, by hub name or folder."""
    clip_model_name: str | None = None
    """A text encoder in place of the model's own, which embeds the empty prompt and prompts without a target."""
    seed_range: tuple[int, ...] = (0,)
    """[seed], [first, last] or [first, last, step], the last included."""
    alpha_range: Range = (0.0,)
    """The same, in 0..1."""
    guidance_scale_range: Range = (7.5,)
    """The same; up to 1 there is no guidance."""
    height: int = 512
    """A multiple of 8."""
    width: int = 512
    """A multiple of 8."""
    num_inference_steps: int = 50
    """Steps of DDIM."""
    diffusion: DiffusionConfig = field(default_factory=lambda: DiffusionConfig(batch_size=1))
    """Workers and precision."""
    autoscaling: bool = False
    """The cluster grows by what is asked for, so that pools need not fit it now."""

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
    """One picture to be drawn."""

    identity: str
    seed: int
    alpha: float
    guidance: float

    @property
    def file(self) -> str:
        """Its name, of letters, digits, _ and -, and a dot before the ending: legal in every file system."""
        safe = "".join(letter if letter.isalnum() or letter in "_-" else "-" for letter in self.identity)
        numbers = (f"{value:g}".replace(".", "p") for value in (self.seed, self.alpha, self.guidance))
        return "{}_seed{}_alpha{}_guidance{}.png".format(safe, *numbers)


class Drawer:
    """Draw pictures and write them.

    Reads:  number  int (N,), of the drawings
    Adds:   error   str (N,), "" where it was drawn, else a code: no_target, no_weights; message says more
    """

    def __init__(self, config: GenerateConfig, learnt: Sequence[Learnt], drawings: Sequence[Drawing]) -> None:
        self._config, self._learnt, self._drawings = config, learnt, drawings
        self._model = load_diffusion(config.sd_model_name, config.diffusion)
        self._texts = load_texts(config.sd_model_name, config.clip_model_name)
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
        import torch
        from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler

        number = self._numbers[drawing.identity]
        one = self._learnt[number]
        if self._config.imagic_pipe and not (one.lora or one.unet):
            return "no_weights", f"{one.name} has neither a LoRA nor a UNet: imagic_pipe=false"
        try:
            blend = one.blend(drawing.alpha, lambda prompt: embed_prompt(self._texts, prompt)[0].numpy())
        except ValueError as error:
            return "no_target", str(error)
        model = self._unets.of(number)
        parts: Any = {
            "vae": model.vae,
            "text_encoder": self._texts.encoder,
            "tokenizer": self._texts.tokenizer,
            "unet": model.unet,
            "scheduler": DDIMScheduler.from_config(model.scheduler.config, steps_offset=1),
            "safety_checker": None,
            "feature_extractor": None,
        }
        pipeline = StableDiffusionPipeline(**parts, requires_safety_checker=False)
        pipeline.set_progress_bar_config(disable=True)
        found: Any = pipeline(
            prompt_embeds=torch.from_numpy(blend)[None].to(model.device, model.dtype),
            negative_prompt_embeds=self._empty.to(model.device, model.dtype),
            guidance_scale=drawing.guidance,
            height=self._config.height,
            width=self._config.width,
            num_inference_steps=self._config.num_inference_steps,
            generator=torch.Generator().manual_seed(drawing.seed),
        )
        image = io.BytesIO()
        found.images[0].save(image, format="png")
        storage.write_bytes(storage.join(self._config.output_folder, drawing.file), image.getvalue())
        return "", ""

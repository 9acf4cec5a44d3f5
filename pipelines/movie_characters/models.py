"""The models that `compare` and `timeline` run: which verb identifies, with which settings, and into which folder."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import Field

from actors.core import errors
from actors.core.errors import UserError
from actors.core.store import Store
from pipelines.movie_characters.fuse import FuseConfig, fuse
from pipelines.movie_characters.gallery_settings import ClipConfig, ClipSettings, FaceConfig, FaceSettings
from pipelines.movie_characters.identify_diffusion import (
    DiffusionSettings,
    IdentifyConfig,
    check_identify,
    plan_identify,
)
from pipelines.movie_characters.identify_diffusion import identify as identify_by_diffusion
from pipelines.movie_characters.identify_gallery import check_model, identify, plan_identification
from pipelines.movie_characters.pictures import find_pictures
from pipelines.movie_characters.preselect import PreselectConfig
from pipelines.movie_characters.results import note_classes

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClipModel:
    """A model that identifies by CLIP, as `identify-clip`."""

    by: Literal["clip"]
    """Tells this kind of model from others."""
    settings: ClipSettings
    """Settings of `identify-clip`, without input and output."""


@dataclass(frozen=True)
class FaceModel:
    """A model that identifies by faces, as `identify-faces`."""

    by: Literal["faces"]
    """Tells this kind of model from others."""
    settings: FaceSettings
    """Settings of `identify-faces`, without input and output."""


@dataclass(frozen=True)
class NamedPreselect(PreselectConfig):
    """Evaluate only the classes that another model ranks best for an image."""

    model: str = ""
    """Name of a model by clip or faces of the same comparison, in place of folder."""


@dataclass(frozen=True)
class PreselectedSettings(DiffusionSettings):
    """How images are identified by diffusion, where another model of a comparison may preselect."""

    preselect: NamedPreselect = field(default_factory=NamedPreselect)
    """Evaluate only the classes that another model ranks best for an image."""


@dataclass(frozen=True)
class DiffusionModel:
    """A model that identifies by diffusion, as `identify-diffusion`."""

    by: Literal["diffusion"]
    """Tells this kind of model from others."""
    settings: PreselectedSettings
    """Settings of `identify-diffusion`, without input and output."""


@dataclass(frozen=True)
class FusionSettings:
    """How other models of a comparison are fused."""

    models: tuple[str, ...]
    """Names of two or more other models of the comparison, none of them a fusion."""
    by: Literal["zsum", "rank"] = "zsum"
    """zsum adds standard scores; rank adds reciprocal ranks, which depend on the order of scores only."""
    avg: bool = False
    """The score of a class is the mean over its identities; false: that of its best identity."""
    weights: dict[str, float] = field(default_factory=dict)
    """Weights of some of the models, by name, above 0; others have 1. Without weights, `validation` trains them."""


@dataclass(frozen=True)
class FusionModel:
    """A fusion of other models, as `fuse`."""

    by: Literal["fusion"]
    """Tells this kind of model from others."""
    settings: FusionSettings
    """Which models are fused, and how."""


Single = ClipModel | FaceModel | DiffusionModel
"""A model that identifies images by itself."""
SingleModel = Annotated[Single, Field(discriminator="by")]
Model = Annotated[Single | FusionModel, Field(discriminator="by")]


@dataclass(frozen=True)
class ModelRun:
    """One model on the images of one filter."""

    model: str
    filter: str
    config: Any
    """Settings of its verb."""
    folder: str
    """Where its results lie."""
    clip_csv: bool
    alpha: float | None = None
    """Alpha of a run that only serves the sweep of alpha."""


def run_of(model: Single, images: list[str], folder: str, vectors: str = "") -> ModelRun:
    """The identification of images into a folder; vectors: root of vectors/ where the model names none."""
    given: dict[str, Any] = {one.name: getattr(model.settings, one.name) for one in fields(model.settings)}
    given |= {"input": images, "output": folder}
    if isinstance(model, DiffusionModel):
        chosen = model.settings.preselect
        given["preselect"] = PreselectConfig(chosen.folder, chosen.clip_csv, chosen.best)
        config = IdentifyConfig(**given)
        return ModelRun("", "", config, Store(folder).uri(config.mode), False)
    given["vectors"] = model.settings.vectors or vectors
    config = ClipConfig(**given) if isinstance(model, ClipModel) else FaceConfig(**given)
    return ModelRun("", "", config, folder, True)


def with_images(run: ModelRun, images: list[str]) -> ModelRun:
    """A run with its images replaced."""
    return replace(run, config=replace(run.config, input=images))


def check_all(runs: Sequence[ModelRun]) -> None:
    """Raise UserError where a model cannot run or its gallery is empty; loads no weights."""
    own = [run for run in runs if not isinstance(run.config, FuseConfig)]
    # Of those that differ in their images alone, one stands for all.
    for run in {repr(replace(run.config, input=[], output="")): run for run in own}.values():
        try:
            _check(run.config)
        except UserError as error:
            setting = f"models.{run.model}.settings" if run.model else "model.settings"
            raise UserError(f"{setting}: {error}") from error


def _check(config: ClipConfig | FaceConfig | IdentifyConfig) -> None:
    if isinstance(config, IdentifyConfig):
        check_identify(config)
        return
    errors.check_all(partial(find_pictures, config.gallery, "gallery"), partial(check_model, config))


def run_all(runs: Sequence[ModelRun]) -> dict[str, dict[str, float]]:
    """Identify by each model, in their order, each folder once; returns the weights of fusions."""
    done: set[str] = set()
    weights: dict[str, dict[str, float]] = {}
    for number, run in enumerate(runs, 1):
        if run.folder in done:
            continue
        done.add(run.folder)
        log.info("%d of %d: %s, %s", number, len(runs), run.model, run.filter)
        match run.config:
            case ClipConfig() | FaceConfig():
                identify(run.config, plan_identification(run.config))
            case FuseConfig():
                weights[run.model] = fuse(run.config).weights
            case IdentifyConfig():
                plan = plan_identify(run.config)
                identify_by_diffusion(run.config, plan)
                note_classes(run.folder, {one.name: one.cls for one in plan.pictures})
            case other:
                raise TypeError(f"no verb has settings {type(other).__name__}")
    return weights

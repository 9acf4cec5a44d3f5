"""Predict the genres of films by a model that `train` kept."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from actors.core.store import Store
from pipelines.core.film_vectors import Films
from pipelines.genres.process import fused, read_any
from pipelines.genres.scenes import Scenes, check_scenes, read_scenes, write_scenes
from pipelines.genres.train import check_dimensions, load_model, read_model, write_predictions

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class PredictConfig:
    """Settings of `predict`."""

    input: str
    """Films to classify, with or without genres: an .npz file, or the output of `embed`."""
    model: str = "output/genres/model"
    """The model/ folder that `train` wrote."""
    output: str = "output/genres"
    """Folder or s3:// prefix for predictions.parquet."""
    extra: list[str] = field(default_factory=list)
    """Other features of the same films (.npz), in the order that the model was trained with."""
    scenes: str | int = 0
    """Also classify each scene, into scenes.parquet: a folder or prefix with MovieNet's annotations, one FILM.json per
    film, or how many consecutive shots are one scene. 0: films only. `input` must then be the output of `embed`."""

    ALIASES: ClassVar[dict[str, str]] = {"films": "input"}

    def __post_init__(self) -> None:
        check_scenes(self.scenes)


@dataclass(frozen=True)
class PredictPlan:
    """What is classified, and by what."""

    films: Films
    scenes: Scenes | None
    """The scenes of these films; None where not asked for."""
    about: dict[str, Any]
    """Content of the model's config.json: learn, dimensions, thresholds by genre."""


def plan_predict(config: PredictConfig) -> PredictPlan:
    """Read the films; raises UserError where there are none, no model, or one of other vectors."""
    about, _ = read_model(config.model)
    films = fused(read_any(config.input), [read_any(uri) for uri in config.extra])
    check_dimensions(films, about["dimensions"])
    return PredictPlan(films, read_scenes(config.input, config.scenes) if config.scenes else None, about)


def predict(config: PredictConfig, plan: PredictPlan) -> tuple[int, pd.Series]:
    """Write predictions.parquet, and scenes.parquet where scenes are asked for.

    Returns how many films there are, and for how many each genre was chosen.
    """
    import pandas as pd

    films, model = plan.films, load_model(config.model)
    answers = model.probabilities(films)
    store = Store(config.output)
    write_predictions(store, "predictions.parquet", films.whole().ids, answers, model)
    if plan.scenes:
        scenes = fused(plan.scenes.films, [read_any(uri) for uri in config.extra])
        write_scenes(store, plan.scenes, scenes, model)
    return len(answers), pd.Series((answers >= model.thresholds).sum(0), model.genre_names)

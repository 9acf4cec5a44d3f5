"""The answers of several models fused into one.

zsum   each model's scores of an image's classes, standardised to mean 0 and deviation 1, weighted and added
rank   weighted 1 / (60 + rank) added (Cormack, Clarke and Büttcher 2009, "Reciprocal rank fusion"): scores count only
       by their order

Weights are settings, or trained on results of other images: those that make their true classes likeliest, where a
class's probability is the softmax of the weighted sum (McFadden 1974, the conditional logit; the problem is convex).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from actors.core.errors import UserError, check_all
from actors.movie_characters.names import class_identity, key
from pipelines.movie_characters.results import (
    IDENTITY,
    IMAGE,
    LOSS,
    Results,
    by_class,
    labelled,
    note_classes,
    read_results,
    write_about,
    write_results,
)

if TYPE_CHECKING:
    import pandas as pd

RANK_CONSTANT = 60
"""Constant of reciprocal rank fusion, as its authors chose it."""


@dataclass(frozen=True)
class Source:
    """Results of one model."""

    folder: str
    """A folder or s3:// with the CLASS_results.csv of this model."""
    clip_csv: bool | None = None
    """Its scores are similarities (CLIP, faces or a fusion), higher is better; false: losses of a diffusion model.
    null: as the results say in identified.json, else losses."""
    weight: float = 1.0
    """Weight of this model in the sum, above 0."""
    validation: str | list[str] = ""
    """Its results of other images, from which the weights of all models are trained: a folder, or several, in the same
    order for all models. Give it for all models or for none."""

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise UserError(f"weight must be above 0, not {self.weight}")
        if self.validation and self.weight != 1:
            raise UserError(f"Weights are trained from validation. Remove validation or weight={self.weight:g}.")


@dataclass(frozen=True)
class FuseConfig:
    """Settings of `fuse`."""

    ALIASES: ClassVar[dict[str, Any]] = {"output_folder": "output"}

    models: dict[str, Source]
    """Results of two or more models, by a name of your own: models.clip.folder=results models.clip.clip_csv=true."""
    output: str
    """Where the fused CLASS_results.csv are written; higher is better, so read them with clip_csv=true. Fused results
    of a single validation folder go into its validation/, from which `score report` trains a threshold for unknown."""
    by: Literal["zsum", "rank"] = "zsum"
    """zsum adds standard scores; rank adds reciprocal ranks, which depend on the order of scores only."""
    avg: bool = False
    """The score of a class is the mean over its identities; false: that of its best identity."""

    def __post_init__(self) -> None:
        if len(self.models) < 2:
            raise UserError(f"models: a fusion needs two or more, not {len(self.models)}")
        if any(source.folder.rstrip("/") == self.output.rstrip("/") for source in self.models.values()):
            raise UserError("output is the folder of a model: use another one")
        bare = [name for name, source in self.models.items() if not source.validation]
        if 0 < len(bare) < len(self.models):
            raise UserError(f"validation: weights are trained from all models, and {', '.join(bare)} has none")
        if len({len(_folders(source)) for source in self.models.values()}) > 1:
            raise UserError("validation: all models have as many folders, in the same order")


@dataclass(frozen=True)
class Fused:
    """What a fusion did."""

    images: int
    answered: int
    """Images for which a model has an answer."""
    silent: dict[str, int]
    """Images without an answer of a model, by model: those are fused from the answers of the others."""
    unanswered: list[str]
    """Images for which no model has an answer."""
    classes: int
    weights: dict[str, float]
    """Weight of each model; trained weights have a mean of 1."""


def read_models(config: FuseConfig) -> dict[str, Results]:
    """The results of each model by name; raises UserError with all that have none."""
    found = check_all(*(partial(read_results, one.folder, one.clip_csv) for one in config.models.values()))
    return dict(zip(config.models, found, strict=True))


def fuse(config: FuseConfig, results: dict[str, Results] | None = None) -> Fused:
    """Write the results of all models together; results: of `read_models`, where they were read before."""
    weights = [source.weight for source in config.models.values()]
    if all(source.validation for source in config.models.values()):
        parts, truth = _validation(config)
        weights = learnt_weights(parts, truth)
        if parts[0].index.get_level_values(0).nunique() == 1:
            own = [part.droplevel(0) for part in parts]
            _write(f"{config.output.rstrip('/')}/validation", _sum(own, weights), truth.droplevel(0))
    found = list((results or read_models(config)).values())
    scores = [by_class(results, config.avg) for results in found]
    together = fused(scores, weights, config.by)
    if together.empty:
        raise UserError(f"no image has an answer of any of {', '.join(config.models)}")
    truth = _truth(found, list(config.models))
    _write(config.output, together, truth)
    images = set().union(*(table.index for table in scores))
    by = f"fusion of {', '.join(config.models)}"
    unanswered = sorted(images - set(together.index))
    write_about(config.output, by, True, together.index, unanswered)
    by_name = dict(zip(config.models, weights, strict=True))
    counts = [len(images) - int(table.notna().any(axis=1).sum()) for table in scores]
    silent = {name: count for name, count in zip(config.models, counts, strict=True) if count}
    return Fused(len(images), len(together), silent, unanswered, together.shape[1], by_name)


def _folders(source: Source) -> list[str]:
    given = source.validation
    return given if isinstance(given, list) else [given]


def _validation(config: FuseConfig) -> tuple[list[pd.DataFrame], pd.Series]:
    """`comparable` scores of each model, and the true classes, indexed by folder (0, 1, …) and image."""
    import pandas as pd

    models = list(config.models.values())
    turns, truths = [], []
    for folders in zip(*map(_folders, models), strict=True):
        pairs = zip(folders, models, strict=True)
        found = [labelled(read_results(folder, model.clip_csv), folder) for folder, model in pairs]
        turns.append(comparable([by_class(results, config.avg) for results in found], config.by))
        truths.append(_truth(found, list(config.models)))
    parts = [pd.concat(tables, keys=range(len(turns))) for tables in zip(*turns, strict=True)]
    if parts[0].empty:
        raise UserError("validation: no image has an answer of any model")
    return [_filled(part) for part in parts], pd.concat(truths, keys=range(len(turns)))


def _truth(found: Sequence[Results], models: Sequence[str]) -> pd.Series:
    """The true class of each image; raises UserError where two models disagree."""
    import pandas as pd

    of_all = pd.concat([results.images for results in found])
    spelt = of_all.map(key).groupby(level=0).nunique()
    if len(odd := spelt.index[spelt > 1]):
        said = [
            f"{results.images[odd[0]]} ({model})"
            for model, results in zip(models, found, strict=True)
            if odd[0] in results.images.index
        ]
        raise UserError(
            f"{odd[0]} is of several classes: {', '.join(said)}. Identify it by all models with the same manifest."
        )
    return of_all[~of_all.index.duplicated()]


def _write(folder: str, scores: pd.DataFrame, truth: pd.Series) -> None:
    """Write scores of images as results, each under its true class."""
    identities = [class_identity(cls) for cls in scores.columns]
    rows = scores.set_axis(identities, axis=1).melt(ignore_index=False, var_name=IDENTITY, value_name=LOSS)
    classes = {str(name): str(cls) for name, cls in truth.items()}
    note_classes(folder, classes)
    write_results(folder, rows.rename_axis(IMAGE).reset_index(), True, classes)


def fused(scores: Sequence[pd.DataFrame], weights: Sequence[float], by: Literal["zsum", "rank"]) -> pd.DataFrame:
    """One table of scores from several, each images by classes, over the images that any has and all classes."""
    return _sum(comparable(scores, by), weights)


def _sum(parts: Sequence[pd.DataFrame], weights: Sequence[float]) -> pd.DataFrame:
    weighted = [weight * part for weight, part in zip(weights, parts, strict=True)]
    return sum(weighted[1:], weighted[0])


def learnt_weights(parts: Sequence[pd.DataFrame], truth: pd.Series) -> list[float]:
    """Weights of models, 0 or more with a mean of 1, from `comparable` scores and the true class of each image.

    Images of classes that cannot be answered teach none. Raises ValueError where no model knows anything.
    """
    import pandas as pd
    from scipy.optimize import minimize
    from scipy.special import logsumexp, softmax

    labels = truth.reindex(parts[0].index)
    known = labels.isin(parts[0].columns).to_numpy()
    own = parts[0].columns.get_indexer(pd.Index(labels[known]))
    units = [float(part.to_numpy().std()) or 1.0 for part in parts]
    scores = np.stack([part.to_numpy()[known] / unit for part, unit in zip(parts, units, strict=True)])
    ahead = scores[:, np.arange(len(own)), own][:, :, None] - scores

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        lead = np.tensordot(weights, ahead, 1)
        slope = -np.einsum("nc,mnc->m", softmax(-lead, axis=1), ahead)
        # What all images have right would else grow without end.
        value = logsumexp(-lead, axis=1).sum() + 0.05 * (weights**2).sum()
        return float(value), slope + 0.1 * weights

    found: Any = minimize(loss, np.ones(len(parts)), jac=True, bounds=[(0, None)] * len(parts))
    weights = found.x / units
    if not weights.sum() > 1e-6:
        raise UserError("validation: no model is better than chance there. Set the weights instead.")
    return (weights / weights.mean()).tolist()


def comparable(scores: Sequence[pd.DataFrame], by: Literal["zsum", "rank"]) -> list[pd.DataFrame]:
    """Scores of several models, each images by classes, in one unit, over the images that any answered and all classes.

    A class without a score of a model has the worst score of that model. A model without an answer for an image has the
    same score for all of its classes, so that the others decide.
    """
    answered = [table.dropna(how="all") for table in scores]
    images = list(dict.fromkeys(image for table in answered for image in table.index))
    classes = sorted(set().union(*(table.columns for table in scores)))
    standard = _standard if by == "zsum" else _reciprocal
    parts = [standard(table).reindex(index=images, columns=classes) for table in answered]
    return [_filled(part).fillna(0.0) for part in parts]


def _filled(scores: pd.DataFrame) -> pd.DataFrame:
    return scores.T.fillna(scores.min(axis=1)).T


def _standard(scores: pd.DataFrame) -> pd.DataFrame:
    spread = scores.std(axis=1, ddof=0)
    # Where all classes are alike, none of them is better.
    return scores.sub(scores.mean(axis=1), axis=0).div(spread.where(spread > 0, np.inf), axis=0)


def _reciprocal(scores: pd.DataFrame) -> pd.DataFrame:
    return 1 / (RANK_CONSTANT + scores.rank(axis=1, ascending=False, method="average"))

"""Several models' answers as one.

zsum   each model's scores of an image's classes, brought to mean 0 and deviation 1, weighted and added
rank   weighted 1 / (60 + rank) added (Cormack, Clarke and Büttcher 2009, "Reciprocal rank fusion"): scores count only
       by their order
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from pipelines.identification import IDENTITY, IMAGE, LOSS, by_class, read_results, write_results

RANK_CONSTANT = 60
"""Of reciprocal rank fusion, as its authors have it."""


@dataclass(frozen=True)
class Source:
    """Results of a model."""

    folder: str
    """A folder or s3:// with its CLASS_results.csv."""
    clip_csv: bool = False
    """The higher the better; else losses of a diffusion model."""
    weight: float = 1.0
    """How much it counts beside the others."""

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise ValueError(f"weight is above 0, not {self.weight}")


@dataclass(frozen=True)
class FuseConfig:
    """Settings of `fuse`."""

    models: dict[str, Source]
    """Results by a name of your own, as in models.clip.folder=results/clip models.clip.clip_csv=true."""
    output_folder: str
    """Where CLASS_results.csv of all together go: the higher the better, so they are read with clip_csv=true."""
    by: Literal["zsum", "rank"] = "zsum"
    """zsum: standard scores are added; rank: reciprocal ranks."""
    avg: bool = False
    """A class's score is the mean over its identities; else that of the best one."""

    def __post_init__(self) -> None:
        if len(self.models) < 2:
            raise ValueError(f"models: two or more are fused, not {len(self.models)}")
        if any(source.folder.rstrip("/") == self.output_folder.rstrip("/") for source in self.models.values()):
            raise ValueError("output_folder is that of a model: use another one")


@dataclass(frozen=True)
class Fused:
    """What a fusion has done."""

    images: int
    answered: int
    """Images of which every model has an answer: they have one together."""
    classes: int


def fuse(config: FuseConfig) -> Fused:
    """Write the results of all models together."""
    scores = {name: scores_of(source, config.avg) for name, source in config.models.items()}
    images = sorted(set().union(*(table.index for table in scores.values())))
    together = fused(list(scores.values()), [source.weight for source in config.models.values()], config.by)
    if together.empty:
        raise ValueError(f"no image has answers of all of {', '.join(scores)}")
    identities = [f"{cls}_0" for cls in together.columns]
    rows = together.set_axis(identities, axis=1).melt(ignore_index=False, var_name=IDENTITY, value_name=LOSS)
    write_results(config.output_folder, rows.rename_axis(IMAGE).reset_index(), descending=True)
    return Fused(len(images), len(together), together.shape[1])


def scores_of(source: Source, average: bool = False) -> pd.DataFrame:
    """Scores of classes, images by classes, higher is better."""
    return by_class(read_results(source.folder, source.clip_csv), average)


def fused(scores: Sequence[pd.DataFrame], weights: Sequence[float], by: Literal["zsum", "rank"]) -> pd.DataFrame:
    """One table of scores from several, each images by classes, over the images that all have and all classes.

    A class that a model does not know, or has not been asked about, is worst with it, as bad as the worst it knows.
    """
    images = [image for image in scores[0].index if all(image in table.index for table in scores)]
    classes = sorted(set().union(*(table.columns for table in scores)))
    standard = _standard if by == "zsum" else _reciprocal
    parts = [weight * standard(table.loc[images]) for table, weight in zip(scores, weights, strict=True)]
    filled = [part.reindex(columns=classes).T.fillna(part.min(axis=1)).T for part in parts]
    return sum(filled[1:], filled[0])


def _standard(scores: pd.DataFrame) -> pd.DataFrame:
    spread = scores.std(axis=1, ddof=0)
    # Where all classes are alike, none of them is better.
    return scores.sub(scores.mean(axis=1), axis=0).div(spread.where(spread > 0, np.inf), axis=0)


def _reciprocal(scores: pd.DataFrame) -> pd.DataFrame:
    return 1 / (RANK_CONSTANT + scores.rank(axis=1, ascending=False, method="average"))

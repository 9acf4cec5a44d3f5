"""Settings of the verbs that make labels and learn from them."""

import getpass
from dataclasses import dataclass
from typing import Literal

from actors.core.errors import UserError
from actors.core.store import Store

LEAST_FOLDS = 3
"""One to judge, one to stop by, one to learn from."""
WORKER_BYTES = 1 << 30
"""Labels of more than that, as numbers, are split over workers of Ray Train: XGBoost holds several copies of them."""


@dataclass(frozen=True)
class AnnotateConfig:
    """Settings of `annotate`."""

    output: str
    """The output of a run: a path or s3://bucket/prefix."""
    labels: str | None = None
    """Where labels are stored: a folder, a path or s3://, with one <annotator>.json per person, or one such file; null:
    OUTPUT/labels."""
    annotator: str | None = None
    """Name of the person who labels; null: the name of the file in `labels`, or of the login."""
    order: Literal["random", "uncertain"] = "random"
    """Order of scenes. random: by `seed`; uncertain: those first of which the filter is least sure, so that few labels
    teach it most."""
    filter: str | None = None
    """The filter of order=uncertain, a path or s3://; null: OUTPUT/filter.json."""
    per_video: int = 3
    """Scenes of each video that are shown before any video shows more; at least 1. Filters are judged by videos, so
    labels of many videos are worth more."""
    show: Literal["clip", "keyframes"] = "clip"
    """What the page shows of a scene. clip: it plays; its film is opened where there is no clip yet. keyframes: its
    first, middle and last sampled frame, from keyframes/, so that no film is opened; they show neither motion nor cuts.
    Scenes without key frames play."""
    question: str = "Is this scene worth training a text-to-video model on?"
    """What the page asks: say what good means, so that all who label mean the same."""
    seed: int = 0
    """Seed of the random order. People with the same seed see the same scenes, so that their agreement is measured."""
    host: str = "127.0.0.1"
    """Address to serve the page on; one that other machines can reach needs a token in FILMRAY_TOKEN."""
    port: int = 8700
    """Port to serve the page on, 0 to 65535; 0: a free one."""

    def __post_init__(self) -> None:
        if self.filter is not None and self.order != "uncertain":
            raise UserError("filter is used with order=uncertain only. Set order=uncertain, or leave filter out.")
        if self.per_video < 1 or not 0 <= self.port < 1 << 16:
            raise UserError("per_video must be at least 1, port from 0 to 65535")
        name = self.annotator
        if name is not None and (not name or {"/", "\\", "\0"} & set(name) or name.startswith(".")):
            raise UserError(f"annotator={name!r} names a file: no slashes, and no dot at its start")
        if name is not None and self.labels is not None and self.labels.endswith(".json"):
            raise UserError("labels=….json is one person's file: leave annotator out, or let labels be a folder")

    def files(self) -> tuple[str, str]:
        """Where all labels lie, and the annotator's own file."""
        labels = self.labels or Store(self.output).uri("labels")
        own = labels if labels.endswith(".json") else Store(labels).uri(f"{self.annotator or getpass.getuser()}.json")
        return labels, own


@dataclass(frozen=True)
class FitConfig:
    """Settings of `fit-filter`."""

    output: str
    """The output of a run, a path or s3://: its scores/ hold the features."""
    labels: str | None = None
    """Labels: a .json file or a folder of such files, a path or s3://; null: OUTPUT/labels."""
    filter: str | None = None
    """Where the filter is written, a path or s3://; null: OUTPUT/filter.json."""
    features: list[str] | None = None
    """Columns to learn from, numbers or bools, of scores/ or of families of scores; null: the seven features. A scene
    without a value in one of them is dropped as unmeasured where the filter selects."""
    folds: int = 5
    """Outer folds of the cross-validation, of whole videos, at least 3; fewer are used where too few videos have good,
    or bad, scenes. More give each model more labels and take longer."""
    seed: int = 0
    """Seed of the folds and of the bootstrap."""
    worker_bytes: int = WORKER_BYTES
    """Bytes of labels, as numbers, that one worker holds; more labels are split over workers of Ray Train."""

    def __post_init__(self) -> None:
        if self.features is not None and not self.features:
            raise UserError("features=[]: name at least one column, or null for the seven features")
        if self.folds < LEAST_FOLDS:
            raise UserError(f"folds={self.folds}: set at least {LEAST_FOLDS}, to test, to stop early and to train")

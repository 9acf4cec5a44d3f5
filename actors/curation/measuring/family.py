"""A family of scores: columns that are measured beside those of scores/, also on a corpus that is finished.

A family is a class, here or in a package of the user's, that takes scenes and gives a value a scene for each of its
columns:

    class Brightness:
        reads = "keyframes"
        columns = {"brightness": pa.float32()}

        def __call__(self, batch):
            return {"brightness": [frames.mean() / 255 for frames in batch["frames"]]}
"""

import hashlib
import importlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import pyarrow as pa

from actors.core.errors import UserError
from actors.core.stage import Batch, Stage

Reads = Literal["keyframes", "frames", "sound", "video"]
"""What a family looks at.

keyframes  frames: uint8 (1 to 3, H, W, 3) RGB a scene, whole pictures inside of black bars, short side up to
           frames.keyframes
frames     frames: uint8 (T, size, size, 3) RGB a scene, the sampled frames that features are measured on;
           interval_s: seconds between them
sound      sound: float32 (channels, samples) a scene, -1 to 1, (0, 0) where the film has none; sample_rate: Hz
video      pictures: a list for each scene, the same for all scenes of a video, of `Placed` key frames: the middle ones
           of up to VIDEO_SCENES of its scenes, spread evenly
"""
VIDEO_SCENES = 64
"""Most scenes of a video whose pictures a family gets that reads videos."""
FAMILIES: dict[str, str] = {
    "camera": "actors.curation.families.camera:Camera",
    "clip": "actors.curation.families.clip:ClipScorer",
    "embedding": "actors.curation.families.embedding:Embedding",
    "faces": "actors.curation.families.faces:FaceScorer",
    "quality": "actors.curation.families.quality:Quality",
    "safety": "actors.curation.families.safety:SafetyScorer",
    "sound": "actors.curation.families.sound:Sound",
    "text": "actors.curation.families.text:TextScorer",
    "watermark": "actors.curation.families.watermark:Watermark",
}
"""Our own families: where the class of each is."""


class Placed(NamedTuple):
    """A picture, and where it lies in its film's frame, since black bars are cut off."""

    image: np.ndarray
    """uint8 (H, W, 3) RGB."""
    box: tuple[float, float, float, float]
    """Left, top, right and bottom, in shares of the frame's width and height."""


class Scorer(Protocol):
    """What a class of a family has; `settings`, `version`, `texts`, `check`, `identity` and the argument may be left
    out."""

    reads: Reads
    columns: Mapping[str, pa.DataType]
    """Its columns, in the class or, where they depend on a model, set by __init__."""
    settings: type[Stage]
    """Its settings: a frozen dataclass that extends Stage. Resources, batch_size and dtype do not change what counts as
    measured, all others do."""
    version: int
    """Raised when it measures other values than before, so that rows are measured again."""
    texts: bool
    """Whether it looks at captions: scenes whose caption or recaption changed are measured again."""

    def __init__(self, config: Any) -> None:
        """Load what it needs once, on the worker."""

    @staticmethod
    def check(config: Any) -> None:
        """Raise UserError where a file, a model or a package is missing; loads nothing, and imports nothing heavy."""

    @staticmethod
    def identity(config: Any) -> str:
        """What else decides the values: the digest of a file of weights, the version of a package."""
        raise NotImplementedError

    def __call__(self, batch: Batch) -> Mapping[str, Any]:
        """Measure some sound scenes.

        Reads: video_id, scene_id, caption, recaption ("" where there is none)  str (N,)
               start_s, end_s  float64 (N,), seconds in the film; width, height  int (N,), of the film as shown
               and what `reads` names
        Gives: a sequence (N,) for each of `columns`, None or NaN where there is no value; and, where a scene cannot be
               measured, error and message, str (N,), "" for the others
        """
        raise NotImplementedError


RESOURCES = frozenset({"workers", "num_cpus", "num_gpus", "batch_size", "dtype"})
"""Settings of a family that do not change what it measures."""


def scorer_class(name: str) -> type[Scorer]:
    """The class of a family, ours by name or a user's as package.module:Class. Raises UserError."""
    where = FAMILIES.get(name, name)
    module, colon, attribute = where.partition(":")
    if not colon or not module or not attribute:
        raise UserError(
            f"scores: there is no family {name}. There are {', '.join(sorted(FAMILIES))}, and your own as "
            "package.module:Class."
        )
    with _told(name):
        found = getattr(importlib.import_module(module), attribute)
    for needed in ("reads", "columns"):
        if not hasattr(found, needed) and not (needed == "columns" and "columns" in _annotated(found)):
            raise UserError(f"scores={name}: {attribute} has no attribute {needed}. docs/scores.md shows a family.")
    return found


def _annotated(kind: type) -> Mapping[str, Any]:
    return getattr(kind, "__annotations__", {})


@contextmanager
def _told(name: str) -> Iterator[None]:
    try:
        yield
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"scores={name} cannot be loaded ({error}). The module must be on PYTHONPATH, also on the workers."
        ) from error


def fingerprint(name: str, config: Stage) -> str:
    """12 hexadecimal digits that change when a family would measure other values."""
    kind = scorer_class(name)
    named = {one.name for one in fields(config)} - RESOURCES
    settings = {key: value for key, value in asdict(config).items() if key in named}
    identity = kind.identity(config) if hasattr(kind, "identity") else ""
    about = [name, getattr(kind, "version", 1), settings, identity]
    return hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()[:12]

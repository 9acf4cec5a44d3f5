"""Settings of the families of scores that are measured beside the features."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter, ValidationError

from actors.core.errors import UserError
from actors.core.stage import Stage
from actors.curation.families.camera import CameraConfig
from actors.curation.families.clip import ClipConfig
from actors.curation.families.embedding import EmbeddingConfig
from actors.curation.families.faces import FacesConfig
from actors.curation.families.quality import QualityConfig
from actors.curation.families.safety import SafetyConfig
from actors.curation.families.sound import SoundConfig
from actors.curation.families.text import TextConfig
from actors.curation.families.watermark import WatermarkConfig
from actors.curation.measuring.family import FAMILIES, scorer_class
from actors.curation.tables import check_columns


@dataclass(frozen=True)
class MeasureConfig:
    """How each family of scores is measured."""

    camera: CameraConfig = field(default_factory=CameraConfig)
    """How the camera moves: static, pan, tilt, zoom, shake."""
    clip: ClipConfig = field(default_factory=ClipConfig)
    """How well captions fit key frames by a CLIP model, and a head that rates pictures."""
    embedding: EmbeddingConfig = field(default_factory=EmbeddingConfig)
    """Which network turns key frames into vectors."""
    faces: FacesConfig = field(default_factory=FacesConfig)
    """Faces in key frames."""
    quality: QualityConfig = field(default_factory=QualityConfig)
    """Sharpness, exposure, noise, blockiness, saturation, black and white."""
    safety: SafetyConfig = field(default_factory=SafetyConfig)
    """What an image classifier of yours makes of key frames."""
    sound: SoundConfig = field(default_factory=SoundConfig)
    """Loudness, silence, clipping and speech."""
    text: TextConfig = field(default_factory=TextConfig)
    """Words in key frames."""
    watermark: WatermarkConfig = field(default_factory=WatermarkConfig)
    """What stays in the same place over all scenes of a video."""
    retry: bool = False
    """Measure scenes again that could not be measured."""
    own: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Settings of your own families, by the name of the class, as in own.Brightness.workers=4."""


@dataclass(frozen=True)
class OwnConfig(Stage):
    """Resources of a family of the user's that has no settings."""

    workers: int = 0
    """Workers at once over the whole cluster. 0: as many as CPUs allow."""
    batch_size: int = 8
    """Scenes per call."""


def family_settings(measure: MeasureConfig, name: str) -> Stage:
    """The settings of a family of scores. Raises UserError."""
    if name in FAMILIES:
        return getattr(measure, name)
    kind = scorer_class(name)
    own = measure.own.get(kind.__name__, {})
    try:
        return TypeAdapter(getattr(kind, "settings", OwnConfig)).validate_python(own, extra="forbid")
    except ValidationError as error:
        told = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise UserError(f"measure.own.{kind.__name__}: {told}") from error


def check_scores(scores: Sequence[str], measure: MeasureConfig) -> None:
    """Raise UserError, before any work, for families that cannot be measured."""
    columns: dict[str, str] = {}
    for name in dict.fromkeys(scores):
        settings, kind = family_settings(measure, name), scorer_class(name)
        if hasattr(kind, "check"):
            kind.check(settings)
        check_columns(name, getattr(kind, "columns", {}))
        for column in getattr(kind, "columns", {}):
            if column in columns:
                raise UserError(f"scores: {columns[column]} and {name} both have a column {column}. Leave one out.")
            columns[column] = name

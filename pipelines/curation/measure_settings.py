"""Settings of the families of scores that are measured beside the features."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter, ValidationError

from actors.core.errors import UserError
from actors.core.stage import Stage
from actors.curation.families.embedding import EmbeddingConfig
from actors.curation.families.sound import SoundConfig
from actors.curation.family import FAMILIES, scorer_class
from actors.curation.tables import check_columns


@dataclass(frozen=True)
class MeasureConfig:
    """How each family of scores is measured."""

    embedding: EmbeddingConfig = field(default_factory=EmbeddingConfig)
    """Which network turns key frames into vectors."""
    sound: SoundConfig = field(default_factory=SoundConfig)
    """Loudness, silence, clipping and speech."""
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

"""Features of faces and bodies by a frozen backbone, each computed once.

They lie in features/<name>, a name that is made of the weights and the backbone's settings: several may stand side by
side, and none is taken for another.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import ray

from actors.comic_characters.network import FeatureExtractor
from actors.core import storage
from actors.core.errors import UserError
from actors.core.stage import Batch, Stage
from actors.core.store import Store
from pipelines.comic_characters.sequences import Instance
from pipelines.comic_characters.settings import ComicsConfig
from pipelines.core.progress import Progress
from pipelines.core.ray_data import finish, fitted, ray_actors, ray_task, set_context

KEY = ["series_id", "page_id", "face", "body"]
_KEY = [("series_id", pa.string()), ("page_id", pa.string()), ("face", pa.int64()), ("body", pa.int64())]
_WHY = [("error", pa.string()), ("message", pa.string())]
FEATURES = pa.schema(
    [*_KEY, ("face_features", pa.list_(pa.float32())), ("body_features", pa.list_(pa.float32())), *_WHY]
)
"""One row an instance. face, body: their index, null where it has none; features null, too."""
REJECTED_INSTANCES = pa.schema([*_KEY, *_WHY])
WRITES = 0.1
"""CPUs of a task that writes parts."""


@dataclass(frozen=True)
class Backbone:
    """Which weights make the features, and where they lie."""

    weights: str
    folder: str
    """Of the features, below the output."""


class Features(NamedTuple):
    """What the backbone made of an instance: float32 (F,) of its face and body, None where there is none."""

    face: np.ndarray | None
    body: np.ndarray | None
    error: str = ""
    message: str = ""


def beside(pool: Stage, cpus: float) -> Stage:
    """Tasks that read or write for a pool: no more of them than of its actors.

    Ray would start a process for each that there are CPUs for, at seconds of imports where its work is milliseconds.
    """
    return Stage(pool.workers, cpus)


def find_backbone(config: ComicsConfig) -> Backbone:
    """The weights that the settings name. Raises ValueError where there are none."""
    weights = config.features.weights or Store(config.output).uri(config.pretrain.folder, "model.safetensors")
    try:
        data = storage.read_bytes(weights)
    except FileNotFoundError as error:
        raise UserError(f"there are no weights {weights}: `pretrain`, or name some in features.weights") from error
    about = json.dumps([asdict(config.backbone), config.features.dtype]).encode()
    return Backbone(weights, f"features/{hashlib.sha256(data + about).hexdigest()[:16]}")


def located(store: Store, folder: str) -> dict[Instance, tuple[str, bool]]:
    """In which part the features of each instance lie, and whether they are sound."""
    found: dict[Instance, tuple[str, bool]] = {}
    for name in store.parts(folder):
        table = store.read_part(folder, name, [*KEY, "error"])
        for row in table.to_pylist() if table is not None else ():
            instance, sound = as_instance(row), row["error"] == ""
            # Of one that was tried again the row without an error counts.
            if sound or instance not in found:
                found[instance] = name, sound
    return found


def without_features(store: Store, folder: str, instances: Iterable[Instance]) -> list[Instance]:
    """Those that have no features there, or none that are sound."""
    found = located(store, folder)
    return ordered(one for one in set(instances) if not found.get(one, ("", False))[1])


def ordered(instances: Iterable[Instance]) -> list[Instance]:
    """By series, page, face and body, what has none first."""
    return sorted(instances, key=lambda one: tuple(-1 if part is None else part for part in one))


def as_instance(row: Mapping[Any, Any]) -> Instance:
    """The instance of a row with the columns of KEY."""
    return row["series_id"], row["page_id"], row["face"], row["body"]


@dataclass(frozen=True)
class Source:
    """What makes features."""

    folder: str
    """Where they lie, below the output."""
    actor: type
    """As FeatureExtractor."""
    stage: Stage
    """Its pool."""
    arguments: Callable[[Any], list[Any]]
    """What the actor is made with, from the stage as it fits the cluster."""


def extract(config: ComicsConfig, backbone: Backbone, instances: list[Instance]) -> dict[str, Any]:
    """Compute the features of these instances by the backbone; returns rows and seconds."""
    return extract_by(config, source_of(config, backbone), instances)


def source_of(config: ComicsConfig, backbone: Backbone) -> Source:
    """The backbone as a source."""
    root = Store(config.output).root
    return Source(
        backbone.folder,
        FeatureExtractor,
        config.features,
        lambda stage: [stage, config.backbone, backbone.weights, root],
    )


def extract_by(config: ComicsConfig, source: Source, instances: list[Instance]) -> dict[str, Any]:
    """Compute the features of these instances; returns rows and seconds."""
    started = time.monotonic()
    if instances:
        _extract(config, source, instances)
    return {"rows": len(instances), "seconds": round(time.monotonic() - started, 1)}


def _extract(config: ComicsConfig, source: Source, instances: list[Instance]) -> None:
    stages = fitted({"features": source.stage}, {"write": beside(source.stage, WRITES)}, config.autoscaling)
    set_context()
    stage: Any = stages["features"]
    table = pa.Table.from_pylist([dict(zip(KEY, one, strict=True)) for one in instances])
    # Ray would make floats of integers in those blocks only where a value is missing.
    table = table.cast(pa.schema([*_KEY[:2], ("face", pa.float64()), ("body", pa.float64())]))
    size = source.stage.batch_size
    blocks = [table.slice(first, size) for first in range(0, len(table), size)]
    store = Store(config.output)
    rows = ray.data.from_arrow(blocks).map_batches(
        source.actor, fn_constructor_args=source.arguments(stage), batch_size=size, **ray_actors(stage)
    )
    write: Any = partial(write_features, store=store, folder=source.folder)
    rows = rows.map_batches(write, batch_size=size, **ray_task(stages["write"]))
    finish(rows, "instances", Progress("features", len(instances), "instances"))


def stages_of(config: ComicsConfig) -> tuple[dict[str, Stage], dict[str, Stage]]:
    """The actor pool and the tasks, by name."""
    return {"features": config.features}, {"write": beside(config.features, WRITES)}


def write_features(batch: Batch, store: Store, folder: str) -> Batch:
    """Write what FeatureExtractor gives as a part of features/; returns how many instances they are."""
    rows = [{name: batch[name][row] for name in FEATURES.names} for row in range(len(batch["error"]))]
    for row in rows:
        for kind in ("face", "body"):
            row[kind] = None if np.isnan(row[kind]) else int(row[kind])
        if row["error"]:
            row |= {"face_features": None, "body_features": None}
    names = ["/".join(map(str, as_instance(row))) for row in rows]
    store.write_part(folder, pa.Table.from_pylist(rows, FEATURES), names)
    return {"instances": np.array([len(rows)])}


def read_features(store: Store, folder: str, instances: Iterable[Instance]) -> dict[Instance, Features]:
    """What is known of these instances; of one that was tried again the row without an error counts."""
    wanted = set(instances)
    found: dict[Instance, Features] = {}
    for part in store.read_parts(folder, FEATURES.names):
        for row in part.to_pylist():
            instance = as_instance(row)
            if instance in wanted and (row["error"] == "" or instance not in found):
                face, body = (
                    None if row[name] is None else np.array(row[name], np.float32)
                    for name in ("face_features", "body_features")
                )
                found[instance] = Features(face, body, row["error"], row["message"])
    return found

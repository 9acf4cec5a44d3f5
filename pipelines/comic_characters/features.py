"""Features of faces and bodies by a frozen backbone, computed once and stored.

They are in features/<name>, a hash of the weights and the backbone's settings, so that features of several backbones
are never mixed.
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

from actors.comic_characters.augment_settings import CopiesConfig
from actors.comic_characters.checkpoints import Weights, read_backbone
from actors.comic_characters.instances import FEATURES, KEY, KEY_TYPES, Instance, as_instance, write_features
from actors.comic_characters.weights import check_backbone_weights
from actors.core.computed import COMPUTED, mixed
from actors.core.errors import UserError
from actors.core.stage import Stage
from actors.core.store import Store
from pipelines.comic_characters.model import backbone_uri
from pipelines.comic_characters.settings import ComicsConfig
from pipelines.core.progress import Progress
from pipelines.core.ray_data import finish, fitted, ray_actors, ray_task, set_context

WRITES = 0.1
"""CPUs of a task that writes parts."""


@dataclass(frozen=True)
class Backbone:
    """Weights of the backbone, and the folder of its features."""

    weights: Weights
    folder: str
    """Folder of the features, below the output."""


class Features(NamedTuple):
    """Features of an instance: float32 (F,) of its face and body, None where there is no such part."""

    face: np.ndarray | None
    body: np.ndarray | None
    error: str = ""
    message: str = ""
    computed: str = ""
    """On what, by device and precision; "" where that is unknown."""


def beside(pool: Stage, cpus: float) -> Stage:
    """Tasks that read or write for a pool, no more at once than its actors.

    Ray would start a process for every free CPU, whose imports take seconds, for work that takes milliseconds.
    """
    return Stage(pool.workers, cpus)


def name_of(weights: Weights) -> str:
    """The files of weights, to be read by people."""
    return weights if isinstance(weights, str) else " and ".join(weights.values())


def find_backbone(config: ComicsConfig) -> Backbone:
    """The weights that the settings name. Raises UserError where there are none, or of another network."""
    weights = backbone_uri(config)
    try:
        data = read_backbone(weights)
    except FileNotFoundError as error:
        gone = error.filename or weights
        raise UserError(f"{gone} does not exist. Run `pretrain` first, or set model or features.weights.") from error
    check_backbone_weights(config.backbone, data, name_of(weights))
    about = json.dumps([config.backbone.described(), config.features.dtype]).encode()
    return Backbone(weights, f"features/{hashlib.sha256(data + about).hexdigest()[:16]}")


def located(store: Store, folder: str) -> dict[Instance, tuple[str, bool]]:
    """The part that holds the features of each instance, and whether they are sound."""
    found: dict[Instance, tuple[str, bool]] = {}
    for name in store.parts(folder):
        table = store.read_part(folder, name, [*KEY, "error"])
        for row in table.to_pylist() if table is not None else ():
            instance, sound = as_instance(row), row["error"] == ""
            # An instance that was tried again has several rows; the sound one counts.
            if sound or instance not in found:
                found[instance] = name, sound
    return found


def without_features(store: Store, folder: str, instances: Iterable[Instance]) -> list[Instance]:
    """Instances without sound features in this folder."""
    found = located(store, folder)
    return ordered(one for one in set(instances) if not found.get(one, ("", False))[1])


def ordered(instances: Iterable[Instance]) -> list[Instance]:
    """Instances sorted by series, page, face and body; those without a part first."""
    return sorted(instances, key=lambda one: tuple(-1 if part is None else part for part in one))


@dataclass(frozen=True)
class Source:
    """An actor that computes features, and their folder."""

    folder: str
    """Folder of the features, below the output."""
    actor: type
    """Actor class, such as FeatureExtractor."""
    stage: Stage
    """Its actor pool."""
    arguments: Callable[[Any], list[Any]]
    """Arguments of the actor, from its stage as fitted to the cluster."""
    computed: str = ""
    """On what it computes, by device and precision; "": on CPUs alone."""


def extract(config: ComicsConfig, backbone: Backbone, instances: list[Instance]) -> dict[str, Any]:
    """Compute the features of these instances by the backbone; returns rows and seconds."""
    return extract_by(config, source_of(config, backbone), instances)


def source_of(config: ComicsConfig, backbone: Backbone, copies: CopiesConfig | None = None) -> Source:
    """The backbone as a source; with copies, of views."""
    from actors.comic_characters.network import FeatureExtractor

    root, seed = Store(config.output).root, config.fine_tune.training.seed
    return Source(
        views_folder(config, backbone, copies) if copies else backbone.folder,
        FeatureExtractor,
        config.features,
        lambda stage: [stage, config.backbone, backbone.weights, root, copies, seed],
        config.features.computed,
    )


def views_folder(config: ComicsConfig, backbone: Backbone, copies: CopiesConfig) -> str:
    """Folder of the features of views, below the output."""
    about = json.dumps([asdict(copies), config.fine_tune.training.seed]).encode()
    return f"{backbone.folder}-views-{hashlib.sha256(about).hexdigest()[:16]}"


def extract_by(config: ComicsConfig, source: Source, instances: list[Instance]) -> dict[str, Any]:
    """Compute the features of these instances; returns rows and seconds."""
    started = time.monotonic()
    if instances:
        _extract(config, source, instances)
    return {"rows": len(instances), "seconds": round(time.monotonic() - started, 1)}


def _extract(config: ComicsConfig, source: Source, instances: list[Instance]) -> None:
    import ray

    stages = fitted({"features": source.stage}, {"write": beside(source.stage, WRITES)}, config.autoscaling)
    set_context()
    stage: Any = stages["features"]
    table = pa.Table.from_pylist([dict(zip(KEY, one, strict=True)) for one in instances])
    # Ray turns integers into floats only in blocks with missing values; this makes all blocks alike.
    table = table.cast(pa.schema([*KEY_TYPES[:2], ("face", pa.float64()), ("body", pa.float64())]))
    size = source.stage.batch_size
    blocks = [table.slice(first, size) for first in range(0, len(table), size)]
    store = Store(config.output)
    actors = ray_actors(stage, inputs=len(blocks))
    rows = ray.data.from_arrow(blocks).map_batches(
        source.actor, fn_constructor_args=source.arguments(stage), batch_size=size, **actors
    )
    write: Any = partial(write_features, store=store, folder=source.folder, computed=source.computed)
    rows = rows.map_batches(write, batch_size=size, **ray_task(stages["write"]))
    finish(rows, "instances", Progress("features", len(instances), "instances"))


def stages_of(config: ComicsConfig) -> tuple[dict[str, Stage], dict[str, Stage]]:
    """Actor pools and task stages by name."""
    return {"features": config.features}, {"write": beside(config.features, WRITES)}


def mixed_features(counts: Mapping[Any, int], folder: str) -> list[str]:
    """A sentence where features of one folder were computed in several ways; counts: instances by that."""
    return mixed(counts, "features", "instances", f"To compute all on one device, delete {folder}.")


def read_features(store: Store, folder: str, instances: Iterable[Instance]) -> dict[Instance, Features]:
    """Features of these instances; a sound row counts more than one with an error."""
    wanted = set(instances)
    found: dict[Instance, Features] = {}
    for part in store.read_parts(folder, FEATURES.names, (COMPUTED,)):
        for row in part.to_pylist():
            instance = as_instance(row)
            if instance in wanted and (row["error"] == "" or instance not in found):
                face, body = (
                    None if row[name] is None else np.array(row[name], np.float32)
                    for name in ("face_features", "body_features")
                )
                found[instance] = Features(face, body, row["error"], row["message"], row[COMPUTED] or "")
    return found

"""Vectors and style of pictures, computed once and stored: a frozen network always returns the same vectors.

read     task     1 -> 1: files become input of the network, and their style is measured
embed    actors   1 -> 1: vectors
write    task     N -> 1: whole parts of features/
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from actors.core import storage
from actors.core.computed import COMPUTED, counted, mixed
from actors.core.stage import Row, Stage
from actors.core.store import Store
from actors.directors.pictures import VECTORS, ViewsConfig, read_pictures, write_vectors
from actors.directors.style import FEATURES
from actors.models.backbones import Backbone, BackboneConfig, check_loads, input_shape, name
from pipelines.core.in_process import in_process
from pipelines.core.progress import Progress
from pipelines.core.ray_data import finish, fitted, in_blocks, ray_actors, ray_task, set_context


@dataclass(frozen=True)
class PicturesConfig:
    """Embedding of pictures by a frozen network."""

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    """Frozen network that turns each picture into a vector."""
    views: ViewsConfig = field(default_factory=ViewsConfig)
    """Augmentation: random views of each picture, embedded for training."""
    read: Stage = field(default_factory=lambda: Stage(workers=0, batch_size=32))
    """Task stage that reads and decodes image files."""
    write: Stage = field(default_factory=lambda: Stage(workers=0, num_cpus=0.1, batch_size=1024))
    """Task stage that writes vectors, write.batch_size rows per part."""
    autoscaling: bool = False
    """Request as many workers as set, for a cluster that grows on demand; false: scale them to what the cluster has."""


@dataclass(frozen=True)
class Pictures:
    """Vectors and style of pictures and their views, one row each."""

    path: list[str]
    view: np.ndarray
    """int (N,), 0 for the picture itself."""
    vectors: np.ndarray
    """float16 (N, D)"""
    style: np.ndarray
    """float32 (N, 13), FEATURES of `actors.directors.style`."""
    rejected: list[Row]
    """Pictures that could not be read: path, error, message."""
    notes: list[str]
    """Which vectors are not comparable, in sentences."""


def stages_of(config: PicturesConfig) -> tuple[dict[str, Stage], dict[str, Stage]]:
    """Actor pools and task stages by name."""
    return {"backbone": config.backbone}, {"read": config.read, "write": config.write}


def wanted(pictures: Sequence[tuple[str, str, int]], views: ViewsConfig, viewed: set[str]) -> list[Row]:
    """One row per picture (path, uri, size), and one per random view of those whose path is in `viewed`."""
    return [
        {"path": path, "uri": uri, "size": size, "view": view}
        for path, uri, size in pictures
        for view in range(1 + views.count * (path in viewed))
    ]


def missing(store: Store, rows: Sequence[Row], config: PicturesConfig) -> list[Row]:
    """Rows without a vector of this network in features/. Rows that failed are tried again."""
    columns = ["path", "size", "view", "model", "error"]
    known = {key for key, row in _stored(store, _model(config), columns) if not row["error"]}
    return [row for row in rows if _key(row) not in known]


def _key(row: Row) -> tuple[str, int, int]:
    return row["path"], row["size"], row["view"]


def _model(config: PicturesConfig) -> tuple[str, str]:
    """Keys of what the vectors of pictures, and of views, depend on."""
    views = config.views
    how = f"{views.rotation:g},{views.zoom:g},{views.shift:g},{views.shear:g},{views.flip:d}"
    return name(config.backbone), f"{name(config.backbone)}:{how}"


def _stored(
    store: Store, models: tuple[str, str], columns: Sequence[str] = VECTORS.names
) -> Iterator[tuple[tuple[str, int, int], Row]]:
    for part in store.read_parts("features", columns, (COMPUTED,)):
        for row in part.to_pylist():
            if row["model"] == models[row["view"] > 0]:
                yield _key(row), row


def _with_models(rows: Sequence[Row], config: PicturesConfig) -> list[Row]:
    return [{**row, "model": _model(config)[row["view"] > 0]} for row in rows]


def embed(store: Store, todo: list[Row], config: PicturesConfig) -> None:
    """Write vectors and style of these rows to features/."""
    import ray

    check_loads(config.backbone)
    shape = input_shape(config.backbone)
    rows: Any = _with_models(todo, config)
    set_context()
    stages = fitted(*stages_of(config), config.autoscaling)
    backbone: Any = stages["backbone"]
    read: Any = partial(read_pictures, shape=shape, views=config.views)
    store = Store(storage.absolute(store.root))
    write: Any = partial(write_vectors, store=store, computed=config.backbone.computed)
    size = config.read.batch_size
    data = ray.data.from_items(rows, override_num_blocks=max(1, len(rows) // 10_000))
    data = in_blocks(data, size, Stage(num_cpus=0.1)).map_batches(read, batch_size=size, **ray_task(stages["read"]))
    actors = ray_actors(backbone, inputs=-(-len(rows) // backbone.batch_size))
    data = data.map_batches(Backbone, fn_constructor_args=[backbone], batch_size=backbone.batch_size, **actors)
    data = data.map_batches(write, batch_size=config.write.batch_size, **ray_task(stages["write"]))
    finish(data, "rows", Progress("embed", len(rows), "images"))


def embed_few(store: Store, todo: list[Row], config: PicturesConfig) -> None:
    """Write vectors and style of a few rows to features/, in this process, without Ray."""
    read = partial(read_pictures, shape=input_shape(config.backbone), views=config.views)
    write = partial(write_vectors, store=store, computed=config.backbone.computed)
    for _ in in_process(_with_models(todo, config), config.backbone.batch_size, read, Backbone(config.backbone), write):
        pass


def read_pictures_of(store: Store, rows: Sequence[Row], config: PicturesConfig) -> Pictures:
    """Vectors and style of these rows from features/, in their order. Raises RuntimeError where one is missing."""
    found: dict[tuple[str, int, int], Row] = {}
    for key, row in _stored(store, _model(config)):
        # A row that was tried again has several rows; the sound one counts.
        if key not in found or found[key]["error"]:
            found[key] = row
    if lost := [row["path"] for row in rows if _key(row) not in found]:
        raise RuntimeError(f"features of {', '.join(lost[:3])} are missing. Rerun the same command.")
    got = [found[_key(row)] for row in rows]
    sound = [row for row in got if not row["error"]]
    vectors = [np.frombuffer(row["vector"], "<f2") for row in sound]
    return Pictures(
        [row["path"] for row in sound],
        np.array([row["view"] for row in sound], int),
        np.stack(vectors) if vectors else np.zeros((0, 0), np.float16),
        np.array([row["style"] for row in sound], np.float32).reshape(-1, len(FEATURES)),
        [{key: row[key] for key in ("path", "error", "message")} for row in got if row["error"] and not row["view"]],
        mixed(counted(sound), "vectors", "pictures", f"To compute all on one device, delete {store.uri('features')}."),
    )

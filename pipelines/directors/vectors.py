"""Vectors and style of pictures, computed once and kept in the store: a network that is frozen says always the same.

read     task     1 -> 1: files become what the network takes, and their style is told
embed    actors   1 -> 1: vectors
write    task     N -> 1: whole parts of features/
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from actors.core import storage
from actors.core.stage import Batch, Row, Stage
from actors.core.store import Store
from actors.directors.pictures import ViewsConfig, read_pictures
from actors.directors.style import FEATURES
from actors.models.backbones import Backbone, BackboneConfig, input_shape, load_backbone, name
from pipelines.core.progress import Progress
from pipelines.core.ray_data import finish, fitted, in_blocks, ray_actors, ray_task, set_context

VECTORS = pa.schema(
    [
        ("path", pa.string()),
        ("size", pa.int64()),
        ("view", pa.int32()),
        ("model", pa.string()),
        ("vector", pa.binary()),
        ("style", pa.list_(pa.float32())),
        ("error", pa.string()),
        ("message", pa.string()),
    ]
)
"""One row a picture and view. size: bytes of the file, so that one that was replaced is looked at again; vector:
float16, little-endian; style: FEATURES of `actors.directors.style`."""
FEW = 64
"""So many pictures are not worth the start of Ray."""


@dataclass(frozen=True)
class PicturesConfig:
    """How pictures become vectors."""

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    """The network."""
    views: ViewsConfig = field(default_factory=ViewsConfig)
    """Random views of each picture for training."""
    read: Stage = field(default_factory=lambda: Stage(workers=0, batch_size=32))
    """Reading and decoding files."""
    write: Stage = field(default_factory=lambda: Stage(workers=0, num_cpus=0.1, batch_size=1024))
    """Writing vectors; batch_size rows a part."""
    autoscaling: bool = False
    """The cluster grows by what is asked for: take as many workers as asked, not as many as fit."""


@dataclass(frozen=True)
class Pictures:
    """What is known of pictures and their views, row by row."""

    path: list[str]
    view: np.ndarray
    """int (N,), 0 for the picture itself."""
    vectors: np.ndarray
    """float16 (N, D)"""
    style: np.ndarray
    """float32 (N, 13), FEATURES of `actors.directors.style`."""
    rejected: list[Row]
    """Pictures that could not be read: path, error, message."""


def stages_of(config: PicturesConfig) -> tuple[dict[str, Stage], dict[str, Stage]]:
    """The actor pools and the tasks, by name."""
    return {"backbone": config.backbone}, {"read": config.read, "write": config.write}


def wanted(pictures: Sequence[tuple[str, str, int]], views: ViewsConfig, viewed: set[str]) -> list[Row]:
    """A row for each picture (path, uri, size), and for each view of those whose path is among `viewed`."""
    return [
        {"path": path, "uri": uri, "size": size, "view": view}
        for path, uri, size in pictures
        for view in range(1 + views.count * (path in viewed))
    ]


def missing(store: Store, rows: Sequence[Row], config: PicturesConfig) -> list[Row]:
    """Those rows of which features/ has no vector of this network. What failed is tried again."""
    columns = ["path", "size", "view", "model", "error"]
    known = {key for key, row in _stored(store, _model(config), columns) if not row["error"]}
    return [row for row in rows if _key(row) not in known]


def _key(row: Row) -> tuple[str, int, int]:
    return row["path"], row["size"], row["view"]


def _model(config: PicturesConfig) -> tuple[str, str]:
    """What vectors of pictures and of views depend on."""
    views = config.views
    how = f"{views.rotation:g},{views.zoom:g},{views.shift:g},{views.shear:g},{views.flip:d}"
    return name(config.backbone), f"{name(config.backbone)}:{how}"


def _stored(
    store: Store, models: tuple[str, str], columns: Sequence[str] = VECTORS.names
) -> Iterator[tuple[tuple[str, int, int], Row]]:
    for part in store.read_parts("features", columns):
        for row in part.to_pylist():
            if row["model"] == models[row["view"] > 0]:
                yield _key(row), row


def embed(store: Store, todo: list[Row], config: PicturesConfig) -> None:
    """Write vectors and style of these rows to features/."""
    # Here what is wrong with the model is told at once.
    load_backbone(config.backbone)
    shape = input_shape(config.backbone)
    rows: Any = [{**row, "model": _model(config)[row["view"] > 0]} for row in todo]
    set_context()
    stages = fitted(*stages_of(config), config.autoscaling)
    backbone: Any = stages["backbone"]
    read: Any = partial(read_pictures, shape=shape, views=config.views)
    write: Any = partial(write_vectors, store=Store(storage.absolute(store.root)))
    size = config.read.batch_size
    data = ray.data.from_items(rows, override_num_blocks=max(1, len(rows) // 10_000))
    data = in_blocks(data, size, Stage(num_cpus=0.1)).map_batches(read, batch_size=size, **ray_task(stages["read"]))
    data = data.map_batches(
        Backbone, fn_constructor_args=[backbone], batch_size=backbone.batch_size, **ray_actors(backbone)
    )
    data = data.map_batches(write, batch_size=config.write.batch_size, **ray_task(stages["write"]))
    finish(data, "rows", Progress("embed", len(rows), "images"))


def embed_few(store: Store, todo: list[Row], config: PicturesConfig) -> None:
    """The same in this process, for a few pictures."""
    shape, backbone = input_shape(config.backbone), Backbone(config.backbone)
    for first in range(0, len(todo), config.backbone.batch_size):
        rows = todo[first : first + config.backbone.batch_size]
        batch = {key: np.array([row[key] for row in rows]) for key in rows[0]}
        batch["model"] = np.array([_model(config)[row["view"] > 0] for row in rows])
        write_vectors(backbone(read_pictures(batch, shape, config.views)), store)


def write_vectors(batch: Batch, store: Store) -> Batch:
    """Write vectors as a part of features/; returns how many they were."""
    columns = {key: batch[key].tolist() for key in ("path", "size", "view", "model", "style", "error", "message")}
    columns["vector"] = [vector.astype("<f2").tobytes() for vector in batch["vector"]]
    table = pa.table({key: pa.array(columns[key], VECTORS.field(key).type) for key in VECTORS.names})
    keys = ["\0".join(map(str, key)) for key in zip(*(columns[k] for k in VECTORS.names[:4]), strict=True)]
    store.write_part("features", table, keys)
    return {"rows": np.array([len(keys)])}


def read_pictures_of(store: Store, rows: Sequence[Row], config: PicturesConfig) -> Pictures:
    """What features/ has of these rows, in their order. Raises RuntimeError where it lacks one."""
    found: dict[tuple[str, int, int], Row] = {}
    for key, row in _stored(store, _model(config)):
        # Of what was tried again the row without an error counts.
        if key not in found or found[key]["error"]:
            found[key] = row
    if lost := [row["path"] for row in rows if _key(row) not in found]:
        raise RuntimeError(f"features of {', '.join(lost[:3])} are missing: run the same command again")
    got = [found[_key(row)] for row in rows]
    sound = [row for row in got if not row["error"]]
    vectors = [np.frombuffer(row["vector"], "<f2") for row in sound]
    return Pictures(
        [row["path"] for row in sound],
        np.array([row["view"] for row in sound], int),
        np.stack(vectors) if vectors else np.zeros((0, 0), np.float16),
        np.array([row["style"] for row in sound], np.float32).reshape(-1, len(FEATURES)),
        [{key: row[key] for key in ("path", "error", "message")} for row in got if row["error"] and not row["view"]],
    )

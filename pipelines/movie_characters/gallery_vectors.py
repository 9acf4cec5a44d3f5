"""Vectors of images for identification by a gallery, each computed once, and stored in vectors/."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from functools import partial
from typing import Any

import numpy as np
from pyarrow import compute

from actors.core.computed import COMPUTED
from actors.core.stage import Batch, Row, Stage, codes_in
from actors.core.store import Store
from actors.media.images import read_images
from actors.models.clip import ImageEmbedder, input_shape
from actors.movie_characters.names import Picture
from actors.movie_characters.recognition.faces import NO_FACE, FaceEmbedder
from actors.movie_characters.vectors import VECTORS, write_vectors
from pipelines.core.in_process import FEW, few, in_process
from pipelines.core.progress import Progress, tracked
from pipelines.core.ray_data import batches, fitted, in_blocks, ray_actors, ray_task, set_context
from pipelines.movie_characters.gallery_settings import ClipConfig, FaceConfig, model_of, root_of

FEW_FACES = 16
"""Up to this many images, finding faces in the driver is faster than starting Ray."""
WRITE = Stage(num_cpus=0.1)
"""Tasks that write vectors."""


def few_images(config: ClipConfig | FaceConfig, count: int) -> bool:
    """Whether so many images are embedded in this process, which is faster than to start Ray."""
    return few(count, config.stage, FEW if isinstance(config, ClipConfig) else FEW_FACES)


def stages_of(config: ClipConfig | FaceConfig) -> tuple[dict[str, Stage], dict[str, Stage]]:
    """The actor pools and the tasks, by name."""
    read = {"read": config.read} if isinstance(config, ClipConfig) else {}
    return {"embed": config.stage}, {**read, "write": WRITE}


def embedded(
    store: Store, model: str, wanted: Set[tuple[str, int]] | None = None
) -> dict[tuple[str, int], tuple[np.ndarray, str]]:
    """By uri and bytes of the images that a model has embedded: float32 vectors of length 1, and what computed them.

    wanted: those images only.
    """
    found = {}
    for part in store.read_parts("vectors", VECTORS.names, (COMPUTED,)):
        rows = part.filter((compute.field("model") == model) & (compute.field("error") == ""))
        columns = (rows[name].to_pylist() for name in ("uri", "size", COMPUTED))
        for uri, size, computed, vector in zip(*columns, rows["vector"], strict=True):
            if wanted is not None and (uri, size) not in wanted:
                continue
            values = vector.values.to_numpy(zero_copy_only=False).astype(np.float32)
            found[uri, size] = values, computed or ""
    return found


def faceless(store: Store, model: str) -> dict[tuple[str, int], tuple[str, str]]:
    """Error code and message, by uri and bytes of the image, of images in which a model has found no face.

    It would find none again. What else went wrong may be over.
    """
    found = {}
    for part in store.read_parts("vectors", VECTORS.names, (COMPUTED,)):
        rows = part.filter((compute.field("model") == model) & (compute.field("error") == NO_FACE))
        for row in rows.select(["uri", "size", "error", "message"]).to_pylist():
            found[row["uri"], row["size"]] = row["error"], row["message"]
    return found


def embed(config: ClipConfig | FaceConfig, pictures: Sequence[Picture]) -> dict[str, tuple[str, str]]:
    """Embed images into vectors/, few in this process and many on Ray; returns error code and message, by uri, of those
    that could not be."""
    written = (embed_few if few_images(config, len(pictures)) else embed_many)(config, pictures)
    failed: dict[str, tuple[str, str]] = {}
    progress = Progress("embed", len(pictures), "images")
    for batch in tracked(written, progress, lambda batch: len(batch["uri"]), codes_in):
        for uri, code, message in zip(*(batch[name].tolist() for name in ("uri", "error", "message")), strict=True):
            if code:
                failed[uri] = code, message
    return failed


def embed_few(config: ClipConfig | FaceConfig, pictures: Sequence[Picture]) -> Iterator[Batch]:
    """Embed images in this process; gives what `write_vectors` returns."""
    if isinstance(config, ClipConfig):
        steps = [partial(read_images, shape=input_shape(config.stage)), ImageEmbedder(config.stage)]
    else:
        steps = [FaceEmbedder(config.stage)]
    yield from in_process(_rows(pictures), config.stage.batch_size, *steps, _writer(config))


def embed_many(config: ClipConfig | FaceConfig, pictures: Sequence[Picture]) -> Iterator[Batch]:
    """Embed images on Ray; gives what `write_vectors` returns."""
    import ray

    set_context()
    stages = fitted(*stages_of(config), config.autoscaling)
    stage: Any = stages["embed"]
    about: Any = _rows(pictures)
    rows = in_blocks(ray.data.from_items(about), config.read.batch_size, WRITE)
    actor: Any = FaceEmbedder
    if isinstance(config, ClipConfig):
        read: Any = partial(read_images, shape=input_shape(stage))
        rows = rows.map_batches(read, batch_size=config.read.batch_size, **ray_task(stages["read"]))
        actor = ImageEmbedder
    actors = ray_actors(stage, inputs=-(-len(about) // stage.batch_size))
    rows = rows.map_batches(actor, fn_constructor_args=[stage], batch_size=stage.batch_size, **actors)
    yield from batches(rows.map_batches(_writer(config), batch_size=None, **ray_task(stages["write"])))


def _rows(pictures: Sequence[Picture]) -> list[Row]:
    return [{"uri": one.uri, "size": one.size, "error": "", "message": ""} for one in pictures]


def _writer(config: ClipConfig | FaceConfig) -> Any:
    computed = config.stage.computed if isinstance(config, ClipConfig) else ""
    return partial(write_vectors, store=Store(root_of(config)), model=model_of(config), computed=computed)

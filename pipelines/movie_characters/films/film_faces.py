"""All faces of images or of a film's frames, each once, and the gallery that they are compared with."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from pyarrow import compute

from actors.core.errors import UserError
from actors.core.stage import Batch
from actors.core.store import Store
from actors.movie_characters.frame_faces import FACES, FrameFaces, write_faces
from actors.movie_characters.names import Picture
from pipelines.core.in_process import few, in_process
from pipelines.core.progress import Progress, tracked
from pipelines.core.ray_data import batches, fitted, in_blocks, ray_actors, ray_task, set_context
from pipelines.movie_characters.face_answers import area
from pipelines.movie_characters.films.face_timeline import FacesOf, Judge
from pipelines.movie_characters.films.tracks import unit
from pipelines.movie_characters.gallery_settings import STRANGER, FaceConfig, model_of, root_of
from pipelines.movie_characters.gallery_vectors import FEW_FACES, WRITE, embed, embedded, faceless
from pipelines.movie_characters.pictures import find_pictures

log = logging.getLogger(__name__)

DLIB = (STRANGER, 0.0038)
"""Threshold and scale of dlib's vectors: a logistic regression on the cosines of all pairs of 200 pictures of 20 people
of the ORL set, where strangers weigh as much as the one (`tests/benchmarks/timeline.py`)."""


def embed_faces(config: FaceConfig, frames: Sequence[str]) -> int:
    """Find the faces of frames that were not looked at yet; returns how many frames these were."""
    pictures = find_pictures(list(frames), "input", labelled=False)
    done = searched(config)
    todo = [one for one in pictures if (one.uri, one.size) not in done]
    embed_all(config, todo)
    return len(todo)


def searched(config: FaceConfig) -> set[tuple[str, int]]:
    """Uri and bytes of the images whose faces are stored, also of those that have none."""
    return {
        key
        for part in Store(root_of(config)).read_parts("faces", ["uri", "size", "model", "error"])
        for key in _keys(part.filter((compute.field("model") == model_of(config)) & (compute.field("error") == "")))
    }


def embed_all(config: FaceConfig, todo: Sequence[Picture]) -> dict[str, tuple[str, str]]:
    """Find and store all faces of images; returns error code and message, by uri, of those that cannot be read."""
    failed: dict[str, tuple[str, str]] = {}
    if todo:
        progress = Progress("faces", len(todo), "images")
        for batch in tracked(_written(config, todo), progress, lambda batch: len(batch["uri"])):
            for uri, code, message in zip(*(batch[name].tolist() for name in ("uri", "error", "message")), strict=True):
                if code:
                    failed[uri] = code, message
    return failed


def _keys(part: Any) -> Iterator[tuple[str, int]]:
    return zip(part["uri"].to_pylist(), part["size"].to_pylist(), strict=True)


def _written(config: FaceConfig, todo: Sequence[Picture]) -> Iterator[Batch]:
    """Embed the faces of frames, few in this process and many on Ray."""
    rows: Any = [{"uri": one.uri, "size": one.size, "error": "", "message": ""} for one in todo]
    write: Any = partial(write_faces, store=Store(root_of(config)), model=model_of(config))
    if few(len(rows), config.stage, FEW_FACES):
        yield from in_process(rows, config.stage.batch_size, FrameFaces(config.stage), write)
        return
    import ray

    set_context()
    stages = fitted({"embed": config.stage}, {"write": WRITE}, config.autoscaling)
    stage: Any = stages["embed"]
    found = in_blocks(ray.data.from_items(rows), config.read.batch_size, WRITE)
    actor: Any = FrameFaces
    found = found.map_batches(actor, fn_constructor_args=[stage], batch_size=stage.batch_size, **ray_actors(stage))
    yield from batches(found.map_batches(write, batch_size=None, **ray_task(stages["write"])))


def read_faces(config: FaceConfig, frames: Sequence[str]) -> FacesOf:
    """The stored faces of frames, by the name of their file."""
    wanted = set(frames)
    found = {key[0].rpartition("/")[2]: faces for key, faces in stored_faces(config).items() if key[0] in wanted}
    none = np.zeros((0, 4)), np.zeros((0, 0), np.float32)
    return lambda name: found.get(name, none)


def stored_faces(config: FaceConfig) -> dict[tuple[str, int], tuple[np.ndarray, np.ndarray]]:
    """Boxes (N, 4) and vectors (N, D) of length 1, the largest first, by uri and bytes of the images with a face."""
    found: dict[tuple[str, int], tuple[np.ndarray, np.ndarray]] = {}
    for part in Store(root_of(config)).read_parts("faces", FACES.names):
        for row in part.filter(compute.field("model") == model_of(config)).to_pylist():
            if row["boxes"]:
                boxes = np.array(row["boxes"])
                order = np.argsort([-area(box) for box in boxes], kind="stable")
                found[row["uri"], row["size"]] = boxes[order], unit(np.array(row["vectors"], np.float32))[order]
    return found


def read_judge(config: FaceConfig, threshold: float | None) -> Judge:
    """The gallery, embedded once. Raises UserError where no picture of it has a face."""
    pictures = find_pictures(config.gallery, "gallery")
    store, model = Store(root_of(config)), model_of(config)
    known = embedded(store, model).keys() | faceless(store, model).keys()
    if todo := [one for one in pictures if (one.uri, one.size) not in known]:
        embed(config, todo)
    found = embedded(store, model)
    useful = [one for one in pictures if (one.uri, one.size) in found]
    if not useful:
        raise UserError(f"gallery={config.gallery}: no face was found in any of {len(pictures)} images.")
    if lost := [one.name for one in pictures if (one.uri, one.size) not in found]:
        log.warning("%d of %d gallery images have no face, the first of them %s", len(lost), len(pictures), lost[0])
    vectors = unit(np.stack([found[one.uri, one.size][0] for one in useful]))
    default, scale = DLIB
    return Judge(vectors, [one.cls for one in useful], default if threshold is None else threshold, scale)

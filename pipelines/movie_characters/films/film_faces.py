"""All faces of images or of a film's frames, each once, and the gallery that they are compared with."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import compute

from actors.core import storage
from actors.core.errors import UserError
from actors.core.stage import Batch, codes_in
from actors.core.store import Store
from actors.movie_characters.names import Picture
from actors.movie_characters.recognition.frame_faces import CONFIDENCES, FACES, FrameFaces, write_faces
from pipelines.core.in_process import few, in_process
from pipelines.core.progress import Progress, tracked
from pipelines.core.ray_data import batches, fitted, in_blocks, ray_actors, ray_task, set_context
from pipelines.movie_characters.face_answers import area
from pipelines.movie_characters.films.face_timeline import FacesOf, Judge
from pipelines.movie_characters.films.tracks import NOTHING, Seen, unit
from pipelines.movie_characters.gallery_settings import CALIBRATE, STRANGER, FaceConfig, model_of, root_of
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


def searched(config: FaceConfig, folder: str = "faces", model: str = "") -> set[tuple[str, int]]:
    """Uri and bytes of the images whose faces are stored, also of those that have none; or of what is in a folder."""
    columns = ["uri", "size", "model", "error"]
    of_model = (compute.field("model") == (model or model_of(config))) & (compute.field("error") == "")
    if config.faces.cut_at is not None and not model:
        # Faces of earlier versions have no confidence to be judged by.
        of_model &= compute.field(CONFIDENCES).is_valid()
    found: set[tuple[str, int]] = set()
    for part in Store(root_of(config)).read_parts(folder, [*columns, CONFIDENCES], (CONFIDENCES,)):
        found.update(_keys(part.filter(of_model)))
    return found


def embed_all(config: FaceConfig, todo: Sequence[Picture]) -> dict[str, tuple[str, str]]:
    """Find and store all faces of images; returns error code and message, by uri, of those that cannot be read."""
    failed: dict[str, tuple[str, str]] = {}
    if todo:
        progress = Progress("faces", len(todo), "images")
        for batch in tracked(_written(config, todo), progress, lambda batch: len(batch["uri"]), codes_in):
            for uri, code, message in zip(*(batch[name].tolist() for name in ("uri", "error", "message")), strict=True):
                if code:
                    failed[uri] = code, message
    return failed


def _keys(part: Any) -> Iterator[tuple[str, int]]:
    return zip(part["uri"].to_pylist(), part["size"].to_pylist(), strict=True)


def _written(config: FaceConfig, todo: Sequence[Picture]) -> Iterator[Batch]:
    rows = [{"uri": one.uri, "size": one.size, "error": "", "message": ""} for one in todo]
    write = partial(write_faces, store=Store(root_of(config)), model=model_of(config))
    return embed_rows(config, rows, FrameFaces, config.stage, write)


def embed_rows(config: FaceConfig, rows: Any, actor: Any, stage: Any, write: Any) -> Iterator[Batch]:
    """Find and embed what frames show, few in this process and many on Ray; gives what `write` returns."""
    if few(len(rows), stage, FEW_FACES):
        yield from in_process(rows, stage.batch_size, actor(stage), write)
        return
    import ray

    set_context()
    stages = fitted({"embed": stage}, {"write": WRITE}, config.autoscaling)
    stage = stages["embed"]
    found = in_blocks(ray.data.from_items(rows), config.read.batch_size, WRITE)
    found = found.map_batches(actor, fn_constructor_args=[stage], batch_size=stage.batch_size, **ray_actors(stage))
    yield from batches(found.map_batches(write, batch_size=None, **ray_task(stages["write"])))


def faces_by_film(config: FaceConfig, root: Store) -> Callable[[str], FacesOf]:
    """The stored faces of the frames of a film, by its name; root: of the output that holds frames/."""
    return seen_by_film(config, root, "faces", model_of(config), config.faces.cut_at)


def seen_by_film(
    config: FaceConfig, root: Store, table: str, model: str, least: float | None = None
) -> Callable[[str], FacesOf]:
    """What a table holds of the frames of a film, by its name; root: of the output that holds frames/.

    One film is read at a time: the faces of all films of a run may not fit into memory.
    """
    store = Store(root_of(config))
    parts: dict[str, list[str]] = defaultdict(list)
    for name in store.parts(table):
        part = store.read_part(table, name, ["uri", "model"])
        if part is not None:
            uris = part.filter(compute.field("model") == model)["uri"].to_pylist()
            for folder in dict.fromkeys(uri.rpartition("/")[0] for uri in uris):
                parts[folder].append(name)

    def of_film(film: str) -> FacesOf:
        found: dict[str, Seen] = {}
        folder = storage.absolute(root.uri("frames", film))
        for name in parts.get(folder, ()):
            part = store.read_part(table, name, FACES.names, (CONFIDENCES,))
            for (uri, _), seen in _seen(part, model, least) if part is not None else ():
                if uri.rpartition("/")[0] == folder:
                    found[uri.rpartition("/")[2]] = seen
        return lambda name: found.get(name, NOTHING)

    return of_film


def stored_faces(config: FaceConfig) -> dict[tuple[str, int], Seen]:
    """Faces, the largest first, by uri and bytes of the images with a face."""
    parts = Store(root_of(config)).read_parts("faces", FACES.names, (CONFIDENCES,))
    least = config.faces.cut_at
    return {key: seen for part in parts for key, seen in _seen(part, model_of(config), least)}


def _seen(part: pa.Table, model: str, least: float | None) -> Iterator[tuple[tuple[str, int], Seen]]:
    """Faces of the images of a part with a face that is confident enough, the largest first."""
    for row in part.filter(compute.field("model") == model).to_pylist():
        stored = row[CONFIDENCES]
        if not row["boxes"] or (least is not None and stored is None):
            continue
        boxes, vectors = np.array(row["boxes"]), unit(np.array(row["vectors"], np.float32))
        confidences = np.full(len(boxes), np.nan) if stored is None else np.array(stored, float)
        order = np.argsort([-area(box) for box in boxes], kind="stable")
        if least is not None:
            order = order[confidences[order] >= least]
        if len(order):
            yield (row["uri"], row["size"]), Seen(boxes, vectors, confidences).chosen(order)


def check_threshold(config: FaceConfig, threshold: float | None) -> None:
    """Raise UserError where there is no threshold and the embedder has no default."""
    if threshold is None and not config.faces.by_dlib:
        raise UserError(f"faces.embedder={config.faces.embedder} {CALIBRATE}")


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
    check_threshold(config, threshold)
    default, scale = DLIB if config.faces.by_dlib else (np.nan, None)
    return Judge(vectors, [one.cls for one in useful], default if threshold is None else threshold, scale)

"""All faces of images or of a film's frames, each once, and the gallery that they are compared with."""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import compute

from actors.core import storage
from actors.core.errors import UserError
from actors.core.stage import Batch, Row, codes_in
from actors.core.store import Store
from actors.movie_characters.names import Picture
from actors.movie_characters.recognition.frame_faces import CONFIDENCES, FACES, FrameFaces, write_faces
from pipelines.core.in_process import few, in_process
from pipelines.core.progress import Progress, tracked
from pipelines.core.ray_data import batches, fitted, in_blocks, ray_actors, ray_task, set_context
from pipelines.movie_characters.face_answers import area
from pipelines.movie_characters.films.each_film import each_film
from pipelines.movie_characters.films.face_timeline import FacesOf, Judge
from pipelines.movie_characters.films.tracks import NOTHING, Seen, unit
from pipelines.movie_characters.gallery_settings import CALIBRATE, STRANGER, FaceConfig, model_of, root_of
from pipelines.movie_characters.gallery_vectors import FEW_FACES, WRITE, embed, embedded, faceless
from pipelines.movie_characters.pictures import find_pictures

log = logging.getLogger(__name__)

DLIB = (STRANGER, 0.0038)
"""Threshold and scale of dlib's vectors: a logistic regression on the cosines of all pairs of 200 pictures of 20 people
of the ORL set, where strangers weigh as much as the one (`tests/benchmarks/timeline.py`)."""


def embed_faces(config: FaceConfig, films: Sequence[str], root: Store) -> None:
    """Find the faces of those frames of films that were not looked at yet; root: of the output that holds frames/."""
    write = partial(write_faces, store=Store(root_of(config)), model=model_of(config))
    todo = FramesTodo(root, searched_by_film(config, root))
    embed_films(config, films, todo, FrameFaces, config.stage, write, "faces")


@dataclass(frozen=True)
class FramesTodo:
    """Rows of the frames of a film that were not looked at yet."""

    root: Store
    """Root of the output that holds frames/."""
    searched: Callable[[str], Set[tuple[str, int]]]
    """Uri and bytes of the frames of a film that were."""
    faces_of: Callable[[str], FacesOf] | None = None
    """The faces of a film, where rows are to have them."""

    def __call__(self, film: str) -> list[Row]:
        """Rows with uri, size, error and message; faces as JSON, where they are to have them."""
        folder = storage.absolute(self.root.uri("frames", film))
        sizes = {entry.name: entry.size for entry in storage.listing(folder)}
        done = self.searched(film)
        rows = [
            {"uri": f"{folder}/{name}", "size": sizes.get(name, -1), "error": "", "message": ""}
            for name in frame_names(self.root, film)
        ]
        rows = [row for row in rows if (row["uri"], row["size"]) not in done]
        if self.faces_of is not None and rows:
            seen = self.faces_of(film)
            for row in rows:
                row["faces"] = json.dumps(seen(row["uri"].rpartition("/")[2]).boxes.tolist())
        return rows

    def count(self, film: str) -> int:
        """How many rows there are."""
        return len(self(film))


def frame_names(root: Store, film: str) -> list[str]:
    """Names of the frames of a film, in order of time."""
    about = root.read_json("shots", f"{film}.json") or {"shots": []}
    return [name for shot in about["shots"] for name in shot["images"]]


def searched(config: FaceConfig) -> set[tuple[str, int]]:
    """Uri and bytes of the images whose faces are stored, also of those that have none."""
    store = Store(root_of(config))
    return {key for part in store.parts("faces") for key in _searched(config, store, "faces", model_of(config), part)}


def searched_by_film(
    config: FaceConfig, root: Store, table: str = "faces", model: str = ""
) -> Callable[[str], Set[tuple[str, int]]]:
    """Uri and bytes of the frames of a film, by its name, that a table holds, also of those that show nothing."""
    model = model or model_of(config)
    parts, store = parts_by_folder(config, table, model), Store(root_of(config))

    def of_film(film: str) -> Set[tuple[str, int]]:
        folder = storage.absolute(root.uri("frames", film))
        found = (key for part in parts.get(folder, ()) for key in _searched(config, store, table, model, part))
        return {key for key in found if key[0].rpartition("/")[0] == folder}

    return of_film


def _searched(config: FaceConfig, store: Store, table: str, model: str, name: str) -> Iterator[tuple[str, int]]:
    columns = ["uri", "size", "model", "error", CONFIDENCES]
    of_model = (compute.field("model") == model) & (compute.field("error") == "")
    if config.faces.cut_at is not None and table == "faces":
        # Faces of earlier versions have no confidence to be judged by.
        of_model &= compute.field(CONFIDENCES).is_valid()
    part = store.read_part(table, name, columns, (CONFIDENCES,))
    if part is not None:
        rows = part.filter(of_model)
        yield from zip(rows["uri"].to_pylist(), rows["size"].to_pylist(), strict=True)


def parts_by_folder(config: FaceConfig, table: str, model: str) -> dict[str, list[str]]:
    """Names of the parts of a table with rows of a model, by the folder of the images."""
    store = Store(root_of(config))
    parts: dict[str, list[str]] = defaultdict(list)
    for name in store.parts(table):
        part = store.read_part(table, name, ["uri", "model"])
        if part is not None:
            uris = part.filter(compute.field("model") == model)["uri"].to_pylist()
            for folder in dict.fromkeys(uri.rpartition("/")[0] for uri in uris):
                parts[folder].append(name)
    return dict(parts)


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


def _written(config: FaceConfig, todo: Sequence[Picture]) -> Iterator[Batch]:
    rows = [{"uri": one.uri, "size": one.size, "error": "", "message": ""} for one in todo]
    write = partial(write_faces, store=Store(root_of(config)), model=model_of(config))
    if few(len(rows), config.stage, FEW_FACES):
        return in_process(rows, config.stage.batch_size, FrameFaces(config.stage), write)
    import ray

    set_context()
    about: Any = rows
    return embed_rows(config, ray.data.from_items(about), len(rows), FrameFaces, config.stage, write)


def embed_films(
    config: FaceConfig, films: Sequence[str], todo: FramesTodo, actor: Any, stage: Any, write: Any, unit: str
) -> None:
    """Find and embed what frames of films show, few in this process and many on Ray, whose workers list them."""
    counts = {film: count for film, count in each_film(todo.count, [(film,) for film in films]) if count}
    total = sum(counts.values())
    if not total:
        return
    if few(total, stage, FEW_FACES):
        rows = [row for film in counts for row in todo(film)]
        written = in_process(rows, stage.batch_size, actor(stage), write)
    else:
        import ray

        set_context()
        about: Any = [{"film": film} for film in counts]
        listed: Any = _OfRow(todo)
        rows = ray.data.from_items(about, override_num_blocks=len(about)).flat_map(listed, **ray_task(WRITE))
        written = embed_rows(config, rows, total, actor, stage, write)
    for _ in tracked(written, Progress(unit, total, "images"), lambda batch: len(batch["uri"]), codes_in):
        pass


@dataclass(frozen=True)
class _OfRow:
    """A step of Ray Data, which takes a row."""

    todo: FramesTodo

    def __call__(self, row: Row) -> list[Row]:
        return self.todo(str(row["film"]))


def embed_rows(config: FaceConfig, rows: Any, count: int, actor: Any, stage: Any, write: Any) -> Iterator[Batch]:
    """Find and embed on Ray what frames show, whose rows are a dataset of so many; gives what `write` returns."""
    stages = fitted({"embed": stage}, {"write": WRITE}, config.autoscaling)
    stage = stages["embed"]
    found = in_blocks(rows, config.read.batch_size, WRITE)
    actors = ray_actors(stage, inputs=-(-count // stage.batch_size))
    found = found.map_batches(actor, fn_constructor_args=[stage], batch_size=stage.batch_size, **actors)
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
    store, parts = Store(root_of(config)), parts_by_folder(config, table, model)

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
    keys = {(one.uri, one.size) for one in pictures}
    known = embedded(store, model, keys).keys() | faceless(store, model).keys()
    if todo := [one for one in pictures if (one.uri, one.size) not in known]:
        embed(config, todo)
    found = embedded(store, model, keys)
    useful = [one for one in pictures if (one.uri, one.size) in found]
    if not useful:
        raise UserError(f"gallery={config.gallery}: no face was found in any of {len(pictures)} images.")
    if lost := [one.name for one in pictures if (one.uri, one.size) not in found]:
        log.warning("%d of %d gallery images have no face, the first of them %s", len(lost), len(pictures), lost[0])
    vectors = unit(np.stack([found[one.uri, one.size][0] for one in useful]))
    check_threshold(config, threshold)
    default, scale = DLIB if config.faces.by_dlib else (np.nan, None)
    return Judge(vectors, [one.cls for one in useful], default if threshold is None else threshold, scale)

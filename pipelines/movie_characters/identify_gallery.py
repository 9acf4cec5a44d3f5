"""Which character an image shows, by comparison with a gallery: CLIP or faces, each image embedded once.

read     task     1 -> 1: image files become the squares that the model takes (faces: the actor reads them itself)
embed    actors   1 -> 1: squares become vectors
write    task     N -> 1: whole parts of vectors/, by which an image counts as embedded
compare  driver   images with the gallery; CLASS_results.csv, rejected/

gallery  the cosine of an image with each image of the gallery
prompts  the cosine of an image with a text for each class, as in "a photo of Ann"
probe    the log-probability of each class by a logistic regression on the vectors of the gallery
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from actors.core.computed import mixed
from actors.core.errors import UserError, check_all
from actors.core.store import Store
from actors.models.clip import TextEmbedder, check_clip
from actors.movie_characters.names import Picture, class_identity, unsuffixed
from actors.movie_characters.recognition.faces import NO_FACE, check_embedder
from pipelines.core.in_process import few, in_process
from pipelines.core.ray_data import fitted, ray_actors, rows_of, set_context
from pipelines.movie_characters.face_answers import answered as face_answers
from pipelines.movie_characters.face_answers import write_face_answers
from pipelines.movie_characters.films.film_faces import embed_all, searched, stored_faces
from pipelines.movie_characters.gallery_methods import nearest, probe
from pipelines.movie_characters.gallery_settings import (
    CALIBRATE,
    STRANGER,
    ClipConfig,
    FaceConfig,
    GallerySettings,
    model_of,
    root_of,
)
from pipelines.movie_characters.gallery_vectors import embed, embedded, faceless, few_images
from pipelines.movie_characters.pictures import find_pictures
from pipelines.movie_characters.results import (
    IDENTITY,
    IMAGE,
    LOSS,
    note_classes,
    read_about,
    write_about,
    write_results,
)

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

REJECTED = pa.schema([(name, pa.string()) for name in ("image", "uri", "role", "code", "message")])
"""One row for each image that could not be embedded; role: gallery or image."""
ALL = 2000
"""Up to this many gallery images, all are listed."""
NEAREST = 100
"""Of a larger gallery, this many of the nearest images are listed."""
CHUNK = 1024
"""Images compared at once."""


@dataclass(frozen=True)
class Plan:
    """What an identification has to do."""

    images: list[Picture]
    """To be identified."""
    gallery: list[Picture]
    todo: list[Picture]
    """Images of both without a vector."""

    @property
    def classes(self) -> list[str]:
        """Classes of the gallery."""
        return sorted({picture.cls for picture in self.gallery})


def method_of(config: ClipConfig | FaceConfig) -> str:
    """What the results mean: results of two kinds cannot share a folder."""
    return f"{config.method if isinstance(config, ClipConfig) else 'gallery'} of {model_of(config)}"


def needs_gallery(config: ClipConfig | FaceConfig) -> bool:
    """Whether images are compared with those of the gallery; else with texts, which every run embeds."""
    return not (isinstance(config, ClipConfig) and config.method == "prompts")


def needs_ray(config: ClipConfig | FaceConfig, plan: Plan) -> bool:
    """Whether there is so much to embed that Ray is worth its start, or a GPU is wanted."""
    texts = 0 if needs_gallery(config) else len(plan.classes)
    return not (few_images(config, len(plan.todo)) and few(texts, config.stage))


def check_model(config: ClipConfig | FaceConfig) -> None:
    """Raise UserError where the model, its extra or its GPU is missing; loads no weights."""
    if isinstance(config, FaceConfig):
        check_embedder(config.stage)
        return
    _check_gpu(config)
    try:
        check_clip(config.stage)
    except UserError as error:
        message = str(error).replace("embeddings.model", "model_name").replace("embeddings.pretrained", "pretrained")
        raise UserError(message) from error


def _check_gpu(config: ClipConfig) -> None:
    """Raise UserError where a GPU is wanted and there is none; of a cluster that is not joined yet nothing is known."""
    wanted = config.embeddings.num_gpus
    if not wanted or config.autoscaling:
        return
    import ray

    if ray.is_initialized():
        there = ray.cluster_resources().get("GPU", 0)
    elif "RAY_ADDRESS" in os.environ or Path(tempfile.gettempdir(), "ray", "ray_current_cluster").exists():
        return
    else:
        import torch

        there = torch.cuda.device_count()
    if not there:
        raise UserError(
            f"num_gpus={wanted:g} (device=cuda), but there is no GPU. Set num_gpus=0 (device=cpu), or run the command "
            "on a cluster with GPUs."
        )


def plan_identification(config: ClipConfig | FaceConfig) -> Plan:
    """List both and find what is missing; raises UserError where there is nothing to compare, or another model's."""
    images, gallery, _ = check_all(
        partial(find_pictures, config.input, "input", labelled=False),
        partial(find_pictures, config.gallery, "gallery"),
        partial(check_model, config),
    )
    if isinstance(config, ClipConfig) and (other := set(config.prompts) - {one.cls for one in gallery}):
        raise UserError(f"prompts: the gallery has no class {', '.join(sorted(other))}")
    before = read_about(config.output).by
    if before and before != method_of(config):
        old = isinstance(config, FaceConfig) and before.startswith("gallery of dlib:") and "mtcnn" not in before
        hint = " or set faces.detector=hog, the default of earlier versions" if old else ""
        raise UserError(f"{config.output} holds results by {before}: use another output{hint}")
    store, model = Store(root_of(config)), model_of(config)
    done = embedded(store, model).keys() | faceless(store, model).keys()
    # Of one method a model needs no images of the gallery.
    found = searched(config) if isinstance(config, FaceConfig) else done
    todo = {one.uri: one for one in images if (one.uri, one.size) not in found}
    if needs_gallery(config):
        todo |= {one.uri: one for one in gallery if (one.uri, one.size) not in done}
    return Plan(images, gallery, list(todo.values()))


@dataclass(frozen=True)
class Identified:
    """What an identification did."""

    images: int
    answered: int
    rejected: dict[str, int]
    """Images without an answer, by code."""
    lost: dict[str, int]
    """Images of the gallery that could not be embedded, by code."""
    embedded: int
    """Images embedded by this run."""
    seconds: float
    notes: list[str]
    """Which vectors are not comparable, in sentences."""


def identify(config: ClipConfig | FaceConfig, plan: Plan) -> Identified:
    """Embed what is missing, and write results and rejected/."""
    started = time.monotonic()
    store = Store(config.output)
    write_about(config.output, method_of(config), True, (), ())
    failed, new = _embed_missing(config, plan)
    took = time.monotonic() - started
    both = [*plan.images, *plan.gallery]
    found = embedded(Store(root_of(config)), model_of(config))
    faces = stored_faces(config) if isinstance(config, FaceConfig) else {}
    # A picture is answered by its largest face.
    found |= {key: (some.vectors[0], "") for key, some in faces.items()}
    vectors = {one.uri: found[one.uri, one.size][0] for one in both if (one.uri, one.size) in found}
    computed = Counter(found[key][1] for key in {(one.uri, one.size) for one in both} & found.keys())
    images = [one for one in plan.images if one.uri in vectors]
    gallery = [one for one in plan.gallery if one.uri in vectors]
    if needs_gallery(config) and not gallery:
        raise UserError(_useless(config, plan, failed))
    classes = {one.name: one.cls for one in plan.images}
    note_classes(config.output, classes)
    for rows in _answers(config, plan, images, gallery, vectors):
        write_results(config.output, rows, True, classes)
    if isinstance(config, FaceConfig):
        own = {one.uri: faces[one.uri, one.size] for one in images if (one.uri, one.size) in faces}
        told = list(face_answers(own, images, gallery, _matrix(gallery, vectors), _threshold(config)))
        write_face_answers(config.output, told, plan.images)
    answered = {one.name for one in images}
    silent = [one.name for one in plan.images if one.name not in answered]
    compared = {unsuffixed(one.name): one.cls for one in plan.gallery}
    write_about(config.output, method_of(config), True, answered, silent, compared)
    rows = [
        {"image": one.name, "uri": one.uri, "role": role, "code": failed[one.uri][0], "message": failed[one.uri][1]}
        for role, some in (("image", plan.images), ("gallery", plan.gallery))
        for one in some
        if one.uri in failed
    ]
    store.replace_table("rejected", [pa.Table.from_pylist(rows, REJECTED)] if rows else [])
    codes = {role: dict(Counter(row["code"] for row in rows if row["role"] == role)) for role in ("image", "gallery")}
    alike = f"To compute all on one device, delete {Store(root_of(config)).uri('vectors')}."
    return Identified(
        len(plan.images),
        len(images),
        codes["image"],
        codes["gallery"],
        len(plan.todo) - len(new),
        round(took, 2),
        mixed(computed, "vectors", "images", alike),
    )


def _threshold(config: FaceConfig) -> float:
    if config.threshold is not None:
        return config.threshold
    if config.faces.by_dlib:
        return STRANGER
    log.warning("no face is unknown in face_answers: faces.embedder=%s %s", config.faces.embedder, CALIBRATE)
    return -1.0


def _embed_missing(
    config: ClipConfig | FaceConfig, plan: Plan
) -> tuple[dict[str, tuple[str, str]], dict[str, tuple[str, str]]]:
    """Embed what is missing; returns error code and message by uri, of all images, and of those that this run tried."""
    store, model = Store(root_of(config)), model_of(config)
    known = faceless(store, model)
    failed = {
        one.uri: known[one.uri, one.size] for one in [*plan.images, *plan.gallery] if (one.uri, one.size) in known
    }
    if not isinstance(config, FaceConfig):
        new = embed(config, plan.todo) if plan.todo else {}
        return failed | new, new
    todo, done = {one.uri for one in plan.todo}, searched(config)
    images = [one for one in plan.images if one.uri in todo and (one.uri, one.size) not in done]
    there = embedded(store, model).keys() | known.keys()
    gallery = [one for one in plan.gallery if one.uri in todo and (one.uri, one.size) not in there]
    new = embed_all(config, images)
    with_face = stored_faces(config).keys()
    none = {
        one.uri: (NO_FACE, "no face was found")
        for one in plan.images
        if one.uri not in new and (one.uri, one.size) not in with_face
    }
    new |= {one.uri: none[one.uri] for one in images if one.uri in none}
    if gallery:
        new |= embed(config, gallery)
    return failed | none | new, new


def _useless(config: ClipConfig | FaceConfig, plan: Plan, failed: dict[str, tuple[str, str]]) -> str:
    """What to say of a gallery without a single vector; failed: error code and message by uri."""
    counts = Counter(failed[one.uri][0] for one in plan.gallery)
    why = ", ".join(f"{code} {count}" for code, count in counts.items())
    first = plan.gallery[0]
    return (
        f"gallery={config.gallery}: none of {len(plan.gallery)} images could be embedded ({why}). "
        f"{first.name}: {failed[first.uri][1]}"
    )


def _answers(
    config: ClipConfig | FaceConfig,
    plan: Plan,
    images: Sequence[Picture],
    gallery: Sequence[Picture],
    vectors: dict[str, np.ndarray],
) -> Iterator[pd.DataFrame]:
    """Rows of results, of some images at a time."""
    import pandas as pd

    method = config.method if isinstance(config, ClipConfig) else "gallery"
    matrix = _matrix(gallery, vectors) if method != "prompts" else np.zeros((0, 0), np.float32)
    names = [unsuffixed(one.name) for one in gallery]
    if method == "prompts":
        assert isinstance(config, ClipConfig)
        matrix, names = _texts(config, plan.classes), [class_identity(cls) for cls in plan.classes]
    answer: Any = partial(nearest, gallery=matrix, count=_count(config, len(matrix)))
    if method == "probe":
        assert isinstance(config, ClipConfig)
        truth = [one.cls for one in gallery]
        answer, names = probe(matrix, truth, config.probe_c), [class_identity(cls) for cls in sorted(set(truth))]
    labels = np.array(names, object)
    # By class, so that the file of a class is written as seldom as may be.
    ordered = sorted(images, key=lambda one: (one.cls, one.name))
    for first in range(0, len(ordered), CHUNK):
        some = ordered[first : first + CHUNK]
        numbers, scores = answer(_matrix(some, vectors))
        count = numbers.shape[1]
        yield pd.DataFrame(
            {
                IMAGE: np.repeat(np.array([one.name for one in some], object), count),
                IDENTITY: labels[numbers.ravel()],
                LOSS: scores.ravel().astype(float).round(6),
            }
        )


def _count(config: GallerySettings, size: int) -> int:
    wanted = config.nearest if config.nearest is not None else (size if size <= ALL else NEAREST)
    return min(wanted, size)


def _matrix(pictures: Sequence[Picture], vectors: dict[str, np.ndarray]) -> np.ndarray:
    if not pictures:
        return np.zeros((0, 1), np.float32)
    matrix = np.stack([vectors[one.uri] for one in pictures])
    # They are stored as float16, and so a little longer or shorter than 1.
    return matrix / np.linalg.norm(matrix, axis=1, keepdims=True)


def _texts(config: ClipConfig, classes: Sequence[str]) -> np.ndarray:
    """Vectors (C, D) of the texts of classes."""
    said: Any = [
        {"number": number, "text": config.prompts.get(cls, config.prompt.replace("{}", cls.replace("_", " ")))}
        for number, cls in enumerate(classes)
    ]
    if few(len(said), config.stage):
        return np.concatenate([batch["embedding"] for batch in in_process(said, len(said), TextEmbedder(config.stage))])
    import ray

    set_context()
    stage: Any = fitted({"embed": config.stage}, {}, config.autoscaling)["embed"]
    actors = ray_actors(stage, inputs=-(-len(said) // stage.per_call))
    rows = ray.data.from_items(said).map_batches(
        TextEmbedder, fn_constructor_args=[stage], batch_size=stage.per_call, **actors
    )
    found = sorted(rows_of(rows), key=lambda row: row["number"])
    return np.stack([row["embedding"] for row in found])

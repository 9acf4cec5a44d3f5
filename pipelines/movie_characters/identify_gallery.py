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
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from pyarrow import compute

from actors.core import storage
from actors.core.errors import UserError
from actors.core.stage import Batch, Row, Stage
from actors.core.store import Store
from actors.media.images import read_images
from actors.models.clip import EmbeddingsConfig, ImageEmbedder, TextEmbedder, check_clip, input_shape
from actors.movie_characters.faces import NO_FACE, FaceEmbedder, FacesConfig, check_faces
from actors.movie_characters.names import Picture, class_identity, stem
from actors.movie_characters.vectors import VECTORS, write_vectors
from pipelines.core.in_process import FEW, few, in_process
from pipelines.core.progress import Progress, tracked
from pipelines.core.ray_data import batches, fitted, in_blocks, ray_actors, ray_task, rows_of, set_context
from pipelines.movie_characters.gallery_methods import nearest, probe
from pipelines.movie_characters.pictures import Identification, find_pictures
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
FEW_FACES = 16
"""Up to this many images, finding faces in the driver is faster than starting Ray."""
WRITE = Stage(num_cpus=0.1)
"""Tasks that write vectors."""


def gpus_of(device: str) -> float:
    """GPUs per worker for the reference system's name of a device: cpu, or cuda, also with a number."""
    if device != "cpu" and not device.startswith("cuda"):
        raise UserError(f"device={device}: choose cpu or cuda")
    return 0.0 if device == "cpu" else 1.0


@dataclass(frozen=True)
class GallerySettings:
    """How images are compared with a gallery, by CLIP or by faces."""

    ALIASES: ClassVar[dict[str, Any]] = {"input_dir": "gallery"}

    gallery: str
    """The gallery: images CLASS_NUMBER of the characters, a folder or s3://."""
    vectors: str = ""
    """Root of vectors/, where the vectors of images are kept. Set it to share vectors between outputs; default: the
    output."""
    nearest: int | None = None
    """How many of the nearest gallery images are listed per image; null: all up to 2,000, else 100."""
    read: Stage = field(default_factory=lambda: Stage(workers=0, batch_size=64))
    """Tasks that read and decode image files."""
    autoscaling: bool = False
    """The cluster grows on demand, so worker pools need not fit its present size."""

    def __post_init__(self) -> None:
        if self.nearest is not None and self.nearest < 1:
            raise UserError(f"nearest starts at 1, not {self.nearest}")


@dataclass(frozen=True)
class GalleryEmbeddings(EmbeddingsConfig):
    """Workers, precision and batches of CLIP, for images that are embedded in large batches."""

    batch_size: int = 64


@dataclass(frozen=True)
class ClipSettings(GallerySettings):
    """How images are compared by CLIP."""

    ALIASES: ClassVar[dict[str, Any]] = {
        **GallerySettings.ALIASES,
        "device": ("embeddings.num_gpus", gpus_of),
        "num_gpus": "embeddings.num_gpus",
    }

    model_name: str = "ViT-B-32"
    """The CLIP model: a name that open_clip knows, hf-hub:ORGANISATION/NAME, or a folder with open_clip_config.json and
    weights."""
    pretrained: str = "openai"
    """Weights of a model that open_clip knows by name: a tag of open_clip, or a file."""
    method: Literal["gallery", "prompts", "probe"] = "gallery"
    """What images are compared with: each gallery image (gallery), a text per class (prompts), or a logistic regression
    trained on the gallery (probe)."""
    prompt: str = "a photo of {}"
    """Text of a class, for method=prompts; {} is the class, with spaces for underscores."""
    prompts: dict[str, str] = field(default_factory=dict)
    """Texts of single classes, by class, for method=prompts; other classes have `prompt`."""
    probe_c: float = 10.0
    """Inverse strength of the L2 regularization, for method=probe; above 0. Lower it when the gallery is small."""
    embeddings: GalleryEmbeddings = field(default_factory=GalleryEmbeddings)
    """Workers, precision and batches of CLIP; its model and pretrained are replaced by model_name and pretrained."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if "{}" not in self.prompt or not self.probe_c > 0:
            raise UserError(
                f"prompt must have {{}} for the class, and probe_c be above 0: {self.prompt!r}, {self.probe_c}"
            )

    @property
    def stage(self) -> EmbeddingsConfig:
        """The model and its workers."""
        return replace(self.embeddings, model=self.model_name, pretrained=self.pretrained)


@dataclass(frozen=True)
class FaceSettings(GallerySettings):
    """How images are compared by faces."""

    faces: FacesConfig = field(default_factory=FacesConfig)
    """Face detection and its workers."""

    @property
    def stage(self) -> FacesConfig:
        """The model and its workers."""
        return self.faces


PLACES: dict[str, Any] = {"image_list": "input", "output_dir": "output"}
"""Other names of the settings of Identification."""


@dataclass(frozen=True)
class ClipConfig(ClipSettings, Identification):
    """Settings of `identify-clip`."""

    ALIASES: ClassVar[dict[str, Any]] = {**ClipSettings.ALIASES, **PLACES}


@dataclass(frozen=True)
class FaceConfig(FaceSettings, Identification):
    """Settings of `identify-faces`."""

    ALIASES: ClassVar[dict[str, Any]] = {**FaceSettings.ALIASES, **PLACES}


def root_of(config: ClipConfig | FaceConfig) -> str:
    """Root of vectors/, absolute, since workers have another working folder."""
    return storage.absolute(config.vectors or config.output)


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


def model_of(config: ClipConfig | FaceConfig) -> str:
    """The embedding model, in one word."""
    if isinstance(config, ClipConfig):
        return config.stage.name()
    return f"dlib:{config.faces.upsample}:{config.faces.max_side}"


def method_of(config: ClipConfig | FaceConfig) -> str:
    """What the results mean: results of two kinds cannot share a folder."""
    return f"{config.method if isinstance(config, ClipConfig) else 'gallery'} of {model_of(config)}"


def needs_gallery(config: ClipConfig | FaceConfig) -> bool:
    """Whether images are compared with those of the gallery; else with texts, which every run embeds."""
    return not (isinstance(config, ClipConfig) and config.method == "prompts")


def needs_ray(config: ClipConfig | FaceConfig, plan: Plan) -> bool:
    """Whether there is so much to embed that Ray is worth its start, or a GPU is wanted."""
    texts = 0 if needs_gallery(config) else len(plan.classes)
    return not (_few_images(config, len(plan.todo)) and few(texts, config.stage))


def _few_images(config: ClipConfig | FaceConfig, count: int) -> bool:
    return few(count, config.stage, FEW if isinstance(config, ClipConfig) else FEW_FACES)


def check_model(config: ClipConfig | FaceConfig) -> None:
    """Raise UserError where the model, its extra or its GPU is missing; loads no weights."""
    if isinstance(config, FaceConfig):
        check_faces()
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
    images = find_pictures(config.input, "input", labelled=False)
    gallery = find_pictures(config.gallery, "gallery")
    # It imports the model's library, which takes seconds.
    check_model(config)
    if isinstance(config, ClipConfig) and (other := set(config.prompts) - {one.cls for one in gallery}):
        raise UserError(f"prompts: the gallery has no class {', '.join(sorted(other))}")
    before = read_about(config.output).by
    if before and before != method_of(config):
        raise UserError(f"{config.output} holds results by {before}: use another output")
    store, model = Store(root_of(config)), model_of(config)
    done = embedded(store, model).keys() | faceless(store, model).keys()
    # Of one method a model needs no images of the gallery.
    wanted = [*images, *gallery] if needs_gallery(config) else images
    todo = {one.uri: one for one in wanted if (one.uri, one.size) not in done}
    return Plan(images, gallery, list(todo.values()))


def stages_of(config: ClipConfig | FaceConfig) -> tuple[dict[str, Stage], dict[str, Stage]]:
    """The actor pools and the tasks, by name."""
    read = {"read": config.read} if isinstance(config, ClipConfig) else {}
    return {"embed": config.stage}, {**read, "write": WRITE}


def embedded(store: Store, model: str) -> dict[tuple[str, int], np.ndarray]:
    """float32 vectors of length 1, by uri and bytes of the image, of the images that a model has embedded."""
    found = {}
    for part in store.read_parts("vectors", VECTORS.names):
        rows = part.filter((compute.field("model") == model) & (compute.field("error") == ""))
        for uri, size, vector in zip(rows["uri"].to_pylist(), rows["size"].to_pylist(), rows["vector"], strict=True):
            found[uri, size] = vector.values.to_numpy(zero_copy_only=False).astype(np.float32)
    return found


def faceless(store: Store, model: str) -> dict[tuple[str, int], tuple[str, str]]:
    """Error code and message, by uri and bytes of the image, of images in which a model has found no face.

    It would find none again. What else went wrong may be over.
    """
    found = {}
    for part in store.read_parts("vectors", VECTORS.names):
        rows = part.filter((compute.field("model") == model) & (compute.field("error") == NO_FACE))
        for row in rows.select(["uri", "size", "error", "message"]).to_pylist():
            found[row["uri"], row["size"]] = row["error"], row["message"]
    return found


def embed(config: ClipConfig | FaceConfig, pictures: Sequence[Picture]) -> dict[str, tuple[str, str]]:
    """Embed images into vectors/, few in this process and many on Ray; returns error code and message, by uri, of those
    that could not be."""
    written = (embed_few if _few_images(config, len(pictures)) else embed_many)(config, pictures)
    failed: dict[str, tuple[str, str]] = {}
    for batch in tracked(written, Progress("embed", len(pictures), "images"), lambda batch: len(batch["uri"])):
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
    rows = rows.map_batches(actor, fn_constructor_args=[stage], batch_size=stage.batch_size, **ray_actors(stage))
    yield from batches(rows.map_batches(_writer(config), batch_size=None, **ray_task(stages["write"])))


def _rows(pictures: Sequence[Picture]) -> list[Row]:
    return [{"uri": one.uri, "size": one.size, "error": "", "message": ""} for one in pictures]


def _writer(config: ClipConfig | FaceConfig) -> Any:
    return partial(write_vectors, store=Store(root_of(config)), model=model_of(config))


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


def identify(config: ClipConfig | FaceConfig, plan: Plan) -> Identified:
    """Embed what is missing, and write results and rejected/."""
    started = time.monotonic()
    store = Store(config.output)
    write_about(config.output, method_of(config), True, (), ())
    known = faceless(Store(root_of(config)), model_of(config))
    both = [*plan.images, *plan.gallery]
    failed = {one.uri: known[one.uri, one.size] for one in both if (one.uri, one.size) in known}
    new = embed(config, plan.todo) if plan.todo else {}
    failed |= new
    took = time.monotonic() - started
    found = embedded(Store(root_of(config)), model_of(config))
    vectors = {one.uri: found[one.uri, one.size] for one in both if (one.uri, one.size) in found}
    images = [one for one in plan.images if one.uri in vectors]
    gallery = [one for one in plan.gallery if one.uri in vectors]
    if needs_gallery(config) and not gallery:
        raise UserError(_useless(config, plan, failed))
    classes = {one.name: one.cls for one in plan.images}
    note_classes(config.output, classes)
    for rows in _answers(config, plan, images, gallery, vectors):
        write_results(config.output, rows, True, classes)
    answered = {one.name for one in images}
    silent = [one.name for one in plan.images if one.name not in answered]
    compared = {stem(one.name): one.cls for one in plan.gallery}
    write_about(config.output, method_of(config), True, answered, silent, compared)
    rows = [
        {"image": one.name, "uri": one.uri, "role": role, "code": failed[one.uri][0], "message": failed[one.uri][1]}
        for role, some in (("image", plan.images), ("gallery", plan.gallery))
        for one in some
        if one.uri in failed
    ]
    store.replace_table("rejected", [pa.Table.from_pylist(rows, REJECTED)] if rows else [])
    codes = {role: dict(Counter(row["code"] for row in rows if row["role"] == role)) for role in ("image", "gallery")}
    return Identified(
        len(plan.images), len(images), codes["image"], codes["gallery"], len(plan.todo) - len(new), round(took, 2)
    )


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
    names = [stem(one.name) for one in gallery]
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
    rows = ray.data.from_items(said).map_batches(
        TextEmbedder, fn_constructor_args=[stage], batch_size=stage.images_per_call, **ray_actors(stage)
    )
    found = sorted(rows_of(rows), key=lambda row: row["number"])
    return np.stack([row["embedding"] for row in found])

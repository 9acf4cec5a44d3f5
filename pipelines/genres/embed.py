"""Films as folders or tars of images, or as video files, embedded image by image: no vector is of another image.

list   task     1 -> N: a film's images, in the order of their names as people count
read   task     1 -> 1: files become squares (of a video file: the middle of each shot, decoded in a killable child;
                        a tar is streamed once)
embed  actors   1 -> 1: squares become vectors, in batches that go across films
gather driver   N -> 1: a film's array, once all of its images are there
"""

from __future__ import annotations

import io
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa

from actors.core import storage
from actors.core.addresses import short_name
from actors.core.computed import COMPUTED, mixed
from actors.core.errors import UserError, check_all
from actors.core.stage import Batch, Row, Stage
from actors.core.store import Store
from actors.genres.film_images import ImagesConfig, cut_films, list_images, stream_tars
from actors.media.archives import is_tar
from actors.media.film import VIDEO_SUFFIXES
from actors.media.images import Shape, natural, read_images
from actors.media.shot_detection.shots import NETWORKS
from actors.models.clip import EmbeddingsConfig, ImageEmbedder, check_clip, input_shape
from pipelines.core.film_vectors import REQUESTS
from pipelines.core.progress import Progress
from pipelines.core.ray_data import batches, fitted, in_blocks, ray_actors, ray_task, set_context

if TYPE_CHECKING:
    from ray.data import Dataset

log = logging.getLogger(__name__)

LIST = Stage(num_cpus=0.1)
"""Listing a film's images."""
REJECTED = pa.schema([(name, pa.string()) for name in ("film", "name", "uri", "code", "message")])
"""One row for each image that could not be read, and one with no name for each film that could not to its end."""
ALIKE = "To have all of one device, embed into another output."
"""What to do where vectors were computed in several ways."""


@dataclass(frozen=True)
class Source:
    """A film of the input."""

    film: str
    """Its id: the name of its folder or, without the suffix, of its file."""
    uri: str
    """Where it lies."""
    kind: Literal["folder", "tar", "video"]
    """A folder or a tar of images, or a video file."""


def clip() -> EmbeddingsConfig:
    """The model of the reference, in batches that go across films."""
    return EmbeddingsConfig(model="ViT-B-32-quickgelu", pretrained="openai", batch_size=256)


@dataclass(frozen=True)
class EmbedConfig:
    """Settings of `embed`."""

    input: str
    """A folder or prefix of films: one folder or tar of images per film (MovieNet's layout), or video files. Tars are
    streamed, never unpacked."""
    output: str = "output/genres"
    """Folder or s3:// prefix for features/ (one array per film) and rejected/."""
    embeddings: EmbeddingsConfig = field(default_factory=clip)
    """The CLIP model that embeds images, and its actors."""
    images: ImagesConfig = field(default_factory=ImagesConfig)
    """Reading images, and finding key frames in video files."""
    autoscaling: bool = False
    """Set on an autoscaling cluster: pools stay as requested instead of being scaled to the nodes that are up."""


@dataclass(frozen=True)
class EmbedPlan:
    """What `embed` has to do."""

    sources: list[Source]
    """Every film of the input."""
    todo: list[Source]
    """Those without vectors."""

    def stages(self, config: EmbedConfig) -> tuple[dict[str, Stage], dict[str, Stage]]:
        """Actor pools and task stages, by name."""
        return {"embed": config.embeddings}, stages_of(self.todo, config.images)


@dataclass(frozen=True)
class EmbedOutcome:
    """What `embed` has made of the images of all films."""

    embedded: int
    """Images with a vector."""
    rejected: dict[str, int]
    """Images without one, by code."""
    new: int
    """Images that this run has embedded."""
    seconds: float
    notes: list[str]
    """Which vectors are not comparable, in sentences."""
    decoders: dict[str, int]
    """Video files by what has decoded them."""


@dataclass(frozen=True)
class Embedded:
    """The vectors of a film."""

    film: str
    vectors: np.ndarray
    """float16 (N, D), one for each sound image, in order; D is 0 where there is none."""
    names: list[str]
    """N names: of the image in its folder, or of the shot."""
    start_s: list[float]
    """N times in seconds at which the shots of a video file begin; none for a folder."""
    rejected: list[dict[str, str]]
    """Rows of REJECTED."""
    decoder: str = ""
    """What has decoded a video file, as `actors.media.film.Film.decoder`."""
    fallback: str = ""
    """Why that is not what was asked for."""


def find_films(input: str) -> list[Source]:
    """The films below a path or s3://: folders and tars of images and video files, sorted by id; opens none.

    Warns of other files beside them.
    Raises ValueError where there is none, and where two films have one id.
    """
    root = storage.absolute(input)
    below, files = storage.children(root)
    found = [Source(short_name(name), storage.join(root, name), "folder") for name in below]
    others = []
    for entry in files:
        if is_tar(entry.name) or entry.name.lower().endswith(tuple(VIDEO_SUFFIXES)):
            kind = "tar" if is_tar(entry.name) else "video"
            found.append(Source(short_name(PurePosixPath(entry.name).stem), entry.uri, kind))
        else:
            others.append(entry.name)
    if not found:
        raise UserError(f"{input} has neither folders of images nor video files or tars. Give one of them per film.")
    if others:
        log.warning(
            "%s: %d files beside the films are left out, such as %s: a film is a folder or .tar of images, or a video",
            *(input, len(others), ", ".join(others[:3])),
        )
    counts = Counter(source.film for source in found)
    if twice := sorted(film for film, count in counts.items() if count > 1):
        raise UserError(f"Several films in {input} have the name {', '.join(twice[:5])}. Rename or move them.")
    return sorted(found, key=lambda source: natural(source.film))


def plan_embed(config: EmbedConfig) -> EmbedPlan:
    """The films of the input and those left to do; raises UserError where the model or the output does not fit."""
    store = Store(config.output)

    def check_output() -> None:
        made = store.read_json("embedding.json")
        if made and made["model"] != config.embeddings.name():
            # Vectors of two models lie in two spaces.
            raise UserError(f"{config.output} has vectors of {made['model']}. Use another output.")

    def found() -> list[Source]:
        sources = find_films(config.input)
        if any(source.kind == "video" for source in sources):
            config.images.video.check_gpus(config.images.shots.detector in NETWORKS)
        return sources

    _, sources, _ = check_all(check_output, found, partial(check_clip, config.embeddings))
    done = stored_films(store)
    return EmbedPlan(sources, [source for source in sources if source.film not in done])


def embed(config: EmbedConfig, plan: EmbedPlan) -> EmbedOutcome:
    """Embed the films that are left, on a Ray that runs where there are any."""
    store, started = Store(config.output), time.monotonic()
    store.write_json({"model": config.embeddings.name()}, "embedding.json")
    if plan.todo:
        stages = fitted(*plan.stages(config), config.autoscaling)
        films = embed_films(plan.todo, ImageEmbedder, input_shape(config.embeddings), config.images, stages)
        store_films(store, films, len(plan.todo), config.embeddings.computed)
    seconds, left = time.monotonic() - started, {source.film for source in plan.todo}
    names = [source.film for source in plan.sources]
    rejected: Counter[str] = Counter()
    decoders: Counter[str] = Counter()
    computed: Counter[str] = Counter()
    embedded = new = 0
    for name, about in zip(names, read_about(store, names), strict=True):
        rejected.update(about["rejected"])
        computed[about.get(COMPUTED, "")] += len(about["images"])
        # Those of earlier versions do not say.
        decoders.update(filter(None, [about.get("decoder")]))
        embedded += len(about["images"])
        new += len(about["images"]) if name in left else 0
    notes = mixed(computed, "vectors", "images", ALIKE)
    return EmbedOutcome(embedded, dict(rejected), new, seconds, notes, dict(decoders))


def embed_films(
    sources: Sequence[Source],
    embedder: Callable[[Any], Callable[[Batch], Batch]],
    shape: Shape,
    images: ImagesConfig,
    stages: dict[str, Stage],
) -> Iterator[Embedded]:
    """Embed films; each comes as soon as all of its images are done, in no order.

    Args:
        embedder: an actor class made of its stage, as `actors.models.clip.ImageEmbedder`: reads image and error, adds
            vector float16 (N, D), drops image.
        stages: `list`, `read`, `video` and `embed` as they fit the cluster; `embed` is what the embedder is made of.
    """
    set_context()
    model: Any = stages["embed"]
    # Most films have a batch of images at least.
    rows = _rows(sources, shape, images, stages).map_batches(
        embedder, fn_constructor_args=[model], batch_size=model.batch_size, **ray_actors(model, inputs=len(sources))
    )
    yield from gathered(batches(rows))


def stages_of(sources: Sequence[Source], images: ImagesConfig) -> dict[str, Stage]:
    """The tasks that these films need, by name."""
    kinds = {source.kind for source in sources}
    stages = {"list": LIST} if "folder" in kinds else {}
    stages |= {"read": images.read} if kinds - {"video"} else {}
    return stages | ({"video": images.video} if "video" in kinds else {})


def _rows(sources: Sequence[Source], shape: Shape, images: ImagesConfig, stages: dict[str, Stage]) -> Dataset:
    """One row an image: film, number, images, name, uri, start_s, image, error, message.

    images: how many the film has, -1 where that is not known yet. A film may end with a row of its own, number -1.
    """
    kinds: list[Dataset] = []
    if folders := [source for source in sources if source.kind == "folder"]:
        size = stages["read"].batch_size
        named = _films(folders, 8).flat_map(list_images, **ray_task(stages["list"]))
        read: Any = partial(read_images, shape=shape)
        kinds.append(
            in_blocks(named, size, stages["list"]).map_batches(read, batch_size=size, **ray_task(stages["read"]))
        )
    whole: dict[str, tuple[Any, str]] = {"tar": (stream_tars, "read"), "video": (cut_films, "video")}
    for kind, (rows_of, stage) in whole.items():
        if files := [source for source in sources if source.kind == kind]:
            task: Any = partial(rows_of, shape=shape, images=images)
            kinds.append(_films(files, 1).map_batches(task, batch_size=1, **ray_task(stages[stage])))
    return kinds[0].union(*kinds[1:]) if len(kinds) > 1 else kinds[0]


def _films(sources: Sequence[Source], in_a_block: int) -> Dataset:
    import ray

    rows: Any = [{"film": source.film, "uri": source.uri} for source in sources]
    return ray.data.from_items(rows, override_num_blocks=min(-(-len(rows) // in_a_block), 1000))


class _Film:
    """A film whose rows are still coming."""

    def __init__(self) -> None:
        self.images = -1
        self.rows: list[Row] = []
        self.own: list[Row] = []

    @property
    def complete(self) -> bool:
        return len(self.rows) == self.images


def gathered(parts: Iterable[Batch]) -> Iterator[Embedded]:
    """Films from batches of their rows in any order, each as soon as it is complete."""
    open_films: dict[str, _Film] = {}
    for batch in parts:
        for values in zip(*batch.values(), strict=True):
            row = dict(zip(batch, values, strict=True))
            film = open_films.setdefault(str(row["film"]), _Film())
            film.images = max(film.images, int(row["images"]))
            (film.rows if row["number"] >= 0 else film.own).append(row)
        for name in [name for name, film in open_films.items() if film.complete]:
            yield _embedded(name, open_films.pop(name))
    if open_films:
        raise RuntimeError(f"rows of {', '.join(list(open_films)[:5])} are missing: run the same command again")


def _embedded(name: str, film: _Film) -> Embedded:
    # A tar holds its files in any order.
    rows = sorted(film.rows, key=lambda row: natural(str(row["name"])))
    sound = [row for row in rows if not row["error"]]
    vectors = np.stack([row["vector"] for row in sound]) if sound else np.zeros((0, 0), np.float16)
    rejected = [
        {"film": name, **{column: str(row[key]) for column, key in _REJECTED_FROM.items()}}
        for row in (*rows, *film.own)
        if row["error"]
    ]
    times = [float(row["start_s"]) for row in sound if film.own and not np.isnan(row["start_s"])]
    names = [str(row["name"]) for row in sound]
    last = film.own[-1] if film.own else {"decoder": "", "message": "", "error": ""}
    fallback = "" if last["error"] else str(last["message"])
    return Embedded(name, vectors.astype(np.float16), names, times, rejected, str(last["decoder"]), fallback)


_REJECTED_FROM = {"name": "name", "uri": "uri", "code": "error", "message": "message"}


# --------------------------------------------------------------------------------------------------------------- stored


def stored_films(store: Store) -> set[str]:
    """Ids of the films whose vectors are in features/."""
    names = (entry.name for entry in storage.listing(store.uri("features"), (".json",)))
    return {name.removesuffix(".json") for name in names}


def store_films(store: Store, films: Iterator[Embedded], total: int, computed: str = "") -> None:
    """Write each film as features/FILM.npy, rows of rejected/, and last features/FILM.json, by which it counts as done.

    FILM.json holds `images` (names of the rows), `start_s` of shots, how often each code was `rejected`, and on what
    vectors were `computed`.
    """
    with Progress("embed", total, "films") as progress:
        for film in films:
            _store_film(store, film, computed)
            progress.fail(Counter(row["code"] for row in film.rejected))
            progress.advance()


def _store_film(store: Store, film: Embedded, computed: str) -> None:
    if len(film.names):
        array = io.BytesIO()
        np.save(array, film.vectors)
        storage.write_bytes(store.uri("features", f"{film.film}.npy"), array.getvalue())
    if film.rejected:
        store.write_part("rejected", pa.Table.from_pylist(film.rejected, REJECTED), [film.film])
    codes = Counter(row["code"] for row in film.rejected)
    about = {"images": film.names, "start_s": film.start_s, "rejected": dict(codes), COMPUTED: computed}
    about |= {name: value for name in ("decoder", "fallback") if (value := getattr(film, name))}
    store.write_json(about, "features", f"{film.film}.json")


def read_about(store: Store, films: Sequence[str]) -> Iterator[dict[str, Any]]:
    """What FILM.json holds, of each film."""

    def read(film: str) -> dict[str, Any]:
        return json.loads(storage.read_bytes(store.uri("features", f"{film}.json")))

    with ThreadPoolExecutor(REQUESTS) as threads:
        yield from threads.map(read, films)


def read_stored(store: Store, films: Sequence[str]) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
    """Of each film its vectors float16 (N, D), (0, 0) where there are none, and what FILM.json holds."""

    def read(film: str, about: dict[str, Any]) -> bytes:
        return storage.read_bytes(store.uri("features", f"{film}.npy")) if about["images"] else b""

    known = list(read_about(store, films))
    with ThreadPoolExecutor(REQUESTS) as threads:
        for data, about in zip(threads.map(read, films, known), known, strict=True):
            # Not in the threads: two headers that are parsed at once fail in Python 3.11, once in a great while.
            yield np.load(io.BytesIO(data), allow_pickle=False) if data else np.zeros((0, 0), np.float16), about

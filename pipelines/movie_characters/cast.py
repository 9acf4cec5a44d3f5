"""Whether the faces of key frames are whom MovieNet's annotations say: accuracy over annotated boxes of the cast.

An annotated person with a face box has the answer of the face that overlaps it most; one with a body box only, as most
are, that of a face whose middle lies in the body, the nearest to where its head is. A face is of one person.
"""

from __future__ import annotations

import io
import posixpath
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from actors.core import storage
from actors.core.errors import UserError
from actors.core.store import Store
from actors.media.images import ImageError, read_image
from actors.media.movienet import Appearance, FormError, key_frame_of, read_annotation
from pipelines.core.metrics import wilson
from pipelines.movie_characters.face_answers import NAME, area
from pipelines.movie_characters.pictures import find_pictures
from pipelines.movie_characters.results import UNKNOWN

HEAD = 0.12
"""Where the middle of a head is in the box of a body, as a share of its height from the top."""
OUTCOMES = ("right", "other", "unknown", "no_face", "stranger_right", "stranger_named", "stranger_no_face")


@dataclass(frozen=True)
class CastConfig:
    """Settings of `score cast`."""

    input: str
    """The output of `identify-faces`, with face_answers.parquet."""
    output: str
    """Where cast.parquet and cast.json are written: a path or s3://."""
    images: str | list[str]
    """The key frames that were identified, as the input of `identify-faces`. Their sizes are read."""
    annotations: str
    """MovieNet's annotations: a folder or prefix with one FILM.json per film."""
    gallery: str | list[str]
    """The gallery of `identify-faces`. Its classes are ids of people as the annotations have them (nm0000071)."""
    overlap: float = 0.5
    """A face is that of an annotated face box from this intersection over union on, in (0, 1]."""

    def __post_init__(self) -> None:
        if not 0 < self.overlap <= 1:
            raise UserError(f"overlap lies in (0, 1], not at {self.overlap}")


@dataclass(frozen=True)
class CastPlan:
    """Key frames with what is annotated and what was answered."""

    people: frozenset[str]
    """Classes of the gallery."""
    frames: list[tuple[str, str, list[Appearance]]]
    """Name, URI and annotated people of each key frame that has any."""
    faces: dict[str, list[dict[str, Any]]]
    """By key frame, rows of face_answers.parquet."""
    without: dict[str, int]
    """Films without annotations, by error code."""


def plan_cast(config: CastConfig) -> CastPlan:
    """Read answers and annotations; raises UserError where none belong together."""
    uri = storage.join(config.input, f"{NAME}.parquet")
    if not storage.exists(uri):
        raise UserError(f"{uri} does not exist. Run `identify-faces` first.")
    faces: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in pq.read_table(io.BytesIO(storage.read_bytes(uri))).to_pylist():
        faces[row["image"]].append(row)
    films: dict[str, dict[tuple[int, int], list[Appearance]] | None] = {}
    without: Counter[str] = Counter()
    frames = []
    for picture in find_pictures(config.images, "images", labelled=False):
        frame = key_frame_of(picture.name)
        film = posixpath.dirname(picture.name) or posixpath.basename(posixpath.dirname(picture.uri))
        if frame is None:
            continue
        if film not in films:
            try:
                films[film] = _by_frame(storage.join(config.annotations, f"{film}.json"))
            except FormError as error:
                films[film] = None
                without[error.code] += 1
        if people := (films[film] or {}).get(frame):
            frames.append((picture.name, picture.uri, people))
    if not frames:
        why = (
            ", ".join(f"{code} {count}" for code, count in without.items()) or "none of their key frames is among them"
        )
        raise UserError(f"images={config.images} holds no key frame with annotated people ({why}).")
    gallery = find_pictures(config.gallery, "gallery")
    return CastPlan(frozenset(one.cls for one in gallery), frames, dict(faces), dict(without))


def _by_frame(uri: str) -> dict[tuple[int, int], list[Appearance]]:
    found: dict[tuple[int, int], list[Appearance]] = defaultdict(list)
    for one in read_annotation(uri).cast:
        if one.face or one.body:
            found[one.shot, one.image].append(one)
    return found


def score_cast(config: CastConfig, plan: CastPlan) -> dict[str, Any]:
    """Write cast.parquet, a row an annotated person, and cast.json; returns what that holds."""
    import pyarrow as pa

    rows: list[dict[str, Any]] = []
    broken: list[str] = []
    for name, uri, people in plan.frames:
        try:
            width, height = read_image(uri).size
        except ImageError as error:
            broken.append(f"{name}: {error.code}")
            continue
        faces = plan.faces.get(name, [])
        boxes = [
            [row["left"] / width, row["top"] / height, row["right"] / width, row["bottom"] / height] for row in faces
        ]
        for one, face in zip(people, matched(people, boxes, config.overlap), strict=True):
            answer = "" if face is None else faces[face]["answer"]
            outcome = _outcome(one.person, answer, plan.people)
            about = {"image": name, "annotation": one.id, "person": one.person, "answer": answer, "outcome": outcome}
            rows.append({**about, "face": face})
    store = Store(config.output)
    store.write_table(pa.Table.from_pylist(rows), "cast.parquet")
    counts = Counter(row["outcome"] for row in rows)
    found = {
        "outcomes": {name: counts[name] for name in OUTCOMES},
        "broken_images": broken,
        "films_without_annotations": plan.without,
        "known": _share(counts, "right", ("right", "other", "unknown", "no_face")),
        "known_with_a_face": _share(counts, "right", ("right", "other", "unknown")),
        "strangers": _share(counts, "stranger_right", ("stranger_right", "stranger_named")),
    }
    store.write_json(found, "cast.json")
    return found


def _outcome(person: str, answer: str, gallery: frozenset[str]) -> str:
    """What an answer, "" where no face was found, is worth for an annotated person, "" for nobody of the credits."""
    if person in gallery:
        return "no_face" if not answer else "right" if answer == person else "unknown" if answer == UNKNOWN else "other"
    return "stranger_no_face" if not answer else "stranger_right" if answer == UNKNOWN else "stranger_named"


def _share(counts: Counter[str], right: str, of: Sequence[str]) -> dict[str, Any]:
    """A share with its 95 % interval by Wilson; null of nothing."""
    total = sum(counts[name] for name in of)
    if not total:
        return {"boxes": 0, "share": None, "low": None, "high": None}
    low, high = wilson(counts[right] / total, total)
    return {"boxes": total, "share": counts[right] / total, "low": low, "high": high}


def matched(people: Sequence[Appearance], faces: Sequence[Sequence[float]], overlap: float) -> Iterator[int | None]:
    """The number of each person's face, None where there is none; boxes are shares of width and height."""
    from scipy.optimize import linear_sum_assignment

    worth = np.array([[_worth(one, face, overlap) for face in faces] for one in people]).reshape(
        len(people), len(faces)
    )
    chosen = dict(zip(*map(np.ndarray.tolist, linear_sum_assignment(worth, maximize=True)), strict=True))
    for number in range(len(people)):
        face = chosen.get(number)
        yield face if face is not None and worth[number, face] > 0 else None


def _worth(one: Appearance, face: Sequence[float], overlap: float) -> float:
    """How well a face fits an annotated person, 0 where it does not."""
    if one.face:
        found = iou(one.face, face)
        # An overlap says more than a place in a body.
        return 1 + found if found >= overlap else 0.0
    assert one.body
    x0, y0, x1, y1 = one.body
    x, y = (face[0] + face[2]) / 2, (face[1] + face[3]) / 2
    if not (x0 <= x <= x1 and y0 <= y <= y1):
        return 0.0
    return float(np.exp(-np.hypot((x - (x0 + x1) / 2) / (x1 - x0), (y - y0) / (y1 - y0) - HEAD)))


def iou(one: Sequence[float], other: Sequence[float]) -> float:
    """Intersection over union of two boxes left, top, right, bottom."""
    both = [max(one[0], other[0]), max(one[1], other[1]), min(one[2], other[2]), min(one[3], other[3])]
    shared = area(both) if both[0] < both[2] and both[1] < both[3] else 0.0
    return shared / (area(one) + area(other) - shared)

"""Who is on screen when in a film, by all faces of its frames: tracks of each shot, and whom of a gallery they show."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from actors.core.stage import Row
from pipelines.movie_characters.films.tracks import Faces, Seen, TracksConfig, best_views, compare, join, unit

if TYPE_CHECKING:
    import pandas as pd

TRACKS = pa.schema(
    [
        ("film", pa.string()),
        ("track", pa.int32()),
        ("shot", pa.int32()),
        ("start_s", pa.float64()),
        ("end_s", pa.float64()),
        ("identity", pa.string()),
        ("by", pa.string()),
        ("cluster", pa.string()),
        ("nearest", pa.string()),
        ("cosine", pa.float32()),
        ("probability", pa.float32()),
        ("margin", pa.float32()),
        ("times", pa.list_(pa.float64())),
        ("images", pa.list_(pa.string())),
        ("boxes", pa.list_(pa.list_(pa.float32()))),
        ("confidences", pa.list_(pa.float32())),
        ("best", pa.int32()),
        ("vector", pa.list_(pa.float16())),
    ]
)
"""One row per track. identity: the answer; by: whether its faces (face) or its bodies (body) say so; cluster: unknown_N
where the gallery does not explain it, else empty; nearest: the class of the gallery that is nearest; confidences: of
the detector, null where an earlier version has stored none; best: the number of its largest face; vector: the mean of
its best views."""

_EXACT = {pa.list_(pa.float32()): pa.list_(pa.float64()), pa.float32(): pa.float64()}
BETWEEN = pa.schema(
    [
        *(pa.field(one.name, _EXACT.get(one.type, one.type)) for one in TRACKS if one.name not in ("boxes", "vector")),
        ("boxes", pa.list_(pa.list_(pa.float64()))),
        ("vector", pa.list_(pa.float32())),
        ("body", pa.list_(pa.float32())),
    ]
)
"""One row per track of a film until it is answered, with all that it is computed from, unrounded."""

FacesOf = Callable[[str], Seen]
"""Faces of an image."""


@dataclass(frozen=True)
class Judge:
    """Whom a gallery knows, and from where on it says so."""

    gallery: np.ndarray
    """float32 (G, D), of length 1."""
    classes: Sequence[str]
    """(G,): the class of each picture."""
    threshold: float
    """Least cosine of a track with somebody of the gallery."""
    scale: float | None = None
    """By how much a cosine rises while the odds of one person rise e-fold; None: probabilities are not stated."""

    def probability(self, cosine: float) -> float:
        """Of one person, where strangers are as frequent as the one: a half at the threshold; NaN: not stated."""
        if self.scale is None:
            return math.nan
        return 1 / (1 + math.exp(-(cosine - self.threshold) / self.scale))


@dataclass
class Track:
    """A face through a shot."""

    film: str
    number: int
    """In the film, from 0."""
    shot: int
    times: list[float]
    end_s: float
    """Until when its last frame stands."""
    images: list[str]
    boxes: np.ndarray
    confidences: np.ndarray
    vector: np.ndarray
    identity: str = ""
    cluster: str = ""
    nearest: str = ""
    cosine: float = math.nan
    probability: float = math.nan
    margin: float = math.nan
    by: str = "face"
    body: np.ndarray | None = None
    """The mean vector of its bodies; None where there is none."""

    @property
    def start_s(self) -> float:
        """When it is first seen."""
        return self.times[0]

    @property
    def best(self) -> int:
        """The number of its largest face."""
        return int(best_views(self.boxes, 1)[0])

    @property
    def key(self) -> str:
        """What names it in every run that sees the same faces."""
        return f"{self.images[0]} {','.join(str(round(float(value))) for value in self.boxes[0])}"

    @classmethod
    def of(cls, row: Row) -> Track:
        """The track of a row of BETWEEN or TRACKS."""
        row = dict(row)
        boxes, vector, body = (row.pop(name, None) for name in ("boxes", "vector", "body"))
        sure = np.array([math.nan if one is None else one for one in row.pop("confidences")])
        del row["start_s"], row["best"]
        return cls(
            number=row.pop("track"),
            boxes=np.array(boxes),
            confidences=sure,
            vector=np.array(vector, np.float32),
            body=None if body is None else np.array(body, np.float32),
            **row,
        )

    def row(self, schema: pa.Schema) -> Row:
        """Its row of BETWEEN or TRACKS."""
        own = {"track": self.number, "boxes": self.boxes.tolist(), "body": self.body}
        if schema is TRACKS:
            own |= {"vector": self.vector.astype(np.float16), "confidences": self.known_confidences}
        return {name: own[name] if name in own else getattr(self, name) for name in schema.names}

    @property
    def known_confidences(self) -> list[float | None]:
        """Of each face; None where none is stored."""
        return [None if math.isnan(one) else round(one, 4) for one in self.confidences.tolist()]


def table_of(tracks: Sequence[Track], schema: pa.Schema) -> pa.Table:
    """Tracks as a table, of BETWEEN or TRACKS."""
    return pa.Table.from_pylist([track.row(schema) for track in tracks], schema)


def find_tracks(about: Row, film: str, faces_of: FacesOf, config: TracksConfig, alike: float) -> list[Track]:
    """The tracks of a film.

    about: what shots/FILM.json holds; faces_of: the faces of an image by its name.
    """
    found: list[Track] = []
    for shot in about["shots"]:
        ends = [*shot["times"], shot["end_s"]][1:]
        seen = [faces_of(name) for name in shot["images"]]
        numbers = np.repeat(np.arange(len(seen)), [len(one.boxes) for one in seen])
        if not len(numbers):
            continue
        boxes, vectors, confidences = map(np.concatenate, zip(*(one for one in seen if len(one.boxes)), strict=True))
        labels = join(Faces(numbers, boxes, vectors), np.array(shot["times"]), config, alike)
        for label in range(int(labels.max()) + 1):
            own = np.flatnonzero(labels == label)
            frames = numbers[own].tolist()
            views = own[best_views(boxes[own], config.views)]
            times, images = ([some[i] for i in frames] for some in (shot["times"], shot["images"]))
            mean, sure, end = unit(vectors[views].mean(0)), confidences[own], ends[frames[-1]]
            found.append(Track(film, len(found), int(shot["shot"]), times, end, images, boxes[own], sure, mean))
    return found


def answer_tracks(tracks: Sequence[Track], judge: Judge) -> None:
    """Compare tracks with the gallery; those that it does not explain have no identity yet."""
    if not tracks:
        return
    classes, numbers = np.unique(np.array(judge.classes, str), return_inverse=True)
    found = compare(np.stack([track.vector for track in tracks]), judge.gallery, numbers)
    for track, nearest, cosine, margin in zip(tracks, *(part.tolist() for part in found), strict=True):
        track.nearest, track.cosine, track.margin = str(classes[nearest]), cosine, margin
        track.probability = judge.probability(cosine)
        track.identity = track.nearest if cosine >= judge.threshold else ""


def film_record(about: Row, tracks: Sequence[Track]) -> dict[str, Any]:
    """What the JSON of a film holds: its tracks, each with all its faces."""
    numbers = ("cosine", "probability", "margin")
    words = ("shot", "start_s", "end_s", "identity", "by", "cluster", "nearest")
    rows = []
    for track in tracks:
        row = {"track": track.number} | {name: getattr(track, name) for name in words}
        # JSON has no NaN.
        for name in numbers:
            value = getattr(track, name)
            row[name] = None if math.isnan(value) else round(value, 4)
        faces = zip(track.images, track.times, track.boxes.tolist(), track.known_confidences, strict=True)
        row["faces"] = [dict(zip(("image", "time_s", "box", "confidence"), face, strict=True)) for face in faces]
        rows.append(row)
    return {"film": about["film"], "uri": about["uri"], "tracks": rows}


def shot_votes(shot: Row, tracks: Sequence[Track]) -> pd.DataFrame:
    """Who is in how many frames of a shot, most first: character, votes, share, score.

    A frame votes for everybody whom it shows. score: the mean cosine of the character's tracks; NaN for strangers, who
    come last of as many votes. tracks: of the shot.
    """
    import pandas as pd

    rows = []
    for character in dict.fromkeys(track.identity for track in tracks):
        own = [track for track in tracks if track.identity == character]
        votes = len({image for track in own for image in track.images})
        cosines = [track.cosine for track in own if track.by == "face" and not track.cluster]
        score = float(np.mean(cosines)) if cosines else np.nan
        rows.append((character, votes, votes / len(shot["images"]), score))
    rows.sort(key=lambda row: (-row[1], math.isnan(row[3]), -np.nan_to_num(row[3]), row[0]))
    return pd.DataFrame(rows, columns=["character", "votes", "share", "score"])

"""Who is on screen when, by all faces of all frames: tracks, whom each shows, and people without a name.

faces    of every frame, as `identify-faces` has stored them
tracks   of each shot, compared with the gallery; those that it does not explain are clustered over all films
tables   tracks.parquet, people.csv, people.json (which cluster a track has had, also in earlier runs)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from actors.core.stage import Row
from actors.core.store import Store
from pipelines.movie_characters.films.people import (
    CLUSTER,
    NAME,
    check_names,
    cluster_tracks,
    number_clusters,
    read_names,
)
from pipelines.movie_characters.films.tracks import Faces, Seen, TracksConfig, best_views, compare, join, unit
from pipelines.movie_characters.results import write_csv

if TYPE_CHECKING:
    import pandas as pd

TABLE, PEOPLE, KNOWN = "tracks.parquet", "people.csv", "people.json"
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
    ends: list[float]
    """Until when each frame stands."""
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
    def end_s(self) -> float:
        """Until when its last frame stands."""
        return self.ends[-1]

    @property
    def best(self) -> int:
        """The number of its largest face."""
        return int(best_views(self.boxes, 1)[0])

    @property
    def key(self) -> str:
        """What names it in every run that sees the same faces."""
        return f"{self.images[0]} {','.join(str(round(float(value))) for value in self.boxes[0])}"

    @property
    def row(self) -> Row:
        """Its row of TRACKS."""
        names = (name for name in TRACKS.names if name not in ("track", "boxes", "confidences", "vector"))
        row = {name: getattr(self, name) for name in names}
        row |= {"track": self.number, "boxes": self.boxes.tolist(), "vector": self.vector.astype(np.float16)}
        return row | {"confidences": self.known_confidences}

    @property
    def known_confidences(self) -> list[float | None]:
        """Of each face; None where none is stored."""
        return [None if math.isnan(one) else round(one, 4) for one in self.confidences.tolist()]


@dataclass(frozen=True)
class People:
    """Tracks with their answers, and who has no name."""

    tracks: list[Track]
    judge: Judge
    names: Mapping[str, str] = field(default_factory=dict)
    """Names that were given to clusters."""


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
            times, until, images = ([some[i] for i in frames] for some in (shot["times"], ends, shot["images"]))
            mean, sure = unit(vectors[views].mean(0)), confidences[own]
            found.append(Track(film, len(found), int(shot["shot"]), times, until, images, boxes[own], sure, mean))
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


def name_strangers(store: Store, tracks: Sequence[Track], alike: float, table: str) -> dict[str, str]:
    """Cluster the tracks without an identity, and name them; returns the names that clusters were given.

    table: the address of a table of names, or empty. Which cluster a track has had is kept in people.json.
    """
    names = read_names(table) if table else {}
    before: dict[str, str] = store.read_json(KNOWN) or {}
    strangers = [track for track in tracks if not track.identity]
    if strangers:
        films = np.unique([track.film for track in strangers], return_inverse=True)[1]
        spans = np.array([(track.start_s, track.end_s) for track in strangers])
        clusters = cluster_tracks(np.stack([track.vector for track in strangers]), films, spans, alike)
        found = number_clusters(clusters, [track.key for track in strangers], spans[:, 1] - spans[:, 0], before)
        for track, cluster in zip(strangers, found, strict=True):
            track.cluster, track.identity = cluster, names.get(cluster, cluster)
            before[track.key] = cluster
    check_names(table, names, before.values())
    store.write_json(before, KNOWN)
    return names


def write_tracks(store: Store, people: People) -> None:
    """Write tracks.parquet and people.csv, which is a table of names to be filled in."""
    import pandas as pd

    rows = pa.Table.from_pylist([track.row for track in people.tracks], TRACKS)
    store.write_table(rows, TABLE)
    strangers = [track for track in people.tracks if track.cluster]
    found = pd.DataFrame(
        [(track.cluster, track.film, track.end_s - track.start_s) for track in strangers],
        columns=[CLUSTER, "film", "seconds"],
    )
    table = found.groupby(CLUSTER).agg(tracks=("film", "size"), films=("film", "nunique"), seconds=("seconds", "sum"))
    table = table.sort_values("seconds", ascending=False, kind="stable").reset_index()
    table.insert(1, NAME, table[CLUSTER].map(people.names).fillna(""))
    write_csv(store.uri(PEOPLE), table.assign(seconds=table.seconds.astype(float).round(3)))


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

"""The genres of each scene of a film: its key frames, grouped by shots, are classified as films are."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from actors.core.errors import UserError
from actors.core.store import Store
from actors.genres.scenes import Division, NoScenesError
from pipelines.core.film_vectors import Films
from pipelines.genres.embed import read_stored, stored_films

if TYPE_CHECKING:
    from pipelines.genres.train import GenreModel

SCENES = pa.schema(
    [
        ("id", pa.string()),
        ("scene", pa.string()),
        ("first_shot", pa.int32()),
        ("last_shot", pa.int32()),
        ("start_s", pa.float64()),
        ("place", pa.string()),
        ("genre", pa.string()),
        ("probability", pa.float32()),
        ("chosen", pa.bool_()),
    ]
)
"""One row for each scene and genre. Shots are numbered from 0, both ends included; start_s is null for key frames of
folders and tars, which have no times; place: as an annotation names it."""


@dataclass(frozen=True)
class Part:
    """A scene, or so many shots, of a film."""

    film: str
    scene: str
    shots: tuple[int, int]
    """First and last shot with a key frame."""
    start_s: float
    place: str


@dataclass(frozen=True)
class Scenes:
    """Scenes that can be classified, and why others cannot."""

    films: Films
    """A film a scene, in pieces of their films."""
    parts: list[Part]
    without: dict[str, int]
    """Films without scenes, by error code."""


def read_scenes(uri: str, scenes: str | int) -> Scenes:
    """Scenes of the films that `embed` has put below a folder or prefix.

    scenes: a folder or prefix of MovieNet's annotations, or how many shots are one scene. Raises UserError where no
    film has scenes.
    """
    store = Store(uri)
    ids = sorted(stored_films(store))
    if not ids:
        raise UserError(f"{uri} is no output of `embed`: scenes need its names of key frames")
    without: Counter[str] = Counter()
    parts: list[Part] = []
    vectors: list[np.ndarray] = []
    for film, (rows, about) in zip(ids, read_stored(store, ids), strict=True):
        if not len(rows):
            without["no_images"] += 1
            continue
        try:
            division = Division(film, scenes)
            shots = np.array(division.shots_of(about["images"]))
            found = division.divided(about["images"])
        except NoScenesError as error:
            without[error.code] += 1
            continue
        for scene, inside in found.items():
            start = about["start_s"][inside[0]] if about["start_s"] else math.nan
            own = int(shots[inside].min()), int(shots[inside].max())
            parts.append(Part(film, scene.name, own, start, scene.place))
            vectors.append(rows[inside])
    if not parts:
        why = ", ".join(f"{code} {count}" for code, count in without.items())
        raise UserError(f"no film of {uri} has scenes ({why}). Give a folder of annotations, or a number of shots.")
    films = Films(
        vectors=np.concatenate(vectors),
        offsets=np.cumsum([0, *map(len, vectors)]),
        ids=[f"{part.film}/{part.scene}" for part in parts],
        genres=np.zeros((len(parts), 0), np.uint8),
        genre_names=[],
        directors=[""] * len(parts),
        owners=tuple(part.film for part in parts),
    )
    return Scenes(films, parts, dict(without))


def write_scenes(store: Store, scenes: Scenes, films: Films, model: GenreModel) -> None:
    """Write scenes.parquet; films: those of the scenes, with extra features where the model has them."""
    # Each scene is answered for itself.
    answers = model.probabilities(replace(films, owners=()))
    write_answers(store, scenes.parts, answers, model.genre_names, model.thresholds.tolist())


def write_answers(
    store: Store, parts: Sequence[Part], answers: np.ndarray, genres: Sequence[str], thresholds: Sequence[float]
) -> None:
    """Write scenes.parquet; answers: float (P, G), the probability of each genre for each scene."""
    rows = [
        {
            "id": part.film,
            "scene": part.scene,
            "first_shot": part.shots[0],
            "last_shot": part.shots[1],
            "start_s": None if math.isnan(part.start_s) else part.start_s,
            "place": part.place,
            "genre": genre,
            "probability": probability,
            "chosen": probability >= threshold,
        }
        for part, answer in zip(parts, answers.tolist(), strict=True)
        for genre, probability, threshold in zip(genres, answer, thresholds, strict=True)
    ]
    store.write_table(pa.Table.from_pylist(rows, SCENES), "scenes.parquet")


def check_scenes(scenes: str | int) -> None:
    """Raise UserError where a setting of scenes has no meaning."""
    if isinstance(scenes, int) and scenes < 0:
        raise UserError(f"scenes is a folder, or a number of shots from 1 (0: none), not {scenes}")

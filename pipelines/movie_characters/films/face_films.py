"""Who is on screen when in many films, by faces: the tracks of a film live on a worker, the driver has a line of each.

find     tasks    a film's tracks, compared with the gallery; they are stored until they are answered
cluster  driver   those of all films that the gallery does not explain, by one vector each
answer   tasks    pictures, timelines/FILM.*, and the film's rows of all tables
write    driver   the tables, film by film
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq

from actors.core import storage
from actors.core.store import Store
from pipelines.movie_characters.films.bodies import answer_backs, answer_turned, find_bodies
from pipelines.movie_characters.films.each_film import each_film
from pipelines.movie_characters.films.face_timeline import (
    BETWEEN,
    TRACKS,
    FacesOf,
    Judge,
    Track,
    answer_tracks,
    film_record,
    find_tracks,
    shot_votes,
    table_of,
)
from pipelines.movie_characters.films.people_files import (
    People,
    name_strangers,
    names_given,
    write_people,
    write_tracks,
)
from pipelines.movie_characters.films.people_pictures import candidates, chosen, remove_others, write_pictures
from pipelines.movie_characters.films.tables import (
    TIMELINES,
    Appearances,
    Tables,
    about_of,
    film_about,
    shot_row,
    write_editing,
    written,
)

if TYPE_CHECKING:
    import pandas as pd

    from pipelines.movie_characters.films.timeline import TimelineConfig

FOUND, ANSWERED = (f"{TIMELINES}/{{}}.{word}.parquet" for word in ("found", "answered"))
"""Tracks of a film on their way, removed at the end."""


@dataclass(frozen=True)
class Found:
    """What the driver keeps of the T tracks of a film's faces."""

    about: dict[str, str]
    """Decoder, error and message of the film."""
    frames: int
    identities: np.ndarray
    """object (T,), "" for the S of them whom the gallery does not explain."""
    spans: np.ndarray
    """float (T, 2): start and end in seconds."""
    views: np.ndarray
    areas: np.ndarray
    """(T, C): faces that may become pictures, as `candidates` gives them."""
    vectors: np.ndarray
    """float32 (S, D)."""
    keys: list[str]
    """(S,): what names a track in every run."""


@dataclass(frozen=True)
class Finder:
    """Find and compare the tracks of a film; they are stored."""

    config: TimelineConfig
    judge: Judge
    alike: float
    faces_of: Callable[[str], FacesOf]
    bodies_of: Callable[[str], FacesOf] | None

    def __call__(self, film: str) -> Found:
        """What the driver keeps of them."""
        config, store = self.config, Store(self.config.output)
        about = film_about(store, film)
        tracks = find_tracks(about, film, self.faces_of(film), config.tracks, self.alike)
        answer_tracks(tracks, self.judge)
        backs: list[Track] = []
        if self.bodies_of is not None:
            backs = find_bodies(about, film, tracks, self.bodies_of(film), config.tracks, config.bodies)
            answer_turned(tracks, config.bodies)
        store.write_table(table_of([*tracks, *backs], BETWEEN), FOUND.format(film))
        strangers = [track for track in tracks if not track.identity]
        some = [candidates(track, config.tracks.pictures) for track in tracks]
        shape = len(tracks), config.tracks.pictures
        return Found(
            about_of(about),
            sum(len(shot["images"]) for shot in about["shots"]),
            np.array([track.identity for track in tracks], object),
            np.array([(track.start_s, track.end_s) for track in tracks]).reshape(-1, 2),
            np.array([views for views, _ in some], np.int32).reshape(shape),
            np.array([areas for _, areas in some]).reshape(shape),
            np.array([track.vector for track in strangers], np.float32),
            [track.key for track in strangers],
        )


@dataclass(frozen=True)
class Answered:
    """What the driver keeps of a film whose tracks are answered."""

    tables: Tables
    index: pd.DataFrame
    """A row per track, as of `People`."""
    pictures: list[str]
    """Names of pictures of people."""


@dataclass(frozen=True)
class Answerer:
    """Write what is made of a film whose strangers have names."""

    config: TimelineConfig

    def __call__(
        self, film: str, faces: int, named: Sequence[tuple[str, str]], pictures: Sequence[tuple[int, int]]
    ) -> Answered:
        """The film's rows of all tables.

        faces: how many of its stored tracks are those of faces; named: cluster and identity of each stranger;
        pictures: the number of a track and of its face.
        """
        import pandas as pd

        store = Store(self.config.output)
        about = film_about(store, film)
        rows = pq.read_table(io.BytesIO(storage.read_bytes(store.uri(FOUND.format(film))))).to_pylist()
        tracks = [Track.of(row) for row in rows]
        tracks, backs = tracks[:faces], tracks[faces:]
        names = iter(named)
        for track in tracks:
            if not track.identity:
                track.cluster, track.identity = next(names)
        if backs:
            tracks += answer_backs(tracks, backs, self.config.bodies)
        store.write_table(table_of(tracks, TRACKS), ANSWERED.format(film))
        tables = _tables(film, about["shots"], tracks)
        if about["shots"]:
            store.write_json(film_record(about, tracks), TIMELINES, f"{film}.json")
        if len(tables.segments):
            write_editing(store, about, tables.segments)
        columns = ["film", "track", "identity", "cluster", "start_s", "end_s"]
        index = [(film, one.number, one.identity, one.cluster, one.start_s, one.end_s) for one in tracks]
        written = write_pictures(store, {track.number: track for track in tracks}, pictures)
        return Answered(tables, pd.DataFrame(index, columns=columns), written)


def _tables(film: str, shots: Sequence[dict[str, Any]], tracks: Sequence[Track]) -> Tables:
    """The rows of a film."""
    rows, votes, parts = [], [], []
    of_shot: dict[int, list[Track]] = {}
    for track in tracks:
        of_shot.setdefault(track.shot, []).append(track)
    for shot in shots:
        own = of_shot.get(shot["shot"], [])
        counts = shot_votes(shot, own)
        rows.append(shot_row(film, shot, counts))
        votes += [[*rows[-1][:4], *row] for row in counts.itertuples(index=False)]
        shares = dict(zip(counts.character, counts.share, strict=True))
        for track in own:
            score = np.nan if track.cluster or track.by == "body" else track.cosine
            found = [track.start_s, track.end_s, track.identity, len(track.images), shares[track.identity], score]
            parts.append([film, shot["shot"], *found, track.images[track.best]])
    return Tables.of(rows, votes, parts)


def face_appearances(
    config: TimelineConfig,
    films: Sequence[str],
    faces_of: Callable[[str], FacesOf],
    judge: Judge,
    bodies_of: Callable[[str], FacesOf] | None = None,
) -> Appearances:
    """Tracks of all films, and the tables and files that they end in.

    faces_of, bodies_of: what the frames of a film show; asked for by workers, a film at a time.
    """
    config = replace(config, output=storage.absolute(config.output))
    store = Store(config.output)
    alike = judge.threshold if config.tracks.alike is None else config.tracks.alike
    made = dict(each_film(Finder(config, judge, alike, faces_of, bodies_of), [(film,) for film in films]))
    found: list[Found] = [made.pop(film) for film in films]
    given = _given(store, config, films, found, alike)
    answers = dict(each_film(Answerer(config), given))
    answered: list[Answered] = [answers.pop(film) for film in films]
    return _gathered(store, config, films, found, answered, judge)


def _given(
    store: Store, config: TimelineConfig, films: Sequence[str], found: Sequence[Found], alike: float
) -> list[tuple[Any, ...]]:
    """Arguments of `Answerer` for each film: strangers are clustered and named, and pictures are chosen."""
    lost = [one.identities == "" for one in found]
    counts = [int(some.sum()) for some in lost]
    vectors = [one.vectors for one in found if len(one.vectors)]
    spans = [one.spans[some] for one, some in zip(found, lost, strict=True)]
    clusters = name_strangers(
        store,
        np.concatenate(vectors) if vectors else np.zeros((0, 0), np.float32),
        np.repeat(np.arange(len(films)), counts),
        np.concatenate(spans) if spans else np.zeros((0, 2)),
        [key for one in found for key in one.keys],
        alike,
    )
    names = names_given(store, config.names)
    named = [(cluster, names.get(cluster, cluster)) for cluster in clusters]
    starts = np.cumsum([0, *counts])
    of_film = [named[start : start + count] for start, count in zip(starts, counts, strict=False)]
    for one, some, own in zip(found, lost, of_film, strict=True):
        one.identities[some] = [identity for _, identity in own]
    pictures: list[list[tuple[int, int]]] = [[] for _ in films]
    firsts = np.cumsum([0, *(len(one.identities) for one in found)])
    if found and config.tracks.pictures:
        everybody = np.concatenate([one.identities for one in found]).tolist()
        for track, view in chosen(
            everybody, *(np.concatenate([getattr(one, name) for one in found]) for name in ("views", "areas"))
        ):
            film = int(np.searchsorted(firsts, track, "right")) - 1
            pictures[film].append((track - int(firsts[film]), view))
    sizes = [len(one.identities) for one in found]
    return list(zip(films, sizes, of_film, pictures, strict=True))


def _gathered(
    store: Store,
    config: TimelineConfig,
    films: Sequence[str],
    found: Sequence[Found],
    answered: Sequence[Answered],
    judge: Judge,
) -> Appearances:
    """Write what is of all films, and remove what was on its way."""
    import pandas as pd

    remove_others(store, (name for one in answered for name in one.pictures))
    some = [one.index for one in answered if len(one.index)]
    index = pd.concat(some, ignore_index=True) if some else answered[0].index
    write_tracks(store, [ANSWERED.format(film) for film in films])
    write_people(store, index, names_given(store, config.names))
    for film in films:
        storage.delete(store.uri(FOUND.format(film)))
        storage.delete(store.uri(ANSWERED.format(film)))
    people = People(store, judge, index, sum(one.frames for one in found))
    characters = sorted({*judge.classes, *index.identity})
    told = {film: one.about for film, one in zip(films, found, strict=True)}
    return written(store, Tables.joined([one.tables for one in answered]), characters, told, people)

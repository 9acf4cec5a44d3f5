"""Vectors of films with what is known of them, genres and directors: the rows that heads learn from."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any, Literal, NoReturn

import numpy as np

from actors.core import storage
from actors.core.errors import UserError, check_all
from actors.core.store import Store
from actors.media.movienet import FormError, Meta, read_meta
from pipelines.core.film_vectors import (
    REQUESTS,
    SEVERAL,
    Films,
    middles,
    read_arrays,
    read_films,
    write_films,
)
from pipelines.genres.embed import read_stored, stored_films

GENRES = (
    "Drama",
    "Comedy",
    "Thriller",
    "Action",
    "Romance",
    "Horror",
    "Crime",
    "Documentary",
    "Adventure",
    "Sci-Fi",
    "Family",
    "Fantasy",
    "Mystery",
    "Biography",
    "Animation",
    "History",
    "Music",
    "War",
    "Sport",
    "Musical",
    "Western",
)
"""The genres of the reference, 21, in its order."""


@dataclass(frozen=True)
class ProcessConfig:
    """Settings of `process`."""

    meta: str
    """Folder or s3:// prefix with one FILM.json per film, as MovieNet's: {"genres": [names], "director": [names]}. A
    director may also be an object with a `name`."""
    output: str = "output/genres"
    """Folder or s3:// prefix for films.npz: the output of `embed`, unless `input` is set."""
    input: str = ""
    """Vectors of your own instead of those of `embed`: a folder or prefix with one FILM.npy per film, a row a frame."""
    genres: list[str] | Literal["all"] = field(default_factory=lambda: list(GENRES))
    """Genres to classify, by name, in the order of tables. Others are counted and ignored. all: every genre that meta
    has (MovieNet: 28), the most frequent first. []: none, for vectors with directors only."""
    patch_size: int = 256
    """Key frames per piece of a film at most, sampled at equal steps from a longer film. Shorter pieces are padded on
    the left where a classifier needs one length."""
    number_patches: int = 1
    """Consecutive pieces per film, where it has enough key frames; more pieces mean more training rows."""

    def __post_init__(self) -> None:
        if self.genres != "all" and len(set(self.genres)) < len(self.genres):
            raise UserError(f"genres is `all` or a list of names, each once, not {self.genres}")
        if min(self.patch_size, self.number_patches) < 1:
            raise UserError(f"patch_size and number_patches start at 1: {self}")


@dataclass(frozen=True)
class Processed:
    """The outcome of `process`."""

    films: int
    """Films with features."""
    pieces: int
    """Rows of films.npz."""
    unknown_genres: dict[str, int]
    """Names that are not among the genres asked for, and how many films have them; they count as not there."""
    genres: int
    """Genres asked for."""
    directed: int
    """Films with a director."""
    rejected: list[dict[str, str]]
    """Films that are not in films.npz: film, code (no_images, no_meta, broken_meta, no_genres), message."""


def process(config: ProcessConfig) -> Processed:
    """Write films.npz from features/ and what meta says; raises UserError where no film is left."""
    store = Store(config.output)
    ids, vectors_of = _vectors(config)
    about = _known(config.meta, ids)
    count = Counter(genre for known in about if isinstance(known, Meta) for genre in known.genres)
    genres = sorted(count, key=lambda name: (-count[name], name)) if config.genres == "all" else list(config.genres)
    rejected: list[dict[str, str]] = []
    pieces: list[np.ndarray] = []
    names: list[str] = []
    owners: list[str] = []
    labels: list[np.ndarray] = []
    directors: list[str] = []
    for film, vectors, known in zip(ids, vectors_of, about, strict=True):
        if not len(vectors):
            rejected.append(
                {"film": film, "code": "no_images", "message": "it has no vector; see rejected/ of `embed`"}
            )
            continue
        if isinstance(known, FormError):
            rejected.append({"film": film, "code": known.code, "message": str(known)})
            continue
        label = np.isin(genres, known.genres)
        if genres and not label.any():
            why = f"none of its genres is known: {', '.join(known.genres) or 'it has none'}"
            rejected.append({"film": film, "code": "no_genres", "message": why})
            continue
        if not genres and not known.directors:
            rejected.append({"film": film, "code": "no_director", "message": "meta names no director"})
            continue
        for number, piece in enumerate(cut(vectors, config.patch_size, config.number_patches)):
            pieces.append(piece)
            names.append(f"{film}_{number}" if config.number_patches > 1 else film)
            owners.append(film)
            labels.append(label)
            directors.append(SEVERAL.join(known.directors))
    if not pieces:
        raise UserError(f"of {len(ids)} films none is left: {rejected[0]['film']}: {rejected[0]['message']}")
    films = Films(
        vectors=np.concatenate(pieces),
        offsets=np.cumsum([0, *(len(piece) for piece in pieces)]),
        ids=names,
        genres=np.stack(labels).astype(np.uint8),
        genre_names=genres,
        directors=directors,
        owners=tuple(owners) if config.number_patches > 1 else (),
    )
    write_films(films, store.uri("films.npz"))
    unknown = {name: films for name, films in count.most_common() if name not in genres}
    directed = len({owner for owner, director in zip(owners, directors, strict=True) if director})
    return Processed(len(ids), len(pieces), unknown, len(genres), directed, rejected)


def films_in(config: ProcessConfig) -> list[str]:
    """Ids of the films that have vectors."""
    if not config.input:
        return sorted(stored_films(Store(config.output)))
    names = (entry.name for entry in storage.listing(config.input, (".npy",)))
    return sorted(PurePosixPath(name).stem for name in names if "/" not in name)


def plan_process(config: ProcessConfig) -> list[str]:
    """Names of the films whose vectors there are; raises UserError where there are none, or meta has no film."""
    films = films_in(config)

    def check_films() -> None:
        if not films:
            _no_films(config)

    def check_meta() -> None:
        if next(storage.listing(config.meta, (".json",)), None) is None:
            raise UserError(f"meta={config.meta} holds no .json files. Give a folder with one FILM.json per film.")

    check_all(check_films, check_meta)
    return films


def _no_films(config: ProcessConfig) -> NoReturn:
    if config.input:
        raise UserError(f"{config.input} holds no .npy files. Give a folder with one FILM.npy per film.")
    place = Store(config.output).uri("features")
    raise UserError(f"{place} holds no films: `embed` first, or set input to a folder of .npy files")


def _vectors(config: ProcessConfig) -> tuple[list[str], Iterable[np.ndarray]]:
    """Films with their vectors."""
    if config.input:
        films = dict(read_arrays(config.input))
        if not films:
            _no_films(config)
        return list(films), films.values()
    store = Store(config.output)
    ids = sorted(stored_films(store))
    if not ids:
        _no_films(config)
    return ids, (vectors for vectors, _ in read_stored(store, ids))


def _known(meta: str, films: Sequence[str]) -> list[Meta | FormError]:
    """What meta says of each film, or why it says nothing."""

    def read(film: str) -> Meta | FormError:
        try:
            return read_meta(storage.join(meta, f"{film}.json"))
        except FormError as error:
            return error

    with ThreadPoolExecutor(REQUESTS) as threads:
        return list(threads.map(read, films))


def cut(vectors: np.ndarray, size: int, number: int) -> list[np.ndarray]:
    """A film (N, D) as `number` pieces of equal length, fewer where one has all `size` rows; of each piece at most
    `size` rows, the middles of equal steps."""
    parts = np.array_split(vectors, min(number, math.ceil(len(vectors) / size)))
    return [part[middles(len(part), size)] for part in parts]


def read_any(uri: str) -> Films:
    """Films of an npz file, of the output of `embed`, or of a folder or prefix with one FILM.npy per film."""
    if uri.endswith(".npz"):
        return read_films(uri)
    store = Store(uri)
    ids = sorted(stored_films(store))
    own = zip(ids, (vectors for vectors, _ in read_stored(store, ids)), strict=True)
    stored = own if ids else read_arrays(uri)
    found = [(film, vectors) for film, vectors in stored if len(vectors)]
    if not found:
        raise UserError(f"{uri} is no .npz file, no output of `embed`, and has no .npy files")
    return Films(
        vectors=np.concatenate([vectors for _, vectors in found]),
        offsets=np.cumsum([0, *(len(vectors) for _, vectors in found)]),
        ids=[film for film, _ in found],
        genres=np.zeros((len(found), 0), np.uint8),
        genre_names=[],
        directors=[""] * len(found),
    )


def fused(films: Films, others: Sequence[Films]) -> Films:
    """Films whose every frame is followed by the film's mean of other features, as of its sound or its plot.

    Each kind of vector has a length of 1, so that none drowns the others. Raises ValueError where a film lacks some.
    """
    if not others:
        return films
    vectors: list[np.ndarray] = [_unit(films.vectors.astype(np.float32))]
    names = films.owners or films.ids
    for other in others:
        means = {name: _unit(other.frames(i).astype(np.float32)).mean(0) for i, name in enumerate(other.ids)}
        if missing := sorted(set(names) - means.keys()):
            lacking = f"{', '.join(missing[:5])} ({len(missing)})"
            raise UserError(f"films that lack some of the features to fuse: {lacking}; leave them out")
        rows = _unit(np.stack([means[name] for name in names]))
        vectors.append(rows.repeat(np.diff(films.offsets), axis=0))
    return replace(films, vectors=np.concatenate(vectors, axis=1).astype(np.float16))


def _unit(vectors: np.ndarray) -> np.ndarray:
    lengths: Any = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.maximum(lengths, 1e-9)

"""Genres of films: which ones there are, what is known of films, and the rows that heads learn from."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from actors.core import storage
from actors.core.errors import UserError
from actors.core.store import Store
from pipelines.core.film_vectors import Films, middles, read_films, write_films
from pipelines.genres.embed import REQUESTS, read_stored, stored_films

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
"""The 21 genres, in the order of every table and array."""


@dataclass(frozen=True)
class ProcessConfig:
    """Settings of `process`."""

    meta: str
    """Folder or s3:// prefix with one FILM.json per film: {"genres": [names]}."""
    output: str = "output/genres"
    """The output of `embed`, with features/; films.npz is written beside it."""
    patch_size: int = 256
    """Key frames per piece of a film at most, sampled at equal steps from a longer film. Shorter pieces are padded on
    the left where a classifier needs one length."""
    number_patches: int = 1
    """Consecutive pieces per film, where it has enough key frames; more pieces mean more training rows."""

    def __post_init__(self) -> None:
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
    """Names that are not among GENRES, and how many films have them; they count as not there."""
    rejected: list[dict[str, str]]
    """Films that are not in films.npz: film, code (no_images, no_meta, broken_meta, no_genres), message."""


def process(config: ProcessConfig) -> Processed:
    """Write films.npz from features/ and what meta says; raises UserError where no film is left."""
    store = Store(config.output)
    ids = sorted(stored_films(store))
    if not ids:
        raise UserError(f"{store.uri('features')} holds no films: `embed` first, or name its output")
    unknown: Counter[str] = Counter()
    rejected: list[dict[str, str]] = []
    pieces: list[np.ndarray] = []
    names: list[str] = []
    owners: list[str] = []
    labels: list[np.ndarray] = []

    def about(film: str) -> tuple[list[str], str, str]:
        return read_genres(storage.join(config.meta, f"{film}.json"))

    with ThreadPoolExecutor(REQUESTS) as threads:
        known = threads.map(about, ids)
        for film, (vectors, _), (genres, code, message) in zip(ids, read_stored(store, ids), known, strict=True):
            unknown.update(set(genres) - set(GENRES))
            label = np.isin(GENRES, genres)
            if not len(vectors):
                code, message = "no_images", "none of its images could be read: see rejected/"
            elif not code and not label.any():
                code, message = "no_genres", f"none of its genres is known: {', '.join(genres) or 'it has none'}"
            if code:
                rejected.append({"film": film, "code": code, "message": message})
                continue
            for number, piece in enumerate(cut(vectors, config.patch_size, config.number_patches)):
                pieces.append(piece)
                names.append(f"{film}_{number}" if config.number_patches > 1 else film)
                owners.append(film)
                labels.append(label)
    if not pieces:
        raise UserError(f"of {len(ids)} films none is left: {rejected[0]['film']}: {rejected[0]['message']}")
    films = Films(
        vectors=np.concatenate(pieces),
        offsets=np.cumsum([0, *(len(piece) for piece in pieces)]),
        ids=names,
        genres=np.stack(labels).astype(np.uint8),
        genre_names=list(GENRES),
        directors=[""] * len(names),
        owners=tuple(owners) if config.number_patches > 1 else (),
    )
    write_films(films, store.uri("films.npz"))
    return Processed(len(ids), len(pieces), dict(unknown.most_common()), rejected)


def cut(vectors: np.ndarray, size: int, number: int) -> list[np.ndarray]:
    """A film (N, D) as `number` pieces of equal length, fewer where one has all `size` rows; of each piece at most
    `size` rows, the middles of equal steps."""
    parts = np.array_split(vectors, min(number, math.ceil(len(vectors) / size)))
    return [part[middles(len(part), size)] for part in parts]


def read_genres(uri: str) -> tuple[list[str], str, str]:
    """Genres of a film by its meta file; else none, with code and message."""
    try:
        meta = json.loads(storage.read_bytes(uri))
    except FileNotFoundError:
        return [], "no_meta", f"there is no {uri}"
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        return [], "broken_meta", f"{uri} is not JSON: {error}"
    genres = meta.get("genres") if isinstance(meta, dict) else meta
    if genres is None:
        genres = []
    if not isinstance(genres, list) or not all(isinstance(name, str) for name in genres):
        return [], "broken_meta", f'{uri}: "genres" is no list of names'
    return genres, "", ""


def read_any(uri: str) -> Films:
    """Films of an npz file, or all those that `embed` has put below a folder or prefix."""
    if uri.endswith(".npz"):
        return read_films(uri)
    store = Store(uri)
    ids = sorted(stored_films(store))
    found = [(film, vectors) for film, (vectors, _) in zip(ids, read_stored(store, ids), strict=True) if len(vectors)]
    if not found:
        raise UserError(f"{uri} is neither an .npz file nor the output of `embed`")
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

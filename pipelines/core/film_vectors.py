"""Films as embeddings of their frames, with genres and director: one npz file, and its split into parts.

The layout: `vecs` float16 [n, D], the frames of all films in order; `offsets` int64 [N + 1], where each film's frames
begin and end; `ids` [N]; `genres` 0/1 [N, C] with `genre_names` [C]; `director` [N], "" where unknown, several names
joined by "; ". Films without labels have no `genres`, `genre_names` or `director`. Where films are given as several
pieces, each with an id of its own, `film` [N] names the film of each.
"""

import io
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from actors.core import storage
from actors.core.errors import UserError

SEVERAL = "; "
"""What stands between the directors of a film that has several."""
REQUESTS = 16
"""Small files that the driver reads at once."""


@dataclass(frozen=True)
class Films:
    """Embeddings and labels of films."""

    vectors: np.ndarray
    """float16 (n, D), the frames of all films."""
    offsets: np.ndarray
    """int64 (N + 1,): film i has the frames offsets[i] to offsets[i + 1]."""
    ids: list[str]
    """N names, each once."""
    genres: np.ndarray
    """uint8 (N, C), 0 or 1; C is 0 where genres are unknown."""
    genre_names: list[str]
    """C names."""
    directors: list[str]
    """N names, "" where unknown; several of one film are joined by SEVERAL."""
    owners: tuple[str, ...] = ()
    """N ids of the films that these are pieces of; none where each is a whole film."""

    def __post_init__(self) -> None:
        count = len(self.ids)
        offsets = self.offsets
        if self.vectors.ndim != 2 or offsets.shape != (count + 1,):
            raise UserError(
                f"{count} ids, but vecs {self.vectors.shape} and offsets {offsets.shape}: they are n x D and N + 1"
            )
        if offsets[0] != 0 or offsets[-1] != len(self.vectors):
            raise UserError(f"offsets run from {offsets[0]} to {offsets[-1]}, and there are {len(self.vectors)} vecs")
        if empty := [self.ids[i] for i in np.flatnonzero(np.diff(offsets) < 1)]:
            raise UserError(f"films without a frame: {', '.join(empty[:5])} ({len(empty)}); leave them out")
        if len(set(self.ids)) < count:
            twice = sorted({name for name in self.ids if self.ids.count(name) > 1})
            raise UserError(f"ids that stand for more than one film: {', '.join(twice[:5])} ({len(twice)})")
        if not np.isfinite(self.vectors).all():
            rows = np.flatnonzero(~np.isfinite(self.vectors).all(1))
            broken = sorted({self.ids[i] for i in np.searchsorted(offsets, rows, side="right") - 1})
            raise UserError(f"embeddings that are not finite, in {', '.join(broken[:5])} ({len(broken)}): embed again")
        if self.genres.shape != (count, len(self.genre_names)) or len(self.directors) != count:
            raise UserError(
                f"{count} ids, {len(self.genre_names)} genre_names and {len(self.directors)} directors do not fit "
                f"genres {self.genres.shape}"
            )
        if not np.isin(self.genres, (0, 1)).all():
            raise UserError("genres are 0 or 1")
        if self.owners and len(self.owners) != count:
            raise UserError(f"{count} ids, but {len(self.owners)} names of the films that they are pieces of")

    def __len__(self) -> int:
        return len(self.ids)

    def frames(self, film: int) -> np.ndarray:
        """float16 (T, D), the frames of one film in order."""
        return self.vectors[self.offsets[film] : self.offsets[film + 1]]

    def take(self, which: Sequence[int] | np.ndarray) -> "Films":
        """These films, by their numbers, in this order."""
        parts = [self.frames(i) for i in which]
        none = np.empty((0, self.vectors.shape[1]), self.vectors.dtype)
        return Films(
            vectors=np.concatenate([none, *parts]),
            offsets=np.cumsum([0, *(len(part) for part in parts)]),
            ids=[self.ids[i] for i in which],
            genres=self.genres[which],
            genre_names=self.genre_names,
            directors=[self.directors[i] for i in which],
            owners=tuple(self.owners[i] for i in which) if self.owners else (),
        )

    def whole(self) -> "Films":
        """Films whose pieces are put together, in the order in which they stand."""
        if not self.owners:
            return self
        names = list(dict.fromkeys(self.owners))
        place = {name: number for number, name in enumerate(names)}
        film = np.array([place[owner] for owner in self.owners])
        order = np.argsort(film, kind="stable")
        sorted_pieces = self.take(order)
        first = np.unique(film[order], return_index=True)[1]
        return Films(
            vectors=sorted_pieces.vectors,
            offsets=np.append(sorted_pieces.offsets[first], sorted_pieces.offsets[-1]),
            ids=names,
            genres=sorted_pieces.genres[first],
            genre_names=self.genre_names,
            directors=[sorted_pieces.directors[i] for i in first],
        )

    def padded(self, length: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """frames float32 (N, T, D), padded on the left with zeros, and mask bool (N, T), True where there is a frame.

        T is `length`, or the longest film's. Of a film that is longer, `length` frames are taken at equal steps.
        """
        sizes = np.diff(self.offsets)
        length = length or int(sizes.max())
        frames = np.zeros((len(self), length, self.vectors.shape[1]), np.float32)
        mask = np.arange(length) >= length - sizes[:, None]
        for film, size in enumerate(sizes):
            frames[film, mask[film]] = self.frames(film)[middles(size, length)]
        return frames, mask


def middles(length: int, count: int) -> np.ndarray:
    """Indices of all rows, or where there are more than `count`, the middles of so many equal pieces."""
    if length <= count:
        return np.arange(length)
    return ((np.arange(count) + 0.5) * length / count).astype(int)


def read_films(uri: str) -> Films:
    """Films of an npz file, a path or s3://; raises UserError where there is none, or one of another layout."""
    try:
        data = storage.read_bytes(uri)
    except FileNotFoundError as error:
        raise UserError(f"{uri} does not exist. Give an npz file of films, as `genres process` writes it.") from error
    # np.load takes what is no archive for a pickle, and advises to load it as such.
    if not zipfile.is_zipfile(io.BytesIO(data)):
        raise UserError(f"{uri} is no npz file. Give one with vecs, offsets and ids, or the output of `embed`.")
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (zipfile.BadZipFile, ValueError, EOFError) as error:
        raise UserError(f"{uri} is no npz file of plain arrays, or is damaged.") from error
    if missing := {"vecs", "offsets", "ids"} - arrays.keys():
        raise UserError(f"{uri} has no {', '.join(sorted(missing))}; it has {', '.join(sorted(arrays)) or 'nothing'}")
    if ("genres" in arrays) != ("genre_names" in arrays):
        raise UserError(f"{uri} has one of genres and genre_names without the other")
    ids = [str(name) for name in arrays["ids"]]
    unnamed = np.zeros((len(ids), 0), np.uint8)
    try:
        return Films(
            vectors=arrays["vecs"].astype(np.float16),
            offsets=arrays["offsets"].astype(np.int64),
            ids=ids,
            genres=arrays.get("genres", unnamed).astype(np.uint8),
            genre_names=[str(name) for name in arrays.get("genre_names", ())],
            directors=[str(name) for name in arrays.get("director", [""] * len(ids))],
            owners=tuple(str(name) for name in arrays.get("film", ())),
        )
    except ValueError as error:
        raise UserError(f"{uri}: {error}") from error


def read_arrays(folder: str) -> Iterator[tuple[str, np.ndarray]]:
    """The films of a folder or prefix with one FILM.npy each, (n, D) or, of one vector, (D,); sorted by film.

    Raises UserError where a file is no such array, and where two have vectors of other lengths.
    """
    entries = storage.listing(folder, (".npy",))
    found = sorted((PurePosixPath(entry.name).stem, entry.uri) for entry in entries if "/" not in entry.name)

    def loaded(uri: str, data: bytes) -> np.ndarray:
        try:
            # Not in the threads: two headers that are parsed at once fail in Python 3.11, once in a great while.
            array = np.load(io.BytesIO(data), allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise UserError(f"{uri} is no .npy file of a plain array: {error}") from error
        array = array[None] if isinstance(array, np.ndarray) and array.ndim == 1 else array
        if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype.kind not in "fiu":
            raise UserError(f"{uri} must hold numbers of shape frames x dimensions, one row per frame")
        return array.astype(np.float16)

    width = 0
    with ThreadPoolExecutor(REQUESTS) as threads:
        for (film, uri), data in zip(found, threads.map(storage.read_bytes, [uri for _, uri in found]), strict=True):
            array = loaded(uri, data)
            width = width or array.shape[1]
            if len(array) and array.shape[1] != width:
                raise UserError(f"{uri} has vectors of {array.shape[1]} numbers, the films before it of {width}")
            yield film, array


def write_films(films: Films, uri: str) -> None:
    """Write films as one npz file that `read_films` reads."""
    arrays = {
        "vecs": films.vectors.astype(np.float16),
        "offsets": films.offsets.astype(np.int64),
        "ids": np.array(films.ids, np.str_),
        "director": np.array(films.directors, np.str_),
    }
    if films.owners:
        arrays["film"] = np.array(films.owners, np.str_)
    if films.genre_names:
        arrays |= {"genres": films.genres.astype(np.uint8), "genre_names": np.array(films.genre_names, np.str_)}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    storage.write_bytes(uri, buffer.getvalue())


def split(labels: np.ndarray, shares: Sequence[float], seed: int = 0) -> np.ndarray:
    """Divide films so that every part has its share of each label: the number of each film's part, int64 (N,).

    Iterative stratification, Sechidis, Tsoumakas and Vlahavas, "On the Stratification of Multi-Label Data", 2011: the
    rarest label that is left is dealt out first, to the part that misses it most.

    Args:
        labels: 0/1 (N, C), a row a film; where C is 0, films are dealt out at random.
        shares: of each part, above 0; scaled to sum to 1.
    """
    if not len(shares) or not min(shares) > 0:
        raise UserError(f"shares are above 0, not {list(shares)}")
    random = np.random.default_rng(seed)
    has = np.asarray(labels).astype(bool)
    share = np.asarray(shares, float) / sum(shares)
    room = len(has) * share
    missing = np.outer(share, has.sum(0))
    parts = np.full(len(has), -1)

    def deal(film: int, wishes: np.ndarray) -> None:
        best = np.flatnonzero(wishes > wishes.max() - 1e-9)
        part = random.choice(best[room[best] > room[best].max() - 1e-9])
        parts[film] = part
        room[part] -= 1
        missing[part, has[film]] -= 1

    while True:
        left = has[parts < 0].sum(0)
        if not left.any():
            break
        rarest = np.flatnonzero(left == left[left > 0].min())
        label = random.choice(rarest)
        for film in random.permutation(np.flatnonzero((parts < 0) & has[:, label])):
            deal(film, missing[:, label])
    for film in random.permutation(np.flatnonzero(parts < 0)):
        deal(film, room)
    return parts

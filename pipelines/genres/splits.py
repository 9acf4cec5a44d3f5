"""Films into training, validation and test: dealt out by their genres, or as a given split has them."""

from collections.abc import Sequence

import numpy as np

from actors.core.errors import UserError
from actors.media.movienet import read_split
from pipelines.core.film_vectors import Films, split


def parts_of(films: Films, shares: Sequence[float], seed: int) -> np.ndarray:
    """Divide films, never pieces of one film, by their genres: the number of each row's part, int64 (N,)."""
    if not films.genre_names:
        raise UserError("these films have no genres to learn from: give an .npz as `process` writes it")
    whole = films.whole()
    part = dict(zip(whole.ids, split(whole.genres, shares, seed), strict=True))
    return np.array([part[name] for name in films.owners or films.ids])


def given(films: Films, uri: str, valid: bool) -> tuple[Films, np.ndarray, int]:
    """Films of a given split, the part of each row (0 to 2), and how many films are in none and are left out.

    valid: validation films are needed. Raises UserError where a part that is needed is empty.
    """
    parts = read_split(uri)
    numbers = {"train": 0, "valid": 1, "test": 2}
    found = np.array([numbers.get(parts.get(name, ""), -1) for name in films.owners or films.ids])
    needed = {0: "train", 2: "test"} | ({1: "val"} if valid else {})
    if missing := [name for part, name in needed.items() if part not in found]:
        raise UserError(f"{uri}: no film of the input is in its list {', '.join(missing)}")
    there = np.flatnonzero(found >= 0)
    some = films.take(there)
    return some, found[there], len(films.whole()) - len(some.whole())

"""Labelled frames of films and the split of films into train, validation and test."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches

import numpy as np

from actors.core.errors import UserError
from actors.directors.style import FEATURES
from actors.media.movienet import read_split
from pipelines.core.film_vectors import SEVERAL, Films
from pipelines.directors.sample import CAMERA, Screenshot
from pipelines.directors.settings import DirectorsConfig
from pipelines.directors.vectors import Pictures

TRAIN, VALID, TEST, NONE = 0, 1, 2, 3
"""Parts; NONE: pictures of an unknown director, and views of pictures outside TRAIN."""
STYLE = (*FEATURES, "shot_s", *CAMERA)
"""FEATURES of `actors.directors.style`, the length of the shot in seconds, and CAMERA; NaN where unknown."""


@dataclass(frozen=True)
class Frames:
    """Vectors of pictures with their film and director."""

    vectors: np.ndarray
    """float16 (N, D)"""
    style: np.ndarray
    """float32 (N, len(STYLE)), NaN where unknown."""
    view: np.ndarray
    """int (N,), 0 for the picture itself, else the number of a random view."""
    film: np.ndarray
    """int (N,), the number of its film."""
    films: list[str]
    """F names, <director>/<film>."""
    director: np.ndarray
    """int (F,), the number of each film's director (of several: who has the fewest films); -1 for an unknown one."""
    directors: list[str]
    """C names, sorted."""
    films_known: bool = True
    """False: each picture, with its views, stands for a film of its own."""
    others: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    """By number of a film with several directors: the numbers of all of them."""

    @property
    def labels(self) -> np.ndarray:
        """int (N,), the number of each picture's director; -1 for an unknown director."""
        return self.director[self.film]

    def examples(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows and labels to learn from pictures int (M,): those of several directors come once for each."""
        if not self.others:
            return rows, self.labels[rows]
        pairs = zip(rows.tolist(), self.film[rows].tolist(), self.labels[rows].tolist(), strict=True)
        found = [(row, one) for row, film, label in pairs for one in self.others.get(film, (label,))]
        chosen = np.array(found, int).reshape(-1, 2)
        return chosen[:, 0], chosen[:, 1]

    def truth(self, films: np.ndarray, answers: np.ndarray) -> np.ndarray:
        """The right class int (M,) of answers (M, C) for these films or pictures of them: of several the likeliest."""
        right = self.director[films]
        for row, film in enumerate(films):
            if several := self.others.get(int(film)):
                right[row] = max(several, key=lambda label: answers[row, label])
        return right


def frames_of_pictures(shots: Sequence[Screenshot], pictures: Pictures, config: DirectorsConfig) -> Frames:
    """Labelled vectors of screenshots."""
    about = {shot.path: shot for shot in shots}
    rows = [about[path] for path in pictures.path]
    names = [(row.director, f"{row.director}/{row.film}" if row.film else row.path) for row in rows]
    shown = [[row.shot_s, *(row.camera.get(name, np.nan) for name in CAMERA)] for row in rows]
    style = np.column_stack([pictures.style, np.array(shown, np.float32).reshape(-1, 1 + len(CAMERA))])
    frames = _frames(pictures.vectors, style, pictures.view, names, config)
    return replace(frames, films_known=all(row.film for row in rows))


def frames_of_films(films: Films, config: DirectorsConfig) -> Frames:
    """Labelled vectors of films, which may have several directors; films without one are left out."""
    known = [i for i, director in enumerate(films.directors) if director]
    if not known:
        raise UserError(f"{config.films} has no directors: its array `director` is empty. Add directors.")
    some = films.take(known)
    names = [
        (director, f"{director}/{film}")
        for director, film, count in zip(some.directors, some.ids, np.diff(some.offsets), strict=True)
        for _ in range(count)
    ]
    style = np.full((len(names), len(STYLE)), np.nan, np.float32)
    return _frames(some.vectors, style, np.zeros(len(names), int), names, config)


def _frames(
    vectors: np.ndarray, style: np.ndarray, view: np.ndarray, names: list[tuple[str, str]], config: DirectorsConfig
) -> Frames:
    owners = {film: tuple(director.split(SEVERAL)) for director, film in names}
    counts = Counter(name for several in owners.values() for name in several)
    pictures = Counter(name for director, _ in names for name in director.split(SEVERAL))
    if absent := [name for name in config.unknown if name not in counts]:
        near = get_close_matches(absent[0], counts, 3, 0.3)
        raise UserError(
            f"unknown={absent[0]}: these films have no such director. Similar names: {', '.join(near) or 'none'}."
        )
    directors = sorted(
        name
        for name, count in counts.items()
        if count >= config.min_films and pictures[name] >= 3 and name not in config.unknown
    )
    if len(directors) < 2:
        few = ", ".join(f"{name} {count}" for name, count in counts.most_common(5))
        raise UserError(
            f"{len(directors)} of {len(counts)} directors can be classes, and at least 2 are needed, with "
            f"{config.min_films} films and 3 pictures each (films: {few}). Add films, or lower min_films."
        )
    films = sorted(owners)
    number = {name: i for i, name in enumerate(directors)}
    place = {name: i for i, name in enumerate(films)}
    known = [_known(owners[film], number, config.unknown) for film in films]
    return Frames(
        vectors,
        style,
        view,
        np.array([place[film] for _, film in names], int),
        films,
        np.array([min(own, key=lambda i: (counts[directors[i]], i), default=-1) for own in known], int),
        directors,
        others={film: own for film, own in enumerate(known) if len(own) > 1},
    )


def _known(names: tuple[str, ...], number: dict[str, int], unknown: Sequence[str]) -> tuple[int, ...]:
    """The numbers of a film's directors that are classes; none where one of them is to be unknown."""
    return () if set(names) & set(unknown) else tuple(number[name] for name in names if name in number)


# -------------------------------------------------------------------------------------------------------------- splits


def deal(groups: np.ndarray, shares: tuple[float, float], seed: int) -> np.ndarray:
    """A part for each item, int (N,): these shares of every group become VALID and TEST, at least one item each.

    groups: int (N,); items of group -1 get NONE. A group needs three items. shares: of VALID and TEST.
    """
    random = np.random.default_rng(seed)
    parts = np.full(len(groups), NONE)
    for group in range(groups.max() + 1):
        items = random.permutation(np.flatnonzero(groups == group))
        valid, test = (max(1, round(share * len(items))) for share in shares)
        parts[items] = TRAIN
        parts[items[:test]] = TEST
        parts[items[test : test + valid]] = VALID
    return parts


def fold(groups: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """A fold for each item, int (N,), with each group spread evenly over the folds; -1 for items of group -1."""
    random = np.random.default_rng(seed)
    found = np.full(len(groups), -1)
    begin = 0
    for group in range(groups.max() + 1):
        items = random.permutation(np.flatnonzero(groups == group))
        # Each group begins where the last one ended, so that folds have the same size.
        found[items] = (begin + np.arange(len(items))) % folds
        begin += len(items)
    return found


def given_parts(frames: Frames, split: Mapping[str, str]) -> list[np.ndarray]:
    """The part of each picture by a given split of films, by id, int (N,); NONE for films that it does not have.

    Raises UserError where a part has no film, or a director has none to train on.
    """
    numbers = {"train": TRAIN, "valid": VALID, "test": TEST}
    ids = [name.rpartition("/")[2] for name in frames.films]
    of_films = np.array([numbers.get(split.get(name, ""), NONE) for name in ids])
    of_films[frames.director < 0] = NONE
    parts = of_films[frames.film]
    if missing := [name for name, part in numbers.items() if part not in parts]:
        raise UserError(f"split_file: no film of these directors is in its list {', '.join(missing)}")
    learned = set(frames.examples(np.flatnonzero(parts == TRAIN))[1].tolist())
    if lost := [name for number, name in enumerate(frames.directors) if number not in learned]:
        raise UserError(f"split_file: no film to train on of {', '.join(lost[:5])} ({len(lost)}). Raise min_films.")
    return [np.where((parts == TRAIN) | (frames.view == 0), parts, NONE)]


def parts_of(frames: Frames, config: DirectorsConfig, split: str, folds: int = 0) -> list[np.ndarray]:
    """The part of each picture, int (N,), once per fold (once without folds); views are in TRAIN or NONE."""
    if config.split_file and split == "film":
        return given_parts(frames, read_split(config.split_file))
    own = frames.view == 0
    groups = frames.director if split == "film" else np.where(own, frames.labels, -1)
    seed = config.training.seed
    if folds:
        number = fold(groups, folds, seed)
        dealt = [
            np.select([number < 0, number == i, number == (i + 1) % folds], [NONE, TEST, VALID], TRAIN)
            for i in range(folds)
        ]
    else:
        dealt = [deal(groups, (config.valid, config.test), seed)]
    found = []
    for parts in dealt:
        if split == "film":
            parts = parts[frames.film]
        else:
            # A view is in the part of its picture: the last row before it that is no view.
            parts = parts[np.maximum.accumulate(np.where(own, np.arange(len(own)), 0))]
        found.append(np.where((parts == TRAIN) | own, parts, NONE))
    return found

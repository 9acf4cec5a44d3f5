"""What is compared over a corpus: the best of a group of near-duplicates, of a span, of a concept, and of all scenes.

Rows wait on disk. Memory holds those of one range of videos, and of each row 5 bytes: its place among those that pass
the rules, the best first, and its reason; with groups or concepts 4 more for each of these.
"""

from bisect import bisect_left
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from actors.curation.selecting.duplicates import near_duplicates
from actors.curation.selecting.rules import HASH
from actors.curation.selecting.select_settings import SelectConfig
from pipelines.curation.gathered import Divided, compute

IDS = ("scene_id", "video_id")
"""Columns by which scenes of one rank are ordered."""


class Range(NamedTuple):
    """Rows of a range of videos."""

    rows: pd.DataFrame
    places: np.ndarray
    """Of each row among all of them, in the order of the plan, int64 (n,)."""
    numbers: slice
    """Of the rows, where arrays hold all rows, range after range."""


class Judged:
    """Scenes that were judged, with what else is written of the plan; a context.

    Those that pass the rules are also ordered, the best first: by rank, scene and video. Each range is sorted, and what
    lies between two rows of the first range is put together, which is about as much as a range.
    """

    def __init__(self, ranges: int) -> None:
        self._rows, self._best = Divided(ranges), Divided(ranges)
        self._sizes = np.zeros(0, np.int64)
        """Rows by `index`."""
        self._ends = [0]
        self._between: list[tuple[float, str, str]] = []

    def __enter__(self) -> "Judged":
        return self

    def __exit__(self, *_: object) -> None:
        for divided in (self._rows, self._best):
            divided.__exit__()

    def __len__(self) -> int:
        return self._ends[-1]

    def add(self, rows: pd.DataFrame) -> None:
        """Add a range: in the order of the plan, `index`, IDS, video, span, error, and what `judge` adds."""
        index = rows["index"].to_numpy()
        sizes = np.bincount(index, minlength=len(self._sizes))
        self._sizes = np.pad(self._sizes, (0, len(sizes) - len(self._sizes)))
        within = np.arange(len(rows)) - np.searchsorted(index, index) + self._sizes[index]
        self._sizes += sizes
        told = rows.assign(within=within, scene=rows.scene_id != "", number=np.arange(len(self), len(self) + len(rows)))
        table = pa.Table.from_pandas(told, preserve_index=False)
        self._rows.add(table.drop_columns([*IDS, "number"]), np.full(len(rows), len(self._ends) - 1))
        table = table.select(["rank", *IDS, "number"])
        best = table.filter(pa.array((rows.error == "").to_numpy() & (rows.reason == "").to_numpy()))
        best = best.take(pa.array(_best_first(best)))
        self._best.add(best, self._numbers(best))
        self._ends.append(len(self) + len(rows))

    def _numbers(self, best: pa.Table) -> np.ndarray:
        """Between which rows of the first range others are."""
        rank, scene, video = (column.combine_chunks() for column in best.columns[:3])

        def key(row: int) -> tuple[float, str, str]:
            return -rank[row].as_py(), scene[row].as_py(), video[row].as_py()

        every = range(len(best))
        count = len(self._best)
        if not self._between and len(best):
            self._between = [key(len(best) * number // count) for number in range(1, count)]
        ends = [bisect_left(every, other, key=key) for other in self._between]
        sizes = np.diff([0, *ends, len(best)])
        return np.repeat(np.arange(len(sizes)), sizes)

    def ranges(self) -> Iterator[Range]:
        """All rows, in which order they were added."""
        starts = np.cumsum(self._sizes) - self._sizes
        for number, first in enumerate(self._ends[:-1]):
            rows = self._rows.of(number).to_pandas()
            places = starts[rows["index"].to_numpy()] + rows.within.to_numpy()
            yield Range(rows, places, slice(first, self._ends[number + 1]))

    def order(self) -> np.ndarray:
        """The place of each row among those that pass the rules, the best first, int32 (N,); -1: it does not pass."""
        order, first = np.full(len(self), -1, np.int32), 0
        for number in range(len(self._best)):
            best = self._best.of(number)
            order[best["number"].to_numpy()[_best_first(best)]] = np.arange(first, first + len(best))
            first += len(best)
        return order


def _best_first(rows: pa.Table) -> np.ndarray:
    """The order of rows by rank, those of the highest first, scene_id and video_id, int (N,)."""
    rank = rows["rank"].to_numpy()
    same = pd.Series(rank).duplicated(keep=False).to_numpy()
    keys = []
    for name in IDS[::-1]:
        # Few have the rank of another, and numbers are compared faster than texts.
        keys.append(np.zeros(len(rows), np.int32))
        keys[-1][same] = compute.rank(rows[name].filter(pa.array(same)), tiebreaker="dense").to_numpy()
    return np.lexsort((*keys, -rank))


def alike(judged: Judged, distance: int) -> np.ndarray:
    """The group of near-duplicates of each place, int32 (N,); -1 where it is alone."""
    hashes = np.zeros((len(judged), len(HASH)), np.uint64)
    for rows, places, _ in judged.ranges():
        hashes[places] = rows[list(HASH)].to_numpy(np.uint64)
    hashed = hashes.any(axis=1)
    groups = np.full(len(judged), -1, np.int32)
    hashes = hashes[hashed]
    groups[hashed] = near_duplicates(hashes, distance)
    return groups


def choose(
    judged: Judged, select: SelectConfig, groups: np.ndarray | None = None, concepts: np.ndarray | None = None
) -> np.ndarray:
    """The code of each row's reason, int8 (N,), by its number; kept and failed ones have 0.

    groups, concepts: of each place, -1 where it has none.
    """
    code = select.reasons.index
    order, reason = judged.order(), np.zeros(len(judged), np.int8)
    best = None if groups is None else _best_of_groups(judged, order, groups)
    for rows, places, numbers in judged.ranges():
        mine = order[numbers]
        passed = unlike = mine >= 0
        if best is not None and groups is not None:
            unlike = passed & ((groups[places] < 0) | (best[groups[places]] == mine))
        some = np.flatnonzero(unlike)
        some = some[np.argsort(mine[some])]
        span = rows.video.to_numpy(np.int64) << 32 | rows.span.to_numpy()
        first = some[~pd.Series(span[some]).duplicated().to_numpy()]
        told = rows.reason.cat.codes.to_numpy().copy()
        told[passed] = code("near_duplicate")
        told[unlike] = code("same_span")
        told[first] = code("not_selected")
        reason[numbers] = told
    if concepts is not None:
        over = _over_concepts(judged, order, reason == code("not_selected"), concepts, select)
        reason[over] = code("concept_full")
    limit = select.count
    if select.fraction is not None:
        # 0.29 of 100 is 29, whatever a binary fraction makes of it.
        limit = int(select.fraction * (int(order.max(initial=-1)) + 1) + 1e-9)
    left = reason == code("not_selected")
    if limit is not None and limit < left.sum():
        places = order[left]
        places.partition(limit)
        left &= order < places[limit]
    reason[left] = 0
    return reason


def _best_of_groups(judged: Judged, order: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """The best place in the order among each group, int32 (G,)."""
    best = np.full(int(groups.max(initial=-1)) + 2, np.iinfo(np.int32).max, np.int32)
    for _, places, numbers in judged.ranges():
        passed = order[numbers] >= 0
        np.minimum.at(best, groups[places[passed]], order[numbers][passed])
    return best


def _over_concepts(
    judged: Judged, order: np.ndarray, left: np.ndarray, concepts: np.ndarray, select: SelectConfig
) -> np.ndarray:
    """The numbers of those that are left, and behind so many better ones of their concept that it is full, int (n,)."""
    mine = np.full(len(judged), -1, np.int32)
    for _, places, numbers in judged.ranges():
        mine[numbers] = concepts[places]
    some = np.flatnonzero(left)
    some = some[np.argsort(order[some])]
    of = pd.Series(mine[some])
    place = of.groupby(of).cumcount()
    return some[((place >= select.balance.limit(len(some))) & (of >= 0)).to_numpy()]

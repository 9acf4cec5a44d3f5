"""The order in which videos are worked on: the longest first, so that no run ends with one worker busy.

How long a video takes is judged by what is known before it is opened: where the last of its scenes that are left ends,
else by the bytes of its file. One of which neither is known, as behind a url, comes first: it may be long.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

import pyarrow as pa

from actors.core.catalog import Part
from actors.core.stage import Row

BYTES_A_SECOND = 250_000
"""A film of 2 Mbit/s: makes bytes and seconds comparable where an input has both."""
CLASSES = 17
"""Videos of one class differ by a factor of 2 at most: up to 2 s, 4 s, ... 18 h and more."""
Timed = tuple[float, Row]
"""How long a video takes, and its row."""


def seconds_of(ends: Sequence[float | None], size: int | None) -> float:
    """About how many seconds of a film are to be decoded; infinite where nothing tells.

    ends: where its scenes that are left end, None: with the film. size: bytes of the film, None: not known.
    """
    known = [end for end in ends if end is not None]
    if known and len(known) == len(ends):
        return max(known)
    return math.inf if size is None else size / BYTES_A_SECOND


def longest_first(films: Iterable[Iterable[Row]]) -> list[list[Row]]:
    """Films of chosen scenes, each with their rows: those with the most seconds of scenes first."""
    return sorted(map(list, films), key=lambda scenes: -sum(scene["end_s"] - scene["start_s"] for scene in scenes))


class LongestFirst:
    """Makes parts of rows so that the longest come first, of rows that come in any order.

    Rows are gathered by classes of length, and a class with enough rows becomes a part: memory holds one part of each
    class, whatever the input. Inputs of one part are sorted exactly, of longer ones videos of a class by parts.
    """

    def __init__(self, part_rows: int, schema: pa.Schema, write: Callable[[pa.Table], Part]) -> None:
        """write: writes a table as the next part."""
        self._part_rows, self._schema, self._write = part_rows, schema, write
        self._waiting: dict[int, list[Timed]] = defaultdict(list)
        self._parts: list[tuple[tuple[float, int], Part]] = []

    def add(self, row: Row, seconds: float) -> None:
        """Add the row of a video that takes so long."""
        waiting = self._waiting[CLASSES if seconds == math.inf else min(CLASSES - 1, int(math.log2(max(1, seconds))))]
        waiting.append((seconds, row))
        if len(waiting) == self._part_rows:
            self._part(sorted(waiting, key=_place))
            waiting.clear()

    def parts(self) -> list[Part]:
        """Write what is left; all parts, in order."""
        left = sorted((timed for waiting in self._waiting.values() for timed in waiting), key=_place)
        for start in range(0, len(left), self._part_rows):
            self._part(left[start : start + self._part_rows])
        return [part for _, part in sorted(self._parts, key=lambda placed: placed[0])]

    def _part(self, rows: list[Timed]) -> None:
        table = pa.Table.from_pylist([row for _, row in rows], schema=self._schema)
        self._parts.append((_place(rows[0]), self._write(table)))


def _place(timed: Timed) -> tuple[float, int]:
    seconds, row = timed
    return -seconds, row["video_index"]

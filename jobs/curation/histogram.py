"""Histograms of the report: counts of one feature, its axis, its thresholds and their picture as SVG."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from jobs.core.pages import number, percent

TAIL = 0.005
"""Share at either end that the axis of a large corpus leaves out; it is counted in a bar of its own."""
NARROWEST = 0.01
"""Shortest axis: in decades, or in the feature's own unit."""


@dataclass(frozen=True)
class Mark:
    """A threshold in a histogram."""

    setting: str
    value: float
    edge: float
    """Where it is drawn."""
    side: int
    """-1: what lies below is dropped; 1: what lies above."""


class Histogram:
    """Counts of one feature in bins of equal width on a linear or logarithmic axis, and its picture.

    counts is (2, bins + 2): all measured scenes and the kept ones; the outer bins hold what lies beyond the axis.
    """

    WIDTH, HEIGHT = 252, 152
    LEFT, RIGHT, TOP, BOTTOM = 12, 240, 30, 132
    BEYOND = 8
    """Width of the bars for what lies beyond the axis."""

    def __init__(self, feature: str, low: float, high: float, bins: int, log: bool, marks: Sequence[Mark]) -> None:
        self.feature, self.log, self.bins = feature, log, bins
        self.low, self.high = low, high
        self._marks = marks
        self.counts = np.zeros((2, bins + 2), np.int64)
        self.missing = 0

    def add(self, values: np.ndarray, kept: np.ndarray) -> None:
        """Count values (N,), NaN where not measured; kept (N,) bool."""
        there = np.isfinite(values)
        self.missing += int((~there).sum())
        at = self._position(values[there].astype(np.float64))
        bins = np.floor(at * self.bins).clip(-1, self.bins).astype(int) + 1
        bins[at == 1] = self.bins
        self.counts[0] += np.bincount(bins, minlength=self.bins + 2)
        self.counts[1] += np.bincount(bins[kept[there]], minlength=self.bins + 2)

    def _position(self, values: np.ndarray) -> np.ndarray:
        """Where values lie between the ends of the axis, 0 to 1."""
        return (scaled(values, self.log) - self.low) / (self.high - self.low)

    def _value(self, at: float) -> float:
        value = self.low + at * (self.high - self.low)
        return 10**value if self.log else value

    def _x(self, at: float) -> float:
        return round(self.LEFT + at * (self.RIGHT - self.LEFT), 1)

    @property
    def total(self) -> int:
        """Scenes that have a value."""
        return int(self.counts[0].sum())

    @property
    def shares(self) -> np.ndarray:
        """Each row of counts as shares of its own sum."""
        return self.counts / np.maximum(self.counts.sum(axis=1, keepdims=True), 1)

    @property
    def top(self) -> float:
        """Share at the upper end of the picture."""
        return float(self.shares.max())

    @property
    def beyond(self) -> list[str]:
        """What is said of the outer bins."""
        below, above = self.counts[0][[0, -1]]
        return [f"{n:,} {words}" for n, words in ((below, self._words()[0]), (above, self._words()[-1])) if n]

    def _words(self) -> list[str]:
        """The range of every bin."""
        edges = [self._value(i / self.bins) for i in range(self.bins + 1)]
        if self.feature == "no_frames":
            # Bins of whole numbers lie between halves.
            ranges = [(math.ceil(a), math.floor(b)) for a, b in pairwise(edges)]
            inner = [f"{a}" if a == b else f"{a} to {b}" for a, b in ranges]
            return [f"below {ranges[0][0]}", *inner, f"above {ranges[-1][1]}"]
        inner = [f"{number(a)} to {number(b)}" for a, b in pairwise(edges)]
        return [f"below {number(edges[0])}", *inner, f"above {number(edges[-1])}"]

    def bars(self) -> list[tuple[float, float, str]]:
        """x, width and words of every bin."""
        edges = [self._x(i / self.bins) for i in range(self.bins + 1)]
        xs = [(self.LEFT - self.BEYOND - 2, self.LEFT - 2), *pairwise(edges)]
        xs.append((self.RIGHT + 2, self.RIGHT + 2 + self.BEYOND))
        return [
            (a, round(b - a, 1), f"{text}: {n:,} scenes ({percent(n, self.total)}), {kept:,} of them kept")
            for (a, b), text, n, kept in zip(xs, self._words(), *self.counts.tolist(), strict=True)
        ]

    def outline(self, row: int) -> str:
        """SVG path of one row of counts: closed steps on the base line, the outer bins apart."""
        scale = (self.BOTTOM - self.TOP) / (self.top or 1)
        tops = [round(self.BOTTOM - share * scale, 1) for share in self.shares[row]]
        steps = [(x, x + width, top) for (x, width, _), top in zip(self.bars(), tops, strict=True)]
        first, *inner, last = steps
        path = [f"M{self.LEFT} {self.BOTTOM}", *(f"V{top:g}H{end:g}" for _, end, top in inner), f"V{self.BOTTOM}Z"]
        for x, end, top in (first, last):
            if top < self.BOTTOM:
                path.append(f"M{x:g} {self.BOTTOM}V{top:g}H{end:g}V{self.BOTTOM}Z")
        return "".join(path)

    def ticks(self) -> list[tuple[float, str]]:
        """x and words of the ticks."""
        low, high, span = self._value(0), self._value(1), self.high - self.low
        if self.log and span > 0.7:
            digits = (1, 2, 5) if span < 2.2 else (1, 3) if span < 4 else (1,)
            decades = range(math.floor(self.low), math.ceil(self.high) + 1, math.ceil(span / 8))
            values = [digit * 10.0**decade for decade in decades for digit in digits]
        else:
            decade = 10.0 ** math.floor(math.log10((high - low) / 6))
            step = next(digit * decade for digit in (1, 2, 5, 10) if (high - low) / (digit * decade) <= 6)
            step = max(step, 1.0) if self.feature == "no_frames" else step
            values = [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
        places = self._position(np.array(values))
        return [(self._x(at), short(v)) for v, at in zip(values, places, strict=True) if -1e-9 <= at <= 1 + 1e-9]

    def thresholds(self) -> list[dict[str, Any]]:
        """Lines, words and shaded ranges of the rules; a threshold beyond the axis is an arrow at its end."""
        drawn = []
        for mark in self._marks:
            at = float(self._position(np.array([mark.edge], np.float64))[0])
            x = self._x(min(max(at, 0), 1))
            words = f"{mark.setting} {short(mark.value)}"
            edges = (self.LEFT - self.BEYOND - 2, x) if mark.side < 0 else (x, self.RIGHT + self.BEYOND + 2)
            drawn.append(
                {
                    "rule": mark.setting,
                    "side": mark.side,
                    "shift": mark.edge - mark.value,
                    "x": x,
                    "line": 0 <= at <= 1,
                    "words": f"← {words}" if at < 0 else f"{words} →" if at > 1 else words,
                    "anchor": "start" if at < 0.5 else "end",
                    "from": edges[0],
                    "width": round(edges[1] - edges[0], 1),
                }
            )
        return drawn


def scaled(values: np.ndarray, log: bool) -> np.ndarray:
    """Values as an axis sees them; on a logarithmic one, what is not above 0 lies infinitely low."""
    if not log:
        return values
    with np.errstate(divide="ignore"):
        return np.log10(np.maximum(values, 0))


def axis_of(values: np.ndarray, edges: np.ndarray, bins: int, whole: bool) -> tuple[float, float, int]:
    """Ends of an axis and its number of bins, in what the axis is linear in; whole: bins end between whole numbers."""
    if not len(values):
        values = edges if len(edges) else np.zeros(1)
    tail = TAIL if len(values) >= 1000 else 0.0
    low = float(np.quantile(values, tail, method="lower"))
    high = float(np.quantile(values, 1 - tail, method="higher"))
    if high - low < NARROWEST:
        low, high = (low + high - NARROWEST) / 2, (low + high + NARROWEST) / 2
    span = high - low
    for edge in edges:
        if max(high, edge) - min(low, edge) <= 4 * span:
            low, high = min(low, edge - 0.04 * span), max(high, edge + 0.04 * span)
    if whole:
        low, high = 0.5, max(math.ceil(min(high, 2 * edges.max())), 4) + 0.5
        width = math.ceil((high - low) / 80)
    else:
        width = (high - low) / bins
    # A bin ends at the threshold, so that what is kept and what is dropped do not share one.
    inside = edges[(low < edges) & (edges < high)]
    if len(inside):
        low = float(inside[0]) - math.ceil((inside[0] - low) / width) * width
    bins = math.ceil((high - low) / width - 1e-9)
    return low, low + bins * width, bins


def short(value: float) -> str:
    """A number beside an axis."""
    for unit, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= max(unit, 10_000):
            return f"{value / unit:g}{letter}"
    return f"{value:.6g}"

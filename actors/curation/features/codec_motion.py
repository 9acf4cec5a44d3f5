"""How much a scene moves, by the motion vectors of its codec: nothing is searched for, the encoder has done that.

The speeds are estimates. An encoder looks for the cheapest prediction, not for motion, and has no vectors where it
found none (intra blocks): these count as moving like the others. Vectors of fields are taken for those of frames.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from actors.media.bars import Bars
from actors.media.film import Film, Picture
from actors.media.shown import Turn
from actors.media.vectors import Vectors

LEAST_COVER = 0.1
"""Least part of a step, in pixels times seconds, that must have vectors for its speed to be known."""


@dataclass(slots=True)
class Moved:
    """What the vectors of a step between two sampled frames say."""

    total: Vectors | None = None
    """Their sums divided by seconds, times the seconds of the step that they are of; pixels times these seconds."""


class Step(Protocol):
    """A sampled frame, at which a step begins."""

    time: float
    moved: Moved


class CodecMotion:
    """Adds up the vectors of a scene's pictures while these pass."""

    def __init__(self) -> None:
        self._anchor = math.nan

    def add(self, picture: Picture, time: float, steps: Sequence[Step]) -> None:
        """Take the next picture, when it comes, and the steps that have begun until then."""
        found = picture.vectors()
        if found is None:
            return
        span, anchor, self._anchor = time - self._anchor, self._anchor, time
        if not span > 0 or not found.sums[..., 2].any():
            return
        end = time
        for step in reversed(steps):
            part = end - max(anchor, step.time)
            if part > 0:
                _add(step.moved, found, np.array([part / span, part / span, part], np.float32))
            end = step.time
            if end <= anchor:
                break


def _add(moved: Moved, found: Vectors, parts: np.ndarray) -> None:
    before, sums = moved.total, found.sums * parts
    # Where the size of the pictures changes, the rest of the step counts.
    if before is not None and before[1:] == found[1:]:
        sums += before.sums
    moved.total = found._replace(sums=sums)


def codec_speeds(steps: Sequence[Step], film: Film, bars: Bars, size: int) -> np.ndarray:
    """Mean length of the motion of each step but the last, in pixels of a sampled frame: float64 (T - 1,).

    NaN where the codec tells nothing of it. bars: what is cut off of the film as shown, in its pixels. size: side of
    the sampled frames, which are the central square of the rest.
    """
    width, height = film.width - bars.left - bars.right, film.height - bars.top - bars.bottom
    short = min(width, height)
    across, down = (width - short) // 2, (height - short) // 2
    margins = Bars(bars.top + down, bars.bottom + down, bars.left + across, bars.right + across)
    turn = Turn(-film.stored.rotation // 90 % 4, "mirrored" in film.converted)
    sides = (film.height, film.width) if turn.quarters % 2 else (film.width, film.height)
    ends = [step.time for step in steps[1:]]
    return np.array(
        [
            _speed(step.moved.total, end - step.time, turn.bars(margins), sides, size / short)
            for step, end in zip(steps, ends, strict=False)
        ]
    )


def _speed(total: Vectors | None, length: float, margins: Bars, sides: tuple[int, int], scale: float) -> float:
    """margins: pixels beside the square at each side, and sides: width and height, both of the frame before turning."""
    if total is None:
        return math.nan
    wide, high = sides[0] / total.width, sides[1] / total.height
    inside = np.outer(
        _inside(len(total.sums), total.cell, margins.top / high, total.height - margins.bottom / high),
        _inside(total.sums.shape[1], total.cell, margins.left / wide, total.width - margins.right / wide),
    )
    right, lower, seconds = np.moveaxis(total.sums, 2, 0)
    known = float((seconds * inside).sum())
    if known < LEAST_COVER * total.cell**2 * inside.sum() * length:
        return math.nan
    return scale * length * float((np.hypot(wide * right, high * lower) * inside).sum()) / known


def _inside(cells: int, cell: int, begin: float, end: float) -> np.ndarray:
    """Which part of each cell in a row lies between two places: float64 (cells,)."""
    edges = np.clip(np.arange(cells + 1) * cell, begin, end)
    return np.diff(edges) / cell

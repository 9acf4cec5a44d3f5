"""Black bars about a picture: letterbox, pillarbox, or both.

Bars come in pairs of about equal width: a dark edge on one side only belongs to the picture. They are black, not only
dark or of one colour: white and coloured bars are part of the picture.

In a picture by itself (`bars`) they are what is dark. In a scene they are what is black in all its frames (`look`,
`merged`, `judged`), and at one side at least the picture begins at once: dark edges of a night scene fade into it.
Writing and logos inside one bar of a pair are cut off with it, where the bar is black before and behind them, and its
partner has none; what is written in both stays in the picture.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple

import numpy as np

DARK = 28
"""Brightness, 0 to 255, below which nearly all pixels in a line of a bar are: compression does not keep black at 0."""
BLACK = 20
"""DARK for decoded film, where a bar is nearer to black than dark pictures are."""
WIDEST = 0.7
"""Largest share of a side that the bars of a pair may take."""
NARROWEST = 0.005
"""Smallest share of a side that a bar of a scene takes: less changes nothing that is measured."""
_SPARE = 0.01
"""Share of a line's pixels that may be brighter."""
_CLOSE = 0.03
"""Largest difference of the bars of a pair, as a share of the side."""
_STRIP = 0.37
"""Share of a side in which a bar of a scene is looked for: half of WIDEST, and half of _CLOSE."""
_WRITING = 0.4
"""Largest share of a line's pixels that writing inside a bar takes."""
_BEGIN = 0.25
"""Share of the pixels in a picture's first lines that are bright in one of a scene's frames, at least."""
_SOFT = 0.01
"""Share of a side in which a bar becomes picture: codecs blur the edge."""
_COLOURED = 0.25
"""Share of a line's pixels that have colour, from which on it is not black."""
_POINTS = 120
"""So many pixels of a line are looked at, or a few more."""
_STEP = 128
"""Lines that are looked at together."""


class Bars(NamedTuple):
    """Lines of the black bars on each side of a picture."""

    top: int = 0
    bottom: int = 0
    left: int = 0
    right: int = 0

    def turned(self, turns: int) -> "Bars":
        """Those of the picture turned counter-clockwise by so many quarters."""
        top, bottom, left, right = self
        return (self, Bars(right, left, top, bottom), Bars(bottom, top, right, left), Bars(left, right, bottom, top))[
            turns % 4
        ]

    def scaled(self, across: float, down: float, step: int = 1) -> "Bars":
        """Those of the picture scaled by so much in width and height, each up to the next multiple of a step."""
        by = (down, down, across, across)
        return Bars(*(math.ceil(side * to / step - 1e-6) * step for side, to in zip(self, by, strict=True)))


NO_BARS = Bars()


def bars(image: np.ndarray) -> Bars:
    """The bars of a picture by itself, uint8 (H, W, 3): what is dark at its edges."""
    bright = image.max(2)
    top, bottom = _pair(np.percentile(bright, 99, axis=1) < DARK)
    left, right = _pair(np.percentile(bright, 99, axis=0) < DARK)
    return Bars(top, bottom, left, right)


def _pair(dark: np.ndarray) -> tuple[int, int]:
    if dark.all():
        return 0, 0
    first, last = int(np.argmin(dark)), int(np.argmin(dark[::-1]))
    return (first, last) if _is_pair(first, last, len(dark)) else (0, 0)


def _is_pair(first: int, last: int, length: int) -> bool:
    close = abs(first - last) <= max(2, _CLOSE * length)
    return bool(first and last and close and first + last <= WIDEST * length)


# -------------------------------------------------------------------------------------------------------------- a scene


class Plane(NamedTuple):
    """One component of a decoded frame, which may have fewer lines than the frame."""

    values: np.ndarray
    """(h, w)"""
    low: int
    high: int
    """Values outside of low to high are not black."""


@dataclass(frozen=True, slots=True)
class Lines:
    """How much of each line is not black, from the edges inwards, in one frame or the most in several."""

    size: tuple[int, int]
    """Width and height of the frames; (0, 0) where they differ."""
    top: np.ndarray
    """Shares float32 (n,) of lines from the edge to before the first with more than _WRITING; (0,) without a bar."""
    bottom: np.ndarray
    left: np.ndarray
    right: np.ndarray


_NOTHING = np.zeros(0, np.float32)


def look(planes: Sequence[Plane]) -> Lines:
    """The lines of a frame: its brightness in full size, then its colours. Where there are no bars it costs nothing."""
    height, width = planes[0].values.shape
    top, bottom = _looked(planes, height, width)
    left, right = _looked([plane._replace(values=plane.values.T) for plane in planes], width, height)
    return Lines((width, height), top, bottom, left, right)


def _looked(planes: Sequence[Plane], length: int, across: int) -> tuple[np.ndarray, np.ndarray]:
    """Shares of the rows of planes, from both ends inwards; none where one of the two outermost is not black."""
    ends = planes, [plane._replace(values=plane.values[::-1]) for plane in planes]
    if any(_outside(end[0], 0, 1, across)[0] > _SPARE for end in ends):
        return _NOTHING, _NOTHING
    first, last = (_inwards(end, length, across) for end in ends)
    return first, last


def _inwards(planes: Sequence[Plane], length: int, across: int) -> np.ndarray:
    """Shares of rows that are not black, until writing would be less bright."""
    most = int(_STRIP * length)
    shares = _NOTHING
    for end in range(_STEP, most + _STEP, _STEP):
        shares = np.append(shares, _outside(planes[0], len(shares), min(end, most), across))
        bright = np.flatnonzero(shares > _WRITING)
        if len(bright):
            shares = shares[: bright[0]]
            break
    for plane in planes[1:] if len(shares) else ():
        times = max(1, round(length / len(plane.values)))
        # What has colour in many places is no writing: fewer points are enough.
        coloured = np.repeat(_outside(plane, 0, -(-len(shares) // times), 2 * across), times)[: len(shares)]
        bright = np.flatnonzero(coloured > _COLOURED)
        shares = shares[: bright[0]] if len(bright) else shares
    return shares


def _outside(plane: Plane, first: int, end: int, across: int) -> np.ndarray:
    """Of each of these rows the share of pixels that are not black: float32 (end - first,)."""
    values = plane.values[first:end, :: max(1, across // _POINTS)]
    # Unsigned, what is below becomes large.
    outside = values - values.dtype.type(plane.low) > plane.high - plane.low if plane.low else values > plane.high
    points = values.shape[1]
    # Half the time of a sum.
    return outside.astype(np.float32) @ np.full(points, 1 / points, np.float32)


def merged(lines: Iterable[Lines]) -> Lines:
    """The most of each line in several frames; nothing where these are not of one size."""
    return reduce(_both, lines)


def _both(a: Lines, b: Lines) -> Lines:
    if a.size != b.size:
        return Lines((0, 0), _NOTHING, _NOTHING, _NOTHING, _NOTHING)
    sides = ((a.top, b.top), (a.bottom, b.bottom), (a.left, b.left), (a.right, b.right))
    shortest = ((one, other, min(len(one), len(other))) for one, other in sides)
    return Lines(a.size, *(np.maximum(one[:n], other[:n]) for one, other, n in shortest))


def judged(lines: Lines) -> Bars:
    """The bars of a scene, in pixels of its frames, of what `merged` says of these.

    A bar ends at the first line that is bright in many places, at one of the two sides at least: lines of a soft edge
    that are bright in few places, as compression leaves them, are cut off with it. It is cut one or two pixels further
    inside, at an even line: the outermost line may be half dark, and colours are stored for two pixels each way.
    """
    width, height = lines.size
    rows, columns = _clean(lines.top, lines.bottom, height), _clean(lines.left, lines.right, width)
    top, bottom = _ends(lines.top, lines.bottom, height, 1 - sum(columns) / max(1, width))
    left, right = _ends(lines.left, lines.right, width, 1 - sum(rows) / max(1, height))
    return Bars(*((side + 2) // 2 * 2 if side else 0 for side in (top, bottom, left, right)))


def _clean(first: np.ndarray, last: np.ndarray, length: int) -> tuple[int, int]:
    """Black lines at both ends, where they may be a pair."""
    pair = _black(first), _black(last)
    return pair if _is_pair(*pair, length) else (0, 0)


def _black(shares: np.ndarray) -> int:
    bright = shares > _SPARE
    return int(np.argmax(bright)) if bright.any() else len(shares)


def _ends(first: np.ndarray, last: np.ndarray, length: int, inside: float) -> tuple[int, int]:
    """Where the two bars of a pair end; inside: share of the lines that lies within the other pair."""
    most = int(_STRIP * length)
    pair = _black(first), _black(last)
    if not min(pair) or max(pair) >= most:
        return 0, 0
    if not _is_pair(*pair, length):
        # Writing ends the black of one bar: it is sought as wide as the other.
        pair = (_behind(first, pair[1]), pair[1]) if pair[0] < pair[1] else (pair[0], _behind(last, pair[0]))
        if abs(pair[0] - pair[1]) > max(2, _SOFT * length):
            return 0, 0
    ends = [_begins(shares, at, length, inside) for shares, at in zip((first, last), pair, strict=True)]
    if not any(ends):
        return 0, 0
    # A picture that is dark at one edge only begins where it does at the other.
    near = min(filter(None, ends))
    first_end, last_end = (max(at, near) for at in pair)
    sound = min(first_end, last_end) >= max(2, NARROWEST * length) and _is_pair(first_end, last_end, length)
    return (first_end, last_end) if sound else (0, 0)


def _behind(shares: np.ndarray, near: int) -> int:
    """Of the ends of black lines the nearest."""
    black = np.append(shares <= _SPARE, False)
    ends = np.flatnonzero(black[:-1] & ~black[1:]) + 1
    return int(ends[np.argmin(np.abs(ends - near))])


def _begins(shares: np.ndarray, at: int, length: int, inside: float) -> int:
    """The first line of the picture behind the black ones; 0 where it becomes bright by and by."""
    begin = np.flatnonzero(np.append(shares[at:], 1.0) >= _BEGIN * inside)[0]
    return at + int(begin) if begin <= max(4, _SOFT * length) else 0

"""Interlaced film: whether the two fields of a frame are of two times, and the picture at the time of the first.

Flags do not tell: much film is stored as two fields of one time, and would lose lines. So a flagged frame is compared
with its neighbours on what moves, as FFmpeg's idet does. Where its fields are of two times, one of them lies as near in
time to a field of the neighbour as to the other field of the frame itself.
"""

from typing import Any, cast

import av
import cv2
import numpy as np
from av.filter import Graph

from actors.media.planes import filters

_MOVES = 10
"""Difference of two frames, of 256, above which a point moves. A point is 4 pixels of a line, which smooths grain."""
_POINTS = 160
"""So many points of a line are looked at, or a few more."""
_FEWEST, _SHARE = 32, 0.002
"""Fewest points that move, and their smallest share."""
_STRENGTH = 3.0
"""By how much, of 256, lines of a neighbour and the frame's own differ in fit: with less nothing can be told."""
_APART, _EACH = 0.3, 0.1
"""How far the two orders of fields are apart, 0 to 1, in both neighbours together and in each: 0 where both fields are
of one time, 1 where they are half a frame apart."""
_OTHER = 3.0
"""A neighbour that differs so many times as much as the other one belongs to another shot."""


def combed(frame: av.VideoFrame, before: av.VideoFrame | None, after: av.VideoFrame | None) -> bool:
    """Whether something moves between the two fields of a frame; before, after: its neighbours."""
    here = _points(frame)
    past, following = (_Side(here, _points(near)) if near else None for near in (before, after))
    if past and following and past.differs > _OTHER * following.differs:
        past = None
    elif past and following and following.differs > _OTHER * past.differs:
        following = None
    # By how much worse the lines of a neighbour fit that are the nearer ones if the top field comes first, and if not.
    sides = [*([(past.odd, past.even)] if past else []), *([(following.even, following.odd)] if following else [])]
    top, bottom = (sum(side[order] for side in sides) for order in (0, 1))
    points = sum(side.points for side in (past, following) if side)
    most, least = max(top, bottom), min(top, bottom)
    if points < max(_FEWEST, _SHARE * len(sides) * here.size):
        return False
    if -2 * least >= _STRENGTH * points:  # its own do not fit: it cuts between its fields
        return True
    sure = 2 * most >= _STRENGTH * points and most - least >= _APART * (most - min(0.0, least))
    sign = 1 if bottom > top else -1
    return sure and all(sign * (side[1] - side[0]) >= _EACH * max(0.0, *side) for side in sides)


class _Side:
    """A neighbour of a frame, on the points that move between them."""

    def __init__(self, here: np.ndarray, near: np.ndarray) -> None:
        difference = cv2.absdiff(here, near)
        self.differs = float(difference.mean())
        moves = difference[1:-1] > _MOVES
        about = here[:-2] + here[2:]
        worse = (cv2.absdiff(2 * near[1:-1], about) - cv2.absdiff(2 * here[1:-1], about)) * moves
        self.odd, self.even = float(worse[::2].sum()), float(worse[1::2].sum())
        """By how much worse its odd and even lines fit between those of the frame than the frame's own, in all."""
        self.points = float(moves.sum())


def _points(frame: av.VideoFrame) -> np.ndarray:
    """The brightness of a frame, 0 to 255, in some points of all lines: int16 (height, n)."""
    part = frame.format.components[0]
    if frame.format.is_rgb or not frame.format.is_planar:
        frame = frame.reformat(format="gray", threads=1)
        part = frame.format.components[0]
    values = np.frombuffer(cast(Any, frame.planes[0]), np.uint16 if part.bits > 8 else np.uint8)
    values = values.reshape(-1, frame.planes[0].line_size // values.itemsize)[: frame.height, : frame.width]
    small: Any = cv2.resize(values, (max(1, frame.width // 4), frame.height), interpolation=cv2.INTER_AREA)
    return (small[:, :: max(1, small.shape[1] // _POINTS)] >> (part.bits - 8)).astype(np.int16)


class Deinterlacer:
    """Makes of frames the picture at the time of their first field, by FFmpeg's bwdif."""

    def __init__(self) -> None:
        self._like: tuple[Any, ...] = ()
        self._graph = Graph()
        self._pushed: tuple[av.VideoFrame | None, ...] = ()

    def __call__(
        self, frame: av.VideoFrame, before: av.VideoFrame | None, after: av.VideoFrame | None
    ) -> av.VideoFrame:
        """The picture of a frame, whose neighbours are those; None: there is none."""
        like = frame.format.name, frame.width, frame.height, frame.colorspace, frame.color_range
        if like != self._like:
            self._like, self._pushed = like, ()
            self._graph = filters(frame, ("bwdif", "mode=send_frame:deint=all"))
        before, after = before or frame, after or frame
        # It was given the last three: of frames one behind the other each is given once.
        follows = len(self._pushed) == 3 and self._pushed[1] is before and self._pushed[2] is frame
        for one in () if follows else (before, frame):
            self._push(one)
        made = self._push(after)
        self._pushed = before, frame, after
        assert made
        made.pts, made.time_base = frame.pts, cast(Any, frame.time_base)
        return made

    def _push(self, frame: av.VideoFrame) -> av.VideoFrame | None:
        """Give the filter a frame; returns the picture of the one before."""
        self._graph.vpush(frame)
        try:
            return self._graph.vpull()
        except BlockingIOError:  # for the very first it has none
            return None

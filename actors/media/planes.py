"""A frame that PyAV has decoded, as it is stored: its components without a copy, and what lies inside of bars."""

import re
from collections.abc import Callable
from typing import Any, cast

import av
import numpy as np
from av.filter import Graph

from actors.media.bars import BLACK, Bars, Plane

FULL_RANGE = 2
"""FFmpeg's number for colours from 0 to 255."""
_PLANAR = re.compile(r"yuv(j?)4\d\dp(|9le|10le|12le|14le|16le)")
_COLOUR = 10
"""How far, of 256, a stored colour may lie from grey in black: as far as in a pure colour that is just below BLACK."""


def planes(frame: av.VideoFrame, turn: Callable[[np.ndarray], np.ndarray] = np.asarray) -> list[Plane]:
    """Brightness and colours of a frame, with what is black in them; turn: makes them upright."""
    kind = _PLANAR.fullmatch(frame.format.name)
    if kind is None:
        frame = frame.reformat(format="yuv420p", dst_color_range="MPEG", threads=1)
    full = kind is not None and (bool(kind[1]) or frame.color_range == FULL_RANGE)
    parts = frame.format.components
    times = 1 << (parts[0].bits - 8)
    dark = BLACK - 1 if full else 16 + (BLACK - 1) * 219 // 255
    limits = (0, dark * times), *[((128 - _COLOUR) * times, (128 + _COLOUR) * times)] * 2
    found = []
    for plane, part, (low, high) in zip(frame.planes, parts, limits, strict=True):
        values = np.frombuffer(cast(Any, plane), np.uint16 if times > 1 else np.uint8)
        values = values.reshape(-1, plane.line_size // values.itemsize)[: part.height, : part.width]
        found.append(Plane(turn(values), low, high))
    return found


class Cropper:
    """Cuts frames at their edges, without a copy."""

    def __init__(self) -> None:
        self._like: tuple[Any, ...] = ()
        self._graph = Graph()

    def __call__(self, frame: av.VideoFrame, bars: Bars) -> av.VideoFrame:
        """What is inside of even numbers of lines, at most."""
        like = (frame.format.name, frame.width, frame.height, frame.colorspace, frame.color_range, bars)
        if like != self._like:
            width, height = frame.width - bars.left - bars.right, frame.height - bars.top - bars.bottom
            self._like = like
            self._graph = filters(frame, ("crop", f"{width}:{height}:{bars.left}:{bars.top}"))
        self._graph.vpush(frame)
        return self._graph.vpull()


def filters(frame: av.VideoFrame, *steps: tuple[str, str | dict[str, str] | None]) -> Graph:
    """FFmpeg's filters, each with its arguments, for frames like this one."""
    graph = Graph()
    graph.threads = 1
    begin = graph.add(
        "buffer",
        video_size=f"{frame.width}x{frame.height}",
        pix_fmt=frame.format.name,
        time_base=str(frame.time_base or "1/1"),
        colorspace=str(frame.colorspace),
        range=str(frame.color_range),
    )
    made = (graph.add(name, **args) if isinstance(args, dict) else graph.add(name, args) for name, args in steps)
    graph.link_nodes(begin, *made, graph.add("buffersink"))
    graph.configure()
    return graph

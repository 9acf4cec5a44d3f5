"""Decoded frames as a viewer sees them: upright, in the right colours, and deinterlaced."""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import av
import numpy as np
from av.filter import Graph
from av.video.reformatter import Interpolation, VideoReformatter

from actors.media.bars import NO_BARS, Bars
from actors.media.fields import Deinterlacer, combed
from actors.media.hdr import TRANSFERS, tone_mapping
from actors.media.planes import FULL_RANGE, Cropper, filters

_RANGES = {1: "tv", 2: "pc"}
_SPACES = {
    **{0: "gbr", 1: "bt709", 4: "fcc", 5: "bt470bg", 6: "smpte170m", 7: "smpte240m", 8: "ycgco", 9: "bt2020nc"},
    **{10: "bt2020c", 14: "ictcp", 15: "ipt-c2"},
}
_PRIMARIES = {
    **{1: "bt709", 4: "bt470m", 5: "bt470bg", 6: "smpte170m", 7: "smpte240m", 8: "film", 9: "bt2020"},
    **{10: "smpte428", 11: "smpte431", 12: "smpte432", 22: "ebu3213"},
}
_TRANSFERS = {
    **{1: "bt709", 4: "bt470m", 5: "bt470bg", 6: "smpte170m", 7: "smpte240m", 8: "linear", 11: "iec61966-2-4"},
    **{13: "iec61966-2-1", 14: "bt2020-10", 15: "bt2020-12", 17: "smpte428", **TRANSFERS},
}
_UNNAMED = 2
"""FFmpeg's number of a matrix, of primaries and of a transfer that a film does not name."""
_BT709, _BT2020 = 1, 9


@dataclass(frozen=True)
class Look:
    """What is done to frames before they are seen, beside turning them upright."""

    deinterlace: bool = False
    """Frames of two fields of two times become the picture at the time of the first."""
    tone_map: bool = False
    """HDR becomes SDR of BT.709."""
    hd_matrix: bool = False
    """Film that names no matrix has BT.709's where it is of high definition, as players take it, else BT.601's."""


AS_STORED = Look()


class Stored(NamedTuple):
    """How a film's first frame is stored, in the words of ffprobe; "" where the film does not say."""

    color_range: str = ""
    color_space: str = ""
    color_primaries: str = ""
    color_transfer: str = ""
    sample_aspect_ratio: str = ""
    rotation: int = 0
    """Degrees, clockwise, by which it is turned to be upright."""


NOT_KNOWN = Stored()


class Turn(NamedTuple):
    """How a stored frame becomes upright."""

    quarters: int = 0
    """Counter-clockwise."""
    mirrored: bool = False
    """Then left becomes right."""

    def bars(self, upright: Bars) -> Bars:
        """Bars of the upright frame in the stored one."""
        if self.mirrored:
            upright = upright._replace(left=upright.right, right=upright.left)
        return upright.turned(-self.quarters)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """The upright image of a stored one, (H, W, ...), without a copy."""
        image = np.rot90(image, self.quarters) if self.quarters else image
        return image[:, ::-1] if self.mirrored else image

    @property
    def steps(self) -> tuple[tuple[str, str | None], ...]:
        """The same as FFmpeg's filters."""
        flip: tuple[tuple[str, str | None], ...] = (("hflip", None),) if self.mirrored else ()
        return (*_TURNS[self.quarters], *flip)


_TURNS: tuple[tuple[tuple[str, str | None], ...], ...] = (
    (),
    (("transpose", "cclock"),),
    (("hflip", None), ("vflip", None)),
    (("transpose", "clock"),),
)


def turn_of(frame: av.VideoFrame) -> Turn:
    """How a frame is to be turned, by its display matrix.

    Not for each frame of a film: in PyAV a frame and its side data hold each other until garbage is collected.
    """
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return Turn()
    across, down, back, along = (int(value) for value in np.frombuffer(bytes(data), np.int32)[[0, 1, 3, 4]])
    mirrored = across * along < down * back
    quarters = round(frame.rotation / 90)
    return Turn((-2 - quarters if mirrored else quarters) % 4, mirrored)


def is_hdr(frame: av.VideoFrame) -> bool:
    """Whether a frame is PQ or HLG."""
    return frame.color_trc in TRANSFERS


def stored(frame: av.VideoFrame, shape: Fraction | None) -> Stored:
    """How a frame is stored; shape: width of its pixels divided by their height, None where it is not known."""
    return Stored(
        _RANGES.get(frame.color_range, ""),
        _SPACES.get(frame.colorspace, ""),
        _PRIMARIES.get(frame.color_primaries, ""),
        _TRANSFERS.get(frame.color_trc, ""),
        f"{shape.numerator}:{shape.denominator}" if shape else "",
        -90 * turn_of(frame).quarters % 360,
    )


def name_colours(frame: av.VideoFrame, look: Look) -> bool:
    """Give a frame the matrix, primaries and transfer that its film does not name; whether they are BT.709's."""
    if frame.colorspace != _UNNAMED or frame.format.is_rgb:
        return False
    if look.tone_map and is_hdr(frame):
        frame.colorspace = frame.color_primaries = _BT2020
        return False
    high = look.hd_matrix and (frame.width >= 1280 or frame.height > 576)
    if high:
        frame.colorspace = _BT709
        frame.color_primaries = _BT709 if frame.color_primaries == _UNNAMED else frame.color_primaries
        frame.color_trc = _BT709 if frame.color_trc == _UNNAMED else frame.color_trc
    return high


def converted(frame: av.VideoFrame, look: Look) -> tuple[str, ...]:
    """What is done to all frames of a film, by its first; its colours are named then."""
    turn = turn_of(frame)
    done = {
        "rotated": bool(turn.quarters),
        "mirrored": turn.mirrored,
        "tone_mapped": look.tone_map and is_hdr(frame),
        "assumed_bt709": name_colours(frame, look),
    }
    return tuple(name for name, is_done in done.items() if is_done)


class Viewer:
    """Makes pictures of a film's frames, and keeps what FFmpeg needs for that from frame to frame."""

    def __init__(self, look: Look = AS_STORED) -> None:
        self.look = look
        self._crop = Cropper()
        self._scalers: dict[Any, VideoReformatter] = {}
        self._tones: dict[Any, tuple[Any, Graph]] = {}
        self._deinterlace = Deinterlacer()
        self._fields: tuple[Any, Graph] = None, Graph()
        self._turns: dict[int, Turn] = {}

    def turn(self, frame: av.VideoFrame) -> Turn:
        """How a frame is to be turned: as the first one of the film with the same rotation."""
        rotation = frame.rotation
        if rotation not in self._turns:
            self._turns[rotation] = turn_of(frame)
        return self._turns[rotation]

    def rgb(self, frame: av.VideoFrame, size: tuple[int, int], smooth: bool, bars: Bars) -> np.ndarray:
        """What of a frame is inside of bars, as stored, at a width and height: uint8 (height, width, 3)."""
        if bars != NO_BARS:
            # Of all sizes and bars one is kept, that of the scene.
            frame = self._crop(frame, bars)
        key: Any = (size, smooth) if bars == NO_BARS else "inside"
        scaler = self._scalers.setdefault(key, VideoReformatter())
        how = Interpolation.BILINEAR if smooth else Interpolation.FAST_BILINEAR
        if not (self.look.tone_map and is_hdr(frame)):
            return scaler.reformat(frame, *size, "rgb24", interpolation=how, threads=1).to_ndarray()
        deep = scaler.reformat(frame, *size, "rgb48le", interpolation=how, threads=1)
        return self._toned(deep, frame.color_trc, key).to_ndarray()

    def _toned(self, deep: av.VideoFrame, transfer: int, key: Any) -> av.VideoFrame:
        # As RGB is: the frame before had a matrix.
        deep.colorspace, deep.color_range = 0, FULL_RANGE
        like, (before, graph) = (deep.width, deep.height, transfer), self._tones.get(key, (None, None))
        if graph is None or like != before:
            with tone_mapping(transfer) as steps:
                graph = filters(deep, *steps, ("format", "rgb24"))
            self._tones[key] = like, graph
        graph.vpush(deep)
        return graph.vpull()

    def progressive(
        self, frame: av.VideoFrame, before: av.VideoFrame | None, after: av.VideoFrame | None
    ) -> tuple[av.VideoFrame, bool]:
        """A frame that is flagged as interlaced, of one time, and whether it had two; before, after: its neighbours."""
        near = [one if one and _like(one) == _like(frame) else None for one in (before, after)]
        if combed(frame, *near):
            return self._deinterlace(frame, *near), True
        like, graph = self._fields
        if like != _like(frame):
            # Else its fields would be scaled each by itself.
            graph = filters(frame, ("setfield", "prog"))
            self._fields = _like(frame), graph
        graph.vpush(frame)
        return graph.vpull(), False


def _like(frame: av.VideoFrame) -> tuple[Any, ...]:
    return frame.format.name, frame.width, frame.height, frame.colorspace, frame.color_range

"""Motion vectors of a codec: whence blocks of a frame are taken when it is decoded, which FFmpeg can tell.

Only frames are looked at that are predicted from the past alone (P): of the others FFmpeg does not tell how far away
the frame is that they are predicted from. A P frame is taken to be predicted from the last frame before it, in order of
presentation, that is no B frame: encoders may also choose an earlier one.
"""

from typing import Any, NamedTuple

import av
import numpy as np
from av.codec.context import Flags2
from av.sidedata.sidedata import SideDataContainer
from av.video.frame import PictureType

EXPORT = Flags2.export_mvs
"""What a decoder is opened with to tell them. FFmpeg's of H.264, H.263 and MPEG-1, 2 and 4 do."""
BLOCK, MOST_CELLS = 16, 64
"""Side of a block of a codec in pixels, and most cells of a grid in a row or column."""


class Vectors(NamedTuple):
    """Motion vectors of a frame, summed in the cells of a grid."""

    sums: np.ndarray
    """float32 (rows, columns, 3): sums over pixels of how far they have moved to the right and down in pixels, and how
    many they are; 0 where blocks have no vector."""
    cell: int
    """Side of a cell in pixels."""
    width: int
    """Of the frame as it is stored, in pixels."""
    height: int


def vectors_of(frame: av.VideoFrame) -> Vectors | None:
    """The vectors of a frame that others are predicted from; None where it is a B frame."""
    if frame.pict_type in (PictureType.B, PictureType.BI):
        return None
    cell = BLOCK * -(-max(frame.width, frame.height) // (BLOCK * MOST_CELLS))
    rows, columns = -(-frame.height // cell), -(-frame.width // cell)
    about = cell, frame.width, frame.height
    # Not frame.side_data: in PyAV that and the frame hold each other until garbage is collected.
    make: Any = SideDataContainer
    data = make(frame).get("MOTION_VECTORS") if frame.pict_type == PictureType.P else None
    if data is None:
        return Vectors(np.zeros((rows, columns, 3), np.float32), *about)
    found = data.to_ndarray()
    place = np.clip(found["dst_y"] // cell, 0, rows - 1) * np.int64(columns) + np.clip(
        found["dst_x"] // cell, 0, columns - 1
    )
    area = found["w"] * np.float32(1) * found["h"]
    # They point to where a block comes from.
    moved = (-area * found[name] / np.maximum(found["motion_scale"], 1) for name in ("motion_x", "motion_y"))
    sums = [np.bincount(place, weights, rows * columns) for weights in (*moved, area)]
    return Vectors(np.stack(sums, 1).astype(np.float32).reshape(rows, columns, 3), *about)

"""Whether a file holds what its container says: told from its structure, without decoding."""

import os
from typing import BinaryIO

import av
from av.container import InputContainer

from actors.media.clock import MATROSKA, MOV


def has_index(file: BinaryIO) -> bool:
    """Whether an mp4 has its whole index (moov)."""
    end = file.seek(0, 2)
    file.seek(0)
    while len(head := file.read(8)) == 8:
        size, used = int.from_bytes(head[:4], "big"), 8
        if size == 1:
            size, used = int.from_bytes(file.read(8), "big"), 16
        after = file.tell() + size - used
        if head[4:] == b"moov":
            return after <= end
        if size < used or after > end:
            return False
        file.seek(after)
    return False


def lacks_samples(container: InputContainer, stream: av.VideoStream) -> bool:
    """Whether the index of an mp4 points behind the end of the file."""
    if container.format.name != MOV or not len(stream.index_entries) or container.size <= 0:
        return False
    last = stream.index_entries[-1]
    return last.pos + last.size > container.size


def is_whole(file: BinaryIO, container: str) -> bool:
    """Whether the last piece of a file ends where the file does; False where its container does not tell.

    container: FFmpeg's name; pieces are the boxes of an mp4, the elements of a Matroska file, the tags of an flv.
    """
    size = file.seek(0, os.SEEK_END)
    if container == MOV:
        return _boxes_end(file, size) == size
    if container == MATROSKA:
        return _elements_end(file, size) == size
    if container == "flv":
        return _tags_end(file, size) == size
    return False


def _boxes_end(file: BinaryIO, size: int) -> int:
    """Where the last box begins that is not whole, or the file ends."""
    at = 0
    while at < size:
        file.seek(at)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        if len(head) < 8 or length < 8 or at + length > size:
            return at
        at += length
    return at


_SEGMENT, _CLUSTER = 0x18538067, 0x1F43B675


def _elements_end(file: BinaryIO, size: int) -> int:
    """As `_boxes_end`, of elements at the top and in segments and clusters whose length is not known."""
    at = 0
    while at < size:
        file.seek(at)
        head = file.read(16)
        kind, used = _number(head, keep_marker=True)
        length, more = _number(head[used:])
        unknown = length == (1 << 7 * more) - 1
        if not used or not more or (unknown and kind not in (_SEGMENT, _CLUSTER)):
            return at
        end = at + used + more + length
        if not unknown and end > size:
            return at
        # Inside a segment are clusters, one of which may be the last that came.
        at = at + used + more if unknown or kind == _SEGMENT else end
    return at


def _number(data: bytes, keep_marker: bool = False) -> tuple[int, int]:
    """A number of variable length as EBML writes it, and its bytes; 0 bytes where there is none."""
    length = 9 - data[0].bit_length() if data and data[0] else 0
    if not length or len(data) < length:
        return 0, 0
    value = int.from_bytes(data[:length], "big")
    return (value if keep_marker else value & ((1 << 7 * length) - 1)), length


def _tags_end(file: BinaryIO, size: int) -> int:
    """As `_boxes_end`, of tags, each of which is followed by its length."""
    file.seek(5)
    at = int.from_bytes(file.read(4), "big") + 4
    while at < size:
        file.seek(at)
        head = file.read(11)
        end = at + 11 + int.from_bytes(head[1:4], "big") + 4
        if len(head) < 11 or end > size:
            return at
        at = end
    return at

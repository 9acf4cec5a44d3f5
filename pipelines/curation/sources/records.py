"""What the formats of metadata share: how files are opened, which ids and times there are, and how faults are told.

A file that cannot be understood as a whole is a MetadataError. A value of one record that cannot be used is a Fault,
which costs that record: its code and message become a row.
"""

import bz2
import gzip
import hashlib
import lzma
import math
import posixpath
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import PurePosixPath
from typing import Any, BinaryIO, NamedTuple

from actors.core import storage
from actors.core.addresses import NAME_BYTES, short_name
from actors.core.errors import UserError
from actors.core.whole_files import TEMPORARY
from actors.media.times import parse_time

BAD_METADATA = "bad_metadata"
"""Code of a record that lacks a key or has a value of another kind; where all are so, the input is another format."""
NAME_RULE = f"use 1 to {NAME_BYTES} bytes of UTF-8, not . or .., and no / or \\"

_PACKED: dict[str, tuple[bytes, Callable[[Any], Any]]] = {
    ".gz": (b"\x1f\x8b", lambda file: gzip.GzipFile(fileobj=file)),
    ".bz2": (b"BZh", bz2.BZ2File),
    ".xz": (b"\xfd7zXZ\0", lzma.LZMAFile),
}
"""How packed files are named, how they begin, and what reads them."""
_OTHERS = {
    b"\x28\xb5\x2f\xfd": "is packed with Zstandard; unpack it, or pack it with gzip",
    b"PK\x03\x04": "is a ZIP file; unpack it, or export it as CSV",
    b"\xff\xfe": "is UTF-16; save it as UTF-8",
    b"\xfe\xff": "is UTF-16; save it as UTF-8",
}
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_EMPTY = frozenset(("", "nan", "nat", "null", "none", "<na>"))
"""How tables write that there is no value."""
_DAYS = re.compile(r"([0-9]{1,6}) days?,? *\+?(.*)")


class MetadataError(UserError):
    """The input cannot be understood; the message says where and what to do."""


@dataclass(frozen=True)
class Scene:
    """A piece of a span that is to be cut."""

    scene_id: str
    """Unique in its video."""
    caption: str
    """What the input says of it, or ""."""
    first: int
    """Its first frame, counted from the start of the span."""
    end: int
    """The frame after its last, counted alike; -1: to the end of the span."""
    ordinal: int
    """Its place among all scenes of the video in the input, rejected ones too, from 0."""


@dataclass(frozen=True)
class Span:
    """A stretch of a video that holds scenes."""

    clip_id: str
    """Unique in its video; HDVG's key as it stands, "<video_id>.<k>.mp4", or "<video_id>.<k>" for row k of a table."""
    start_s: float
    """Seconds in the video."""
    end_s: float | None
    """Seconds in the video; None: the end of the film."""
    scenes: tuple[Scene, ...]
    """In the order of the input, at least one."""


class Fault(NamedTuple):
    """Why a record cannot be used."""

    code: str
    """bad_metadata, bad_name, bad_span, bad_scene_cut or bad_url."""
    message: str
    """The file, the record, the key, and what to do."""


class Known(NamedTuple):
    """A video that stands in the input as it did when it was last planned, and could be cut then."""

    video_id: str
    url: str
    origin: tuple[int, int]
    """`film` and `version` of its source then."""
    at: int
    """Its place in the last plan."""
    wanted: frozenset[str]
    """Ids of those of its scenes that are wanted."""


Lookup = Callable[[bytes], Known | None]
"""The video that is known by a digest."""


class Raw(NamedTuple):
    """A video as it stands in the input."""

    video_id: str
    url: str
    spans: list[Span] | None
    """Its spans, with scenes that may not be sound; None: shots are to be detected."""
    fault: Fault | None = None
    """Why nothing of it can be cut."""
    entry: storage.Entry | None = None
    """Its file, where that was listed."""
    faults: Mapping[int, Fault] = {}
    """Why single scenes cannot be cut, by their ordinal."""
    digest: bytes = b""
    """What tells its text from others; b"": it has none of its own."""
    known: Known | None = None
    """What is known of it, where only the scenes that are wanted were read."""
    whole: "Callable[[], Raw] | None" = None
    """Reads all of it, where it is known."""


def nothing_known(digest: bytes) -> None:
    """No video is known."""


def digest_of(text: bytes, folder: str) -> bytes:
    """What tells the text of a video from others, wherever it stands in inputs of this folder."""
    return hashlib.blake2b(text, digest_size=16, key=hashlib.blake2b(folder.encode(), digest_size=16).digest()).digest()


# -------------------------------------------------------------------------------------------------------------- opening


def format_of(input: str) -> str:
    """The suffix that tells the format, in lower case; that of packed files is left out."""
    path = PurePosixPath(input.lower())
    return path.with_suffix("").suffix if path.suffix in _PACKED else path.suffix


@contextmanager
def opened(input: str) -> Iterator[BinaryIO]:
    """A metadata file to read, unpacked, after its byte order mark; MetadataError where it cannot be unpacked."""
    with storage.stream(input) as source:
        start = _peek(source)
        unpack = next((reader for mark, reader in _PACKED.values() if start.startswith(mark)), None)
        file = unpack(source) if unpack else source
        try:
            start = _peek(file)
            for mark, problem in _OTHERS.items():
                if start.startswith(mark):
                    raise MetadataError(f"{input}: {problem}")
            if start.startswith(_BYTE_ORDER_MARK):
                file.read(len(_BYTE_ORDER_MARK))
            yield file
        except (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError) as error:
            raise _broken(input, error) from error
        except OSError as error:
            # bz2 has no error of its own.
            if error.errno is None and isinstance(file, bz2.BZ2File):
                raise _broken(input, error) from error
            raise


def _peek(file: Any) -> bytes:
    return file.peek(6)[:6]


def _broken(input: str, error: Exception) -> MetadataError:
    return MetadataError(f"{input}: cannot be unpacked ({error}); fetch or pack it again")


def folder_of(input: str) -> str:
    """The folder that relative urls of a metadata file start at."""
    return storage.absolute(input).rpartition("/")[0]


# --------------------------------------------------------------------------------------------------------------- values


def resolved(url: str, folder: str) -> str:
    """A url of the metadata, a relative path taken from the metadata's folder."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", url) or url.startswith("/"):
        return url
    root, path = ("s3://", folder.removeprefix("s3://")) if folder.startswith("s3://") else ("", folder)
    return root + posixpath.normpath(f"{path}/{url}")


def is_usable(value: str) -> bool:
    """Whether files and folders can be named by it."""
    unusable = not value.strip() or value in (".", "..") or re.search(r"[/\\\0\ud800-\udfff]", value)
    return not (unusable or value.startswith(TEMPORARY) or len(value.encode()) > NAME_BYTES)


def id_fault(value: str, source: str, path: tuple[str | int, ...]) -> Fault | None:
    """The fault of an id by which no file can be named."""
    if is_usable(value):
        return None
    text = f"{shown(value)} cannot be an id, since files are named by it; {NAME_RULE}"
    return Fault("bad_name", place(source, path, text))


def named(value: str, instead: str) -> str:
    """What stands in tables for an id that cannot be used: text that they hold; `instead` where it is empty."""
    text = value.encode(errors="backslashreplace").decode().replace("\0", r"\x00")
    return short_name(text) if text.strip() else instead


def is_empty(value: Any) -> bool:
    """Whether a value says that there is none: null, NaN, empty text, or a word for it."""
    if isinstance(value, str):
        return value.strip().lower() in _EMPTY
    return value is None or (isinstance(value, float) and math.isnan(value))


def time_of(value: Any) -> float | None:
    """Seconds, None where the value is empty.

    It may be what `parse_time` reads, a decimal number, or a duration as pandas and Python write it: "0 days 00:01:30",
    "1 day, 0:01:30". Raises UserError for anything else.
    """
    if is_empty(value):
        return None
    if isinstance(value, Decimal):
        return parse_time(float(value))
    if isinstance(value, str) and (days := _DAYS.fullmatch(value.strip())):
        return int(days[1]) * 86400 + (parse_time(days[2]) if days[2] else 0.0)
    return parse_time(value)


def place(source: str, path: tuple[str | int, ...], text: str) -> str:
    """A message with its place: `corpus.json: "abc"."clip"."abc.0.mp4"."scene_split"[2]: …`."""
    keys = "".join(f"[{key}]" if isinstance(key, int) else f'."{_short(key)}"' for key in path).removeprefix(".")
    return ": ".join(part for part in (source, keys, text) if part)


def shown(value: Any) -> str:
    """A value in a message, in at most 80 characters."""
    return _short(repr(value))


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}…"

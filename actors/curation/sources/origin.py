"""Where a row of scores/ comes from: which film, which version of it, and which times.

Two numbers of 64 bits say it. `film` is the name and size of the file, and its place. `version` is its modification
time or ETag, and the times of the scene. Each half is a CRC-32, 0 where nothing is known: a change goes unnoticed once
in four billion. Rows of earlier versions have neither.
"""

import re
import struct
import urllib.parse
import zlib
from dataclasses import dataclass
from pathlib import PurePosixPath

HALF = 32
_LOW = (1 << HALF) - 1
_SIGNED = re.compile(r"x-amz-.*|x-goog-.*|signature|sig|expires|key-pair-id|policy|token|s[eprtv]|sk[a-z]+", re.I)
"""Parts of a query that say who may read a file, and for how long: they change, and the film does not."""


@dataclass(frozen=True)
class Source:
    """A film as it lies where the input says."""

    url: str
    size: int | None = None
    """Bytes; None: not known without a request to its host."""
    stamp: str = ""
    """Modification time or ETag; "": not known."""

    @property
    def film(self) -> int:
        """Name and size, and place."""
        name = "" if self.size is None else f"{PurePosixPath(self.url).name}/{self.size}"
        return _packed(_code(name), _code(unsigned(self.url)))

    @property
    def version(self) -> int:
        """Modification time or ETag, and no times."""
        return _packed(_code(self.stamp), 0)


def unsigned(url: str) -> str:
    """A url without what signs it."""
    if "?" not in url or not url.lower().startswith(("http://", "https://")):
        return url
    whole, _, query = url.partition("?")
    kept = [part for part in query.split("&") if not _SIGNED.fullmatch(urllib.parse.unquote(part.partition("=")[0]))]
    return f"{whole}?{'&'.join(kept)}" if kept else whole


def times(start_s: float, end_s: float | None, first: int, end: int) -> int:
    """The times of a scene: its span, and its frames in it."""
    return zlib.crc32(struct.pack("<ddqq", start_s, -1.0 if end_s is None else end_s, first, end))


def with_times(version: int, code: int) -> int:
    """The version of a film, with the times of a scene."""
    return version | code


def same_film(old: tuple[int, int], new: tuple[int, int]) -> bool:
    """Whether (film, version) of a row and of the input are of one and the same film.

    Where size and modification time or ETag are known, it is one of the same name and size; at the same place also of
    the same time or ETag, while at another it is a copy. Otherwise it is one at the same place.
    """
    if old == (0, 0):
        return True
    moved = (old[0] ^ new[0]) & _LOW
    stamps = old[1] >> HALF, new[1] >> HALF
    if stamps[0] and stamps[1]:
        return old[0] >> HALF == new[0] >> HALF and bool(moved or stamps[0] == stamps[1])
    return not moved


def moved(old: tuple[int, int], new: tuple[int, int]) -> bool:
    """Whether a film lies at another place than a row's did."""
    return old != (0, 0) and bool((old[0] ^ new[0]) & _LOW)


def same_times(old: tuple[int, int], code: int) -> bool:
    """Whether a row is of a scene with these times."""
    return old == (0, 0) or old[1] & _LOW == code


def _code(text: str) -> int:
    return zlib.crc32(text.encode()) if text else 0


def _packed(high: int, low: int) -> int:
    number = high << HALF | low
    return number - (1 << 64) if number >> 63 else number

"""Images in tar files, one tar a film, as MovieNet has its key frames: listed and read in place, never unpacked.

A file in a tar has an address of its own, `TAR#NAME@START+SIZE`, so that it is read by one request for its bytes.
"""

import hashlib
import json
import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from actors.core import storage
from actors.core.addresses import is_s3, short_name
from actors.core.errors import UserError
from actors.core.storage import Entry
from actors.core.temporary import private_folder

TAR = ".tar"
"""How names of archives end, in either case."""
TARS = 8
"""Archives that are listed at once."""
_MEMBER = re.compile(r"(.+\.tar)#.+@(\d+)\+(\d+)", re.IGNORECASE | re.DOTALL)

_END = bytes(tarfile.BLOCKSIZE)


class ArchiveError(ValueError):
    """A file that is no tar, is compressed, or is cut off."""


def is_tar(name: str) -> bool:
    """Whether a name is that of an archive."""
    return name.lower().endswith(TAR)


def in_tar(uri: str) -> bool:
    """Whether an address is that of a file in a tar."""
    return _MEMBER.fullmatch(uri) is not None


def film_of(uri: str) -> str:
    """The film whose files an archive holds: its name without the ending."""
    return short_name(PurePosixPath(uri.rpartition("/")[2]).stem)


def members(uri: str) -> Iterator[Entry]:
    """The files in a tar in their order, named as below the film's own folder; raises ArchiveError.

    Of a local file only headers are read. A tar in S3, which has no index, is streamed once: what it holds is kept in
    this user's folder in TMPDIR for as long as it stays the same file.
    """
    index = _index(uri) if is_s3(uri) else None
    found = _kept(index) if index else None
    if found is None:
        found = [(about.name, about.offset_data, about.size) for _, about in _walked(uri)]
        if index:
            storage.write_bytes(str(index), zlib.compress(json.dumps(found).encode()))
    for name, start, size in found:
        yield Entry(_own_name(name, uri), f"{uri}#{name}@{start}+{size}", size)


def _index(uri: str) -> Path:
    """Where the list of a tar's files is kept: another file of the same name has another place."""
    about = storage.find(uri)
    name = hashlib.sha256(repr((uri, about.size, about.stamp)).encode()).hexdigest()[:32]
    return private_folder("tars") / f"{name}.json.z"


def _kept(index: Path) -> list[tuple[str, int, int]] | None:
    """The list as it was written; None where there is none, or a damaged one."""
    try:
        return [(name, start, size) for name, start, size in json.loads(zlib.decompress(index.read_bytes()))]
    except (FileNotFoundError, zlib.error, ValueError):
        return None


def contents(uri: str) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of each file in a tar, in one pass; raises ArchiveError where it ends early."""
    for file, about in _walked(uri):
        found = file.extractfile(about)
        assert found
        yield _own_name(about.name, uri), found.read()


def unpacked(entries: Iterable[Entry]) -> Iterator[Entry]:
    """The entries of a listing, with the files in each tar as if they lay in a folder of its name.

    Raises UserError where a tar cannot be read.
    """

    def below(entry: Entry) -> list[Entry]:
        if not is_tar(entry.name):
            return [entry]
        folder = entry.name.removesuffix(entry.name[-len(TAR) :])
        try:
            return [Entry(f"{folder}/{one.name}", one.uri, one.size, entry.stamp) for one in members(entry.uri)]
        except ArchiveError as error:
            raise UserError(f"{entry.uri}: {error}. Download it again, or remove it.") from error

    with ThreadPoolExecutor(TARS) as threads:
        for some in threads.map(below, entries):
            yield from some


def read_bytes(uri: str) -> bytes:
    """All of a file, or of one in a tar by its address. Raises FileNotFoundError."""
    if not (found := _MEMBER.fullmatch(uri)):
        return storage.read_bytes(uri)
    return storage.read_part(found[1], int(found[2]), int(found[3]))


def _walked(uri: str) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    try:
        with storage.stream(uri) as data, tarfile.open(fileobj=data, mode="r|" if is_s3(uri) else "r:") as file:
            for about in file:
                if about.isfile():
                    yield file, about
            end = file.offset
    except tarfile.TarError as error:
        raise ArchiveError(f"no plain tar, or one that is cut off ({error})") from error
    # tarfile takes one that breaks off at a header for complete.
    if storage.read_part(uri, end, len(_END)) != _END:
        raise ArchiveError(f"cut off at {end:,} bytes, without the end mark of a tar")


def _own_name(name: str, uri: str) -> str:
    name = name.removeprefix("./")
    first, _, rest = name.partition("/")
    return rest if rest and first == film_of(uri) else name

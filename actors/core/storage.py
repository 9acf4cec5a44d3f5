"""The only door to files: every URI is a path, `file://…` or `s3://bucket/key`.

A file appears whole or not at all. An S3 store that is away for a while (a cut connection, SlowDown, 500, a timeout) is
waited for, also in the middle of a body; what will not pass is raised as FileNotFoundError, PermissionError,
ConnectionError (gave up) or another OSError, with the URI and what to do. The endpoint comes from AWS_ENDPOINT_URL and
credentials from the environment or the usual AWS files; neither is logged or part of a message.
"""

import io
import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO

from actors.core.addresses import (
    is_s3,
    local_path,
    no_other_kind,
    path_or_uri,
    shown_name,
)
from actors.core.errors import UserError
from actors.core.local_faults import patiently
from actors.core.local_files import Entry, file_entry, local_entry, local_listing
from actors.core.meters import FOLDER, METERS, READ, S3, WRITTEN
from actors.core.temporary import TemporaryFolder, check_space
from actors.core.whole_files import TEMPORARY, age_of, create, replacing

ROOM = 50_000_000
"""Bytes without which no command has room for its results."""


def _s3():
    # boto3 takes a third of a second to import, which a command without S3 need not wait for.
    from actors.core import s3

    return s3


def join(root: str, *names: str) -> str:
    """The URI of a file below the folder `root`; a `file://` root becomes its path.

    Raises ValueError for a name that would leave the root.
    """
    for name in names:
        if name.startswith("/") or not all(name.split("/")) or {".", ".."} & set(name.split("/")):
            raise UserError(
                f"not a name below {root}: {name!r}; it must be relative, without empty parts, '.' and '..'"
            )
    return os.path.join(root if is_s3(root) else local_path(root), *names)


def exists(uri: str) -> bool:
    """Whether a file (not a folder) is there."""
    if not is_s3(uri):
        return os.path.isfile(local_path(uri))
    try:
        find(uri)
    except FileNotFoundError:
        return False
    return True


def size(uri: str) -> int:
    """Bytes of a file. Raises FileNotFoundError."""
    return find(uri).size


def find(uri: str) -> Entry:
    """One file as a listing of its folder has it. Raises FileNotFoundError."""
    name = uri.rsplit("/", 1)[-1]
    if is_s3(uri):
        return _s3().find(name, uri)
    if not os.path.isfile(local_path(uri)):
        raise FileNotFoundError(f"no file {uri}")
    return local_entry(name, uri, os.stat(local_path(uri)))


def read_bytes(uri: str) -> bytes:
    """All of a file. Raises FileNotFoundError."""
    if not is_s3(uri):
        with no_other_kind(uri):
            return _counted(READ, uri, patiently(local_path(uri), Path(local_path(uri)).read_bytes))
    return _counted(READ, uri, _s3().read_bytes(uri))


def read_part(uri: str, start: int, size: int) -> bytes:
    """So many bytes of a file from an offset on; fewer where it ends before. Raises FileNotFoundError."""
    if is_s3(uri):
        return _counted(READ, uri, _s3().read_part(uri, start, size))

    def read() -> bytes:
        with open(local_path(uri), "rb") as file:
            file.seek(start)
            return file.read(size)

    with no_other_kind(uri):
        return _counted(READ, uri, patiently(local_path(uri), read))


def _counted(what: str, uri: str, data: bytes) -> bytes:
    METERS.add(what, len(data), S3 if is_s3(uri) else FOLDER)
    return data


def write_bytes(uri: str, data: bytes) -> None:
    """Write a file in one step, in place of what may be there; folders are made."""

    def write() -> None:
        with replacing(local_path(uri)) as file:
            file.write(data)

    if is_s3(uri):
        _s3().write_bytes(uri, data)
    else:
        patiently(local_path(uri), write)
    _counted(WRITTEN, uri, data)


def create_bytes(uri: str, data: bytes) -> bool:
    """Write a file in one step unless there is one; returns whether it was written. Of several at once one succeeds."""
    if not is_s3(uri):
        return patiently(local_path(uri), lambda: create(local_path(uri), data))
    # Where the answer to a request was lost, its repetition finds what it wrote itself.
    return _s3().create_bytes(uri, data) or (exists(uri) and read_bytes(uri) == data)


def age_s(uri: str) -> float:
    """Seconds since a file was written, by the clock of its store: those of machines differ.

    Raises FileNotFoundError.
    """
    return _s3().age_s(uri) if is_s3(uri) else age_of(local_path(uri))


def delete(uri: str) -> None:
    """Remove a file; one that is not there is fine."""
    if is_s3(uri):
        _s3().delete(uri)
    else:
        Path(local_path(uri)).unlink(missing_ok=True)


def download(uri: str, path: str | Path) -> None:
    """Copy a file to a local path in one step. Raises FileNotFoundError."""
    with stream(uri) as source, replacing(str(path)) as file:
        shutil.copyfileobj(source, file, 1 << 20)


def upload(path: str | Path, uri: str) -> None:
    """Copy a local file to a URI in one step, in place of what may be there."""
    if not is_s3(uri):
        with open(path, "rb") as source, replacing(local_path(uri)) as file:
            shutil.copyfileobj(source, file, 1 << 20)
    else:
        _s3().upload(path, uri)
    METERS.add(WRITTEN, os.path.getsize(path), S3 if is_s3(uri) else FOLDER)


@contextmanager
def local(uri: str) -> Iterator[Path]:
    """A path at which the file can be read: its own, or that of a copy which is removed afterwards."""
    if not is_s3(uri):
        path = Path(local_path(uri))
        with no_other_kind(uri):
            there = path.is_file()
        if not there:
            raise FileNotFoundError(f"no file {uri}")
        METERS.add(READ, path.stat().st_size, FOLDER)
        yield path
        return
    with TemporaryFolder() as folder:
        path = folder / uri.rsplit("/", 1)[-1]
        check_space(folder, size(uri), uri)
        download(uri, path)
        yield path


@contextmanager
def local_folder(uri: str) -> Iterator[Path]:
    """A folder in which all files below `uri` can be read: itself, or a copy that is removed afterwards.

    Raises FileNotFoundError where there are none.
    """
    if not is_s3(uri):
        path = Path(local_path(uri))
        if not path.is_dir():
            raise FileNotFoundError(f"no folder {uri}")
        yield path
        return
    with TemporaryFolder() as temporary:
        path = temporary / uri.rstrip("/").rsplit("/", 1)[-1]
        entries = list(listing(uri))
        check_space(temporary, sum(entry.size for entry in entries), uri)
        for entry in entries:
            (path / entry.name).parent.mkdir(parents=True, exist_ok=True)
            download(entry.uri, path / entry.name)
        if not path.is_dir():
            raise FileNotFoundError(f"no files below {uri}")
        yield path


def check_writable(folder: str) -> None:
    """Raise UserError where no file could be written below a folder, or none of ROOM bytes; writes and makes nothing.

    A folder that does not exist yet is made later, so its nearest parent counts.
    """
    if is_s3(folder):
        try:
            _s3().check_writable(folder)
        except (FileNotFoundError, PermissionError) as error:
            raise UserError(f"cannot write to {folder}: {error}") from error
        return
    path = Path(os.path.abspath(local_path(folder)))
    there = next(one for one in (path, *path.parents) if os.path.lexists(one))
    problem = ""
    if not there.is_dir():
        problem = f"{there} is no folder"
    elif not os.access(there, os.W_OK | os.X_OK):
        problem = f"{there} is read-only for this user"
    elif (free := shutil.disk_usage(there).free) < ROOM:
        problem = f"{free / 1e6:.0f} MB are free there, and at least {ROOM / 1e6:.0f} are needed"
    if problem:
        raise UserError(f"cannot write to {folder}: {problem}. Set another folder, or mend that.")


def stream(uri: str) -> AbstractContextManager[BinaryIO]:
    """Open a file to read it in pieces, with seek; a broken connection goes on where it broke.

    Raises FileNotFoundError.
    """
    if is_s3(uri):
        return io.BufferedReader(_s3().S3File(uri), 1 << 20)
    with no_other_kind(uri):
        return open(local_path(uri), "rb")


def listing(prefix: str, suffixes: tuple[str, ...] = (), as_input: bool = False) -> Iterator[Entry]:
    """The files below a folder at any depth, read in pages; a missing folder holds none.

    They come sorted by the code points of the whole name, as S3 does it; a store that only resembles S3 may have
    another order, always the same. `suffixes` (lower case, with the dot) selects by the end of the name, whatever its
    case. In a local folder links to files count as files, and links to folders are not followed.

    as_input: the folder is one of the user's. Links to folders outside of it are followed, and no folder is listed
    twice; what may not be read is left out. A warning names each link and each folder that is left out. Otherwise a
    folder that may not be read raises PermissionError.
    """
    for entry in _s3().listing(prefix) if is_s3(prefix) else local_listing(local_path(prefix), as_input):
        base = entry.name.rsplit("/", 1)[-1]
        if base.startswith(TEMPORARY) or (suffixes and not base.lower().endswith(suffixes)):
            continue
        yield entry


def children(prefix: str) -> tuple[list[str], list[Entry]]:
    """Names of the folders and the files that lie directly in a folder, both sorted; no folder below is looked into.

    In a local folder links count as what they lead to.
    """
    if is_s3(prefix):
        return _s3().children(prefix)
    try:
        with os.scandir(local_path(prefix) or ".") as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return [], []
    files = [file for entry in entries if (file := file_entry("", entry))]
    return [shown_name(entry.name) for entry in entries if entry.is_dir()], files


def absolute(uri: str) -> str:
    """A path from the root, without a slash at its end, since workers have another working folder; s3:// as it is."""
    return uri.rstrip("/") if is_s3(uri) else path_or_uri(os.path.abspath(local_path(uri)))

"""Local files that appear whole or not at all, and what killed writers leave of them."""

import fcntl
import logging
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from actors.core.local_faults import place_is_named

logger = logging.getLogger(__name__)

OURS = ".filmray-"
"""Start of the names of files that no run leaves behind, unless it is killed."""
TEMPORARY = f"{OURS}part-"
"""Start of the name of a local file that is still being written; listings leave it out."""
ABANDONED_S = 60.0
"""A half-written file that nothing was written to for so long, in seconds, is removed if nobody holds its lock."""
UNLOCKED_S = 3600.0
"""As ABANDONED_S, on a file system without locks."""


@contextmanager
def replacing(path: str) -> Iterator[BinaryIO]:
    """A new file that takes the place of `path` when the block ends, and leaves nothing when it fails."""
    folder = os.path.dirname(path) or "."
    temporary = os.path.join(folder, f"{TEMPORARY}{uuid.uuid4().hex}")
    with place_is_named(path):
        os.makedirs(folder, exist_ok=True)
        try:
            with open(temporary, "xb") as file:
                # Some network file systems have no locks; there age alone tells what was abandoned.
                with suppress(OSError):
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            # Where the disk fails, this does, too.
            with suppress(OSError):
                os.unlink(temporary)
            raise


def create(path: str, data: bytes) -> bool:
    """Write a file in one step unless there is one; returns whether it was written. Of several at once one succeeds."""
    folder = os.path.dirname(path) or "."
    temporary = os.path.join(folder, f"{TEMPORARY}{uuid.uuid4().hex}")
    with place_is_named(path):
        os.makedirs(folder, exist_ok=True)
        try:
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            return _linked(temporary, path, data)
        finally:
            with suppress(OSError):
                os.unlink(temporary)


def _linked(temporary: str, path: str, data: bytes) -> bool:
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError:
        # A file system without hard links: the name is still given once, but the file grows as it is written.
        try:
            with open(path, "xb") as file:
                file.write(data)
        except FileExistsError:
            return False
    return True


def age_of(path: str) -> float:
    """Seconds since a file was written, by the clock that its file system stamps new files with."""
    written = os.stat(path).st_mtime
    probe = os.path.join(os.path.dirname(path) or ".", f"{TEMPORARY}{uuid.uuid4().hex}")
    try:
        with place_is_named(probe), open(probe, "xb") as file:
            file.write(b"0")
            file.flush()
            return os.fstat(file.fileno()).st_mtime - written
    finally:
        Path(probe).unlink(missing_ok=True)


def remove_abandoned(folder: str) -> None:
    """Remove the files below a local folder that killed processes left half-written; those being written stay."""
    for above, _, names in os.walk(folder):
        for name in names:
            if name.startswith(OURS):
                _remove_abandoned(os.path.join(above, name))


def _remove_abandoned(path: str) -> None:
    with suppress(FileNotFoundError, PermissionError), open(path, "r+b") as file:
        age = time.time() - os.fstat(file.fileno()).st_mtime
        if age < ABANDONED_S:
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        except OSError as error:
            if age < UNLOCKED_S:
                return
            logger.info("%s cannot be locked (%s): removed, as nothing was written to it for long", path, error)
        os.unlink(path)

"""Which faults of a local file system pass, and what the others mean."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from actors.core.errors import AGAIN
from actors.core.patience import patience_s, repeated

T = TypeVar("T")

_AWAY = {errno.ESTALE, errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ETIMEDOUT}
"""What a network file system answers whose server is away, or came back meanwhile."""
_MOUNT = "check that the file system is mounted and its server runs"
_REMEDIES = {
    errno.ENOSPC: "free some space there",
    errno.EDQUOT: "free some space there, or have the quota raised",
    errno.EROFS: "mount it writable, or choose another output",
    errno.EACCES: "let this user write there, or choose another output",
    errno.EPERM: "let this user write there, or choose another output",
    errno.EIO: "check the disk and the mount",
    **dict.fromkeys(_AWAY, _MOUNT),
}


def patiently(path: str, request: Callable[[], T]) -> T:
    """Read or write a local file, again while its network file system is away."""
    try:
        return request()
    except OSError as error:
        if not _passes(error):
            raise
    with place_is_named(path):
        return repeated(path, request, _passes, _name, patience_s())


def _passes(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in _AWAY


def _name(error: BaseException) -> str:
    return str(error.strerror if isinstance(error, OSError) else error)


@contextmanager
def place_is_named(path: str) -> Iterator[None]:
    """Errors of a write tell where it was to go and what to do; the system's own of a full disk name no file."""
    try:
        yield
    except OSError as error:
        ours = error.filename is None or str(error.filename).startswith(os.path.dirname(path) or ".")
        if error.errno not in _REMEDIES or not ours or AGAIN in str(error):
            raise
        told = f"{os.strerror(error.errno)}; {_REMEDIES[error.errno]}, and {AGAIN}"
        raise OSError(error.errno, told, path) from error

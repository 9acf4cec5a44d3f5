"""Temporary files that no other user of the machine can reach, and that do not stay when their process is killed.

All lie in TMPDIR/filmray-UID. Others may write into TMPDIR and know that name: the folder is only used if it belongs to
this user, is no link and is closed to everyone else.
"""

import fcntl
import os
import shutil
import stat
import tempfile
import uuid
import weakref
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from actors.core.errors import BrokenRunError, UserError, machine_fault

_LOCK = ".lock"


def private_folder(*names: str) -> Path:
    """The folder of this user in TMPDIR, or one below it; made where it is missing.

    Raises UserError where somebody else could reach what lies there.
    """
    folder = _base()
    with suppress(FileExistsError):
        os.mkdir(folder, 0o700)
    if problem := _problem(folder):
        raise UserError(f"{folder} {problem}. Remove it, or set TMPDIR to a folder of your own.")
    below = folder.joinpath(*names)
    below.mkdir(mode=0o700, parents=True, exist_ok=True)
    return below


def _base() -> Path:
    return Path(tempfile.gettempdir(), f"filmray-{os.getuid()}")


def _problem(folder: Path) -> str:
    """Why a folder is not only this user's; "" where it is."""
    about = os.lstat(folder)
    if stat.S_ISLNK(about.st_mode):
        return "is a link, which another user may have made"
    if not stat.S_ISDIR(about.st_mode):
        return "is not a folder"
    if about.st_uid != os.getuid():
        return f"belongs to another user (uid {about.st_uid})"
    if about.st_mode & 0o077:
        return f"is open to other users (mode {stat.S_IMODE(about.st_mode):o})"
    return ""


class TemporaryFolder:
    """An empty folder for this process, as a context that gives its path and removes it in the end.

    Its lock ends with the process, however that ends: `remove_abandoned` tells by it what nobody uses any more. Raises
    BrokenRunError where this machine has no place for one.
    """

    def __init__(self) -> None:
        try:
            self._make()
        except OSError as error:
            raise BrokenRunError(machine_fault(error, writing=True) or str(error)) from error

    def _make(self) -> None:
        remove_abandoned()
        base = private_folder("work")
        while True:
            # Short, since sockets may lie in the folder, and their paths have 107 characters at most.
            lock = base / f"{uuid.uuid4().hex[:12]}{_LOCK}"
            handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            fcntl.flock(handle, fcntl.LOCK_EX)
            # Before it was locked, another process may have taken it for abandoned.
            if os.fstat(handle).st_nlink:
                break
            os.close(handle)
        self.path = lock.with_suffix("")
        """Where it is."""
        self.path.mkdir(mode=0o700)
        self._removed = weakref.finalize(self, _remove, lock, handle)

    def remove(self) -> None:
        """Remove the folder; again is fine."""
        self._removed()

    def __enter__(self) -> Path:
        return self.path

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


def check_space(folder: Path, size: int, what: str) -> None:
    """Raise BrokenRunError where a folder has no room for so many bytes; what: that is to be copied there, in words."""
    free = shutil.disk_usage(folder).free
    if size > free:
        raise BrokenRunError(
            f"{what} has {size / 1e6:,.0f} MB, and {folder} has {free / 1e6:,.0f} MB free. Free some space, or set "
            "TMPDIR to a folder with more."
        )


def remove_abandoned() -> None:
    """Remove the temporary folders of this user's processes that were killed; those of live ones stay."""
    base = _base()
    if not base.exists() or _problem(base):
        return
    for lock in base.glob(f"work/*{_LOCK}"):
        try:
            handle = os.open(lock, os.O_RDWR | os.O_NOFOLLOW)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
        else:
            _remove(lock, handle)


def _remove(lock: Path, handle: int) -> None:
    """Remove a folder and its lock, which is held; what cannot be removed now is left to the next process."""
    folder = lock.with_suffix("")
    shutil.rmtree(folder, ignore_errors=True)
    if not folder.exists():
        lock.unlink(missing_ok=True)
    os.close(handle)

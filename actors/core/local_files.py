"""The files of a local folder, in the order that S3 has."""

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field

from actors.core.addresses import path_or_uri, shown_name

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """One file of a listing."""

    name: str
    """Its path relative to the folder that was listed, parts joined by a slash; bytes that are no UTF-8 as \\xNN."""
    uri: str
    """Where it is."""
    size: int
    """Bytes."""
    stamp: str = ""
    """Another one when the file is written again: its modification time in nanoseconds, or its ETag."""


def local_listing(folder: str, as_input: bool) -> Iterator[Entry]:
    """The files below a folder at any depth; a missing folder holds none.

    as_input: links to other folders are followed once, and what cannot be read is left out, each with a warning.
    """
    yield from _listed(folder or ".", "", _Links(os.path.realpath(folder)) if as_input else None)


@dataclass
class _Links:
    """Which links to folders are followed below an input."""

    root: str
    """The input, without links."""
    seen: set[tuple[int, int]] = field(default_factory=set)
    """Folders outside of it that were listed, by device and inode."""

    def refusal(self, path: str) -> str:
        """Why a folder that a link leads to is not listed; "" where it is, and counts as listed from now on."""
        target = os.path.realpath(path)
        if f"{target}/".startswith(f"{self.root}/"):
            return f"leads to {target}, which is listed where it is"
        if f"{self.root}/".startswith(f"{target.rstrip('/')}/"):
            return f"leads to {target}, which holds the input"
        about = os.stat(target)
        if (about.st_dev, about.st_ino) in self.seen:
            return f"leads to {target}, which another link has listed"
        self.seen.add((about.st_dev, about.st_ino))
        return ""


def _listed(folder: str, above: str, links: _Links | None, outside: bool = False) -> Iterator[Entry]:
    """outside: a link led here."""
    try:
        with os.scandir(folder) as found:
            # A folder sorts as its files do, with the slash: "a-b.mp4" comes before "a/c.mp4".
            entries = sorted(found, key=lambda entry: entry.name + "/" * _is_folder(entry, links is not None))
    except (FileNotFoundError, NotADirectoryError):
        return
    except PermissionError as error:
        if not above or links is None:
            raise
        _warn_unreadable(folder, error)
        return
    for entry in entries:
        try:
            if _is_folder(entry, links is not None):
                linked = entry.is_symlink()
                if links is not None and (linked or outside) and (why := links.refusal(entry.path)):
                    logger.warning("%s %s: it is not listed again.", shown_name(entry.path), why)
                else:
                    yield from _listed(entry.path, f"{above}{entry.name}/", links, outside or linked)
                continue
            found = file_entry(above, entry)
        except OSError as error:
            # A link into a folder that may not be read, or one that leads to itself.
            if links is None:
                raise
            _warn_unreadable(entry.path, error)
            continue
        if found:
            yield found
        elif links is not None and entry.is_symlink() and not os.path.exists(entry.path):
            logger.warning("%s leads to nothing and is left out. Restore its target, or remove it.", _shown_link(entry))


def _is_folder(entry: os.DirEntry[str], links: bool) -> bool:
    return os.path.isdir(entry.path) if links and entry.is_symlink() else entry.is_dir(follow_symlinks=False)


def _shown_link(entry: os.DirEntry[str]) -> str:
    return f"{shown_name(entry.path)} -> {shown_name(os.readlink(entry.path))}"


def file_entry(above: str, entry: os.DirEntry[str]) -> Entry | None:
    """A file in a folder; None for what is no file, or has been removed since its folder was read."""
    if not entry.is_file():
        return None
    try:
        about = entry.stat()
    except FileNotFoundError:
        return None
    return local_entry(above + entry.name, entry.path, about)


def local_entry(name: str, path: str, about: os.stat_result) -> Entry:
    """A file with what its folder says of it."""
    return Entry(shown_name(name), path_or_uri(path), about.st_size, str(about.st_mtime_ns))


def _warn_unreadable(path: str, error: OSError) -> None:
    why = f"{shown_name(path)} cannot be read ({error.strerror}) and is left out"
    logger.warning("%s. Allow reading it, or move it out of the input.", why)

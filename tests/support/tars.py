"""Tars of key frames, as MovieNet is downloaded: one a film, with the film's folder inside."""

import tarfile
from collections.abc import Sequence
from pathlib import Path


def pack(folder: Path, path: Path, order: Sequence[str] = ()) -> Path:
    """A tar of a film's folder, its files under the folder's name, in this order or as they are sorted."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files = {file.relative_to(folder).as_posix(): file for file in sorted(folder.rglob("*")) if file.is_file()}
    with tarfile.open(path, "w") as tar:
        for name in order or files:
            tar.add(files[name], f"{folder.name}/{name}")
    return path

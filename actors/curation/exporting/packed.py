"""The clips of a film in one tar, in place of a file each: a store lists, bills and copies objects, not bytes alone.

`tars/<video>.tar` is written whole by the worker that cuts the film, and replaced as a whole. Its first member tells
where each clip begins, so that one is read without the rest. Programs that read tars find the clips by their names.
"""

import io
import json
import tarfile
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from actors.core import storage
from actors.core.stage import Row
from actors.core.store import Store
from actors.core.temporary import TemporaryFolder

TARS = "tars"
"""Where they lie, below the output."""
INDEX = "clips.json"
"""Of each clip where it begins behind this member, and its bytes."""
HEAD = 1 << 14
"""Bytes that are read at once to know the index."""
AT_ONCE = 1000
"""Tars whose clips are known at once."""
READERS = 16
"""Tars that are looked into at once: a store is waited for."""
Places = dict[str, tuple[int, int]]
"""First byte and bytes of each clip of a tar, by its file's name."""


def tar_of(name: str) -> str:
    """The tar of a clip, by its name below clips/."""
    return f"{name.rpartition('/')[0]}.tar"


def places(uri: str) -> Places:
    """The clips of a tar; none where it is not there."""
    try:
        head = storage.read_part(uri, 0, HEAD)
    except FileNotFoundError:
        return {}
    size = tarfile.TarInfo.frombuf(head[: tarfile.BLOCKSIZE], "utf-8", "strict").size
    end = tarfile.BLOCKSIZE + size
    index = head[tarfile.BLOCKSIZE : end]
    if len(index) < size:
        index += storage.read_part(uri, len(head), end - len(head))
    start = tarfile.BLOCKSIZE + _padded(size)
    return {name: (start + first, length) for name, (first, length) in json.loads(index).items()}


def packed_clips(store: Store) -> Iterator[tuple[str, int]]:
    """All clips in tars: their names below clips/, and their bytes."""
    entries = storage.listing(store.uri(TARS), (".tar",))
    with ThreadPoolExecutor(READERS) as threads:
        while some := list(islice(entries, AT_ONCE)):
            for entry, clips in zip(some, threads.map(lambda entry: places(entry.uri), some), strict=True):
                for name, (_, size) in clips.items():
                    yield f"{entry.name.removesuffix('.tar')}/{name}", size


def download_clip(store: Store, name: str, path: Path) -> None:
    """Bring a clip here, from clips/ or from the tar of its film; raises FileNotFoundError where there is none."""
    try:
        storage.download(store.uri("clips", name), path)
    except FileNotFoundError:
        uri = store.uri(TARS, tar_of(name))
        place = places(uri).get(name.rpartition("/")[2])
        if place is None:
            raise
        path.write_bytes(storage.read_part(uri, *place))


def pack(store: Store, tar: str, clips: Mapping[str, Path], drop: Collection[str] = ()) -> None:
    """Add clips to a tar in place of those of the same name, and leave some out; a tar of none is removed.

    clips: files by the name in the tar.
    """
    uri = store.uri(TARS, tar)
    before = places(uri)
    stays = {name: place for name, place in before.items() if name not in clips and name not in drop}
    if not clips and len(stays) == len(before):
        return
    if not stays and not clips:
        storage.delete(uri)
        return

    def data() -> Iterator[tuple[str, bytes]]:
        for name in sorted([*stays, *clips]):
            yield name, clips[name].read_bytes() if name in clips else storage.read_part(uri, *stays[name])

    with TemporaryFolder() as folder:
        with (folder / "body").open("w+b") as body, (folder / "tar").open("wb") as whole:
            index = json.dumps(_write(body, data())).encode()
            info = tarfile.TarInfo(INDEX)
            info.size = len(index)
            whole.write(info.tobuf() + index.ljust(_padded(len(index)), b"\0"))
            body.seek(0)
            while piece := body.read(1 << 20):
                whole.write(piece)
        storage.upload(folder / "tar", uri)


def drop_clips(row: Row, store: Store) -> Row:
    """Leave clips out of a tar; row: tar, and drop: names as a JSON list."""
    pack(store, row["tar"], {}, json.loads(row["drop"]))
    return {"tar": row["tar"]}


def _write(file: BinaryIO, data: Iterator[tuple[str, bytes]]) -> Places:
    found: Places = {}
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, clip in data:
            info = tarfile.TarInfo(name)
            info.size = len(clip)
            found[name] = tar.offset + len(info.tobuf(tarfile.PAX_FORMAT)), len(clip)
            tar.addfile(info, io.BytesIO(clip))
    return found


def _padded(size: int) -> int:
    return -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE

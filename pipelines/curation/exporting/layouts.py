"""Keep the files that trainers read in line with the clips and captions that there are.

Clips are gone through once for each layout to know what its files are to say, and again for those that change.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from actors.core import storage
from actors.core.json_text import write_text
from actors.core.stage import Row
from actors.core.store import Store
from actors.core.temporary import TemporaryFolder
from actors.curation.exporting.export import write_one_shard
from actors.curation.exporting.layouts import LAYOUTS, SHARDS, SIDECAR, Caption, Clip
from actors.curation.exporting.packed import TARS, tar_of
from actors.curation.tables import ORIGIN
from pipelines.core.ray_data import LazyStage, ray_task, rows_of, set_context
from pipelines.curation.kept import Names
from pipelines.curation.settings import ExportConfig
from pipelines.curation.waves import waves

log = logging.getLogger(__name__)

MADE = "export_layouts.json"
"""The layouts that are there: their settings, and a digest of each file by its path below the folder of clips/."""
SHARDS_AT_ONCE = 200
"""Tars that are asked for at once, each with the captions of its clips."""
TEXTS_AT_ONCE = 10_000
"""Files of single clips that wait to be written."""
WRITERS = 16
"""Files that are written at once: in a store each waits for its answer."""


def write_layouts(store: Store, clips: Iterable[Clip], export: ExportConfig, stage: LazyStage) -> None:
    """Write the layouts of export.layout for clips, and remove what is there of those that it does not name.

    A file that would say the same as before is left alone. store: the folder that holds clips/; clips: gone through
    several times.
    """
    made = store.read_json(MADE) or {"files": {}}
    if not export.layouts and not made["files"]:
        return
    counted = _Counted(clips)
    with TemporaryFolder() as folder:
        files = _files(counted, export, folder)
        digests = dict(files.digests)
        stamps = _Stamps(store) if SHARDS in export.layouts else None
        if stamps:
            digests |= {name: digest for name, digest, _ in _shards(counted, export, stamps)}
        if export.layouts and counted.silent:
            log.warning(
                "%d of %d clips have no caption, which trainers read as an empty one", counted.silent, counted.clips
            )
        sound = {path for path in _there(store, digests) if made["files"].get(path) == digests[path]}
        changed = dict.fromkeys(path for path in digests if path not in sound)
        stale = made["files"].keys() - digests.keys()
        if changed or stale:
            # Wherever this is killed: what is being written is not sound, and what is being removed is not forgotten.
            files_now = dict.fromkeys([*changed, *stale], "") | {path: digests[path] for path in sound}
            store.write_json({**made, "files": files_now}, MADE)
        for path, whole in files.whole.items():
            if path in changed:
                storage.upload(whole, store.uri(path))
    with ThreadPoolExecutor(WRITERS) as pool:
        texts = LAYOUTS[SIDECAR](clips) if SIDECAR in export.layouts and any(map(_is_text, changed)) else iter(())
        new = ((path, pieces) for path, pieces in texts if path in changed)
        while some := list(islice(new, TEXTS_AT_ONCE)):
            list(pool.map(lambda one: storage.write_bytes(store.uri(one[0]), "".join(one[1]).encode()), some))
        list(pool.map(lambda path: storage.delete(store.uri(path)), stale))
    if stamps:
        if any(path.startswith("shards/") for path in changed):
            _write_shards(store, (shard for name, _, shard in _shards(clips, export, stamps) if name in changed), stage)
        _remove_shards(store, digests)
    settings = {"layout": export.layout, "caption": export.caption, "shard_clips": export.shard_clips}
    store.write_json({**settings, "files": digests}, MADE)


class _Counted:
    """Clips, which are counted as they are gone through."""

    def __init__(self, clips: Iterable[Clip]) -> None:
        self._clips = clips
        self.clips = self.silent = 0

    def __iter__(self) -> Iterator[Clip]:
        self.clips = self.silent = 0
        for clip in self._clips:
            self.clips += 1
            self.silent += not clip.text
            yield clip


class _Files:
    """The files of layouts as they are to be."""

    def __init__(self) -> None:
        self.digests: dict[str, str] = {}
        """By path below the folder of clips/."""
        self.whole: dict[str, Path] = {}
        """Where those lie that tell of all clips."""


def _files(clips: Iterable[Clip], export: ExportConfig, folder: Path) -> _Files:
    found = _Files()
    for name in export.layouts:
        for path, pieces in LAYOUTS[name](clips) if name != SHARDS else ():
            text = hashlib.sha256()
            if name == SIDECAR:
                text.update("".join(pieces).encode())
            else:
                found.whole[path] = folder / f"{len(found.whole)}"
                write_text(found.whole[path], _hashed(pieces, text))
            found.digests[path] = _digest(text)
    return found


def _hashed(pieces: Iterable[str], text: Any) -> Iterator[str]:
    for piece in pieces:
        text.update(piece.encode())
        yield piece


def _digest(text: Any) -> str:
    return text.hexdigest()[:16]


def _is_text(path: str) -> bool:
    return path.endswith(".txt")


def renew_layouts(store: Store, clips: Callable[[Caption], Iterable[Clip]], stage: LazyStage) -> None:
    """Write the layouts that are there anew, as they were made; clips: those that there are, by export.caption."""
    made = store.read_json(MADE)
    if made and "layout" in made:
        settings = {name: made[name] for name in ("layout", "caption", "shard_clips")}
        write_layouts(store, clips(made["caption"]), ExportConfig(**settings), stage)


def _there(store: Store, paths: Iterable[str]) -> set[str]:
    """Those of some files that exist."""
    texts = set(filter(_is_text, paths))
    listed = {f"clips/{entry.name}" for entry in storage.listing(store.uri("clips"), (".txt",))} if texts else set()
    return {path for path in paths if (path in listed if path in texts else storage.exists(store.uri(path)))}


class _Stamps:
    """Bytes and `Entry.stamp` of clips, or of the tars that hold them."""

    def __init__(self, store: Store) -> None:
        self._clips = _Listed(store, "clips", ".mp4")
        self._tars = _Listed(store, TARS, ".tar")

    def of(self, clips: Iterable[Clip]) -> list[list[Any] | None]:
        """Of each of some clips; None where it is in neither."""
        names = [clip.path.removeprefix("clips/") for clip in clips]
        found = zip(self._clips.of(names), self._tars.of(list(map(tar_of, names))), strict=True)
        return [own or tar for own, tar in found]


class _Listed:
    """A folder of millions of files: numbers, and the stamps as one text."""

    def __init__(self, store: Store, folder: str, suffix: str) -> None:
        names, sizes, stamps = [], [np.zeros(0, np.int64)], [pa.array([], pa.string())]
        entries = storage.listing(store.uri(folder), (suffix,))
        while some := list(islice(entries, TEXTS_AT_ONCE)):
            names.append(pa.array([entry.name for entry in some]))
            sizes.append(np.array([entry.size for entry in some], np.int64))
            stamps.append(pa.array([entry.stamp for entry in some]))
        self._names, self._sizes = Names(names), np.concatenate(sizes)
        self._stamps = pa.chunked_array(stamps)

    def of(self, names: list[str]) -> list[list[Any] | None]:
        at = self._names.places(names)
        there = at[at >= 0]
        found = zip(self._sizes[there].tolist(), self._stamps.take(pa.array(there)).to_pylist(), strict=True)
        return [list(next(found)) if place >= 0 else None for place in at]


def _shards(clips: Iterable[Clip], export: ExportConfig, stamps: _Stamps) -> Iterator[tuple[str, str, Row]]:
    """The tars that there are to be: of each its path, a digest of what goes in, and what `write_one_shard` takes."""
    hidden, later = {*ORIGIN, "clock_jumps"}, ("converted", "captions")
    clips, number = iter(clips), 0
    while some := list(islice(clips, export.shard_clips)):
        rows = [
            # Where there is nothing of it, shards of earlier versions are not to be made again.
            {name: value for name, value in clip.row.items() if name not in hidden and (value or name not in later)}
            for clip in some
        ]
        scenes = [{"path": clip.path, "text": clip.text, "row": row} for clip, row in zip(some, rows, strict=True)]
        name = f"shard-{number:06d}.tar"
        shard = {"name": name, "scenes": json.dumps(scenes)}
        about = json.dumps([shard, stamps.of(some)])
        yield f"shards/{name}", hashlib.sha256(about.encode()).hexdigest()[:16], shard
        number += 1


def _write_shards(store: Store, shards: Iterable[Any], stage: LazyStage) -> None:
    import ray

    for some in waves(shards, lambda _: 1, SHARDS_AT_ONCE):
        options = ray_task(stage())
        set_context()
        rows = ray.data.from_items(some, override_num_blocks=len(some))
        list(rows_of(rows.map(partial(write_one_shard, store=store), **options)))


def _remove_shards(store: Store, shards: Iterable[str]) -> None:
    names = set(shards)
    for entry in storage.listing(store.uri("shards"), (".tar",)):
        if f"shards/{entry.name}" not in names:
            storage.delete(entry.uri)

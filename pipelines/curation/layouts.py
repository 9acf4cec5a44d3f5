"""Keep the files that trainers read in line with the clips and captions that there are."""

import hashlib
import json
import logging
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import ray

from actors.core import storage
from actors.core.stage import Row, Stage
from actors.core.store import Store
from actors.curation.export import clip_name, write_one_shard
from actors.curation.layouts import LAYOUTS, SHARDS, Clip, text_of
from actors.curation.tables import ORIGIN
from pipelines.core.ray_data import ray_task, rows_of, set_context
from pipelines.curation.settings import CurationConfig, ExportConfig

log = logging.getLogger(__name__)

MADE = "export_layouts.json"
"""The layouts that are there: their settings, and a digest of each file by its path below the output."""
WRITERS = 16
"""Files that are written at once: in a store each waits for its answer."""


def write_layouts(config: CurationConfig, kept: Sequence[Row], stage: Stage) -> None:
    """Write the layouts of export.layout for scenes that have a clip, and remove those that it no longer names.

    A file that would say the same as before is left alone. kept: scenes as `kept_scenes` gives them.
    """
    store, export = Store(config.output), config.export
    made = store.read_json(MADE) or {"files": {}}
    if not export.layouts and not made["files"]:
        return
    clips = [Clip(f"clips/{_clip(row)}", text_of(row, export.caption)) for row in kept]
    if export.layouts and (silent := sum(not clip.text for clip in clips)):
        log.warning("%d of %d clips have no caption, which trainers read as an empty one", silent, len(clips))
    files: dict[str, bytes] = {}
    for name in export.layouts:
        if name != SHARDS:
            files |= LAYOUTS[name](clips)
    digests = {path: hashlib.sha256(data).hexdigest()[:16] for path, data in files.items()}
    shards = _shards(store, kept, export) if SHARDS in export.layouts else {}
    digests |= {path: digest for path, (digest, _) in shards.items()}
    changed = [path for path, digest in digests.items() if made["files"].get(path) != digest]
    stale = made["files"].keys() - digests.keys()
    # A file that is being written counts as none of before, wherever this is killed.
    there = {path: digest for path, digest in made["files"].items() if digests.get(path) == digest}
    if changed or stale:
        store.write_json({"files": there}, MADE)
    with ThreadPoolExecutor(WRITERS) as pool:
        new = [path for path in changed if path in files]
        list(pool.map(lambda path: storage.write_bytes(store.uri(path), files[path]), new))
        list(pool.map(lambda path: storage.delete(store.uri(path)), stale))
    _write_shards(store, [shards[path][1] for path in changed if path in shards], stage)
    if SHARDS in export.layouts:
        _remove_shards(store, shards)
    settings = {"layout": export.layout, "caption": export.caption, "shard_clips": export.shard_clips}
    store.write_json({**settings, "files": digests}, MADE)


def _shards(store: Store, kept: Sequence[Row], export: ExportConfig) -> dict[str, tuple[str, Row]]:
    """The tars that there are to be: of each a digest of what goes in, and what `write_one_shard` takes."""
    hidden = {*ORIGIN, "clock_jumps"}
    stamps = {entry.name: [entry.size, entry.stamp] for entry in storage.listing(store.uri("clips"), (".mp4",))}
    shards = {}
    for start in range(0, len(kept), export.shard_clips):
        rows = kept[start : start + export.shard_clips]
        scenes = [
            {"row": {name: row[name] for name in row if name not in hidden}, "text": text_of(row, export.caption)}
            for row in rows
        ]
        name = f"shard-{start // export.shard_clips:06d}.tar"
        shard = {"name": name, "scenes": json.dumps(scenes)}
        about = json.dumps([shard, [stamps.get(_clip(row)) for row in rows]])
        shards[f"shards/{name}"] = hashlib.sha256(about.encode()).hexdigest()[:16], shard
    return shards


def _write_shards(store: Store, shards: Sequence[Any], stage: Stage) -> None:
    if shards:
        set_context()
        rows = ray.data.from_items(list(shards), override_num_blocks=len(shards))
        list(rows_of(rows.map(partial(write_one_shard, store=store), **ray_task(stage))))


def _remove_shards(store: Store, shards: Iterable[str]) -> None:
    names = set(shards)
    for entry in storage.listing(store.uri("shards"), (".tar",)):
        if f"shards/{entry.name}" not in names:
            storage.delete(entry.uri)


def _clip(row: Row) -> str:
    return clip_name(row["video_id"], row["scene_id"])

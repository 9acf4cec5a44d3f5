"""Keep the files that trainers read in line with the clips and captions that there are."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from actors.core import storage
from actors.core.stage import Row
from actors.core.store import Store
from actors.curation.exporting.export import write_one_shard
from actors.curation.exporting.layouts import LAYOUTS, SHARDS, Caption, Clip
from actors.curation.exporting.packed import TARS, tar_of
from actors.curation.tables import ORIGIN
from pipelines.core.ray_data import LazyStage, ray_task, rows_of, set_context
from pipelines.curation.settings import ExportConfig

log = logging.getLogger(__name__)

MADE = "export_layouts.json"
"""The layouts that are there: their settings, and a digest of each file by its path below the folder of clips/."""
WRITERS = 16
"""Files that are written at once: in a store each waits for its answer."""


def write_layouts(store: Store, clips: Sequence[Clip], export: ExportConfig, stage: LazyStage) -> None:
    """Write the layouts of export.layout for clips, and remove what is there of those that it does not name.

    A file that would say the same as before is left alone. store: the folder that holds clips/.
    """
    made = store.read_json(MADE) or {"files": {}}
    if not export.layouts and not made["files"]:
        return
    if export.layouts and (silent := sum(not clip.text for clip in clips)):
        log.warning("%d of %d clips have no caption, which trainers read as an empty one", silent, len(clips))
    files: dict[str, bytes] = {}
    for name in export.layouts:
        if name != SHARDS:
            files |= LAYOUTS[name](clips)
    digests = {path: hashlib.sha256(data).hexdigest()[:16] for path, data in files.items()}
    shards = _shards(store, clips, export) if SHARDS in export.layouts else {}
    digests |= {path: digest for path, (digest, _) in shards.items()}
    sound = {path for path in _there(store, digests) if made["files"].get(path) == digests[path]}
    changed = [path for path in digests if path not in sound]
    stale = made["files"].keys() - digests.keys()
    if changed or stale:
        # Wherever this is killed: what is being written is not sound, and what is being removed is not forgotten.
        files_now = dict.fromkeys([*changed, *stale], "") | {path: digests[path] for path in sound}
        store.write_json({**made, "files": files_now}, MADE)
    with ThreadPoolExecutor(WRITERS) as pool:
        new = [path for path in changed if path in files]
        list(pool.map(lambda path: storage.write_bytes(store.uri(path), files[path]), new))
        list(pool.map(lambda path: storage.delete(store.uri(path)), stale))
    _write_shards(store, [shards[path][1] for path in changed if path in shards], stage)
    if SHARDS in export.layouts:
        _remove_shards(store, shards)
    settings = {"layout": export.layout, "caption": export.caption, "shard_clips": export.shard_clips}
    store.write_json({**settings, "files": digests}, MADE)


def renew_layouts(store: Store, clips: Callable[[Caption], Sequence[Clip]], stage: LazyStage) -> None:
    """Write the layouts that are there anew, as they were made; clips: those that there are, by export.caption."""
    made = store.read_json(MADE)
    if made and "layout" in made:
        settings = {name: made[name] for name in ("layout", "caption", "shard_clips")}
        write_layouts(store, clips(made["caption"]), ExportConfig(**settings), stage)


def _there(store: Store, paths: Iterable[str]) -> set[str]:
    """Those of some files that exist."""
    texts = {path for path in paths if path.endswith(".txt")}
    listed = {f"clips/{entry.name}" for entry in storage.listing(store.uri("clips"), (".txt",))} if texts else set()
    return {path for path in paths if (path in listed if path in texts else storage.exists(store.uri(path)))}


def _shards(store: Store, clips: Sequence[Clip], export: ExportConfig) -> dict[str, tuple[str, Row]]:
    """The tars that there are to be: of each a digest of what goes in, and what `write_one_shard` takes."""
    hidden, later = {*ORIGIN, "clock_jumps"}, ("converted", "captions")
    stamps = {
        f"clips/{entry.name}": [entry.size, entry.stamp] for entry in storage.listing(store.uri("clips"), (".mp4",))
    }
    tars = {entry.name: [entry.size, entry.stamp] for entry in storage.listing(store.uri(TARS), (".tar",))}
    shards = {}
    for start in range(0, len(clips), export.shard_clips):
        some = clips[start : start + export.shard_clips]
        rows = [
            # Where there is nothing of it, shards of earlier versions are not to be made again.
            {name: value for name, value in clip.row.items() if name not in hidden and (value or name not in later)}
            for clip in some
        ]
        scenes = [{"path": clip.path, "text": clip.text, "row": row} for clip, row in zip(some, rows, strict=True)]
        name = f"shard-{start // export.shard_clips:06d}.tar"
        shard = {"name": name, "scenes": json.dumps(scenes)}
        about = json.dumps([shard, [stamps.get(clip.path) or tars.get(_tar(clip)) for clip in some]])
        shards[f"shards/{name}"] = hashlib.sha256(about.encode()).hexdigest()[:16], shard
    return shards


def _tar(clip: Clip) -> str:
    return tar_of(clip.path.removeprefix("clips/"))


def _write_shards(store: Store, shards: Sequence[Any], stage: LazyStage) -> None:
    import ray

    if shards:
        options = ray_task(stage())
        set_context()
        rows = ray.data.from_items(list(shards), override_num_blocks=len(shards))
        list(rows_of(rows.map(partial(write_one_shard, store=store), **options)))


def _remove_shards(store: Store, shards: Iterable[str]) -> None:
    names = set(shards)
    for entry in storage.listing(store.uri("shards"), (".tar",)):
        if f"shards/{entry.name}" not in names:
            storage.delete(entry.uri)

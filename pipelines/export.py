"""Write what is kept: clips, frames and tar shards when asked for, and kept.json in the reference's form."""

import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import ray

from actors import storage
from actors.clips import write_clips, write_shard
from actors.process import CHILD, ChildFault
from actors.stage import Batch
from actors.video import Row
from pipelines.curation import CurationConfig
from pipelines.score import ray_task, set_context
from pipelines.store import Store

WRITE_CLIPS = f"{write_clips.__module__}:{write_clips.__name__}"
KEPT = ["video_id", "clip_id", "scene_id", "caption", "first", "end", "start_s", "end_s", "uri"]
EXPORTED = pa.schema([(name, pa.string()) for name in ("video_id", "scene_id", "error", "message")])


@dataclass(frozen=True)
class Exported:
    """What one export has done."""

    written: int
    """Clips written now."""
    there: int
    """Clips that were there already."""
    failed: pd.DataFrame
    """video_id, scene_id, error, message of kept scenes that could not be written."""
    seconds: float


def export(config: CurationConfig) -> Exported:
    """Bring clips/, frames/, shards/ and kept.json in line with the scenes that are kept.

    Clips that are there are not written again, unless the settings of export have changed; those of scenes that are no
    longer kept are removed.
    """
    started = time.monotonic()
    store = Store(config.output)
    kept = kept_scenes(store)
    settings = {name: value for name, value in asdict(config.export).items() if name in _ASKED}
    if config.export.frames:
        settings |= {"interval_ms": config.frames.interval_ms}
    same = store.read_json("clips", "settings.json") == settings
    wanted = {_clip(row.video_id, row.scene_id) for row in kept.itertuples()}
    there = {entry.name for entry in storage.listing(store.uri("clips"), (".mp4",))}
    for name in there - (wanted if same else set()):
        storage.delete(store.uri("clips", name))
    there = there & wanted if same else set()
    store.write_json(settings, "clips", "settings.json")
    missing = kept[[_clip(row.video_id, row.scene_id) not in there for row in kept.itertuples()]]
    failed = _write_missing(missing, config) if len(missing) else EXPORTED.empty_table().to_pandas()
    keys = set(zip(failed.video_id, failed.scene_id, strict=True))
    written = kept[[(row.video_id, row.scene_id) not in keys for row in kept.itertuples()]]
    store.write_json(kept_json(written, config.export.frames), "kept.json")
    if config.export.webdataset:
        _write_shards(written, config)
    return Exported(len(missing) - len(failed), len(there), failed, time.monotonic() - started)


def kept_scenes(store: Store) -> pd.DataFrame:
    """The scenes that scenes/ says are kept, in its order, with where their films lie."""
    chosen = [part.filter(part["kept"]) for part in store.read_parts("scenes", ["video_id", "scene_id", "kept"])]
    if not chosen:
        raise ValueError(f"{store.uri('scenes')} is empty: select first")
    keys = pa.concat_tables(chosen).to_pandas()[["video_id", "scene_id"]]
    rows = []
    for part in store.read_parts("scores", [*KEPT, "error"]):
        mine = pc.and_(pc.is_in(part["scene_id"], pa.array(keys.scene_id, pa.string())), pc.equal(part["error"], ""))
        rows.append(part.filter(mine).select(KEPT).to_pandas())
    found = pd.concat([pd.DataFrame(columns=KEPT), *rows]).drop_duplicates(["video_id", "scene_id"])
    return keys.merge(found, on=["video_id", "scene_id"], how="left", validate="one_to_one")


def kept_json(kept: pd.DataFrame, frames: bool) -> dict[str, Any]:
    """The reference's file: paths are relative to the output; what was not measured is null."""
    scenes = [
        {
            "scene_id": row.scene_id,
            "video_id": row.video_id,
            "clip_id": row.clip_id,
            "caption": row.caption,
            "scene_cut": [int(row.first), int(row.end)],
            "video_path": f"clips/{_clip(row.video_id, row.scene_id)}",
            "frames_path": f"frames/{row.video_id}/{row.scene_id}" if frames else None,
            "recaption": None,
        }
        for row in kept.itertuples()
    ]
    totals = ("total_caption_score", "total_recaption_score", "total_score_random", "total_score_selected")
    return {"length": len(scenes), "scenes": scenes, **dict.fromkeys(totals)}


_ASKED = ("crf", "preset", "jpeg_quality", "frames")


def _clip(video_id: str, scene_id: str) -> str:
    return f"{video_id}/{scene_id}.mp4"


def _write_missing(missing: pd.DataFrame, config: CurationConfig) -> pd.DataFrame:
    set_context()
    films = [
        {"video_id": video_id, "uri": uri, "wanted": scenes[["scene_id", "start_s", "end_s"]].to_json(orient="records")}
        for (video_id, uri), scenes in missing.groupby(["video_id", "uri"], sort=False)
    ]
    rows = ray.data.from_items(films, override_num_blocks=len(films))
    rows = rows.map_batches(export_films, batch_size=1, fn_args=[config], **ray_task(config.export))
    results = [pd.DataFrame(batch) for batch in rows.iter_batches(batch_size=None, prefetch_batches=0)]
    done = pd.concat(results)
    return done[done.error != ""].reset_index(drop=True)


def export_films(batch: Batch, config: CurationConfig) -> Iterator[Batch]:
    """Write the wanted scenes of films: yields batches of one row with the columns of EXPORTED."""
    for video_id, uri, wanted in zip(batch["video_id"], batch["uri"], batch["wanted"], strict=True):
        for row in _export_film(str(video_id), str(uri), json.loads(wanted), config):
            yield {name: np.array([value], object) for name, value in row.items()}


def _export_film(video_id: str, uri: str, wanted: list[Row], config: CurationConfig) -> Iterator[Row]:
    store = Store(config.output)
    left = {scene["scene_id"] for scene in wanted}
    code = message = ""
    try:
        with storage.local(uri) as film, tempfile.TemporaryDirectory(prefix="filmray-") as folder:
            interval = config.frames.interval_ms if config.export.frames else None
            limits = {"stall_s": config.video.stall_s, "timeout_s": config.video.timeout_s}
            for clip in CHILD.stream(WRITE_CLIPS, str(film), wanted, folder, config.export, interval, **limits):
                scene_id = clip["scene_id"]
                left.discard(scene_id)
                if not clip["error"]:
                    # The clip comes last: where it lies, its frames do too.
                    for path in map(Path, clip["frame_paths"]):
                        storage.upload(path, store.uri("frames", video_id, scene_id, path.name))
                        path.unlink()
                    storage.upload(clip["path"], store.uri("clips", video_id, f"{scene_id}.mp4"))
                    Path(clip["path"]).unlink()
                yield {"video_id": video_id, "scene_id": scene_id, "error": clip["error"], "message": clip["message"]}
    except ChildFault as fault:
        code, message = fault.code, str(fault)
    except FileNotFoundError:
        code, message = "not_found", f"there is no {uri}"
    for scene_id in left:
        yield {"video_id": video_id, "scene_id": scene_id, "error": code or "export_failed", "message": message}


def _write_shards(kept: pd.DataFrame, config: CurationConfig) -> None:
    size = config.export.shard_clips
    shards = [
        {"name": f"shard-{start // size:06d}.tar", "start": start, "scenes": kept.iloc[start : start + size].to_json()}
        for start in range(0, len(kept), size)
    ]
    rows = ray.data.from_items(shards, override_num_blocks=max(1, len(shards)))
    written = rows.map(write_one_shard, fn_args=[config], **ray_task(config.export)).take_all()
    store = Store(config.output)
    names = {row["name"] for row in written}
    for entry in storage.listing(store.uri("shards"), (".tar",)):
        if entry.name not in names:
            storage.delete(entry.uri)


def write_one_shard(shard: Row, config: CurationConfig) -> Row:
    """Gather clips into one tar of shards/, beside them their captions and rows of scenes/."""
    store = Store(config.output)
    scenes = pd.read_json(shard["scenes"])
    with tempfile.TemporaryDirectory(prefix="filmray-") as folder:
        samples = []
        for row in scenes.itertuples():
            path = Path(folder) / f"{row.Index}.mp4"
            storage.download(store.uri("clips", row.video_id, f"{row.scene_id}.mp4"), path)
            samples.append(
                {
                    "video_id": row.video_id,
                    "scene_id": row.scene_id,
                    "clip": str(path),
                    "caption": row.caption,
                    "row": {name: getattr(row, name) for name in KEPT},
                }
            )
        tar = Path(folder) / shard["name"]
        write_shard(str(tar), samples)
        storage.upload(tar, store.uri("shards", shard["name"]))
    return {"name": shard["name"]}

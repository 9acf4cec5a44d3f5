"""Kept scenes of films go into clips/ and frames/, and clips into tars of shards/."""

import hashlib
import io
import json
import math
import tarfile
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from operator import itemgetter
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from actors.core import storage
from actors.core.addresses import AddressError
from actors.core.child import CHILD, DECODE_ATTEMPTS, ChildFault
from actors.core.stage import Batch, Row
from actors.core.store import Store
from actors.core.temporary import TemporaryFolder
from actors.curation.exporting.clips import ClipsConfig, write_clips
from actors.curation.exporting.packed import download_clip, pack, tar_of
from actors.curation.exporting.presets import Bucket, Preset, write_fitted
from actors.curation.guard import CODE, ends_the_run, message_of
from actors.curation.tables import BARS
from actors.media.film import VIDEO_SUFFIXES, VideoConfig
from actors.media.shown import AS_STORED, Look

CLIP = ("scene_id", "error", "message", "silenced_s")
"""What is told of a clip."""


@dataclass(frozen=True)
class ExportJob:
    """What the export of each film needs."""

    store: Store
    """The output."""
    clips: ClipsConfig
    """How clips are encoded."""
    video: VideoConfig
    """How films are decoded."""
    interval_ms: int | None
    """Milliseconds between frames that are written, too; None: no frames."""
    look: Look = AS_STORED
    """What is done to frames."""
    packed: bool = False
    """Whether the clips of a film become one tar."""


def clip_name(video_id: str, scene_id: str) -> str:
    """The name of a clip below clips/. Its folder is the video's id, and "_" where that is named like a film: programs
    that look for *.mp4 would take the folder for one."""
    return f"{_folder_of(video_id)}/{scene_id}.mp4"


@lru_cache(1024)
def _folder_of(video_id: str) -> str:
    like_a_film = PurePosixPath(video_id.rstrip("_")).suffix.lower() in VIDEO_SUFFIXES
    return f"{video_id}{'_' * like_a_film}"


def export_films(batch: Batch, job: ExportJob) -> Iterator[Batch]:
    """Write the wanted scenes of films: yields batches of one row of video_id, scene_id, error, message,
    silenced_s."""
    for video_id, uri, wanted in zip(batch["video_id"], batch["uri"], batch["wanted"], strict=True):
        for row in _export_film(str(video_id), str(uri), json.loads(wanted), job):
            yield {name: np.array([value], object) for name, value in row.items()}


def _export_film(video_id: str, uri: str, wanted: list[Row], job: ExportJob) -> Iterator[Row]:
    left = {scene["scene_id"] for scene in wanted}
    code, message = "export_failed", "it was not written"
    try:
        with storage.local(uri) as film, TemporaryFolder() as folder:
            how = job.clips, job.interval_ms, job.video.max_pixels, job.look
            limits = job.video.limits | {"attempts": DECODE_ATTEMPTS, "key": itemgetter("scene_id")}
            rows = CHILD.stream(write_clips, str(film), wanted, str(folder), *how, **limits)
            for clip in _written(rows, video_id, job):
                left.discard(clip["scene_id"])
                yield {"video_id": video_id} | {name: clip[name] for name in CLIP}
    except ChildFault as fault:
        code, message = fault.code, str(fault)
    except FileNotFoundError:
        code, message = "not_found", f"there is no {uri}"
    except PermissionError as error:
        code, message = "forbidden", str(error)
    except AddressError as error:
        code, message = "bad_url", str(error)
    except Exception as error:
        # Writing to the output would fail for every film.
        if isinstance(error, OSError) or ends_the_run(error):
            raise
        code, message = CODE, message_of(error)
    for scene_id in left:
        yield {"video_id": video_id, "scene_id": scene_id, "error": code, "message": message, "silenced_s": 0.0}


def _written(rows: Iterator[Row], video_id: str, job: ExportJob) -> Iterator[Row]:
    """Rows of clips, each once its files are in the output. Those in a tar are there when the film has ended, however
    it does."""
    made: dict[str, Row] = {}
    try:
        for row in rows:
            if row["error"]:
                yield row
                continue
            # The clip comes last: where it lies, its frames do too.
            _write_frames(row, video_id, job)
            name = clip_name(video_id, row["scene_id"])
            if job.packed:
                made[PurePosixPath(name).name] = row
                continue
            storage.upload(row["path"], job.store.uri("clips", name))
            Path(row["path"]).unlink()
            yield row
    except ChildFault:
        yield from _pack(made, video_id, job)
        raise
    yield from _pack(made, video_id, job)


def _write_frames(row: Row, video_id: str, job: ExportJob) -> None:
    """Write the frames of a clip, in place of those that were there."""
    for path in map(Path, row["frame_paths"]):
        storage.upload(path, job.store.uri("frames", video_id, row["scene_id"], path.name))
        path.unlink()
    if job.interval_ms:
        remove_frames(job.store, video_id, row["scene_id"], {Path(path).name for path in row["frame_paths"]})


def _pack(made: Mapping[str, Row], video_id: str, job: ExportJob) -> Iterator[Row]:
    if made:
        pack(job.store, tar_of(clip_name(video_id, "")), {name: Path(row["path"]) for name, row in made.items()})
    yield from made.values()


def cut_off(scene: Row, crop: bool) -> list[int]:
    """Pixels at the top, bottom, left and right of a scene that its clip lacks; crop: whether bars are cut off."""
    return [scene[name] if crop else 0 for name in BARS]


def remove_frames(store: Store, video_id: str, scene_id: str, but: Collection[str] = ()) -> None:
    """Remove the frames of a scene except those of these names, as an export with other settings left them."""
    for entry in storage.listing(store.uri("frames", video_id, scene_id)):
        if entry.name not in but:
            storage.delete(entry.uri)


def fit_scene(scene: Row, store: Store, root: Store, preset: Preset) -> Row:
    """Write the clips that a kept scene becomes by a preset.

    scene: clip (below clips/ of the output), and of its clips names (below clips/ of the root) and buckets, as JSON.
    """
    names = list(scene["names"])
    buckets = [Bucket(**about) for about in json.loads(scene["buckets"])]
    with TemporaryFolder() as folder:
        source = folder / "source.mp4"
        download_clip(store, scene["clip"], source)
        paths = [str(folder / f"{k}.mp4") for k in range(len(names))]
        for name, path in zip(names, write_fitted(str(source), paths, buckets, preset.fps, preset.sound), strict=True):
            storage.upload(path, root.uri("clips", name))
            Path(path).unlink()
    return {"clips": len(names)}


def write_one_shard(shard: Row, store: Store) -> Row:
    """Gather clips into one tar of shards/, beside them their captions and what export knows of them.

    shard: name, and scenes: a JSON list of {path, text, row}.
    """
    with TemporaryFolder() as folder:
        samples = []
        for number, scene in enumerate(json.loads(shard["scenes"])):
            row = scene["row"]
            clip = folder / f"{number}.mp4"
            download_clip(store, scene["path"].removeprefix("clips/"), clip)
            about = {name: row[name] for name in ("video_id", "scene_id")}
            samples.append({**about, "caption": scene["text"], "clip": str(clip), "row": row})
        tar = folder / "shard.tar"
        write_shard(str(tar), samples)
        storage.upload(tar, store.uri("shards", shard["name"]))
    return {"name": shard["name"]}


def write_shard(path: str, samples: Iterable[Row]) -> None:
    """Write a WebDataset shard, a tar that is the same for the same samples: `<key>.mp4`, `.txt` and `.json` for each.

    samples: {video_id, scene_id, clip, caption, row}: `clip` is a local file, `row` holds the values of the JSON (NaN
    becomes null). A key is made of both ids, with "_" in place of slashes and of dots, at the first of which readers
    split a name; where that makes two keys of a shard alike, each gets a digest of its ids.
    """
    samples = list(samples)
    times = Counter(map(sample_key, samples))
    members = {sample_key(sample, unlike=times[sample_key(sample)] > 1): sample for sample in samples}
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as shard:
        for key, sample in sorted(members.items()):
            row = {name: _plain(value) for name, value in sample["row"].items()}
            about = json.dumps(row, ensure_ascii=False, sort_keys=True, allow_nan=False).encode()
            clip = Path(sample["clip"]).read_bytes()
            for suffix, data in (("json", about), ("mp4", clip), ("txt", sample["caption"].encode())):
                entry = tarfile.TarInfo(f"{key}.{suffix}")
                entry.size = len(data)
                shard.addfile(entry, io.BytesIO(data))


def sample_key(sample: Row, unlike: bool = False) -> str:
    """Both ids of a scene as one name without dots and slashes; unlike: with a digest of the ids."""
    video_id, scene_id = sample["video_id"], sample["scene_id"]
    ids = scene_id if scene_id.startswith(f"{video_id}.") else f"{video_id}_{scene_id}"
    digest = "_" + hashlib.sha256(f"{video_id}/{scene_id}".encode()).hexdigest()[:12] if unlike else ""
    return ids.replace(".", "_").replace("/", "_") + digest


def _plain(value: Any) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and not math.isfinite(value) else value

"""What key frames cost the decode pass, what they take, and what having them saves those who need pictures later."""

import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa

from actors.core.stage import Row
from actors.core.store import Store
from actors.curation.cutting.cut import cut
from actors.curation.cutting.keyframes import KEY_FRAMES, decode_jpeg
from actors.curation.cutting.pictures import film_task, stored
from actors.curation.cutting.scenes import FramesConfig, Windows
from actors.curation.exporting.clips import ClipsConfig, write_clips
from actors.curation.features.motion import MotionConfig
from actors.curation.tables import KEYFRAMES
from actors.media.film import VideoConfig
from actors.media.shot_detection.shots import ShotsConfig

WINDOWS = Windows(60, 0, 4)
"""As an output divides long shots by default."""


def scenes_of(path: Path, keyframes: int) -> list[Row]:
    """The rows of a film's scenes as a run makes them, but for the VAE."""
    settings = VideoConfig(), FramesConfig(keyframes=keyframes), ShotsConfig(), MotionConfig()
    return [row for row in cut(str(path), "film", None, frozenset(), *settings, WINDOWS) if row and row["scene_id"]]


def kilobytes(rows: list[Row]) -> float:
    """What the key frames of a scene take on average, of those that have them."""
    sizes = [sum(len(row[name]) for name in KEY_FRAMES) for row in rows]
    return float(np.mean([size for size in sizes if size])) / 1000


def later(path: Path, rows: list[Row], folder: Path) -> dict[str, Callable[[], Any]]:
    """Ways to have pictures of measured scenes: those of `recaption` and `evaluate`, and a clip for `annotate`."""
    store = Store(str(folder))
    wanted = [{**row, "video_id": "film", "uri": str(path)} for row in rows if row[KEY_FRAMES[0]]]
    columns = [{name: row[name] or None for name in KEYFRAMES.names} for row in wanted]
    part = store.write_part("keyframes", pa.Table.from_pylist(columns, KEYFRAMES), ["film"], row_group_size=1)
    keys = {(row["video_id"], row["scene_id"]) for row in wanted}

    def from_films() -> None:
        task = film_task("film", str(path), wanted)
        about = VideoConfig(), FramesConfig(keyframes=0), ShotsConfig(), MotionConfig(flow="raft")
        found = cut(str(path), "film", json.loads(task["spans"]), frozenset(), *about, seek=True)
        _check(sum(bool(row and row["scene_id"]) for row in found), len(wanted))

    def from_keyframes() -> None:
        found = stored(store, part, keys)
        for files in found.values():
            for data in files:
                decode_jpeg(data)
        _check(len(found), len(wanted))

    def clips() -> None:
        with TemporaryDirectory() as into:
            made = write_clips(str(path), wanted, into, ClipsConfig(crf=23, x264_preset="superfast"), None)
            _check(sum(bool(row and not row["error"]) for row in made), len(wanted))

    return {"films": from_films, "keyframes": from_keyframes, "clips": clips}


def _check(found: int, wanted: int) -> None:
    if found != wanted:
        raise RuntimeError(f"{found} of {wanted} scenes were found")

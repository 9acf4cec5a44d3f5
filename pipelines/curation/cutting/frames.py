"""Pictures of chosen scenes, for what is done after the choice: key frames that are stored, or frames decoded anew."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any

from actors.core.stage import Row, Stage
from actors.core.store import Store
from actors.curation.cutting.pictures import FOLDER, film_of, film_task, read_pictures
from actors.curation.cutting.scenes import FramesConfig
from actors.curation.cutting.videos import CutConfig, cut_frames
from pipelines.core.ray_data import ray_task, set_context
from pipelines.curation.cutting.order import longest_first
from pipelines.curation.settings import CurationConfig

if TYPE_CHECKING:
    from ray.data import Dataset

log = logging.getLogger(__name__)


def frames_of(scenes: Iterable[Row], config: CurationConfig, stage: Stage) -> Dataset:
    """One row a scene: video_id, scene_id, caption, frames uint8 (T, size, size, 3) RGB, error, message.

    The frames are those that were measured: every frames.interval_ms from the scene's start. Each film is opened once,
    and decoded where its scenes lie.
    A scene that cannot be had has an error code and no frames.

    Args:
        scenes: sound rows of scores/, each with video_id, uri, clip_id, scene_id, caption, start_s, end_s.
        stage: what one decoding task holds, as it fits the cluster.
    """
    films = [film_task(*film_of(rows[0]), rows) for rows in _films(scenes)]
    cut: Any = partial(cut_frames, config=bare(config, keyframes=0))
    return from_items(films).map_batches(cut, batch_size=1, **ray_task(stage))


def key_frames_of(scenes: Sequence[Row], config: CurationConfig, stage: Stage) -> Dataset:
    """One row a scene: video_id, scene_id, caption, frames uint8 (up to 3, H, W, 3) RGB, error, message.

    The frames are its first, middle and last sampled one, whole pictures. They come from keyframes/; films are opened
    for scenes that have none there, as `frames_of` does.

    Args:
        scenes: as of `frames_of`, with `part`, the part of scores/ that holds them.
    """
    store = Store(config.output)
    there = set(store.parts(FOLDER))
    kept = sorted((row for row in scenes if row.get("part") in there), key=_part)
    films = _films(left := [row for row in scenes if row.get("part") not in there])
    log.info("pictures: %d scenes from keyframes/, %d from the %d films opened", len(kept), len(left), len(films))
    work = [{"part": part, "scenes": json.dumps(list(rows))} for part, rows in groupby(kept, _part)]
    work += [{"part": "", "scenes": json.dumps(rows)} for rows in films]
    side = config.frames.keyframes or FramesConfig().keyframes
    read: Any = partial(read_pictures, store=store, config=bare(config, keyframes=side))
    return from_items(work).map_batches(read, batch_size=1, **ray_task(stage))


def without_key_frames(scenes: Iterable[Row], store: Store) -> int:
    """How many scenes have no key frames in keyframes/."""
    there = set(store.parts(FOLDER))
    return sum(row.get("part") not in there for row in scenes)


def _films(scenes: Iterable[Row]) -> list[list[Row]]:
    return longest_first(rows for _, rows in groupby(sorted(scenes, key=film_of), film_of))


def _part(row: Row) -> str:
    return row["part"]


def from_items(rows: list[Row]) -> Dataset:
    import ray

    set_context()
    return ray.data.from_items(rows, override_num_blocks=max(1, len(rows)))


def bare(config: CurationConfig, keyframes: int) -> CutConfig:
    """Settings of a decode that only yields pictures: of all flows RAFT's is the one that is not measured in it."""
    frames = replace(config.cutting.frames, keyframes=keyframes)
    return replace(config.cutting, frames=frames, motion=replace(config.motion, flow="raft"), seek=True)

"""The sampled frames of chosen scenes, decoded once more: for what is done after the choice."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any

from actors.core.stage import Row, Stage
from actors.curation.videos import cut_frames
from pipelines.core.ray_data import ray_task, set_context
from pipelines.curation.settings import CurationConfig

if TYPE_CHECKING:
    from ray.data import Dataset


def frames_of(scenes: Iterable[Row], config: CurationConfig, stage: Stage) -> Dataset:
    """One row a scene: video_id, scene_id, caption, frames uint8 (T, size, size, 3) RGB, error, message.

    The frames are those that were measured: every frames.interval_ms from the scene's start. Each film is opened once,
    and decoded where its scenes lie.
    A scene that cannot be had has an error code and no frames.

    Args:
        scenes: sound rows of scores/, each with video_id, uri, clip_id, scene_id, caption, start_s, end_s.
        stage: what one decoding task holds, as it fits the cluster.
    """
    import ray

    def film(row: Row) -> tuple[str, str]:
        return row["video_id"], row["uri"]

    films = [_task(*key, list(rows)) for key, rows in groupby(sorted(scenes, key=film), film)]
    set_context()
    tasks = ray.data.from_items(films, override_num_blocks=max(1, len(films)))
    # Nothing but frames is wanted: of all flows RAFT's is the one that is not measured in the decode.
    bare = replace(config.cutting, motion=replace(config.motion, flow="raft"), seek=True)
    cut: Any = partial(cut_frames, config=bare)
    return tasks.map_batches(cut, batch_size=1, **ray_task(stage))


def _task(video_id: str, uri: str, scenes: list[Row]) -> Row:
    """A row of plan/todo where each scene is a span of its own, from its first picture to the one after its last."""
    whole = {"ordinal": 0, "first": 0, "end": -1}
    spans = [
        {
            **{name: scene[name] for name in ("start_s", "end_s")},
            "steady": bool(scene.get("clock_jumps") == 0),
            "scenes": [{name: scene[name] for name in ("clip_id", "scene_id", "caption")} | whole],
        }
        for scene in scenes
    ]
    return {"video_index": 0, "video_id": video_id, "url": uri, "uri": uri, "spans": json.dumps(spans), "skip": "[]"}

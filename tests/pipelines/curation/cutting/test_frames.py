"""Chosen scenes give the frames that were measured, and those that cannot be had say why."""

import json
from pathlib import Path

import numpy as np

from actors.core.stage import Row, Stage
from actors.curation.cutting.scenes import FramesConfig
from actors.curation.cutting.videos import cut_videos
from actors.media.shot_detection.shots import ShotsConfig
from pipelines.curation.cutting.frames import frames_of
from pipelines.curation.settings import CurationConfig
from tests.support import films


def measured(config: CurationConfig, video_id: str, path: Path, spans: list[Row] | None) -> list[Row]:
    """Rows of a film as the scoring decode makes them, frames included."""
    task = {"video_index": 0, "video_id": video_id, "url": str(path), "skip": "[]"}
    task["spans"] = json.dumps(spans) if spans else ""
    rows = []
    for batch in cut_videos({name: np.array([value]) for name, value in task.items()}, config.cutting):
        rows += [{name: column[i] for name, column in batch.items()} for i in range(len(batch["scene_id"]))]
    return [row for row in rows if row["scene_id"]]


def scene(number: int, first: int, end: int) -> Row:
    name = {"clip_id": "a.0", "scene_id": f"a.0_{number}", "ordinal": number, "caption": f"words {number}"}
    return {**name, "first": first, "end": end}


def test_frames_are_those_that_were_measured(ray_cluster: None, tmp_path: Path):
    config = CurationConfig(
        input="in", output=str(tmp_path), frames=FramesConfig(size=64), shots=ShotsConfig(detector="content")
    )
    listed = films.film(tmp_path / "a.mp4", (48, 36, 30))
    turning, _ = films.variable_rate(tmp_path / "b.mp4")
    parts = [scene(0, 0, 30), scene(1, 30, 48), scene(2, 48, -1)]
    spans = [{"start_s": 0.5, "end_s": 4.0, "scenes": parts}]
    before = [*measured(config, "a", listed, spans), *measured(config, "b", turning, None)]
    assert len(before) == 5 and not any(row["error"] for row in before)
    assert {row["start_s"] for row in before} > {0.5, 5.0}

    gone = {**before[0], "video_id": "gone", "uri": str(tmp_path / "gone.mp4")}
    rows = list(frames_of([*reversed(before), gone], config, Stage(num_cpus=0.5)).iter_rows())
    found = {(row["video_id"], row["scene_id"]): row for row in rows}
    assert len(rows) == len(found) == 6
    for row in before:
        again = found[row["video_id"], row["scene_id"]]
        assert again["error"] == "" and again["caption"] == row["caption"]
        np.testing.assert_array_equal(again["frames"], row["frames"])
    lost = found["gone", before[0]["scene_id"]]
    assert lost["error"] == "not_found" and len(lost["frames"]) == 0 and "gone.mp4" in lost["message"]

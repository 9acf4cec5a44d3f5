"""Films of long shots through the whole job: what they last is measured, selected and exported as windows."""

import json
from pathlib import Path

import av
import pytest

from tests.support import films
from tests.support.corpus import FAST, run_here, table


def test_single_shot_films_become_windows_that_add_up(ray_cluster: None, tmp_path: Path) -> None:
    lengths = {"long": (720,), "two": (300, 36), "short": (60,)}
    for name, shots in lengths.items():
        films.film(tmp_path / "films" / f"{name}.mp4", shots)
    output = tmp_path / "out"
    # The stripes move by 2 pixels a frame: nothing that is measured of them says anything.
    rules = ["select.min_velocity=0", "select.max_rgb_diff=1e9"]
    told = run_here("run", f"input={tmp_path / 'films'}", f"output={output}", "windows.length_s=5", *rules, *FAST)
    scenes = table(output, "scenes")
    rows = json.loads((output / "run.json").read_text())["rows"]
    assert rows["in"] == len(scenes) == rows["kept"] + sum(rows["dropped"].values())
    assert scenes.kept.all(), told.stdout
    assert (scenes.end_s - scenes.start_s).sum() == pytest.approx(sum(map(sum, lengths.values())) / films.RATE)
    assert (scenes.window >= 0).groupby(scenes.video_id).sum().to_dict() == {
        "long.mp4": 6,
        "two.mp4": 3,
        "short.mp4": 0,
    }
    assert "9 of them windows of long shots" in (output / "report.html").read_text()
    paths = {
        scene["scene_id"]: scene["video_path"] for scene in json.loads((output / "kept.json").read_text())["scenes"]
    }
    for scene_id, *times in scenes[["scene_id", "start_s", "end_s"]].itertuples(index=False):
        with av.open(str(output / paths[scene_id])) as clip:
            frames = [frame.to_ndarray(format="rgb24") for frame in clip.decode(video=0)]
        first, end = (round(time * films.RATE) for time in times)
        assert [films.read_stamp(frame) for frame in frames] == list(range(first, end))
    # Another bound is a rule for what is there: nothing is measured or divided again.
    run_here("run", output, "frames.max=10")
    assert (table(output, "scenes").reason == "too_long").sum() == (scenes.no_frames > 10).sum()

"""Films of long shots through the whole job: what they last is measured, selected and exported as windows."""

import json
from pathlib import Path

import av
import pandas as pd
import pyarrow.parquet as pq
import pytest

from tests.support import films
from tests.support.corpus import FAST, run_here, table


@pytest.mark.slow
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
    report = (output / "report.html").read_text()
    assert "9 of them windows of long shots" in report and "which were found by gradual" in report
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


@pytest.mark.slow
def test_named_scenes_become_windows_and_what_is_lost_of_them_is_measured_again(
    ray_cluster: None, tmp_path: Path
) -> None:
    path = films.film(tmp_path / "a.mp4", (360,))
    table_of = tmp_path / "scenes.csv"
    table_of.write_text(f"video_id,url,start,end,caption\na,{path},0,12,long\na,{path},12,15,short\n")
    output = tmp_path / "out"
    settings = [f"input={table_of}", f"output={output}", "windows.named=true", "frames.max=20", *FAST]
    rules = ["select.min_velocity=0", "select.max_rgb_diff=1e9"]
    run_here("run", *settings, *rules)
    scenes = table(output, "scenes").set_index("scene_id")
    assert sorted(scenes.index) == ["a.0_0", "a.0_0_w0", "a.0_0_w1", "a.0_0_w2", "a.1_0"]
    assert scenes.reason.to_dict()["a.0_0"] == "too_long" and scenes.drop(index="a.0_0").kept.all()
    assert scenes.caption["a.0_0_w1"] == "long"
    parts = list((output / "scores").iterdir())
    before = {part.name: part.read_bytes() for part in parts}
    run_here("run", *settings, *rules)
    assert {part.name for part in (output / "scores").iterdir()} == before.keys()

    # A part with a window is lost: what is measured again is what it was.
    lost = next(part for part in parts if "a.0_0_w1" in pq.read_table(part)["scene_id"].to_pylist())
    lost.unlink()
    assert "have scenes without a row" in run_here("select", output, code=1).output
    run_here("run", *settings, *rules)
    again = table(output, "scenes").set_index("scene_id")
    columns = ["start_s", "end_s", "max_rgb_diff", "no_frames", "window", "kept", "reason"]
    pd.testing.assert_frame_equal(again[columns].sort_index(), scenes[columns].sort_index())
    # Other times of the scene make other windows.
    table_of.write_text(f"video_id,url,start,end,caption\na,{path},0,7,long\na,{path},12,15,short\n")
    run_here("run", *settings, *rules)
    assert sorted(table(output, "scenes").scene_id) == ["a.0_0", "a.0_0_w0", "a.0_0_w1", "a.1_0"]

"""Films with black bars through the whole job: measured inside of them, and exported without on request."""

import json
from pathlib import Path
from typing import Any

import av

from actors.curation.tables import BARS
from tests.support import films
from tests.support.corpus import FAST, run_here, table


def sizes(output: Path, folder: str = "clips") -> dict[str, tuple[int, int]]:
    """Width and height of clips by the start of their names."""
    found = {}
    for path in sorted((output / folder).rglob("*.mp4")):
        with av.open(str(path)) as clip:
            found[path.name.partition(".")[0][:3]] = clip.streams.video[0].width, clip.streams.video[0].height
    return found


def cut_off(output: Path, *name: str) -> list[Any]:
    said = json.loads(output.joinpath(*name).read_text())
    return [scene["cut_off"] for scene in (said["scenes"] if isinstance(said, dict) else said)]


def test_bars_are_told_and_cut_off_on_request(ray_cluster: None, tmp_path: Path) -> None:
    films.film(tmp_path / "films" / "box.mp4", (48,), size=(320, 240), bars=(30, 30, 0, 0))
    films.film(tmp_path / "films" / "not.mp4", (48,), size=(320, 240))
    output, preset = tmp_path / "out", tmp_path / "mine.yaml"
    preset.write_text("fps: 8\nframes: [5]\nsizes: [[128, 96], [160, 88]]\n")
    # The stripes move by 2 pixels a frame: nothing that is measured of them says anything.
    rules = ["select.min_velocity=0", "select.max_rgb_diff=1e9"]
    run_here("run", f"input={tmp_path / 'films'}", f"output={output}", *rules, *FAST)
    bars = {row.video_id: tuple(row[name] for name in BARS) for _, row in table(output, "scenes").iterrows()}
    assert bars == {"box.mp4": (32, 32, 0, 0), "not.mp4": (0, 0, 0, 0)}
    assert "1 of them with black bars" in (output / "report.html").read_text()
    whole = sizes(output)
    assert set(whole.values()) == {(320, 240)} and cut_off(output, "kept.json") == [[0] * 4] * 2
    # Clips are made anew, those of a preset too, in the bucket of what is left.
    run_here("export", output, "export.crop_bars=true", f"export.preset={preset}")
    assert sorted(sizes(output).values()) == [(320, 176), (320, 240)]
    assert sorted(cut_off(output, "kept.json")) == [[0] * 4, [32, 32, 0, 0]]
    assert set(sizes(output, "mine/clips").values()) == {(160, 88), (128, 96)}
    assert sorted(cut_off(output, "mine", "clips.json"))[-1] == [32, 32, 0, 0]
    run_here("export", output)
    assert sizes(output) == whole


def test_an_output_goes_on_as_it_was_begun(ray_cluster: None, tmp_path: Path) -> None:
    films.film(tmp_path / "films" / "box.mp4", (48,), size=(320, 240), bars=(30, 30, 0, 0))
    output = tmp_path / "out"
    told = [f"input={tmp_path / 'films'}", f"output={output}", *FAST]
    run_here("run", *told, "frames.crop_bars=false")
    before = table(output, "scenes")
    run_here("run", *told)
    assert table(output, "scenes").max_rgb_diff.tolist() == before.max_rgb_diff.tolist()
    refused = run_here("run", *told, "frames.crop_bars=true", code=2)
    assert "frames.crop_bars=False there, True here" in refused.output

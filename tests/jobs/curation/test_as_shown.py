"""Interlaced and HDR films through the whole job: rows and kept.json say what was converted, clips are converted."""

import json
from pathlib import Path

import av

from tests.actors.media.test_shown import comb, pq_film
from tests.support import films
from tests.support.corpus import FAST, run_here, table


def test_films_are_converted_and_told_so(ray_cluster: None, tmp_path: Path) -> None:
    folder, output = tmp_path / "films", tmp_path / "out"
    folder.mkdir()
    films.fields(folder / "fields.mp4", 50)
    pq_film(folder / "hdr.mp4", [(light,) * 3 for light in (1.0, 20.0, 80.0, 203.0, 600.0, 1000.0)], frames=48)
    films.film(folder / "plain.mp4", (48,))
    rules = ["select.min_velocity=0", "select.max_rgb_diff=1e9", "select.max_hold_s=1e9"]
    told = [f"input={folder}", f"output={output}", *rules, *FAST]
    run_here("run", *told)
    scenes = {row.video_id: row for _, row in table(output, "scenes").iterrows()}
    converted = {"fields.mp4": "deinterlaced", "hdr.mp4": "tone_mapped", "plain.mp4": ""}
    assert {name: row.converted for name, row in scenes.items()} == converted
    assert scenes["hdr.mp4"].color_transfer == "smpte2084" and scenes["hdr.mp4"].color_space == "bt2020nc"
    kept = {scene["video_id"]: scene for scene in json.loads((output / "kept.json").read_text())["scenes"]}
    assert {name: ",".join(scene["converted"]) for name, scene in kept.items()} == converted

    def first(video_id: str) -> av.VideoFrame:
        with av.open(str(output / kept[video_id]["video_path"])) as clip:
            return next(clip.decode(video=0))

    assert comb(first("fields.mp4").to_ndarray(format="rgb24")) < 10
    assert (first("hdr.mp4").color_trc, first("hdr.mp4").colorspace) == (1, 1)
    refused = run_here("run", *told, "frames.deinterlace=false", code=2)
    assert "frames.deinterlace=True there, False here" in refused.output


def test_an_output_that_was_begun_without_goes_on_without(ray_cluster: None, tmp_path: Path) -> None:
    (tmp_path / "films").mkdir()
    films.fields(tmp_path / "films" / "fields.mp4", 50)
    output = tmp_path / "out"
    told = [f"input={tmp_path / 'films'}", f"output={output}", "select.min_velocity=0", "select.max_rgb_diff=1e9"]
    told += FAST
    run_here("run", *told, "frames.deinterlace=false", "frames.color_managed=false")
    [clip] = (output / "clips").rglob("*.mp4")
    before = clip.read_bytes()
    run_here("run", *told)
    assert table(output, "scenes").converted.tolist() == [""]
    assert clip.read_bytes() == before and "deinterlace" not in json.loads((output / "export.json").read_text())
    run_here("export", output)
    assert clip.read_bytes() == before

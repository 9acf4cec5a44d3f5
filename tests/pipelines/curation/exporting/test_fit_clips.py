"""Kept scenes become a folder that trainers load: clips of a model's sizes, lengths and rate, and their layouts."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import pyarrow as pa
import pytest

from actors.core.errors import UserError
from actors.core.store import Store
from actors.curation.exporting.presets import load_preset
from actors.curation.tables import CAPTIONS
from pipelines.curation.exporting.export import export, renew_exported
from pipelines.curation.exporting.fit_clips import fitted_of
from pipelines.curation.exporting.trainers import seen_by_trainers
from pipelines.curation.kept import kept_scenes
from pipelines.curation.selecting.select import select
from pipelines.curation.settings import CurationConfig, ExportConfig, check
from tests.pipelines.curation.outputs import config, film, scene, write_plan, write_scores
from tests.support import films

PRESET = "fps: 8\nframes: [5, 9, 17]\nsizes: [[96, 64], [64, 96]]\n"


@pytest.fixture(scope="module")
def settings(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> CurationConfig:
    """Scenes of 3, 1 and 0.5 s, and one of 1 s that stands upright, with a preset of one's own."""
    folder = tmp_path_factory.mktemp("fit")
    preset = folder / "mine.yaml"
    preset.write_text(PRESET)
    settings = config(folder / "out")
    wanted = replace(settings.export, preset=str(preset), layout="jsonl,hf,sidecar,webdataset", x264_preset="ultrafast")
    settings = replace(settings, export=wanted)
    rows = []
    for number, (video, size, shots) in enumerate((("a", (160, 120), (72, 24, 12)), ("b", (120, 160), (24,)))):
        uri, at = str(films.film(folder / f"{video}.mp4", shots, size=size)), 0.0
        for i, frames in enumerate(shots):
            about: dict[str, Any] = {"video_id": video, "video_index": number, "ordinal": i, "uri": uri, "no_frames": 8}
            about |= {"start_s": at, "end_s": at + frames / 24, "width": size[0], "height": size[1], "caption": "so"}
            rows.append(scene(f"{video}.{i}_0", **about))
            at += frames / 24
        rows.append(film(video, len(shots), uri=uri))
    store = Store(settings.output)
    write_scores(store, *rows)
    write_plan(store, {"a": -1, "b": -1})
    select(settings)
    return settings


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def stamps(root: Path) -> dict[str, int]:
    return {path.relative_to(root).as_posix(): path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}


def test_a_preset_makes_a_folder_that_trainers_load(settings: CurationConfig, tmp_path: Path) -> None:
    told = "mine: 4 clips of 3 scenes (64x96x5 1, 96x64x17 1, 96x64x5 2); dropped (too_short 1)"
    assert fitted_of(settings, kept_scenes(Store(settings.output))).told() == told
    assert export(settings).fitted == told
    root = Path(settings.output, "mine")
    rows = lines(root / "dataset.jsonl")
    names = [Path(row["video_path"]).name for row in rows]
    # 3 s are 24 moments at 8 a second: 17 and 5, and 2 are left.
    assert [name.partition("-")[0] for name in names] == ["a_0_0", "a_0_0", "a_1_0", "b_0_0"]
    assert [name.rpartition("_")[2] for name in names[:2]] == ["0.mp4", "1.mp4"]
    found = []
    for row in rows:
        path = root / row["video_path"]
        assert path.with_suffix(".txt").read_text() == row["caption"] == "so"
        with av.open(str(path)) as clip:
            stream = clip.streams.video[0]
            found.append((stream.width, stream.height, stream.frames))
            pictures = [frame.to_ndarray(format="rgb24") for frame in clip.decode(stream)]
        first = {"0": 0, "1": 51, "2": 72}.get(path.stem.rpartition("_")[2] if "_" in path.stem[6:] else "")
        if first is not None:
            assert [films.read_stamp(picture) for picture in pictures] == [first + 3 * k for k in range(len(pictures))]
    assert found == [(96, 64, 17), (96, 64, 5), (96, 64, 5), (64, 96, 5)]
    about = json.loads((root / "clips.json").read_text())
    assert {(row["scene_id"], row["dropped"]) for row in about if row["dropped"]} == {("a.2_0", "too_short")}

    import datasets
    from webdataset.compat import WebDataset

    loaded: Any = datasets.load_dataset(
        "videofolder", data_dir=str(root / "clips"), split="train", cache_dir=str(tmp_path)
    )
    assert len(loaded) == 4 and set(loaded["text"]) == {"so"}
    shards = [str(path) for path in (root / "shards").iterdir()]
    tars: Any = WebDataset(shards, shardshuffle=False)
    samples = list(tars.decode())
    assert [(one["json"]["scene_id"], one["json"]["frames"]) for one in samples] == [
        ("a.0_0_0", 17),
        ("a.0_0_1", 5),
        ("a.1_0", 5),
        ("b.0_0", 5),
    ]


def test_layouts_of_clips_go_where_a_preset_takes_their_place(settings: CurationConfig) -> None:
    output = Path(settings.output)
    export(replace(settings, export=replace(settings.export, preset="", layout="jsonl,sidecar")))
    assert (output / "dataset.jsonl").exists() and list((output / "clips").rglob("*.txt"))
    export(settings)
    assert not (output / "dataset.jsonl").exists() and not list((output / "clips").rglob("*.txt"))
    assert (output / "mine" / "dataset.jsonl").exists()


def test_what_is_there_stays_and_what_has_changed_is_renewed(settings: CurationConfig, tmp_path: Path) -> None:
    root = Path(settings.output, "mine")
    export(settings)
    before = stamps(root)
    export(settings)
    again = stamps(root)
    assert {path for path in again if again[path] != before[path]} <= {"clips.json", "export_layouts.json"}

    # A caption reaches the layouts of the folder, and no clip is made again.
    answer = dict.fromkeys(CAPTIONS.names) | {"video_id": "b", "scene_id": "b.0_0", "recaption": "a tower"}
    about = {"caption": "so", "code": "", "film": 0, "version": 0, "written": 1.0}
    Store(settings.output).write_part("captions", pa.Table.from_pylist([answer | about], CAPTIONS), ["b"])
    renew_exported(replace(settings, export=ExportConfig()))
    assert lines(root / "dataset.jsonl")[3]["caption"] == "a tower"
    assert {path: stamp for path, stamp in stamps(root).items() if path.endswith(".mp4")} == {
        path: stamp for path, stamp in before.items() if path.endswith(".mp4")
    }

    # Clips that were encoded anew are brought to the preset anew.
    export(replace(settings, export=replace(settings.export, crf=30)))
    finer = {path for path in stamps(root) if path.endswith(".mp4")}
    assert len(finer) == 4 and not finer & before.keys()

    # Other sizes make other clips, of which none keeps an old one's name.
    other = tmp_path / "mine.yaml"
    other.write_text(PRESET.replace("96, 64", "64, 48"))
    export(replace(settings, export=replace(settings.export, preset=str(other))))
    now = {path for path in stamps(root) if path.endswith(".mp4")}
    assert len(now) == 4 and not now & before.keys()
    assert {row["video_path"] for row in lines(root / "dataset.jsonl")} == {str(root / path) for path in now}


@pytest.mark.parametrize("name", ["wan", "hunyuan", "ltx", "cogvideox"])
def test_the_presets_that_there_are_fit_their_models(name: str) -> None:
    preset = load_preset(name)
    step, side = (8, 32) if name == "ltx" else (4, 16)
    assert all(frames % step == 1 for frames in preset.frames)
    assert all(length % side == 0 for size in preset.sizes for length in size)


def test_a_preset_that_is_none_is_refused_before_any_work(settings: CurationConfig, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("fps: 8\nframes: [5]\n")
    reserved = tmp_path / "clips.yaml"
    reserved.write_text(PRESET)
    for preset, told in (("wam", "there are cogvideox"), (str(wrong), "sizes"), (str(reserved), "rename")):
        bad = replace(settings, export=replace(settings.export, preset=preset))
        with pytest.raises(UserError, match=told):
            export(bad)
        with pytest.raises(UserError, match=told):
            check(replace(bad, input=str(tmp_path / "films"), output=str(tmp_path / "out")))


def test_the_effort_of_x264_is_still_known_by_its_old_name() -> None:
    assert ExportConfig(preset="fast") == ExportConfig(x264_preset="fast")


def test_what_a_trainer_sees_is_counted_and_a_caption_of_many_scenes_is_named(settings: CurationConfig) -> None:
    export(settings)
    store = Store(settings.output)
    seen = seen_by_trainers(store, "caption")
    assert seen is not None and (seen.scenes, seen.seconds, seen.silent) == (4, pytest.approx(5.5), 0)
    assert (seen.words, seen.repeated) == ((1, 1, 1), [("so", 4)])
    assert seen.buckets == {"mine": {"64x96x5": 1, "96x64x17": 1, "96x64x5": 2}}
    assert seen.dropped == {"mine": {"too_short": 1}}
    assert seen_by_trainers(Store(f"{settings.output}/none"), "caption") is None

"""Trainers read the files that are written for them, and these follow every change of clips and captions."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from actors.core.errors import UserError
from actors.core.store import Store
from actors.curation.exporting.layouts import LAYOUTS, SHARDS, text_of
from actors.curation.tables import CAPTIONS
from pipelines.curation import kept
from pipelines.curation.exporting import layouts, there
from pipelines.curation.exporting.export import export, renew_exported
from pipelines.curation.exporting.trainers import Seen, seen_by_trainers
from pipelines.curation.selecting.select import select
from pipelines.curation.settings import CurationConfig, ExportConfig
from tests.pipelines.curation.outputs import config, film, scene, write_plan, write_scores
from tests.support import films

ALL = ",".join((*LAYOUTS, SHARDS))
WORDS = {"a.0_0": 'a man, "a plan"', "a.1_0": "ein Straßencafé\nbei Nacht", "b.0_0": ""}


@pytest.fixture(scope="module")
def exported(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> CurationConfig:
    """Three clips of two films in all layouts; one has a caption of two lines, one none."""
    folder = tmp_path_factory.mktemp("layouts")
    settings = config(folder / "out")
    settings = replace(settings, export=replace(settings.export, layout=ALL, shard_clips=2, x264_preset="ultrafast"))
    store = Store(settings.output)
    rows = []
    for video, shots in (("a", 2), ("b", 1)):
        uri = str(films.film(folder / f"{video}.mp4", shots=(24,) * shots))
        for i in range(shots):
            name = f"{video}.{i}_0"
            about = {"caption": WORDS[name], "video_id": video, "video_index": ord(video) - ord("a")}
            rows.append(scene(name, start_s=float(i), end_s=i + 1.0, ordinal=i, no_frames=8, uri=uri, **about))
        rows.append(film(video, shots, uri=uri))
    write_scores(store, *rows)
    write_plan(store, {"a": -1, "b": -1})
    select(settings)
    export(settings)
    return settings


def clips(settings: CurationConfig) -> dict[str, str]:
    """The texts of the clips by their paths."""
    return {f"clips/{name[0]}/{name}.mp4": text for name, text in WORDS.items()}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_layout_names_every_clip_with_its_text(exported: CurationConfig) -> None:
    output, texts = Path(exported.output), clips(exported)
    assert all((output / path).is_file() for path in texts)
    listed = {row["video_path"]: row["caption"] for row in lines(output / "dataset.jsonl")}
    assert listed == {str(output / path): text for path, text in texts.items()}
    with (output / "metadata.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["video"]: row["prompt"] for row in rows} == texts and list(rows[0]) == ["video", "prompt"]
    assert {row["media_path"]: row["caption"] for row in json.loads((output / "ltx.json").read_text())} == texts
    videox = json.loads((output / "videox.json").read_text())
    assert {row["file_path"]: row["text"] for row in videox} == texts and {row["type"] for row in videox} == {"video"}
    assert {path: (output / path).with_suffix(".txt").read_text() for path in texts} == texts


def test_datasets_loads_the_clips_as_a_video_folder(exported: CurationConfig, tmp_path: Path) -> None:
    import datasets

    loaded: Any = datasets.load_dataset(
        "videofolder", data_dir=f"{exported.output}/clips", split="train", cache_dir=str(tmp_path)
    )
    rows = loaded.cast_column("video", datasets.Video(decode=False))
    found = {Path(row["video"]["path"]).relative_to(exported.output).as_posix(): row["text"] for row in rows}
    assert found == clips(exported)


def test_webdataset_loads_the_shards(exported: CurationConfig) -> None:
    from webdataset.compat import WebDataset

    shards = sorted(str(path) for path in Path(exported.output, "shards").iterdir())
    assert [Path(path).name for path in shards] == ["shard-000000.tar", "shard-000001.tar"]
    tars: Any = WebDataset(shards, shardshuffle=False)
    samples = list(tars.decode())
    assert {sample["json"]["scene_id"]: sample["txt"] for sample in samples} == WORDS
    for sample in samples:
        name = sample["json"]["scene_id"]
        assert sample["mp4"] == Path(exported.output, "clips", name[0], f"{name}.mp4").read_bytes()
        assert "clock_jumps" not in sample["json"]


def stamps(settings: CurationConfig) -> dict[str, int]:
    root = Path(settings.output)
    return {path.relative_to(root).as_posix(): path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}


def written(before: dict[str, int], settings: CurationConfig) -> set[str]:
    """Which files are new, but for what an export keeps for itself."""
    now = stamps(settings)
    return {
        path for path in now if now[path] != before.get(path) and not path.startswith(("export", "captions/", "kept"))
    }


def test_small_batches_write_the_same_files(exported: CurationConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    output = Path(exported.output)
    made = [path for name in ("clips", "shards", "*.json*", "*.csv") for path in output.glob(name)]
    files = {one: one.read_bytes() for path in made for one in (path.rglob("*.*") if path.is_dir() else [path])}
    sizes = {kept: ("BATCH_ROWS", "ROWS"), layouts: ("SHARDS_AT_ONCE", "TEXTS_AT_ONCE"), there: ("AT_ONCE",)}
    for module, names in sizes.items():
        for name in names:
            monkeypatch.setattr(module, name, 2 if module is kept else 1)
    monkeypatch.setattr("pipelines.curation.exporting.export.WAVE", 1)
    for path in files:
        # What says which clips there are, and is new where a clip is.
        if path.name != "export.json":
            path.unlink()
    assert export(exported).written == len(WORDS)
    files.pop(output / "export_layouts.json")
    assert {path: path.read_bytes() for path in files} == files
    assert seen_by_trainers(Store(exported.output), "caption") == Seen(3, 3.0, 1, (4, 4.0, 4), [])


def test_new_captions_reach_every_file_that_tells_them_and_no_other(exported: CurationConfig) -> None:
    output = Path(exported.output)
    before = stamps(exported)
    export(exported)
    assert written(before, exported) == set()

    answer = dict.fromkeys(CAPTIONS.names) | {"video_id": "b", "scene_id": "b.0_0", "recaption": "a street at night"}
    about = {"caption": "", "code": "", "film": 0, "version": 0, "written": 1.0}
    Store(exported.output).write_part("captions", pa.Table.from_pylist([answer | about], CAPTIONS), ["b"])
    renew_exported(exported)
    tables = {"dataset.jsonl", "metadata.csv", "ltx.json", "videox.json", "clips/metadata.jsonl"}
    assert written(before, exported) == {*tables, "clips/b/b.0_0.txt", "shards/shard-000001.tar"}
    assert (output / "clips/b/b.0_0.txt").read_text() == "a street at night"
    assert lines(output / "dataset.jsonl")[2]["caption"] == "a street at night"

    # As a kill leaves it that came while all were written: none is sound, and none forgotten.
    made = json.loads((output / "export_layouts.json").read_text())
    left = made | {"files": dict.fromkeys(made["files"], "")}
    (output / "export_layouts.json").write_text(json.dumps(left))
    (output / "dataset.jsonl").write_text("torn")
    renew_exported(exported)
    assert (
        json.loads((output / "export_layouts.json").read_text()) == made and len(lines(output / "dataset.jsonl")) == 3
    )
    (output / "export_layouts.json").write_text(json.dumps(left))

    # Layouts that are no longer wanted would go out of date: they go.
    export(replace(exported, export=replace(exported.export, layout="jsonl", caption="caption")))
    assert lines(output / "dataset.jsonl")[2]["caption"] == ""
    left = {path for path in stamps(exported) if path.endswith((".txt", ".csv", ".jsonl", ".tar", "x.json"))}
    assert left == {"dataset.jsonl"}


@pytest.mark.parametrize(
    ("row", "texts"),
    [
        ({"caption": "c", "recaption": "r"}, ("r", "c", "c r")),
        ({"caption": "c", "recaption": ""}, ("c", "c", "c")),
        ({"caption": "", "recaption": "r"}, ("r", "", "r")),
        ({"caption": None, "recaption": None}, ("", "", "")),
    ],
)
def test_the_text_of_a_clip(row: dict[str, Any], texts: tuple[str, ...]) -> None:
    assert tuple(text_of(row, how) for how in ("recaption", "caption", "both")) == texts


def test_an_unknown_layout_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(UserError, match=r"there is no json, but sidecar, jsonl, .*webdataset"):
        ExportConfig(layout="hf,json")
    with pytest.raises(UserError, match="shard_clips"):
        ExportConfig(shard_clips=0)

"""An export replaces what is there piece by piece: no fault of a film or a disk costs what was good before."""

import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from actors.core import storage
from actors.core.errors import BrokenRunError, UserError
from actors.core.store import Store
from actors.curation.exporting.clips import ClipsConfig
from actors.curation.exporting.export import ExportJob, export_films
from actors.curation.exporting.packed import packed_clips
from actors.media.film import VideoConfig
from pipelines.curation.exporting.export import clips_behind, export, export_scenes
from pipelines.curation.rows import failures
from pipelines.curation.selecting.select import select
from pipelines.curation.settings import CurationConfig
from tests.pipelines.curation.outputs import config, film, scene, write_plan, write_scores
from tests.support import films

MOUNTS = os.geteuid() == 0 and shutil.which("mount") is not None


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return films.film(tmp_path / "a.mp4", shots=(24, 24))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 200 KB."""
    if not MOUNTS:
        pytest.skip("mounting a small disk needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", folder], check=False)
    if made.returncode:
        pytest.skip("this machine mounts no tmpfs")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def an_output(output: Path, source: Path) -> CurationConfig:
    """Two scenes of a film, selected."""
    settings = config(output)
    store = Store(settings.output)
    about = {"uri": str(source), "no_frames": 8}
    first = scene("a.0_0", start_s=0.0, end_s=1.0, **about)
    second = scene("a.1_0", start_s=1.0, end_s=2.0, ordinal=1, **about)
    write_scores(store, first, second, film("a", 2, uri=str(source)))
    write_plan(store, {"a": -1})
    select(settings)
    return settings


def clips(settings: CurationConfig) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(settings.output, "clips").rglob("*.mp4")}


def kept(settings: CurationConfig) -> list[str]:
    return [row["scene_id"] for row in json.loads(Path(settings.output, "kept.json").read_text())["scenes"]]


def other(settings: CurationConfig, **changes: object) -> CurationConfig:
    return replace(settings, export=replace(settings.export, **changes))


def test_clips_in_tars_go_with_the_selection_and_are_read_by_shards(ray_cluster: None, tmp_path: Path, source: Path):
    settings = other(an_output(tmp_path / "out", source), packed=True, layout="webdataset")
    store = Store(settings.output)
    assert export(settings).written == 2 and export(settings).there == 2
    assert [entry.name for entry in storage.listing(store.root, (".mp4", ".tar"))] == [
        "shards/shard-000000.tar",
        "tars/a.tar",
    ]
    assert clips_behind(store) == (0, 0)
    scenes = json.loads(Path(settings.output, "kept.json").read_text())["scenes"]
    for one in scenes:
        with tarfile.open(store.uri(one["video_path"])) as tar:
            clip = tar.extractfile(one["video_member"])
            assert clip and clip.read() in Path(store.uri("shards/shard-000000.tar")).read_bytes()
    select(replace(settings, select=replace(settings.select, count=1)))
    assert export(settings).there == 1
    assert len(dict(packed_clips(store))) == 1 and clips_behind(store) == (0, 0)
    assert export(other(settings, crf=40)).written == 1 and len(dict(packed_clips(store))) == 1
    with pytest.raises(UserError, match="of the other kind"):
        export(other(settings, packed=False))


def test_clips_of_other_settings_take_the_place_of_those_before(ray_cluster: None, tmp_path: Path, source: Path):
    settings = an_output(tmp_path / "out", source)
    settings = other(replace(settings, frames=replace(settings.frames, interval_ms=100)), frames=True)
    assert export(settings).written == 2
    before = clips(settings)
    frames = {path.name for path in Path(settings.output, "frames/a/a.0_0").iterdir()}
    assert export(settings).written == 0 and clips(settings) == before
    fewer = other(replace(settings, frames=replace(settings.frames, interval_ms=500)), crf=40)
    assert export(fewer).written == 2
    assert clips(fewer).keys() == before.keys() and not set(clips(fewer).values()) & set(before.values())
    # None of the frames of before lies between those of now.
    assert len(frames) == 10
    assert {path.name for path in Path(settings.output, "frames/a/a.0_0").iterdir()} == {"0000.jpg", "0001.jpg"}
    assert export(fewer).there == 2


def test_a_film_that_is_gone_costs_no_clip(ray_cluster: None, tmp_path: Path, source: Path):
    settings = an_output(tmp_path / "out", source)
    export_scenes(settings)
    before = clips(settings)
    aside = source.rename(tmp_path / "aside.mp4")
    changed = other(settings, crf=40)
    assert [row["error"] for row in export_scenes(changed).failed] == ["not_found"] * 2
    assert clips(changed) == before and kept(changed) == []
    assert failures(Store(changed.output))[["step", "error"]].to_numpy().tolist() == [["export", "not_found"]] * 2
    aside.rename(source)
    # An export that keeps neither leaves both, too: they failed, nobody dropped them.
    export_scenes(changed)
    assert clips(changed) == before
    select(changed)
    assert export_scenes(changed).written == 2
    assert not set(clips(changed).values()) & set(before.values()) and len(kept(changed)) == 2
    assert failures(Store(changed.output)).empty


def test_an_interrupted_change_of_settings_goes_on(ray_cluster: None, tmp_path: Path, source: Path):
    settings = an_output(tmp_path / "out", source)
    export(settings)
    before = clips(settings)
    changed = other(settings, crf=40)
    export(changed)
    after = clips(changed)
    # As a kill after the first of two clips leaves it.
    store = Store(settings.output)
    (Path(settings.output) / "clips/a/a.1_0.mp4").write_bytes(before["a.1_0.mp4"])
    store.write_json({f"a/{name}": len(data) for name, data in before.items()}, "export_older.json")
    done = export(changed)
    assert (done.written, done.there) == (1, 1)
    assert clips(changed) == after
    assert not (Path(settings.output) / "export_older.json").exists()


def test_a_scene_that_is_dropped_loses_its_clip_and_frames(ray_cluster: None, tmp_path: Path, source: Path):
    settings = other(an_output(tmp_path / "out", source), frames=True)
    export(settings)
    one = replace(settings, select=replace(settings.select, count=1))
    select(one)
    export(one)
    assert [name.removesuffix(".mp4") for name in clips(one)] == kept(one) and len(kept(one)) == 1
    assert [path.name for path in Path(one.output, "frames/a").iterdir() if any(path.iterdir())] == kept(one)


def test_a_full_disk_ends_the_export_and_costs_no_clip(
    ray_cluster: None, tmp_path: Path, source: Path, small_disk: Path
):
    settings = other(an_output(small_disk / "out", source), crf=40)
    export(settings)
    before = clips(settings)
    filler = small_disk / "filler"
    subprocess.run(["dd", "if=/dev/zero", f"of={filler}"], check=False, capture_output=True)
    with pytest.raises(OSError, match="No space"):
        export(other(settings, crf=0))
    assert clips(settings) == before and len(kept(settings)) == 2
    filler.unlink()


def test_a_full_temporary_folder_is_nobodys_row(
    tmp_path: Path, source: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(small_disk))
    (small_disk / "filler").write_bytes(bytes(190_000))
    wanted = json.dumps([{"scene_id": "a.0_0", "start_s": 0.0, "end_s": 1.0}])
    batch = {"video_id": np.array(["a"]), "uri": np.array([str(source)]), "wanted": np.array([wanted])}
    job = ExportJob(Store(str(tmp_path / "out")), ClipsConfig(crf=0), VideoConfig(), None)
    write = partial(export_films, batch, job)
    with pytest.raises(BrokenRunError, match=r"cannot be written in .*No space left"):
        list(write())
    (small_disk / "filler").unlink()
    assert [row["error"].tolist() for row in write()] == [[""]]
    # Where no folder can be made at all, the film is not what is missing.
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(BrokenRunError, match="TMPDIR"):
        list(write())

"""Clips of a film are written whatever becomes of the process that decodes it."""

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.core import storage
from actors.core.child import CHILD, Child
from actors.core.stage import Row
from actors.core.store import Store
from actors.curation.exporting.clips import ClipsConfig
from actors.curation.exporting.export import ExportJob, export_films
from actors.curation.exporting.packed import download_clip, drop_clips, pack, packed_clips
from actors.media.film import VideoConfig
from tests.support import films


def scenes(*numbers: int) -> list[Row]:
    about = {"steady": True}
    return [{"scene_id": f"a.{i}", "start_s": float(i), "end_s": i + 1.0, **about} for i in numbers]


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store(str(tmp_path / "out") if request.param == "folder" else request.getfixturevalue("s3"))


def export(store: Store, film: Path, wanted: list[Row], packed: bool) -> list[Row]:
    job = ExportJob(store, ClipsConfig(), VideoConfig(), None, packed=packed)
    about = {"video_id": "a", "uri": str(film), "wanted": json.dumps(wanted)}
    rows = export_films({name: np.array([value]) for name, value in about.items()}, job)
    return [{name: column[0] for name, column in row.items()} for row in rows]


def clip(store: Store, name: str, folder: Path) -> bytes:
    download_clip(store, name, folder / "clip.mp4")
    return (folder / "clip.mp4").read_bytes()


def test_clips_in_a_tar_are_those_of_files_and_each_is_read_alone(store: Store, tmp_path: Path) -> None:
    film, names = films.film(tmp_path / "a.mp4", (24, 24, 24)), [f"a/a.{i}.mp4" for i in range(3)]
    plain = Store(str(tmp_path / "plain"))
    export(plain, film, scenes(0, 1, 2), packed=False)
    # Some now and the rest later; what is made again takes the place of what was there.
    assert [row["error"] for row in export(store, film, scenes(0, 2), packed=True)] == ["", ""]
    assert not {row["error"] for row in export(store, film, scenes(1, 2), packed=True)} - {""}
    assert [entry.name for entry in storage.listing(store.root)] == ["tars/a.tar"]
    assert dict(packed_clips(store)) == {name: len(clip(plain, name, tmp_path)) for name in names}
    for name in names:
        assert clip(store, name, tmp_path) == clip(plain, name, tmp_path)
    storage.download(store.uri("tars/a.tar"), tmp_path / "a.tar")
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert tar.getnames() == ["clips.json", "a.0.mp4", "a.1.mp4", "a.2.mp4"]
        read = tar.extractfile("a.1.mp4")
        assert read and read.read() == clip(plain, names[1], tmp_path)
    drop_clips({"tar": "a.tar", "drop": json.dumps(["a.0.mp4"])}, store)
    assert set(dict(packed_clips(store))) == set(names[1:])
    with pytest.raises(FileNotFoundError):
        clip(store, names[0], tmp_path)
    assert clip(store, names[2], tmp_path) == clip(plain, names[2], tmp_path)
    drop_clips({"tar": "a.tar", "drop": json.dumps(["a.1.mp4", "a.2.mp4"])}, store)
    assert not list(storage.listing(store.root))


def test_names_of_any_length_are_found_in_a_tar(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "out"))
    names = [f"{number:04}{'ü' * 100}.mp4" for number in range(200)]
    for name in names:
        (tmp_path / name[:4]).write_bytes(name.encode())
    pack(store, "a.tar", {name: tmp_path / name[:4] for name in names})
    for name in (names[0], names[-1]):
        assert clip(store, f"a/{name}", tmp_path) == name.encode()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("deaths", "errors"), [(1, {""}), (2, {"crashed"})])
def test_a_process_that_dies_once_costs_no_clip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deaths: int, errors: set[str], packed: bool
) -> None:
    film = films.film(tmp_path / "a.mp4", (24, 24, 24))
    start, left = Child._start, [deaths]

    def doomed(self: Child) -> Any:
        pipe = start(self)
        if left[0]:
            left[0] -= 1
            self.interrupt()
        return pipe

    CHILD.kill()
    monkeypatch.setattr(Child, "_start", doomed)
    store = Store(str(tmp_path / "out"))
    rows = export(store, film, scenes(0, 1, 2), packed)
    assert sorted(row["scene_id"] for row in rows) == ["a.0", "a.1", "a.2"]
    assert {row["error"] for row in rows} == errors
    there = len(dict(packed_clips(store))) if packed else len(list((tmp_path / "out").rglob("*.mp4")))
    assert there == (3 if errors == {""} else 0)
    CHILD.kill()

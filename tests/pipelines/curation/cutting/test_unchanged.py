"""An input that has not changed is not read again, and its plan is the one that reading it gives."""

import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from actors.core import storage
from actors.core.store import Store
from actors.curation.compacting import compact
from actors.curation.sources.origin import times
from actors.curation.tables import PLANNED, SCORES
from pipelines.curation.cutting import plan, reading
from pipelines.curation.cutting.plan import TODO, Plan, make_plan
from pipelines.curation.settings import CurationConfig
from tests.pipelines.curation.outputs import film, quick, scene

VIDEOS = 8


@pytest.fixture(params=["folder", "s3"])
def config(request: pytest.FixtureRequest, tmp_path: Path) -> CurationConfig:
    output = str(tmp_path / "o") if request.param == "folder" else request.getfixturevalue("s3")
    return quick(corpus(tmp_path), output)


@pytest.fixture
def local(tmp_path: Path) -> CurationConfig:
    return quick(corpus(tmp_path), tmp_path / "o")


def corpus(folder: Path, scenes: int = 3, name: str = "corpus.json") -> Path:
    videos = {
        f"v{number}": {
            "url": f"https://host.example/v{number}.mp4",
            "clip": {
                f"v{number}.{i}.mp4": {
                    "span": ["00:00:00", "00:00:10"],
                    "scene_split": [
                        {"clip_id": f"v{number}.{i}_{j}.mp4", "scene_cut": [50 * j, 50 * j + 50]}
                        | {"caption": f"scene {j}"}
                        for j in range(scenes)
                    ],
                }
                for i in range(2)
            },
        }
        for number in range(VIDEOS)
    }
    path = folder / name
    path.write_text(json.dumps(videos))
    return path


def planned(store: Store) -> dict[str, Any]:
    """The plan as it lies there; plan/todo by video, since videos of one length may come in another order."""
    rows = store.read_table("plan/todo", TODO).to_pylist()
    todo = {row["video_id"]: row | {"spans": json.loads(row["spans"] or "null")} for row in rows}
    return {"todo": todo, "videos": store.read_table("plan/videos", PLANNED).to_pylist()}


def read_again(config: CurationConfig, monkeypatch: pytest.MonkeyPatch) -> tuple[Plan, dict[str, Any]]:
    """The plan that reading the input makes."""
    with monkeypatch.context() as patched:
        patched.setattr(plan, "unfinished", lambda *_: None)
        return make_plan(config), planned(Store(config.output))


def unread(config: CurationConfig, monkeypatch: pytest.MonkeyPatch) -> tuple[Plan, dict[str, Any]]:
    """The plan that is made without reading the input."""
    with monkeypatch.context() as patched:
        patched.setattr(plan, "read_videos", refused)
        return make_plan(config), planned(Store(config.output))


def refused(*_: Any) -> None:
    raise AssertionError("the input is read")


def write(config: CurationConfig, rows: list[dict[str, Any]]) -> None:
    keys = [f"{row['scene_id']}/{row['error']}/{row['written']}" for row in rows]
    Store(config.output).write_part("scores", pa.Table.from_pylist(rows, SCORES), keys)


def measured(config: CurationConfig, draw: random.Random) -> list[dict[str, Any]]:
    """Rows of some scenes of the plan, as `score` writes them: sound, failed, too long, or of another film."""
    rows = []
    for task in Store(config.output).read_table("plan/todo", TODO).to_pylist():
        share = draw.choice([0, 0.5, 1])
        for span in json.loads(task["spans"] or "[]"):
            for one in span["scenes"]:
                if draw.random() < share:
                    code = times_of(span, one)
                    about = {"film": task["film"], "version": task["version"] | code, "written": draw.random()}
                    about |= {"caption": one["caption"]}
                    about |= draw.choice([{}, {}, {}, {"error": "bad"}, {"mean_rgb_diff": float("nan")}])
                    rows.append(scene(one["scene_id"], **about) | {"video_id": task["video_id"]})
    return rows + draw.sample(rows, len(rows) // 4)


def times_of(span: dict[str, Any], one: dict[str, Any]) -> int:
    return times(span["start_s"], span["end_s"], one["first"], one["end"])


@pytest.mark.parametrize("seed", range(6))
def test_the_plan_is_that_which_reading_the_input_gives(
    local: CurationConfig, seed: int, monkeypatch: pytest.MonkeyPatch
):
    draw = random.Random(seed)
    monkeypatch.setattr(reading, "RANGE_ROWS", 10)
    make_plan(local)
    for _ in range(3):
        if rows := measured(local, draw):
            for start in range(0, len(rows), 7):
                write(local, rows[start : start + 7])
        if draw.random() < 0.6:
            compact(Store(local.output))
        quickly = unread(local, monkeypatch)
        assert quickly == read_again(local, monkeypatch)


def test_a_film_of_unknown_scenes_is_done_when_all_of_its_scenes_have_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "films").mkdir()
    for name in ("a.mp4", "b.mp4", "c.mp4", "d.mp4"):
        (tmp_path / "films" / name).write_bytes(name.encode())
    config = quick(tmp_path / "films", tmp_path / "o")
    make_plan(config)
    of = {row["video_id"]: row for row in Store(config.output).read_table("plan/todo", TODO).to_pylist()}
    rows = []
    for name, scenes, told in (("a.mp4", 2, 2), ("b.mp4", 1, 2), ("c.mp4", 2, None)):
        origin = {"video_id": name, "film": of[name]["film"], "version": of[name]["version"]}
        rows += [scene(f"{name}.0_{i}") | origin for i in range(scenes)]
        if told is not None:
            rows.append(film(name, told) | origin)
    write(config, rows)
    made, now = unread(config, monkeypatch)
    assert set(now["todo"]) == {"b.mp4", "c.mp4", "d.mp4"} and made.todo == 3
    assert (made, now) == read_again(config, monkeypatch)


def test_a_finished_output_needs_few_files(config: CurationConfig, monkeypatch: pytest.MonkeyPatch):
    make_plan(config)
    every = random.Random(0)
    every.choice = lambda options: options[-1] if options == [0, 0.5, 1] else {}  # type: ignore[method-assign]
    rows = measured(config, every)
    for start in range(0, len(rows), 2):
        write(config, rows[start : start + 2])
    compact(Store(config.output))
    made, now = unread(config, monkeypatch)
    assert made.todo == 0 and not now["todo"]
    touched = set[str]()
    for name in ("read_bytes", "stream", "find"):
        whole = getattr(storage, name)
        monkeypatch.setattr(storage, name, lambda uri, whole=whole: touched.add(uri) or whole(uri))
    assert make_plan(config).todo == 0
    assert len({uri for uri in touched if "/scores/" in uri}) == 1
    assert len(touched) <= 12


@pytest.mark.parametrize("change", ["input", "setting", "lost part", "film"])
def test_what_has_changed_is_noticed(
    local: CurationConfig, tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch
):
    here = tmp_path / "film.mp4"
    here.write_bytes(b"film")
    text = Path(local.input).read_text().replace("https://host.example/v0.mp4", str(here))
    Path(local.input).write_text(text)
    make_plan(local)
    every = random.Random(0)
    every.choice = lambda options: options[-1] if options == [0, 0.5, 1] else {}  # type: ignore[method-assign]
    write(local, measured(local, every))
    assert unread(local, monkeypatch)[0].todo == 0
    if change == "input":
        corpus(tmp_path, scenes=4)
    elif change == "setting":
        local = quick(local.input, local.output, videos=type(local.videos)(end=3))
    elif change == "lost part":
        (name,) = Store(local.output).parts("scores")
        storage.delete(Store(local.output).uri("scores", name))
    else:
        here.write_bytes(b"another film")
    with pytest.raises(AssertionError, match="the input is read"):
        unread(local, monkeypatch)
    made = make_plan(local)
    assert made.todo == {"input": VIDEOS, "setting": 0, "lost part": VIDEOS, "film": 1}[change]

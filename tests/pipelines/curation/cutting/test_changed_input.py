"""The input changes under an output: what is of another film or other times is measured again."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from actors.core import storage
from actors.core.errors import UserError
from actors.core.store import Store
from actors.curation.sources.origin import Source, same_film, times, with_times
from actors.curation.tables import CAPTIONS, ORIGIN, SCENES
from pipelines.curation.captioning.recaption import unasked
from pipelines.curation.cutting.plan import Plan, make_plan
from pipelines.curation.kept import kept_scenes
from pipelines.curation.rows import rows_now
from pipelines.curation.selecting.select import select, tally
from pipelines.curation.settings import CurationConfig, VideosConfig
from tests.pipelines.curation.outputs import film, scene, write_scores

Change = Callable[[dict[str, Any]], Any]


@pytest.fixture(params=["folder", "s3"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "out") if request.param == "folder" else f"{request.getfixturevalue('s3')}/out"


def metadata(tmp_path: Path) -> dict[str, Any]:
    """Two videos with two scenes each; the first has its file."""
    (tmp_path / "films").mkdir(exist_ok=True)
    if not (tmp_path / "films/a.mp4").exists():
        (tmp_path / "films/a.mp4").write_bytes(b"a film")
    return {
        name: {
            "url": url,
            "clip": {
                f"{name}.0.mp4": {
                    "span": ["0", "2"],
                    "scene_split": [
                        {"clip_id": f"{name}.0_{s}", "scene_cut": cut, "caption": f"{name}{s}"}
                        for s, cut in enumerate(([0, 12], [12, -1]))
                    ],
                }
            },
        }
        for name, url in {"a": "films/a.mp4", "b": "https://host/b.mp4"}.items()
    }


def over(tmp_path: Path, output: str, tree: dict[str, Any], **videos: Any) -> CurationConfig:
    (tmp_path / "corpus.json").write_text(json.dumps(tree))
    return CurationConfig(str(tmp_path / "corpus.json"), output, videos=VideosConfig(**videos))


def measured(config: CurationConfig, width: int = 640, written: float = 1.0) -> None:
    """Write what the stages would for the plan as it is."""
    store = Store(config.output)
    make_plan(config)
    for table in store.read_parts("plan/todo"):
        for task in table.to_pylist():
            origin = {"film": task["film"], "version": task["version"], "uri": task["url"], "written": written}
            rows = []
            if task["spans"] is None:
                rows = [scene(f"{task['video_id']}.{i}_0", **origin, ordinal=i, width=width) for i in range(2)]
            for span in json.loads(task["spans"] or "[]"):
                for one in span["scenes"]:
                    code = times(span["start_s"], span["end_s"], one["first"], one["end"])
                    about = {name: one[name] for name in ("caption", "ordinal", "first", "end", "clip_id")}
                    version = with_times(task["version"], code)
                    rows.append(scene(one["scene_id"], width=width, **origin | about | {"version": version}))
            rows.append(film(task["video_id"], 2, **origin))
            # As parts of other batches: no row takes the place of one before.
            write_scores(store, *rows, scene(f"other{written}.0_0"))


def counts(plan: Plan) -> dict[str, int]:
    names = ("todo", "todo_scenes", "changed_films", "changed_scenes", "gone", "captions", "moved")
    return {name: getattr(plan, name) for name in names if getattr(plan, name)}


def a_url(tree: dict[str, Any]) -> None:
    tree["b"]["url"] = "https://host/other.mp4"


def a_span(tree: dict[str, Any]) -> None:
    tree["b"]["clip"]["b.0.mp4"]["span"] = ["1", "3"]


def a_cut(tree: dict[str, Any]) -> None:
    tree["b"]["clip"]["b.0.mp4"]["scene_split"][0]["scene_cut"] = [0, 13]


def a_caption(tree: dict[str, Any]) -> None:
    tree["b"]["clip"]["b.0.mp4"]["scene_split"][0]["caption"] = "another one"


def a_scene_less(tree: dict[str, Any]) -> None:
    del tree["b"]["clip"]["b.0.mp4"]["scene_split"][1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "expected", "again"),
    [
        (lambda tree: None, {}, set()),
        (a_url, {"todo": 1, "todo_scenes": 2, "changed_films": 1}, {"b.0_0", "b.0_1"}),
        (a_span, {"todo": 1, "todo_scenes": 2, "changed_scenes": 2}, {"b.0_0", "b.0_1"}),
        (a_cut, {"todo": 1, "todo_scenes": 1, "changed_scenes": 1}, {"b.0_0"}),
        (a_caption, {"captions": 1}, set()),
        (a_scene_less, {"gone": 1}, set()),
    ],
)
def test_what_changed_is_measured_again_and_nothing_else(
    tmp_path: Path, output: str, change: Change, expected: dict[str, int], again: set[str]
):
    tree = metadata(tmp_path)
    measured(over(tmp_path, output, tree))
    change(tree)
    config = over(tmp_path, output, tree)
    assert counts(make_plan(config, dry=True)) == counts(make_plan(config)) == expected
    scenes = rows_now(Store(output)).scenes
    whole = {"a.0_0", "a.0_1", "b.0_0", "b.0_1"} - ({"b.0_1"} if change is a_scene_less else set())
    assert set(scenes.scene_id) == whole - again
    measured(config, width=111, written=2.0)
    left = {"captions": 1} if change is a_caption else {"gone": 1} if change is a_scene_less else {}
    assert counts(make_plan(config)) == left
    assert select(config).expected == len(whole)
    rows = Store(output).read_table("scenes", SCENES).to_pylist()
    assert {row["scene_id"] for row in rows if row["width"] == 111} == again
    said = {row["scene_id"]: row["caption"] for row in rows}
    assert said["b.0_0"] == ("another one" if change is a_caption else "b0")


def test_what_changes_back_counts_again(tmp_path: Path, output: str):
    tree = metadata(tmp_path)
    before = over(tmp_path, output, tree)
    measured(before)
    a_url(tree)
    measured(over(tmp_path, output, tree), width=111, written=2.0)
    config = over(tmp_path, output, metadata(tmp_path))
    assert make_plan(config).todo == 0
    assert set(rows_now(Store(output), ["width"]).scenes.width) == {640}


def test_a_row_that_failed_stands_before_a_sound_one_of_another_film(tmp_path: Path, output: str):
    tree = metadata(tmp_path)
    measured(over(tmp_path, output, tree))
    a_url(tree)
    config = over(tmp_path, output, tree)
    make_plan(config)
    (task,) = [row for part in Store(output).read_parts("plan/todo") for row in part.to_pylist()]
    origin = {"film": task["film"], "version": task["version"]}
    bad = []
    for number, cut in enumerate(((0, 12), (12, -1))):
        version = with_times(origin["version"], times(0.0, 2.0, *cut))
        bad.append(scene(f"b.0_{number}", error="fetch_gone", film=origin["film"], version=version, ordinal=number))
    write_scores(Store(output), *bad, film("b", 2, **origin))
    assert make_plan(config).todo == 0
    assert select(config).expected == 4
    assert tally(Store(output)).failed == {"fetch_gone": 2}


@pytest.mark.parametrize("setting", ["refuse", "keep"])
def test_a_setting_says_what_happens_to_what_changed(tmp_path: Path, output: str, setting: str):
    tree = metadata(tmp_path)
    measured(over(tmp_path, output, tree))
    version = Store(output).catalog().version
    a_url(tree)
    a_caption(tree)
    config = over(tmp_path, output, tree, changed=setting)
    if setting == "refuse":
        with pytest.raises(UserError, match=r"has changed .*\(films changed 1\).*videos\.changed=keep"):
            make_plan(config)
        assert Store(output).catalog().version == version
    else:
        assert counts(make_plan(config)) == {"captions": 1, "moved": 1}
        assert select(config).expected == 4


def films(folder: Path, **names: bytes) -> Path:
    folder.mkdir()
    for name, data in names.items():
        (folder / f"{name}.mp4").write_bytes(data)
    return folder


def test_films_of_a_folder_are_known_by_name_size_and_time(tmp_path: Path, output: str):
    config = CurationConfig(str(films(tmp_path / "films", a=b"one", b=b"two", c=b"three")), output)
    measured(config)
    assert counts(make_plan(config)) == {}
    (tmp_path / "films/a.mp4").write_bytes(b"another")
    os.utime(tmp_path / "films/b.mp4", ns=(1, 1))
    assert counts(make_plan(config)) == {"todo": 2, "changed_films": 2}
    measured(config, written=2.0)
    assert counts(make_plan(config)) == {}
    assert select(config).expected == 6


def test_a_folder_that_moved_is_not_measured_again_but_another_one_is(tmp_path: Path, output: str):
    config = CurationConfig(str(films(tmp_path / "films", a=b"one", b=b"two")), output)
    measured(config)
    shutil.copytree(tmp_path / "films", tmp_path / "copy", copy_function=shutil.copyfile)
    moved = replace(config, input=str(tmp_path / "copy"))
    assert counts(make_plan(moved)) == {"moved": 2}
    select(moved)
    assert {row["uri"] for row in kept_scenes(Store(output))} == {f"{tmp_path}/copy/{name}.mp4" for name in "ab"}
    other = replace(config, input=str(films(tmp_path / "other", a=b"quite", b=b"different")))
    assert counts(make_plan(other)) == {"todo": 2, "changed_films": 2}


def test_films_on_s3_are_known_by_the_etag_of_the_listing(tmp_path: Path, s3: str):
    config = CurationConfig(f"{s3}/films", f"{s3}/out")
    for name, data in {"a": b"one", "b": b"two"}.items():
        storage.write_bytes(f"{s3}/films/{name}.mp4", data)
    measured(config)
    storage.write_bytes(f"{s3}/films/a.mp4", b"one")
    assert counts(make_plan(config)) == {}
    storage.write_bytes(f"{s3}/films/a.mp4", b"eno")
    assert counts(make_plan(config)) == {"todo": 1, "changed_films": 1}
    for name, data in {"a": b"one", "b": b"two"}.items():
        storage.write_bytes(f"{s3}/moved/{name}.mp4", data)
    assert counts(make_plan(replace(config, input=f"{s3}/moved"))) == {"moved": 2}


def test_a_film_that_was_removed_after_it_was_measured_is_still_done(tmp_path: Path, output: str):
    config = over(tmp_path, output, metadata(tmp_path))
    measured(config)
    (tmp_path / "films/a.mp4").unlink()
    assert counts(make_plan(config)) == {}


def test_rows_of_an_earlier_version_count(tmp_path: Path, output: str):
    tree = metadata(tmp_path)
    config = over(tmp_path, output, tree)
    rows = [scene(f"{v}.0_{s}", ordinal=s, caption=f"{v}{s}", clip_id=f"{v}.0.mp4") for v in "ab" for s in range(2)]
    store = Store(output)
    name = write_scores(store, *rows, film("a", 2), film("b", 2))
    old = next(store.read_parts("scores")).drop_columns(["film", "version"])
    store.write_table(old, "scores", name)
    assert counts(make_plan(config)) == {}
    assert select(config).expected == 4
    a_scene_less(tree)
    assert counts(make_plan(over(tmp_path, output, tree))) == {"gone": 1}
    assert select(config).expected == 3


def test_clips_of_what_changed_stay_until_the_next_export_writes_them(tmp_path: Path, output: str):
    tree = metadata(tmp_path)
    measured(over(tmp_path, output, tree))
    store = Store(output)
    for video in "ab":
        for number in range(2):
            storage.write_bytes(store.uri("clips", video, f"{video}.0_{number}.mp4"), b"clip")
    store.write_json({}, "export.json")

    def older() -> set[str]:
        return set(store.read_json("export_older.json") or {})

    a_cut(tree)
    config = over(tmp_path, output, tree)
    make_plan(config, dry=True)
    assert older() == set()
    make_plan(config)
    assert older() == {"b/b.0_0.mp4"} and len(list(storage.listing(store.uri("clips")))) == 4
    measured(config, written=2.0)
    # As the export does that has written it.
    storage.delete(store.uri("export_older.json"))
    make_plan(config)
    assert older() == set()
    # What it was before is measured already, and its clip is not.
    again = metadata(tmp_path)
    assert counts(make_plan(over(tmp_path, output, again))) == {}
    assert older() == {"b/b.0_0.mp4"}


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        (Source("/x/a.mp4", 5, "1"), Source("/x/a.mp4", 5, "1"), True),
        (Source("/x/a.mp4", 5, "1"), Source("/x/a.mp4", 5, "2"), False),
        (Source("/x/a.mp4", 5, "1"), Source("/x/a.mp4", 6, "1"), False),
        (Source("/x/a.mp4", 5, "1"), Source("s3://y/a.mp4", 5, "2"), True),
        (Source("/x/a.mp4", 5, "1"), Source("/y/a.mp4", 6, "1"), False),
        (Source("/x/a.mp4", 5, "1"), Source("/x/b.mp4", 5, "1"), False),
        (Source("https://x/a"), Source("https://x/a"), True),
        (Source("https://x/a"), Source("https://x/b"), False),
        (Source("https://x/watch?v=1"), Source("https://x/watch?v=2"), False),
        (Source("https://x/a.mp4?id=1&X-Amz-Date=1&Expires=2"), Source("https://x/a.mp4?id=1&Expires=3"), True),
        (Source("https://x/a.mp4?token=1"), Source("https://x/a.mp4"), True),
        (Source("/x/a.mp4", 5, "1"), Source("/x/a.mp4"), True),
        (Source("/x/a.mp4"), Source("/x/a.mp4", 5, "1"), True),
    ],
)
def test_when_a_film_is_the_same(old: Source, new: Source, same: bool):
    assert same_film((old.film, old.version), (new.film, new.version)) is same
    assert all(-(2**63) <= number < 2**63 for one in (old, new) for number in (one.film, one.version))
    assert same_film((0, 0), (new.film, new.version))


@pytest.mark.slow
def test_a_recaption_of_another_film_does_not_count_until_the_film_is_back(tmp_path: Path, output: str):
    tree = metadata(tmp_path)
    config = over(tmp_path, output, tree)
    measured(config)
    select(config)
    store = Store(output)
    (row,) = [row for row in kept_scenes(store) if row["video_id"] == "b"]
    about = {"recaption": "what was seen", "code": "", "written": 1.0}
    answer = dict.fromkeys(CAPTIONS.names) | {name: row[name] for name in ("video_id", "scene_id", *ORIGIN)} | about
    store.write_part("captions", pa.Table.from_pylist([answer], CAPTIONS), ["b"])
    select(config)
    assert row["scene_id"] not in {row["scene_id"] for row in unasked(config, kept_scenes(store))}
    a_url(tree)
    changed = over(tmp_path, output, tree)
    measured(changed, written=2.0)
    select(changed)
    assert {row["recaption"] for row in store.read_table("scenes", SCENES).to_pylist()} == {""}
    assert row["scene_id"] in {row["scene_id"] for row in unasked(changed, kept_scenes(store))}
    back = over(tmp_path, output, metadata(tmp_path))
    make_plan(back)
    select(back)
    assert "what was seen" in {row["recaption"] for row in kept_scenes(store)}

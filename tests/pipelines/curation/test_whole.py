"""What is not whole is refused or told, and of two commands at once one is told."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import pipelines.curation.cutting.plan
import pipelines.curation.selecting.select
from actors.core import storage
from actors.core.catalog import DamagedError, ReplacedError
from actors.core.store import Store
from actors.curation.cutting.videos import read_tasks
from actors.curation.selecting.select_settings import SelectConfig
from actors.curation.tables import CAPTIONS, SCENES
from pipelines.curation.captioning.recaption import unasked
from pipelines.curation.cutting.plan import make_plan
from pipelines.curation.exporting.export import export
from pipelines.curation.kept import kept_scenes
from pipelines.curation.rows import captions, how_far
from pipelines.curation.selecting.select import fail_scenes, select, selection_now, tally
from pipelines.curation.settings import CurationConfig
from tests.pipelines.curation.outputs import scene, write_plan, write_scores
from tests.support.corpus import run_here

VIDEOS = 6


@pytest.fixture(params=["folder", "s3"])
def config(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CurationConfig:
    """An output with a plan in several parts, all of it measured: two scenes of each video, one that cannot be cut."""
    monkeypatch.setattr(pipelines.curation.cutting.plan, "PART_ROWS", 2)
    monkeypatch.setattr(pipelines.curation.cutting.plan, "TABLE_ROWS", 2)
    cuts = {0: [0, 12], 1: [12, -1], 2: [9, 3]}
    videos = {
        f"v{i}": {
            "url": f"v{i}.mp4",
            "clip": {
                f"v{i}.0.mp4": {
                    "span": ["0", "2"],
                    "scene_split": [
                        {"clip_id": f"v{i}.0_{s}", "scene_cut": cut, "caption": ""} for s, cut in cuts.items()
                    ],
                }
            },
        }
        for i in range(VIDEOS)
    }
    (tmp_path / "corpus.json").write_text(json.dumps(videos))
    output = str(tmp_path / "out") if request.param == "folder" else f"{request.getfixturevalue('s3')}/out"
    made = CurationConfig(str(tmp_path / "corpus.json"), output)
    make_plan(made)
    for i in range(VIDEOS):
        write_scores(Store(output), scene(f"v{i}.0_0"), scene(f"v{i}.0_1", ordinal=1, clip_id=f"v{i}.1.mp4"))
    return made


def spoil(store: Store, folder: str, how: str = "torn", number: int = 0) -> str:
    """Damage a part of a table; returns its name."""
    uri = store.uri(folder, store.parts(folder)[number])
    data = storage.read_bytes(uri)
    storage.delete(uri) if how == "missing" else storage.write_bytes(uri, data[: len(data) // 2])
    return uri.rpartition("/")[2]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["torn", "missing"])
@pytest.mark.parametrize("folder", ["plan/videos", "plan/rejected"])
def test_a_plan_that_is_not_whole_is_refused_until_it_is_made_again(config: CurationConfig, folder: str, how: str):
    store = Store(config.output)
    expected = select(config).expected
    assert expected == 3 * VIDEOS
    name = spoil(store, folder, how, 1)
    for read in (lambda: select(config), lambda: how_far(store)):
        with pytest.raises(DamagedError, match=rf"{name} .*Run `score` or `run`"):
            read()
    assert tally(store).rows == expected, "the selection before stays"
    assert make_plan(config).todo == 0
    assert select(config).expected == expected


@pytest.mark.parametrize("how", ["torn", "missing"])
def test_a_video_that_is_to_be_done_is_not_forgotten(config: CurationConfig, how: str):
    store = Store(config.output)
    for entry in list(storage.listing(store.uri("scores"))):
        storage.delete(entry.uri)
    make_plan(config)
    parts = store.listed("plan/todo")
    assert sum(len(read_tasks(vars(part), store)) for part in parts) == VIDEOS
    spoil(store, "plan/todo", how)
    with pytest.raises(DamagedError, match="Run `score` or `run`"):
        read_tasks(vars(parts[0]), store)


def test_the_plan_says_how_much_it_has(config: CurationConfig):
    about = Store(config.output).catalog().tables["plan/videos"].about
    assert (about["videos"], about["scenes"], about["todo"]) == (VIDEOS, 3 * VIDEOS, VIDEOS)


def test_a_plan_of_an_earlier_version_is_counted_as_before_and_told(tmp_path: Path):
    made = CurationConfig("corpus.json", str(tmp_path))
    store = Store(made.output)
    write_plan(store, {"v0": 2})
    write_scores(store, scene("v0.0_0"), scene("v0.0_1", ordinal=1))
    selected = select(made)
    assert selected.expected == 2
    assert ["cannot be checked" in note for note in selected.costs["notes"]] == [True]
    spoil(store, "plan/videos")
    with pytest.raises(DamagedError, match=r"is torn\. Run `score` or `run`"):
        select(made)


def test_torn_parts_of_scores_are_counted_and_told(config: CurationConfig):
    store = Store(config.output)
    # The same rows once more: what is torn is not missing.
    store.write_table(next(store.read_parts("scores")), "scores", "part-torn.parquet")
    uri = store.uri("scores", "part-torn.parquet")
    storage.write_bytes(uri, storage.read_bytes(uri)[:100])
    assert select(config).costs["notes"] == [
        "Torn parts of scores/, left out: 1 (scores/part-torn.parquet). `score` and `run` measure them again."
    ]


@pytest.mark.parametrize("folder", ["scenes", "rejected"])
def test_a_selection_that_is_not_whole_is_refused_until_it_is_made_again(config: CurationConfig, folder: str):
    store = Store(config.output)
    select(config)
    spoil(store, folder)
    with pytest.raises(DamagedError, match="Run `select`"):
        tally(store)
    select(config)
    assert tally(store).rows == 3 * VIDEOS


def test_answers_that_were_paid_for_are_never_asked_again_in_silence(config: CurationConfig):
    store = Store(config.output)
    select(config)
    store.write_part("captions", CAPTIONS.empty_table(), ["a"])
    name = spoil(store, "captions")
    for read in (lambda: captions(store), lambda: unasked(config, []), lambda: select(config)):
        with pytest.raises(DamagedError, match=rf"{name} is torn\. Restore it from a copy, or delete it"):
            read()


def during(monkeypatch: pytest.MonkeyPatch, function: str, other: CurationConfig) -> None:
    """Have another selection run, once, while one is in this function."""
    inner = getattr(pipelines.curation.selecting.select, function)

    def first(*arguments: Any, **named: Any) -> Any:
        monkeypatch.setattr(pipelines.curation.selecting.select, function, inner)
        select(other)
        return inner(*arguments, **named)

    monkeypatch.setattr(pipelines.curation.selecting.select, function, first)


@pytest.mark.slow
@pytest.mark.parametrize("function", ["Ranges", "_decided", "_tell_captions"])
def test_of_two_selections_at_once_one_stays_whole_and_the_other_is_told(
    config: CurationConfig, monkeypatch: pytest.MonkeyPatch, function: str
):
    few = replace(config, select=SelectConfig(count=1))
    during(monkeypatch, function, few)
    with pytest.raises(ReplacedError, match="was replaced by another command"):
        select(config)
    store = Store(config.output)
    assert (tally(store).kept, len(kept_scenes(store))) == (1, 1)
    # Also for who reads the files by themselves.
    files = [entry.name for entry in storage.listing(store.uri("scenes"), (".parquet",))]
    assert files == store.parts("scenes")


@pytest.mark.slow
def test_a_command_that_is_killed_leaves_the_selection_before(config: CurationConfig, monkeypatch: pytest.MonkeyPatch):
    store = Store(config.output)
    select(replace(config, select=SelectConfig(count=1)))

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        # As after a kill, nobody tidies up.
        patch.setattr(pipelines.curation.selecting.select.Replacement, "__exit__", lambda *_: None)
        patch.setattr(pipelines.curation.selecting.select, "_tell_captions", stop)
        with pytest.raises(KeyboardInterrupt):
            select(config)
    assert len(list(storage.listing(store.uri("scenes")))) == 2
    assert tally(store).kept == 1
    select(config)
    assert tally(store).kept == 2 * VIDEOS
    assert len(list(storage.listing(store.uri("scenes")))) == 1


def test_what_failed_later_is_marked_in_one_step_too(config: CurationConfig):
    store = Store(config.output)
    select(config)
    selection = selection_now(store)
    fail_scenes(store, [{"video_id": "v0", "scene_id": "v0.0_0", "error": "crashed", "message": "it fell"}])
    assert selection_now(store) == selection
    counted = tally(store, 3 * VIDEOS)
    assert counted.failed == {"bad_scene_cut": VIDEOS, "crashed": 1}
    assert len(store.parts("scenes")) == len(list(storage.listing(store.uri("scenes"))))
    select(config)
    with pytest.raises(ReplacedError):
        pipelines.curation.selecting.select.check_selection(store, selection)


def test_clips_of_a_selection_that_was_replaced_are_not_listed(config: CurationConfig, monkeypatch: pytest.MonkeyPatch):
    store = Store(config.output)
    select(config)
    few = replace(config, select=SelectConfig(count=1))

    def replaced_meanwhile(*_: Any) -> list[Any]:
        select(few)
        return []

    monkeypatch.setattr("pipelines.curation.exporting.export._write_missing", replaced_meanwhile)
    with pytest.raises(ReplacedError):
        export(config)
    assert store.read_json("kept.json") is None


def test_the_command_that_came_second_exits_with_1_and_leaves_the_record_of_the_first(
    config: CurationConfig, monkeypatch: pytest.MonkeyPatch
):
    store = Store(config.output)
    run_here("select", config.output, "select.count=2")
    assert store.read_json("run.json")["rows"]["kept"] == 2
    inner = pipelines.curation.selecting.select._decided

    def first(*arguments: Any) -> Any:
        monkeypatch.setattr(pipelines.curation.selecting.select, "_decided", inner)
        run_here("select", config.output, "select.count=1", "--force")
        return inner(*arguments)

    monkeypatch.setattr(pipelines.curation.selecting.select, "_decided", first)
    said = run_here("select", config.output, "select.count=3", code=1)
    assert "was replaced by another command" in said.output
    record = store.read_json("run.json")
    assert (record["status"], record["rows"]["kept"], record["settings"]["select"]["count"]) == ("done", 1, 1)
    assert store.read_table("scenes", SCENES)["kept"].to_pylist().count(True) == 1


def test_the_command_names_what_is_damaged_and_exits_with_2(config: CurationConfig):
    store = Store(config.output)
    run_here("select", config.output)
    before = store.read_json("run.json")
    name = spoil(store, "plan/videos")
    said = run_here("select", config.output, code=2)
    assert f"{name} has other content than was written. Run `score` or `run`" in said.output
    assert "error: " in said.output and "Traceback" not in said.output
    assert store.read_json("run.json") == before

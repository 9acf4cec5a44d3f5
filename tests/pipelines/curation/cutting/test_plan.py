"""The plan is the input less what scores/ holds, and a broken input leaves all as it was."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import pipelines.curation.cutting.plan
from actors.core.store import Store
from actors.curation.cutting.scenes import FramesConfig
from actors.curation.tables import SCORES
from pipelines.curation.cutting.plan import Plan, make_plan
from pipelines.curation.settings import CurationConfig, VideosConfig
from pipelines.curation.sources.input import MetadataError
from tests.pipelines.curation.outputs import film, scene, write_scores

Clips = dict[str, list[str]]


def hdvg(
    videos: dict[str, Clips], url: str = "films/{}.mp4", cuts: dict[str, list[int]] | None = None
) -> dict[str, Any]:
    """Metadata with the scenes of each span, every one whole unless `cuts` says otherwise."""
    return {
        video_id: {
            "url": url.format(video_id),
            "clip": {
                clip_id: {
                    "span": ["00:00:10.000", "00:00:20.500"],
                    "fps": 24.0,
                    "scene_split": [
                        {
                            "clip_id": scene_id,
                            "scene_cut": (cuts or {}).get(scene_id, [0, -1]),
                            "caption": f"of {scene_id}",
                        }
                        for scene_id in scenes
                    ],
                }
                for clip_id, scenes in clips.items()
            },
        }
        for video_id, clips in videos.items()
    }


CORPUS: dict[str, Clips] = {
    "a": {"a.0.mp4": ["a.0_0", "a.0_1"], "a.1.mp4": ["a.1_0"]},
    "b": {"b.0.mp4": ["b.0_0"]},
    "c": {"c.0.mp4": ["c.0_0"]},
}


@pytest.fixture
def config(tmp_path: Path) -> CurationConfig:
    """Settings over CORPUS."""
    return over(tmp_path, hdvg(CORPUS))


def over(folder: Path, metadata: dict[str, Any]) -> CurationConfig:
    (folder / "corpus.json").write_text(json.dumps(metadata))
    return CurationConfig(input=str(folder / "corpus.json"), output=str(folder / "out"))


def folder_of_films(path: Path, *names: str) -> CurationConfig:
    for name in names:
        (path / "films" / name).parent.mkdir(parents=True, exist_ok=True)
        (path / "films" / name).touch()
    return CurationConfig(input=str(path / "films"), output=str(path / "out"))


def part(config: CurationConfig, name: str) -> list[dict[str, Any]]:
    """Rows of a table of the plan."""
    rows: list[dict[str, Any]] = []
    for table in Store(config.output).read_parts(f"plan/{name}"):
        rows += table.to_pylist()
    return rows


def todo(config: CurationConfig) -> dict[str, list[str]]:
    """Ids of the scenes that are left, by video."""
    return {
        row["video_id"]: [scene["scene_id"] for span in json.loads(row["spans"]) for scene in span["scenes"]]
        for row in part(config, "todo")
    }


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_at_first_all_is_left_to_do(config: CurationConfig, tmp_path: Path):
    assert make_plan(config) == Plan(videos=3, scenes=5, films=0, todo=3, todo_scenes=5, remote=False)
    assert todo(config) == {"a": ["a.0_0", "a.0_1", "a.1_0"], "b": ["b.0_0"], "c": ["c.0_0"]}
    first = part(config, "todo")[0]
    assert (first["video_index"], first["url"], first["skip"]) == (0, str(tmp_path / "films/a.mp4"), "[]")
    assert json.loads(first["spans"])[1] == {
        "start_s": 10.0,
        "end_s": 20.5,
        "scenes": [
            {"scene_id": "a.1_0", "clip_id": "a.1.mp4", "caption": "of a.1_0", "first": 0, "end": -1, "ordinal": 2}
        ],
    }
    assert [row["scenes"] for row in part(config, "videos")] == [3, 1, 1]
    assert part(config, "rejected") == []


def test_what_has_a_row_is_left_out_and_a_part_of_a_video_lists_the_rest(config: CurationConfig):
    write_scores(Store(config.output), scene("a.0_1"), scene("b.0_0", error="decode_error"))
    plan = make_plan(config)
    assert (plan.todo, plan.todo_scenes) == (2, 3)
    assert todo(config) == {"a": ["a.0_0", "a.1_0"], "c": ["c.0_0"]}
    assert [row["scenes"] for row in part(config, "videos")] == [3, 1, 1]
    write_scores(Store(config.output), scene("a.0_0"), scene("a.1_0"), scene("c.0_0"))
    assert make_plan(config).todo == 0
    assert todo(config) == {}


def test_codes_that_are_tried_again_open_their_rows_and_no_others(config: CurationConfig):
    store = Store(config.output)
    write_scores(store, scene("a.0_0"), scene("a.0_1", error="crashed"), scene("a.1_0", error="truncated"))
    write_scores(store, scene("b.0_0", error="not_found"), scene("c.0_0"))
    assert make_plan(config).todo == 0
    assert make_plan(config, frozenset({"crashed", "not_found"})).todo_scenes == 2
    assert todo(config) == {"a": ["a.0_1"], "b": ["b.0_0"]}


def test_of_rows_that_were_made_again_the_one_that_counts_decides(config: CurationConfig):
    store = Store(config.output)
    again = frozenset({"crashed"})
    write_scores(store, scene("b.0_0", error="crashed", written=1))
    write_scores(store, scene("b.0_0", error="truncated", written=2))
    write_scores(store, scene("c.0_0", error="truncated", written=1))
    write_scores(store, scene("c.0_0", error="crashed", written=2))
    write_scores(store, scene("a.0_0"), scene("a.0_1"), scene("a.1_0", error="crashed", written=3))
    write_scores(store, scene("a.1_0", written=2))
    make_plan(config, again)
    assert todo(config) == {"c": ["c.0_0"]}


def test_a_scene_too_long_to_be_measured_is_opened_under_a_higher_bound(config: CurationConfig):
    unmeasured = dict.fromkeys(("max_rgb_diff", "mean_rgb_diff", "max_velocity", "mean_velocity"), math.nan)
    write_scores(
        Store(config.output),
        scene("a.0_0", no_frames=100, **unmeasured),
        scene("a.0_1", no_frames=130, **unmeasured),
        # One frame has no pair to measure, whatever the bound.
        scene("a.1_0", no_frames=1, **unmeasured),
        scene("b.0_0", no_frames=100),
        scene("c.0_0"),
    )
    assert make_plan(config).todo == 0
    make_plan(replace(config, frames=FramesConfig(max=120)))
    assert todo(config) == {"a": ["a.0_0"]}


def test_a_film_is_complete_when_all_that_its_own_row_counts_is_there(tmp_path: Path):
    config = folder_of_films(tmp_path, "a.mp4", "b.mp4", "c.mp4", "d.mp4")
    plan = make_plan(config)
    assert plan == Plan(videos=4, scenes=0, films=4, todo=4, todo_scenes=0, remote=False)
    assert all(row["spans"] is None and row["skip"] == "[]" for row in part(config, "todo"))
    assert [row["scenes"] for row in part(config, "videos")] == [-1] * 4
    write_scores(
        Store(config.output),
        *(scene("a.mp4.1_0"), scene("a.mp4.0_0"), film("a.mp4", 2)),
        *(scene("b.mp4.0_0"), scene("b.mp4.2_0"), film("b.mp4", 3)),
        *(scene("c.mp4.0_0"), film("d.mp4", 0, error="not_a_video")),
    )
    assert make_plan(config).todo == 2
    assert {row["video_id"]: json.loads(row["skip"]) for row in part(config, "todo")} == {
        "b.mp4": ["b.mp4.0_0", "b.mp4.2_0"],
        "c.mp4": ["c.mp4.0_0"],
    }


def test_a_failed_film_is_opened_again_with_what_it_has(tmp_path: Path):
    config = folder_of_films(tmp_path, "a.mp4")
    store = Store(config.output)
    write_scores(store, scene("a.mp4.0_0"), film("a.mp4", 1, error="crashed", written=1))
    assert make_plan(config).todo == 0
    assert make_plan(config, frozenset({"crashed"})).todo == 1
    assert json.loads(part(config, "todo")[0]["skip"]) == ["a.mp4.0_0"]
    # That was ended before the film was: an ordinary run goes on.
    write_scores(store, scene("a.mp4.1_0"))
    assert make_plan(config).todo == 1
    write_scores(store, scene("a.mp4.2_0"), film("a.mp4", 3, written=2))
    assert make_plan(config, frozenset({"crashed"})).todo == 0


@pytest.mark.parametrize("sound_first", [True, False])
def test_a_sound_film_counts_before_a_failed_one_in_whatever_order_parts_are_read(tmp_path: Path, sound_first: bool):
    config = folder_of_films(tmp_path, "a.mp4")
    store = Store(config.output)
    rows = [film("a.mp4", 3, written=2), film("a.mp4", 1, error="crashed", written=1)]
    for number, row in enumerate(rows if sound_first else rows[::-1]):
        store.write_table(pa.Table.from_pylist([row], SCORES), "scores", store.numbered(number))
    write_scores(store, scene("a.mp4.0_0"), scene("a.mp4.2_0"))
    assert make_plan(config).todo == 1
    write_scores(store, scene("a.mp4.1_0"))
    assert make_plan(config).todo == 0


def test_what_cannot_be_cut_is_a_row_with_its_reason(tmp_path: Path):
    metadata = hdvg(
        {"a": {"a.0.mp4": ["a.0_0", "a.0_0", "a.0_1"], "a.1.mp4": ["a.1_0"]}, "b": {}}, cuts={"a.0_1": [9, 3]}
    )
    metadata["a"]["clip"]["a.1.mp4"]["span"] = ["00:00:05", "00:00:04"]
    config = over(tmp_path, metadata)
    assert make_plan(config) == Plan(videos=2, scenes=4, films=0, todo=1, todo_scenes=1, remote=False)
    rejected = [
        tuple(row[name] for name in ("video_id", "scene_id", "step", "error")) for row in part(config, "rejected")
    ]
    assert rejected == [
        ("a", "a.0_0", "plan", "duplicate_id"),
        ("a", "a.0_1", "plan", "bad_scene_cut"),
        ("a", "a.1_0", "plan", "bad_span"),
        ("b", "", "plan", "no_scenes"),
    ]
    assert all(row["message"] and math.isnan(row["mean_velocity"]) for row in part(config, "rejected"))
    assert [row["scenes"] for row in part(config, "videos")] == [1, 0]


def test_a_video_whose_id_stands_twice_is_counted_once(config: CurationConfig, tmp_path: Path):
    lines = [json.dumps({name: video}) for name, video in hdvg(CORPUS).items()]
    path = tmp_path / "twice.jsonl"
    path.write_text("\n".join([lines[0], lines[0], lines[1], '{"x/y": 3}', '{"x/y": 3}']))
    config = replace(config, input=str(path))
    assert make_plan(config).videos == 5
    assert [row["video_id"] for row in part(config, "videos")] == ["a", "b", "x/y"]
    codes = [(row["video_id"], row["error"]) for row in part(config, "rejected")]
    assert set(codes) == {("a", "duplicate_id"), ("x/y", "bad_name"), ("x/y", "duplicate_id")}
    # Its scenes are those of the first, also where that one lies outside the range.
    make_plan(replace(config, videos=VideosConfig(start=1)))
    assert [row["video_id"] for row in part(config, "videos")] == ["b", "x/y"]


def test_a_dry_plan_counts_the_same_and_writes_nothing(config: CurationConfig, tmp_path: Path):
    before = files(tmp_path)
    dry = make_plan(config, dry=True)
    assert files(tmp_path) == before
    assert make_plan(config) == dry


@pytest.mark.parametrize(
    ("start", "end", "ids"), [(0, 0, ["a"]), (1, None, ["b", "c"]), (1, 2, ["b", "c"]), (2, 2, ["c"])]
)
def test_a_range_takes_both_its_ends(config: CurationConfig, start: int, end: int | None, ids: list[str]):
    assert make_plan(replace(config, videos=VideosConfig(start, end))).videos == len(ids)
    assert list(todo(config)) == ids
    assert [row["video_index"] for row in part(config, "videos")] == list(range(start, start + len(ids)))


@pytest.mark.parametrize(("start", "end"), [(0, 3), (3, None), (2, 1), (-1, None)])
def test_a_range_out_of_bounds_leaves_the_plan_before(
    config: CurationConfig, tmp_path: Path, start: int, end: int | None
):
    make_plan(config)
    before = files(tmp_path)
    with pytest.raises(ValueError, match=r"videos\.start"):
        make_plan(replace(config, videos=VideosConfig(start, end)))
    assert files(tmp_path) == before


def test_metadata_that_breaks_late_leaves_scores_and_plan_as_they_were(
    config: CurationConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(pipelines.curation.cutting.plan, "PART_ROWS", 1)
    make_plan(config)
    write_scores(Store(config.output), scene("a.0_0"))
    before = files(tmp_path / "out")
    broken = hdvg(CORPUS, url="elsewhere/{}.mp4")
    path = tmp_path / "broken.json"
    path.write_text(json.dumps(broken)[:-30])
    with pytest.raises(MetadataError, match=r'broken JSON before byte \d+, after the video "b": '):
        make_plan(replace(config, input=str(path)))
    assert files(tmp_path / "out") == before


def test_a_plan_takes_the_place_of_the_one_before(
    config: CurationConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(pipelines.curation.cutting.plan, "PART_ROWS", 1)
    make_plan(config)
    number = len(files(tmp_path / "out/plan"))
    make_plan(config)
    assert len(files(tmp_path / "out/plan")) == number
    make_plan(over(tmp_path, hdvg({"c": CORPUS["c"]})))
    assert list(todo(config)) == ["c"]
    assert len(part(config, "videos")) == 1


@pytest.mark.parametrize(
    ("url", "remote"),
    [
        ("films/{}.mp4", False),
        ("file:///films/{}.mp4", False),
        ("s3://bucket/{}.mp4", False),
        ("https://host/{}", True),
        ("HTTP://host/{}.mp4", True),
        ("ftp://host/{}.mp4", True),
    ],
)
def test_only_urls_that_are_no_files_have_to_be_fetched(tmp_path: Path, url: str, remote: bool):
    assert make_plan(over(tmp_path, hdvg(CORPUS, url))).remote is remote


def test_the_plan_keeps_the_settings_that_it_was_made_with(config: CurationConfig):
    make_plan(config)
    made = Store(config.output).read_json("plan", "settings.json")
    assert made["settings"]["input"] == config.input
    assert made["measured_by"]["frames.interval_ms"] == 250

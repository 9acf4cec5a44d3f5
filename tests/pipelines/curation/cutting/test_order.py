"""Videos are worked on by their length, the longest first, by what is known before they are opened."""

import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from actors.core.catalog import Part
from actors.core.store import Store
from pipelines.curation.cutting import plan
from pipelines.curation.cutting.order import BYTES_A_SECOND, LongestFirst, longest_first, seconds_of
from pipelines.curation.cutting.plan import Plan, make_plan
from pipelines.curation.cutting.score import together
from pipelines.curation.settings import CurationConfig
from tests.pipelines.curation.outputs import quick, scene, write_scores
from tests.support import films
from tests.support.corpus import FAST, run_here, table


def planned(config: CurationConfig) -> list[str]:
    """Videos that are left, in the order in which they are begun."""
    make_plan(config)
    parts = Store(config.output).read_parts("plan/todo")
    return [name for part in parts for name in part["video_id"].to_pylist()]


def over(folder: Path, ends: dict[str, list[float]]) -> CurationConfig:
    """Metadata of videos whose spans end at these times."""
    videos = {
        name: {
            "url": f"{name}.mp4",
            "clip": {
                f"{name}.{k}.mp4": {
                    "span": ["0", str(end)],
                    "fps": 24.0,
                    "scene_split": [{"clip_id": f"{name}.{k}_0", "scene_cut": [0, -1], "caption": ""}],
                }
                for k, end in enumerate(ends)
            },
        }
        for name, ends in ends.items()
    }
    (folder / "corpus.json").write_text(json.dumps(videos))
    return quick(folder / "corpus.json", folder / "out")


def test_films_are_begun_by_their_size_and_the_same_ones_in_the_order_of_the_input(tmp_path: Path):
    sizes = {"a.mp4": 10, "b.mp4": 5_000_000, "c.mp4": 10, "d.mp4": 900_000, "e.mp4": 0}
    (tmp_path / "films").mkdir()
    for name, size in sizes.items():
        (tmp_path / "films" / name).write_bytes(bytes(size))
    config = quick(tmp_path / "films", tmp_path / "out")
    for _ in range(2):
        assert planned(config) == ["b.mp4", "d.mp4", "a.mp4", "c.mp4", "e.mp4"]
        assert make_plan(config).longest_s == 5_000_000 / BYTES_A_SECOND


def test_videos_of_metadata_are_begun_by_where_what_is_left_of_them_ends(tmp_path: Path):
    config = over(tmp_path, {"a": [5], "b": [10, 900], "c": [60], "d": [2, 8]})
    assert planned(config) == ["b", "c", "d", "a"] and make_plan(config).longest_s == 900
    write_scores(Store(config.output), scene("b.1_0", end_s=900))
    assert planned(config) == ["c", "b", "d", "a"]


def test_what_tells_no_length_may_be_long_and_comes_first(tmp_path: Path):
    assert seconds_of([5.0, 90.0, 30.0], 10) == 90
    assert seconds_of([5.0, None], 60 * BYTES_A_SECOND) == seconds_of([], 60 * BYTES_A_SECOND) == 60
    assert seconds_of([5.0, None], None) == seconds_of([], None) == math.inf
    rows = ["a,https://host/a.mp4,0,600", "b,https://host/b.mp4,0,", "c,https://host/c.mp4,0,1200"]
    (tmp_path / "corpus.csv").write_text("\n".join(["video_id,url,start,end", *rows]))
    config = quick(tmp_path / "corpus.csv", tmp_path / "out")
    assert planned(config) == ["b", "c", "a"] and make_plan(config).longest_s == 0


def test_long_inputs_are_ordered_by_parts_and_few_rows_are_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(plan, "PART_ROWS", 8)
    ends = {f"v{i}": [float(1 + (i * 7919) % 1000)] for i in range(200)}
    config = over(tmp_path, ends)
    assert sorted(planned(config)) == sorted(ends)
    read = Store(config.output).read_parts("plan/todo")
    parts = [[ends[name][0] for name in part["video_id"].to_pylist()] for part in read]
    assert max(map(len, parts)) == 8 and len(parts) == 25
    assert all(part == sorted(part, reverse=True) for part in parts)
    assert [part[0] for part in parts] == sorted((part[0] for part in parts), reverse=True)
    # None of the longer half is left for the last quarter.
    begun = [length for part in parts for length in part]
    assert max(begun[150:]) < 500


def test_a_class_holds_one_part_at_most():
    held, most = 0, 0

    def write(table: pa.Table) -> Part:
        nonlocal held
        held -= len(table)
        return Part("todo", str(table["video_index"][0].as_py()), len(table))

    order = LongestFirst(4, pa.schema([("video_index", pa.int64())]), write)
    for number in range(1000):
        held += 1
        order.add({"video_index": number}, float(number % 300))
        most = max(most, held)
    assert most <= 9 * 4
    assert sum(part.rows for part in order.parts()) == 1000 and held == 0


def test_films_of_chosen_scenes_come_by_the_seconds_of_these():
    def rows(name: str, *lengths: float) -> list[dict[str, Any]]:
        return [{"video_id": name, "start_s": 3.0, "end_s": 3 + length} for length in lengths]

    films_of = [rows("a", 2), rows("b", 1, 4), rows("c", 2), rows("d", 9)]
    assert [scenes[0]["video_id"] for scenes in longest_first(films_of)] == ["d", "b", "a", "c"]


@pytest.mark.slow
def test_one_worker_measures_them_in_this_order_and_the_rows_are_the_same(ray_cluster: None, tmp_path: Path):
    shots = {"a.mp4": 24, "b.mp4": 240, "c.mp4": 60, "d.mp4": 600}
    for name, frames in shots.items():
        films.film(tmp_path / "films" / name, (frames,))
    sizes = {name: (tmp_path / "films" / name).stat().st_size for name in shots}
    output = tmp_path / "out"
    one = [setting for setting in FAST if "batch_size" not in setting]
    run_here("score", f"input={tmp_path / 'films'}", f"output={output}", *one, "write.batch_size=1", "video.workers=1")
    rows = table(output, "scores")
    ended = rows[rows.scene_id == ""].sort_values("written")
    assert list(ended.video_id) == sorted(sizes, key=lambda name: -sizes[name]) == ["d.mp4", "b.mp4", "c.mp4", "a.mp4"]
    assert sorted(rows.scene_id[rows.scene_id != ""]) == [
        *("a.mp4.0_0", "b.mp4.0_0", "c.mp4.0_0"),
        *("d.mp4.0_0_w0", "d.mp4.0_0_w1"),
    ]


@pytest.mark.parametrize(
    ("longest_s", "todo", "remote", "videos"),
    [
        (5, 100_000, False, 12),  # of a minute
        (2, 100_000, False, 16),
        (5, 300, False, 4),  # and the rest of the workers have some, too
        (5, 60, False, 1),
        (61, 100_000, False, 1),
        (5, 100_000, True, 1),  # each is downloaded first
        (0, 100_000, False, 1),
    ],
)
def test_short_videos_are_in_a_task_together(longest_s: float, todo: int, remote: bool, videos: int) -> None:
    assert together(Plan(todo, 0, todo, todo, 0, remote, longest_s=longest_s)) == videos

"""The stages as plain functions: one film to its rows, whatever happens to its child, and parts."""

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest

from actors.core.child import CHILD
from actors.core.stage import Batch, codes_in
from actors.core.store import Store
from actors.curation.cutting.keyframes import KEY_FRAMES, decode_jpeg
from actors.curation.cutting.pictures import stored
from actors.curation.cutting.scenes import FEATURES, FramesConfig
from actors.curation.cutting.videos import cut_videos, fetch_video, write_rows
from actors.curation.features.latents import LatentsConfig
from actors.curation.features.motion import MotionConfig
from actors.curation.tables import KEYFRAMES, SCORES, THUMBNAILS
from actors.media.film import VideoConfig
from actors.media.shot_detection.shots import ShotsConfig
from pipelines.curation.cutting.score import _families, _measured, stages_of
from pipelines.curation.measuring.measure_settings import MeasureConfig
from pipelines.curation.settings import RETRYABLE, CurationConfig
from tests.support import films

Row = dict[str, Any]
SHOTS = (48, 36, 30)
EDGES = [0, 2, 3.5, 4.75]


@pytest.mark.parametrize(
    ("flow", "latents_gpus", "motion_gpus", "pools"),
    [
        ("farneback", 0, 0, ["latents"]),
        ("raft", 0, 0, ["latents"]),
        ("raft", 1, 0.5, ["latents"]),
        ("raft", 0, 1, ["latents", "motion"]),
        ("raft", 1, 0, ["latents", "motion"]),
    ],
)
def test_flow_shares_the_workers_of_latents_where_both_run_on_the_same_device(
    flow: Any, latents_gpus: float, motion_gpus: float, pools: list[str]
):
    motion = MotionConfig(flow=flow, num_gpus=motion_gpus)
    config = CurationConfig(input="", output="", latents=LatentsConfig(num_gpus=latents_gpus), motion=motion)
    assert list(stages_of(config, False)[0]) == pools
    assert "fetch" not in stages_of(config, False)[1]
    assert "fetch" in stages_of(config, True)[1]


class Pools:
    """A dataset to which pools are added: with how many workers each starts."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def map_batches(self, actor: Any, *, compute: Any, **options: Any) -> "Pools":
        self.sizes.append(compute.initial_size)
        return self


@pytest.mark.parametrize(("workers", "gpus", "of_family"), [(8, 0.0, 6), (0, 0.0, 1), (0, 1.0, 6)])
def test_pools_start_as_large_as_their_input_where_that_leaves_cpus_for_films(
    workers: int, gpus: float, of_family: int
):
    measure = MeasureConfig(own={"Change": {"workers": workers, "num_gpus": gpus}})
    config = CurationConfig(input="", output="", scores=["tests.support.families:Change"], measure=measure)
    stages = {name: replace(stage, workers=8) for name, stage in stages_of(config, False)[0].items()}
    rows: Any = Pools()
    _measured(_families(rows, config, stages, 6), config, stages, 6)
    assert rows.sizes == [of_family, 6]


# --------------------------------------------------------------------------------------------------------------- a film


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A film of three shots; the child that decodes it lives as long as this module."""
    yield str(films.film(tmp_path_factory.mktemp("film") / "a.mp4", SHOTS))
    CHILD.kill()


@pytest.fixture
def config(tmp_path: Path) -> CurationConfig:
    """At this size a row is larger than a pipe's buffer, so a child is never further than one row ahead."""
    return CurationConfig(input="in", output=str(tmp_path), frames=FramesConfig(size=240))


def spans(*left: int) -> str:
    """The three shots as scenes of two spans, or those of them that are left."""
    bounds = [(0, 2.0, 0, 48, "a.0"), (0, 2.0, 0, -1, "a.0"), (2.0, None, 0, 36, "a.1"), (2.0, None, 36, -1, "a.1")]
    found: dict[str, Row] = {}
    for i in left or range(len(bounds)):
        start, end, first, stop, span = bounds[i]
        scene = {
            "clip_id": span,
            "scene_id": f"a.{i}",
            "ordinal": i,
            "caption": f"shot {i}",
            "first": first,
            "end": stop,
        }
        found.setdefault(span, {"start_s": start, "end_s": end, "scenes": []})["scenes"].append(scene)
    return json.dumps(list(found.values()))


def batch(*tasks: Row) -> Batch:
    """Videos of the plan, as Ray hands them over."""
    whole = [{"video_index": 3, "video_id": "a", "spans": "", "skip": "[]", **task} for task in tasks]
    return {name: np.array([task[name] for task in whole]) for name in whole[0]}


@pytest.fixture(autouse=True)
def one_row_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a test can step from row to row; the job's own tests take several at once."""
    monkeypatch.setattr("actors.curation.cutting.videos.CUT_ROWS", 1)


def rows_of(batches: Iterator[Batch]) -> list[Row]:
    rows = []
    for one in batches:
        assert all(len(column) == 1 for column in one.values())
        rows.append({name: column[0] for name, column in one.items()})
    return rows


def shown(rows: list[Row]) -> list[tuple[str, str, str]]:
    return [(row["scene_id"], row["step"], row["error"]) for row in rows]


def kill_child(sending: bool = False) -> None:
    """As when memory runs out; sending: in the middle of the next row."""
    assert CHILD._process is not None and CHILD._pipe is not None
    if sending:
        assert CHILD._pipe.poll(60)
    os.kill(CHILD._process.pid, signal.SIGKILL)
    CHILD._process.wait()


def test_a_film_gives_a_row_for_each_scene_and_one_for_itself(path: str, config: CurationConfig):
    rows = rows_of(cut_videos(batch({"url": path, "spans": spans()}), config.cutting))
    assert shown(rows) == [("a.0", "", ""), ("a.1", "", ""), ("a.2", "", ""), ("a.3", "", ""), ("", "", "")]
    assert set(rows[0]) == {*SCORES.names, "frames", "thumbnail", *KEY_FRAMES}
    assert [row["frames"].shape for row in rows] == [(n, 240, 240, 3) for n in (8, 8, 6, 5, 0)]
    assert [films.read_stamp(row["frames"][0]) for row in rows[:-1]] == [0, 0, 48, 84]
    assert [row["start_s"] for row in rows[:-1]] == pytest.approx([0, 0, 2, 3.5], abs=0.001)
    assert [row["end_s"] for row in rows[:-1]] == pytest.approx([2, 2, 3.5, 4.75], abs=0.001)
    assert [(row["first"], row["end"]) for row in rows[:-1]] == [(0, 48), (0, -1), (0, 36), (36, -1)]
    first, film = rows[0], rows[-1]
    assert (first["video_index"], first["video_id"], first["uri"], first["clip_id"]) == (3, "a", path, "a.0")
    assert (first["caption"], first["width"], first["height"], first["attempts"]) == ("shot 0", 160, 120, 1)
    assert np.isfinite([first[name] for name in FEATURES[:4]]).all()
    assert np.isnan([first["mse"], first["cos_sim"]]).all()
    assert (film["decoded"], film["source"], film["scenes"]) == (114, 114, 4)
    assert film["cut_s"] > 0


def test_only_what_is_left_of_a_video_is_made(path: str, config: CurationConfig):
    rows = rows_of(cut_videos(batch({"url": path, "spans": spans(1, 3)}), config.cutting))
    assert [row["scene_id"] for row in rows] == ["a.1", "a.3", ""]
    assert [films.read_stamp(row["frames"][0]) for row in rows[:-1]] == [0, 84]


def test_shots_that_have_a_row_are_counted_and_not_made_again(path: str, config: CurationConfig):
    task = {"url": path, "skip": json.dumps(["a.0_0", "a.2_0"])}
    rows = rows_of(cut_videos(batch(task), config.cutting))
    assert [(row["scene_id"], row["clip_id"], row["ordinal"]) for row in rows] == [("a.1_0", "a.1", 1), ("", "", -1)]
    assert films.read_stamp(rows[0]["frames"][0]) == 48
    assert rows[-1]["scenes"] == 3


def test_videos_of_a_batch_come_one_after_the_other(path: str, config: CurationConfig, tmp_path: Path):
    text = films.text_file(tmp_path / "b.mp4")
    tasks = {"video_id": "b", "url": str(text)}, {"video_id": "a", "url": path}
    rows = rows_of(cut_videos(batch(*tasks), config.cutting))
    assert [(row["video_id"], row["scene_id"], row["error"]) for row in rows] == [
        ("b", "", "not_a_video"),
        ("a", "a.0_0", ""),
        ("a", "a.1_0", ""),
        ("a", "a.2_0", ""),
        ("a", "", ""),
    ]


def test_rows_leave_several_at_once_and_are_the_same(
    path: str, config: CurationConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    tasks = batch({"url": path, "spans": spans(0, 1, 2)}, {"video_id": "b", "url": str(tmp_path / "gone.mp4")})
    alone = rows_of(cut_videos(tasks, config.cutting))
    monkeypatch.setattr("actors.curation.cutting.videos.CUT_ROWS", 2)
    together = list(cut_videos(tasks, config.cutting))
    assert [len(one["scene_id"]) for one in together] == [2, 2, 1]
    rows = [{name: column[i] for name, column in one.items()} for one in together for i in range(len(one["scene_id"]))]
    assert shown(rows) == shown(alone)
    # Two scenes with as many frames stay two.
    assert [row["frames"].shape for row in rows] == [(n, 240, 240, 3) for n in (8, 8, 6, 0, 0)]
    for row, before in zip(rows, alone, strict=True):
        np.testing.assert_array_equal(row["frames"], before["frames"])
        for name in set(SCORES.names) - {"cut_s"}:
            np.testing.assert_equal(row[name], before[name])


def test_an_exception_in_the_decode_costs_its_film_alone(path: str, config: CurationConfig):
    broken = replace(config, shots=ShotsConfig(threshold=cast(Any, "high")))
    rows = rows_of(cut_videos(batch({"url": path}, {"url": path, "spans": spans(0)}), broken.cutting))
    assert shown(rows) == [("", "cut", "exception"), ("a.0", "", ""), ("", "", "")]
    assert "TypeError" in rows[0]["message"] or "ValueError" in rows[0]["message"]
    assert "exception" in RETRYABLE


def test_a_file_that_is_not_there_is_a_row_for_each_scene(config: CurationConfig, tmp_path: Path):
    url = str(tmp_path / "gone.mp4")
    rows = rows_of(cut_videos(batch({"url": url, "spans": spans(0, 2)}), config.cutting))
    assert shown(rows) == [("a.0", "fetch", "not_found"), ("a.2", "fetch", "not_found"), ("", "", "")]
    assert all(url in row["message"] for row in rows[:-1])
    assert rows[0]["caption"] == "shot 0"
    assert np.isnan([rows[0][name] for name in FEATURES[:-1]]).all()
    assert rows[0]["frames"].shape == (0, 240, 240, 3)
    # Of a film with unknown scenes nothing else can be said.
    rows = rows_of(cut_videos(batch({"url": url, "skip": '["a.0_0"]'}), config.cutting))
    assert shown(rows) == [("", "fetch", "not_found")]
    assert rows[0]["scenes"] == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_forbidden(config: CurationConfig, tmp_path: Path):
    locked = films.text_file(tmp_path / "locked.mp4")
    locked.chmod(0)
    rows = rows_of(cut_videos(batch({"url": str(locked), "spans": spans(0)}), config.cutting))
    assert shown(rows) == [("a.0", "fetch", "forbidden"), ("", "", "")]


def test_a_fetch_that_failed_is_told_by_every_scene(config: CurationConfig):
    failed = {"uri": "https://host/a", "error": "fetch_gone", "message": "404", "attempts": 3, "fetch_s": 1.5}
    rows = rows_of(cut_videos(batch({"url": "https://host/a", "spans": spans(0, 3), **failed}), config.cutting))
    assert shown(rows) == [("a.0", "fetch", "fetch_gone"), ("a.3", "fetch", "fetch_gone"), ("", "", "")]
    assert [(row["attempts"], row["uri"]) for row in rows] == [(3, "https://host/a")] * 3
    assert [row["fetch_s"] for row in rows] == [0, 0, 1.5]


def test_a_fetched_film_is_cut_where_it_was_stored(path: str, config: CurationConfig):
    task = {name: column[0] for name, column in batch({"url": path, "spans": spans(0)}).items()}
    fetched = fetch_video(task, Store(config.output).uri("videos"), config.fetch)
    assert (fetched["uri"], fetched["error"]) == (path, "")
    rows = rows_of(cut_videos(batch(fetched), config.cutting))
    assert shown(rows) == [("a.0", "", ""), ("", "", "")]
    assert rows[-1]["fetch_s"] == pytest.approx(fetched["fetch_s"])
    bad = fetch_video({**task, "url": "ftp://host/a.mp4"}, Store(config.output).uri("videos"), config.fetch)
    assert shown(rows_of(cut_videos(batch(bad), config.cutting))) == [("a.0", "fetch", "bad_url"), ("", "", "")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("named", "after", "sending"), [(True, 0, True), (False, 0, False), (False, 1, True), (True, 2, False)]
)
def test_a_child_that_is_killed_costs_no_row_and_none_comes_twice(
    path: str, config: CurationConfig, named: bool, after: int, sending: bool
):
    task = {"url": path, "spans": spans(0, 2, 3) if named else ""}
    stream = cut_videos(batch(task), config.cutting)
    rows = rows_of(iter([next(stream) for _ in range(after + 1)]))
    kill_child(sending)
    rows += rows_of(stream)
    assert [row["error"] for row in rows] == [""] * 4
    assert [row["scene_id"] for row in rows] == (
        ["a.0", "a.2", "a.3", ""] if named else ["a.0_0", "a.1_0", "a.2_0", ""]
    )
    assert [films.read_stamp(row["frames"][0]) for row in rows[:-1]] == [0, 48, 84]


@pytest.mark.parametrize("named", [True, False])
def test_a_child_that_is_killed_twice_fails_what_is_left(path: str, config: CurationConfig, named: bool):
    stream = cut_videos(batch({"url": path, "spans": spans(0, 2, 3) if named else ""}), config.cutting)
    rows = rows_of(iter([next(stream)]))
    kill_child()
    rows += rows_of(iter([next(stream)]))
    kill_child(sending=True)
    rows += rows_of(stream)
    if named:
        crashed = [("a.3", "cut", "crashed"), ("", "", "")]
    else:
        crashed = [("", "cut", "crashed")]
        assert rows[-1]["scenes"] == 2
    assert [row["error"] for row in rows[:2]] == ["", ""]
    assert shown(rows[2:]) == crashed
    assert "SIGKILL" in rows[2]["message"]
    assert rows[2]["attempts"] == 2
    # The next film has a child of its own.
    assert shown(rows_of(cut_videos(batch({"url": path, "spans": spans(0)}), config.cutting))) == [
        ("a.0", "", ""),
        ("", "", ""),
    ]


def test_a_film_that_takes_too_long_is_given_up_at_once(path: str, config: CurationConfig):
    hasty = replace(config, video=VideoConfig(timeout_s=0))
    rows = rows_of(cut_videos(batch({"url": path, "spans": spans(0, 3)}), hasty.cutting))
    assert shown(rows) == [("a.0", "cut", "timeout"), ("a.3", "cut", "timeout"), ("", "", "")]
    assert rows[0]["attempts"] == 1


# ---------------------------------------------------------------------------------------------------------------- parts


def gathered(batches: Iterator[Batch]) -> Batch:
    """Batches as one, without frames, read-only as Ray hands it over."""
    parts = [{name: column for name, column in one.items() if name != "frames"} for one in batches]
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    for column in whole.values():
        column.flags.writeable = False
    return whole


def test_rows_are_written_whole_and_read_as_they_were(path: str, config: CurationConfig, tmp_path: Path):
    tasks = {"url": path, "spans": spans()}, {"video_id": "b", "url": str(tmp_path / "gone.mp4"), "spans": spans(0)}
    rows = gathered(cut_videos(batch(*tasks), config.cutting))
    store = Store(config.output)
    counts = write_rows(rows, store)
    assert (counts["films"].tolist(), counts["scenes"].tolist()) == ([2], [5])
    assert codes_in(counts) == {"not_found": 1}
    read = store.read_table("scores", SCORES)
    assert read.column("written").to_numpy().min() > 1e9
    for name in set(SCORES.names) - {"written"}:
        there = np.array([value or None for value in rows[name]], object) if name == "phash" else rows[name]
        np.testing.assert_array_equal(read.column(name).to_numpy(zero_copy_only=False), there, err_msg=name)
    assert {len(row["phash"] or b"") for row in read.to_pylist() if row["scene_id"] and not row["error"]} == {24}
    thumbnails = store.read_table("thumbnails", THUMBNAILS).to_pylist()
    assert [row["scene_id"] for row in thumbnails] == ["a.0", "a.1", "a.2", "a.3"]
    assert all(row["thumbnail"].startswith(b"\xff\xd8") for row in thumbnails)
    [part] = store.parts("scores")
    assert store.parts("keyframes") == [part]
    keyframes = store.read_table("keyframes", KEYFRAMES).to_pylist()
    assert [row["scene_id"] for row in keyframes] == ["a.0", "a.1", "a.2", "a.3"]
    shown = [films.read_stamp(decode_jpeg(row[name])) for row in keyframes for name in KEY_FRAMES]
    assert shown == [0, 24, 42, 0, 24, 42, 48, 66, 78, 84, 96, 108]
    # Of the part only what is asked for is read.
    found = stored(store, part, {("a", "a.2"), ("b", "a.0")})
    assert found == {("a", "a.2"): [keyframes[2][name] for name in KEY_FRAMES]}
    assert stored(store, "part-of-another.parquet", {("a", "a.2")}) == {}
    Path(store.uri("keyframes", part)).write_bytes(b"PAR1 torn")
    assert stored(store, part, {("a", "a.2")}) == {}


def test_key_frames_are_read_from_a_store(s3: str):
    store = Store(f"{s3}/out")
    rows = [
        {"video_id": "a", "scene_id": f"a.{i}", "first_jpeg": bytes([i]) * 100_000, "last_jpeg": b"\xff" + bytes([i])}
        for i in range(12)
    ]
    part = store.write_part("keyframes", pa.Table.from_pylist(rows, KEYFRAMES), ["a"], row_group_size=1)
    wanted = {("a", "a.3"), ("a", "a.11"), ("a", "a.99"), ("b", "a.4")}
    found = {("a", f"a.{i}"): [bytes([i]) * 100_000, b"\xff" + bytes([i])] for i in (3, 11)}
    assert stored(store, part, wanted) == found
    assert stored(store, "part-of-another.parquet", wanted) == {}


def test_a_batch_that_is_written_again_takes_its_own_place(path: str, config: CurationConfig):
    rows = gathered(cut_videos(batch({"url": path, "spans": spans(0, 2)}), config.cutting))
    store = Store(config.output)
    write_rows(rows, store)
    write_rows(rows, store)
    assert store.parts("scores") == store.parts("thumbnails") == store.parts("keyframes")
    assert len(store.parts("scores")) == 1
    for i in range(3):
        write_rows({name: column[i : i + 1] for name, column in rows.items()}, store)
    assert len(store.parts("scores")) == len(store.parts("thumbnails")) == 4
    assert sorted(store.read_table("scores", SCORES)["scene_id"].to_pylist()) == ["", "", "a.0", "a.0", "a.2", "a.2"]


def test_only_failures_have_no_pictures(config: CurationConfig, tmp_path: Path):
    rows = gathered(cut_videos(batch({"url": str(tmp_path / "gone.mp4"), "spans": spans(0)}), config.cutting))
    assert codes_in(write_rows(rows, Store(config.output))) == {"not_found": 1}
    assert Store(config.output).read_table("thumbnails", THUMBNAILS).num_rows == 0
    assert Store(config.output).parts("keyframes") == []

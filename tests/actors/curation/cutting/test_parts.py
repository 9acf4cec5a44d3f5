"""A film that several processes cut at once has the rows that one finds, whatever lies across the seams."""

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.core.child import Child
from actors.core.stage import Row
from actors.curation.cutting.cut import CutConfig, cut
from actors.curation.cutting.parts import UndividedError, cut_in_parts, cut_part, part_bounds
from actors.curation.cutting.scenes import FramesConfig, Windows
from actors.curation.cutting.videos import cut_videos
from actors.curation.features.motion import MotionConfig
from actors.media.film import VideoConfig
from actors.media.shot_detection.shots import ShotsConfig
from tests.support import films


def config(**shots: Any) -> CutConfig:
    flow = MotionConfig(flow="scaled")
    return CutConfig(VideoConfig(), FramesConfig(size=64), ShotsConfig(**shots), flow, Windows(20, 0, 4), processes=2)


@cache
def by_one(path: Path, settings: CutConfig) -> list[Row]:
    measured = settings.frames, settings.shots, settings.motion, settings.windows
    return [row for row in cut(str(path), "v", None, frozenset(), settings.video, *measured) if row]


def between(path: Path, settings: CutConfig, *bounds: float) -> tuple[list[Row], list[Row]]:
    """Rows of scenes, and those of the parts, cut one after the other at some times."""
    scenes: list[Row] = []
    parts: list[Row] = []
    for begin_s, end_s in pairwise((0.0, *bounds, math.inf)):
        *rows, part = (row for row in cut_part(str(path), "v", settings, begin_s, end_s) if row)
        scenes += rows
        parts.append(part)
    return scenes, parts


def assert_same(found: list[Row], expected: list[Row], *without: str) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        for name in other.keys() - set(without):
            if isinstance(other[name], float | np.floating):
                # Optical flow differs by its last digits from run to run.
                assert one[name] == pytest.approx(other[name], rel=1e-9, nan_ok=True), name
            else:
                assert np.array_equal(one[name], other[name]), name


NAMES = ("clip_id", "scene_id", "ordinal")


@pytest.mark.slow
@pytest.mark.parametrize("detector", ["gradual", "adaptive", "content"])
def test_parts_have_the_scenes_of_the_whole(detector: str) -> None:
    settings = config(detector=detector)
    *whole, film = by_one(films.demo_mp4(), settings)
    found, parts = between(films.demo_mp4(), settings, 7.3, 15.0, 30.875, 31.0, 52.2)
    assert_same(found, whole, *NAMES)
    assert sum(part["scenes"] for part in parts) == film["scenes"]
    assert all(a["next_s"] == b["first_s"] for a, b in pairwise(part for part in parts if part["shots"]))


@pytest.mark.parametrize("seam", [5.0, 5.03])
def test_of_many_pictures_a_second_the_same_ones_are_looked_at(tmp_path: Path, seam: float) -> None:
    # 59 and 61 frames: each shot begins elsewhere among those that are looked at.
    path = films.film(tmp_path / "fast.mp4", [59, 61] * 5, rate=60)
    whole = by_one(path, config())[:-1]
    found, _ = between(path, config(), seam)
    assert len(whole) > 5
    assert_same(found, whole, *NAMES)


def test_a_shot_over_several_parts_is_of_the_first_and_its_windows_too(tmp_path: Path) -> None:
    path = films.film(tmp_path / "long.mp4", [60, 600, 100])
    whole = by_one(path, config())[:-1]
    assert sum(row["window"] >= 0 for row in whole) > 3
    found, parts = between(path, config(), 6.0, 12.0, 20.0)
    assert_same(found, whole, *NAMES)
    assert [part["shots"] for part in parts] == [2, 0, 0, 1]
    assert math.isnan(parts[1]["first_s"])


def test_a_part_says_where_it_may_differ(tmp_path: Path) -> None:
    path = films.film(tmp_path / "film.mp4", [200, 200, 200])
    *_, early = cut_part(str(path), "v", config(), 1.0, math.inf)
    assert early and early["error"] == "odd" and "pictures before 1.000 s" in early["message"]
    data = bytearray(path.read_bytes())
    for at in range(len(data) // 2, len(data) * 3 // 4, 40):
        data[at] ^= 0xFF
    path.write_bytes(data)
    *_, harmed = cut_part(str(path), "v", config(), 10.0, math.inf)
    assert harmed and harmed["error"] == "odd"


@pytest.mark.slow
def test_a_part_does_not_go_on_for_ever(tmp_path: Path) -> None:
    path = films.film(tmp_path / "long.mp4", [2 * 220], rate=2)
    *_, part = cut_part(str(path), "v", config(), 0.0, 20.0)
    assert part and part["error"] == "odd" and "goes on for more than 180 s" in part["message"]
    *_, part = cut_part(str(path), "v", config(), 0.0, 60.0)
    assert part and part["shots"] == 1 and not part["error"]


def rows_of(path: Path, skip: set[str] | None = None) -> tuple[list[Row], float]:
    taken = cut_in_parts(str(path), "v", config(), skip or set())
    found: list[Row] = []
    while True:
        try:
            found.append(next(taken))
        except StopIteration as end:
            return found, end.value


@pytest.mark.slow
def test_two_processes_have_the_rows_of_one() -> None:
    expected = by_one(films.demo_mp4(), config())
    found, cpu_s = rows_of(films.demo_mp4())
    assert_same(found[:-1], expected[:-1])
    names = [name for name in expected[-1] if name not in ("decoded", "first_s")]
    assert_same([{name: found[-1][name] for name in names}], [{name: expected[-1][name] for name in names}])
    assert found[-1]["decoded"] > expected[-1]["decoded"] == 1441
    assert cpu_s > 0
    ids = [row["scene_id"] for row in expected[:-1]]
    assert [row["scene_id"] for row in rows_of(films.demo_mp4(), set(ids[3:]))[0][:-1]] == ids[:3]


def test_a_film_that_is_not_divided_is_left_to_one_process(tmp_path: Path) -> None:
    short = films.film(tmp_path / "short.mp4")
    assert list(part_bounds(str(short), config())) == [[]]
    assert list(part_bounds(str(films.samples_folder() / "demo.mkv"), config())) == [[]]
    assert list(part_bounds(str(films.demo_mp4()), config(detector="none"))) == [[]]
    assert list(part_bounds(str(films.demo_mp4()), config())) == [[0.0, 30.0, math.inf]]
    with pytest.raises(UndividedError):
        next(cut_in_parts(str(short), "v", config(), set()))


def end_third_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """End a process as it begins a part: the first call tells the bounds, the next two begin a part each."""
    calls = 0
    start = Child._start

    def doomed(self: Child) -> Any:
        nonlocal calls
        calls += 1
        pipe = start(self)
        if calls == 3:
            self.interrupt()
        return pipe

    monkeypatch.setattr(Child, "_start", doomed)


def test_where_a_process_dies_one_goes_on_from_there(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    end_third_call(monkeypatch)
    taken: Iterator[Row] = cut_in_parts(str(films.demo_mp4()), "v", config(), set())
    found: list[Row] = []
    with pytest.raises(UndividedError):
        found.extend(taken)
    assert "cut by one process" in caplog.text
    whole = by_one(films.demo_mp4(), config())
    assert_same(found, whole[: len(found)])


@pytest.mark.slow
def test_a_video_is_whole_whatever_becomes_of_its_parts(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    about = {"video_index": 0, "video_id": "v", "url": str(films.demo_mp4()), "spans": "", "skip": "[]"}
    task = {name: np.array([value]) for name, value in about.items()}

    def rows(settings: CutConfig) -> list[str]:
        names = ("scene_id", "start_s", "end_s", "mean_rgb_diff", "error", "step", "scenes")
        return [
            repr([batch[name][i] for name in names])
            for batch in cut_videos(task, settings)
            for i in range(len(batch["error"]))
        ]

    expected = rows(replace(config(), processes=1))
    assert rows(config()) == expected
    end_third_call(monkeypatch)
    assert rows(config()) == expected
    assert "cut by one process" in caplog.text

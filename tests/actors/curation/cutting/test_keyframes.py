"""Key frames are the first, middle and last sampled frame of each scene, as whole pictures, however it is divided."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from actors.core.errors import UserError
from actors.core.stage import Row
from actors.curation.cutting import keyframes
from actors.curation.cutting.cut import cut
from actors.curation.cutting.keyframes import KEY_FRAMES, decode_jpeg
from actors.curation.cutting.scenes import UNDIVIDED, FramesConfig, Scene, Windows
from actors.curation.features.motion import MotionConfig
from actors.media.bars import Plane, look
from actors.media.film import VideoConfig
from actors.media.shot_detection.shots import ShotsConfig
from actors.media.shown import NOT_KNOWN
from tests.support import films


def rows_of(path: Path, windows: Windows = UNDIVIDED, spans: list[Row] | None = None, **frames: Any) -> list[Row]:
    settings = VideoConfig(), FramesConfig(**frames), ShotsConfig("adaptive"), MotionConfig(flow="scaled")
    return [row for row in cut(str(path), "v", spans, frozenset(), *settings, windows) if row and row["scene_id"]]


def pictures(row: Row) -> list[np.ndarray]:
    return [decode_jpeg(row[name]) for name in KEY_FRAMES if row[name]]


@pytest.mark.parametrize("held_bytes", [0, 100_000, 1 << 30])
@pytest.mark.parametrize(
    "windows", [UNDIVIDED, Windows(20, 0, 4), Windows(20, 7, 4), Windows(20, 0, 4, named=True)], ids=str
)
def test_they_are_the_sampled_frames_and_scenes_too_long_have_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, windows: Windows, held_bytes: int
) -> None:
    monkeypatch.setattr(keyframes, "HELD_BYTES", held_bytes)
    path = films.film(tmp_path / "a.mp4", (126, 3, 9, 36, 260, 96))
    named = None
    if windows.named:
        parts = [(0, 126), (126, 174), (174, 434)]
        scenes = [
            {"clip_id": "c", "caption": "", "scene_id": f"c_{i}", "ordinal": i, "first": first, "end": end}
            for i, (first, end) in enumerate(parts)
        ]
        named = [{"start_s": 0.0, "end_s": None, "scenes": scenes}]
    rows = rows_of(path, windows, named, max=22, size=64)
    assert max(row["no_frames"] for row in rows) > 22 or windows.samples
    for row in rows:
        found = [films.read_stamp(picture) for picture in pictures(row)]
        count = row["no_frames"]
        if count > 22:
            assert found == []
        elif count == 1:
            assert found == [round(row["start_s"] * films.RATE)]
        else:
            stamps = [films.read_stamp(frame) for frame in row["frames"]]
            assert found == [stamps[i] for i in sorted({0, count // 2, count - 1})]


def test_of_few_frames_each_is_there_once(tmp_path: Path) -> None:
    path = films.film(tmp_path / "a.mp4", (14,))
    ends = [(0, 3), (0, 9), (0, 14)]
    scenes = [
        {"clip_id": "c", "caption": "", "scene_id": f"c_{i}", "ordinal": i, "first": first, "end": end}
        for i, (first, end) in enumerate(ends)
    ]
    rows = rows_of(path, spans=[{"start_s": 0.0, "end_s": None, "scenes": scenes}])
    there = [[bool(row[name]) for name in KEY_FRAMES] for row in rows]
    assert there == [[True, False, False], [True, False, True], [True, True, True]]
    assert [films.read_stamp(picture) for picture in pictures(rows[2])] == [0, 6, 12]


@pytest.mark.parametrize("seed", range(12))
def test_however_a_shot_is_divided_the_middle_one_was_held(seed: int) -> None:
    """Shots of any length, with pictures that are held for long, in windows of any length, overlap and rest."""
    random = np.random.default_rng(seed)
    most = int(random.integers(4, 30))
    overlap = int(random.integers(0, most)) * (seed % 2)
    windows = Windows(most, overlap, int(random.integers(2, 7)))
    config = FramesConfig(size=16, min=2, max=30, keyframes=16)
    steps = np.where(random.random(150) < 0.9, 0.25, random.uniform(0.25, 12, 150))
    for length in (*random.integers(1, 3 * most, 10), most + 1, most + windows.rest - 1):
        times = np.cumsum(steps[:length]) - steps[0]
        about = {"stored": NOT_KNOWN, "converted": (), "jumps_before": lambda _: 0}
        film: Any = SimpleNamespace(width=16, height=16, step_s=0.25, **about)
        scene = Scene(film, config, MotionConfig(flow="raft"), {"clip_id": "c", "scene_id": "s", "ordinal": 0}, windows)
        rows = []
        for number, time in enumerate(times):
            scene.add(cast(Any, _picture(number, float(time))))
            rows += scene.passed(frozenset())
        rows += scene.ended(float(times[-1]) + 0.25, frozenset())
        assert len(rows) == scene.count
        for row in rows:
            first = int(np.searchsorted(times, row["start_s"] - 1e-6))
            count = row["no_frames"]
            expected = [first + i for i in sorted({0, count // 2, count - 1})]
            assert [round(float(picture.mean())) for picture in pictures(row)] == expected


def _picture(number: int, time: float) -> SimpleNamespace:
    """A grey picture whose brightness is its number."""
    image = np.full((16, 16, 3), number, np.uint8)
    lines = look([Plane(np.full((16, 16), 255, np.uint8), 0, 19)])
    about = {
        "time": time,
        "until": time + 0.25,
        "interlaced": False,
        "damaged": False,
        "nbytes": 1,
        "deinterlaced": False,
    }
    return SimpleNamespace(**about, lines=lambda: lines, scaled=lambda *_, **__: image)


@pytest.mark.parametrize("held_bytes", [0, 1 << 30], ids=["as files", "as decoded"])
@pytest.mark.parametrize(
    ("size", "side", "expected"),
    [((160, 120), 512, (160, 120)), ((160, 120), 60, (80, 60)), ((120, 160), 60, (60, 80))],
    ids=["never enlarged", "short side", "upright"],
)
def test_whole_pictures_up_to_a_size(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    size: tuple[int, int],
    side: int,
    expected: tuple[int, int],
    held_bytes: int,
) -> None:
    monkeypatch.setattr(keyframes, "HELD_BYTES", held_bytes)
    path = films.film(tmp_path / "a.mp4", (36,), size=size)
    [row] = rows_of(path, keyframes=side)
    assert [picture.shape for picture in pictures(row)] == [(expected[1], expected[0], 3)] * 3


@pytest.mark.parametrize("held_bytes", [0, 1 << 30], ids=["as files", "as decoded"])
def test_bars_are_cut_off_where_the_features_are_measured_inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held_bytes: int
) -> None:
    monkeypatch.setattr(keyframes, "HELD_BYTES", held_bytes)
    path = films.film(tmp_path / "a.mp4", (36,), size=(320, 240), bars=(40, 40, 0, 0))
    for crop, height in ((True, 80), (False, 120)):
        [row] = rows_of(path, keyframes=120, crop_bars=crop)
        assert row["bar_top"] >= 40
        for picture in pictures(row):
            assert picture.shape[1] == 160 and abs(picture.shape[0] - height) <= 2
            assert (picture[0].mean() > 40) == crop


def test_failed_scenes_have_none_and_neither_has_an_output_without_them(tmp_path: Path) -> None:
    path = films.film(tmp_path / "a.mp4", (36,))
    [row] = rows_of(path, keyframes=0)
    assert pictures(row) == [] and row["thumbnail"]
    lost = {"clip_id": "c", "caption": "", "scene_id": "c_0", "ordinal": 0, "first": 0, "end": 90}
    [row] = rows_of(path, spans=[{"start_s": 0.0, "end_s": None, "scenes": [lost]}])
    assert row["error"] and row["thumbnail"] and pictures(row) == []
    with pytest.raises(UserError, match="keyframes=8"):
        FramesConfig(keyframes=8)

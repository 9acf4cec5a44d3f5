"""Shots that are too long to be one scene become windows: each moment of a film lies in exactly one."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.core.stage import Row
from actors.curation.cutting.cut import cut
from actors.curation.cutting.scenes import FramesConfig, Windows, WindowsConfig
from actors.curation.features.motion import MotionConfig
from actors.media.film import VideoConfig
from actors.media.shot_detection.shots import ShotsConfig
from tests.support import films

RATE = films.RATE
EVERY = RATE // 4
"""Frames between two samples."""


def divided(path: Path, windows: Windows, skip: frozenset[str] = frozenset(), **frames: Any) -> tuple[list[Row], Row]:
    settings = VideoConfig(), FramesConfig(**frames), ShotsConfig("adaptive"), MotionConfig(flow="scaled")
    *scenes, film = (row for row in cut(str(path), "v", None, skip, *settings, windows) if row)
    return scenes, film


def listed(path: Path, scenes: list[tuple[int, int]], windows: Windows) -> list[Row]:
    """Rows of one span over the whole film, whose scenes are given by their frames."""
    about = {"clip_id": "c", "caption": "so"}
    named = [{**about, "scene_id": f"c_{i}", "ordinal": i, "first": a, "end": b} for i, (a, b) in enumerate(scenes)]
    settings = VideoConfig(), FramesConfig(max=20), ShotsConfig(), MotionConfig(flow="scaled")
    span = [{"start_s": 0.0, "end_s": None, "scenes": named}]
    return [row for row in cut(str(path), "v", span, frozenset(), *settings, windows) if row and row["scene_id"]]


def spans(rows: list[Row]) -> list[tuple[int, int]]:
    return [(round(row["start_s"] * RATE), round(row["end_s"] * RATE)) for row in rows]


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        # Windows of 20 samples, 120 frames each.
        (120, [(0, 120)]),
        (240, [(0, 120), (120, 240)]),
        (264, [(0, 120), (120, 240), (240, 264)]),
        # 3 samples are less than 4: the last two are made equal.
        (258, [(0, 120), (120, 192), (192, 258)]),
        (126, [(0, 66), (66, 126)]),
        (121, [(0, 66), (66, 121)]),
    ],
)
def test_a_long_shot_is_divided_and_its_last_windows_are_equal(
    tmp_path: Path, length: int, expected: list[tuple[int, int]]
) -> None:
    path = films.film(tmp_path / "film.mp4", (length, 36))
    rows, film = divided(path, Windows(20, 0, 4))
    assert spans(rows) == [*expected, (length, length + 36)]
    assert [row["no_frames"] for row in rows] == [-(-(end - start) // EVERY) for start, end in spans(rows)]
    assert film["scenes"] == len(rows)
    ids = [f"v.0_0_w{k}" for k in range(len(expected))] if len(expected) > 1 else ["v.0_0"]
    assert [row["scene_id"] for row in rows] == [*ids, "v.1_0"]
    assert [row["clip_id"] for row in rows] == [
        *(name.replace("_0_w", "_w") for name in ids[:-1]),
        rows[-2]["clip_id"],
        "v.1",
    ]
    assert len({row["clip_id"] for row in rows}) == len(rows)
    assert [row["ordinal"] for row in rows] == list(range(len(rows)))
    assert [row["window"] for row in rows] == [*(range(len(expected)) if len(expected) > 1 else [-1]), -1]


def test_a_window_has_the_frames_and_features_of_its_seconds(tmp_path: Path) -> None:
    path = films.film(tmp_path / "film.mp4", (300,))
    rows, _ = divided(path, Windows(20, 0, 4))
    stamps = [[films.read_stamp(frame) for frame in row["frames"]] for row in rows]
    assert stamps == [list(range(start, end, EVERY)) for start, end in spans(rows)]
    settings = VideoConfig(), FramesConfig(), ShotsConfig("none"), MotionConfig(flow="scaled")
    for row in rows:
        scene = {"clip_id": "c", "scene_id": "c", "ordinal": 0, "caption": "", "first": 0, "end": -1}
        listed = [{"start_s": row["start_s"], "end_s": row["end_s"], "scenes": [scene]}]
        alone = next(one for one in cut(str(path), "v", listed, frozenset(), *settings) if one)
        for name in ("no_frames", "longest_hold_s", "phash", "thumbnail", "end_s"):
            assert row[name] == alone[name], name
        for name in ("max_rgb_diff", "mean_velocity"):
            assert row[name] == pytest.approx(alone[name])


def test_windows_may_overlap(tmp_path: Path) -> None:
    path = films.film(tmp_path / "film.mp4", (300,))
    rows, film = divided(path, Windows(20, 8, 4))
    assert spans(rows) == [(0, 120), (72, 192), (144, 264), (216, 300)]
    assert film["scenes"] == 4


def test_a_resume_makes_the_windows_that_are_missing_alone(tmp_path: Path) -> None:
    path = films.film(tmp_path / "film.mp4", (258, 36))
    whole, film = divided(path, Windows(20, 0, 4))
    done = frozenset(row["scene_id"] for row in whole[1::2])
    rest, again = divided(path, Windows(20, 0, 4), done)
    assert [row["scene_id"] for row in rest] == [row["scene_id"] for row in whole[::2]]
    assert spans(rest) == spans(whole[::2]) and again["scenes"] == film["scenes"]
    assert [row["max_rgb_diff"] for row in rest] == [row["max_rgb_diff"] for row in whole[::2]]


def test_of_a_film_that_breaks_off_only_the_last_window_is_lost(tmp_path: Path) -> None:
    path = films.film(tmp_path / "film.mp4", (720,), faststart=True)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    rows, film = divided(path, Windows(20, 0, 4))
    assert film["error"] == "truncated"
    assert [row["error"] for row in rows] == [*[""] * (len(rows) - 1), "truncated"]
    assert len(rows) >= 3 and [start for start, _ in spans(rows)] == list(range(0, 120 * len(rows), 120))


def test_a_picture_that_is_held_belongs_to_one_window(tmp_path: Path) -> None:
    # Half a second of each second without a picture, then one that is held for 9 s.
    times = [*(second + i / 24 for second in range(12) for i in range(12)), 12.0, *(21 + i / 24 for i in range(48))]
    path = films.film(tmp_path / "film.mp4", (len(times),), times=times)
    rows, _ = divided(path, Windows(20, 0, 4))
    assert [row["start_s"] for row in rows[1:]] == pytest.approx([row["end_s"] for row in rows[:-1]])
    assert rows[0]["start_s"] == 0 and rows[-1]["end_s"] == pytest.approx(23, abs=0.05)
    assert max(row["longest_hold_s"] for row in rows) == pytest.approx(9)
    assert sum(row["longest_hold_s"] > 3 for row in rows) == 1
    # No window is longer than so many intervals and one, that of the held picture apart.
    assert all(row["end_s"] - row["start_s"] < 5.25 for row in rows if row["longest_hold_s"] < 3)


@pytest.mark.parametrize("rate", [10, 25, 30])
def test_windows_add_up_at_any_rate(tmp_path: Path, rate: int) -> None:
    lengths = np.random.default_rng(rate).integers(30, 400, 3).tolist()
    path = films.film(tmp_path / "film.mp4", lengths, rate=rate)
    rows, film = divided(path, Windows(12, 0, 4), size=32)
    edges = [row["start_s"] for row in rows] + [rows[-1]["end_s"]]
    assert edges[1:-1] == pytest.approx([row["end_s"] for row in rows[:-1]]) and edges[0] == 0
    assert edges[-1] == pytest.approx(sum(lengths) / rate) and film["scenes"] == len(rows)
    assert all(row["no_frames"] <= 12 for row in rows)
    assert {round(edge * rate) for edge in edges} >= {0, *np.cumsum(lengths).tolist()}


def test_a_shot_that_is_not_divided_is_counted_and_not_measured(tmp_path: Path) -> None:
    path = films.film(tmp_path / "film.mp4", (120, 36))
    (long, short), _ = divided(path, Windows(0, 0, 4), max=10)
    assert (long["no_frames"], long["frames"], long["window"]) == (20, None, -1) and long["thumbnail"]
    assert short["no_frames"] == 6 and short["frames"] is not None


def test_scenes_that_metadata_names_are_divided_on_request(tmp_path: Path) -> None:
    path = films.film(tmp_path / "film.mp4", (300,))
    scenes = [(0, 60), (60, 258), (258, 300)]
    whole = listed(path, scenes, Windows(20, 0, 4))
    assert [(row["scene_id"], row["no_frames"], row["frames"] is None) for row in whole] == [
        ("c_0", 10, False),
        ("c_1", 33, True),
        ("c_2", 7, False),
    ]
    rows = listed(path, scenes, Windows(20, 0, 4, named=True))
    ids = ["c_0", "c_1_w0", "c_1_w1", "c_1", "c_2"]
    assert [row["scene_id"] for row in rows] == ids
    assert spans(rows) == [(0, 60), (60, 180), (180, 258), (60, 258), (258, 300)]
    # 13 samples are no rest; each window is measured, the scene itself is not.
    assert [row["no_frames"] for row in rows] == [10, 20, 13, 33, 7]
    assert [row["frames"] is None for row in rows] == [False, False, False, True, False]
    assert [row["window"] for row in rows] == [-1, 0, 1, -1, -1]
    assert [row.get("scenes", 0) for row in rows] == [0, 0, 0, 2, 0]
    assert [row["clip_id"] for row in rows] == ["c", "c_1_w0", "c_1_w1", "c", "c"]
    assert {row["caption"] for row in rows} == {"so"} and [row["ordinal"] for row in rows] == [0, 1, 1, 1, 2]
    for row, one in zip((rows[0], rows[3], rows[4]), whole, strict=True):
        assert all(row[name] == one[name] for name in ("start_s", "end_s", "no_frames", "phash", "thumbnail", "error"))


def test_a_named_scene_that_breaks_off_has_the_windows_that_are_whole(tmp_path: Path) -> None:
    path = films.film(tmp_path / "film.mp4", (300,))
    rows = listed(path, [(0, 400)], Windows(20, 0, 4, named=True))
    assert [(row["scene_id"], row["error"]) for row in rows] == [
        ("c_0_w0", ""),
        ("c_0_w1", ""),
        ("c_0_w2", "scene_beyond_span"),
        ("c_0", "scene_beyond_span"),
    ]


@pytest.mark.parametrize("settings", [{"length_s": -1}, {"overlap_s": -1}, {"length_s": 5, "overlap_s": 5}])
def test_windows_without_a_meaning_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="windows"):
        WindowsConfig(**settings)

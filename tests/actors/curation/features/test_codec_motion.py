"""Velocities by a codec's motion vectors are in pixels of sampled frames, whatever the film's size, bars and turn."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from actors.core.stage import Row
from actors.curation.cutting.cut import cut
from actors.curation.cutting.scenes import UNDIVIDED, FramesConfig, Windows
from actors.curation.features.codec_motion import CodecMotion, Moved, codec_speeds
from actors.curation.features.motion import MotionConfig
from actors.media.bars import NO_BARS
from actors.media.film import Film, VideoConfig
from actors.media.shot_detection.shots import ShotsConfig
from actors.media.vectors import Vectors
from tests.actors.media.test_vectors import MOVES, pan
from tests.support import films

FRAMES, RATE, SIZE = 38, 24, 120
STEPS = [6.0] * 6
"""Frames between two samples of a quarter of a second."""


def scenes(path: Path, flow: str = "vectors", windows: Windows = UNDIVIDED, **frames: Any) -> list[Row]:
    settings = VideoConfig(), FramesConfig(size=SIZE, **frames), ShotsConfig("none"), MotionConfig(flow=flow)  # pyright: ignore[reportArgumentType]
    rows = [row for row in cut(str(path), "v", None, frozenset(), *settings, windows) if row and row["scene_id"]]
    assert all(row["error"] == "" for row in rows)
    return rows


def scene(path: Path, flow: str = "vectors", **frames: Any) -> Row:
    [row] = scenes(path, flow, **frames)
    return row


def squeezed(path: Path, pictures: Iterable[np.ndarray], shape: Fraction) -> Path:
    """A film of 240×240 pixels that are that much wider than high."""
    with av.open(path, "w") as container:
        stream: Any = container.add_stream("libx264", rate=RATE, options={"crf": "18"})
        stream.pix_fmt, stream.sample_aspect_ratio, stream.width, stream.height = "yuv420p", shape, 240, 240
        for picture in pictures:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            container.mux(stream.encode(frame.reformat(format="yuv420p", threads=1)))
        container.mux(stream.encode())
    return path


def speed_of(moves: tuple[float, float], scale: float) -> float:
    return math.hypot(*moves) * STEPS[0] * scale


def test_a_pan_has_the_speed_of_its_pixels_as_sampled(tmp_path: Path):
    row = scene(films.written(tmp_path / "pan.mp4", pan(FRAMES)))
    assert row["computed"] == "motion: vectors" and row["no_frames"] == len(STEPS) + 1
    assert row["mean_velocity"] == pytest.approx(speed_of(MOVES, SIZE / 240), rel=0.1)
    assert row["mean_velocity"] <= row["max_velocity"] < 1.2 * row["mean_velocity"]
    far = scene(films.written(tmp_path / "far.mp4", pan(FRAMES, moves=(8, 4))))
    assert far["mean_velocity"] == pytest.approx(2 * row["mean_velocity"], rel=0.1)
    still = scene(films.written(tmp_path / "still.mp4", pan(FRAMES, moves=(0, 0))))
    assert still["mean_velocity"] == pytest.approx(0, abs=0.05)


def test_speeds_are_near_those_of_farneback(tmp_path: Path):
    path = films.written(tmp_path / "slow.mp4", pan(FRAMES, moves=(1, 1)))
    ours, theirs = scene(path), scene(path, "farneback")
    assert theirs["computed"] == ""
    for name in ("mean_velocity", "max_velocity"):
        assert ours[name] == pytest.approx(theirs[name], rel=0.15)
    # Nothing else of a row depends on it.
    assert ours["phash"] == theirs["phash"] and ours["max_rgb_diff"] == theirs["max_rgb_diff"]


def test_size_and_turn_of_the_film_make_no_difference(tmp_path: Path):
    plain = films.written(tmp_path / "plain.mp4", pan(FRAMES))
    wanted = scene(plain)["mean_velocity"]
    large = films.written(tmp_path / "large.mp4", pan(FRAMES, 480, 640, (8, 4)))
    assert scene(large)["mean_velocity"] == pytest.approx(wanted, rel=0.1)
    turned = scene(films.displayed(plain, tmp_path / "turned.mp4", (0, 1, -1, 0)))
    assert (turned["width"], turned["height"]) == (240, 320)
    assert turned["mean_velocity"] == pytest.approx(wanted, rel=1e-6)


def test_wide_pixels_move_as_far_as_they_are_shown(tmp_path: Path):
    path = squeezed(tmp_path / "wide.mp4", pan(FRAMES, 240, 240, (4, 0)), Fraction(4, 3))
    assert scene(path)["mean_velocity"] == pytest.approx(speed_of((4 * 4 / 3, 0), SIZE / 240), rel=0.1)


def test_only_what_is_inside_of_bars_and_of_the_square_counts(tmp_path: Path):
    def boxed() -> Iterator[np.ndarray]:
        return (films.blacked(picture, 60, 60, 0, 0) for picture in pan(FRAMES))

    path = films.written(tmp_path / "boxed.mp4", boxed())
    assert scene(path)["mean_velocity"] == pytest.approx(speed_of(MOVES, SIZE / 120), rel=0.15)
    # With half of it black: blocks there have the vectors that cost least, not all none.
    assert scene(path, crop_bars=False)["mean_velocity"] < 0.8 * speed_of(MOVES, SIZE / 240)

    def beside() -> Iterator[np.ndarray]:
        for still, moving in zip(pan(FRAMES, 240, 720, (0, 0)), pan(FRAMES, 240, 720), strict=True):
            yield np.concatenate([moving[:, :208], still[:, 208:512], moving[:, 512:]], 1)

    assert scene(films.written(tmp_path / "beside.mp4", beside()))["mean_velocity"] < 0.5


def test_films_without_vectors_have_farnebacks_speeds_and_say_so(tmp_path: Path):
    path = films.no_motion_vectors(tmp_path / "stills.avi")
    ours, theirs = scene(path), scene(path, "farneback")
    assert (ours["computed"], theirs["computed"]) == ("motion: farneback", "")
    for name in ("mean_velocity", "max_velocity"):
        assert ours[name] == pytest.approx(theirs[name], rel=1e-9)


def test_windows_of_a_shot_have_the_steps_between_their_own_samples(tmp_path: Path):
    def faster() -> Iterator[np.ndarray]:
        """Two speeds, of 48 frames each."""
        slow, fast = list(pan(48, moves=(1, 1))), list(pan(96, moves=(2, 2)))
        return iter([*slow, *fast[24:72]])

    path = films.written(tmp_path / "faster.mp4", faster())
    first, second = (row["mean_velocity"] for row in scenes(path, windows=Windows(8, 0, 4)))
    assert first == pytest.approx(speed_of((1, 1), SIZE / 240), rel=0.15)
    assert second == pytest.approx(speed_of((2, 2), SIZE / 240), rel=0.15)


@dataclass
class Sampled:
    time: float
    moved: Moved = field(default_factory=Moved)


class Anchor:
    """A picture all of whose one cell has moved by so much to the right, or has no vector."""

    def __init__(self, right: float | None) -> None:
        self._sums = np.zeros((1, 1, 3), np.float32)
        if right is not None:
            self._sums[0, 0] = 256 * right, 0, 256

    def vectors(self) -> Vectors:
        return Vectors(self._sums, 16, 16, 16)


def test_a_vector_is_shared_among_the_steps_that_it_spans():
    steps = [Sampled(0.0), Sampled(0.3), Sampled(0.6), Sampled(0.9), Sampled(1.2)]
    motion = CodecMotion()
    pictures: list[tuple[float, float | None]] = [(0.0, None), (0.2, 4.0), (0.8, 6.0), (0.9, None), (1.2, None)]
    for time, right in pictures:
        motion.add(Anchor(right), time, [step for step in steps if step.time <= time])  # pyright: ignore[reportArgumentType]
    film = Film(Fraction(25), None, 0, "", "", "", width=16, height=16)
    speeds = codec_speeds(steps, film, NO_BARS, 16)
    # 20 pixels a second until .2, then 10 until .8; of the last tenth of the third step nothing is known.
    assert speeds[:3] == pytest.approx([20 * 0.2 + 10 * 0.1, 10 * 0.3, 10 * 0.3], rel=1e-5)
    assert math.isnan(speeds[3])

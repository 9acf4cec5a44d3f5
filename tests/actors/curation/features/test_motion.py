"""Speeds and differences are those of neighbouring frames, in the units that they are said to have."""

import cv2
import numpy as np
import pytest

from actors.curation.cutting.cut import cut
from actors.curation.cutting.scenes import FramesConfig
from actors.curation.features.motion import FLOWS, MotionConfig, farneback_speeds, rgb_differences, scaled_speeds
from actors.media.film import VideoConfig
from actors.media.shot_detection.shots import ShotsConfig
from tests.support import films


def texture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Soft blobs, uint8 (height, width, 3)."""
    noise = np.random.default_rng(seed).normal(size=(height, width, 3))
    return np.clip(128 + 400 * cv2.GaussianBlur(noise, (0, 0), 3), 0, 255).astype(np.uint8)


def moved(shifts: list[tuple[int, int]], size: int = 240) -> np.ndarray:
    """A window on a texture, put at each of these places (y, x) in turn: uint8 (T, size, size, 3)."""
    whole = texture(size + 120, size + 120)
    return np.stack([whole[60 + y : 60 + y + size, 60 + x : 60 + x + size] for y, x in shifts])


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.argsort().argsort(), b.argsort().argsort())[0, 1])


def test_differences_against_a_slow_loop() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (4, 6, 5, 3), dtype=np.uint8)
    wanted = []
    for t in range(3):
        total = 0
        for y in range(6):
            for x in range(5):
                for channel in range(3):
                    total += (int(frames[t, y, x, channel]) - int(frames[t + 1, y, x, channel])) ** 2
        wanted.append(total / (6 * 5 * 3))
    assert rgb_differences(frames) == pytest.approx(wanted, rel=1e-12)


def test_differences_of_even_frames_are_squares() -> None:
    levels = [10, 13, 255, 0, 0]
    frames = np.stack([np.full((24, 24, 3), level, np.uint8) for level in levels])
    assert rgb_differences(frames) == pytest.approx([3**2, 242**2, 255**2, 0], rel=1e-12)


@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.parametrize(("y", "x"), [(0, 3), (4, 0), (3, -4), (-6, 8)])
def test_a_texture_that_moves_has_the_speed_of_its_shift(flow: str, y: int, x: int) -> None:
    [speed] = FLOWS[flow](moved([(0, 0), (y, x)]))
    assert speed == pytest.approx(np.hypot(y, x), rel=0.08)


@pytest.mark.parametrize("flow", FLOWS)
def test_what_stands_still_has_no_speed(flow: str) -> None:
    assert FLOWS[flow](moved([(0, 0)] * 3)) == pytest.approx([0, 0], abs=1e-3)


@pytest.mark.parametrize("flow", FLOWS)
def test_speed_is_measured_between_neighbours_not_from_the_first_frame(flow: str) -> None:
    steady = FLOWS[flow](moved([(0, 4 * i) for i in range(6)]))
    assert steady == pytest.approx(np.full(5, 4), rel=0.08)
    there_and_back = FLOWS[flow](moved([(0, 0), (0, 5), (0, 0), (0, 5)]))
    assert there_and_back == pytest.approx(np.full(3, 5), rel=0.08)


@pytest.mark.parametrize("flow", FLOWS)
def test_the_direction_of_time_hardly_matters(flow: str) -> None:
    frames = moved([(0, 0), (1, 3), (4, 5), (4, 9)])
    assert FLOWS[flow](frames[::-1])[::-1] == pytest.approx(FLOWS[flow](frames), rel=0.05)


@pytest.mark.parametrize("flow", FLOWS)
def test_a_mirrored_film_is_as_fast(flow: str) -> None:
    frames = moved([(0, 0), (1, 3), (4, 5), (4, 9)])
    assert FLOWS[flow](frames[:, :, ::-1]) == pytest.approx(FLOWS[flow](frames), rel=0.02)


@pytest.mark.parametrize("measure", [rgb_differences, farneback_speeds, scaled_speeds])
def test_one_frame_makes_no_pair(measure) -> None:
    assert measure(moved([(0, 0)])).shape == (0,)


def test_frames_are_left_as_they_are() -> None:
    frames = moved([(0, 0), (0, 2)])
    frames.flags.writeable = False
    before = frames.copy()
    for measure in (rgb_differences, farneback_speeds, scaled_speeds):
        measure(frames)
    assert np.array_equal(frames, before)


def test_the_scaled_flow_ranks_real_film_like_the_exact_one() -> None:
    exact, scaled = [], []
    for path in (films.bikes_mp4(), films.demo_mp4()):
        # Inside its bars one of the films has 99 lines, of which half the size is too little to rank by.
        sampling = FramesConfig(interval_ms=500, max=130, crop_bars=False)
        settings = VideoConfig(), sampling, ShotsConfig("none"), MotionConfig(flow="raft")
        row = next(row for row in cut(str(path), "v", None, frozenset(), *settings) if row)
        frames = row["frames"][:32]
        exact.append(farneback_speeds(frames))
        scaled.append(scaled_speeds(frames))
    assert rank_correlation(np.concatenate(exact), np.concatenate(scaled)) > 0.95


def test_the_flow_of_raft_is_left_to_those_who_hold_the_model() -> None:
    settings = VideoConfig(), FramesConfig(), ShotsConfig("none"), MotionConfig(flow="raft")
    row = next(row for row in cut(str(films.bikes_mp4()), "v", None, frozenset(), *settings) if row)
    assert row["no_frames"] == len(row["frames"]) and np.isnan(row["mean_velocity"]) and row["mean_rgb_diff"] > 0

"""Cuts are found where PySceneDetect finds them and where they are, and the score counts them fairly."""

from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
from scenedetect import AdaptiveDetector, ContentDetector, FrameTimecode, detect
from scenedetect.detector import FlashFilter

from actors.curation.cutting.cut import cut
from actors.curation.cutting.scenes import FramesConfig
from actors.curation.features.motion import MotionConfig
from actors.media.film import VideoConfig
from actors.media.shot_detection.cut_finder import CutFinder
from actors.media.shot_detection.shots import CutScore, ShotsConfig, score_cuts
from tests.support import films
from tests.support.data import FOLDER

BUNNY = FOLDER / "big_buck_bunny_60s.mp4"


def found_in(path: Path, rate: int, shots: ShotsConfig) -> list[int]:
    settings = VideoConfig(), FramesConfig(size=32), shots, MotionConfig(flow="scaled")
    rows = [row for row in cut(str(path), "v", None, frozenset(), *settings) if row and row["scene_id"]]
    return [round(row["start_s"] * rate) for row in rows][1:]


def find(finder: CutFinder, frames: list[np.ndarray], times: list[float]) -> list[int]:
    return [cut for frame, time in zip(frames, times, strict=True) for cut in finder.feed(frame, time)]


def wandering(length: int, seed: int) -> list[np.ndarray]:
    """Frames, uint8 (36, 64, 3), that change by little, and now and then by more or by much."""
    random = np.random.default_rng(seed)
    frames, frame = [], random.integers(0, 256, (36, 64, 3))
    for _ in range(length):
        strength = random.choice([4, 20, 60, 255], p=[0.8, 0.1, 0.05, 0.05])
        frame = np.clip(frame + random.integers(-strength, strength + 1, 3), 0, 255)
        frames.append(frame.astype(np.uint8))
    return frames


@pytest.mark.parametrize("threshold", [None, 2.0, 10.0])
@pytest.mark.parametrize("name", ["content", "adaptive"])
def test_the_quick_score_finds_the_cuts_of_pyscenedetect(name: str, threshold: float | None) -> None:
    detectors = {
        "content": ContentDetector(threshold or 27, min_scene_len=0),
        "adaptive": AdaptiveDetector(threshold or 3, min_scene_len=0),
    }
    frames = wandering(300, seed=1)
    finder = CutFinder(ShotsConfig(name, threshold, min_length_s=0))  # pyright: ignore[reportArgumentType]
    ours = find(finder, frames, [i / 25 for i in range(300)])
    detector = detectors[name]
    theirs = []
    for i, frame in enumerate(frames):
        found = detector.process_frame(FrameTimecode(i, Fraction(25)), cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        theirs += [cut.frame_num for cut in found]
    assert ours == theirs and len(ours) > 3


@pytest.mark.parametrize(("name", "delay"), [("content", 0), ("adaptive", 2)])
def test_a_cut_is_answered_within_the_delay(name: str, delay: int) -> None:
    finder = CutFinder(ShotsConfig(name, min_length_s=0))  # pyright: ignore[reportArgumentType]
    black, white = np.zeros((36, 64, 3), np.uint8), np.full((36, 64, 3), 255, np.uint8)
    answers = [finder.feed(frame, i / 25) for i, frame in enumerate([black] * 10 + [white] * 10)]
    assert finder.delay == delay
    assert [(i, cuts) for i, cuts in enumerate(answers) if cuts] == [(10 + delay, [10])]


@pytest.mark.parametrize("name", ["content", "adaptive"])
def test_the_shortest_shot_is_measured_in_time(name: str) -> None:
    """A flash of 0.5 s is no shot of its own, whether it has 12 frames or 2."""
    black, white = np.zeros((36, 64, 3), np.uint8), np.full((36, 64, 3), 255, np.uint8)
    for rate in (24, 4):
        flash = rate // 2
        frames = [black] * rate * 2 + [white] * flash + [black] * rate * 2
        times = [i / rate for i in range(len(frames))]
        config = ShotsConfig(name)  # pyright: ignore[reportArgumentType]
        assert find(CutFinder(config), frames, times) == [2 * rate]
        longer = [time * 1.2 for time in times]
        assert find(CutFinder(config), frames, longer) == [2 * rate, 2 * rate + flash]


@pytest.mark.slow
@pytest.mark.parametrize(("path", "rate"), [(films.bikes_mp4(), 25), (films.demo_mp4(), 24)], ids=["bikes", "demo"])
def test_real_film_is_cut_where_pyscenedetect_cuts_it(path: Path, rate: int) -> None:
    length = round(0.6 * rate) + 1
    suppress = FlashFilter.Mode.SUPPRESS
    for name, detector in (
        ("content", ContentDetector(min_scene_len=length, filter_mode=suppress)),
        ("adaptive", AdaptiveDetector(min_scene_len=length)),
    ):
        theirs = [start.frame_num for start, _ in detect(str(path), detector)][1:]
        ours = found_in(path, rate, ShotsConfig(name))  # pyright: ignore[reportArgumentType]
        assert score_cuts(ours, theirs).f1 > 0.97


@pytest.mark.skipif(not BUNNY.exists(), reason=f"the film {BUNNY.name} is not there; it is no part of the project")
@pytest.mark.parametrize("name", ["content", "adaptive"])
def test_an_animated_film(name: str) -> None:
    found = found_in(BUNNY, 24, ShotsConfig(name))  # pyright: ignore[reportArgumentType]
    score = score_cuts(found, [285, 378, 553, 1145, 1346], fades=[(0, 60)], tolerance=0)
    assert (score.f1, score.hits) == (1, 5)


@pytest.mark.parametrize(
    ("found", "annotated", "fades", "wanted"),
    [
        ([10, 20], [10, 20], [], (1, 1, 1, 2)),
        ([9, 21], [10, 20], [], (1, 1, 1, 2)),
        ([8, 22], [10, 20], [], (0, 0, 0, 0)),
        ([10, 15, 20, 25], [10, 20], [], (0.5, 1, 2 / 3, 2)),
        ([10], [10, 20, 30, 40], [], (1, 0.25, 0.4, 1)),
        # Each annotated cut is hit once.
        ([9, 10, 11], [10], [], (1 / 3, 1, 0.5, 1)),
        # Either of two could be hit by the same cut; both count where both were found.
        ([10, 11], [11, 12], [], (1, 1, 1, 2)),
        ([11, 12], [10, 11], [], (1, 1, 1, 2)),
        ([20, 10], [20, 10], [], (1, 1, 1, 2)),
        # What is found inside a fade counts neither way, its ends included.
        ([10, 30, 35, 40], [10], [(30, 40)], (1, 1, 1, 1)),
        ([10, 29, 41], [10], [(30, 40)], (1 / 3, 1, 0.5, 1)),
        ([], [], [], (1, 1, 1, 0)),
        ([35], [], [(30, 40)], (1, 1, 1, 0)),
        ([], [10], [], (1, 0, 0, 0)),
        ([10], [], [], (0, 1, 0, 0)),
    ],
)
def test_score(
    found: list[int], annotated: list[int], fades: list[tuple[int, int]], wanted: tuple[float, float, float, int]
) -> None:
    score = score_cuts(found, annotated, fades)
    assert (score.precision, score.recall, score.f1, score.hits) == pytest.approx(wanted)
    assert score.annotated == len(annotated)


def test_the_tolerance_can_be_chosen() -> None:
    assert score_cuts([10, 20], [13, 20], tolerance=3) == CutScore(1, 1, 1, 2, 2, 2)
    assert score_cuts([10, 20], [11, 20], tolerance=0).hits == 1

"""Copies of a scene have hashes that are close, whatever was done to them; different scenes have not."""

from collections.abc import Callable, Iterable
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from actors.core.stage import Row
from actors.curation.cutting.cut import cut
from actors.curation.cutting.scenes import FramesConfig
from actors.curation.features.motion import MotionConfig
from actors.curation.features.perceptual_hash import HASH_BYTES, frame_hash, scene_hash
from actors.media.film import VideoConfig
from actors.media.shot_detection.shots import ShotsConfig
from tests.support.films import BIKES_CUTS, bikes_mp4, film, samples_folder, truncated

COPIES = ("mkv", "flv", "rm", "mpg", "vob", "webm", "wmv", "swf")
"""One film in as many containers, with five codecs."""
TAKES = (64, 110, 398, 667, 707, 742, 925, 961, 1026, 1122, 1190, 1302)
"""Where some of its shots begin: the 28 frames from there are no other's."""


def distance(a: bytes | None, b: bytes | None) -> int:
    """In how many bits two hashes differ."""
    assert a and b and len(a) == len(b) == HASH_BYTES
    return (int.from_bytes(a, "big") ^ int.from_bytes(b, "big")).bit_count()


def scenes(path: Path, cuts: Iterable[tuple[int, int]]) -> list[Row]:
    """The rows of these scenes of a film, each its first frame and the one after its last."""
    parts = [
        {"clip_id": "a.0", "scene_id": f"a.0_{i}", "ordinal": i, "caption": "", "first": first, "end": end}
        for i, (first, end) in enumerate(cuts)
    ]
    spans = [{"start_s": 0.0, "end_s": None, "scenes": parts}]
    settings = (VideoConfig(), FramesConfig(), ShotsConfig(), MotionConfig(flow="raft"))
    return [row for row in cut(str(path), "a", spans, frozenset(), *settings) if row and row["scene_id"]]


def demo(container: str) -> list[Row]:
    return scenes(samples_folder() / f"demo.{container}", [(first, first + 28) for first in TAKES])


@pytest.fixture(scope="module")
def takes() -> list[Row]:
    """Scenes of two films, each of another shot."""
    return [*demo("mp4"), *scenes(bikes_mp4(), pairwise([0, *BIKES_CUTS, 250]))]


@pytest.mark.parametrize("container", COPIES)
def test_another_container_and_codec_hardly_change_a_hash(takes: list[Row], container: str) -> None:
    far = [distance(a["phash"], b["phash"]) for a, b in zip(takes, demo(container), strict=False)]
    assert max(far) <= 8, far


def test_different_shots_are_far_apart(takes: list[Row]) -> None:
    far = [distance(a["phash"], b["phash"]) for a, b in combinations(takes, 2)]
    assert min(far) > 17
    assert np.median(far) == pytest.approx(96, abs=10)


def _jpeg(frame: np.ndarray) -> np.ndarray:
    coded: Any = cv2.imdecode(cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, 10])[1], cv2.IMREAD_COLOR)
    return coded


CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "half the size": lambda frame: cv2.resize(frame, (120, 120), interpolation=cv2.INTER_AREA),
    "JPEG of quality 10": _jpeg,
    "brighter by 20": lambda frame: cv2.add(frame, np.full_like(frame, 20)),
    "four fifths of the contrast": lambda frame: (frame * 0.8).astype(np.uint8),
    "darker mid-tones": lambda frame: (255 * (frame / 255) ** 1.3).astype(np.uint8),
    "2 % cropped": lambda frame: frame[2:-2, 2:-2],
}


@pytest.mark.parametrize("change", CHANGES)
def test_mild_changes_of_the_picture_change_few_bits(takes: list[Row], change: str) -> None:
    far = []
    for row in takes:
        changed = np.stack([CHANGES[change](frame) for frame in row["frames"]])
        far.append(distance(row["phash"], scene_hash(changed)))
    assert max(far) <= 17, sorted(far)


NOISE = np.random.default_rng(0)
BLACK, GREY = (np.full((240, 240, 3), level, np.uint8) for level in (0, 128))
EMPTY = {
    "black": BLACK,
    "grey": GREY,
    "a noisy black": NOISE.integers(0, 12, (240, 240, 3), dtype=np.uint8),
    "a grain on grey": np.clip(NOISE.normal(128, 10, (240, 240, 3)), 0, 255).astype(np.uint8),
    "a slope": np.repeat(np.tile(np.linspace(0, 255, 240).astype(np.uint8), (240, 1))[..., None], 3, axis=2),
}


@pytest.mark.parametrize("name", EMPTY)
def test_a_frame_that_shows_nothing_has_no_hash(name: str) -> None:
    assert frame_hash(EMPTY[name]) is None
    assert scene_hash(np.stack([EMPTY[name]] * 5)) is None


def test_another_frame_stands_in_for_one_that_shows_nothing(takes: list[Row]) -> None:
    shown = takes[-5]["frames"]
    first, middle, last = (frame_hash(shown[i]) or b"" for i in (0, len(shown) // 2, -1))
    assert len({first, middle, last}) == 3
    assert scene_hash(np.stack([BLACK, shown[0], GREY])) == first * 3
    assert scene_hash(np.stack([BLACK, shown[len(shown) // 2], shown[-1]])) == middle * 2 + last
    assert scene_hash(np.stack([shown[0], shown[len(shown) // 2], BLACK])) == first + middle * 2
    assert scene_hash(np.stack([shown[0], BLACK, shown[-1]])) == first * 2 + last


def test_white_words_on_black_have_a_hash_of_their_own() -> None:
    cards = []
    for words in ("The end", "Chapter", "1924"):
        card = cv2.putText(BLACK.copy(), words, (60, 120), cv2.FONT_HERSHEY_SIMPLEX, 1, (255, 255, 255), 2)
        cards.append(scene_hash(np.stack([BLACK, card, BLACK])))
    assert min(distance(a, b) for a, b in combinations(cards, 2)) > 17


def test_any_size_and_a_single_frame_have_a_hash(takes: list[Row]) -> None:
    frame = takes[0]["frames"][0]
    for size in (16, 33, 120, 241):
        small = cv2.resize(frame, (size, size), interpolation=cv2.INTER_AREA)
        assert len(scene_hash(small[None]) or b"") == HASH_BYTES


def test_what_was_not_measured_has_no_hash(tmp_path: Path) -> None:
    [still] = scenes(film(tmp_path / "short.mp4", shots=(4,)), [(0, 4)])
    assert still["no_frames"] == 1 and still["phash"] is None
    [lost] = scenes(truncated(tmp_path / "torn.mp4"), [(0, -1)])
    assert lost["error"] == "truncated" and lost["phash"] is None

"""Cuts, dissolves and fades between real shots are found where they were drawn, and belong to no shot."""

from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from actors.core.errors import BrokenRunError, UserError
from actors.curation.cutting.cut import cut
from actors.curation.cutting.scenes import FramesConfig
from actors.curation.features.motion import MotionConfig
from actors.media.film import VideoConfig, open_film
from actors.media.shot_detection.in_shots import in_shots
from actors.media.shot_detection.shots import BETWEEN, ShotsConfig
from actors.media.shot_detection.transitions import TransitionFinder, shrunk
from actors.media.shot_detection.transnet import TransNet
from tests.support import films

RATE = 25
SHOT = 40
"""Frames of a shot that are shown whole."""


@pytest.fixture(scope="module")
def shots() -> list[list[np.ndarray]]:
    """Real shots: frames float32 (136, 320, 3)."""
    with av.open(films.bikes_mp4()) as container:
        frames = [frame.reformat(320, 136, "rgb24").to_ndarray() for frame in container.decode(video=0)]
    edges = [0, *(last + 1 for last in films.BIKES_CUTS), len(frames)]
    return [[frame.astype(np.float32) for frame in frames[a + 1 : b - 1]] for a, b in pairwise(edges) if b - a > 40]


def join(before: list[np.ndarray], after: list[np.ndarray], kind: str, length: int) -> tuple[list[np.ndarray], int]:
    """Frames from one shot to the next, and how many of them are of the transition."""
    out, into = before[SHOT - 10 :], after[:length]
    mixed = [before[-1]] * length
    weights = [(k + 1) / (length + 1) for k in range(length)]
    if kind == "dissolve":
        return [a * (1 - w) + b * w for a, b, w in zip(mixed, into, weights, strict=True)], length
    colour = np.full_like(out[0], 255 if kind == "white" else 0)
    fade = [a * (1 - w) + colour * w for a, w in zip(mixed, weights, strict=True)] + [colour] * 4
    return fade + [colour * (1 - w) + b * w for b, w in zip(into, weights, strict=True)], 2 * length + 4


def written(path: Path, frames: list[np.ndarray], rate: int = RATE) -> Path:
    return films.written(path, (np.clip(np.rint(frame), 0, 255).astype(np.uint8) for frame in frames), rate, crf=20)


def drawn(path: Path, shots: list[list[np.ndarray]], kind: str, length: int, rate: int = RATE) -> tuple[Path, int, int]:
    """A film of two shots; and the first frame of the transition between them, and the first after it."""
    before, after = shots[1][:SHOT], shots[3]
    between, count = join(before, after, kind, length) if kind != "cut" else ([], 0)
    frames = before + between + after[length if kind != "cut" else 0 :]
    return written(path, frames, rate), SHOT, SHOT + count


def numbers(path: Path, **settings: Any) -> list[int]:
    return [number for number, _ in in_shots(open_film(str(path)), ShotsConfig(**settings))]


@pytest.fixture(scope="module")
def transition(request: Any, shots: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, int, int]:
    """A kind of transition, and what `drawn` says of a film with it."""
    kind, length = request.param
    return kind, *drawn(tmp_path_factory.mktemp(kind) / "film.mp4", shots, kind, length)


@pytest.mark.slow
@pytest.mark.parametrize("detector", ["gradual", "hybrid", "transnetv2"])
@pytest.mark.parametrize(
    "transition", [("cut", 0), ("dissolve", 12), ("dissolve", 20), ("black", 10), ("white", 10)], ids=str, indirect=True
)
def test_a_transition_between_real_shots(transition: tuple[str, Path, int, int], detector: str) -> None:
    kind, path, first, end = transition
    found = numbers(path, detector=detector)
    assert found[: first - 4] == [0] * (first - 4) and found[end + 4 :] == [1] * (len(found) - end - 4)
    if kind == "cut":
        assert found.index(1) == first and BETWEEN not in found
    else:
        # What is hardly mixed may be missed; the rest is of no shot.
        assert set(found[first + 3 : end - 3]) == {BETWEEN}


def test_a_dissolve_in_which_something_moves_is_asked_about() -> None:
    """By eye it lasts from frame 104 to 130; motion leaves the line on which the frames of a mix lie."""

    def near(detector: Any) -> list[int]:
        found = in_shots(open_film(str(films.demo_mp4())), ShotsConfig(detector))
        return [number for number, _ in islice(found, 150)][100:135]

    assert BETWEEN not in near("gradual")
    assert near("hybrid").count(BETWEEN) >= 8


def test_a_film_of_many_frames_a_second(tmp_path: Path, shots: Any) -> None:
    twice = [[frame for frame in shot for _ in range(2)] for shot in shots]
    before, after = twice[1][: 2 * SHOT], twice[3]
    between, count = join(before, after, "dissolve", 24)
    path = written(tmp_path / "film.mp4", before + between + after[24:], rate=50)
    found = numbers(path)
    assert set(found[2 * SHOT + 6 : 2 * SHOT + count - 6]) == {BETWEEN} and found[-1] == 1


def test_without_trimming_the_next_shot_starts_in_the_middle(tmp_path: Path, shots: Any) -> None:
    path, first, end = drawn(tmp_path / "film.mp4", shots, "dissolve", 12)
    found = numbers(path, trim_transitions=False)
    assert BETWEEN not in found and abs(found.index(1) - (first + end) / 2) <= 2


def test_nothing_is_found_where_nothing_is(tmp_path: Path, shots: Any) -> None:
    """A flash, a title that comes and goes, and a shot that moves fast."""
    still = [shots[2][5]] * 60
    flash = [*still[:20], still[0] * 0 + 255, *still]
    title = []
    for k in range(60):
        frame = still[0].copy()
        text = np.zeros_like(frame)
        cv2.putText(text, "A TITLE", (90, 75), cv2.FONT_HERSHEY_SIMPLEX, 1.2, (255, 255, 255), 6)
        title.append(np.maximum(frame, text * min(1.0, max(0.0, (k - 15) / 12))))
    wide = np.hstack([shots[0][5], shots[1][5], shots[2][5]])
    pan = [wide[:, 8 * k : 8 * k + 320] for k in range(60)]
    for name, frames in (("flash", flash), ("title", title), ("pan", pan)):
        assert set(numbers(written(tmp_path / f"{name}.mp4", frames))) == {0}, name


def test_black_at_either_end_of_a_fade_is_of_no_shot(tmp_path: Path, shots: Any) -> None:
    black = [shots[1][0] * 0] * 20
    fade_in = [shots[1][k] * ((k + 1) / 13) for k in range(12)]
    fade_out = [shots[1][12 + SHOT - 20] * (1 - (k + 1) / 13) for k in range(12)]
    path = written(tmp_path / "film.mp4", black + fade_in + shots[1][12:SHOT] + fade_out + black)
    found = numbers(path)
    assert set(found[:29]) == set(found[-29:]) == {BETWEEN} and set(found[36:56]) == {0}


def test_a_film_with_nothing_on_it_stays_a_shot(tmp_path: Path, shots: Any) -> None:
    assert set(numbers(written(tmp_path / "film.mp4", [shots[0][0] * 0] * 60))) == {0}


def rows_of(path: Path, spans: list[dict[str, Any]] | None, shots: ShotsConfig) -> list[dict[str, Any]]:
    settings = VideoConfig(), FramesConfig(size=32), shots, MotionConfig(flow="scaled")
    return [row for row in cut(str(path), "v", spans, frozenset(), *settings) if row]


def test_rows_say_what_was_left_out(tmp_path: Path, shots: Any) -> None:
    path, first, end = drawn(tmp_path / "film.mp4", shots, "dissolve", 12)
    before, after, film = rows_of(path, None, ShotsConfig())
    assert film["scenes"] == 2 and not film["error"]
    left_out = before["trimmed_after_s"]
    assert left_out == pytest.approx(after["trimmed_before_s"]) == pytest.approx((end - first) / RATE, abs=5 / RATE)
    assert before["end_s"] + left_out == pytest.approx(after["start_s"])
    assert (before["trimmed_before_s"], after["trimmed_after_s"]) == (0, 0)


def test_a_film_that_is_one_transition_says_so(tmp_path: Path, shots: Any) -> None:
    black = [shots[1][0] * 0] * 10
    fades = [shots[1][k] * (min(k + 1, 24 - k) / 13) for k in range(24)]
    (film,) = rows_of(written(tmp_path / "film.mp4", black + fades + black), None, ShotsConfig())
    assert (film["scenes"], film["error"]) == (0, "no_shot")


@pytest.mark.parametrize("detector", ["gradual", "adaptive"])
def test_cuts_inside_a_named_scene_are_told(tmp_path: Path, shots: Any, detector: Any) -> None:
    path, first, _ = drawn(tmp_path / "film.mp4", shots, "cut", 0)
    parts = [(0, 20), (20, -1), (first, -1)]
    scenes = [
        {"clip_id": "c", "scene_id": f"c_{i}", "ordinal": i, "caption": "", "first": a, "end": b}
        for i, (a, b) in enumerate(parts)
    ]
    span = {"start_s": 0.0, "end_s": None, "scenes": scenes}
    rows = {row["scene_id"]: row for row in rows_of(path, [span], ShotsConfig(detector, check_named=True))}
    assert [rows[f"c_{i}"]["cuts_inside"] for i in range(3)] == ["", f"{first / RATE:.3f}", ""]
    plain = {row["scene_id"]: row for row in rows_of(path, [span], ShotsConfig(detector))}
    assert all(row["cuts_inside"] == "" for row in plain.values())
    for name in ("c_0", "c_1", "c_2"):
        assert (plain[name]["frames"] == rows[name]["frames"]).all() and not rows[name]["error"]
        assert all(plain[name][what] == rows[name][what] for what in ("start_s", "end_s", "no_frames", "phash"))


def test_a_transition_is_answered_within_the_delay(shots: Any) -> None:
    before, after = shots[1][:SHOT], shots[3]
    for rate in (25, 60):
        finder = TransitionFinder(rate)
        for kind, length in (("cut", 0), ("dissolve", 12), ("black", 12)):
            between = join(before, after, kind, length)[0] if length else []
            for frame in [*before, *between, *after[length:]]:
                index = finder._count
                found = finder.feed(shrunk(frame.astype(np.uint8)))
                assert all(one.first >= index - finder.delay for one in found)


def moving(seed: int, speed: int, count: int = 12) -> list[np.ndarray]:
    """A drawn scene, float (27, 48, 3), that passes by so many pixels a frame."""
    scene = np.random.default_rng(seed).integers(0, 256, (7, 60, 3)).astype(np.float32)
    wide = cv2.GaussianBlur(cv2.resize(scene, (480, 27), interpolation=cv2.INTER_CUBIC), (0, 0), 2).clip(0, 255)
    return [wide[:, speed * i : speed * i + 48] for i in range(count)]


def cuts(frames: list[np.ndarray], **settings: Any) -> list[int]:
    finder = TransitionFinder(25, **settings)
    found = [one for frame in frames for one in finder.feed(frame.astype(np.uint8))] + finder.rest()
    return [one.end for one in found if one.first == one.end]


def test_a_cut_into_or_out_of_fast_motion_is_found() -> None:
    for seed in range(0, 20, 2):
        still, fast = moving(seed, 0), moving(seed + 1, 5)
        for frames in (still + fast, fast[::-1] + still):
            assert cuts(frames) == [12]
    hard = [cuts(moving(seed, 0) + moving(seed + 1, 5), one_sided=False) for seed in range(0, 20, 2)]
    assert [] in hard, "some of them change too much afterwards to be found by the changes about them alone"


def test_what_begins_to_move_or_comes_back_is_no_cut() -> None:
    for seed in range(20):
        still, passing = moving(seed, 0), moving(seed, 5)
        assert cuts(still + passing) == []
        # What is shown for a frame goes on as a mix that is nearer to what was before.
        other = moving(seed + 100, 0)[0]
        assert cuts(still + [other] + 3 * [0.6 * still[0] + 0.4 * other] + still) == []


def test_weights_of_ones_own_are_loaded(tmp_path: Path, shots: Any) -> None:
    frames = np.stack([shrunk(frame.astype(np.uint8)) for frame in shots[1][:50]])
    packaged = TransNet()
    state = packaged._network.state_dict()
    save_file({name: value.contiguous() for name, value in state.items()}, tmp_path / "same.safetensors")
    zeros = {name: value * 0 if name.startswith("cls_layer") else value for name, value in state.items()}
    torch.save(zeros, tmp_path / "zeros.pth")
    assert TransNet(str(tmp_path / "same.safetensors"))(frames) == pytest.approx(packaged(frames), abs=1e-6)
    assert TransNet(str(tmp_path / "zeros.pth"))(frames) == pytest.approx(0.5)


def test_weights_of_another_network_end_the_run(tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("no weights")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pth")
    for name in ("text.pth", "other.pth", "gone.safetensors"):
        with pytest.raises(BrokenRunError, match=r"no weights of TransNet V2"):
            TransNet(str(tmp_path / name))


def test_a_network_that_is_not_there_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no such file"):
        ShotsConfig("hybrid", weights=str(tmp_path / "none.pth"))
    monkeypatch.setattr("actors.media.shot_detection.shots.find_spec", lambda name: None)
    for detector in ("hybrid", "transnetv2"):
        with pytest.raises(UserError, match=r"shots\.detector=.* needs the extra `transnetv2`"):
            ShotsConfig(detector)
    ShotsConfig("gradual")

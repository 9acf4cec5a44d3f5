"""Small files that unfold large cost their own row, in bounded memory and time; the film after them is sound."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.core.child import Child, ChildFault
from actors.core.errors import UserError
from actors.core.stage import Row
from actors.curation.cutting.cut import CutConfig, cut
from actors.curation.cutting.scenes import UNDIVIDED, FramesConfig
from actors.curation.cutting.videos import cut_videos
from actors.curation.exporting.clips import ClipsConfig, write_clips
from actors.curation.features.motion import MotionConfig
from actors.media import limits
from actors.media.film import FilmError, VideoConfig
from actors.media.limits import FilmStage, beyond
from actors.media.shot_detection.shots import ShotsConfig
from actors.media.sound_spans import sound_of
from tests.support import bombs, films

MOST = 400 << 20
"""Bytes that a process may have had when it has met a film that is refused; Python with its libraries takes 80 MB."""
SETTINGS = FramesConfig(size=60), ShotsConfig(), MotionConfig(flow="scaled")


@pytest.fixture(scope="module")
def child() -> Iterator[Child]:
    child = Child()
    yield child
    child.kill()


def peak(child: Child) -> int:
    """The most memory that a child has had, in bytes."""
    assert child._process is not None
    told = Path(f"/proc/{child._process.pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", told)
    assert found
    return int(found[1]) << 10


def rows_of(child: Child, path: Path, **video: Any) -> list[Row]:
    config = VideoConfig(stall_s=30, **video)
    return list(child.stream(cut, str(path), "v", None, frozenset(), config, *SETTINGS, **config.limits))


@pytest.mark.parametrize("name", bombs.TOO_LARGE)
def test_a_film_that_is_too_large_by_its_header_is_told_and_costs_no_memory(
    child: Child, tmp_path: Path, name: str
) -> None:
    path = bombs.TOO_LARGE[name](tmp_path / name)
    assert path.stat().st_size < 8 << 20
    [film] = rows_of(child, path)
    assert film["error"] == "too_large", film["message"]
    assert peak(child) < MOST
    scene, film = rows_of(child, films.film(tmp_path / "good.mp4", (24,)))
    assert scene["error"] == film["error"] == "" and scene["no_frames"] == 4


@pytest.mark.parametrize("name", bombs.SOUND)
def test_what_is_absurd_beside_the_pictures_does_not_harm_them(child: Child, tmp_path: Path, name: str) -> None:
    scene, film = rows_of(child, bombs.SOUND[name](tmp_path / name))
    assert scene["error"] == film["error"] == "" and film["decoded"] == 48
    assert peak(child) < MOST


def test_sound_that_is_absurd_has_no_pictures(child: Child, tmp_path: Path) -> None:
    [film] = rows_of(child, bombs.wav(tmp_path / "sound.wav"))
    assert film["error"] in ("not_a_video", "no_video_stream") and peak(child) < MOST


@pytest.mark.parametrize("name", ["rate.mkv", "slow.mkv", "channels.mkv"])
def test_absurd_sound_is_neither_measured_nor_written(tmp_path: Path, name: str) -> None:
    path = str(bombs.SOUND[name](tmp_path / name))
    with pytest.raises(FilmError, match=r"its sound has \d+ channels of \d+ Hz") as error:
        list(sound_of(path, [(0.0, 1.0)]))
    assert error.value.code == "too_large"
    wanted = [{"scene_id": "a", "start_s": 0.0, "end_s": 1.0}]
    [row] = [row for row in write_clips(path, wanted, str(tmp_path), ClipsConfig(crop_bars=False), None) if row]
    assert row["error"] == "too_large" and not list(tmp_path.glob("*.mp4"))


def test_pictures_that_outgrow_the_bound_cost_the_scene_that_shows_them(child: Child, tmp_path: Path) -> None:
    path = bombs.large(tmp_path / "film.mov", 12_032, small=30, frames=10)
    scene, film = rows_of(child, path)
    assert scene["error"] == "too_large" and "max_pixels" in scene["message"]
    assert film["error"] == "" and film["decoded"] == 40 and peak(child) < MOST


@pytest.mark.slow
def test_a_film_that_takes_more_memory_is_ended_and_the_next_one_is_sound(tmp_path: Path) -> None:
    """Each picture is allowed, but so many that wait for their shot are not."""
    child = Child()
    path = bombs.large(tmp_path / "film.mov")
    with pytest.raises(ChildFault, match=r"took \d\.\d GiB of memory, and memory_gb allows 0\.5 GiB") as fault:
        rows_of(child, path, memory_gb=0.5)
    assert fault.value.code == "too_large" and fault.value.attempts == 1
    # How much it had grown when it was ended: a look every tenth of a second is often enough.
    assert child._grown < 1.5 * 2**30
    scene, _ = rows_of(child, films.film(tmp_path / "good.mp4", (24,)), memory_gb=0.5)
    assert scene["error"] == ""
    child.kill()


def test_a_film_that_takes_more_memory_is_a_row(tmp_path: Path) -> None:
    paths = [bombs.large(tmp_path / "film.mov"), films.film(tmp_path / "good.mp4", (24,))]
    names = ("video_index", "video_id", "url", "spans", "skip")
    rows = [(number, path.name, str(path), "", "[]") for number, path in enumerate(paths)]
    batch = {name: np.array(column, object) for name, column in zip(names, zip(*rows, strict=True), strict=True)}
    config = CutConfig(VideoConfig(memory_gb=0.5), *SETTINGS, UNDIVIDED)
    made = [
        {name: made[name][i] for name in ("video_id", "scene_id", "error", "step")}
        for made in cut_videos(batch, config)
        for i in range(len(made["video_id"]))
    ]
    assert made[0] == {"video_id": "film.mov", "scene_id": "", "error": "too_large", "step": "cut"}
    assert [row["error"] for row in made[1:]] == ["", ""]


@pytest.mark.parametrize(
    ("size", "most", "told"),
    [
        ((100, 100), 10_000, ""),
        ((100, 101), 10_000, "more than max_pixels"),
        ((256, 1), 10_000, ""),
        ((257, 1), 10_000, "times as long as wide"),
        ((1, 257), 10_000, "times as long as wide"),
        ((0, 5), 10_000, "times as long as wide"),
        ((65_501, 300), 1 << 30, "longer than"),
        ((300, 65_500), 1 << 30, ""),
    ],
)
def test_bounds_of_what_is_shown(size: tuple[int, int], most: int, told: str) -> None:
    why = beyond(*size, most, limits.MAX_SIDE)
    assert why.endswith(told) if not told else told in why
    assert bool(why) is bool(told)


@pytest.mark.parametrize(
    ("stage", "gb"),
    [
        (FilmStage(workers=0), 4),  # half of 32 GiB for four CPUs
        (FilmStage(workers=0, num_cpus=2), 8),
        (FilmStage(workers=2), 8),
        (FilmStage(workers=16), 4),
        (FilmStage(workers=1), 16),
        (FilmStage(workers=0, num_cpus=0.25), 2),  # at least
        (FilmStage(workers=0, num_cpus=0.25, num_gpus=0.1), 4),
        (FilmStage(workers=0, memory_gb=1.5), 1.5),
    ],
)
def test_memory_by_default_is_a_share_of_the_machine(
    stage: FilmStage, gb: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits.machine, "memory_bytes", lambda: 32 << 30)
    monkeypatch.setattr(limits.machine, "cpus", lambda: 4.0)
    assert stage.memory_bytes == gb * 2**30


def test_processes_of_one_film_share_what_it_may_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits.machine, "memory_bytes", lambda: 32 << 30)
    monkeypatch.setattr(limits.machine, "cpus", lambda: 4.0)
    assert FilmStage(memory_gb=4).limits_of(4)["memory_bytes"] == 1 << 30
    assert FilmStage(workers=0, num_cpus=4).limits_of(4)["memory_bytes"] == 4 << 30
    assert FilmStage(workers=1, num_cpus=4).limits_of(4)["memory_bytes"] == 4 << 30


@pytest.mark.parametrize("wrong", [{"max_pixels": 0}, {"memory_gb": -1.0}, {"memory_gb": float("inf")}])
def test_bounds_that_mean_nothing_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="max_pixels must be at least 1"):
        FilmStage(**wrong)

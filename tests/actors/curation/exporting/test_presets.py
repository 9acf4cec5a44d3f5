"""Clips for a model: the right moments at a constant rate, in sizes and lengths that it takes, never stretched."""

import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from actors.core.errors import UserError
from actors.curation.exporting.presets import Bucket, Preset, buckets_of, write_fitted
from tests.support import films

SMALL = Preset(fps=16, frames=(9, 17, 33), sizes=((128, 96), (96, 128), (64, 48)))


def written(source: Path, folder: Path, buckets: list[Bucket], fps: float = 16) -> list[list[np.ndarray]]:
    paths = [str(folder / f"{i}.mp4") for i in range(len(buckets))]
    assert list(write_fitted(str(source), paths, buckets, fps)) == paths
    found = []
    for path, bucket in zip(paths, buckets, strict=True):
        with av.open(path) as clip:
            stream = clip.streams.video[0]
            assert not clip.streams.audio and stream.average_rate == Fraction(fps).limit_denominator(1001)
            assert (stream.width, stream.height, stream.frames) == (bucket.width, bucket.height, bucket.frames)
            assert (stream.sample_aspect_ratio or 1) == 1 and stream.codec_context.pix_fmt == "yuv420p"
            frames = list(clip.decode(stream))
        assert [frame.time for frame in frames] == pytest.approx([k / fps for k in range(bucket.frames)], abs=1e-4)
        found.append([frame.to_ndarray(format="rgb24") for frame in frames])
    return found


@pytest.mark.parametrize(
    ("size", "seconds", "expected"),
    [
        ((160, 120), 1.0, ["128x96x9"]),
        ((160, 120), 33 / 16, ["128x96x33"]),
        # 17 of 64 frames: 33 + 17 + 9, and 5 are left.
        ((160, 120), 4.0, ["128x96x33", "128x96x17", "128x96x9"]),
        ((120, 160), 1.1, ["96x128x17"]),
        # Of one shape the largest that needs no enlarging.
        ((100, 75), 1.1, ["64x48x17"]),
        ((160, 120), 0.5, "too_short"),
        ((60, 40), 5.0, "too_small"),
    ],
)
def test_the_buckets_of_a_scene(size: tuple[int, int], seconds: float, expected: Any) -> None:
    found = buckets_of(SMALL, *size, seconds)
    assert (found if isinstance(found, str) else [str(bucket) for bucket in found]) == expected


def test_small_scenes_are_enlarged_on_request() -> None:
    large = Preset(fps=16, frames=(9,), sizes=((128, 96),), upscale=True)
    assert buckets_of(large, 60, 40, 1.0) == [Bucket(128, 96, 9)]


def test_frames_are_those_of_their_moments_across_all_clips_of_a_scene(tmp_path: Path) -> None:
    source = films.film(tmp_path / "clip.mp4", (96,))
    buckets = buckets_of(SMALL, *films.SIZE, 4.0)
    assert isinstance(buckets, list)
    stamps = [films.read_stamp(frame) for clip in written(source, tmp_path, buckets) for frame in clip]
    assert stamps == [k * 24 // 16 for k in range(33 + 17 + 9)]


def test_a_variable_rate_becomes_constant_by_presentation_time(tmp_path: Path) -> None:
    path, times = films.variable_rate(tmp_path / "clip.mp4")
    [frames] = written(path, tmp_path, [Bucket(128, 96, 113)])
    expected = [int(np.searchsorted(times, k / 16 + 1e-4, side="right")) - 1 for k in range(113)]
    assert [films.read_stamp(frame) for frame in frames] == expected


@pytest.mark.parametrize("fps", [8, 23.976, 30])
def test_any_rate(tmp_path: Path, fps: float) -> None:
    source = films.film(tmp_path / "clip.mp4", (48,))
    count = int(2 * fps)
    [frames] = written(source, tmp_path, [Bucket(64, 48, count)], fps)
    rate = float(Fraction(fps).limit_denominator(1001))
    assert [films.read_stamp(frame) for frame in frames] == [int(k / rate * 24 + 0.003) for k in range(count)]


@pytest.mark.parametrize("kind", ["wide", "tall", "anamorphic", "full range"])
def test_pictures_are_cropped_about_the_centre_and_never_stretched(tmp_path: Path, kind: str) -> None:
    if kind == "anamorphic":
        source = films.film(tmp_path / "clip.mp4", (12,), size=(160, 120), pixel_shape=Fraction(4, 3))
    elif kind == "full range":
        source = films.film(tmp_path / "clip.mp4", (12,), size=(160, 120), pixels="yuvj420p")
    else:
        source = films.film(tmp_path / "clip.mp4", (12,), size=(320, 120) if kind == "wide" else (120, 320))
    [frames] = written(source, tmp_path, [Bucket(96, 96, 8)])
    # The stamp is in the middle, as high as the short side: what is stretched or off the centre cannot be read.
    assert [films.read_stamp(frame) for frame in frames] == [k * 24 // 16 for k in range(8)]
    middle = slice(15, 81)
    shown, whole = (picture[middle, middle].astype(float) for picture in (frames[0], films.stamp(0, 96, 96)))
    assert np.abs(shown - whole).mean() < 8


def test_sound_is_that_of_the_pictures(tmp_path: Path) -> None:
    source = films.film(tmp_path / "clip.mp4", (48, 48), audio="aac")
    paths = [str(tmp_path / f"{i}.mp4") for i in range(3)]
    assert list(write_fitted(str(source), paths, [Bucket(64, 48, 16)] * 3, 8, sound=True)) == paths
    for path, tones in zip(paths, ((0, 0), (1, 1), (None, None)), strict=True):
        with av.open(path) as clip:
            sound = np.concatenate([block.to_ndarray() for block in clip.decode(audio=0)], axis=1)[0]
        assert len(sound) == pytest.approx(2 * films.SOUND_RATE, abs=1024)
        for tone, half in zip(tones, (sound[4800:43200], sound[52800:91200]), strict=True):
            # Behind the end of the scene there is silence.
            assert films.pitch(half) == pytest.approx(films.tone(tone), abs=2) if tone is not None else not half.any()


def test_a_silent_scene_has_silent_clips(tmp_path: Path) -> None:
    source = films.film(tmp_path / "clip.mp4", (24,))
    [path] = write_fitted(str(source), [str(tmp_path / "0.mp4")], [Bucket(64, 48, 8)], 8, sound=True)
    with av.open(path) as clip:
        assert not clip.streams.audio


@pytest.mark.parametrize(
    "wrong", [{"fps": 0}, {"frames": ()}, {"sizes": ()}, {"sizes": ((127, 96),)}, {"frames": (0,)}]
)
def test_a_preset_without_a_meaning_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="a preset needs"):
        Preset(**{"fps": 16, "frames": (9,), "sizes": ((128, 96),)} | wrong)


def test_whatever_lies_in_memory_the_files_are_the_same(tmp_path: Path) -> None:
    program = (
        "import sys; from actors.curation.exporting.presets import Bucket, write_fitted\n"
        "list(write_fitted(sys.argv[1], [sys.argv[2]], [Bucket(320, 128, 17)], 16))"
    )
    files = []
    for filled_with in ("85", "170"):
        path = tmp_path / f"{filled_with}.mp4"
        # glibc fills what is allocated and freed with bytes made of this one.
        environment = {**os.environ, "MALLOC_PERTURB_": filled_with}
        command = [sys.executable, "-c", program, str(films.bikes_mp4()), str(path)]
        subprocess.run(command, env=environment, cwd=Path(__file__).parents[4], check=True)
        files.append(path.read_bytes())
    assert files[0] == files[1]

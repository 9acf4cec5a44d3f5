"""The sound of spans is what was drawn at their times, however the film is stored and however far apart they lie."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from actors.media.film import FilmError, open_film
from actors.media.sound import Sound
from actors.media.sound_spans import sound_of
from tests.support import films

MILLISECONDS = 3
"""How exactly a tick is to lie in time."""


def ticking(
    path: Path, seconds: int, rate: int = 48_000, layout: str = "stereo", codec: str = "aac", loud: Sequence[int] = ()
) -> Path:
    """A film of one colour with a tick at each full second, in the channels `loud` (all), whose pitch tells which."""
    with av.open(path, "w") as file:
        video: Any = file.add_stream("mpeg4", rate=5)
        video.width, video.height, video.pix_fmt = 32, 32, "yuv420p"
        sound: Any = file.add_stream(codec, rate=rate, layout=layout)
        channels = len(av.AudioLayout(layout).channels)
        samples = np.zeros((channels, seconds * rate), np.float32)
        for second in range(seconds):
            at = np.arange(rate // 20)
            tick = 0.5 * np.sin(2 * np.pi * pitch(second) * at / rate)
            samples[list(loud) or slice(None), second * rate : second * rate + len(at)] = tick
        shown = 0
        for start in range(0, samples.shape[1], 1024):
            while shown * rate <= 5 * start and shown < 5 * seconds:
                frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 90, np.uint8), format="rgb24")
                frame = frame.reformat(format=video.pix_fmt, threads=1)
                frame.pts, frame.time_base = shown, Fraction(1, 5)
                file.mux(video.encode(frame))
                shown += 1
            piece = np.ascontiguousarray(samples[:, start : start + 1024])
            block = av.AudioFrame.from_ndarray(piece, "fltp", layout=layout)
            block.sample_rate, block.pts, block.time_base = rate, start, Fraction(1, rate)
            file.mux(sound.encode(block))
        file.mux(video.encode())
        file.mux(sound.encode())
    return path


def pitch(second: int) -> int:
    return 600 + 200 * (second % 30)


def heard(path: Path, spans: Sequence[tuple[float, float]], **about: Any) -> list[np.ndarray]:
    return [one for one in sound_of(str(path), spans, **about) if one is not None]


def ticks(samples: np.ndarray, rate: int = 48_000) -> list[tuple[float, int]]:
    """When sound sets in after silence, in seconds, and its pitch in Hz to the next multiple of 200."""
    loud = np.abs(samples).max(0) > 0.1
    if not loud.any():
        return []
    at = np.flatnonzero(loud)
    starts = at[np.diff(at, prepend=-rate) > rate // 2]
    width = rate // 25
    return [
        (start / rate, 200 * round(films.pitch(samples[0, start : start + width], rate) / 200))
        for start in starts
        if start + width <= samples.shape[1]
    ]


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("a.mp4", {}),
        ("a.mkv", {}),
        ("a.mp4", {"rate": 44_100}),
        ("a.mov", {"codec": "pcm_s16le", "layout": "mono"}),
        ("a.mkv", {"codec": "pcm_s16le", "rate": 32_000}),
        ("a.avi", {"codec": "pcm_s16le"}),
        ("a.ts", {}),
    ],
    ids=str,
)
def test_ticks_lie_where_they_were_drawn(tmp_path: Path, name: str, made: dict[str, Any]) -> None:
    path = ticking(tmp_path / name, 30, **made)
    # MPEG-TS begins with what an encoder of sound puts before the first sample: there pictures begin later.
    film = open_film(str(path))
    begin = next(film.pictures).time
    # Of neighbours, overlapping, nested, and beyond what a jump bridges.
    spans = [(0.5, 2.25), (2.25, 4.5), (3.5, 6.7), (3.7, 4.2), (5.5, 7.5), (21.5, 23.5), (29.5, 31.0)]
    for steady in (False, True):
        found = heard(path, spans, steady=steady)
        for (start, end), sound in zip(spans, found, strict=True):
            assert sound.dtype == np.float32
            assert sound.shape == (
                1 if made.get("layout") == "mono" else 2,
                round(end * 48_000) - round(start * 48_000),
            )
            drawn = [second for second in range(30) if start <= second < end - 0.05]
            got = ticks(sound)
            assert [tone for _, tone in got] == [pitch(second) for second in drawn]
            for (at, _), second in zip(got, drawn, strict=True):
                assert abs(start + at - begin - second) * 1000 < MILLISECONDS
    assert not found[-1].any() and found[-1].size


def test_surround_keeps_its_channels_and_another_rate_is_one(tmp_path: Path) -> None:
    path = ticking(tmp_path / "a.mov", 3, layout="5.1", codec="pcm_s16le", loud=[2])
    (sound,) = heard(path, [(0.5, 2.5)], rate=16_000)
    assert sound.shape == (6, 32_000)
    assert [tone for _, tone in ticks(sound[2:3], 16_000)] == [pitch(1), pitch(2)]
    assert np.abs(np.delete(sound, 2, axis=0)).max() < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_what_lies_before_a_late_span_is_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = ticking(tmp_path / name, 120)
    decoded = []
    place = Sound._place

    def counted(self: Sound, block: av.AudioFrame) -> None:
        decoded.append(block.samples)
        place(self, block)

    monkeypatch.setattr(Sound, "_place", counted)
    (sound,) = heard(path, [(100.0, 102.0)], steady=True)
    sought = sum(decoded) / 48_000
    assert [tone for _, tone in ticks(sound)] == [pitch(100), pitch(101)]
    # The span, a second before it, and what its last packet holds.
    assert 2 < sought < 3.5
    decoded.clear()
    heard(path, [(100.0, 102.0)])
    assert sum(decoded) / 48_000 < 3.5 if name == "a.mp4" else sum(decoded) / 48_000 > 100


def test_a_film_without_sound_gives_none_and_a_file_without_pictures_is_no_film(tmp_path: Path) -> None:
    found = heard(films.film(tmp_path / "a.mp4"), [(0.0, 1.0), (1.0, 2.0)])
    assert [one.shape for one in found] == [(0, 0), (0, 0)]
    with pytest.raises(FilmError, match="no moving pictures"):
        heard(films.sound_only(tmp_path / "b.mp4"), [(0.0, 1.0)])
    with pytest.raises(FilmError):
        heard(films.text_file(tmp_path / "c.mp4"), [(0.0, 1.0)])


def test_what_was_cut_off_is_silent(tmp_path: Path) -> None:
    """Two thirds of the bytes arrived of a file whose index is in front."""
    path = ticking(tmp_path / "a.mkv", 30)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    found = heard(path, [(float(second), second + 1.0) for second in range(30)])
    audible = [bool(one.any()) for one in found]
    assert audible[:15] == [True] * 15 and audible[-5:] == [False] * 5

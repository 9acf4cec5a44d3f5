"""A film's pictures and sound lie on one time line, whatever its clock does, and a scene ends where it ends."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from actors.core.stage import Row
from actors.curation.cutting.cut import cut
from actors.curation.cutting.scenes import FramesConfig
from actors.curation.exporting.clips import ClipsConfig, write_clips
from actors.curation.features.motion import MotionConfig
from actors.media.film import FilmError, VideoConfig, open_film
from actors.media.shot_detection.shots import ShotsConfig
from tests.support import films

STEP = 1 / films.RATE


def scenes(path: Path, spans: Sequence[tuple[float, float | None]] | None = None, **video: Any) -> list[Row]:
    """The rows of a film, its own last: every frame is sampled; spans: from-to in seconds, a scene each."""
    about = {"clip_id": "c", "ordinal": 0, "caption": "", "first": 0, "end": -1}
    listed: list[Row] | None = None
    if spans is not None:
        listed = [
            {"start_s": start, "end_s": end, "scenes": [{**about, "scene_id": f"c{i}"}]}
            for i, (start, end) in enumerate(spans)
        ]
    settings = FramesConfig(interval_ms=1, max=900, size=60), ShotsConfig("none"), MotionConfig(flow="scaled")
    rows = cut(str(path), "v", listed, frozenset(), VideoConfig(**video), *settings)
    return [row for row in rows if row is not None]


def stamps(row: Row) -> list[int]:
    return [films.read_stamp(frame) for frame in row["frames"]]


def sound_of(path: Path, row: Row, folder: Path) -> np.ndarray:
    """The sound of a scene's clip, mono, 48 kHz."""
    wanted = [{"scene_id": "clip", "start_s": row["start_s"], "end_s": row["end_s"]}]
    [clip] = [made for made in write_clips(str(path), wanted, str(folder), ClipsConfig(), None) if made]
    assert clip["error"] == ""
    with av.open(str(clip["path"]), "r") as container:
        return np.concatenate([frame.to_ndarray() for frame in container.decode(audio=0)], axis=1)[0]


HOUR = 3600.0
CLOCKS = {
    "anew": ("film.ts", (1, 1, 1, 1, 1, 1), (0, 0, 0, 0, 0, 0)),
    "an hour ahead": ("film.ts", (3, 3), (5, HOUR)),
    "an hour back": ("film.ts", (3, 3), (HOUR, 5)),
    "to and fro": ("film.ts", (2, 2, 2), (20, HOUR, 7)),
    "a little back": ("film.ts", (2, 2, 2), (10, 11.5, 12.5)),
    "past the end of 33 bits": ("film.ts", (6,), (95_441,)),
    "in a VOB": ("film.vob", (2, 2, 2), (30, 3, 900)),
}


@pytest.mark.parametrize("case", CLOCKS)
def test_where_the_clock_jumps_time_goes_on(tmp_path: Path, case: str) -> None:
    name, lengths, clocks = CLOCKS[case]
    options: dict[str, Any] = {"codec": "mpeg2video", "audio": "mp2"} if name.endswith("vob") else {}
    path = films.joined(tmp_path / name, lengths, clocks, **options)
    scene, film = scenes(path)
    assert (scene["error"], film["error"]) == ("", "") and stamps(scene) == list(range(6 * films.RATE))
    assert scene["end_s"] - scene["start_s"] == pytest.approx(6, abs=0.01)
    assert scene["longest_hold_s"] == pytest.approx(STEP, abs=0.01)
    assert scene["clock_jumps"] == film["clock_jumps"] == len(lengths) - 1
    sound = sound_of(path, scene, tmp_path / "clips")
    assert len(sound) / 48_000 == pytest.approx(6, abs=0.05)
    # The tone of each second is there but for 40 ms at its edges.
    for second in range(6):
        inside = sound[round((second + 0.04) * 48_000) : round((second + 0.96) * 48_000)]
        assert films.pitch(inside) == pytest.approx(films.tone(second), abs=5)
        halves = inside[:4800], inside[-4800:]
        assert [films.pitch(half) for half in halves] == pytest.approx([films.tone(second)] * 2, abs=12)


def test_metadata_names_times_of_the_mended_line(tmp_path: Path) -> None:
    path = films.joined(tmp_path / "film.ts", (3, 3), (5, HOUR))
    start = scenes(path)[0]["start_s"]
    first, second, _ = scenes(path, [(start, start + 2), (start + 2, start + 5)])
    assert stamps(first) == list(range(48)) and stamps(second) == list(range(48, 120))
    assert (first["clock_jumps"], second["clock_jumps"]) == (0, 1)


def gap(path: Path, kinds: str, start: float, end: float, seconds: int) -> Path:
    """A film of so many seconds with sound, without its packets of these kinds between two times."""
    whole = films.film(path.with_name("whole.mp4"), [films.RATE] * seconds, gop=films.RATE, bframes=0, audio="aac")
    edge = STEP / 2
    return films.remuxed(
        whole, path, lambda kind, time: None if kind in kinds and start - edge <= time < end - edge else 0.0
    )


@pytest.mark.parametrize("name", ["film.ts", "film.mkv"])
def test_a_picture_that_is_held_while_sound_goes_on_is_no_jump(tmp_path: Path, name: str) -> None:
    path = gap(tmp_path / name, "video", 1, 13, 15)
    scene, film = scenes(path)
    assert film["clock_jumps"] == 0 and scene["end_s"] - scene["start_s"] == pytest.approx(15, abs=0.05)
    assert scene["longest_hold_s"] == pytest.approx(12 + STEP, abs=0.05)
    assert stamps(scene) == [*range(24), *range(13 * 24, 15 * 24)]


@pytest.mark.parametrize("name", ["film.ts", "film.mkv", "film.flv"])
def test_a_hole_belongs_to_no_scene(tmp_path: Path, name: str) -> None:
    path = gap(tmp_path / name, "video audio", 2, 5, 7)
    before, after, film = scenes(path)
    start = before["start_s"]
    assert (before["scene_id"], after["scene_id"], film["scenes"]) == ("v.0_0", "v.1_0", 2)
    assert [before["end_s"], after["start_s"], after["end_s"]] == pytest.approx(
        [start + 2, start + 5, start + 7], abs=0.05
    )
    assert stamps(before) == list(range(48)) and stamps(after) == list(range(120, 168))
    assert max(before["longest_hold_s"], after["longest_hold_s"]) < 0.1


def test_metadata_may_span_a_hole(tmp_path: Path) -> None:
    path = gap(tmp_path / "film.mkv", "video audio", 2, 5, 7)
    inside, scene, _ = scenes(path, [(0, None), (3, 4)])
    assert scene["error"] == "" and scene["longest_hold_s"] == pytest.approx(3 + STEP, abs=0.01)
    assert inside["error"] == "scene_beyond_span"


def held(path: Path) -> Path:
    """2 s, a picture that is held for 20 minutes, 2 s: 96 frames."""
    return films.film(path, (48, 48), times=[(i if i < 48 else i + 20 * 60 * 24) / 24 for i in range(96)])


def test_a_scene_ends_with_its_span_not_with_the_next_picture(tmp_path: Path) -> None:
    first, inside, last, _ = scenes(held(tmp_path / "film.mp4"), [(0, 3), (3, 600), (600, None)])
    assert (first["start_s"], first["end_s"], first["no_frames"]) == (0, 3, 48)
    assert first["longest_hold_s"] == pytest.approx(3 - 47 / 24)
    assert (inside["start_s"], inside["end_s"], inside["error"]) == (3, 600, "")
    assert inside["longest_hold_s"] == pytest.approx(597) and inside["no_frames"] == 1
    assert (last["start_s"], last["end_s"]) == pytest.approx((1202, 1204), abs=0.05)


def test_the_last_picture_is_not_held_for_the_average_of_held_pictures(tmp_path: Path) -> None:
    path = films.remuxed(held(tmp_path / "held.mp4"), tmp_path / "film.mkv", lambda kind, time: 0.0)
    rows = scenes(path)
    assert rows[-2]["end_s"] == pytest.approx(1204, abs=0.1)


@pytest.mark.parametrize("name", ["film.mkv", "film.webm", "film.flv", "film.ts"])
def test_a_clock_that_starts_late_loses_nothing(tmp_path: Path, name: str) -> None:
    codec = "libvpx" if name.endswith("webm") else "libx264"
    whole = films.film(tmp_path / ("whole.webm" if name.endswith("webm") else "whole.mp4"), codec=codec)
    late = films.remuxed(whole, tmp_path / name, lambda kind, time: 10.0)
    scene, film = scenes(late)
    assert (scene["error"], film["error"]) == ("", "") and stamps(scene) == list(range(114))
    assert scene["end_s"] - scene["start_s"] == pytest.approx(4.75, abs=0.05)


def declares(path: Path, seconds: float) -> Path:
    """A Matroska file whose header declares another length."""
    data = bytearray(films.film(path).read_bytes())
    at = data.index(b"\x44\x89\x88") + 3
    data[at : at + 8] = np.array([seconds * 1000], ">f8").tobytes()
    path.write_bytes(data)
    return path


def test_a_header_that_declares_too_much_costs_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = declares(tmp_path / "film.mkv", 2644)
    scene, film = scenes(path)
    assert (scene["error"], film["error"], len(stamps(scene))) == ("", "", 114)
    assert "declares 2644.0 s" in caplog.text
    # The same header on a file that breaks off.
    path.write_bytes(path.read_bytes()[:-200])
    scene, film = scenes(path)
    assert scene["error"] == film["error"] == "truncated"


def with_streams(path: Path, *streams: tuple[str, tuple[int, int], int, int]) -> Path:
    """A film of several streams of pictures: codec, size, disposition, and every which frame each has."""
    default, makers = 1, []
    with av.open(path, "w") as container:
        for codec, size, flags, every in streams:
            stream: Any = container.add_stream(codec, rate=films.RATE)
            stream.width, stream.height = size
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            stream.disposition = flags & default
            makers.append((stream, size, every))
        for number in range(48):
            for stream, size, every in makers:
                if number % every == 0:
                    picture = films.stamp(number, *size)
                    frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(
                        format=stream.pix_fmt, threads=1
                    )
                    frame.pts = number
                    container.mux(stream.encode(frame))
        for stream, *_ in makers:
            container.mux(stream.encode())
    return path


@pytest.mark.parametrize("name", ["film.mp4", "film.mkv"])
@pytest.mark.parametrize(
    "streams",
    [
        [("libx264", (80, 60), 0, 12), ("libx264", (160, 120), 1, 1)],
        [("libx264", (80, 60), 0, 1), ("libx264", (160, 120), 0, 1)],
        [("libx264", (80, 60), 1, 1), ("libx264", (160, 120), 1, 1)],
        [("mjpeg", (320, 240), 0, 48), ("libx264", (160, 120), 1, 1)],
        [("mjpeg", (320, 240), 1, 12), ("libx264", (160, 120), 0, 1)],
        [("libx264", (320, 240), 0, 1), ("libx264", (160, 120), 1, 1)],
    ],
)
def test_the_default_or_the_largest_stream_is_the_film(tmp_path: Path, name: str, streams: list[Any]) -> None:
    if name.endswith("mp4") and not any(default for _, _, default, _ in streams):
        pytest.skip("an mp4 always has a default")
    scene, film = scenes(with_streams(tmp_path / name, *streams))
    assert (scene["width"], scene["height"], film["decoded"]) == (160, 120, 48)
    assert stamps(scene) == list(range(48))


def test_pictures_beyond_the_bound_are_not_decoded(tmp_path: Path) -> None:
    path = films.film(tmp_path / "film.mp4")
    with pytest.raises(FilmError, match=r"160x120 pixels, more than max_pixels=10000") as error:
        open_film(str(path), max_pixels=10_000)
    assert error.value.code == "too_large"
    scene, film = scenes(path, [(0, None)], max_pixels=10_000)
    assert scene["error"] == "too_large" and film["error"] == ""
    assert scenes(path, max_pixels=160 * 120)[0]["error"] == ""
    # A codec that tells its size in its pictures only.
    with pytest.raises(FilmError) as error:
        open_film(str(films.film(tmp_path / "film.avi", codec="png", pixels="rgb24")), max_pixels=10_000)
    assert error.value.code == "too_large"
    # A film after it that has no pictures for another reason.
    path = films.film(tmp_path / "index.mp4", faststart=True)
    path.write_bytes(path.read_bytes()[: path.read_bytes().index(b"mdat") + 20])
    with pytest.raises(FilmError) as error:
        open_film(str(path))
    assert error.value.code == "truncated"


def test_a_size_that_grows_beyond_the_bound_costs_what_shows_it(tmp_path: Path) -> None:
    parts = [films.film(tmp_path / f"{size[0]}.ts", (24,), size=size) for size in ((160, 120), (320, 240))]
    path = tmp_path / "film.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    rows = scenes(path, [(0, 0.5), (1.2, 1.6)], max_pixels=40_000)
    assert rows[0]["error"] == "" and rows[1]["error"] != ""


@pytest.mark.parametrize("interlaced", [True, False])
def test_interlaced_film_is_recognised(tmp_path: Path, interlaced: bool) -> None:
    path = tmp_path / "film.mp4"
    with av.open(path, "w") as container:
        options = {"x264-params": "tff=1", "flags": "+ildct+ilme"} if interlaced else {}
        stream: Any = container.add_stream("libx264", rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 160, 128, "yuv420p"
        for number in range(30):
            frame = av.VideoFrame.from_ndarray(films.stamp(number, 160, 128), format="rgb24").reformat(
                format="yuv420p", threads=1
            )
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert scenes(path)[0]["interlaced"] is interlaced

"""A clip is its scene: these frames, at these times, with this sound; or a row that says why there is none."""

import json
import math
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from av.container import InputContainer

from actors.core.child import ROOT, Child
from actors.core.stage import Row
from actors.curation.exporting.clips import ClipsConfig, write_clips
from actors.curation.exporting.export import write_shard
from actors.media.film import open_film
from tests.support import films

AAC_FRAME = 1024


def source_frames(path: Path) -> list[tuple[float, float, np.ndarray]]:
    """Each frame's time, the time at which the next takes its place, and its picture as shown."""
    film = open_film(str(path))
    pictures = [(p.time, p.duration, p.scaled(film.width, film.height)) for p in film.pictures]
    ends = [time for time, *_ in pictures[1:]] + [pictures[-1][0] + (pictures[-1][1] or film.step_s)]
    return [(time, end, shown) for (time, _, shown), end in zip(pictures, ends, strict=True)]


def scenes(path: Path, *cuts: tuple[int, int]) -> list[Row]:
    """Scenes from frame `first` to before frame `end`, called by them."""
    frames = source_frames(path)
    return [
        {"scene_id": f"v.{first}_{end}", "start_s": frames[first][0], "end_s": frames[end - 1][1]}
        for first, end in cuts
    ]


def write(path: Path, wanted: list[Row], interval_ms: int | None = None) -> dict[str, Row]:
    """Rows by scene id; the clips lie in `clips`, beside the film."""
    folder = str(path.parent / "clips")
    rows = [row for row in write_clips(str(path), wanted, folder, ClipsConfig(), interval_ms) if row]
    assert sorted(row["scene_id"] for row in rows) == sorted(scene["scene_id"] for scene in wanted)
    return {row["scene_id"]: row for row in rows}


def write_one(path: Path, first: int, end: int, interval_ms: int | None = None) -> Row:
    """The row of the scene from frame `first` to before `end`, which is whole."""
    row = write(path, scenes(path, (first, end)), interval_ms)[f"v.{first}_{end}"]
    assert (row["error"], row["message"]) == ("", "")
    return row


def opened(clip: str | Path) -> InputContainer:
    return av.open(clip)


def decoded(clip: str | Path) -> tuple[list[float], list[np.ndarray]]:
    """Times and pictures of a clip."""
    with opened(clip) as container:
        frames = list(container.decode(video=0))
    assert all(frame.time is not None for frame in frames)
    return [frame.time for frame in frames], [frame.to_ndarray(format="rgb24") for frame in frames]


def stamps(pictures: Sequence[np.ndarray]) -> list[int]:
    return [films.read_stamp(picture) for picture in pictures]


def heard(clip: str | Path) -> np.ndarray:
    """Sound of a clip, float32 (channels, N), from time 0."""
    with opened(clip) as container:
        frames = list(container.decode(audio=0))
    assert frames[0].time == 0
    return np.concatenate([frame.to_ndarray() for frame in frames], axis=1)


def lag(sound: np.ndarray, reference: np.ndarray) -> int:
    """By how many samples `sound` comes later than `reference`, both (N,); fails where they are not the same sound."""
    n = len(sound) + len(reference)
    match = np.fft.irfft(np.fft.rfft(sound, n) * np.conj(np.fft.rfft(reference, n)), n)
    shift = int(np.argmax(match))
    assert match[shift] > 0.8 * np.linalg.norm(sound) * np.linalg.norm(reference)
    return shift if shift < n // 2 else shift - n


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    return 10 * math.log10(255**2 / max(1e-9, float(np.mean((one.astype(float) - other) ** 2))))


def noise(seconds: float, rate: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    """Sound of which no two stretches are alike: int16 (channels, N)."""
    samples = np.random.default_rng(seed).normal(0, 4000, (channels, round(seconds * rate) + 16))
    return np.stack([np.convolve(line, np.ones(16) / 4, "valid") for line in samples]).astype(np.int16)


def with_sound(
    path: Path,
    sound: np.ndarray,
    rate: int = 48_000,
    layout: str = "mono",
    spans: Sequence[tuple[float, float]] = ((0, 1e9),),
    pictures_from: float = 0,
    sound_from: float = 0,
) -> Path:
    """A film of 96 frames at 24 a second with this sound, int16 (channels, N), of which only `spans` are there."""
    silent = films.film(path.with_name("silent.mp4"), shots=(48, 48))
    with av.open(silent) as source, av.open(path, "w") as file:
        video = file.add_stream_from_template(source.streams.video[0])
        audio: Any = file.add_stream("pcm_s16le", rate=rate, layout=layout)
        for packet in source.demux(video=0):
            if packet.dts is None or packet.pts is None:
                continue
            offset = round(pictures_from / packet.time_base)
            packet.pts, packet.dts, packet.stream = packet.pts + offset, packet.dts + offset, video
            file.mux(packet)
        for start in range(0, sound.shape[1] - 1024, 1024):
            if any(begin <= start / rate < end for begin, end in spans):
                packed = np.ascontiguousarray(sound[:, start : start + 1024].T.reshape(1, -1))
                block = av.AudioFrame.from_ndarray(packed, format="s16", layout=layout)
                block.sample_rate, block.pts = rate, start + round(sound_from * rate)
                block.time_base = Fraction(1, rate)
                file.mux(audio.encode(block))
        file.mux(audio.encode())
    return path


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("film.mp4", {"audio": "aac"}),
        ("film.mov", {"audio": "pcm_s16le"}),
        ("film.mkv", {"pixels": "yuv420p10le"}),
        ("film.ts", {"rate": 25}),
        ("film.avi", {"codec": "mjpeg", "pixels": "yuvj420p"}),
        ("long_gop.mp4", {"gop": 250}),
        ("rgb.mkv", {"codec": "libx264rgb", "pixels": "rgb24"}),
    ],
)
def test_a_clip_holds_the_frames_from_its_start_to_before_its_end(tmp_path: Path, name: str, options: Any):
    path = films.film(tmp_path / name, **options)
    source = source_frames(path)
    # From the film's start to its end, across cuts, beginning and ending between key frames, overlapping.
    cuts = [(0, 48), (31, 60), (31, 33), (48, 84), (84, 114)]
    rows = write(path, scenes(path, *cuts))
    for first, end in cuts:
        row = rows[f"v.{first}_{end}"]
        assert (row["error"], row["message"], row["frames"]) == ("", "", end - first)
        times, pictures = decoded(row["path"])
        assert stamps(pictures) == list(range(first, end))
        assert min(psnr(picture, source[i][2]) for i, picture in enumerate(pictures, first)) > 34
        assert times == pytest.approx([source[i][0] - source[first][0] for i in range(first, end)], abs=1e-4)
        with opened(row["path"]) as clip:
            assert clip.duration is not None
            assert clip.duration / av.time_base == pytest.approx(source[end - 1][1] - source[first][0], abs=1e-3)
            assert clip.streams.video[0].codec_context.name == "h264"
            assert len(clip.streams.audio) == ("audio" in options)


def test_scenes_are_written_as_they_end_and_the_rest_of_the_film_is_not_read(tmp_path: Path):
    path = films.truncated(tmp_path / "film.mp4")
    wanted = [
        {"scene_id": "late", "start_s": 1.0, "end_s": 2.0},
        {"scene_id": "early", "start_s": 0.5, "end_s": 1.0},
        {"scene_id": "long", "start_s": 0.0, "end_s": 1.5},
    ]
    rows = write(path, wanted)
    assert list(rows) == ["early", "long", "late"]
    assert not any(row["error"] for row in rows.values())


@pytest.mark.parametrize(("first", "end"), [(10, 95), (61, 62), (90, 150)])
def test_a_variable_rate_is_kept(tmp_path: Path, first: int, end: int):
    path, times = films.variable_rate(tmp_path / "film.mp4")
    row = write_one(path, first, end)
    with opened(row["path"]) as clip:
        frames = list(clip.decode(video=0))
        assert clip.duration is not None
        length = clip.duration / av.time_base
    assert [frame.time for frame in frames] == pytest.approx([t - times[first] for t in times[first:end]], abs=1e-6)
    stop = (*times, 8.0)[end]
    assert length == pytest.approx(stop - times[first], abs=1e-5)
    lengths = [float(frame.duration * (frame.time_base or 0)) for frame in frames]
    assert lengths == pytest.approx(np.diff([*times[first:end], stop]), abs=1e-6)


@pytest.mark.parametrize(("name", "codec"), [("film.mp4", "aac"), ("film.mov", "pcm_s16le"), ("film.ts", "aac")])
def test_sound_is_cut_with_the_frames(tmp_path: Path, name: str, codec: str):
    path = films.film(tmp_path / name, audio=codec)
    row = write_one(path, 30, 100)
    sound = heard(row["path"])[0]
    assert 0 <= len(sound) - 70 * 2000 < 2 * AAC_FRAME
    for shot, (start, end) in enumerate(((0, 18), (18, 54), (54, 70))):
        inside = sound[start * 2000 + AAC_FRAME : end * 2000 - AAC_FRAME]
        assert films.pitch(inside) == pytest.approx(films.tone(shot), abs=3)
    ideal = heard(films.film(tmp_path / "ideal.mov", audio="pcm_s16le"))[0]
    assert abs(lag(sound, ideal[60_000:200_000].astype(float))) <= 32


def test_a_silent_film_gives_a_clip_without_sound(tmp_path: Path):
    row = write_one(films.film(tmp_path / "film.mp4"), 10, 20)
    with opened(row["path"]) as clip:
        assert [stream.type for stream in clip.streams] == ["video"]


def test_sound_that_starts_late_has_gaps_and_ends_early_stays_in_sync(tmp_path: Path):
    sound = noise(4, 48_000)
    spans = [(0.8, 1.7), (2.2, 3.1)]
    path = with_sound(tmp_path / "film.mkv", sound, spans=spans)
    clip = heard(write_one(path, 12, 96)["path"])[0]
    assert 0 <= len(clip) - 3.5 * 48_000 < 2 * AAC_FRAME
    for start, end in spans:
        here = slice(round((start - 0.45) * 48_000), round((end - 0.55) * 48_000))
        there = sound[0, here.start + 24_000 : here.stop + 24_000].astype(float)
        assert abs(lag(clip[here], there)) <= 48
    loud = np.sqrt(np.mean(clip[24_000:48_000] ** 2))
    for start, end in ((0.0, 0.2), (1.3, 1.6), (2.7, 3.5)):
        assert np.sqrt(np.mean(clip[round(start * 48_000) : round(end * 48_000)] ** 2)) < loud / 100


@pytest.mark.parametrize(("pictures_from", "sound_from"), [(0.5, 0), (0, 0.5), (0, 0.008)])
def test_streams_that_start_apart_stay_in_sync(tmp_path: Path, pictures_from: float, sound_from: float):
    sound = noise(4, 48_000)
    path = with_sound(tmp_path / "film.mkv", sound, pictures_from=pictures_from, sound_from=sound_from)
    clip = heard(write_one(path, 24, 72)["path"])[0]
    start = round((1 + pictures_from - sound_from) * 48_000)
    assert abs(lag(clip[:96_000], sound[0, start : start + 96_000].astype(float))) <= 48


def test_a_film_whose_clock_was_set_anew_stays_in_sync(tmp_path: Path):
    parts = [
        films.film(tmp_path / f"{n}.ts", shots=(48, 36), audio="aac", size=s)
        for n, s in ((0, (160, 120)), (1, (200, 150)))
    ]
    path = tmp_path / "film.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    row = write_one(path, 60, 150)
    pictures = decoded(row["path"])[1]
    assert stamps(pictures) == [*range(60, 84), *range(66)]
    sound = heard(row["path"])[0]
    tones = [films.pitch(sound[second * 24_000 : second * 24_000 + 12_000]) for second in range(7)]
    assert tones == pytest.approx([600, 600, 400, 400, 400, 400, 600], abs=5)


@pytest.mark.parametrize(
    ("layout", "channels", "kept"), [("stereo", 2, "stereo"), ("5.1", 6, "5.1"), ("quad", 4, "stereo")]
)
def test_channels_keep_their_places(tmp_path: Path, layout: str, channels: int, kept: str):
    t = np.arange(4 * 48_000) / 48_000
    # The fourth of 5.1 is for low sounds only.
    pitches = [60 if kept == "5.1" and c == 3 else 500 + 300 * c for c in range(channels)]
    sound = np.stack([8000 * np.sin(2 * np.pi * pitch * t) for pitch in pitches]).astype(np.int16)
    path = with_sound(tmp_path / "film.mkv", sound, layout=layout)
    row = write_one(path, 24, 72)
    with opened(row["path"]) as clip:
        assert clip.streams.audio[0].layout.name == kept
    found = heard(row["path"])
    for channel, samples in enumerate(found):
        assert films.pitch(samples[:90_000]) == pytest.approx(pitches[channel], abs=2)


@pytest.mark.parametrize(("rate", "written"), [(44_100, 44_100), (8_000, 8_000), (37_800, 48_000)])
def test_rates_of_sound(tmp_path: Path, rate: int, written: int):
    sound = noise(4, rate)
    path = with_sound(tmp_path / "film.mkv", sound, rate=rate)
    row = write_one(path, 24, 72)
    with opened(row["path"]) as clip:
        assert clip.streams.audio[0].rate == written
    samples = heard(row["path"])[0]
    at = np.arange(2 * written) / written + 1
    ideal = np.interp(at, np.arange(sound.shape[1]) / rate, sound[0])
    assert abs(lag(samples[: len(at)], ideal)) <= 0.002 * written


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_rotated_film_gives_upright_clips(tmp_path: Path, degrees: int):
    path = films.rotated(tmp_path / "film.mp4", degrees)
    row = write_one(path, 5, 9, interval_ms=250)
    with opened(row["path"]) as clip:
        frames = list(clip.decode(video=0))
    assert {(frame.width, frame.height, frame.rotation) for frame in frames} == {(120, 160, 0)}
    assert stamps([frame.to_ndarray(format="rgb24") for frame in frames]) == [5, 6, 7, 8]
    still = cv2.imread(row["frame_paths"][0])
    assert still is not None and still.shape == (160, 120, 3) and films.read_stamp(still) == 5


def test_odd_sides_lose_their_last_pixel(tmp_path: Path):
    path = films.odd_size(tmp_path / "film.mp4")
    row = write_one(path, 5, 9)
    pictures = decoded(row["path"])[1]
    assert pictures[0].shape == (120, 160, 3)
    shown = source_frames(path)[5][2]
    assert psnr(pictures[0], shown[:120, :160]) > 32
    assert psnr(pictures[0], cv2.resize(shown, (160, 120))) < 30


@pytest.mark.parametrize("rotation", [0, 90])
def test_the_shape_of_pixels_is_kept(tmp_path: Path, rotation: int):
    shape = Fraction(4, 3) if rotation == 0 else None
    path = films.film(tmp_path / "film.mp4", pixel_shape=shape)
    if rotation:
        lying = films.film(tmp_path / "lying.mp4", pixel_shape=Fraction(4, 3))
        with av.open(lying) as source, av.open(path, "w") as file:
            stream = file.add_stream_from_template(source.streams.video[0])
            stream.set_display_rotation(-90)
            for packet in source.demux(video=0):
                if packet.dts is not None:
                    packet.stream = stream
                    file.mux(packet)
    row = write_one(path, 0, 10, interval_ms=250)
    with opened(row["path"]) as clip:
        video = clip.streams.video[0]
        assert (video.width, video.height) == (120, 120)
        assert video.sample_aspect_ratio == (Fraction(3, 4) if rotation else Fraction(4, 3))
    still = cv2.imread(row["frame_paths"][0])
    assert still is not None and still.shape == ((160, 120, 3) if rotation else (120, 160, 3))


@pytest.mark.parametrize(("full", "pixels"), [(False, "yuv420p"), (True, "yuv420p"), (False, "yuv422p10le")])
def test_colour_tags_are_kept(tmp_path: Path, full: bool, pixels: str):
    path = tmp_path / "film.mkv"
    tags = {"colorspace": 9, "color_range": 2 if full else 1, "color_primaries": 9, "color_trc": 16}
    with av.open(path, "w") as file:
        stream = file.add_stream("libx264", 24)
        stream.width, stream.height, stream.pix_fmt = *films.SIZE, pixels
        for name, value in tags.items():
            setattr(stream.codec_context, name, value)
        for number in range(24):
            frame = av.VideoFrame.from_ndarray(films.stamp(number, *films.SIZE), format="rgb24")
            frame = frame.reformat(format=pixels, dst_color_range=tags["color_range"], dst_colorspace="BT2020")
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    row = write_one(path, 3, 20)
    with opened(row["path"]) as clip:
        frame = next(clip.decode(video=0))
    assert {name: getattr(frame, name) for name in tags} == tags
    assert frame.format.name == ("yuvj420p" if full else "yuv420p")
    assert psnr(frame.to_ndarray(format="rgb24"), source_frames(path)[3][2]) > 34


def test_stills_are_the_frames_due_since_the_scenes_own_start(tmp_path: Path):
    path, times = films.variable_rate(tmp_path / "film.mp4")
    row = write_one(path, 7, 95, interval_ms=250)
    due = []
    for number in range(7, 95):
        slot = math.floor((times[number] - times[7]) * 4 + 1e-3)
        if not due or slot > due[-1][1]:
            due.append((number, slot))
    assert [Path(still).name for still in row["frame_paths"]] == [f"{i:04d}.jpg" for i in range(len(due))]
    assert Path(row["frame_paths"][0]).parent == tmp_path / "clips" / "frames" / "v.7_95"
    stills = [cv2.imread(still) for still in row["frame_paths"]]
    assert all(still is not None and still.shape == (120, 160, 3) for still in stills)
    assert [films.read_stamp(np.asarray(still)) for still in stills] == [number for number, _ in due]
    assert psnr(np.asarray(stills[3])[..., ::-1], source_frames(path)[due[3][0]][2]) > 30


def test_the_index_stands_in_front(tmp_path: Path):
    data = Path(write_one(films.film(tmp_path / "film.mp4", audio="aac"), 0, 48)["path"]).read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


def nothing_left(folder: Path) -> bool:
    return not [path for path in (folder / "clips").rglob("*") if path.is_file()]


def test_a_scene_on_which_the_film_breaks_off_leaves_no_file(tmp_path: Path):
    path = films.truncated(tmp_path / "film.mp4")
    wanted = [
        {"scene_id": "whole", "start_s": 0.5, "end_s": 1.0},
        {"scene_id": "torn", "start_s": 1.0, "end_s": 4.5},
        {"scene_id": "gone", "start_s": 4.5, "end_s": 4.75},
    ]
    rows = write(path, wanted, interval_ms=250)
    assert [(rows[name]["error"], rows[name]["frames"]) for name in ("whole", "torn", "gone")] == [
        ("", 12),
        ("truncated", 0),
        ("truncated", 0),
    ]
    assert {path.parent.name for path in (tmp_path / "clips").rglob("*.jpg")} == {"whole"}
    assert [path.name for path in (tmp_path / "clips").glob("*.mp4")] == ["whole.mp4"]


def spoil(path: Path, kind: str, time: float) -> None:
    """Overwrite the packet that begins a stream's first key frame (or sound) at or after that time."""
    with av.open(path) as container:
        stream = getattr(container.streams, kind)[0]
        found = [p for p in container.demux(stream) if p.pts is not None and p.pts * p.time_base >= time]
    packet = next(p for p in found if p.is_keyframe)
    assert packet.pos is not None
    data = bytearray(path.read_bytes())
    data[packet.pos + 4 : packet.pos + packet.size] = b"\xff" * (packet.size - 4)
    path.write_bytes(data)


def test_damage_fails_the_scene_that_it_lies_in(tmp_path: Path):
    path = films.film(tmp_path / "film.mp4", audio="aac", bframes=0)
    wanted = scenes(path, (0, 40), (40, 60), (84, 114))
    spoil(path, "video", 2.0)
    rows = write(path, wanted)
    assert [rows[name]["error"] for name in ("v.0_40", "v.40_60", "v.84_114")] == ["", "decode_error", ""]
    assert sorted(path.name for path in (tmp_path / "clips").iterdir()) == ["v.0_40.mp4", "v.84_114.mp4"]


def test_damaged_sound_is_silent_and_counted(tmp_path: Path):
    path = films.film(tmp_path / "film.mp4", audio="aac", bframes=0)
    wanted = scenes(path, (0, 40), (40, 60), (84, 114))
    spoil(path, "audio", 2.0)
    rows = write(path, wanted)
    assert [row["error"] for row in rows.values()] == ["", "", ""]
    silenced = {name: row["silenced_s"] for name, row in rows.items()}
    assert silenced == {"v.0_40": 0, "v.40_60": pytest.approx(AAC_FRAME / 48_000, abs=0.002), "v.84_114": 0}
    sound = heard(rows["v.40_60"]["path"])[0]
    # Two seconds of the film are a third of a second of the clip.
    loud = np.abs(sound[4_000:12_000]).max()
    assert np.abs(sound[16_400:16_900]).max() < loud / 20
    assert films.pitch(sound[20_000:36_000]) == pytest.approx(films.tone(1), abs=5)


def test_clips_have_an_upper_bound(tmp_path: Path):
    path = films.film(tmp_path / "film.mp4")
    wanted = scenes(path, (0, 114), (0, 24))
    lossless = ClipsConfig(crf=0, x264_preset="ultrafast")
    for config, code in (
        (replace(lossless, max_s=2.0), "clip_too_long"),
        (replace(lossless, max_mb=0.02), "clip_too_large"),
    ):
        found = [row for row in write_clips(str(path), wanted, str(tmp_path / code), config, None) if row]
        codes = {row["scene_id"]: row["error"] for row in found}
        assert codes["v.0_114"] == code
        assert {path.stem for path in (tmp_path / code).iterdir()} == {name for name in codes if not codes[name]}


def chan(path: Path, tag: int) -> Path:
    """Let a mov say that its channels lie in the order of this CoreAudio tag."""
    data = bytearray(path.read_bytes())
    at = data.index(b"chan") + 8
    data[at : at + 4] = tag.to_bytes(4, "big")
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("tag", "order"),
    [
        (0x007F0008, ["FC", "FLC", "FRC", "FL", "FR", "SL", "SR", "LFE"]),
        (0x00800008, ["FL", "FR", "FC", "LFE", "SL", "SR", "BL", "BR"]),
    ],
)
def test_channels_in_an_order_of_their_own_keep_their_places(tmp_path: Path, tag: int, order: list[str]):
    """In a child as an export has it, since this order made the decoder corrupt memory."""
    t = np.arange(4 * 48_000) / 48_000
    pitches = [60 if name == "LFE" else 500 + 300 * i for i, name in enumerate(order)]
    sound = np.stack([4000 * np.sin(2 * np.pi * pitch * t) for pitch in pitches]).astype(np.int16)
    path = with_sound(tmp_path / "film.mov", sound, layout="7.1")
    wanted = [{"scene_id": "v", "start_s": 1.0, "end_s": 3.0}]
    child = Child()
    job = write_clips, str(chan(path, tag)), wanted, str(tmp_path / "clips"), ClipsConfig(), None
    [row] = child.stream(*job, stall_s=60, timeout_s=60)
    child.kill()
    assert row["error"] == ""
    with opened(row["path"]) as clip:
        assert clip.streams.audio[0].layout.name == "5.1"
    found = heard(row["path"])
    # What stands between the middle and a side is mixed into that side.
    for channel, names in enumerate([("FL", "FLC"), ("FR", "FRC"), ("FC",), ("LFE",)]):
        wanted = [pitches[order.index(name)] for name in names if name in order]
        assert min(abs(films.pitch(found[channel][:90_000]) - pitch) for pitch in wanted) <= 3


@pytest.mark.parametrize(
    ("film", "code"),
    [
        (films.empty_file, "empty_file"),
        (films.text_file, "not_a_video"),
        (films.without_index, "no_index"),
        (films.sound_only, "no_video_stream"),
        (films.unknown_codec, "unknown_codec"),
        (films.list_of_films, "playlist"),
        (lambda path: path, "export_failed"),
    ],
)
def test_a_film_that_cannot_be_read_gives_each_scene_its_code(tmp_path: Path, film: Any, code: str):
    wanted = [{"scene_id": name, "start_s": 0.0, "end_s": 1.0} for name in "ab"]
    rows = write(film(tmp_path / "film.mp4"), wanted)
    assert {row["error"] for row in rows.values()} == {code}
    assert all(row["message"] and not row["path"] for row in rows.values()) and nothing_left(tmp_path)


@pytest.mark.parametrize(
    ("start", "end"), [(1.02, 2.0), (3.0, 60.0), (60.0, 61.0), (2.0, 2.0), (2.0, 1.0), (math.nan, 1.0)]
)
def test_times_that_are_not_those_of_the_film_give_no_clip(tmp_path: Path, start: float, end: float):
    path = films.film(tmp_path / "film.mp4")
    wanted = [{"scene_id": "wrong", "start_s": start, "end_s": end}, *scenes(path, (12, 24))]
    rows = write(path, wanted)
    assert (rows["wrong"]["error"], rows["v.12_24"]["error"]) == ("export_failed", "")
    assert [path.name for path in (tmp_path / "clips").iterdir()] == ["v.12_24.mp4"]


def test_a_folder_that_cannot_be_written_fails_the_scenes(tmp_path: Path):
    (tmp_path / "clips").write_text("in the way")
    path = films.film(tmp_path / "film.mp4")
    rows = write(path, scenes(path, (0, 10), (5, 20)))
    assert {row["error"] for row in rows.values()} == {"export_failed"}


@pytest.mark.parametrize("settings", [{"crf": 52}, {"jpeg_quality": 0}, {"workers": -1}])
def test_settings_out_of_range_are_refused(settings: dict[str, Any]):
    with pytest.raises(ValueError, match=next(iter(settings))):
        ClipsConfig(**settings)


def sample(folder: Path, video_id: str, scene_id: str, **row: Any) -> Row:
    clip = folder / f"{len(list(folder.iterdir()))}.clip"
    clip.write_bytes(f"clip of {video_id} {scene_id}".encode())
    about = {"video_id": video_id, "scene_id": scene_id, **row}
    return {"video_id": video_id, "scene_id": scene_id, "clip": str(clip), "caption": f"é {scene_id}", "row": about}


def shard(path: Path) -> dict[str, dict[str, bytes]]:
    """Members of a shard by key and suffix, split as WebDataset does; each sample's members stand together."""
    found: dict[str, dict[str, bytes]] = {}
    with tarfile.open(path) as tar:
        for member in tar:
            key, suffix = member.name.split(".", 1)
            assert key not in found or key == list(found)[-1]
            file = tar.extractfile(member)
            assert file is not None
            found.setdefault(key, {})[suffix] = file.read()
    return found


def test_a_shard_reads_back(tmp_path: Path):
    samples = [
        sample(tmp_path, "b.c", "b.c.0_1", mse=math.nan, no_frames=np.int32(8), mean_velocity=np.float32(1.5)),
        sample(tmp_path, "a", "other/0.0"),
    ]
    write_shard(str(tmp_path / "shard.tar"), samples)
    found = shard(tmp_path / "shard.tar")
    assert list(found) == ["a_other_0_0", "b_c_0_1"]
    assert found["b_c_0_1"]["mp4"] == b"clip of b.c b.c.0_1" and found["b_c_0_1"]["txt"].decode() == "é b.c.0_1"
    assert json.loads(found["b_c_0_1"]["json"]) == {
        "video_id": "b.c",
        "scene_id": "b.c.0_1",
        "mse": None,
        "no_frames": 8,
        "mean_velocity": 1.5,
    }


def test_ids_that_differ_only_in_dots_keep_apart(tmp_path: Path):
    samples = [sample(tmp_path, "a", "a.0_0"), sample(tmp_path, "a_0", "a_0.0"), sample(tmp_path, "b", "b.0_0")]
    write_shard(str(tmp_path / "shard.tar"), samples)
    found = shard(tmp_path / "shard.tar")
    assert len(found) == 3 and "b_0_0" in found
    assert {json.loads(members["json"])["scene_id"] for members in found.values()} == {"a.0_0", "a_0.0", "b.0_0"}


def test_a_shard_is_the_same_for_the_same_samples(tmp_path: Path):
    samples = [sample(tmp_path, "v", f"v.0_{i}", score=i / 7) for i in range(5)]
    write_shard(str(tmp_path / "one.tar"), samples)
    for clip in (Path(member["clip"]) for member in samples):
        clip.touch()
    write_shard(str(tmp_path / "two.tar"), reversed(samples))
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()


MEMORY = """
import pathlib, sys
from actors.curation.exporting.clips import ClipsConfig, write_clips
wanted = [{"scene_id": "v", "start_s": 0.0, "end_s": float(sys.argv[2])}]
config = ClipsConfig(x264_preset="ultrafast")
[row] = [row for row in write_clips(sys.argv[1], wanted, sys.argv[3], config, None) if row]
status = pathlib.Path("/proc/self/status").read_text()
print(row["frames"], int(status.split("VmHWM:")[1].split()[0]) / 1024)
"""


def test_memory_does_not_grow_with_silence_and_held_pictures(tmp_path: Path):
    times = [(i if i < 24 else i + 600 * 24) / 24 for i in range(48)]
    path = films.film(tmp_path / "film.mp4", (24, 24), times=times, audio="aac")
    peaks = []
    for end, frames in ((1, 24), (602, 48)):
        command = [sys.executable, "-c", MEMORY, str(path), str(end), str(tmp_path / str(end))]
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        written, peak = run.stdout.split()
        assert int(written) == frames
        peaks.append(float(peak))
    # Ten minutes of silence as samples are 110 MB.
    assert peaks[1] < peaks[0] + 40

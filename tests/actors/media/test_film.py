"""A film is cut at exactly the frames that were asked for; what is wrong with it ends in the rows of its scenes."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import cycle
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from av.stream import Disposition

from actors.core.child import ROOT, Child, ChildFault
from actors.core.stage import Row
from actors.curation.cutting.cut import cut
from actors.curation.cutting.scenes import FEATURES, FramesConfig
from actors.curation.features.motion import MotionConfig
from actors.media.film import VideoConfig
from actors.media.shot_detection.shots import ShotsConfig, score_cuts
from tests.support import films

LENGTH = sum(films.SHOTS)
STEP = 1 / films.RATE


def span(start_s: float, end_s: float | None, *cuts: tuple[int, int], clip: str = "c") -> Row:
    scenes = [
        {"clip_id": clip, "scene_id": f"{clip}_{i}", "ordinal": i, "caption": "so", "first": first, "end": end}
        for i, (first, end) in enumerate(cuts)
    ]
    return {"start_s": start_s, "end_s": end_s, "scenes": scenes}


def arguments(
    path: Path,
    spans: list[Row] | None = None,
    skip: frozenset[str] = frozenset(),
    *,
    decoder: Any = "pyav",
    detector: Any = "none",
    flow: Any = "scaled",
    **frames: Any,
) -> tuple[Any, ...]:
    settings = VideoConfig(decoder=decoder), FramesConfig(**frames), ShotsConfig(detector), MotionConfig(flow=flow)
    return str(path), "v", spans, skip, *settings


@lru_cache
def torchcodec_fault() -> str:
    """Why torchcodec cannot be used here, or ""; importing it takes seconds."""
    try:
        import torchcodec.decoders  # noqa: F401
    except (ImportError, RuntimeError, OSError) as error:
        return str(error).strip().partition("\n")[0]
    return ""


def cut_film(
    path: Path, spans: list[Row] | None = None, skip: frozenset[str] = frozenset(), **settings: Any
) -> tuple[dict[str, Row], Row]:
    """The scenes' rows by id, in the order in which they came, and the film's row; with what is true of every film."""
    if settings.get("decoder") == "torchcodec" and torchcodec_fault():
        pytest.skip(f"torchcodec cannot be loaded: {torchcodec_fault()}")
    *scenes, film = (row for row in cut(*arguments(path, spans, skip, **settings)) if row is not None)
    by_id = {row["scene_id"]: row for row in scenes}
    assert len(by_id) == len(scenes) and film["scene_id"] == ""
    if spans is not None:
        listed = {scene["scene_id"] for span in spans for scene in span["scenes"]}
        assert set(by_id) == listed - skip and film["scenes"] == len(listed)
    else:
        assert film["scenes"] == len(by_id) + len(skip)
    assert film["decoded"] <= 1.1 * film["source"]
    for row in scenes:
        if row["error"]:
            assert row["message"] and row["frames"] is None and np.isnan([row[name] for name in FEATURES[:-1]]).all()
        if row["frames"] is not None:
            assert row["frames"].dtype == np.uint8 and len(row["frames"]) == row["no_frames"]
    return by_id, film


def stamps(row: Row) -> list[int]:
    return [films.read_stamp(frame) for frame in row["frames"]]


def same(frames: np.ndarray, wanted: np.ndarray, decoder: str) -> bool:
    """Whether the pixels are the same; PyAV rounds otherwise than torchcodec, which hands over to it where it fails."""
    if decoder == "pyav":
        return np.array_equal(frames, wanted)
    return frames.shape == wanted.shape and bool(np.abs(frames.astype(int) - wanted).mean() < 3)


ALL: dict[str, Any] = {"interval_ms": 1, "max": 200, "size": 60}
"""Settings that sample every frame, small enough to be quick."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("films")


@pytest.fixture(scope="module")
def plain(folder: Path) -> Path:
    return films.film(folder / "plain.mp4")


# Which frames


@pytest.mark.parametrize("name", ["film.mp4", "film.mkv", "film.avi", "film.ts", "film.flv", "long_b.mp4", "sound.mp4"])
def test_listed_scenes_hold_exactly_their_frames(tmp_path: Path, name: str) -> None:
    path = films.film(
        tmp_path / name, bframes=5 if name == "long_b.mp4" else 2, audio="aac" if name == "sound.mp4" else None
    )
    spans = [
        span(3.5, None, (0, -1), (3, 9), clip="last"),
        span(0, 2.0, (0, 20), (20, 48), (5, 30), clip="first"),
        span(1.0, 3.0, (0, -1), (47, 48), clip="overlapping"),
    ]
    rows, film = cut_film(path, spans, **ALL)
    wanted = {
        "last_0": range(84, 114),
        "last_1": range(87, 93),
        "first_0": range(20),
        "first_1": range(20, 48),
        "first_2": range(5, 30),
        "overlapping_0": range(24, 72),
        "overlapping_1": range(71, 72),
    }
    for scene_id, frames in wanted.items():
        row = rows[scene_id]
        assert row["error"] == "" and row["no_frames"] == len(frames)
        if len(frames) > 1:
            assert stamps(row) == list(frames)
        assert row["start_s"] == pytest.approx(frames.start * STEP, abs=0.001)
        assert row["end_s"] == pytest.approx(frames.stop * STEP, abs=0.002)
    assert (film["decoded"], film["error"]) == (LENGTH, "")


def test_frames_are_taken_every_interval_from_the_own_start_of_the_scene(plain: Path) -> None:
    rows, _ = cut_film(plain, [span(0.5, 3.0, (0, 19), (19, 50), (50, -1))])
    assert stamps(rows["c_0"]) == [12, 18, 24, 30]
    assert stamps(rows["c_1"]) == [31, 37, 43, 49, 55, 61]
    assert stamps(rows["c_2"]) == [62, 68]


@pytest.mark.parametrize(
    "rate", [Fraction(12), Fraction(24000, 1001), Fraction(25), Fraction(30), Fraction(60000, 1001)]
)
def test_rounding_in_the_container_shifts_no_sample(tmp_path: Path, rate: Fraction) -> None:
    cuts = [(0, 31), (31, 83), (83, 140)]
    for name in ("film.mp4", "film.mkv"):
        rows, _ = cut_film(films.film(tmp_path / name, (70, 70), rate), [span(0, None, *cuts)])
        for row, (first, end) in zip(rows.values(), cuts, strict=True):
            # For each multiple of 250 ms the first frame at it, or a millisecond before, since mkv rounds.
            due = [Fraction(k, 4) - Fraction(1, 1000) for k in range(40)]
            wanted = [next((n for n in range(first, end) if (n - first) / rate >= t), None) for t in due]
            assert stamps(row) == sorted({n for n in wanted if n is not None})


def test_what_an_edit_hides_is_not_counted(plain: Path, tmp_path: Path) -> None:
    """A film shortened without coding it again begins with pictures that only serve to decode the others."""
    with (
        av.open(plain) as whole,
        av.open(tmp_path / "film.mp4", "w", options={"avoid_negative_ts": "disabled"}) as short,
    ):
        source = whole.streams.video[0]
        target = short.add_stream_from_template(source)
        assert source.time_base is not None
        first = round(53 * STEP / source.time_base)
        key = next(p.dts for p in whole.demux(source) if p.is_keyframe and p.pts == round(48 * STEP / source.time_base))
        whole.seek(0)
        for packet in whole.demux(source):
            if packet.pts is not None and packet.dts is not None and packet.dts >= (key or 0):
                packet.pts, packet.dts, packet.stream = packet.pts - first, packet.dts - first, target
                short.mux(packet)
    rows, film = cut_film(
        tmp_path / "film.mp4", [span(0, 1.0, (0, 12), (12, -1)), span(1.0, None, (0, -1), clip="d")], **ALL
    )
    assert [stamps(row) for row in rows.values()] == [list(range(53, 65)), list(range(65, 77)), list(range(77, 114))]
    assert rows["c_0"]["start_s"] == 0 and film["decoded"] == 61
    assert cut_film(tmp_path / "film.mp4")[1]["error"] == ""


def test_a_variable_rate_is_sampled_by_time(folder: Path) -> None:
    path, times = films.variable_rate(folder / "variable.mp4")
    rows, _ = cut_film(path, [span(1.0, 6.0, (0, 30), (30, -1))])
    assert stamps(rows["c_0"]) == [30, 38, 45, 53]
    # 10 frames/s from 2 s on, 20 from 5 s on.
    assert stamps(rows["c_1"]) == [60, 63, 65, 68, 70, 73, 75, 78, 80, 83, 85, 88, 90, 95, 100, 105]
    for row, first, end in ((rows["c_0"], 30, 60), (rows["c_1"], 60, 110)):
        assert (row["start_s"], row["end_s"]) == pytest.approx((times[first], times[end]))


def test_a_cut_in_a_film_with_a_variable_rate_is_found_when_it_is_seen(folder: Path) -> None:
    path, times = films.variable_rate(folder / "variable.mp4")
    for detector in ("content", "adaptive"):
        rows, _ = cut_film(path, detector=detector)
        assert [row["start_s"] for row in rows.values()] == pytest.approx([0, 5.0])
        assert rows["v.0_0"]["end_s"] == times[90] == 5.0


def test_only_the_part_of_a_film_that_is_listed_is_decoded(plain: Path) -> None:
    _, film = cut_film(plain, [span(0, 1.0, (0, -1)), span(0.5, 1.5, (0, 3), clip="d")])
    assert film["decoded"] <= 26 and film["source"] == LENGTH


def test_scenes_that_are_there_already_need_no_row(plain: Path) -> None:
    listed = [span(0, 2.0, (0, 24), (24, -1)), span(2.0, 3.5, (0, -1), clip="d")]
    rows, film = cut_film(plain, listed, frozenset({"c_0", "d_0"}))
    assert list(rows) == ["c_1"] and film["scenes"] == 3
    rows, film = cut_film(plain, None, frozenset({"v.1_0"}), detector="adaptive")
    assert list(rows) == ["v.0_0", "v.2_0"] and film["scenes"] == 3
    assert stamps(rows["v.2_0"]) == [84, 90, 96, 102, 108]


def test_what_names_a_scene_comes_back_with_it(plain: Path) -> None:
    rows, _ = cut_film(plain, [span(0, 2.0, (0, 24), (24, -1))])
    row = rows["c_1"]
    assert (row["clip_id"], row["ordinal"], row["caption"]) == ("c", 1, "so")
    thumbnail = cv2.imdecode(np.frombuffer(row["thumbnail"], np.uint8), cv2.IMREAD_COLOR)
    assert thumbnail is not None and films.read_stamp(thumbnail) in range(24, 48)


def test_a_scene_that_is_too_long_is_counted_but_not_measured(plain: Path) -> None:
    rows, _ = cut_film(plain, [span(0, 4.0, (0, 48), (48, 96))], max=7)
    assert [row["no_frames"] for row in rows.values()] == [8, 8]
    assert all(row["frames"] is None and np.isnan(row["mean_velocity"]) and row["thumbnail"] for row in rows.values())


# Shots


@pytest.mark.parametrize("detector", ["content", "adaptive"])
def test_shots_of_a_film_without_metadata(plain: Path, detector: str) -> None:
    rows, film = cut_film(plain, detector=detector, **ALL)
    assert [row["start_s"] for row in rows.values()] == pytest.approx([0, 2, 3.5])
    assert [row["end_s"] for row in rows.values()] == pytest.approx([2, 3.5, 4.75])
    assert [stamps(row) for row in rows.values()] == [list(range(48)), list(range(48, 84)), list(range(84, 114))]
    assert [row["ordinal"] for row in rows.values()] == [0, 1, 2]
    assert (film["decoded"], film["source"]) == (LENGTH, LENGTH)


@pytest.mark.parametrize("detector", ["content", "adaptive"])
def test_shots_of_real_film(detector: str) -> None:
    rows, _ = cut_film(films.bikes_mp4(), detector=detector)
    found = [round(row["start_s"] * 25) for row in rows.values()][1:]
    assert score_cuts(found, films.BIKES_CUTS).f1 == 1


def test_without_a_detector_the_film_is_one_scene(plain: Path) -> None:
    rows, _ = cut_film(plain)
    assert stamps(rows["v.0_0"]) == list(range(0, LENGTH, 6))


# The picture


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_turned_film_is_upright(tmp_path: Path, degrees: int) -> None:
    rows, _ = cut_film(films.rotated(tmp_path / "film.mp4", degrees), [span(0, None, (0, -1))])
    row = rows["c_0"]
    assert (row["width"], row["height"]) == (120, 160)
    assert stamps(row) == list(range(0, LENGTH, 6))


@pytest.mark.parametrize(
    ("make", "width", "height"),
    [(films.odd_size, 161, 121), (films.non_square_pixels, 160, 120), (films.one_frame, 160, 120)],
)
def test_the_size_of_a_film_is_that_shown(tmp_path: Path, make: Any, width: int, height: int) -> None:
    rows, _ = cut_film(make(tmp_path / "film.mp4"), [span(0, None, (0, -1))])
    row = rows["c_0"]
    assert (row["error"], row["width"], row["height"]) == ("", width, height)
    if row["no_frames"] > 1:
        assert row["frames"].shape[1:] == (240, 240, 3) and stamps(row) == list(range(0, LENGTH, 6))


def write(path: Path, picture: np.ndarray, frames: int = 12, pixels: str = "yuv444p", **coded: Any) -> Path:
    """A film of one still picture, uint8 (H, W, 3) RGB, coded in the colour space that is named."""
    with av.open(path, "w") as container:
        stream: Any = container.add_stream("libx264", rate=24, options={"crf": "8"})
        stream.height, stream.width = picture.shape[:2]
        stream.pix_fmt = pixels
        for name, value in coded.items():
            setattr(stream.codec_context, name, value)
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            space, span = coded.get("colorspace"), coded.get("color_range")
            frame = frame.reformat(format=pixels, dst_colorspace=space, dst_color_range=span, threads=1)
            frame.pts = i
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    ("colorspace", "color_range"), [("ITU709", "MPEG"), ("ITU601", "MPEG"), ("ITU709", "JPEG"), ("ITU601", "JPEG")]
)
def test_colours_are_those_of_the_picture_whatever_they_are_coded_in(
    tmp_path: Path, colorspace: str, color_range: str
) -> None:
    colours = [[220, 30, 30], [30, 220, 30], [30, 30, 220], [235, 235, 235], [20, 20, 20], [200, 150, 100]]
    picture = np.repeat(np.array([colours], np.uint8), 40, axis=1).repeat(240, axis=0)
    coded: dict[str, Any] = {
        "colorspace": {"ITU709": 1, "ITU601": 5}[colorspace],
        "color_range": {"MPEG": 1, "JPEG": 2}[color_range],
    }
    rows, _ = cut_film(write(tmp_path / "film.mp4", picture, **coded), [span(0, None, (0, -1))])
    seen = rows["c_0"]["frames"][0][120, 20::40].astype(int)
    assert np.abs(seen - colours).max() <= 4


@pytest.mark.parametrize("size", [(320, 180), (180, 320), (240, 240)])
def test_a_circle_stays_round(tmp_path: Path, size: tuple[int, int]) -> None:
    picture = np.full((size[1], size[0], 3), 30, np.uint8)
    cv2.circle(picture, (size[0] // 2, size[1] // 2), 60, (220, 220, 220), -1)
    rows, _ = cut_film(write(tmp_path / "film.mp4", picture), [span(0, None, (0, -1))])
    disc = rows["c_0"]["frames"][0][..., 0] > 128
    across, down = disc.any(axis=0).sum(), disc.any(axis=1).sum()
    assert across == pytest.approx(121 * 240 / min(size), abs=2) and down == pytest.approx(across, abs=2)
    assert np.argwhere(disc).mean(axis=0) == pytest.approx([120, 120], abs=1)


def moving(path: Path, codec: str) -> Path:
    """2 s of a texture that moves one pixel a frame to the right, 320×240 at 24 frames/s."""
    noise = np.random.default_rng(0).normal(size=(240, 380, 3))
    texture = np.clip(128 + 400 * cv2.GaussianBlur(noise, (0, 0), 3), 0, 255).astype(np.uint8)
    with av.open(path, "w") as container:
        stream: Any = container.add_stream(codec, rate=24, options={"crf": "18"} if codec == "libx264" else {})
        stream.width, stream.height, stream.bit_rate = 320, 240, 8_000_000
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for i in range(48):
            view = np.ascontiguousarray(texture[:, 50 - i : 370 - i])
            frame = av.VideoFrame.from_ndarray(view, format="rgb24").reformat(format=stream.pix_fmt, threads=1)
            frame.pts = i
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize(("codec", "name"), [("libx264", "film.mp4"), ("mjpeg", "film.avi")])
def test_speed_is_that_between_neighbouring_samples_with_and_without_motion_vectors(
    tmp_path: Path, codec: str, name: str
) -> None:
    rows, _ = cut_film(moving(tmp_path / name, codec), [span(0, None, (0, -1), (12, -1))], flow="farneback")
    # One pixel a frame, a sample every 6 frames; edges, where the texture comes in, are measured less well.
    for row in rows.values():
        assert row["mean_velocity"] == pytest.approx(6, rel=0.1) and row["max_velocity"] == pytest.approx(6, rel=0.1)


def test_uncompressed_sound_in_mov_changes_nothing(plain: Path, tmp_path: Path) -> None:
    ours, _ = cut_film(films.pcm_mov(tmp_path / "film.mov"), [span(0.5, 3.0, (0, -1))])
    theirs, _ = cut_film(plain, [span(0.5, 3.0, (0, -1))])
    assert np.array_equal(ours["c_0"]["frames"], theirs["c_0"]["frames"])


@pytest.mark.parametrize("path", sorted(films.samples_folder().iterdir()), ids=lambda path: path.suffix)
def test_containers_of_the_wild_give_the_same_scenes(path: Path) -> None:
    rows, _ = cut_film(path, [span(0, 2.0, (0, 24), (24, -1))])
    if path.suffix in (".ogg", ".ogv"):
        # FFmpeg's decoder fails on this Theora stream, and says so.
        assert {row["error"] for row in rows.values()} == {"decode_error"}
        return
    if path.suffix == ".gif":
        assert {row["error"] for row in rows.values()} == {""}
        return
    first, second = rows.values()
    assert first["error"] == second["error"] == ""
    assert second["start_s"] == first["end_s"] and 1.9 < second["end_s"] < 2.1
    assert first["no_frames"] in (4, 5) and second["no_frames"] in (4, 5)
    reference, _ = cut_film(films.demo_mp4(), [span(0, 2.0, (0, 24), (24, -1))])
    for row in rows.values():
        wanted = reference[row["scene_id"]]["frames"]
        assert np.abs(row["frames"][0].astype(int) - wanted[0]).mean() < 12


# What is wrong with it


BROKEN = {
    "empty_file": films.empty_file,
    "not_a_video": films.text_file,
    "no_video_stream": films.sound_only,
    "no_index": films.without_index,
    "unknown_codec": films.unknown_codec,
    "playlist": films.list_of_films,
}


@pytest.mark.parametrize("decoder", ["pyav", "torchcodec"])
@pytest.mark.parametrize("code", BROKEN)
def test_a_film_that_cannot_be_read_says_why(tmp_path: Path, code: str, decoder: str) -> None:
    path = BROKEN[code](tmp_path / "film.mp4")
    rows, film = cut_film(path, [span(0, 2.0, (0, 24), (24, -1))], decoder=decoder)
    assert [row["error"] for row in rows.values()] == [code, code] and film["error"] == ""
    rows, film = cut_film(path, detector="adaptive", decoder=decoder)
    assert (rows, film["error"], film["scenes"]) == ({}, code, 0) and film["message"]


def test_a_film_of_one_frame_is_a_scene_of_one_frame(tmp_path: Path) -> None:
    for spans in ([span(0, None, (0, -1))], [span(0, 0.04, (0, 1))], None):
        rows, _ = cut_film(films.one_frame(tmp_path / "film.mp4"), spans, detector="adaptive")
        [row] = rows.values()
        length = 0.04 if spans and spans[0]["end_s"] else STEP
        assert (row["error"], row["no_frames"], row["frames"]) == ("", 1, None)
        assert np.isnan([row[name] for name in FEATURES[:-1]]).all() and row["thumbnail"]
        assert (row["start_s"], row["end_s"]) == pytest.approx((0, length))


def test_a_span_that_ends_after_the_film(plain: Path) -> None:
    listed = [span(3.5, 6.0, (0, 10), (10, -1), (10, 30), (10, 31), (40, 50)), span(7.0, 8.0, (0, -1), clip="behind")]
    rows, film = cut_film(plain, listed)
    assert {scene_id: row["error"] for scene_id, row in rows.items()} == {
        "c_0": "",
        "c_1": "span_beyond_end",
        "c_2": "",
        "c_3": "span_beyond_end",
        "c_4": "span_beyond_end",
        "behind_0": "span_beyond_end",
    }
    assert film["error"] == "" and "4.750" in rows["c_1"]["message"]


def test_times_in_metadata_may_be_rounded(plain: Path) -> None:
    """The end of a film may be missed by 0.1 s, the end of a span by two frames."""
    rows, _ = cut_film(plain, [span(3.5, 4.84, (0, -1), (0, 32), (0, 33))])
    assert [row["error"] for row in rows.values()] == ["", "", "scene_beyond_span"]
    rows, _ = cut_film(plain, [span(1.0, 2.0, (0, 24), (0, 26), (0, 27), (24, 26), (23, 25))], **ALL)
    assert {scene_id: row["error"] for scene_id, row in rows.items()} == {
        "c_0": "",
        "c_1": "",
        "c_2": "scene_beyond_span",
        "c_3": "scene_beyond_span",
        "c_4": "",
    }
    assert stamps(rows["c_1"]) == list(range(24, 48)) and rows["c_1"]["end_s"] == 2.0
    assert "24 frames" in rows["c_2"]["message"]


def cut_off(path: Path, share: float) -> Path:
    """A film of which only the first `share` of the bytes arrived."""
    whole = films.film(path, faststart=path.suffix == ".mp4").read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    return path


@pytest.mark.parametrize(
    ("name", "share", "decoder"),
    [
        ("a.mp4", 0.3, "pyav"),
        ("a.mp4", 0.6, "pyav"),
        ("a.mp4", 0.99, "pyav"),
        ("a.mkv", 0.6, "pyav"),
        ("a.flv", 0.5, "pyav"),
        ("a.avi", 0.6, "pyav"),
        ("a.mp4", 0.6, "torchcodec"),
        ("a.mkv", 0.6, "torchcodec"),
    ],
)
def test_scenes_before_the_break_of_a_truncated_film_are_whole(
    tmp_path: Path, plain: Path, name: str, share: float, decoder: str
) -> None:
    path = cut_off(tmp_path / name, share)
    pairs = [span(0, None, *((i, i + 2) for i in range(0, LENGTH, 2)))]
    rows, film = cut_film(path, pairs, decoder=decoder, **ALL)
    intact, _ = cut_film(films.film(tmp_path / f"whole{path.suffix}"), pairs, decoder=decoder, **ALL)
    codes = [row["error"] for row in rows.values()]
    whole = codes.count("")
    assert codes == [""] * whole + ["truncated"] * (LENGTH // 2 - whole)
    assert share * LENGTH / 2 - 12 < whole < LENGTH / 2
    for scene_id in list(rows)[:whole]:
        assert same(rows[scene_id]["frames"], intact[scene_id]["frames"], decoder)
        assert stamps(rows[scene_id]) == stamps(intact[scene_id])
        for name in ("start_s", "end_s"):
            assert rows[scene_id][name] == pytest.approx(intact[scene_id][name], abs=0.002)
    assert film["error"] == "" and film["decoded"] < film["source"] + (path.suffix in (".mkv", ".flv"))

    rows, film = cut_film(path, detector="adaptive", decoder=decoder)
    *before, last = rows.values()
    assert (last["error"], film["error"]) == ("truncated", "truncated") and "breaks off" in film["message"]
    assert all(row["error"] == "" for row in before)


def test_a_span_that_ends_at_the_break_is_whole(tmp_path: Path) -> None:
    path = cut_off(tmp_path / "film.mp4", 0.6)
    rows, _ = cut_film(path, [span(0, None, (0, -1))])
    assert rows["c_0"]["error"] == "truncated"
    rows, _ = cut_film(path, [span(0, rows["c_0"]["end_s"], (0, -1))])
    assert rows["c_0"]["error"] == "" and stamps(rows["c_0"])[:2] == [0, 6]


def test_an_mp4_of_which_only_the_index_arrived(tmp_path: Path) -> None:
    path = films.film(tmp_path / "film.mp4", faststart=True)
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.index(b"mdat") + 20])
    rows, _ = cut_film(path, [span(0, 1.0, (0, -1))])
    assert rows["c_0"]["error"] == "truncated"
    path.write_bytes(whole[: whole.index(b"mdat") // 2])
    rows, _ = cut_film(path, [span(0, 1.0, (0, -1))])
    assert rows["c_0"]["error"] == "no_index"


def damaged(path: Path, number: int, intact: Path) -> tuple[int, int]:
    """Replace the packet that comes `number`th in the file; returns which frame it is, and the next key frame."""
    with av.open(intact) as container:
        packets = [p for p in container.demux(video=0) if p.size]
        stamps = sorted(p.pts for p in packets if p.pts is not None)
        keys = [stamps.index(p.pts) for p in packets if p.is_keyframe and p.pts is not None] + [len(stamps)]
    hit = packets[number]
    data = bytearray(intact.read_bytes())
    noise = np.random.default_rng(number).integers(0, 256, hit.size, dtype=np.uint8).tobytes()
    assert hit.pos is not None and hit.pts is not None
    data[hit.pos : hit.pos + hit.size] = noise
    path.write_bytes(data)
    frame = stamps.index(hit.pts)
    return frame, next(key for key in keys if key > frame)


@pytest.mark.parametrize(
    ("codec", "number", "decoder"),
    [
        *((codec, number, "pyav") for codec in ("libx264", "mpeg4") for number in (60, 61, 62, 71)),
        ("libx264", 60, "torchcodec"),
        ("libx264", 62, "torchcodec"),
    ],
)
def test_damage_harms_the_scenes_that_show_it_and_no_others(
    tmp_path: Path, folder: Path, codec: str, number: int, decoder: str
) -> None:
    intact = folder / f"intact_{codec}.mp4"
    if not intact.exists():
        films.film(intact, codec=codec)
    frame, key = damaged(tmp_path / "film.mp4", number, intact)
    listed = [span(0, None, *((i, i + 2) for i in range(0, LENGTH, 2)))]
    wanted, _ = cut_film(intact, listed, decoder=decoder, **ALL)
    rows = {
        row["scene_id"]: row for row in cut(*arguments(tmp_path / "film.mp4", listed, decoder=decoder, **ALL)) if row
    }
    closing = rows.pop("")
    assert closing["scenes"] == len(rows) == LENGTH // 2
    assert closing["decoder"] == ("pyav" if decoder == "pyav" else "torchcodec-cpu+pyav")
    harmed = [i for i, row in enumerate(rows.values()) if row["error"]]
    assert {rows[f"c_{i}"]["error"] for i in harmed} == {"decode_error"}
    assert frame // 2 in harmed and max(frame // 2 - 2, 0) <= harmed[0] and harmed[-1] <= (key - 1) // 2
    assert harmed == list(range(harmed[0], harmed[-1] + 1))
    for scene_id, row in rows.items():
        assert row["start_s"] == pytest.approx(wanted[scene_id]["start_s"])
        assert row["end_s"] == pytest.approx(wanted[scene_id]["end_s"])
        if not row["error"]:
            assert same(row["frames"], wanted[scene_id]["frames"], decoder)


@pytest.mark.parametrize(("codec", "name"), [("libvpx-vp9", "film.webm"), ("libx265", "film.mp4")])
def test_damage_that_a_decoder_conceals_stays_in_its_span(tmp_path: Path, codec: str, name: str) -> None:
    """FFmpeg's decoders of VP9 and HEVC say nothing of damage, and may drop a frame: the row shows what is seen."""
    intact = films.film(tmp_path / f"intact_{name}", codec=codec)
    frame, key = damaged(tmp_path / name, 62, intact)
    times = [0, (frame - 8) * STEP, key * STEP]
    listed = [span(a, b, (0, -1), clip=f"{a}") for a, b in zip(times, [*times[1:], None], strict=True)]
    rows, _ = cut_film(tmp_path / name, listed)
    wanted, _ = cut_film(intact, listed)
    before, _, after = rows
    assert {row["error"] for row in rows.values()} <= {"", "decode_error"}
    for scene_id in (before, after):
        assert np.array_equal(rows[scene_id]["frames"], wanted[scene_id]["frames"])


@pytest.mark.slow
def test_whatever_the_bytes_are_each_listed_scene_gets_one_row(tmp_path: Path) -> None:
    random = np.random.default_rng(7)
    sources = [
        films.film(tmp_path / name, audio=audio, faststart=name == "film.mp4")
        for name, audio in (("film.mp4", "aac"), ("film.mkv", None), ("film.ts", "aac"), ("film.flv", "aac"))
    ]
    listed = [
        span(0, 2.0, (0, 24), (24, -1)),
        span(2.0, 4.0, (0, -1), (3, 12), clip="d"),
        span(3, None, (0, -1), clip="e"),
    ]
    codes = set()
    for i in range(32):
        source = sources[i % 4]
        data = bytearray(source.read_bytes())
        at, size = random.integers(len(data)), random.integers(1, 3000)
        kind = i // 4 % 4
        if kind == 0:
            data[at : at + size] = random.integers(0, 256, size, dtype=np.uint8).tobytes()
        elif kind == 1:
            del data[at : at + size]
        elif kind == 2:
            for place in random.integers(len(data), size=12):
                data[place] = 255
        else:
            del data[: 200 + size]
        path = tmp_path / f"spoilt{source.suffix}"
        path.write_bytes(data)
        rows, _ = cut_film(path, listed)
        codes |= {row["error"] for row in rows.values()}
        cut_film(path, detector="adaptive")
    assert codes > {"", "decode_error"}


def test_a_clock_that_starts_again_does_not_stop_time(tmp_path: Path) -> None:
    """Recordings joined end to end, as in VOB and TS files."""
    part = films.film(tmp_path / "part.ts").read_bytes()
    (tmp_path / "film.ts").write_bytes(part + part)
    rows, _ = cut_film(tmp_path / "film.ts", [span(0, None, (0, LENGTH), (LENGTH, -1))], **ALL)
    first, second = rows.values()
    assert stamps(first) == list(range(LENGTH)) and second["end_s"] == pytest.approx(9.5, abs=0.2)
    assert second["no_frames"] > LENGTH - 5


def test_a_picture_on_the_cover_is_no_film(tmp_path: Path) -> None:
    path = tmp_path / "song.mp4"
    with av.open(path, "w") as container:
        sound: Any = container.add_stream("aac", rate=48_000, layout="mono")
        cover: Any = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 160, 120, "yuvj420p"
        cover.disposition = Disposition.attached_pic
        picture = av.VideoFrame.from_ndarray(films.stamp(0, 160, 120), format="rgb24").reformat(
            format="yuvj420p", threads=1
        )
        picture.pts = 0
        container.mux(cover.encode(picture))
        for i in range(20):
            block = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            block.sample_rate, block.pts = 48_000, 1024 * i
            container.mux(sound.encode(block))
        container.mux(cover.encode())
        container.mux(sound.encode())
    rows, _ = cut_film(path, [span(0, None, (0, -1))])
    assert rows["c_0"]["error"] == "no_video_stream" and "audio" in rows["c_0"]["message"]


def test_a_playlist_under_a_films_name_fetches_nothing(tmp_path: Path) -> None:
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/film.ts"
    path = tmp_path / "film.mp4"
    try:
        for text in (f"#EXTM3U\n#EXTINF:5,\n{address}\n#EXT-X-ENDLIST\n", f"ffconcat version 1.0\nfile {address}\n"):
            path.write_text(text)
            rows, _ = cut_film(path, [span(0, 1.0, (0, -1))])
            assert rows["c_0"]["error"] == "playlist"
    finally:
        server.shutdown()
    assert asked == []


# torchcodec


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("film.mp4", films.film),
        ("film.mkv", films.film),
        ("film.mp4", films.rotated),
        ("film.mp4", films.odd_size),
        ("film.mp4", films.non_square_pixels),
        ("film.mp4", films.one_frame),
        ("film.mov", films.pcm_mov),
        ("film.avi", films.no_motion_vectors),
        ("film.ts", films.film),
        ("film.mp4", lambda path: films.variable_rate(path)[0]),
    ],
)
def test_torchcodec_gives_the_same_rows(tmp_path: Path, name: str, make: Any) -> None:
    path = make(tmp_path / name)
    for spans in ([span(0, 2.0, (0, 20), (20, -1)), span(1.0, None, (0, -1), clip="d")], None):
        ours, film = cut_film(path, spans, decoder="torchcodec", detector="adaptive")
        theirs, wanted_film = cut_film(path, spans, detector="adaptive")
        assert list(ours) == list(theirs)
        assert film["decoded"] == pytest.approx(wanted_film["decoded"], abs=16)
        assert film["source"] == wanted_film["source"]
        assert film["decoder"] == ("torchcodec-cpu" if path.suffix in (".mp4", ".mkv", ".mov") else "pyav")
        for row, wanted in zip(ours.values(), theirs.values(), strict=True):
            for key in ("error", "width", "height", "no_frames"):
                assert row[key] == wanted[key]
            assert row["start_s"] == pytest.approx(wanted["start_s"], abs=0.002, nan_ok=True)
            # How long the last frame stays is known to PyAV only.
            assert row["end_s"] == pytest.approx(wanted["end_s"], abs=0.005, nan_ok=True)
            if wanted["frames"] is not None:
                assert stamps(row) == stamps(wanted) and same(row["frames"], wanted["frames"], "torchcodec")


def test_torchcodec_measures_real_film_like_pyav() -> None:
    listed = [span(0, None, (0, -1))]
    ours, film = cut_film(films.bikes_mp4(), listed, decoder="torchcodec")
    theirs, _ = cut_film(films.bikes_mp4(), listed)
    assert film["decoded"] == film["source"] == 250
    for name in FEATURES[:4]:
        assert ours["c_0"][name] == pytest.approx(theirs["c_0"][name], rel=0.03)


# In one process


MEMORY = """
import pathlib, sys
from actors.curation.features.motion import MotionConfig
from actors.media.shot_detection.shots import ShotsConfig
from actors.curation.cutting.cut import cut
from actors.curation.cutting.scenes import FramesConfig
from actors.media.film import VideoConfig
scene = {"clip_id": "c", "scene_id": "s", "ordinal": 0, "caption": "", "first": 0, "end": -1}
starts = range(0, int(sys.argv[3]), 10)
spans = None if sys.argv[2] == "shots" else [
    {"start_s": t, "end_s": t + 10.0, "scenes": [{**scene, "scene_id": f"s{t}"}]} for t in starts
]
settings = VideoConfig(), FramesConfig(), ShotsConfig(), MotionConfig(flow="scaled")
for row in cut(sys.argv[1], "v", spans, frozenset(), *settings):
    pass
status = pathlib.Path("/proc/self/status").read_text()  # getrusage would tell the parent's peak where that is higher
print(row["decoded"], int(status.split("VmHWM:")[1].split()[0]) / 1024)
"""


def peak_mb(path: Path, mode: str, seconds: int) -> float:
    """Peak memory of a process that cuts the film, in MB."""
    run = subprocess.run(
        [sys.executable, "-c", MEMORY, str(path), mode, str(seconds)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    decoded, peak = run.stdout.split()
    assert int(decoded) == films.RATE * seconds
    return float(peak)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["shots", "listed"])
def test_memory_does_not_grow_with_the_length_of_a_film(tmp_path: Path, mode: str) -> None:
    shots = [60, 36, 84, 60] * 3  # 30 s
    short = films.film(tmp_path / "short.mp4", shots)
    with av.open(short) as container, av.open(tmp_path / "long.mp4", "w") as joined:
        source = container.streams.video[0]
        target = joined.add_stream_from_template(source)
        packets = [packet for packet in container.demux(source) if packet.size]
        starts = [(p.pts or 0, p.dts or 0) for p in packets]
        length = source.duration or 0
        for turn in range(6):
            for packet, (pts, dts) in zip(packets, starts, strict=True):
                packet.pts, packet.dts, packet.stream = pts + turn * length, dts + turn * length, target
                joined.mux(packet)
    short_mb, long_mb = peak_mb(short, mode, 30), peak_mb(tmp_path / "long.mp4", mode, 180)
    assert long_mb < short_mb + 30 and long_mb < 300


# In the child


@pytest.fixture
def child(tmp_path: Path) -> Iterator[Child]:
    """A child that has imported what it needs, which on a busy machine takes longer than the tests allow a film."""
    child = Child()
    empty = films.empty_file(tmp_path / "empty.mp4")
    list(child.stream(cut, *arguments(empty, []), stall_s=120, timeout_s=120))
    yield child
    child.kill()


def test_rows_come_out_of_the_child_as_they_are(child: Child, plain: Path) -> None:
    listed = [span(0.5, 3.0, (0, 19), (19, -1))]
    *scenes, film = child.stream(cut, *arguments(plain, listed), stall_s=30, timeout_s=60)
    wanted, film_wanted = cut_film(plain, listed)
    assert [row["scene_id"] for row in scenes] == list(wanted) and film["decoded"] == film_wanted["decoded"]
    for row in scenes:
        assert np.array_equal(row["frames"], wanted[row["scene_id"]]["frames"])
        assert row["mean_velocity"] == pytest.approx(wanted[row["scene_id"]]["mean_velocity"])


def feed(path: Path, pieces: Iterator[bytes]) -> None:
    with path.open("wb", buffering=0) as pipe:
        try:
            for piece in pieces:
                pipe.write(piece)
        except BrokenPipeError:
            return


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "film.ts"
    os.mkfifo(path)
    yield path
    # Whoever still waits for the other end to be opened.
    os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK))


def test_a_film_that_never_comes_has_stalled(child: Child, pipe: Path) -> None:
    with pytest.raises(ChildFault) as fault:
        list(child.stream(cut, *arguments(pipe, [span(0, 1, (0, -1))]), stall_s=1, timeout_s=60))
    assert fault.value.code == "stalled"


@pytest.mark.slow
def test_a_film_without_end_gives_its_first_scenes_and_runs_out_of_time(child: Child, pipe: Path, folder: Path) -> None:
    part = films.film(folder / "part.ts", shots=(48, 36, 30, 48, 36, 30)).read_bytes()
    feeder = threading.Thread(target=feed, args=(pipe, cycle([part])), daemon=True)
    feeder.start()
    listed = [span(0, 2.0, (0, 24), (24, -1)), span(10_000_000, None, (0, -1), clip="never")]
    stream = child.stream(cut, *arguments(pipe, listed), stall_s=30, timeout_s=5)
    rows = [next(stream), next(stream)]
    with pytest.raises(ChildFault) as fault:
        next(stream)
    feeder.join(timeout=30)
    assert fault.value.code == "timeout" and not feeder.is_alive()
    assert [(row["scene_id"], row["error"], stamps(row)) for row in rows] == [
        ("c_0", "", [0, 6, 12, 18]),
        ("c_1", "", [24, 30, 36, 42]),
    ]


def test_a_crash_in_the_middle_keeps_the_scenes_before_it(child: Child, pipe: Path, folder: Path) -> None:
    part = films.film(folder / "part.ts", shots=(48, 36, 30, 48, 36, 30)).read_bytes()

    def pieces() -> Iterator[bytes]:
        yield part
        # The film stands still here, its first scene is long done.
        time.sleep(30)

    threading.Thread(target=feed, args=(pipe, pieces()), daemon=True).start()
    stream = child.stream(
        cut,
        *arguments(pipe, [span(0, 2.0, (0, 24)), span(9000, None, (0, -1), clip="d")]),
        stall_s=30,
        timeout_s=60,
    )
    assert stamps(next(stream)) == [0, 6, 12, 18]
    assert child._process is not None
    child._process.kill()
    with pytest.raises(ChildFault, match="SIGKILL") as fault:
        next(stream)
    assert fault.value.code == "crashed"

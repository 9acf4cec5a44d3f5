"""What lies between wanted scenes is jumped over, and what is written and sampled is the same as without."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from actors.core.stage import Row
from actors.curation.cutting import cut
from actors.curation.cutting.scenes import FramesConfig
from actors.curation.exporting import clips
from actors.curation.exporting.clips import ClipsConfig, write_clips
from actors.curation.features.motion import MotionConfig
from actors.media import film as films_of
from actors.media.film import Film, VideoConfig
from actors.media.shot_detection.shots import ShotsConfig
from tests.support import films

SCENES = ((2.0, 4.0), (30.0, 33.5), (33.5, 35.0), (55.0, 59.0))
"""Seconds of scenes; between the second and the third nothing is jumped over."""


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 s with a key frame every 4 s, B-frames and sound."""
    return films.film(tmp_path_factory.mktemp("films") / "film.mp4", (240,) * 6, gop=96, audio="aac")


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Film]:
    """The films that were opened."""
    opened: list[Film] = []

    def noted(function: Any) -> Any:
        def note(*arguments: Any, **more: Any) -> Film:
            opened.append(function(*arguments, **more))
            return opened[-1]

        return note

    for module, name in ((clips, "open_film"), (cut, "open_film"), (cut, "opened")):
        monkeypatch.setattr(module, name, noted(getattr(films_of, name)))
    return opened


def copied(source: Path, path: Path, later: float = 0.0) -> Path:
    """The film in another container, all its times later by so many seconds."""
    with av.open(source) as film, av.open(path, "w") as file:
        streams = {stream.index: file.add_stream_from_template(stream) for stream in film.streams}
        for packet in film.demux():
            if packet.dts is None or packet.pts is None:
                continue
            offset = round(later / packet.time_base)
            packet.pts, packet.dts = packet.pts + offset, packet.dts + offset
            packet.stream = streams[packet.stream.index]
            file.mux(packet)
    return path


def shifted(path: Path, scenes: Sequence[tuple[float, float]] = SCENES) -> list[tuple[float, float]]:
    """The scenes where they are in a copy: files begin with their sound or with their pictures."""
    begin = next(films_of.open_film(str(path)).pictures).time
    return [(begin + start, begin + end) for start, end in scenes]


def wanted(scenes: Sequence[tuple[float, float]], **more: Any) -> list[Row]:
    return [{"scene_id": f"s{i}", "start_s": a, "end_s": b, **more} for i, (a, b) in enumerate(scenes)]


def written(path: Path, folder: Path, scenes: list[Row]) -> dict[str, tuple[Any, ...]]:
    """Of each clip the error, the stamps of its pictures, their times and its sound."""
    found = {}
    for row in write_clips(str(path), scenes, str(folder), ClipsConfig(crf=12), None):
        if row and row["error"]:
            found[row["scene_id"]] = (row["error"], row["message"])
        elif row:
            with av.open(str(row["path"])) as clip:
                frames = list(clip.decode(video=0))
            with av.open(str(row["path"])) as clip:
                sound = np.concatenate([block.to_ndarray() for block in clip.decode(audio=0)], axis=1)
            stamps = [films.read_stamp(frame.to_ndarray(format="rgb24")) for frame in frames]
            found[row["scene_id"]] = ("", stamps, [frame.time for frame in frames], sound)
    return found


def sampled(path: Path, scenes: list[Row], seek: bool) -> dict[str, Row]:
    settings = VideoConfig(), FramesConfig(), ShotsConfig(), MotionConfig(flow="scaled")
    about = {"clip_id": "c", "ordinal": 0, "caption": "", "first": 0, "end": -1}
    spans = [
        {**row, "steady": row.get("clock_jumps") == 0, "scenes": [{**about, "scene_id": row["scene_id"]}]}
        for row in scenes
    ]
    rows = cut.cut(str(path), "v", spans, frozenset(), *settings, seek=seek)
    return {row["scene_id"]: row for row in rows if row and row["scene_id"]}


@pytest.mark.slow
@pytest.mark.parametrize(("suffix", "later"), [("mp4", 0), ("mov", 0), ("mkv", 0), ("mkv", 7.3), ("mp4", 1.5)])
def test_clips_are_those_of_a_whole_decode(
    film: Path, tmp_path: Path, decoded: list[Film], monkeypatch: pytest.MonkeyPatch, suffix: str, later: float
) -> None:
    path = copied(film, tmp_path / f"film.{suffix}", later)
    scenes = wanted(shifted(path), clock_jumps=0)
    jumped = written(path, tmp_path / "jumped", scenes)
    # 2 to 4 s, 4 s before each jump, and what lies in between: less than half of 1440.
    assert sum(film.decoded for film in decoded) < 700
    monkeypatch.setattr(films_of, "JUMP_S", 1e9)
    whole = written(path, tmp_path / "whole", scenes)
    assert decoded[-1].decoded > 1300
    for (name, (error, stamps, times, sound)), (start, end) in zip(jumped.items(), SCENES, strict=True):
        assert (error, stamps) == ("", list(range(round(start * 24), round(end * 24))))
        assert whole[name][:2] == (error, stamps) and times == pytest.approx(whole[name][2])
        assert sound.shape == whole[name][3].shape
        # Matroska rounds times to a millisecond, 48 samples. An encoder makes much of little where sound sets in.
        shifts = range(-48, 49) if suffix == "mkv" else (0,)
        middle = whole[name][3][:, 100:-100]
        assert min((np.abs(sound[:, 100 + by : by - 100] - middle) > 0.05).mean() for by in shifts) < 0.01


def test_a_clip_near_the_end_needs_a_fraction_of_the_film(film: Path, tmp_path: Path, decoded: list[Film]) -> None:
    found = written(film, tmp_path, wanted([(57.0, 58.0)]))
    assert found["s0"][1] == list(range(57 * 24, 58 * 24))
    assert decoded[0].decoded <= (4 + 1) * 24 + 2


def test_without_knowledge_of_its_clock_a_film_is_decoded_from_its_start(
    film: Path, tmp_path: Path, decoded: list[Film]
) -> None:
    path = copied(film, tmp_path / "film.mkv")
    for jumps in ({}, {"clock_jumps": 1}, {"clock_jumps": float("nan")}):
        found = written(path, tmp_path, wanted(shifted(path, [(57.0, 58.0)]), **jumps))
        assert found["s0"][1] == list(range(57 * 24, 58 * 24))
        assert decoded[-1].decoded > 1300


def test_what_is_not_found_by_seeking_is_told_as_without(film: Path, tmp_path: Path, decoded: list[Film]) -> None:
    found = written(film, tmp_path, wanted([(30.0, 31.0), (50.02, 52.0), (58.0, 70.0)]))
    assert found["s0"][1] == list(range(720, 744))
    assert found["s1"][0] == "export_failed" and "not the film that was measured" in found["s1"][1]
    assert found["s2"][0] == "export_failed" and "ends at 60.000 s" in found["s2"][1]
    assert len(decoded) == 2 and sorted(path.name for path in tmp_path.iterdir()) == ["s0.mp4"]


def test_damage_before_a_scene_is_told_as_without(film: Path, tmp_path: Path) -> None:
    data = bytearray(film.read_bytes())
    with av.open(film) as container:
        packets = [packet for packet in container.demux(video=0) if packet.pos]
    hit = next(packet for packet in packets if packet.pts and packet.pts * packet.time_base >= 53)
    assert hit.pos is not None
    data[hit.pos + 8 : hit.pos + hit.size] = bytes(hit.size - 8)
    path = tmp_path / "film.mp4"
    path.write_bytes(data)
    assert [name for name, (error, *_) in written(path, tmp_path / "out", wanted(SCENES)).items() if error] == ["s3"]


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_sampled_frames_are_those_of_a_whole_decode(
    film: Path, tmp_path: Path, decoded: list[Film], suffix: str
) -> None:
    path = copied(film, tmp_path / f"film.{suffix}")
    scenes = wanted(shifted(path), clock_jumps=0)
    whole, jumped = sampled(path, scenes, seek=False), sampled(path, scenes, seek=True)
    assert list(jumped) == list(whole) and decoded[0].decoded > 1300 and decoded[1].decoded < 700
    for name, row in jumped.items():
        assert (row["frames"] == whole[name]["frames"]).all()
        for column in ("start_s", "end_s", "error", "no_frames", "longest_hold_s"):
            assert row[column] == whole[name][column]


def test_a_span_that_begins_while_a_picture_is_held_is_decoded_from_the_start(
    tmp_path: Path, decoded: list[Film]
) -> None:
    times = [*(i / 24 for i in range(480)), *(30 + i / 24 for i in range(48))]
    path = films.film(tmp_path / "film.mp4", (len(times),), times=times)
    scenes = wanted([(25.0, 31.0)])
    whole, jumped = sampled(path, scenes, seek=False), sampled(path, scenes, seek=True)
    assert len(decoded) == 3
    assert (jumped["s0"]["frames"] == whole["s0"]["frames"]).all() and jumped["s0"]["start_s"] == whole["s0"]["start_s"]

"""Exactly the frames of an interval, read back from the files."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest

from actors.core.stage import Row
from actors.core.store import Store
from actors.media.film import VideoConfig
from actors.media.shot_detection.shots import ShotsConfig
from actors.movie_characters.film_frames import Interval, frames_in, frames_of_shots, write_frames
from tests.support import films


def read(film: Path, intervals: Sequence[Interval], by_index: bool = False, there: Sequence[str] = ()) -> tuple:
    *frames, last = [row for row in frames_in(str(film), intervals, by_index, frozenset(there)) if row]
    return {row["name"]: stamp(row) for row in frames}, last


def decoded(jpeg: bytes) -> np.ndarray:
    image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    return image


def stamp(row: Row) -> int:
    """Number of the frame in the film, as its picture says."""
    return films.read_stamp(decoded(row["jpeg"]))


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """114 frames at 24 a second."""
    return films.film(tmp_path_factory.mktemp("film") / "film.mp4")


def test_both_ends_belong_to_an_interval(film: Path):
    found, last = read(film, [Interval("Ann", 1, 1.5)])
    assert found == {f"Ann/Ann_frame_{n:04d}.jpg": 23 + n for n in range(1, 14)}
    assert last["frames"] == [13]
    assert last["files"] == {"Ann": 13}


def test_frames_of_overlapping_intervals_come_once(film: Path):
    intervals = [Interval("Ann", 1, 1.5), Interval("Ann", 1.25, 1.75), Interval("Bob", 0, 0)]
    found, last = read(film, intervals)
    assert [number for name, number in found.items() if name.startswith("Ann/")] == list(range(24, 43))
    assert found["Bob/Bob_frame_0001.jpg"] == 0
    assert last["frames"] == [13, 13, 1]


def test_numbers_may_be_those_of_the_film(film: Path):
    found, _ = read(film, [Interval("Ann", 1, 1.1)], by_index=True)
    assert found == {f"Ann/Ann_frame_{n:04d}.jpg": n for n in (24, 25, 26)}


def test_what_is_there_is_not_made_again(film: Path):
    found, last = read(film, [Interval("Ann", 1, 1.1)], there=["Ann/Ann_frame_0002.jpg"])
    assert list(found) == ["Ann/Ann_frame_0001.jpg", "Ann/Ann_frame_0003.jpg"]
    assert last["files"] == {"Ann": 3}


def test_times_count_and_not_frames_over_a_rate(tmp_path: Path):
    times = [0, 0.1, 0.2, 2, 2.1, 2.2]
    film = films.film(tmp_path / "slow.mp4", [6], times=times)
    found, _ = read(film, [Interval("Ann", 2, 3)])
    assert list(found.values()) == [3, 4, 5]


def test_a_film_that_cannot_be_read_says_so(tmp_path: Path):
    (tmp_path / "film.mp4").write_bytes(b"nothing of a film")
    found, last = read(tmp_path / "film.mp4", [Interval("Ann", 0, 1)])
    assert not found
    assert last["error"] == "not_a_video"


def test_of_each_shot_some_frames_are_kept(film: Path, tmp_path: Path):
    *shots, last = [row for row in frames_of_shots(str(film), ShotsConfig(), 1.0, 100) if row]
    # Shots begin at frames 0, 48 and 84 of 114, at 24 a second.
    assert [(shot["start_s"], shot["end_s"]) for shot in shots] == [(0, 2), (2, 3.5), (3.5, 4.75)]
    assert [shot["times"] for shot in shots] == [[0, 1], [2, 3], [3.5, 4.5]]
    sizes = {decoded(jpeg).shape for shot in shots for jpeg in shot["jpegs"]}
    assert sizes == {(75, 100, 3)}
    assert (last["shots"], last["error"], last["rate"], last["begin_s"]) == (3, "", "24", 0)
    (tmp_path / "film.mp4").write_bytes(b"nothing of a film")
    (only,) = frames_of_shots(str(tmp_path / "film.mp4"), ShotsConfig(), 1.0, 100)
    assert only is not None and only["error"] == "not_a_video"


@pytest.mark.parametrize("uri", ["s3://bucket", "s3://Bad_Bucket!/a.mp4", "file://host/a.mp4", "/films/a\0b.mp4"])
def test_an_address_that_no_film_has_is_an_error_of_its_film(uri: str, tmp_path: Path):
    batch = {"film": np.array(["a"], object), "uri": np.array([uri], object)}
    store = Store(str(tmp_path))
    written = write_frames(batch, ShotsConfig(), VideoConfig(), 1.0, 100, store)
    assert written["shots"].tolist() == [0]
    about = store.read_json("failed", "a.json")
    assert about and about["error"] == "bad_url" and about["message"]

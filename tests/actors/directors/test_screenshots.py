"""Screenshots are the frames that they say they are, whichever way the container is read."""

import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from actors.core.stage import Row
from actors.directors.screenshots import ScreenshotsConfig, screenshots
from actors.media.film import open_film
from tests.support import films


def taken(path: Path | str, name: str = "film", **settings: Any) -> list[Row]:
    return [row for row in screenshots(str(path), name, ScreenshotsConfig(**settings)) if row is not None]


def picture(row: Row) -> np.ndarray:
    image = cv2.imdecode(np.frombuffer(row["jpeg"], np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    return image[..., ::-1]


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts", "avi"])
def test_each_shows_the_frame_that_it_names_within_the_middle_of_the_film(tmp_path: Path, suffix: str) -> None:
    codec = "mpeg4" if suffix == "avi" else "libx264"
    rows = taken(films.film(tmp_path / f"film.{suffix}", codec=codec), per_film=20)
    numbers = [films.read_stamp(picture(row)) for row in rows]
    assert numbers == [row["frame"] for row in rows]
    assert numbers == sorted(set(numbers)) and len(numbers) == 20
    # 114 frames; one that is shown when the stretch begins belongs to it.
    assert min(numbers) >= 0.15 * 114 - 1 and max(numbers) < 0.85 * 114
    np.testing.assert_allclose([row["time_s"] for row in rows], np.array(numbers) / 24, atol=0.002)


def test_seeking_begins_at_the_key_frame_before(tmp_path: Path) -> None:
    film = open_film(str(films.film(tmp_path / "film.mp4", shots=(600,), gop=12)))
    assert film.seek is not None
    for time in (20.0, 3.3, 12.1):
        assert time - 12 / films.RATE <= next(film.seek(time)).time <= time


def test_the_same_seed_gives_the_same_frames_and_another_or_another_film_others(tmp_path: Path) -> None:
    path = films.film(tmp_path / "film.mp4")

    def times(name: str, seed: int) -> list[float]:
        return [row["time_s"] for row in taken(path, name, per_film=8, seed=seed)]

    assert times("a", 0) == times("a", 0)
    assert times("a", 0) != times("a", 1)
    assert times("a", 0) != times("b", 0)


@pytest.mark.parametrize("suffix", ["mp4", "ts"])
def test_a_film_with_fewer_frames_gives_each_once(tmp_path: Path, suffix: str) -> None:
    rows = taken(films.film(tmp_path / f"film.{suffix}", shots=(20,)), per_film=50)
    numbers = [row["frame"] for row in rows]
    assert len(set(numbers)) == len(numbers)
    # Of 20 frames 3 to 16 are shown between 15 and 85 %.
    assert set(range(4, 16)) <= set(numbers) <= set(range(2, 18))


def test_a_variable_rate_gives_different_frames_with_their_times(tmp_path: Path) -> None:
    path, times = films.variable_rate(tmp_path / "film.mp4")
    rows = taken(path, per_film=40)
    numbers = [films.read_stamp(picture(row)) for row in rows]
    assert len(set(numbers)) == len(numbers) == 40
    np.testing.assert_allclose([row["time_s"] for row in rows], [times[n] for n in numbers], atol=0.002)


@pytest.mark.parametrize(
    ("make", "suffix", "shape"),
    [
        (films.rotated, "mp4", (160, 120)),
        (films.odd_size, "mkv", (121, 161)),
        (films.non_square_pixels, "mp4", (120, 160)),
        (films.one_frame, "mp4", (120, 160)),
    ],
)
def test_pictures_are_upright_and_keep_their_shape(tmp_path: Path, make: Any, suffix: str, shape: tuple) -> None:
    rows = taken(make(tmp_path / f"film.{suffix}"), per_film=2)
    assert rows and {picture(row).shape[:2] for row in rows} == {shape}
    assert all(films.read_stamp(picture(row)) == row["frame"] for row in rows if make is not films.one_frame)


def test_large_frames_are_scaled_by_their_short_side(tmp_path: Path) -> None:
    rows = taken(films.film(tmp_path / "film.mp4", size=(320, 136)), per_film=1, side=68)
    assert picture(rows[0]).shape == (68, 160, 3)


def test_the_length_of_shots_is_told_on_request(tmp_path: Path) -> None:
    path = films.film(tmp_path / "film.mp4", shots=(48, 36, 30))
    rows = taken(path, per_film=60, shots=True)
    lengths = {row["frame"]: row["shot_s"] for row in rows}
    for number, length in lengths.items():
        expected = 2.0 if number < 48 else 1.5 if number < 84 else 1.25
        assert length == pytest.approx(expected, abs=0.05), number
    assert {round(length, 1) for length in lengths.values()} == {2.0, 1.5, 1.2}
    assert all(math.isnan(row["shot_s"]) for row in taken(path, per_film=3))


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (films.truncated, "truncated"),
        (films.without_index, "no_index"),
        (films.unknown_codec, "unknown_codec"),
        (films.text_file, "not_a_video"),
        (films.empty_file, "empty_file"),
        (films.sound_only, "no_video_stream"),
        (films.list_of_films, "playlist"),
        (lambda path: path, "not_found"),
        (lambda path: f"{path.parent}/{'a' * 300}.mp4", "not_found"),
        (lambda path: "s3://bucket", "bad_url"),
        (lambda path: "s3://Bad_Bucket!/film.mp4", "bad_url"),
        (lambda path: "file://host/film.mp4", "bad_url"),
        (lambda path: "/films/a\0b.mp4", "bad_url"),
    ],
)
def test_a_broken_film_is_a_row_with_a_code(tmp_path: Path, make: Any, code: str) -> None:
    rows = taken(make(tmp_path / "film.mp4"))
    assert [row["error"] for row in rows] == [code]
    assert rows[0]["message"] and not rows[0]["jpeg"]

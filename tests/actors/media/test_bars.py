"""Black bars of scenes are found to the pixel, and what is only dark or of one colour is none."""

from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from actors.core.stage import Row
from actors.curation.cutting.cut import cut
from actors.curation.cutting.scenes import FramesConfig
from actors.curation.features.motion import MotionConfig
from actors.media.bars import Bars, judged, merged
from actors.media.decoding import PyAVPicture
from actors.media.film import VideoConfig, open_film
from actors.media.planes import planes
from actors.media.shot_detection.shots import ShotsConfig
from tests.support import films

HEIGHT, WIDTH = 180, 320
random = np.random.default_rng(0)
NOISE = random.integers(60, 230, (HEIGHT // 4, WIDTH // 4, 3)).repeat(4, 0).repeat(4, 1).astype(np.uint8)


def moving(number: int) -> np.ndarray:
    """A bright picture that moves 4 pixels a frame."""
    return np.roll(NOISE, 4 * number, 1)


def letterbox(number: int) -> np.ndarray:
    return films.blacked(moving(number), 24, 24, 0, 0)


def found(path: Path) -> Bars:
    """The bars of a film in pixels of its frames."""
    return judged(merged(picture.lines() for picture in open_film(str(path)).pictures))


def scenes(path: Path, spans: list[tuple[int, int]] | None = None, **video: Any) -> list[Row]:
    """Rows of the shots of a film, or of a span of it with scenes by their frames."""
    named = [
        {"clip_id": "c", "scene_id": f"c_{i}", "ordinal": i, "caption": "", "first": first, "end": end}
        for i, (first, end) in enumerate(spans or [])
    ]
    listed = [{"start_s": 0.0, "end_s": None, "scenes": named}] if spans else None
    settings = VideoConfig(**video), FramesConfig(), ShotsConfig(), MotionConfig(flow="scaled")
    rows = [row for row in cut(str(path), "v", listed, frozenset(), *settings) if row and row["scene_id"]]
    assert not any(row["error"] for row in rows)
    return rows


def bars_of(row: Row) -> tuple[int, ...]:
    return tuple(row[f"bar_{side}"] for side in Bars._fields)


def just_cut(found: tuple[int, ...], bars: tuple[int, ...]) -> bool:
    """Whether bars are cut off whole, with two lines of the picture at most."""
    return all(lines <= at <= lines + 2 if lines else at == 0 for at, lines in zip(found, bars, strict=True))


@pytest.mark.parametrize("bars", [(16, 16, 0, 0), (0, 0, 14, 14), (16, 16, 14, 14), (15, 17, 0, 0), (0, 0, 0, 0)])
def test_bars_are_cut_off_to_two_pixels_inside_of_their_edge(tmp_path: Path, bars: tuple[int, int, int, int]) -> None:
    path = films.film(tmp_path / "film.mp4", (24,), size=(320, 180), bars=bars)
    assert just_cut(found(path), bars)
    assert all(at % 2 == 0 for at in found(path))


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
@pytest.mark.parametrize("pixels", ["yuv420p", "yuv444p", "yuv420p10le", "yuvj420p", "gray"])
def test_they_are_those_of_the_picture_as_shown_in_every_form_of_pixels(
    tmp_path: Path, degrees: int, pixels: str
) -> None:
    size = (320, 180) if degrees % 180 == 0 else (180, 320)
    path = films.film(tmp_path / "film.mp4", (24,), size=size, rotation=degrees, pixels=pixels, bars=(20, 22, 12, 14))
    [row] = scenes(path)
    assert (row["width"], row["height"]) == size
    assert just_cut(bars_of(row), (20, 22, 12, 14))


@pytest.mark.parametrize(("codec", "pixels", "suffix"), [("libx264rgb", "rgb24", "mp4"), ("ffv1", "bgr0", "mkv")])
def test_rgb_and_packed_pixels(tmp_path: Path, codec: str, pixels: str, suffix: str) -> None:
    path = films.film(tmp_path / f"film.{suffix}", (24,), codec=codec, pixels=pixels, bars=(16, 16, 12, 12))
    assert just_cut(found(path), (16, 16, 12, 12))


def test_pixels_that_are_not_square_count_as_shown(tmp_path: Path) -> None:
    path = films.film(tmp_path / "film.mp4", (24,), pixel_shape=Fraction(4, 3), bars=(0, 0, 16, 16))
    [row] = scenes(path)
    # 12 stored columns and 2 more, each 4/3 wide.
    assert row["width"] == 160 and bars_of(row) == (0, 0, 19, 19)


def test_odd_sizes(tmp_path: Path) -> None:
    path = films.film(tmp_path / "film.mp4", (24,), size=(161, 121), pixels="yuv444p", bars=(16, 16, 12, 12))
    assert just_cut(found(path), (16, 16, 12, 12))


def test_compression_noise_in_bars_is_black(tmp_path: Path) -> None:
    def noisy(number: int) -> np.ndarray:
        noise = random.integers(0, 12, (HEIGHT, WIDTH, 1)).astype(np.uint8)
        return np.maximum(letterbox(number), noise)

    path = films.written(tmp_path / "film.mp4", map(noisy, range(24)), crf=28)
    bars = np.concatenate([planes(picture.frame)[0].values[:24] for picture in pictures(path)])
    assert bars.min() >= 16 and np.ptp(bars) > 3, "black is about 16, and not all the same"
    assert just_cut(found(path), (24, 24, 0, 0))


def pictures(path: Path) -> Iterator[PyAVPicture]:
    return cast(Iterator[PyAVPicture], open_film(str(path)).pictures)


def night(number: int) -> np.ndarray:
    """A night scene: black at its edges, brighter by and by to its middle."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    light = np.clip(1.4 - np.hypot((y - HEIGHT / 2) / (HEIGHT / 2), (x - WIDTH / 2) / (WIDTH / 2)) * 1.5, 0, 1)
    return (moving(number) * light[..., None] * 0.5).astype(np.uint8)


def coloured(colour: tuple[int, int, int]) -> Callable[[int], np.ndarray]:
    def picture(number: int) -> np.ndarray:
        made = moving(number)
        made[:24] = made[-24:] = colour
        return made

    return picture


def subtitled(number: int) -> np.ndarray:
    made = letterbox(number)
    made[-14:-6, 80:240:4] = made[-14:-6, 81:240:4] = 230
    return made


def with_logo(number: int) -> np.ndarray:
    made = letterbox(number)
    made[6:16, -50:-20] = (200, 30, 30)
    return made


def written_in_both(number: int) -> np.ndarray:
    made = subtitled(number)
    made[12:20, 20:50] = (200, 30, 30)
    return made


def across(number: int) -> np.ndarray:
    """A logo that lies half in the bar, half in the picture."""
    made = letterbox(number)
    made[14:40, -50:-20] = (200, 30, 30)
    return made


NONE = (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("picture", "bars"),
    [
        (letterbox, (26, 26, 0, 0)),
        (night, NONE),
        (lambda _: np.zeros((HEIGHT, WIDTH, 3), np.uint8), NONE),
        (lambda number: films.blacked(moving(number), 24, 0, 0, 0), NONE),
        (coloured((255, 255, 255)), NONE),
        (coloured((128, 128, 128)), NONE),
        (coloured((0, 0, 160)), NONE),
        (coloured((90, 0, 0)), NONE),
        (subtitled, (26, 26, 0, 0)),
        (with_logo, (26, 26, 0, 0)),
        (written_in_both, NONE),
        (across, NONE),
    ],
    ids=[
        *("letterbox", "night", "black", "one side", "white", "grey", "blue", "dark red", "subtitle", "logo"),
        *("writing in both bars", "logo over the edge"),
    ],
)
def test_what_is_a_bar(tmp_path: Path, picture: Callable[[int], np.ndarray], bars: tuple[int, ...]) -> None:
    assert found(films.written(tmp_path / "film.mp4", map(picture, range(18)))) == bars


def test_a_dark_edge_of_the_picture_is_as_long_as_the_bar_on_the_other_side(tmp_path: Path) -> None:
    def picture(number: int) -> np.ndarray:
        made = letterbox(number)
        made[-28:-24] = 12
        made[-48:-28] = made[-48:-28] // 10
        return made

    assert found(films.written(tmp_path / "film.mp4", map(picture, range(18)))) in ((26, 28, 0, 0), (26, 30, 0, 0))


def test_each_scene_has_its_own_and_only_what_is_black_in_all_its_frames(tmp_path: Path) -> None:
    def picture(number: int) -> np.ndarray:
        if number < 24:
            return moving(number)
        if number < 48:
            return letterbox(number)
        # They become narrower, and in the last scene they go away.
        narrow = films.blacked(moving(number), 12, 12, 0, 0)
        return letterbox(number) if number % 24 < 12 else narrow if number < 72 else moving(number)

    path = films.written(tmp_path / "film.mp4", map(picture, range(96)))
    rows = scenes(path, [(first, first + 24) for first in range(0, 96, 24)])
    assert [bars_of(row) for row in rows] == [NONE, (26, 26, 0, 0), (14, 14, 0, 0), NONE]

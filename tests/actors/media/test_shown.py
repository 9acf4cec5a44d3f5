"""Pictures are what a viewer sees: turned, in the right colours, of one time, HDR as an SDR screen shows it."""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import av
import numpy as np
import pytest

from actors.media import hdr
from actors.media.fields import combed
from actors.media.film import Film, open_film
from actors.media.shown import AS_STORED, Look
from tests.support import films

SHOWN = Look(deinterlace=True, tone_map=True, hd_matrix=True)
COLOURS = ((200, 40, 40), (40, 180, 60), (50, 60, 190), (235, 235, 235), (100, 100, 100), (210, 200, 50))


def chart(width: int = 192, height: int = 96, colours: Sequence[tuple[int, int, int]] = COLOURS) -> np.ndarray:
    return np.repeat(np.repeat(np.array([colours], np.uint8), width // len(colours), 1), height, 0)


def patches(image: np.ndarray, count: int = len(COLOURS)) -> np.ndarray:
    """Colours in the middle of the patches: (count, 3)."""
    height, width = image.shape[:2]
    return image[height // 2, [(2 * i + 1) * width // (2 * count) for i in range(count)]].astype(int)


def first(path: Path, look: Look = SHOWN) -> tuple[Film, np.ndarray]:
    film = open_film(str(path), look=look)
    return film, next(film.pictures).scaled(film.width, film.height)


@pytest.mark.parametrize(
    ("matrix", "full", "tags", "told"),
    [
        (1, False, {"colorspace": 1, "color_range": 1, "color_primaries": 1, "color_trc": 1}, ("tv", "bt709")),
        (5, False, {"colorspace": 6, "color_range": 1}, ("tv", "smpte170m")),
        (5, False, {"colorspace": 5, "color_range": 1}, ("tv", "bt470bg")),
        (1, True, {"colorspace": 1, "color_range": 2}, ("pc", "bt709")),
        (5, False, {}, ("", "")),
    ],
    ids=["bt709", "ntsc", "pal", "full range", "untagged"],
)
def test_range_and_matrix(tmp_path: Path, matrix: int, full: bool, tags: dict[str, int], told: tuple[str, str]) -> None:
    path = films.tagged(tmp_path / "film.mp4", [chart()] * 3, matrix=matrix, full=full, tags=tags)
    film, image = first(path)
    assert np.abs(patches(image) - COLOURS).max() <= 4
    assert (film.stored.color_range, film.stored.color_space) == told and film.converted == ()


@pytest.mark.parametrize(("size", "high"), [((1296, 96), True), ((192, 640), True), ((192, 96), False)])
def test_film_without_a_matrix_is_bt709_where_it_is_large(tmp_path: Path, size: tuple[int, int], high: bool) -> None:
    path = films.tagged(tmp_path / "film.mp4", [chart(*size)] * 3, matrix=1 if high else 5)
    film, image = first(path)
    assert np.abs(patches(image) - COLOURS).max() <= 4
    assert film.converted == (("assumed_bt709",) if high else ())
    assert film.stored.color_space == ""
    if high:
        assert np.abs(patches(first(path, AS_STORED)[1]) - COLOURS).max() > 15, "as earlier versions took it"


@pytest.mark.parametrize(
    ("matrix", "rotation", "mirrored"),
    [
        ((1, 0, 0, 1), 0, False),
        ((0, 1, -1, 0), 90, False),
        ((-1, 0, 0, -1), 180, False),
        ((0, -1, 1, 0), 270, False),
        ((-1, 0, 0, 1), 0, True),
        ((1, 0, 0, -1), 180, True),
        ((0, 1, 1, 0), 90, True),
        ((0, -1, -1, 0), 270, True),
    ],
)
def test_a_display_matrix_puts_each_pixel_where_it_says(
    tmp_path: Path, matrix: tuple[int, int, int, int], rotation: int, mirrored: bool
) -> None:
    picture = np.full((96, 128, 3), 40, np.uint8)
    picture[:48, :64] = 220
    picture[:48, 64:] = 150
    picture[48:, :64] = 90
    plain = films.tagged(tmp_path / "plain.mp4", [picture] * 3)
    film, image = first(films.displayed(plain, tmp_path / "film.mp4", matrix))
    assert (film.stored.rotation, "mirrored" in film.converted) == (rotation, mirrored)
    assert image.shape[:2] == (film.height, film.width)
    a, b, c, d = matrix
    for x, y in ((-1, -1), (1, -1), (-1, 1), (1, 1)):
        # From the centre: where a quarter of the stored picture is to be seen.
        across, down = a * x + c * y, b * x + d * y
        shown = image[film.height * (2 + down) // 4, film.width * (2 + across) // 4]
        assert abs(int(shown[0]) - int(picture[96 * (2 + y) // 4, 128 * (2 + x) // 4, 0])) <= 3


# ------------------------------------------------------------------------------------------------------------------ HDR


def test_signals_and_light_are_those_of_the_recommendations() -> None:
    # BT.2408, table 1: HDR reference white, 203 cd/m2, is 58 % PQ and 75 % HLG; BT.2100: 10,000 cd/m2 is 100 % PQ.
    assert hdr.pq_signal(np.array(203.0)) == pytest.approx(0.58, abs=0.002)
    assert hdr.hlg_light(np.full(3, 0.75)) == pytest.approx([203] * 3, rel=0.005)
    assert hdr.pq_light(np.array([0.0, 1.0])) == pytest.approx([0, 10000])
    light = np.geomspace(0.01, 10000, 50)
    assert hdr.pq_light(hdr.pq_signal(light)) == pytest.approx(light)


def test_highlights_are_compressed_and_the_rest_stays() -> None:
    light = np.linspace(0, 1000, 2001)
    made = hdr.compressed(light)
    assert (np.diff(made) > 0).all() and made[-1] == pytest.approx(hdr.WHITE)
    # Below the knee, at 94 cd/m2, nothing changes.
    assert made[light < 90] == pytest.approx(light[light < 90], abs=0.02)
    assert (made[light > 110] < light[light > 110]).all()


def pq_film(path: Path, lights: Sequence[Sequence[float]], frames: int = 3) -> Path:
    """Patches of these lights, cd/m2 BT.2020 RGB, in 10-bit PQ."""
    signal = hdr.pq_signal(np.array([lights], float))
    picture = np.repeat(np.repeat(np.round(signal * 65535).astype(np.uint16), 32, 1), 64, 0)
    tags = {"colorspace": 9, "color_range": 1, "color_primaries": 9, "color_trc": 16}
    return films.tagged(path, [picture] * frames, pixels="yuv420p10le", matrix=9, tags=tags)


GREYS = (0.0, 1.0, 5.0, 20.0, 50.0, 80.0, 203.0, 600.0, 1000.0, 4000.0)


def test_pq_is_what_an_sdr_screen_shows(tmp_path: Path) -> None:
    film, image = first(pq_film(tmp_path / "film.mkv", [(light,) * 3 for light in GREYS]))
    shown = patches(image, len(GREYS))
    assert film.converted == ("tone_mapped",) and film.stored.color_transfer == "smpte2084"
    assert (shown.max(1) - shown.min(1)).max() <= 2, "grey stays grey"
    # Below the knee light is that of an SDR screen with white at 203 cd/m2, by BT.1886.
    wanted = [255 * (light / 203) ** (1 / 2.4) for light in GREYS[:6]]
    assert np.abs(shown[:6, 1] - wanted).max() <= 3
    assert 215 < shown[6, 1] < shown[7, 1] <= shown[8, 1] and shown[8, 1] >= 253 and shown[9, 1] >= 253
    washed = patches(first(pq_film(tmp_path / "film.mkv", [(light,) * 3 for light in GREYS]), AS_STORED)[1], len(GREYS))
    assert washed[6, 1] < 155, "as earlier versions took it"


def test_colours_below_the_knee_are_those_of_sdr(tmp_path: Path) -> None:
    # Light of BT.709 primaries becomes that of BT.2020 by the matrix of BT.2087, the other way round.
    to_2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])
    colours = np.array([(160, 60, 60), (60, 150, 70), (60, 70, 160), (150, 140, 80), (120, 120, 120), (40, 30, 25)])
    lights = 203 * (colours / 255) ** 2.4 @ to_2020.T
    assert np.abs(patches(first(pq_film(tmp_path / "film.mkv", lights.tolist()))[1]) - colours).max() <= 4


# --------------------------------------------------------------------------------------------------------------- fields


def gray(picture: np.ndarray) -> av.VideoFrame:
    return av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="gray")


def real_film(count: int) -> list[np.ndarray]:
    """Frames of real film, brightness only: uint8 (H, W)."""
    with av.open(str(films.bikes_mp4())) as film:
        return [frame.to_ndarray(format="gray") for _, frame in zip(range(count), film.decode(video=0), strict=False)]


@pytest.mark.parametrize("top", [True, False])
def test_real_film_is_combed_where_its_fields_are_of_two_times(top: bool) -> None:
    frames = real_film(120)
    woven = []
    for one, other in zip(frames[::2], frames[1::2], strict=True):
        picture = one.copy()
        picture[int(top) :: 2] = other[int(top) :: 2]
        woven.append(picture)

    def share(pictures: list[np.ndarray]) -> float:
        stored = [gray(picture) for picture in pictures]
        near = zip(chain([None], stored), stored, chain(stored[1:], [None]), strict=False)
        return float(np.mean([combed(frame, before, after) for before, frame, after in near]))

    assert share(frames) == 0
    assert share(woven) > 0.95


def test_nothing_moves_between_fields_of_a_still_picture_with_grain() -> None:
    still, grain = real_film(1)[0], np.random.default_rng(0)
    frames = [gray(np.clip(still + grain.normal(0, 8, still.shape), 0, 255).astype(np.uint8)) for _ in range(3)]
    assert not combed(frames[1], frames[0], frames[2])
    assert not combed(frames[1], None, None)


def comb(image: np.ndarray) -> float:
    """How much lines stick out from those above and below them."""
    grey = image.astype(int).mean(-1)
    return float(np.maximum(0, (grey[1:-1] - grey[:-2]) * (grey[1:-1] - grey[2:])).mean())


@pytest.mark.parametrize("top", [True, False])
def test_interlaced_film_shows_the_time_of_its_first_field(tmp_path: Path, top: bool) -> None:
    path = films.fields(tmp_path / "film.mp4", 20, top=top)
    stored = [picture.scaled(320, 240) for picture in open_film(str(path)).pictures]
    pictures = list(open_film(str(path), look=SHOWN).pictures)
    shown = [picture.scaled(320, 240) for picture in pictures]
    assert all(picture.interlaced and picture.deinterlaced for picture in pictures)
    for number, (before, after) in enumerate(zip(stored, shown, strict=True)):
        wanted = films.ball(number / 25)
        assert comb(before) > 60 and comb(after) < 2 * comb(wanted) + 5
        first_field, second_field = (
            np.abs(after.astype(int) - films.ball((number + later) / 25)).mean() for later in (0, 0.5)
        )
        assert first_field < 2.5 < np.abs(before.astype(int) - wanted).mean() + 0.6 and first_field < second_field


def test_progressive_film_that_says_it_is_interlaced_keeps_its_lines(tmp_path: Path) -> None:
    small = {}
    for flagged in (True, False):
        path = films.fields(tmp_path / "film.mp4", 20, two_times=False, flagged=flagged)
        pictures = list(open_film(str(path), look=SHOWN).pictures)
        assert [picture.interlaced for picture in pictures] == [flagged] * 20
        small[flagged] = np.array([picture.scaled(160, 120) for picture in pictures], int)
        assert not any(picture.deinterlaced for picture in pictures)
        exact = [np.abs(one.scaled(320, 240).astype(int) - films.ball(i / 25)).mean() for i, one in enumerate(pictures)]
        assert max(exact) < 2
    assert np.abs(small[True] - small[False]).mean() < 0.5


def test_sampled_frames_are_those_of_all(tmp_path: Path) -> None:
    path = films.fields(tmp_path / "film.mp4", 20)
    every = [picture.scaled(160, 120) for picture in open_film(str(path), look=SHOWN).pictures]
    some = [p.scaled(160, 120) for i, p in enumerate(open_film(str(path), look=SHOWN).pictures) if i % 6 == 1]
    assert np.array_equal(every[1::6], some)

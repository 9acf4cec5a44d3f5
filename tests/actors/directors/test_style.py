"""Style is what pictures made to have it have."""

import numpy as np
import pytest

from actors.directors.style import FEATURES, HUES, bars, palette, style


def plain(colour: tuple[int, int, int], height: int = 90, width: int = 160) -> np.ndarray:
    return np.full((height, width, 3), colour, np.uint8)


def told(image: np.ndarray) -> dict[str, float]:
    return dict(zip(FEATURES, style(image).tolist(), strict=True))


def test_letterbox_and_pillarbox_are_found_and_the_shape_is_that_within():
    image = plain((120, 140, 90), 120, 160)
    image[:20] = image[-20:] = 8
    assert bars(image) == (20, 20, 0, 0)
    assert told(image)["aspect"] == 2.0
    assert told(image)["bars"] == pytest.approx(1 / 3)
    assert bars(image.transpose(1, 0, 2)) == (0, 0, 20, 20)


def test_what_is_dark_on_one_side_or_everywhere_is_no_bar():
    image = plain((120, 140, 90))
    image[-30:] = 5
    assert bars(image) == (0, 0, 0, 0)
    assert bars(plain((0, 0, 0))) == (0, 0, 0, 0)
    assert np.isfinite(style(plain((0, 0, 0)))).all()


@pytest.mark.parametrize(
    ("colour", "hue"),
    [
        ((200, 20, 10), "red"),
        ((210, 200, 20), "yellow"),
        ((30, 180, 40), "green"),
        ((20, 190, 200), "cyan"),
        ((20, 30, 190), "blue"),
        ((190, 20, 180), "magenta"),
    ],
)
def test_colour_has_the_name_of_its_hue(colour: tuple[int, int, int], hue: str):
    values = told(plain(colour))
    assert values[hue] == pytest.approx(1)
    assert sum(values[name] for name in HUES) == pytest.approx(1)


def test_grey_has_no_hue_and_no_saturation():
    values = told(plain((90, 90, 90)))
    assert [values[name] for name in (*HUES, "saturation", "contrast", "sharpness")] == pytest.approx([0] * 9, abs=1e-3)
    # CIELAB's L of sRGB grey 90 is 38.
    assert values["lightness"] == pytest.approx(0.38, abs=0.01)


def test_contrast_and_sharpness_grow_with_what_they_name():
    random = np.random.default_rng(0)
    soft = np.repeat(random.integers(100, 150, (90, 160, 1)), 3, 2).astype(np.uint8)
    hard = np.repeat(random.integers(0, 2, (90, 160, 1)) * 255, 3, 2).astype(np.uint8)
    assert told(hard)["contrast"] == pytest.approx(0.5, abs=0.01)
    assert told(soft)["contrast"] < 0.1
    assert told(hard)["sharpness"] > told(soft)["sharpness"] > told(plain((90, 90, 90)))["sharpness"]


def test_warm_is_yellow_and_cold_is_blue():
    assert told(plain((220, 180, 90)))["warmth"] > 0.2 > -0.2 > told(plain((60, 90, 220)))["warmth"]


def test_a_tiny_picture_has_a_style():
    assert np.isfinite(style(plain((200, 20, 10), 1, 1))).all()


def test_the_palette_begins_with_the_commonest_colour():
    image = plain((200, 30, 20))
    image[:, :40] = (20, 40, 180)
    found = palette([image, plain((200, 30, 20))], 2).astype(int)
    assert np.abs(found[0] - (200, 30, 20)).max() < 12 and np.abs(found[1] - (20, 40, 180)).max() < 25

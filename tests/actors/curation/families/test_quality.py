"""Each column of `quality` follows the strength of the degradation that it is of, on real pictures."""

import math
from collections.abc import Sequence

import cv2
import numpy as np
import pytest
from skimage.measure import blur_effect

from actors.curation.families.quality import Quality, QualityConfig
from actors.curation.measuring.family import scorer_class
from tests.support.real_pictures import film_frames, jpeg, photos, sized

PICTURES = [pytest.param(number, id=f"picture {number}") for number in range(0, 14, 2)]


def picture(number: int, side: int = 512) -> np.ndarray:
    return sized((*photos(), *film_frames())[number], side)


def scenes(found: Sequence[Sequence[np.ndarray]], film: tuple[int, int]) -> dict[str, list[float]]:
    frames = np.empty(len(found), object)
    frames[:] = [np.stack(pictures) if pictures else np.zeros((0, 0, 0, 3), np.uint8) for pictures in found]
    sides = {"width": np.full(len(found), film[0]), "height": np.full(len(found), film[1])}
    return Quality(QualityConfig())({"frames": frames, **sides})


def measured(column: str, images: Sequence[np.ndarray], side: int = 512) -> list[float]:
    """The column of each image, as a scene of a film of its size, by the key frame that a run keeps of it."""
    height, width = images[0].shape[:2]
    keys = [jpeg(sized(image, side) if min(image.shape[:2]) > side else image, 85) for image in images]
    return scenes([[key] for key in keys], (width, height))[column]


def blurred(image: np.ndarray, sigma: float) -> np.ndarray:
    return cv2.GaussianBlur(image, (0, 0), sigma) if sigma else image


def noisy(image: np.ndarray, sigma: float) -> np.ndarray:
    grain = np.random.default_rng(0).normal(0, sigma, image.shape[:2])[..., None]
    return np.clip(np.rint(image + grain), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("number", PICTURES)
def test_sharpness_falls_with_blur_and_not_with_size_or_contrast(number: int) -> None:
    image = picture(number)
    found = measured("sharpness", [blurred(image, sigma) for sigma in (0, 1, 2, 4, 8)])
    assert (np.diff(found) < 0).all() and found[0] > 1.4 * found[3]
    half, pale, grainy = (
        measured("sharpness", [one])[0]
        for one in (sized(image, 256), (64 + image // 2).astype(np.uint8), noisy(image, 5))
    )
    # By less than a blur of 2 pixels in a picture of 512 lines, and grain by less than one of 4.
    assert max(abs(half - found[0]), abs(pale - found[0])) < found[0] - found[2]
    assert abs(grainy - found[0]) < found[0] - found[3]


def test_sharpness_orders_pictures_as_another_implementation_does() -> None:
    images = [blurred(picture(number), sigma) for number in range(14) for sigma in (0, 2, 6)]
    greys = [cv2.GaussianBlur(cv2.cvtColor(sized(one, 256), cv2.COLOR_RGB2GRAY), (0, 0), 1) for one in images]
    theirs = 1 - np.array([blur_effect(one, h_size=11) for one in greys], float)
    ours = [scenes([[one]], (512, 512))["sharpness"][0] for one in images]
    assert np.corrcoef(ours, theirs)[0, 1] > 0.97


@pytest.mark.parametrize("number", PICTURES)
def test_noise_is_what_was_added(number: int) -> None:
    image = blurred(picture(number), 1)
    found = measured("noise", [noisy(image, sigma) for sigma in (0, 1, 2, 5, 10, 20)])
    assert (np.diff(found[1:]) > 0).all()
    # JPEG takes weak noise away; of strong noise black and white do.
    assert found[0] < 1 and found[4] == pytest.approx(10, rel=0.3) and found[5] == pytest.approx(20, rel=0.3)


@pytest.mark.slow
@pytest.mark.parametrize("lines", [360, 720, 1080])
def test_blockiness_follows_the_quality_of_the_film_also_where_it_is_scaled_down(lines: int) -> None:
    for number in range(0, 14, 2):
        image = picture(number, lines)
        found = measured("blockiness", [jpeg(image, quality) for quality in (90, 20, 10, 5)])
        assert (np.diff(found[1:]) > 0).all() and found[-1] > 4 * found[0] + 0.05


def test_blocks_too_small_to_be_seen_have_no_blockiness() -> None:
    frames = scenes([[picture(0)], [picture(0, 60)]], (3840, 2160))["blockiness"]
    assert all(map(math.isnan, frames))


@pytest.mark.parametrize("number", PICTURES)
def test_exposure_and_saturation_follow_light_and_colour(number: int) -> None:
    image = picture(number)
    light = [
        np.clip(image.astype(np.float32) * gain, 0, 255).astype(np.uint8) for gain in (0, 0.2, 0.5, 1, 1.6, 2.5, 100)
    ]
    for column, sign in (("exposure", 1), ("black_share", -1), ("white_share", 1)):
        assert (sign * np.diff(measured(column, light)) >= 0).all()
    assert measured("exposure", light[:1]) == [0] and measured("black_share", light[:1]) == [1]
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]
    pale = [(grey + share * (image - grey.astype(float))).round().astype(np.uint8) for share in (0, 0.3, 0.6, 1)]
    found = measured("saturation", pale)
    assert found[0] < 0.01 and (np.diff(found) > 0).all()
    assert found[2] == pytest.approx(0.6 * found[3], rel=0.15)


def test_shares_are_of_the_area_and_a_scene_is_the_mean_of_its_pictures() -> None:
    grey = np.full((200, 300, 3), 128, np.uint8)
    grey[:50], grey[50:60] = 0, 255
    black = np.zeros_like(grey)
    found = scenes([[grey], [grey, black, black]], (300, 200))
    assert found["black_share"] == pytest.approx([0.25, (0.25 + 2) / 3])
    assert found["white_share"] == pytest.approx([0.05, 0.05 / 3])
    assert found["exposure"][0] == pytest.approx((0.7 * 128 + 0.05 * 255) / 255, abs=0.001)


def test_odd_pictures_have_values_or_none_and_do_not_touch_their_mates() -> None:
    odd = [
        [np.zeros((90, 160, 3), np.uint8)],
        [np.full((90, 160, 3), 128, np.uint8)],
        [np.full((1, 1, 3), 7, np.uint8)],
        [np.full((3, 200, 3), 90, np.uint8)],
        [],
        [picture(0)],
    ]
    together = scenes(odd, (160, 90))
    assert all(math.isnan(value) for value in together["sharpness"][:5]) and together["sharpness"][5] > 0
    assert together["black_share"][:3] == [1, 0, 1] and math.isnan(together["black_share"][4])
    for i, pictures in enumerate(odd):
        alone = scenes([pictures], (160, 90))
        assert all(np.array_equal(alone[name], together[name][i : i + 1], equal_nan=True) for name in alone)
    assert scorer_class("quality") is Quality

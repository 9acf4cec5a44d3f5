"""The camera's motion is the path that was drawn over large real pictures, in its own units."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import cv2
import numpy as np
import pytest

from actors.curation.families.camera import Camera, CameraConfig
from actors.curation.measuring.family import scorer_class
from tests.support.real_pictures import photos, sized

SIDE, INTERVAL_S = 240, 0.25
PHOTOS = [0, 2, 3, 4]

Path = Callable[[float], tuple[float, float, float]]
"""Where the camera points at a time: right and down of the middle in frame widths, and its magnification."""


def filmed(number: int, path: Path, frames: int = 12, side: int = SIDE) -> np.ndarray:
    """What a camera on that path sees of a photograph, uint8 (frames, side, side, 3)."""
    image = sized(photos()[number], 720)
    height, width = image.shape[:2]
    found = []
    for i in range(frames):
        x, y, scale = path(i * INTERVAL_S)
        scale *= side / SIDE
        corner = np.array([width / 2 + x * SIDE, height / 2 + y * SIDE]) - side / 2 / scale
        matrix = np.array([[1 / scale, 0, corner[0]], [0, 1 / scale, corner[1]]])
        flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
        found.append(cv2.warpAffine(image, matrix, (side, side), flags=flags, borderMode=cv2.BORDER_REFLECT))
    return np.stack(found)


def measured(*scenes: np.ndarray) -> list[dict[str, Any]]:
    frames = np.empty(len(scenes), object)
    frames[:] = scenes
    found = Camera(CameraConfig())({"frames": frames, "interval_s": np.full(len(scenes), INTERVAL_S)})
    return [{name: values[i] for name, values in found.items()} for i in range(len(scenes))]


def standing(time: float) -> tuple[float, float, float]:
    return 0.0, 0.0, 1.0


@pytest.mark.parametrize("number", PHOTOS)
def test_a_camera_that_stands_is_static_also_with_noise(number: int) -> None:
    frames = filmed(number, standing)
    noise = np.random.default_rng(0).normal(0, 3, frames.shape)
    for found in measured(frames, np.clip(frames + noise, 0, 255).astype(np.uint8)):
        assert found["camera"] == "static" and found["camera_static"] == 1
        assert abs(found["camera_pan"]) < 0.002 and abs(found["camera_zoom"]) < 0.002
        assert found["camera_shake"] < 0.001 and found["moving_foreground"] < 0.02


@pytest.mark.parametrize("number", PHOTOS)
@pytest.mark.parametrize("speed", [0.05, -0.2, 0.5])
def test_pan_and_tilt_are_speeds_in_widths(number: int, speed: float) -> None:
    pan, tilt = measured(
        filmed(number, lambda t: (speed * (t - 1), 0, 1), 9), filmed(number, lambda t: (0, -speed * (t - 1), 1), 9)
    )
    assert pan["camera"] == "pan" and tilt["camera"] == "tilt"
    for found, along, across in ((pan, "camera_pan", "camera_tilt"), (tilt, "camera_tilt", "camera_pan")):
        assert found[along] == pytest.approx(speed, rel=0.02, abs=0.002)
        assert abs(found[across]) < 0.01 and abs(found["camera_zoom"]) < 0.01
        assert found["camera_static"] == 0 and found["camera_shake"] < 0.002 and found["moving_foreground"] < 0.05


@pytest.mark.parametrize("number", PHOTOS)
@pytest.mark.parametrize("rate", [0.1, -0.2, 0.4])
def test_zoom_is_the_logarithm_of_scale_a_second(number: int, rate: float) -> None:
    (found,) = measured(filmed(number, lambda t: (0, 0, 1.5 * math.exp(rate * (t - 1))), 9))
    assert found["camera"] == "zoom" and found["camera_zoom"] == pytest.approx(rate, rel=0.05)
    assert abs(found["camera_pan"]) < 0.01 and abs(found["camera_tilt"]) < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("number", PHOTOS)
@pytest.mark.parametrize("sigma", [0.005, 0.02])
def test_shake_is_the_deviation_from_the_path(number: int, sigma: float) -> None:
    offsets = np.random.default_rng(1).normal(0, sigma / math.sqrt(2), (40, 2))

    def shaken(time: float, speed: float) -> tuple[float, float, float]:
        x, y = offsets[round(time / INTERVAL_S)]
        return speed * (time - 5) + x, y, 1.0

    held, panned = (measured(filmed(number, partial(shaken, speed=speed), 40))[0] for speed in (0, 0.03))
    for found in (held, panned):
        assert found["camera_shake"] == pytest.approx(sigma, rel=0.3)
    assert held["camera"] == "shake" and panned["camera_pan"] == pytest.approx(0.03, abs=0.01)


@pytest.mark.parametrize("share", [0.1, 0.25])
def test_the_foreground_is_the_area_that_moves_by_itself(share: float) -> None:
    side = round(SIDE * math.sqrt(share))
    for speed in (0, 0.1):
        frames = filmed(0, lambda t, v=speed: (v * t, 0, 1), 8)
        patch = sized(photos()[2], 512)[100 : 100 + side, 150 : 150 + side]
        for i, frame in enumerate(frames):
            x = 10 + 8 * i
            frame[60 : 60 + side, x : x + side] = patch
        (found,) = measured(frames)
        assert found["moving_foreground"] == pytest.approx(share, abs=0.06)
        assert found["camera_pan"] == pytest.approx(speed, abs=0.01)


def test_a_cut_and_a_flash_inside_are_left_out() -> None:
    pans = [filmed(number, lambda t: (0.2 * (t - 1), 0, 1), 8) for number in (0, 3)]
    flash = pans[0].copy()
    flash[4] = 255
    for found in measured(np.concatenate(pans), flash):
        assert found["camera"] == "pan" and found["camera_pan"] == pytest.approx(0.2, rel=0.05)
        assert found["camera_shake"] < 0.005


def test_what_cannot_be_measured_has_no_values_and_mates_do_not_matter() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (4, SIDE, SIDE, 3), dtype=np.uint8)
    scenes: Sequence[np.ndarray] = [
        np.zeros((5, SIDE, SIDE, 3), np.uint8),
        np.full((5, SIDE, SIDE, 3), 127, np.uint8),
        filmed(0, standing, 1),
        np.zeros((0, SIDE, SIDE, 3), np.uint8),
        np.zeros((3, 4, 4, 3), np.uint8),
        noise,
        filmed(0, lambda t: (0.2 * t, 0, 1), 5),
        filmed(0, lambda t: (0.2 * t, 0, 1), 5, side=96),
    ]
    together = measured(*scenes)
    for found in together[:6]:
        assert found["camera"] is None
        assert all(math.isnan(value) for name, value in found.items() if name != "camera")
    assert together[7]["camera_pan"] == pytest.approx(0.2, rel=0.05)
    for scene, among in zip(scenes, together, strict=True):
        assert measured(scene)[0] == pytest.approx(among, nan_ok=True)
    assert scorer_class("camera") is Camera

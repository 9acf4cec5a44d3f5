"""What filters do to images, measured on their pixels."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

from actors.movie_characters import disturbances as filters

PHOTO = data.astronaut()[:200, :300]


@pytest.mark.parametrize("name", filters.FILTERS)
def test_nothing_happens_at_0_and_the_same_twice(name: str):
    apply = filters.FILTERS[name]
    assert np.array_equal(apply(PHOTO, 0.0, 1), PHOTO)
    once, again = apply(PHOTO, 0.5, 1), apply(PHOTO, 0.5, 1)
    assert np.array_equal(once, again)
    assert once.shape == PHOTO.shape and once.dtype == np.uint8
    assert not np.array_equal(once, PHOTO)


def test_red_keeps_red_light_only():
    found = filters.red(PHOTO, 1.0, 0)
    assert np.array_equal(found[..., 0], PHOTO[..., 0])
    assert not found[..., 1:].any()


def test_dark_takes_its_share_of_the_light():
    assert filters.dark(PHOTO, 0.75, 0).mean() == pytest.approx(PHOTO.mean() / 4, abs=0.5)


def test_blur_spreads_a_point_over_a_tenth_of_the_side():
    point = np.zeros((201, 201, 3), np.uint8)
    point[90:111, 90:111] = 255
    found = filters.blur(point, 1.0, 0)[..., 0].astype(float)
    x = np.arange(201) - 100
    spread = ((found * x**2).sum() / found.sum()) ** 0.5
    # The square's own variance is (21**2 - 1) / 12; at the deviation of 20 little is lost at the edge.
    assert spread == pytest.approx((20.1**2 + 36.7) ** 0.5, rel=0.05)


def test_occlusion_covers_its_share_somewhere_else_for_another_seed():
    one, other = (filters.occlusion(PHOTO, 0.25, seed) for seed in (1, 2))
    covered = (one != PHOTO).any(2)
    assert covered.mean() == pytest.approx(0.25, abs=0.01)
    assert not np.array_equal(one, other)


def test_files_are_written_or_say_why_not(tmp_path: Path):
    Image.fromarray(PHOTO).save(tmp_path / "a.png")
    (tmp_path / "b.jpg").write_bytes(b"no image")
    uris = [str(tmp_path / name) for name in ("a.png", "b.jpg", "c.jpg")]
    batch = {
        "uri": np.array(uris),
        "target": np.array([f"{uri}.out.png" for uri in uris]),
        "filter": np.array(["dark"] * 3),
        "strength": np.array([0.5] * 3),
        "seed": np.array([0] * 3),
    }
    assert filters.disturb_files(batch)["error"].tolist() == ["", "not_an_image", "not_found"]
    assert np.array_equal(np.asarray(Image.open(f"{uris[0]}.out.png")), filters.dark(PHOTO, 0.5, 0))

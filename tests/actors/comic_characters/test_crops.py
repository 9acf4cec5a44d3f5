"""What is cut for a box, and how crops are named."""

import io

import numpy as np
import pytest
from PIL import Image

from actors.comic_characters.crops import Window, crop_name, decode, instance_name, parse_instance, window
from actors.media.images import picture_bytes


def test_a_face_is_a_square_of_the_longer_side_with_a_margin() -> None:
    left, top, right, bottom = window((40, 30, 60, 70), "face", 200, 100, 1.2) or (0, 0, 0, 0)
    assert right - left == bottom - top == 48
    assert (left + right) / 2 == 50 and (top + bottom) / 2 == 50


@pytest.mark.parametrize(
    ("box", "kind", "expected"),
    [
        ((-10, 5, 20, 25), "body", (0, 5, 20, 25)),
        ((10.4, 5.6, 20.1, 25.9), "body", (10, 5, 21, 26)),
        ((90, 80, 130, 140), "body", (90, 80, 100, 100)),
        ((0, 0, 20, 20), "face", (0, 0, 22, 22)),
        ((-30, 0, 0, 20), "body", None),
        ((100, 0, 120, 20), "face", None),
        ((5, 100, 10, 120), "body", None),
    ],
)
def test_what_is_cut_ends_at_the_border(box: Window, kind: str, expected: Window | None) -> None:
    assert window(box, "face" if kind == "face" else "body", 100, 100, 1.2) == expected


def test_a_box_thinner_than_a_pixel_still_has_one() -> None:
    for kind in ("face", "body"):
        left, top, right, bottom = window((10.2, 10.2, 10.4, 10.4), kind, 100, 100, 1.2) or (0, 0, 0, 0)
        assert right - left == bottom - top == 1


def test_the_two_layouts_and_the_names_of_instances() -> None:
    assert crop_name("1014", "14_0", "body", 3) == "comics_crops/1014/14_0/bodies/3.jpg"
    assert crop_name("1014", "14_0", "face", 3) == "comics_crops_large_faces/1014/14_0/3.jpg"
    assert parse_instance(instance_name("1014", "14_0", "face", 3)) == ("1014", "14_0", "face", 3)
    assert parse_instance("a_b_2_11_body_0") == ("a_b", "2_11", "body", 0)
    with pytest.raises(ValueError, match="1014_14_0_head_1"):
        parse_instance("1014_14_0_head_1")


def test_a_torn_picture_is_no_picture() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8))
    data = picture_bytes(noise, quality=95)
    assert decode(data).size == (60, 40)
    grey = io.BytesIO()
    noise.convert("L").save(grey, "PNG")
    assert decode(grey.getvalue()).mode == "RGB"
    for torn in (data[: len(data) // 2], grey.getvalue()[:300], b"", b"no picture"):
        with pytest.raises(ValueError, match="not a readable picture"):
            decode(torn)

"""Images become what the model's own transform makes of them; whatever is broken is told by its code."""

import io
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from actors.genres.film_images import ImagesConfig, cut_films
from actors.genres.key_frames import key_frames
from actors.media.film import VideoConfig
from actors.media.images import ImageError, Shape, decode, encode_jpeg, natural, open_image, read_image, read_images
from actors.media.shot_detection.shots import ShotsConfig
from tests.support import bombs, films

EMPTY = np.array([""])


def picture(width: int = 640, height: int = 360) -> np.ndarray:
    """Smooth waves in all colours, uint8 (H, W, 3): what JPEG keeps."""
    y, x = np.mgrid[0:height, 0:width] / 40
    return (127 + 120 * np.stack([np.sin(x + y), np.cos(x), np.sin(2 * y)], axis=-1)).astype(np.uint8)


def encoded(image: np.ndarray, kind: str = "JPEG", **how: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind, **how)
    return file.getvalue()


@pytest.mark.parametrize("size", [(640, 360), (360, 640), (97, 33), (1280, 720)])
@pytest.mark.parametrize("shape", [Shape(32), Shape(48, resize=56, interpolation="bilinear")], ids=["clip", "resnet"])
def test_the_square_is_that_of_torchvision(size: tuple[int, int], shape: Shape) -> None:
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

    data = encoded(picture(*size), quality=95)
    steps = Compose(
        [Resize(shape.resize or shape.size, InterpolationMode(shape.interpolation)), CenterCrop(shape.size)]
    )
    expected = np.asarray(steps(Image.open(io.BytesIO(data)))).astype(int)
    difference = np.abs(decode(data, shape) - expected)
    assert difference.mean() < 3 and decode(data, shape).shape == (shape.size, shape.size, 3)
    # Without a smaller JPEG decode they are the same to the bit.
    lossless = encoded(picture(*size), "PNG")
    assert (decode(lossless, shape) == np.asarray(steps(Image.open(io.BytesIO(lossless))))).all()


def test_a_whole_image_stands_between_bars_or_fills_the_square() -> None:
    white = encoded(np.full((50, 100, 3), 255, np.uint8), "PNG")
    barred = decode(white, Shape(40, mode="longest", fill=9))
    assert (barred[10:30] == 255).all() and (barred[:10] == 9).all() and (barred[30:] == 9).all()
    assert (decode(white, Shape(40, mode="squash")) == 255).all()


def test_a_turned_photograph_stands_upright_and_grey_has_three_colours() -> None:
    left = np.zeros((40, 80, 3), np.uint8)
    left[:, :40] = 255
    turned = Image.Exif()
    turned[0x0112] = 6  # turn by 90 degrees clockwise: what was left is on top
    image = decode(encoded(left, exif=turned), Shape(40, mode="squash"))
    assert image[5].min() > 200 and image[-5].max() < 50
    grey = decode(encoded(left[..., 0], "PNG"), Shape(40, mode="squash"))
    assert (grey[:, :15] == 255).all() and (grey[:, 25:] == 0).all()


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "empty_file"),
        (b"<html>not found</html>", "not_an_image"),
        (encoded(picture())[:3000], "broken_image"),
        (encoded(picture())[:-100], "broken_image"),
        (encoded(picture(), "PNG")[:-500], "broken_image"),
        (encoded(picture(), "WEBP")[:2000], "broken_image"),
    ],
)
def test_a_broken_image_has_a_code(data: bytes, code: str) -> None:
    with pytest.raises(ImageError) as error:
        decode(data, Shape())
    assert error.value.code == code and str(error.value)


def test_names_are_sorted_as_people_count() -> None:
    names = ["shot_10_img_0", "shot_2_img_1", "shot_2_img_0", "shot_0002_img_0", "a", "10", "9"]
    ordered = sorted(names, key=natural)
    assert ordered == ["9", "10", "a", "shot_0002_img_0", "shot_2_img_0", "shot_2_img_1", "shot_10_img_0"]


def test_rows_keep_their_images_and_bad_rows_say_why(tmp_path: Path) -> None:
    (tmp_path / "b.jpg").write_bytes(b"nothing")
    for name, brightness in (("a", 10), ("c", 200)):
        (tmp_path / f"{name}.png").write_bytes(encoded(np.full((9, 9, 3), brightness, np.uint8), "PNG"))
    names = ["c.png", "b.jpg", "gone.jpg", "a.png", ""]
    batch = {
        "uri": np.array([str(tmp_path / name) if name else "" for name in names]),
        "error": np.array(["", "", "", "", "no_images"]),
        "message": np.array(["", "", "", "", "none"]),
    }
    read = read_images(batch, Shape(4))
    assert read["error"].tolist() == ["", "not_an_image", "not_found", "", "no_images"]
    assert read["image"][:, 0, 0, 0].tolist() == [200, 0, 0, 10, 0] and read["image"].shape == (5, 4, 4, 3)
    assert "gone.jpg" in read["message"][2] and read["message"][4] == "none"


@pytest.mark.parametrize(("quality", "most"), [(95, 2), (50, 8)])
def test_a_jpeg_is_rgb_and_keeps_its_quality(quality: int, most: float) -> None:
    image = picture()
    back = np.asarray(Image.open(io.BytesIO(encode_jpeg(image, quality))).convert("RGB")).astype(int)
    assert abs(back - image).mean() < most
    assert len(encode_jpeg(image, quality)) > len(encode_jpeg(image, quality - 30))


def test_the_middle_picture_of_every_shot(tmp_path: Path) -> None:
    path = films.film(tmp_path / "film.mp4")
    *rows, own = [row for row in key_frames(str(path), Shape(120), VideoConfig(), ShotsConfig()) if row]
    edges = films.cuts()
    assert [row["number"] for row in rows] == list(range(len(edges) + 1)) and own["images"] == len(rows)
    assert not own["error"]
    for row, (first, end) in zip(rows, pairwise([0, *edges, sum(films.SHOTS)]), strict=True):
        assert abs(films.read_stamp(row["image"]) - (first + end) / 2) <= 0.25 * films.RATE
        assert row["start_s"] == pytest.approx(first / films.RATE, abs=0.01)


def test_a_film_that_cannot_be_read_has_only_its_own_row(tmp_path: Path) -> None:
    (tmp_path / "film.mp4").write_bytes(b"no film")
    rows = list(key_frames(str(tmp_path / "film.mp4"), Shape(), VideoConfig(), ShotsConfig()))
    assert [(row and row["error"], row and row["images"]) for row in rows] == [("not_a_video", 0)]


BAD_ADDRESSES = {
    "s3://bucket": "bad_url",
    "s3://Bad_Bucket!/a.jpg": "bad_url",
    "file://host/a.jpg": "bad_url",
    "/images/a\0b.jpg": "bad_url",
    "/images/" + "a" * 300: "not_found",
    "/": "not_found",
}


@pytest.mark.parametrize("uri", BAD_ADDRESSES)
def test_an_address_that_no_file_has_is_an_error_of_its_row(uri: str) -> None:
    with pytest.raises(ImageError) as fault:
        read_image(uri)
    assert fault.value.code == BAD_ADDRESSES[uri] and str(fault.value)
    batch = {"film": np.array(["a"], object), "uri": np.array([uri], object)}
    [row] = cut_films(batch, Shape(120), ImagesConfig())
    assert row["error"].tolist() == [BAD_ADDRESSES[uri]] and row["message"][0]


@pytest.mark.parametrize("kind", bombs.PICTURES)
def test_an_image_that_unfolds_large_is_refused_by_its_header(kind: str, tmp_path: Path) -> None:
    data = bombs.PICTURES[kind]()
    (tmp_path / f"a.{kind}").write_bytes(data)
    assert len(data) < 2 << 20
    tracemalloc.start()
    with pytest.raises(ImageError, match="pixels") as error:
        open_image(data)
    rows = read_images({"uri": np.array([str(tmp_path / f"a.{kind}")]), "error": EMPTY, "message": EMPTY}, Shape(8))
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert error.value.code == rows["error"][0] == "too_large" and taken < 50 << 20


def test_a_strip_is_refused_since_models_would_enlarge_it() -> None:
    with pytest.raises(ImageError, match="times as long as wide") as error:
        open_image(encoded(np.zeros((4, 4 * 257, 3), np.uint8), "PNG"))
    assert error.value.code == "too_large"
    assert open_image(encoded(np.zeros((4, 4 * 256, 3), np.uint8), "PNG")).size == (1024, 4)


def test_large_images_are_decoded_one_after_the_other() -> None:
    data = bombs.png(4096, 4160)
    inside, most = [0], [0]
    convert = Image.Image.convert

    def counted(image: Image.Image, *how: Any) -> Image.Image:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        time.sleep(0.05)
        inside[0] -= 1
        return convert(image, *how)

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(4) as threads:
        patch.setattr(Image.Image, "convert", counted)
        assert [image.size for image in threads.map(open_image, [data] * 4)] == [(4096, 4160)] * 4
    assert most == [1]


@pytest.mark.parametrize("deep", [np.arange(65_536, dtype=np.uint16), np.array([-5, 0, 70_000, 65_535, 128], np.int32)])
def test_sixteen_bits_are_rounded_to_eight(deep: np.ndarray) -> None:
    file = io.BytesIO()
    Image.fromarray(deep.reshape(-1, 256) if deep.size == 65_536 else deep[None]).save(file, "TIFF")
    expected = (deep.astype(float) / 257).round().clip(0, 255)
    assert (np.asarray(open_image(file.getvalue()))[..., 0].ravel() == expected).all()

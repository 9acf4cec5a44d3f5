"""Images of films, from files or as key frames of a film's shots, as the squares that a model takes.

JPEG files are decoded at the smallest of their sizes (1, 1/2, 1/4, 1/8) that is not below what the model takes.
"""

import io
import logging
import posixpath
import re
import struct
import threading
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal, TypeVar

import cv2
import numpy as np
from PIL import Image, ImageOps

from actors.core import storage
from actors.core.addresses import AddressError
from actors.core.errors import UserError
from actors.core.stage import Batch
from actors.core.storage import Entry
from actors.media import archives
from actors.media.limits import beyond

log = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
"""How names of images end, in either case."""
READERS = 8
"""Files that one worker reads at once: a store answers late."""
MAX_PIXELS = 178_956_970
"""Pixels of the largest image that is decoded: what Pillow takes, 512 MiB as RGB."""
LARGE = 1 << 24
"""Images of more pixels are decoded one after the other in a worker, whatever its threads."""
_TURN = threading.RLock()
Made = TypeVar("Made")


def images_below(folder: str, entries: Sequence[Entry] | None = None) -> list[Entry]:
    """The images below a folder or prefix, by the ends of their names; warns of other files beside them.

    Those in a tar come as if they lay in a folder of its name. entries: the files below it, where they are listed
    already. Raises UserError where there are only other files.
    """
    entries = list(archives.unpacked(storage.listing(folder, as_input=True) if entries is None else entries))
    found = images_among(entries, folder)
    if entries and not found:
        raise UserError(
            f"{folder} holds {len(entries)} files, such as {entries[0].name}, but no images; their names end in "
            f"{', '.join(IMAGE_SUFFIXES)}"
        )
    return found


def images_among(entries: Iterable[Entry], folder: str) -> list[Entry]:
    """The images among the files of a folder, by the ends of their names; warns of other files beside them."""
    found, others = [], []
    for entry in entries:
        (found if entry.name.lower().endswith(IMAGE_SUFFIXES) else others).append(entry)
    folders = {posixpath.dirname(entry.name) for entry in found}
    if beside := [entry.name for entry in others if posixpath.dirname(entry.name) in folders]:
        log.warning(
            "%s: %d files beside the images are left out, such as %s: names of images end in %s",
            folder,
            len(beside),
            ", ".join(beside[:3]),
            ", ".join(IMAGE_SUFFIXES),
        )
    return found


class ImageError(ValueError):
    """An image that cannot be read.

    `code` is its error code: not_found, forbidden, empty_file, not_an_image, broken_image or too_large.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Shape:
    """How an image becomes the square that a model takes."""

    size: int = 224
    """Side of the square in pixels."""
    resize: int = 0
    """Short side of the image before its middle is cut out; 0: the square's side."""
    mode: Literal["shortest", "longest", "squash"] = "shortest"
    """Cut out the middle, show all with bars, or show all out of proportion."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    """How pixels are resampled."""
    fill: int = 0
    """Brightness of the bars, 0 to 255."""

    def scaled(self, width: int, height: int) -> tuple[int, int]:
        """Width and height to which an image of this width and height is scaled."""
        if self.mode == "squash":
            return self.size, self.size
        if self.mode == "longest":
            scale = self.size / max(width, height)
            return max(1, round(width * scale)), max(1, round(height * scale))
        short = self.resize or self.size
        return (short, int(short * height / width)) if width <= height else (int(short * width / height), short)


def natural(name: str) -> tuple[list[str | int], str]:
    """A key that sorts names as people count: shot_2 comes before shot_10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"([0-9]+)", name)], name


def decode(data: bytes, shape: Shape) -> np.ndarray:
    """The square of an image file, uint8 (size, size, 3) RGB, upright; raises ImageError.

    Up to the rounding of a JPEG's smaller decode it is what torchvision's Resize and CenterCrop make of a PIL image.
    """
    return squared(open_image(data, lambda *sides: min(shape.scaled(*sides))), shape)


def read_image(uri: str, short: Callable[[int, int], int] = min) -> Image.Image:
    """An image file, a path or s3://, as `open_image` opens it; raises ImageError."""
    return open_image(_bytes(uri), short)


def _bytes(uri: str) -> bytes:
    try:
        return archives.read_bytes(uri)
    except FileNotFoundError as error:
        raise ImageError("not_found", str(error)) from error
    except PermissionError as error:
        raise ImageError("forbidden", str(error)) from error
    except AddressError as error:
        raise ImageError("bad_url", str(error)) from error


def open_image(data: bytes, short: Callable[[int, int], int] = min) -> Image.Image:
    """An image file of any kind as RGB, upright; raises ImageError.

    short: what the short side must have at least, in pixels, of an image of this width and height; by default all.
    """

    def upright(image: Image.Image) -> Image.Image:
        # Models take it at a fixed short side.
        if why := beyond(*image.size, MAX_PIXELS):
            raise ImageError("too_large", f"an image of {why}")
        side = short(*image.size)
        image.draft("RGB", (side, side))
        with turn(*image.size):
            if image.mode.startswith("I"):
                # PIL would cut 16 bits off at 255.
                deep = np.asarray(image).clip(0, 65_535).astype(np.uint32)
                image = Image.fromarray(((deep + 128) // 257).astype(np.uint8))
            return ImageOps.exif_transpose(image).convert("RGB")

    return decoded(data, upright)


def decoded(data: bytes, make: Callable[[Image.Image], Made], max_pixels: int = MAX_PIXELS) -> Made:
    """What is made of an image file; every one that is decoded goes through here. Raises ImageError.

    make: gets the image, of which only the header is read.
    """
    if not data:
        raise ImageError("empty_file", "the file has no bytes")
    try:
        image = Image.open(io.BytesIO(data))
        if image.width * image.height > max_pixels:
            raise ImageError("too_large", f"an image of {image.width}x{image.height}, more than {max_pixels} pixels")
        return make(image)
    except ImageError:
        raise
    except Image.UnidentifiedImageError as error:
        raise ImageError("not_an_image", "no kind of image that is known") from error
    except Image.DecompressionBombError as error:
        raise ImageError("too_large", str(error)) from error
    except _BROKEN as error:
        raise ImageError("broken_image", f"{type(error).__name__}: {error}") from error


def size_of(data: bytes) -> tuple[int, int]:
    """Width and height of an image file by its header; raises ImageError."""
    return decoded(data, lambda image: image.size)


def turn(width: int, height: int) -> AbstractContextManager[object]:
    """Held while an image of that size is decoded: by one thread at a time, where it is large."""
    return _TURN if width * height > LARGE else nullcontext()


def squared(image: Image.Image, shape: Shape) -> np.ndarray:
    """The square of an image, uint8 (size, size, 3) RGB."""
    how = Image.Resampling[shape.interpolation.upper()]
    return square(np.asarray(image.resize(shape.scaled(*image.size), how)), shape)


_BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, struct.error, zlib.error)
"""What PIL raises where a file is cut off or damaged, each of its formats in its own way."""


def square(image: np.ndarray, shape: Shape) -> np.ndarray:
    """The middle of a scaled image uint8 (H, W, 3), or all of it between bars: uint8 (size, size, 3)."""
    size, (height, width) = shape.size, image.shape[:2]
    if height < size or width < size:
        bars = np.full((max(size, height), max(size, width), 3), shape.fill, np.uint8)
        top, left = (bars.shape[0] - height) // 2, (bars.shape[1] - width) // 2
        bars[top : top + height, left : left + width] = image
        image, (height, width) = bars, bars.shape[:2]
    top, left = round((height - size) / 2), round((width - size) / 2)
    return np.ascontiguousarray(image[top : top + size, left : left + size])


def read_images(batch: Batch, shape: Shape, data: Sequence[bytes] | None = None) -> Batch:
    """Read and decode image files; data: their bytes, where they have been read already.

    Reads:  uri  str (N,); "" where there is none
            error, message  str (N,): rows with an error are left as they are
    Adds:   image  uint8 (N, size, size, 3) RGB; black where there is none
            error  a code of ImageError
    """
    images = np.zeros((len(batch["uri"]), shape.size, shape.size, 3), np.uint8)
    errors, messages = batch["error"].astype(object), batch["message"].astype(object)

    def read(row: int) -> None:
        try:
            images[row] = decode(_bytes(batch["uri"][row]) if data is None else data[row], shape)
        except ImageError as error:
            errors[row], messages[row] = error.code, str(error)

    wanted = [row for row, uri in enumerate(batch["uri"]) if uri and not errors[row]]
    with ThreadPoolExecutor(READERS) as threads:
        for _ in threads.map(read, wanted):
            pass
    return {**batch, "image": images, "error": errors.astype(str), "message": messages.astype(str)}


def encode_jpeg(image_HWC: np.ndarray, quality: int) -> bytes:
    """An image uint8 (H, W, 3) RGB as a JPEG file; quality up to 100. Raises ValueError where JPEG cannot hold it."""
    sound, data = cv2.imencode(".jpg", cv2.cvtColor(image_HWC, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not sound:
        raise UserError(f"an image of {image_HWC.shape} cannot be written as JPEG: its sides end at 65,500 pixels")
    return data.tobytes()


def picture_bytes(picture: Image.Image, kind: Literal["JPEG", "PNG"] = "JPEG", **options: int) -> bytes:
    """A picture as an image file by Pillow; options: those of its writer, as in quality=90."""
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()

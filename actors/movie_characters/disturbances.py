"""Filters that make characters hard to identify: red light, darkness, blur, occlusion.

Each takes an image uint8 (H, W, 3) RGB, a strength in 0..1, 0 for nothing, and a seed, and gives an image of the same
shape; the same three give the same image.
"""

import hashlib
import io
from collections.abc import Callable

import cv2
import numpy as np
from PIL import Image

from actors.core import storage
from actors.core.stage import Batch
from actors.media.images import ImageError, read_image

GREY = 128
"""Brightness of what is occluded."""


def red(image: np.ndarray, strength: float, seed: int) -> np.ndarray:
    """Green and blue are left with 1 - strength of their light."""
    return _rounded(image * np.array([1, 1 - strength, 1 - strength]))


def dark(image: np.ndarray, strength: float, seed: int) -> np.ndarray:
    """All is left with 1 - strength of its light."""
    return _rounded(image * (1 - strength))


def blur(image: np.ndarray, strength: float, seed: int) -> np.ndarray:
    """A Gaussian blur whose deviation is a tenth of the short side times the strength."""
    sigma = strength * min(image.shape[:2]) / 10
    return cv2.GaussianBlur(image, (0, 0), sigma) if sigma > 0 else image


def occlusion(image: np.ndarray, strength: float, seed: int) -> np.ndarray:
    """A grey rectangle of the image's proportions, at a drawn place, covers strength of its area."""
    height, width = image.shape[:2]
    high, wide = round(height * strength**0.5), round(width * strength**0.5)
    random = np.random.default_rng(seed)
    top, left = (int(random.integers(0, room + 1)) for room in (height - high, width - wide))
    covered = image.copy()
    covered[top : top + high, left : left + wide] = GREY
    return covered


FILTERS: dict[str, Callable[[np.ndarray, float, int], np.ndarray]] = {
    "red": red,
    "dark": dark,
    "blur": blur,
    "occlusion": occlusion,
}


def _rounded(image: np.ndarray) -> np.ndarray:
    return np.clip(image.round(), 0, 255).astype(np.uint8)


def disturb_files(batch: Batch) -> Batch:
    """Write disturbed copies of image files, as PNG, so that nothing but the disturbance changes them.

    Reads:  uri, target  str (N,): from where to where
            filter  str (N,), of FILTERS; strength  float (N,); seed  int (N,)
    Adds:   error  str (N,): "" where it was written, else a code of ImageError; message
    """
    errors, messages = [], []
    names = ("uri", "target", "filter", "strength", "seed")
    for uri, target, name, strength, seed in zip(*(batch[column].tolist() for column in names), strict=True):
        code, message = "", ""
        try:
            image = np.asarray(read_image(uri))
        except ImageError as error:
            code, message = error.code, str(error)
        else:
            # Each image has a place of its own for what covers it, whatever else is in the list.
            own = int.from_bytes(hashlib.sha256(f"{seed}\0{uri.rpartition('/')[2]}".encode()).digest()[:8])
            buffer = io.BytesIO()
            Image.fromarray(FILTERS[name](image, strength, own)).save(buffer, "png", compress_level=1)
            storage.write_bytes(target, buffer.getvalue())
        errors.append(code)
        messages.append(message)
    return {**batch, "error": np.array(errors, object), "message": np.array(messages, object)}

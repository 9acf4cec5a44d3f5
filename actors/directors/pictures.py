"""Pictures of films as random views of one network's input, for training a backbone."""

import hashlib
from dataclasses import dataclass

import cv2
import numpy as np

from actors.core.errors import UserError
from actors.core.stage import Batch
from actors.directors.style import FEATURES, style
from actors.media.images import ImageError, Shape, read_image, squared

LOOKED_AT = 240
"""Style is told from pictures of about this short side at least."""


@dataclass(frozen=True)
class ViewsConfig:
    """Pictures that are turned, moved and mirrored at random, for training; each has its vector in the store."""

    count: int = 0
    """Views of each picture beside itself; 0: no augmentation."""
    rotation: float = 20.0
    """Degrees at most, either way."""
    zoom: float = 0.15
    """Share of the size by which a picture grows or shrinks at most."""
    shift: float = 0.2
    """Share of the sides by which it moves at most."""
    shear: float = 0.15
    """Share of its height by which its top moves against its bottom at most."""
    flip: bool = True
    """Every second one is mirrored."""

    def __post_init__(self) -> None:
        if min(self.count, self.rotation, self.zoom, self.shift, self.shear) < 0 or self.zoom >= 1:
            raise UserError(f"views start at 0, and zoom is below 1: {self}")


def read_pictures(batch: Batch, shape: Shape, views: ViewsConfig) -> Batch:
    """Read image files as what the network takes, and tell their style.

    Reads:  uri  str (N,)
            view  int (N,), 0 the picture itself, else the number of a random view, the same whenever it is made
    Adds:   image  uint8 (N, S, S, 3) RGB; black where there is an error
            style  float32 (N, 13), FEATURES of `actors.directors.style`; NaN where there is an error
            error, message  str (N,): a code of ImageError
    """
    count = len(batch["uri"])
    images = np.zeros((count, shape.size, shape.size, 3), np.uint8)
    styles = np.full((count, len(FEATURES)), np.nan, np.float32)
    errors, messages = np.full(count, "", object), np.full(count, "", object)
    for row, (uri, view) in enumerate(zip(batch["uri"].tolist(), batch["view"].tolist(), strict=True)):
        try:
            picture = read_image(uri, lambda *sides: max(LOOKED_AT, min(shape.scaled(*sides))))
        except ImageError as error:
            errors[row], messages[row] = error.code, str(error)
        else:
            images[row] = squared(picture, shape)
            if view:
                images[row] = random_view(images[row], views, f"{uri}:{view}")
            styles[row] = style(np.asarray(picture))
    return {**batch, "image": images, "style": styles, "error": errors.astype(str), "message": messages.astype(str)}


def random_view(image: np.ndarray, views: ViewsConfig, seed: str) -> np.ndarray:
    """A picture uint8 (S, S, 3) turned, zoomed, sheared, moved and mirrored at random; its edges are drawn out."""
    random = np.random.default_rng(int.from_bytes(hashlib.blake2b(seed.encode(), digest_size=8).digest()))
    size = image.shape[0]
    turn, shear = np.deg2rad(random.uniform(-1, 1) * views.rotation), random.uniform(-1, 1) * views.shear
    zoom = 1 + random.uniform(-1, 1) * views.zoom
    mirror = -1.0 if views.flip and random.random() < 0.5 else 1.0
    linear = zoom * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) @ [[mirror, shear], [0, 1]]
    centre = np.full(2, (size - 1) / 2)
    moved = centre + random.uniform(-1, 1, 2) * views.shift * size
    matrix = np.column_stack([linear, moved - linear @ centre])
    return cv2.warpAffine(image, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)

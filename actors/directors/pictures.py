"""Read screenshots as input of a frozen network, with style and random views, and write vectors as stored parts."""

import hashlib
from dataclasses import dataclass

import cv2
import numpy as np
import pyarrow as pa

from actors.core.computed import COMPUTED
from actors.core.errors import UserError
from actors.core.stage import Batch, codes_of
from actors.core.store import Store
from actors.directors.style import FEATURES, style
from actors.media.images import ImageError, Shape, read_image, squared

LOOKED_AT = 240
"""Least short side, in pixels, at which style is measured."""
VECTORS = pa.schema(
    [
        ("path", pa.string()),
        ("size", pa.int64()),
        ("view", pa.int32()),
        ("model", pa.string()),
        ("vector", pa.binary()),
        ("style", pa.list_(pa.float32())),
        ("error", pa.string()),
        ("message", pa.string()),
        (COMPUTED, pa.string()),
    ]
)
"""One row per picture and view. size: bytes of the file, so that a replaced file is embedded again; vector: float16,
little-endian; style: FEATURES of `actors.directors.style`; computed: device and precision of the network."""


@dataclass(frozen=True)
class ViewsConfig:
    """Augmentation: random views of each picture for training, whose vectors are stored, too."""

    count: int = 0
    """Random views of each picture beside the picture itself; 0: no augmentation. Each multiplies embedding time."""
    rotation: float = 20.0
    """Largest rotation of a view in degrees, either way."""
    zoom: float = 0.15
    """Largest change of a view's size, as a share from 0 to below 1: 0.15 scales by 0.85 to 1.15."""
    shift: float = 0.2
    """Largest shift of a view, as a share of its side."""
    shear: float = 0.15
    """Largest shear of a view: how far its top moves against its bottom, as a share of its height."""
    flip: bool = True
    """Mirror views at random, with probability 0.5."""

    def __post_init__(self) -> None:
        if min(self.count, self.rotation, self.zoom, self.shift, self.shear) < 0 or self.zoom >= 1:
            raise UserError(f"views: count, rotation, zoom, shift and shear must be 0 or more, zoom below 1: {self}")


def read_pictures(batch: Batch, shape: Shape, views: ViewsConfig) -> Batch:
    """Read image files as input of the network, and measure their style.

    Reads:  uri  str (N,)
            view  int (N,), 0 the picture itself, else the number of a random view, the same whenever it is made
    Adds:   image  uint8 (N, S, S, 3) RGB; black where there is an error
            style  float32 (N, 13), FEATURES of `actors.directors.style`; NaN where there is an error
            error, message  str (N,): a code of ImageError, "" where the row is sound
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
    """A picture uint8 (S, S, 3) turned, zoomed, sheared, moved and mirrored at random; its edge pixels are repeated."""
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


def write_vectors(batch: Batch, store: Store, computed: str) -> Batch:
    """Write a batch of vectors as one part of features/; returns its row count in column `rows`."""
    columns = {key: batch[key].tolist() for key in ("path", "size", "view", "model", "style", "error", "message")}
    columns[COMPUTED] = [computed] * len(batch["path"])
    columns["vector"] = [vector.astype("<f2").tobytes() for vector in batch["vector"]]
    table = pa.table({key: pa.array(columns[key], VECTORS.field(key).type) for key in VECTORS.names})
    keys = ["\0".join(map(str, key)) for key in zip(*(columns[k] for k in VECTORS.names[:4]), strict=True)]
    store.write_part("features", table, keys)
    return {"rows": np.array([len(keys)]), "codes": codes_of(batch["error"])}

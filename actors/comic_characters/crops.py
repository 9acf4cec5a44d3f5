"""Faces and bodies cut out of the pictures of a comic, each as a file of its own."""

import io
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

from actors.core import storage
from actors.core.errors import UserError
from actors.core.stage import Batch, Stage

Kind = Literal["face", "body"]
Window = tuple[int, int, int, int]
"""left, top, right, bottom in pixels; right and bottom are the first that do not belong to it."""

BODIES, FACES = "comics_crops", "comics_crops_large_faces"
"""The folders of the two layouts."""


@dataclass(frozen=True)
class CropConfig(Stage):
    """How faces and bodies are cut out of pictures."""

    workers: int = 0
    batch_size: int = 64
    """Pictures of one call; what a kill loses of each worker."""
    face_scale: float = 1.2
    """Side of a face's square by the longer side of its box."""
    quality: int = 95
    """Of the JPEG files, 1 to 95."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.face_scale > 0 or not 1 <= self.quality <= 95:
            raise UserError(f"face_scale is above 0 and quality lies in 1..95: {self}")


def crop_name(series: str, page: str, kind: Kind, index: int) -> str:
    """The path of a crop below the output: bodies and faces have layouts of their own."""
    return f"{BODIES}/{series}/{page}/bodies/{index}.jpg" if kind == "body" else f"{FACES}/{series}/{page}/{index}.jpg"


def instance_name(series: str, page: str, kind: Kind, index: int) -> str:
    """The name of a face or body in sequences and in the lists of characters."""
    return f"{series}_{page}_{kind}_{index}"


def parse_instance(name: str) -> tuple[str, str, Kind, int]:
    """Series, page (with its panel), kind and index of `instance_name`. Raises ValueError."""
    found = re.fullmatch(r"(.+?)_([^_]+_[^_]+)_(face|body)_(\d+)", name)
    if not found:
        raise UserError(f"{name!r} names no instance: <series>_<page>_<panel>_<face|body>_<number>")
    series, page, kind, index = found.groups()
    return series, page, "face" if kind == "face" else "body", int(index)


def window(
    box: tuple[float, float, float, float], kind: Kind, width: int, height: int, face_scale: float
) -> Window | None:
    """What to cut for a box (x_0, y_0, x_1, y_1), x_0 < x_1 and y_0 < y_1, of a picture of width x height pixels.

    A body is its box, with every pixel that it touches. A face is a square about the same middle whose side is the
    longer one of the box times `face_scale`. Both end at the border of the picture; None where the box lies beyond it.
    """
    x_0, y_0, x_1, y_1 = box
    if x_1 <= 0 or y_1 <= 0 or x_0 >= width or y_0 >= height:
        return None
    if kind == "face":
        side = max(1, round(face_scale * max(x_1 - x_0, y_1 - y_0)))
        left, top = round((x_0 + x_1 - side) / 2), round((y_0 + y_1 - side) / 2)
        right, bottom = left + side, top + side
    else:
        left, top, right, bottom = math.floor(x_0), math.floor(y_0), math.ceil(x_1), math.ceil(y_1)
    left, top, right, bottom = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
    # A thin box at the border may be rounded to nothing.
    return (left, top, right, bottom) if left < right and top < bottom else None


def decode(data: bytes) -> Image.Image:
    """A picture in RGB. Raises ValueError where it is none, or not all of it is there."""
    try:
        # Pillow, since OpenCV fills up with grey what is missing of a torn file.
        return Image.open(io.BytesIO(data)).convert("RGB")
    except UnidentifiedImageError:
        # Its message tells where the bytes lay in memory.
        raise UserError("no picture that can be read: of no known format") from None
    except (OSError, Image.DecompressionBombError, SyntaxError, EOFError) as error:
        raise UserError(f"no picture that can be read: {error}") from error


def encode(picture: Image.Image, quality: int) -> bytes:
    """A picture as JPEG."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def prepare(picture: Image.Image, kind: Kind, size: int) -> np.ndarray:
    """A crop as the network takes it, uint8 (size, size, 3): a face stretched, a body as it is between black bars."""
    if kind == "face":
        return np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR))
    scale = size / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    square = np.zeros((size, size, 3), np.uint8)
    left, top = (size - width) // 2, (size - height) // 2
    fitted = picture.resize((width, height), Image.Resampling.BILINEAR)
    square[top : top + height, left : left + width] = np.asarray(fitted)
    return square


def with_features(
    batch: Batch,
    crops: str,
    look: Callable[[Image.Image, Kind], np.ndarray],
    see: Callable[[np.ndarray], np.ndarray],
) -> Batch:
    """What is seen in the face and the body of instances.

    Reads:  series_id, page_id  str (N,); face, body  float (N,), their index, NaN where there is none
    Adds:   face_features, body_features  object (N,), float32 (F,), None where there is no such part
            error, message  str (N,): missing_crop, broken_crop

    Args:
        crops: the root below which the crops lie.
        look: makes an array of a crop, for all of a kind of one shape.
        see: makes features (M, F) of M such arrays.
    """
    count = len(batch["series_id"])
    error, message = np.full(count, "", object), np.full(count, "", object)
    added: Batch = {}
    kinds: tuple[Kind, Kind] = ("face", "body")
    for kind in kinds:
        found: dict[int, np.ndarray] = {}
        for row in np.flatnonzero(~np.isnan(np.asarray(batch[kind], float))).tolist():
            name = crop_name(str(batch["series_id"][row]), str(batch["page_id"][row]), kind, int(batch[kind][row]))
            try:
                found[row] = look(decode(storage.read_bytes(storage.join(crops, name))), kind)
            except (FileNotFoundError, PermissionError, ValueError) as problem:
                error[row] = "broken_crop" if isinstance(problem, ValueError) else "missing_crop"
                message[row] = str(problem)
        added[f"{kind}_features"] = features = np.full(count, None, object)
        if found:
            for row, vector in zip(found, see(np.stack(list(found.values()))), strict=True):
                features[row] = vector
    return {**batch, **added, "error": error, "message": message}

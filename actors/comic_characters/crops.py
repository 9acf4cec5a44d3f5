"""Cut faces and bodies out of the pictures of a comic, each into a file of its own."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from PIL import Image

from actors.core import storage
from actors.core.errors import UserError
from actors.core.stage import Batch, Stage, codes_of
from actors.core.store import Store
from actors.media import archives
from actors.media.images import ImageError, decoded, picture_bytes, turn

Kind = Literal["face", "body"]
Window = tuple[int, int, int, int]
"""left, top, right, bottom in pixels; right and bottom are exclusive."""

BODIES, FACES = "comics_crops", "comics_crops_large_faces"
"""Folders of the crops below the output."""
NAME = ["series_id", "page_id", "type", "index"]
"""Columns that name a box."""
BOX = ["x_0", "y_0", "x_1", "y_1"]
"""Columns of its corners, in pixels of the picture."""
CROPS = pa.schema(
    [
        *((name, pa.string()) for name in NAME[:3]),
        ("index", pa.int64()),
        ("char_index", pa.int64()),
        *((name, pa.float64()) for name in BOX),
        ("picture", pa.string()),
        *((name, pa.int32()) for name in ("left", "top", "right", "bottom")),
        ("img_path", pa.string()),
        ("error", pa.string()),
        ("message", pa.string()),
    ]
)
"""One row per box. x_0 to y_1: as given; left to bottom: what was cut, in pixels, right and bottom exclusive;
img_path: the file below the output. Without a crop, these are null, img_path is "" and error is not."""
CUT = ["left", "top", "right", "bottom", "img_path", "error", "message"]
"""Columns that cutting adds to a row."""


@dataclass(frozen=True)
class CropConfig(Stage):
    """How faces and bodies are cut out of pictures."""

    workers: int = 0
    """Tasks that cut at once over the whole cluster; 0: as many as there are CPUs for."""
    batch_size: int = 64
    """Pictures per call. A kill loses at most this much work of each worker."""
    face_scale: float = 1.2
    """Side of a face's square, as a multiple of the longer side of its box; above 1 it includes hair and chin."""
    quality: int = 95
    """JPEG quality of the crops, 1 to 95."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.face_scale > 0 or not 1 <= self.quality <= 95:
            raise UserError(f"face_scale must be above 0, quality in 1..95, not {self.face_scale} and {self.quality}")


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
        raise UserError(f"{name!r} is no instance. Write <series>_<page>_<panel>_<face|body>_<number>.")
    series, page, kind, index = found.groups()
    return series, page, "face" if kind == "face" else "body", int(index)


def window(
    box: tuple[float, float, float, float], kind: Kind, width: int, height: int, face_scale: float
) -> Window | None:
    """What to cut for a box (x_0, y_0, x_1, y_1), x_0 < x_1 and y_0 < y_1, of a picture of width x height pixels.

    A body is its box, with every pixel that it touches. A face is a square around the centre of its box, with the box's
    longer side times `face_scale`. Both end at the border of the picture; None where the box lies outside.
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
    """A picture in RGB. Raises ImageError where it cannot be decoded, is truncated or too large."""

    # Pillow, because OpenCV fills the missing part of a truncated file with grey.
    def whole(image: Image.Image) -> Image.Image:
        with turn(*image.size):
            return image.convert("RGB")

    try:
        return decoded(data, whole)
    except ImageError as error:
        raise ImageError(error.code, f"not a readable picture: {error}") from error


def code_of(error: Exception, what: str) -> str:
    """The error code of a page or crop that cannot be read: missing_, broken_ and what it is, or too_large."""
    if isinstance(error, ImageError) and error.code == "too_large":
        return error.code
    return f"broken_{what}" if isinstance(error, ValueError) else f"missing_{what}"


def cut_pictures(table: pa.Table, store: Store, config: CropConfig) -> Batch:
    """Cut the boxes of some pictures, write the files, then a part of crops/; returns its rows in column `boxes`.

    table: rows of CROPS, those of one picture together.
    """
    rows = table.to_pylist()
    for picture, group in groupby(rows, itemgetter("picture")):
        try:
            page = decode(archives.read_bytes(picture))
        except (FileNotFoundError, PermissionError, ValueError) as error:
            for row in group:
                row |= {"error": code_of(error, "page"), "message": str(error)}
            continue
        for row in group:
            row |= _cut_box(row, page, store, config)
    names = ["/".join(str(row[name]) for name in [*NAME, *BOX]) for row in rows]
    store.write_part("crops", pa.Table.from_pylist(rows, CROPS), names)
    return {"boxes": np.array([len(rows)]), "codes": codes_of(row["error"] for row in rows)}


def _cut_box(row: dict[str, Any], page: Image.Image, store: Store, config: CropConfig) -> dict[str, Any]:
    x_0, y_0, x_1, y_1 = (row[name] for name in BOX)
    cut = window((x_0, y_0, x_1, y_1), row["type"], *page.size, config.face_scale)
    if cut is None:
        return {"error": "outside", "message": f"the box is outside the picture, {page.width} x {page.height} pixels"}
    path = crop_name(row["series_id"], row["page_id"], row["type"], row["index"])
    storage.write_bytes(store.uri(path), picture_bytes(page.crop(cut), quality=config.quality))
    return {**dict(zip(CUT[:4], cut, strict=True)), "img_path": path}


def prepare(picture: Image.Image, kind: Kind, size: int) -> np.ndarray:
    """A crop as input of the network, uint8 (size, size, 3): a face stretched, a body letterboxed."""
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
    see: Callable[[np.ndarray, Kind], np.ndarray],
) -> Batch:
    """Features of the face and the body of instances.

    Reads:  series_id, page_id  str (N,); face, body  float (N,), their index, NaN where there is none
    Adds:   face_features, body_features  object (N,), float32 (F,), None where there is no such part
            error, message  str (N,): missing_crop, broken_crop, too_large

    Args:
        crops: the root below which the crops lie.
        look: turns a crop into an array; arrays of one kind have one shape.
        see: turns M such arrays of one kind into features (M, F).
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
                error[row] = code_of(problem, "crop")
                message[row] = str(problem)
        added[f"{kind}_features"] = features = np.full(count, None, object)
        if found:
            for row, vector in zip(found, see(np.stack(list(found.values())), kind), strict=True):
                features[row] = vector
    return {**batch, **added, "error": error, "message": message}

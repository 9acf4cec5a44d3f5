"""All faces of frames, with their boxes and vectors, and the parts of faces/ that hold them."""

from typing import Any

import numpy as np
import pyarrow as pa

from actors.core.stage import Batch
from actors.core.store import Store
from actors.media.images import ImageError
from actors.movie_characters.faces import FaceEmbedder, FacesConfig, read_picture

FACES = pa.schema(
    [
        ("uri", pa.string()),
        ("size", pa.int64()),
        ("model", pa.string()),
        ("boxes", pa.list_(pa.list_(pa.float32()))),
        ("vectors", pa.list_(pa.list_(pa.float16()))),
        ("error", pa.string()),
        ("message", pa.string()),
    ]
)
"""One row per frame, also without a face: its size in bytes, the model, and for each face left, top, right and bottom
in pixels of the frame, and a vector of length 1."""


class FrameFaces:
    """Find and embed all faces of frames.

    Reads:  uri  str (N,), where the frame is
            error, message  str (N,); rows with an error are left out
    Adds:   boxes, vectors  object (N,), lists of a list of numbers for each face
            error  a code of ImageError
    """

    def __init__(self, config: FacesConfig) -> None:
        self._embedder = FaceEmbedder(config)
        self._max_side = config.max_side

    def __call__(self, batch: Batch) -> Batch:
        errors, messages = batch["error"].astype(object), batch["message"].astype(object)
        boxes, vectors = np.empty(len(errors), object), np.empty(len(errors), object)
        for row, uri in enumerate(batch["uri"]):
            boxes[row], vectors[row] = [], []
            if errors[row]:
                continue
            try:
                found = self._embedder.faces(*read_picture(str(uri), self._max_side))
            except ImageError as error:
                errors[row], messages[row] = error.code, str(error)
                continue
            boxes[row], vectors[row] = [box for box, _ in found], [vector for _, vector in found]
        return {
            **batch,
            "boxes": boxes,
            "vectors": vectors,
            "error": errors.astype(str),
            "message": messages.astype(str),
        }


def write_faces(batch: Batch, store: Store, model: str) -> Batch:
    """Write the faces of frames as a part; returns uri, error and message of its rows."""
    columns: dict[str, Any] = {name: batch[name].tolist() for name in ("uri", "size", "error", "message")}
    for name in ("boxes", "vectors"):
        lists = [[np.asarray(one).tolist() for one in row] for row in batch[name]]
        columns[name] = pa.array(lists, pa.list_(pa.list_(pa.float32()))).cast(FACES.field(name).type)
    columns["model"] = [model] * len(columns["uri"])
    table = pa.table({name: columns[name] for name in FACES.names}).cast(FACES)
    store.write_part("faces", table, [model, *columns["uri"]])
    return {name: batch[name] for name in ("uri", "error", "message")}

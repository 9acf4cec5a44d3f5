"""All faces of frames, with their boxes and vectors, and the parts of faces/ that hold them."""

from typing import Any

import numpy as np
import pyarrow as pa

from actors.core.stage import Batch
from actors.core.store import Store
from actors.movie_characters.recognition.faces import FaceEmbedder, FacesConfig

CONFIDENCES = "confidences"
FACES = pa.schema(
    [
        ("uri", pa.string()),
        ("size", pa.int64()),
        ("model", pa.string()),
        ("boxes", pa.list_(pa.list_(pa.float32()))),
        ("vectors", pa.list_(pa.list_(pa.float16()))),
        (CONFIDENCES, pa.list_(pa.float32())),
        ("error", pa.string()),
        ("message", pa.string()),
    ]
)
"""One row per frame, also without a face: its size in bytes, the model, and for each face left, top, right and bottom
in pixels of the frame, a vector of length 1, and the detector's confidence, null in parts of earlier versions."""


class FrameFaces:
    """Find and embed all faces of frames.

    Reads:  uri  str (N,), where the frame is
            error, message  str (N,); rows with an error are left out
    Adds:   boxes, vectors  object (N,), lists of a list of numbers for each face
            confidences  object (N,), lists of a number for each face
            error  a code of ImageError
    """

    def __init__(self, config: FacesConfig) -> None:
        self._embedder = FaceEmbedder(config)

    def __call__(self, batch: Batch) -> Batch:
        errors, messages, found = self._embedder.read(batch)
        columns = {name: np.empty(len(errors), object) for name in ("boxes", "vectors", CONFIDENCES)}
        for row in range(len(errors)):
            faces = found.get(row, [])
            columns["boxes"][row] = [face.edges for face in faces]
            columns["vectors"][row] = [face.vector for face in faces]
            columns[CONFIDENCES][row] = [face.confidence for face in faces]
        return {**batch, **columns, "error": errors.astype(str), "message": messages.astype(str)}


def write_faces(batch: Batch, store: Store, model: str, folder: str = "faces") -> Batch:
    """Write the faces of frames as a part, or what else has boxes; returns uri, error and message of its rows."""
    columns: dict[str, Any] = {name: batch[name].tolist() for name in ("uri", "size", "error", "message")}
    for name in ("boxes", "vectors"):
        lists = [[np.asarray(one).tolist() for one in row] for row in batch[name]]
        columns[name] = pa.array(lists, pa.list_(pa.list_(pa.float32()))).cast(FACES.field(name).type)
    columns[CONFIDENCES] = [np.asarray(row, float).tolist() for row in batch[CONFIDENCES]]
    columns["model"] = [model] * len(columns["uri"])
    table = pa.table({name: columns[name] for name in FACES.names}).cast(FACES)
    store.write_part(folder, table, [model, *columns["uri"]])
    return {name: batch[name] for name in ("uri", "error", "message")}

"""Who each face of a picture is: the nearest of a gallery, or unknown; face_answers.parquet and face_answers.json."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from actors.core import storage
from actors.core.store import Store
from actors.movie_characters.names import Picture, unsuffixed
from pipelines.movie_characters.films.tracks import NOTHING, Seen
from pipelines.movie_characters.results import UNKNOWN

ANSWERS = pa.schema(
    [
        ("image", pa.string()),
        ("face", pa.int32()),
        ("left", pa.float32()),
        ("top", pa.float32()),
        ("right", pa.float32()),
        ("bottom", pa.float32()),
        ("height", pa.float32()),
        ("answer", pa.string()),
        ("identity", pa.string()),
        ("score", pa.float32()),
        ("margin", pa.float32()),
        ("confidence", pa.float32()),
    ]
)
"""One row per face: its number in the picture, the largest first, its box and height in pixels of the upright picture,
the class or unknown, the nearest gallery image, its cosine, by how much that exceeds the best of another class (null
where there is none), and the detector's confidence (null where an earlier version has stored none)."""
NAME = "face_answers"


def area(box: Sequence[float]) -> float:
    """Area of a box left, top, right, bottom."""
    return (box[2] - box[0]) * (box[3] - box[1])


def answered(
    faces: Mapping[str, Seen],
    images: Sequence[Picture],
    gallery: Sequence[Picture],
    matrix: np.ndarray,
    threshold: float,
) -> Iterator[dict[str, Any]]:
    """Rows of ANSWERS.

    Args:
        faces: by uri, the largest face first.
        matrix: vectors (G, D) of the gallery, of length 1.
        threshold: cosine below which a face is unknown.
    """
    classes = np.array([one.cls for one in gallery], object)
    for image in images:
        for number, (box, vector, confidence) in enumerate(zip(*faces.get(image.uri, NOTHING), strict=True)):
            cosines = matrix @ vector
            best = int(cosines.argmax())
            others = cosines[classes != classes[best]]
            score = float(cosines[best])
            left, top, right, bottom = map(float, box)
            yield {
                **{"image": image.name, "face": number, "left": left, "top": top, "right": right, "bottom": bottom},
                "height": bottom - top,
                "answer": classes[best] if score >= threshold else UNKNOWN,
                "identity": unsuffixed(gallery[best].name),
                "score": score,
                "margin": score - float(others.max()) if len(others) else None,
                "confidence": None if np.isnan(confidence) else float(confidence),
            }


def write_face_answers(output: str, rows: Sequence[dict[str, Any]], images: Sequence[Picture]) -> None:
    """Write the answers of images; those of other images that are there already stay."""
    store, asked = Store(output), {one.name for one in images}
    uri = store.uri(f"{NAME}.parquet")
    before = pq.read_table(io.BytesIO(storage.read_bytes(uri))).to_pylist() if storage.exists(uri) else []
    merged = sorted(
        [*(row for row in before if row["image"] not in asked), *rows], key=lambda row: (row["image"], row["face"])
    )
    # Rows of an earlier version have no confidence.
    merged = [dict.fromkeys(ANSWERS.names) | row for row in merged]
    store.write_table(pa.Table.from_pylist(merged, ANSWERS), f"{NAME}.parquet")
    store.write_json(merged, f"{NAME}.json")

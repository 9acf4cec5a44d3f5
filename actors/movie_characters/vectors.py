"""Stored vectors of images: the parts of vectors/, by which an image counts as embedded."""

import pyarrow as pa

from actors.core.computed import COMPUTED
from actors.core.stage import Batch
from actors.core.store import Store

VECTORS = pa.schema(
    [
        ("uri", pa.string()),
        ("size", pa.int64()),
        ("model", pa.string()),
        ("vector", pa.list_(pa.float16())),
        ("error", pa.string()),
        ("message", pa.string()),
        (COMPUTED, pa.string()),
    ]
)
"""One row per image: its size in bytes, so that a replaced image is embedded again, the model, and its
device and precision, "" where it runs on CPUs alone."""


def write_vectors(batch: Batch, store: Store, model: str, computed: str) -> Batch:
    """Write vectors as a part; returns uri, error and message of its rows."""
    columns = {name: batch[name].tolist() for name in ("uri", "size", "error", "message")}
    vectors = [[] if code else vector for code, vector in zip(columns["error"], batch["vector"], strict=True)]
    count = len(vectors)
    columns |= {"model": [model] * count, COMPUTED: [computed] * count}
    table = pa.table({**columns, "vector": pa.array(vectors, VECTORS.field("vector").type)})
    store.write_part("vectors", table.select(VECTORS.names).cast(VECTORS), [model, *columns["uri"]])
    return {name: batch[name] for name in ("uri", "error", "message")}

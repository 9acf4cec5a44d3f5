"""Pairs of a face and a body of one character in one panel, as parts of pixels: written once, read in every epoch."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from actors.comic_characters.crops import Kind, code_of, crop_name, decode, prepare
from actors.core import storage
from actors.core.stage import Batch
from actors.core.store import Store

Sizes = dict[Kind, int]
"""Side of the stored squares in pixels, by kind."""
Labels = Mapping[tuple[Any, ...], tuple[int, ...]]
"""Numbers of pairs, by their values of KEY."""
KEY = ["series_id", "page_id", "face", "body"]
PAIRS = pa.schema(
    [
        ("series_id", pa.string()),
        ("page_id", pa.string()),
        ("face", pa.int64()),
        ("body", pa.int64()),
        ("face_pixels", pa.binary()),
        ("body_pixels", pa.binary()),
        ("error", pa.string()),
        ("message", pa.string()),
    ]
)
"""One row per pair. face, body: their index; pixels: uint8 (S, S, 3) RGB, row by row, null where there is an error."""
REJECTED_PAIRS = pa.schema([PAIRS.field(name) for name in (*KEY, "error", "message")])


def prepare_pairs(table: pa.Table, store: Store, sizes: Sizes) -> Batch:
    """Decode the crops of some pairs and write a part of pairs/; returns the number of pairs in column `pairs`."""
    rows = table.to_pylist()
    for row in rows:
        try:
            for kind, size in sizes.items():
                row[f"{kind}_pixels"] = _pixels(store, row, kind, size)
        except (FileNotFoundError, PermissionError, ValueError) as error:
            code = code_of(error, "crop")
            row |= {"face_pixels": None, "body_pixels": None, "error": code, "message": str(error)}
    names = ["/".join(str(row[name]) for name in KEY) for row in rows]
    store.write_part("pairs", pa.Table.from_pylist(rows, PAIRS), names)
    return {"pairs": np.array([len(rows)])}


def _pixels(store: Store, row: dict[str, Any], kind: Kind, size: int) -> bytes:
    uri = store.uri(crop_name(row["series_id"], row["page_id"], kind, row[kind]))
    return prepare(decode(storage.read_bytes(uri)), kind, size).tobytes()


def read_pairs(
    batch: Batch, store: Store, series: set[str], sizes: Sizes, labels: Labels | None = None, names: Sequence[str] = ()
) -> Iterator[Batch]:
    """Sound pairs of these series from parts of pairs/; a torn part is skipped, and decoded again by the next run.

    labels: numbers by pair, which become the columns `names`, int64; -1 where a pair has none.
    """
    for name in batch["part"]:
        table = store.read_part("pairs", str(name), [*KEY, "error", "face_pixels", "body_pixels"])
        if table is None:
            continue
        rows = [row for row in table.to_pylist() if row["series_id"] in series and row["error"] == ""]
        if rows:
            found = {
                kind: np.stack([np.frombuffer(row[f"{kind}_pixels"], np.uint8).reshape(size, size, 3) for row in rows])
                for kind, size in sizes.items()
            }
            unknown = (-1,) * len(names)
            numbers = [(labels or {}).get(tuple(row[part] for part in KEY), unknown) for row in rows]
            columns = np.array(numbers, np.int64).reshape(len(rows), len(names))
            yield {**found, **{column: columns[:, place] for place, column in enumerate(names)}}

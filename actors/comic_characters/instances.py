"""Instances, a face and a body each, as rows: their features and vectors, written and read in parts."""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from actors.core.computed import COMPUTED
from actors.core.stage import Batch, codes_of
from actors.core.store import Store

Instance = tuple[str, str, int | None, int | None]
"""Series, page, index of the face and of the body; None where there is no such part."""
MISSING_PART = "missing_part"
"""Error code of an instance without the only part that the head takes: no fault that could pass."""
KEY = ["series_id", "page_id", "face", "body"]
KEY_TYPES = [("series_id", pa.string()), ("page_id", pa.string()), ("face", pa.int64()), ("body", pa.int64())]
_WHY = [("error", pa.string()), ("message", pa.string())]
FEATURES = pa.schema(
    [
        *KEY_TYPES,
        ("face_features", pa.list_(pa.float32())),
        ("body_features", pa.list_(pa.float32())),
        *_WHY,
        (COMPUTED, pa.string()),
    ]
)
"""One row per instance. face, body: their index; null, as are their features, where it has no such part; computed:
device and precision of the network, null in rows of earlier versions."""
REJECTED_INSTANCES = pa.schema([*KEY_TYPES, *_WHY])
EMBEDDINGS = pa.schema(
    [
        *(FEATURES.field(name) for name in KEY),
        ("vector", pa.list_(pa.float32())),
        *(FEATURES.field(name) for name in ("error", "message", COMPUTED)),
    ]
)
"""One row per instance. vector: (D,) of length 1, null where there is an error; computed: on what its features were."""


def as_instance(row: Mapping[Any, Any]) -> Instance:
    """The instance of a row with the columns of KEY."""
    return row["series_id"], row["page_id"], row["face"], row["body"]


def part_name(part: list[Instance]) -> str:
    """The file of embeddings/ that holds these instances."""
    return f"part-{hashlib.sha256(repr(part).encode()).hexdigest()[:20]}.parquet"


def write_features(batch: Batch, store: Store, folder: str, computed: str) -> Batch:
    """Write the output of FeatureExtractor as a part of features/; returns its rows in column `instances`."""
    batch = {**batch, COMPUTED: np.full(len(batch["error"]), computed)}
    rows = [{name: batch[name][row] for name in FEATURES.names} for row in range(len(batch["error"]))]
    for row in rows:
        for kind in ("face", "body"):
            row[kind] = None if np.isnan(row[kind]) else int(row[kind])
        if row["error"]:
            row |= {"face_features": None, "body_features": None}
    names = ["/".join(map(str, as_instance(row))) for row in rows]
    store.write_part(folder, pa.Table.from_pylist(rows, FEATURES), names)
    return {"instances": np.array([len(rows)]), "codes": codes_of(batch["error"])}


def read_rows(table: pa.Table, store: Store, folder: str) -> pa.Table:
    """Rows of FEATURES of instances, from the part of features/ that each row names."""
    rows = table.to_pylist()
    wanted = {as_instance(row): row["part"] for row in rows}
    found: dict[Instance, dict[str, Any]] = {}
    for name in sorted(set(wanted.values())):
        part = store.read_part(folder, name, FEATURES.names, (COMPUTED,))
        if part is None:
            raise RuntimeError(f"{store.uri(folder, name)} is torn. Rerun the same command to compute it again.")
        found |= {one: row for row in part.to_pylist() if wanted.get(one := as_instance(row)) == name}
    return pa.Table.from_pylist([found[one] | {COMPUTED: found[one][COMPUTED] or ""} for one in wanted], FEATURES)


def write_vectors(batch: Batch, store: Store) -> Batch:
    """Write the output of InstanceEmbedder as a part of embeddings/; returns its rows in column `instances`."""
    rows = [{name: batch[name][row] for name in EMBEDDINGS.names} for row in range(len(batch["error"]))]
    for row in rows:
        for kind in ("face", "body"):
            row[kind] = None if np.isnan(row[kind]) else int(row[kind])
    name = part_name([as_instance(row) for row in rows])
    store.write_table(pa.Table.from_pylist(rows, EMBEDDINGS), "embeddings", name)
    return {"instances": np.array([len(rows)]), "codes": codes_of(batch["error"])}

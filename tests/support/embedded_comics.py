"""Comics whose characters have vectors that were made up: near one place for each of them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from actors.comic_characters.crops import cut_pictures
from actors.comic_characters.instances import EMBEDDINGS, KEY, REJECTED_INSTANCES
from actors.core.store import Store
from pipelines.comic_characters.crop import blocks, collect, plan_crops
from pipelines.comic_characters.sequences import Sequence, read_sequences
from pipelines.comic_characters.settings import ComicsConfig
from tests.support.comics import write_comic


def write_vectors(config: ComicsConfig, sequences: list[Sequence], noise: float = 0.4, lost: Any = ()) -> None:
    """What `embed` would leave: near one place for each character of a series, but for those that are lost."""
    store, random = Store(config.output), np.random.default_rng(0)
    places: dict[str, np.ndarray] = {}
    rows = []
    for one in sequences:
        for instance, character in zip(one.instances, one.characters, strict=True):
            series, _, who = character.split("_")
            place = places.setdefault(f"{series} {who}", random.normal(size=16))
            vector = place + noise * random.normal(size=16)
            row: dict[str, Any] = dict(zip(KEY, instance, strict=True)) | {"error": "", "message": ""}
            row["vector"] = (vector / np.linalg.norm(vector)).astype(np.float32)
            if instance in lost:
                row |= {"vector": None, "error": "missing_crop", "message": "gone"}
            rows.append(row)
    bad = [{name: row[name] for name in REJECTED_INSTANCES.names} for row in rows if row["error"]]
    store.replace_table("embeddings", [pa.Table.from_pylist(rows, EMBEDDINGS)])
    store.replace_table("rejected/embed", [pa.Table.from_pylist(bad, REJECTED_INSTANCES)])
    store.write_json({"features": "features/x", "head": {"weights": "y"}}, "embeddings.json")


def embedded_comic(folder: Path) -> tuple[ComicsConfig, list[Sequence]]:
    """Eight sequences of four series, cut and with vectors, of which the first four are to validate, others to test."""
    write_comic(folder, series=4)
    config = ComicsConfig(
        str(folder / "out"), str(folder / "panels"), str(folder / "merged_face_body.csv"), labels=str(folder)
    )
    plan = plan_crops(config)
    for table in blocks(plan, 64):
        cut_pictures(table, Store(config.output), config.crop)
    collect(config, plan)
    tree = json.loads((folder / "sequences.json").read_text())
    for split, part in (("validation", tree[:4]), ("test", tree[4:])):
        (folder / f"{split}_sequences.json").write_text(json.dumps(part))
    sequences = read_sequences(str(folder / "sequences.json"))
    write_vectors(config, sequences)
    return config, sequences

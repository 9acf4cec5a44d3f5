"""The embeddings of an output, as `embed` measured them: compared by `select`, and searched part by part."""

import logging
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from actors.core.errors import UserError
from actors.core.store import Store
from actors.curation.families.embedding import COLUMN
from actors.curation.select_settings import SelectConfig
from actors.curation.vectors import Vectors, concepts, similar

log = logging.getLogger(__name__)

READERS = 8
"""Parts that are read at once: a store answers late."""


class Embeddings(NamedTuple):
    """Where the embeddings of an output lie, and what made them."""

    folder: str
    """Below the store."""
    width: int
    """Numbers in a vector."""
    settings: dict[str, Any]
    """Those of the family."""


def embeddings(store: Store) -> Embeddings:
    """The embeddings that an output has; raises UserError where it has none."""
    about = store.read_json("measured", "embedding.json")
    if about is None:
        raise UserError(f"{store.root} has no embeddings. Measure them: python -m jobs.curation embed {store.root}")
    [width] = re.findall(r"\[(\d+)\]$", about["columns"][COLUMN])
    return Embeddings(f"measured/embedding/{about['fingerprint']}", int(width), about["settings"])


def vectors_of(table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Which rows of a table have a vector, int (n,), and these, float16 (n, D)."""
    column = table[COLUMN].combine_chunks()
    rows = np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False))
    values = column.drop_null().flatten().to_numpy(zero_copy_only=False)
    return rows, values.astype(np.float16, copy=False).reshape(len(rows), -1)


def gathered(store: Store, scenes: pd.DataFrame) -> Vectors:
    """The vectors of scenes, at their places in the frame; scenes: part and row, where they lie in scores/."""
    about = embeddings(store)
    vectors = Vectors(len(scenes), about.width)
    there, rows = set(store.parts(about.folder)), scenes.row.to_numpy()
    calls = [
        (name, places)
        for part, places in scenes.groupby("part", observed=True).indices.items()
        for folder, _, name in [str(part).rpartition("/")]
        if folder == "scores" and name in there
    ]

    def read(call: tuple[str, np.ndarray]) -> None:
        part, places = call
        table = store.read_part(about.folder, part, ["row", COLUMN])
        if table is not None:
            which, values = vectors_of(table)
            measured = pd.Series(np.arange(len(which)), table["row"].to_numpy()[which])
            found = measured.reindex(rows[places], fill_value=-1).to_numpy()
            vectors.put(places[found >= 0], values[found[found >= 0]])

    with ThreadPoolExecutor(READERS) as threads:
        for _ in threads.map(read, calls):
            pass
    return vectors


def compare_embeddings(store: Store, scenes: pd.DataFrame, select: SelectConfig) -> list[str]:
    """Add `alike`, the group of scenes that a cosine joins, and `concept`, -1 where there is none; returns notes.

    Memory is that of some blocks of vectors; vectors are in a temporary file of 2 bytes a number meanwhile, twice where
    they are compared.
    """
    scenes["concept"] = np.int32(-1)
    if select.semantic_dedupe is None and not select.balance.concepts:
        return []
    with gathered(store, scenes) as vectors:
        sound = (scenes.error == "").to_numpy()
        vectors.there &= sound
        if select.semantic_dedupe is not None:
            scenes["alike"] = similar(vectors, select.semantic_dedupe)
        if select.balance.concepts:
            scenes["concept"] = concepts(vectors, select.balance.concepts)
        missing = int((sound & ~vectors.there).sum())
    if not missing:
        return []
    note = (
        f"{missing:,} scenes have no embedding, so they are near-duplicates of none by select.semantic_dedupe and "
        "belong to no concept: run `embed`, then `select`."
    )
    log.warning("%s", note)
    return [note]

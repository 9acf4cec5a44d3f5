"""The embeddings of an output, as `embed` measured them: compared by `select`, and searched part by part."""

import logging
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pyarrow as pa

from actors.core.errors import UserError
from actors.core.store import Store
from actors.curation.families.embedding import COLUMN
from actors.curation.measuring.measured import Family, families_now
from actors.curation.selecting.select_settings import SelectConfig
from actors.curation.selecting.vectors import Vectors, concepts, similar

log = logging.getLogger(__name__)

READERS = 8
"""Parts that are read at once: a store answers late."""


def embeddings(store: Store) -> Family:
    """The family that has the embeddings of an output; raises UserError where it has none."""
    found = [family for family in families_now(store) if COLUMN in family.columns]
    if not found:
        raise UserError(f"{store.root} has no embeddings. Measure them: python -m jobs.curation embed {store.root}")
    return found[0]


def vectors_of(table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Which rows of a table have a vector, int (n,), and these, float16 (n, D)."""
    column = table[COLUMN].combine_chunks()
    rows = np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False))
    values = column.drop_null().flatten().to_numpy(zero_copy_only=False)
    return rows, values.astype(np.float16, copy=False).reshape(len(rows), -1)


def gathered(store: Store, scenes: pd.DataFrame) -> tuple[Vectors, np.ndarray]:
    """The vectors of scenes, at their places in the frame, and which of these were measured, bool (N,).

    scenes: part and row, where they lie in scores/.
    """
    family = embeddings(store)
    vectors = Vectors(len(scenes), family.columns[COLUMN].list_size)
    there, rows = set(store.parts(family.folder)), scenes.row.to_numpy()
    seen = np.zeros(len(scenes), bool)
    calls = [
        (name, places)
        for part, places in scenes.groupby("part", observed=True).indices.items()
        for folder, _, name in [str(part).rpartition("/")]
        if folder == "scores" and name in there
    ]

    def read(call: tuple[str, np.ndarray]) -> None:
        part, places = call
        table = store.read_part(family.folder, part, ["row", COLUMN])
        if table is not None:
            numbers = table["row"].to_numpy()
            which, values = vectors_of(table)
            found = pd.Series(np.arange(len(which)), numbers[which]).reindex(rows[places], fill_value=-1).to_numpy()
            vectors.put(places[found >= 0], values[found[found >= 0]])
            seen[places] = np.isin(rows[places], numbers)

    with ThreadPoolExecutor(READERS) as threads:
        for _ in threads.map(read, calls):
            pass
    return vectors, seen


def compare_embeddings(store: Store, scenes: pd.DataFrame, select: SelectConfig) -> list[str]:
    """Add `alike`, the group of scenes that a cosine joins, and `concept`, -1 where there is none; returns notes.

    scenes: error and what `judge` adds. Memory is that of some blocks of vectors; these are meanwhile in a temporary
    file of 2 bytes a number, twice where they are compared. Raises UserError where a scene that passes the rules has
    yet to be measured.
    """
    scenes["concept"] = np.int32(-1)
    if select.semantic_dedupe is None and not select.balance.concepts:
        return []
    vectors, seen = gathered(store, scenes)
    with vectors:
        sound = (scenes.error == "").to_numpy()
        wanted = sound & (scenes.reason == "").to_numpy()
        if left := int((wanted & ~seen).sum()):
            told = f"{store.root}: {left} scenes have no embedding."
            raise UserError(f"{told} Measure them: python -m jobs.curation embed {store.root}")
        vectors.there &= sound
        if select.semantic_dedupe is not None:
            scenes["alike"] = similar(vectors, select.semantic_dedupe)
        if select.balance.concepts:
            scenes["concept"] = concepts(vectors, select.balance.concepts)
        failed = int((wanted & ~vectors.there).sum())
    if not failed:
        return []
    note = f"{failed:,} scenes could not be embedded: they are compared by no embedding, and belong to no concept."
    log.warning("%s", note)
    return [note]

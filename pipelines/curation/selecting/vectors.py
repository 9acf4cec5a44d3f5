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
from pipelines.curation.selecting.choose import Judged

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


def gathered(store: Store, judged: Judged) -> tuple[Vectors, np.ndarray]:
    """The vectors of rows, at their places, and which of these were measured, bool (N,)."""
    family = embeddings(store)
    vectors = Vectors(len(judged), family.columns[COLUMN].list_size)
    there, seen = set(store.parts(family.folder)), np.zeros(len(judged), bool)
    part, rows, names = np.empty(len(judged), np.int32), np.empty(len(judged), np.int32), pd.Index([])
    for some, places, _ in judged.ranges():
        mine = some.part.cat.categories
        names = names.append(mine[~mine.isin(names)])
        part[places] = names.get_indexer(mine)[some.part.cat.codes]
        rows[places] = some.row
    order = np.argsort(part, kind="stable")
    ends = np.cumsum(np.bincount(part, minlength=len(names)))
    calls = [
        (name, places)
        for path, places in zip(names, np.split(order, ends), strict=False)
        for folder, _, name in [str(path).rpartition("/")]
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


def compare_embeddings(
    store: Store, judged: Judged, select: SelectConfig
) -> tuple[np.ndarray | None, np.ndarray | None, list[str]]:
    """The group of rows that a cosine joins and the concept of each place, -1 where there is none, and notes.

    None where nothing asks for them. Memory is that of some blocks of vectors and some numbers of each row; vectors
    are meanwhile in a temporary file of 2 bytes a number, twice where they are compared. Raises UserError where a scene
    that passes the rules has yet to be measured.
    """
    if select.semantic_dedupe is None and not select.balance.concepts:
        return None, None, []
    vectors, seen = gathered(store, judged)
    groups = concept = None
    with vectors:
        sound, wanted = np.zeros(len(judged), bool), np.zeros(len(judged), bool)
        for rows, places, _ in judged.ranges():
            sound[places] = rows.error == ""
            wanted[places] = (rows.error == "") & (rows.reason == "")
        if left := int((wanted & ~seen).sum()):
            told = f"{store.root}: {left} scenes have no embedding."
            raise UserError(f"{told} Measure them: python -m jobs.curation embed {store.root}")
        vectors.there &= sound
        if select.semantic_dedupe is not None:
            groups = similar(vectors, select.semantic_dedupe)
        if select.balance.concepts:
            concept = concepts(vectors, select.balance.concepts)
        failed = int((wanted & ~vectors.there).sum())
    if not failed:
        return groups, concept, []
    note = f"{failed:,} scenes could not be embedded: they are compared by no embedding, and belong to no concept."
    log.warning("%s", note)
    return groups, concept, [note]

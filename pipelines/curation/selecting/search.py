"""Scenes that show what a text says or a picture shows, by their embeddings; parts are read one after the other."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import PurePath
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from actors.core import storage
from actors.core.errors import UserError
from actors.core.stage import Row
from actors.core.store import Store
from actors.curation.families.embedding import COLUMN, Embedding, EmbeddingConfig
from actors.curation.measuring.measured import family_now, whole_parts
from actors.curation.tables import LATER, PICTURES, PLACES, SCENES, SELECT_AGAIN
from actors.media.images import IMAGE_SUFFIXES, ImageError, read_image
from pipelines.curation.selecting.vectors import READERS, embeddings, vectors_of

Key = tuple[str, str]
"""A scene: its video_id and scene_id."""


def is_image(query: str) -> bool:
    """Whether a query is a picture's path or s3://, by its ending."""
    return PurePath(query).suffix.lower() in IMAGE_SUFFIXES


def check_query(store: Store, query: str) -> None:
    """Raise UserError where an output cannot be searched for this, before a model is loaded."""
    made = _settings(store)
    if not query.strip():
        raise UserError("What to search for is empty: give a text, or a picture's path.")
    if is_image(query):
        if not storage.exists(query):
            raise UserError(f"{query}: there is no such picture")
    elif made.by != "clip":
        raise UserError(
            f"The embeddings of {store.root} are of {made.model}, which takes pictures only. Search with a picture, or "
            "run `embed` with a CLIP model."
        )
    if not store.parts("scenes"):
        raise UserError(f"{store.root} has no selection: run `select` first")


def search(store: Store, query: str, count: int) -> list[Row]:
    """The scenes of scenes/ that are nearest to a text or a picture, at most so many: its columns, cosine and part."""
    made = _settings(store)
    Embedding.check(made)
    model = Embedding(made)
    if is_image(query):
        try:
            vector = model.image(np.asarray(read_image(query)))
        except ImageError as error:
            raise UserError(f"{query} is no picture that can be read ({error.code}: {error})") from error
    else:
        vector = model.text(query)
    return nearest(store, vector, count)


def _settings(store: Store) -> EmbeddingConfig:
    """The settings of the embeddings, for a process that has CPUs only."""
    family = embeddings(store)
    if family.name != "embedding":
        raise UserError(f"The embeddings of {store.root} are of {family.name}: `search` takes those of `embed` only")
    made = (family_now(store, family.name) or {})["settings"]
    known = {one.name for one in fields(EmbeddingConfig)}
    here = {"num_gpus": 0.0, "num_cpus": float(os.cpu_count() or 1), "dtype": "float32"}
    return EmbeddingConfig(**{name: value for name, value in made.items() if name in known} | here)


def nearest(store: Store, vector: np.ndarray, count: int) -> list[Row]:
    """The scenes of scenes/ with the highest cosine, as `search`."""
    wanted = 2 * count + 64
    while True:
        best, more = _best(store, vector, wanted)
        found = _current(store, best)
        # What is measured may be of films or times that the input no longer has.
        if len(found) >= count or not more:
            return found[:count]
        wanted *= 4


def _best(store: Store, vector: np.ndarray, count: int) -> tuple[pd.DataFrame, bool]:
    """video_id, scene_id, part and cosine of the nearest that were measured, and whether there are more."""
    folder = embeddings(store).folder
    columns = ["video_id", "scene_id", COLUMN]
    unit = (vector / np.linalg.norm(vector)).astype(np.float32)

    def read(part: str) -> pd.DataFrame:
        table = store.read_part(folder, part, columns)
        if table is None:
            return pd.DataFrame({"video_id": [], "scene_id": [], "part": [], "cosine": []})
        rows, values = vectors_of(table)
        if values.shape[1] != len(unit):
            raise UserError(f"{store.uri(folder, part)} has vectors of {values.shape[1]} numbers, not {len(unit)}")
        lengths = np.linalg.norm(values.astype(np.float32), axis=1)
        cosine = values.astype(np.float32) @ unit / np.maximum(lengths, 1e-6)
        first = np.argsort(-cosine, kind="stable")[:count]
        keys = table.select(columns[:2]).take(pa.array(rows[first])).to_pandas()
        return keys.assign(part=part, cosine=cosine[first], of=len(rows))

    best, measured = pd.DataFrame(), 0
    for some in _in_turn(read, whole_parts(store, folder)):
        measured += int(some["of"].max()) if len(some) else 0
        best = pd.concat([best, some]).sort_values(["cosine", "video_id", "scene_id"], ascending=[False, True, True])
        best = best.head(count)
    return best, measured > len(best)


def _in_turn(read: Any, parts: list[str]) -> Iterator[Any]:
    """What is read of parts, some of them at once, in order."""
    with ThreadPoolExecutor(READERS) as threads:
        for first in range(0, len(parts), 4 * READERS):
            yield from threads.map(read, parts[first : first + 4 * READERS])


def _current(store: Store, best: pd.DataFrame) -> list[Row]:
    """The rows of scenes/ of those that are in it, with cosine and pictures, the nearest first."""
    if best.empty:
        return []
    there = set(store.parts("scores"))
    keys = best[["video_id", "scene_id", "part"]].itertuples(index=False, name=None)
    parts: dict[Any, float] = dict(zip(keys, best.cosine.tolist(), strict=True))
    ids = best.scene_id.unique().tolist()
    near: dict[Key, tuple[float, str]] = {}
    # Where parts were compacted since the selection, the id alone tells.
    anywhere = {key[:2]: cosine for key, cosine in reversed(parts.items())}
    for places in store.read_parts("places", PLACES.names, (PICTURES,), again=SELECT_AGAIN):
        for place in _among(places, ids):
            key = place["video_id"], place["scene_id"]
            known = parts.get((*key, place["part"])) if place["part"] in there else anywhere.get(key)
            if known is not None:
                near[key] = known, place[PICTURES] or place["part"]
    found = []
    for scenes in store.read_parts("scenes", SCENES.names, LATER, again=SELECT_AGAIN):
        for row in _among(scenes, ids):
            if place := near.get((row["video_id"], row["scene_id"])):
                found.append({**row, "cosine": place[0], PICTURES: place[1]})
    return sorted(found, key=lambda row: (-row["cosine"], row["video_id"], row["scene_id"]))


def _among(table: pa.Table, scene_ids: list[str]) -> list[Row]:
    return table.filter(table["scene_id"].to_pandas().isin(scene_ids).to_numpy()).to_pylist()

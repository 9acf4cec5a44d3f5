"""What a timeline by faces writes of all films: tracks.parquet, a row group per film; people.csv and people.json."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.parquet as pq

from actors.core import storage
from actors.core.store import Store
from actors.core.temporary import TemporaryFolder
from pipelines.movie_characters.films.face_timeline import TRACKS, Judge, Track
from pipelines.movie_characters.films.people import (
    CLUSTER,
    NAME,
    check_names,
    cluster_tracks,
    number_clusters,
    read_names,
)
from pipelines.movie_characters.results import write_csv

if TYPE_CHECKING:
    import pandas as pd

TABLE, PEOPLE, KNOWN = "tracks.parquet", "people.csv", "people.json"


@dataclass(frozen=True)
class People:
    """Tracks with their answers, a line each; all else of them is in tracks.parquet."""

    store: Store
    judge: Judge
    index: pd.DataFrame
    """A row per track: film, track, identity, cluster, start_s, end_s; in the order of tracks.parquet."""
    frames: int
    """Frames of all films."""

    @property
    def tracks(self) -> Iterator[Track]:
        """All tracks, read film by film."""
        for film, numbers in self.index.groupby("film", sort=False).track:
            yield from self.read({str(film): set(numbers)}).values()

    @property
    def clusters(self) -> int:
        """People whom the gallery does not know."""
        return self.index.cluster[self.index.cluster != ""].nunique()

    def read(self, wanted: Mapping[str, Collection[int]]) -> dict[tuple[str, int], Track]:
        """Some tracks, by film and number; wanted: numbers by film."""
        found = {}
        with storage.stream(self.store.uri(TABLE)) as file:
            table = pq.ParquetFile(file)
            for group, film in enumerate(self.index.film.unique()):
                if numbers := wanted.get(film):
                    for row in table.read_row_group(group).to_pylist():
                        if row["track"] in numbers:
                            found[film, row["track"]] = Track.of(row)
        return found


def name_strangers(
    store: Store, vectors: np.ndarray, films: np.ndarray, spans: np.ndarray, keys: Sequence[str], alike: float
) -> list[str]:
    """The cluster of each track that nobody of the gallery explains.

    Which cluster a track has had is kept in people.json.

    Args:
        vectors, films, spans, alike: as of `cluster_tracks`.
        keys: what names each track in every run.
    """
    before: dict[str, str] = store.read_json(KNOWN) or {}
    found: list[str] = []
    if len(vectors):
        clusters = cluster_tracks(vectors, films, spans, alike)
        found = number_clusters(clusters, keys, spans[:, 1] - spans[:, 0], before)
        before.update(zip(keys, found, strict=True))
    store.write_json(before, KNOWN)
    return found


def names_given(store: Store, table: str) -> dict[str, str]:
    """Names by cluster, of a table at an address, or none; all clusters were there in this run or an earlier one."""
    names = read_names(table) if table else {}
    check_names(table, names, (store.read_json(KNOWN) or {}).values())
    return names


def write_tracks(store: Store, parts: Sequence[str]) -> None:
    """Write tracks.parquet of the parts of films, one after the other; parts: their names below the store."""
    with TemporaryFolder() as folder:
        path = folder / TABLE
        with pq.ParquetWriter(path, TRACKS, compression="zstd") as writer:
            for name in parts:
                part = pq.read_table(io.BytesIO(storage.read_bytes(store.uri(name))))
                if len(part):
                    writer.write_table(part, row_group_size=len(part))
        storage.upload(path, store.uri(TABLE))


def write_people(store: Store, index: pd.DataFrame, names: Mapping[str, str]) -> None:
    """Write people.csv, which is a table of names to be filled in."""
    found = index[index.cluster != ""].assign(seconds=index.end_s - index.start_s)
    table = found.groupby(CLUSTER).agg(tracks=("film", "size"), films=("film", "nunique"), seconds=("seconds", "sum"))
    table = table.sort_values("seconds", ascending=False, kind="stable").reset_index()
    table.insert(1, NAME, [names.get(one, "") for one in table[CLUSTER]])
    write_csv(store.uri(PEOPLE), table.assign(seconds=table.seconds.astype(float).round(3)))

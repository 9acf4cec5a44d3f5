"""Rows of scores/ of a whole corpus in one process: those of some videos after those of others.

What is not at hand waits on disk, so that memory holds the rows of a range of shards.
"""

import os
from collections.abc import Sequence
from tempfile import SpooledTemporaryFile
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from actors.core.errors import BrokenRunError, machine_fault
from actors.curation.tables import strings

compute: Any = pc
"""Most of its functions are made when it is imported, so that no type checker knows them."""
OF_FILMS = ("fetch_s", "cut_s", "decoded", "source", "decoder")
"""Columns that are of films, where scenes are not asked for them by name."""
MEMORY_BYTES = 1 << 20
"""Of a file, what is held in memory."""


class Divided:
    """Rows in so many groups, each in the order in which they were added, in one temporary file; a context.

    The file has no name and goes with the process, however that ends. All rows have the same columns.
    """

    def __init__(self, count: int) -> None:
        self._file = SpooledTemporaryFile(MEMORY_BYTES)  # noqa: SIM115
        self._places: list[list[tuple[int, int]]] = [[] for _ in range(count)]
        """Where the rows of each group are in the file, and how many bytes these take."""
        self._nothing: list[pa.Table] = []

    def __len__(self) -> int:
        return len(self._places)

    def __enter__(self) -> "Divided":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, rows: pa.Table, numbers: np.ndarray) -> None:
        """Add each row to the group of its number, int (N,)."""
        self._nothing = self._nothing or [rows.slice(0, 0)]
        rows = rows.take(pa.array(np.argsort(numbers, kind="stable")))
        ends = np.cumsum(np.bincount(numbers, minlength=len(self)))
        for places, first, end in zip(self._places, [0, *ends], ends, strict=False):
            if end > first:
                sink = pa.BufferOutputStream()
                with pa.ipc.new_stream(sink, rows.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as stream:
                    stream.write_table(rows.slice(first, end - first))
                data = sink.getvalue()
                try:
                    places.append((self._file.seek(0, os.SEEK_END), data.size))
                    self._file.write(data)
                except OSError as error:
                    raise BrokenRunError(machine_fault(error, writing=True) or str(error)) from error

    def of(self, number: int) -> pa.Table:
        """The rows of a group."""
        tables = [*self._nothing]
        for place, size in self._places[number]:
            self._file.seek(place)
            with pa.ipc.open_stream(self._file.read(size)) as stream:
                tables.append(stream.read_all())
        return pa.concat_tables(tables, promote_options="permissive").unify_dictionaries()


def is_in(rows: pa.Table, name: str, text: str) -> np.ndarray:
    """Which rows have a text in a column, bool (N,)."""
    return (rows[name].to_pandas() == text).to_numpy()


def codes(texts: pa.ChunkedArray) -> np.ndarray:
    """A number for each text, int32 (N,)."""
    coded = texts.dictionary_encode().chunks
    return np.concatenate([np.empty(0, np.int32), *(chunk.indices.to_numpy() for chunk in coded)])


def counted(rows: pa.Table, plan: pd.Series, wanted: Sequence[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Those rows of scenes, and those of films, that count, in the order of the plan.

    Of rows that were made more than once a sound one counts, else the last. A video may have been scored in a run over
    another range of the input: this plan leaves it out. Rows have

        video  place of the video_id among those of `plan`; -1: it has only what cannot be cut of this one
        span   a number for each clip_id
        index  the video's place in the input, which may have changed since the row was made
        place  that among all rows that count

    rows: as `read_rows` gives them, all of each video. plan: video_index by video_id, sorted. wanted: columns that
    scenes are asked for.
    """
    names, planned = pa.array(plan.index, pa.string()), is_in(rows, "step", "plan")
    video = pc.fill_null(compute.index_in(rows["video_id"], value_set=names), -1).to_numpy()
    index = np.where(planned, rows["video_index"].to_numpy(), np.append(plan.to_numpy(), -1)[video]).astype(np.int32)
    made = np.flatnonzero(~planned & (video >= 0))
    made = made[np.lexsort((rows["written"].to_numpy()[made], is_in(rows, "error", "")[made]))]
    same = video[made].astype(np.int64) << 32 | codes(rows["scene_id"])[made]
    made = made[~pd.Series(same).duplicated(keep="last").to_numpy()]
    some = np.concatenate([made, np.flatnonzero(planned)])
    some = some[np.lexsort((rows["ordinal"].to_numpy()[some], index[some]))]
    numbers = {"video": video, "span": codes(rows["clip_id"]), "index": index}
    rows = rows.take(pa.array(some)).append_column("place", pa.array(np.arange(len(some), dtype=np.int32)))
    for name, values in numbers.items():
        rows = rows.append_column(name, pa.array(values[some]))
    film = is_in(rows, "scene_id", "")
    scenes = rows.drop_columns([name for name in OF_FILMS if name not in wanted])
    both = scenes.filter(pa.array(~film)), rows.filter(pa.array(film))
    return both[0].to_pandas(types_mapper=strings), both[1].to_pandas(types_mapper=strings)

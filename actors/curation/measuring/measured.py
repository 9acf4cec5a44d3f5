"""Scores of families as they are stored, and how they meet the rows of scores/.

measured/NAME.json says which version of a family counts: its fingerprint and its columns. measured/NAME/FINGERPRINT/
holds a part for each part of scores/, of the same name; its column `row` is the number of the row there. A compacted
part of scores/ has too many rows for one worker: a family that comes later measures slices of it, each a file of its
own, and they become one part when all are there.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from actors.core import storage
from actors.core.catalog import GENERATION, Part, ReplacedError
from actors.core.computed import COMPUTED
from actors.core.stage import Batch, Stage
from actors.core.store import Store

FOLDER = "measured"
KEYS = (("row", pa.int32()), ("video_id", pa.string()), ("scene_id", pa.string()))
TOLD = (("error", pa.string()), ("message", pa.string()), (COMPUTED, pa.string()))
TEXTS = "texts"
"""Column of families that look at captions: the digest of those that were measured."""
ROW = (*dict(KEYS), *dict(TOLD), TEXTS)
"""Columns of every family."""
SLICE = "rows-"
"""Start of the name of a slice."""
SLICE_ROWS = 1024
"""Rows of scores/ in a slice."""
LIST = re.compile(r"fixed_size_list<\w+: (\w+)[^>]*>\[(\d+)\]")


@dataclass(frozen=True)
class Family:
    """A version of a family whose parts are stored."""

    name: str
    fingerprint: str
    columns: Mapping[str, pa.DataType]

    @property
    def folder(self) -> str:
        """Where its parts lie, below the output."""
        return folder_of(self.name, self.fingerprint)

    @property
    def schema(self) -> pa.Schema:
        """That of a part."""
        return pa.schema([*KEYS, *self.columns.items(), *TOLD])


@dataclass(frozen=True)
class Task:
    """A family that is to be measured, for workers."""

    name: str
    config: Stage
    """Its settings; resources as they fit the cluster."""
    fingerprint: str
    before: str = ""
    """A version whose sound rows count, of a family that looks at captions where these are those of now."""

    @property
    def folder(self) -> str:
        """Where its parts go, below the output."""
        return folder_of(self.name, self.fingerprint)

    @property
    def column(self) -> str:
        """Of rows that carry its scores while films are decoded."""
        return f"{FOLDER}_{self.name}"


def folder_of(name: str, fingerprint: str) -> str:
    """Where the parts of a version of a family lie, below the output."""
    return f"{FOLDER}/{_file_name(name)}/{fingerprint}"


def _file_name(name: str) -> str:
    return name.replace(":", ".")


def slices_of(part: Part) -> list[str]:
    """The files that a family writes for a part of scores/: one of its name, or for a compacted part its slices."""
    if not part.name.startswith(GENERATION):
        return [part.name]
    stem = part.name.removeprefix(GENERATION).removesuffix(".parquet")
    starts = range(0, max(part.rows, 1), SLICE_ROWS)
    return [f"{SLICE}{stem}-{start:09d}-{SLICE_ROWS}.parquet" for start in starts]


def rows_of_slice(name: str) -> tuple[str, int, int | None]:
    """The part of scores/ that a file of a family is for, its first row there, and how many; None: all."""
    if not name.startswith(SLICE):
        return name, 0, None
    stem, start, count = name.removeprefix(SLICE).removesuffix(".parquet").rsplit("-", 2)
    return f"{GENERATION}{stem}.parquet", int(start), int(count)


def whole_parts(store: Store, folder: str) -> list[str]:
    """Names of the parts of a family, without slices."""
    return [name for name in store.parts(folder) if not name.startswith(SLICE)]


def families_now(store: Store) -> list[Family]:
    """The families that an output has, by name; those that were never measured to their end are not there."""
    _, files = storage.children(store.uri(FOLDER))
    found = [store.read_json(FOLDER, file.name) for file in files if file.name.endswith(".json")]
    about = [one for one in found if one]
    return [
        Family(one["name"], one["fingerprint"], {name: _type(text) for name, text in one["columns"].items()})
        for one in sorted(about, key=lambda one: one["name"])
    ]


def family_now(store: Store, name: str) -> Mapping[str, Any] | None:
    """What is stored of a family: its fingerprint, columns, settings, and how many scenes it was measured on."""
    return store.read_json(FOLDER, f"{_file_name(name)}.json")


def write_family(store: Store, family: Family, more: Mapping[str, Any]) -> None:
    """Let a version of a family count."""
    columns = {name: str(kind) for name, kind in family.columns.items()}
    about = {"name": family.name, "fingerprint": family.fingerprint, "columns": columns, **more}
    store.write_json(about, FOLDER, f"{_file_name(family.name)}.json")


def _type(text: str) -> pa.DataType:
    found = LIST.fullmatch(text)
    return pa.list_(pa.type_for_alias(found[1]), int(found[2])) if found else pa.type_for_alias(text)


def is_measurable(rows: pa.Table) -> np.ndarray:
    """Which rows of scores/ a family measures, bool (N,): those of sound scenes that are not too long or too short.

    rows: scene_id, error, mean_rgb_diff.
    """
    sound = (rows["error"].to_numpy() == "") & (rows["scene_id"].to_numpy() != "")
    return sound & np.isfinite(rows["mean_rgb_diff"].to_numpy().astype(np.float64))


def with_families(
    store: Store, part: str, rows: pa.Table, families: Sequence[Family], columns: Sequence[str]
) -> tuple[pa.Table, np.ndarray]:
    """Rows of a part of scores/, all of them and in order, with columns of families, null where there is no value.

    Also returns which families, by bits of a number, have yet to measure a row, int64 (N,); rows have what
    `is_measurable` needs.
    """
    left = np.zeros(len(rows), np.int64)
    for bit, family in enumerate(families):
        names = [name for name in family.columns if name in columns]
        table = _read(store, family, part, names)
        at = np.full(len(rows), -1)
        numbers = table["row"].to_numpy()
        at[numbers] = np.arange(len(numbers))
        chosen = table.take(pa.array(at, mask=at < 0))
        for name in names:
            rows = rows.append_column(pa.field(name, family.columns[name]), chosen[name])
        left |= np.where(is_measurable(rows) & (at < 0), 1 << bit, 0)
    return rows, left


def _read(store: Store, family: Family, part: str, names: Sequence[str]) -> pa.Table:
    """Columns of a family's part, without rows where there is none."""
    wanted = ["row", *names]
    schema = pa.schema([family.schema.field(name) for name in wanted])
    try:
        table = store.read_part(family.folder, part, wanted) if part else None
    except (FileNotFoundError, ReplacedError):
        # It has none, unless both were compacted meanwhile.
        store.check_there("scores", part)
        table = None
    return pa.Table.from_batches([], schema) if table is None else table.select(wanted).cast(schema)


def passed_rows(batch: Batch, task: Task) -> pa.Table | None:
    """What a family has measured of the rows of a batch, as a part of its own; None where that is nothing."""
    tables = []
    for number, packed in enumerate(batch[task.column]):
        if len(packed):
            table = pa.ipc.open_stream(packed).read_all()
            tables.append(table.set_column(0, "row", pa.array([number], pa.int32())))
    return pa.concat_tables(tables) if tables else None

"""Every artefact's name under one root, whole parts of tables, and what is done already.

A table is a folder of Parquet parts. A part is written whole under a name made of what it holds, so that a step that
is repeated after a fault replaces its own part; a part whose footer cannot be read is ignored and made again. A table
that is replaced as a whole has its parts named by the catalog, and is read as it was written or not at all.
"""

import hashlib
import io
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from actors.core import storage
from actors.core.catalog import GENERATION, Catalog, DamagedError, Part, Replacement, read_catalog, replaced
from actors.core.errors import UserError
from actors.core.json_text import write_text
from actors.core.local_files import Entry
from actors.core.temporary import TemporaryFolder

log = logging.getLogger(__name__)

SMALL = 1 << 20
"""Bytes of a part for which threads cost more than they save."""


@dataclass(frozen=True)
class Store:
    """The files under one root: a path, file:// or s3://."""

    root: str

    def uri(self, *names: str) -> str:
        """Where an artefact lies."""
        return storage.join(self.root, *names)

    def write_part(self, folder: str, table: pa.Table, keys: Iterable[str], row_group_size: int | None = None) -> str:
        """Write a table as one part, named after the keys of its rows; returns the part's name.

        row_group_size: rows that can be read without the others; None: all.
        """
        name = part_name(keys)
        self.write_table(table, folder, name, row_group_size=row_group_size)
        return name

    def write_table(self, table: pa.Table, *names: str, row_group_size: int | None = None) -> None:
        """Write a table as one Parquet file."""
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd", row_group_size=row_group_size)
        storage.write_bytes(self.uri(*names), buffer.getvalue())

    def parts(self, folder: str) -> list[str]:
        """Names of the parts of a table, in order."""
        return [part.name for part in self.listed(folder)]

    def catalog(self) -> Catalog:
        """The tables that are replaced as a whole, as they are now."""
        return read_catalog(self.root)

    def listed(self, folder: str) -> list[Part]:
        """The parts of a table, in order: those that the catalog names, and those that were added one by one."""
        named, added = self.divided(folder)
        return [*named, *(Part(folder, entry.name) for entry in added)]

    def divided(self, folder: str) -> tuple[list[Part], list[Entry]]:
        """The parts of a table that the catalog names, and the files of those that were added since."""
        table = self.catalog().tables.get(folder)
        if table and not table.grows:
            return list(table.parts), []
        # Listed before the catalog is read: what a new generation has taken the place of may be gone in between.
        found = list(storage.listing(self.uri(folder), (".parquet",)))
        table = self.catalog().tables.get(folder)
        absorbed = table.absorbed if table else {}
        added = [
            entry
            for entry in found
            if not entry.name.startswith(GENERATION) and absorbed.get(entry.name) != entry.stamp
        ]
        return list(table.parts) if table else [], added

    def read_part(
        self, folder: str, name: str, columns: Sequence[str] | None = None, optional: Sequence[str] = ()
    ) -> pa.Table | None:
        """One part, or None where it is torn; raises UserError where it lacks a column.

        optional: columns that parts of earlier versions lack; they are null there.

        Raises FileNotFoundError where it is not there, ReplacedError where another command has put a new generation in
        its place.
        """
        uri = self.uri(folder, name)
        try:
            data = storage.read_bytes(uri)
        except FileNotFoundError:
            if not self._names(folder, name):
                raise
            log.warning("%s is missing: its rows are made again", uri)
            return None
        table = _parsed(uri, data, columns, optional)
        if table is None:
            log.warning("%s is torn and ignored: its rows are made again", uri)
        return table

    def check_there(self, folder: str, name: str) -> None:
        """Raise ReplacedError where a part of a table that grows is gone, and a new generation has its place."""
        if not storage.exists(self.uri(folder, name)):
            self._names(folder, name)

    def _names(self, folder: str, name: str) -> bool:
        """Whether the catalog names a part that is not there; ReplacedError where the table grows and it does not."""
        table = self.catalog().tables.get(folder)
        named = table is not None and any(part.name == name for part in table.parts)
        if table and table.grows and not named:
            raise replaced(self.root, folder)
        return named

    def read_whole(
        self, part: Part, columns: Sequence[str] | None = None, optional: Sequence[str] = (), again: str = ""
    ) -> pa.Table:
        """One part as it was written.

        again: what makes the table again, as a sentence, where the catalog does not tell.

        Raises DamagedError where it is torn or, by the catalog, missing or not what was written; ReplacedError where it
        was replaced meanwhile.
        """
        uri = self.uri(part.folder, part.name)
        table = None
        try:
            data = storage.read_bytes(uri)
            fault = "has other content than was written"
            if not part.digest or hashlib.sha256(data).hexdigest() == part.digest:
                table, fault = _parsed(uri, data, columns, optional), "is torn"
        except FileNotFoundError:
            if not part.digest:
                raise
            fault = "is missing"
        if table is not None:
            return table
        now = self.catalog().tables.get(part.folder)
        if part.digest and (now is None or part not in now.parts):
            raise replaced(self.root, part.folder)
        raise DamagedError(f"{self.root} has lost rows: {uri} {fault}. {now.again if now else again}".rstrip())

    def read_parts(
        self, folder: str, columns: Sequence[str] | None = None, optional: Sequence[str] = (), again: str = ""
    ) -> Iterator[pa.Table]:
        """The parts of a table, one by one.

        What the catalog names is read as it was written, or raises as `read_whole`. A part that was added and is torn
        is left out, or with `again` raises, too.
        """
        for part in self.listed(folder):
            if part.digest or again:
                yield self.read_whole(part, columns, optional, again)
                continue
            table = self.read_part(folder, part.name, columns, optional)
            if table is not None:
                yield table

    def read_table(self, folder: str, schema: pa.Schema, optional: Sequence[str] = (), again: str = "") -> pa.Table:
        """All parts of a table as one, with the columns and types of the schema; as `read_parts`."""
        # Who writes a part with another tool may get other types, as for strings with pandas.
        read = self.read_parts(folder, schema.names, optional, again)
        # Schema.empty_table imports pandas.
        empty = pa.Table.from_batches([], schema)
        return pa.concat_tables([empty, *(part.select(schema.names).cast(schema) for part in read)])

    def replace_table(self, folder: str, tables: Iterable[pa.Table]) -> None:
        """Write a table anew as numbered parts and remove what was there before, one file after the other."""
        names = set()
        for number, table in enumerate(tables):
            name = self.numbered(number)
            self.write_table(table, folder, name)
            names.add(name)
        for name in set(self.parts(folder)) - names:
            storage.delete(self.uri(folder, name))

    def remove_part(self, folder: str, name: str) -> None:
        """Remove a part of a table that grows."""
        named = self.divided(folder)[0]
        if any(part.name == name for part in named):
            again = self.catalog().tables[folder].again
            with Replacement(self.root, [folder], again) as new:
                new.add(*(part for part in named if part.name != name))
                new.commit(absorbed={})
        storage.delete(self.uri(folder, name))

    def remove_table(self, folder: str) -> None:
        """Remove a table that parts were added to."""
        if folder in self.catalog().tables:
            self.commit_table(folder, [], "", absorbed=self.parts(folder))
        for name in self.parts(folder):
            storage.delete(self.uri(folder, name))

    def numbered(self, number: int) -> str:
        """Name of a numbered part."""
        return f"part-{number:06d}.parquet"

    def commit_table(
        self, folder: str, tables: Iterable[pa.Table], again: str, absorbed: Iterable[str] | None = None
    ) -> None:
        """Write a table anew and put it in place of what was there, in one step; as `Replacement`.

        absorbed: names of the added parts that it stands for; None: it does not grow.
        """
        gone = None
        if absorbed is not None:
            there = {entry.name: entry.stamp for entry in self.divided(folder)[1]}
            gone = {folder: {name: there[name] for name in absorbed if name in there}}
        with Replacement(self.root, [folder], again) as new:
            for number, table in enumerate(tables):
                new.add(new.writer.write(folder, number, table))
            new.commit(absorbed=gone)

    def write_json(self, value: Any, *names: str) -> None:
        """Write a JSON file; numbers of numpy are numbers."""
        text = json.dumps(value, indent=1, ensure_ascii=False, default=_number)
        storage.write_bytes(self.uri(*names), text.encode())

    def write_pieces(self, pieces: Iterable[str], *names: str) -> None:
        """Write a text file whose pieces are made one after the other: it need not fit into memory."""
        with TemporaryFolder() as folder:
            path = folder / "whole"
            write_text(path, pieces)
            storage.upload(path, self.uri(*names))

    def read_json(self, *names: str) -> Any:
        """Read a JSON file; None where there is none. Raises UserError where it is damaged: we write whole files."""
        try:
            return json.loads(storage.read_bytes(self.uri(*names)))
        except FileNotFoundError:
            return None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"{self.uri(*names)} is damaged ({error}). Remove it, or restore it.") from error


def part_name(keys: Iterable[str]) -> str:
    """Name of the part that holds the rows of these keys."""
    return f"part-{hashlib.sha256(chr(0).join(keys).encode()).hexdigest()[:20]}.parquet"


def _number(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} is nothing that JSON has: {value!r}")


def _parsed(uri: str, data: bytes, columns: Sequence[str] | None, optional: Sequence[str]) -> pa.Table | None:
    """The columns of a part; None where it is torn."""
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        names = file.schema_arrow.names
        missing = set(columns or ()) - {*names, *optional}
        there = columns and [name for name in columns if name in names]
        table = None if missing else file.read(there, use_threads=len(data) > SMALL)
    except (pa.ArrowInvalid, OSError):
        return None
    if table is None:
        raise UserError(f"{uri} has no column {', '.join(sorted(missing))}: write it again, or use another output")
    for name in [name for name in columns or () if name not in names]:
        table = table.append_column(name, pa.nulls(len(table)))
    return table

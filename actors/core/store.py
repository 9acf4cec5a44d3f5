"""Every artefact's name under one root, whole parts of tables, and what is done already.

A table is a folder of Parquet parts. A part is written whole under a name made of what it holds, so that a step that
is repeated after a fault replaces its own part; a part whose footer cannot be read is ignored and made again.
"""

import hashlib
import io
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from actors.core import storage
from actors.core.errors import UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Store:
    """The files under one root: a path, file:// or s3://."""

    root: str

    def uri(self, *names: str) -> str:
        """Where an artefact lies."""
        return storage.join(self.root, *names)

    def write_part(self, folder: str, table: pa.Table, keys: Iterable[str]) -> str:
        """Write a table as one part, named after the keys of its rows; returns the part's name."""
        name = f"part-{hashlib.sha256(chr(0).join(keys).encode()).hexdigest()[:20]}.parquet"
        self.write_table(table, folder, name)
        return name

    def write_table(self, table: pa.Table, *names: str) -> None:
        """Write a table as one Parquet file."""
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        storage.write_bytes(self.uri(*names), buffer.getvalue())

    def parts(self, folder: str) -> list[str]:
        """Names of the parts of a table, sorted."""
        return [entry.name for entry in storage.listing(self.uri(folder), (".parquet",))]

    def read_part(self, folder: str, name: str, columns: Sequence[str] | None = None) -> pa.Table | None:
        """One part, or None where it is torn; raises UserError where it lacks a column."""
        uri = self.uri(folder, name)
        data = storage.read_bytes(uri)
        try:
            file = pq.ParquetFile(io.BytesIO(data))
            missing = set(columns or ()) - set(file.schema_arrow.names)
            table = None if missing else file.read(columns and list(columns))
        except (pa.ArrowInvalid, OSError):
            log.warning("%s is torn and ignored: its rows are made again", uri)
            return None
        if missing:
            raise UserError(f"{uri} has no column {', '.join(sorted(missing))}: write it again, or use another output")
        return table

    def read_parts(self, folder: str, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The parts of a table that can be read, one by one."""
        for name in self.parts(folder):
            table = self.read_part(folder, name, columns)
            if table is not None:
                yield table

    def read_table(self, folder: str, schema: pa.Schema) -> pa.Table:
        """All parts of a table as one, with the columns and types of the schema."""
        # Who writes a part with another tool may get other types, as for strings with pandas.
        parts = (part.select(schema.names).cast(schema) for part in self.read_parts(folder, schema.names))
        return pa.concat_tables([schema.empty_table(), *parts])

    def replace_table(self, folder: str, tables: Iterable[pa.Table]) -> None:
        """Write a table anew as numbered parts and remove what was there before."""
        names = set()
        for number, table in enumerate(tables):
            name = self.numbered(number)
            self.write_table(table, folder, name)
            names.add(name)
        for name in set(self.parts(folder)) - names:
            storage.delete(self.uri(folder, name))

    def numbered(self, number: int) -> str:
        """Name of a numbered part."""
        return f"part-{number:06d}.parquet"

    def write_json(self, value: Any, *names: str) -> None:
        """Write a JSON file."""
        storage.write_bytes(self.uri(*names), json.dumps(value, indent=1, ensure_ascii=False).encode())

    def read_json(self, *names: str) -> Any:
        """Read a JSON file; None where there is none."""
        try:
            return json.loads(storage.read_bytes(self.uri(*names)))
        except FileNotFoundError:
            return None

"""Which parts make up the tables of an output that are replaced as a whole.

The catalog is OUTPUT/tables/NNNNNN.json, of which the highest number counts. It names the parts of each table with
their rows and digests. A version is created once and never changed: of several commands that try to create the same
one, one succeeds. So tables are replaced in one step, and a command that comes second is told.

New parts have names of their own, `generation-<id>-<number>.parquet`, beside the old ones. Until the catalog names them
nobody reads them; what it does not name any more is removed.

A table that grows also has parts that were added one by one. The catalog names those that a new generation stands for
until they are gone, each with its stamp: of a command that was killed before it removed them nobody reads rows twice,
and a part that was written again since counts.
"""

import hashlib
import io
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from actors.core import storage
from actors.core.errors import UserError

FOLDER = "tables"
"""Where the versions of the catalog lie, below an output."""
GENERATION = "generation-"
"""Start of the name of a part that only the catalog makes part of a table."""
VERSIONS = 8
"""Versions that are kept, so that a command that still reads one finds it."""


class ReplacedError(RuntimeError):
    """Another command has replaced a table that this one was replacing or reading."""


class DamagedError(UserError):
    """A table is not as it was written: a part is missing, torn or has other content."""


@dataclass(frozen=True)
class Part:
    """One Parquet file of a table."""

    folder: str
    """The table."""
    name: str
    rows: int = 0
    digest: str = ""
    """SHA-256 of the file; "": not known, so it is read as it is."""

    @property
    def path(self) -> str:
        """Where it lies below the output."""
        return f"{self.folder}/{self.name}"


@dataclass(frozen=True)
class Table:
    """A table that is replaced as a whole."""

    generation: str
    """Another one each time it is replaced."""
    parts: tuple[Part, ...]
    again: str
    """What makes it again, as a sentence."""
    about: dict[str, Any] = field(default_factory=dict)
    """What its writer tells of it."""
    grows: bool = False
    """Whether parts are also added to it, one by one: they count, too."""
    absorbed: dict[str, str] = field(default_factory=dict)
    """Added parts that its own stand for and that may still lie there: name and `Entry.stamp`. They do not count."""


@dataclass(frozen=True)
class Catalog:
    """One version of the catalog."""

    version: int
    """0: there is none."""
    tables: dict[str, Table]

    def generation(self, folder: str) -> str:
        """The generation of a table; "" where the catalog does not have it."""
        return self.tables[folder].generation if folder in self.tables else ""


def read_catalog(root: str) -> Catalog:
    """The catalog of an output as it is now."""
    versions = _versions(root)
    if not versions:
        return Catalog(0, {})
    version = max(versions)
    try:
        tree = json.loads(storage.read_bytes(_uri(root, version)))
    except FileNotFoundError:
        # So many versions have been written since.
        return read_catalog(root)
    tables = {
        folder: Table(**{**about, "parts": tuple(Part(folder, *part) for part in about["parts"])})
        for folder, about in tree.items()
    }
    return Catalog(version, tables)


def _versions(root: str) -> list[int]:
    names = (entry.name.removesuffix(".json") for entry in storage.listing(storage.join(root, FOLDER), (".json",)))
    return [int(name) for name in names if name.isdigit()]


def _uri(root: str, version: int) -> str:
    return storage.join(root, FOLDER, f"{version:06d}.json")


@dataclass(frozen=True)
class PartWriter:
    """Writes parts that a `Replacement` is made of; travels to workers."""

    root: str
    """The output."""
    generation: str

    def write(self, folder: str, number: int, table: pa.Table, row_group_size: int | None = None) -> Part:
        """Write part `number` of a table; row_group_size: rows of a row group, None: Parquet's default."""
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd", row_group_size=row_group_size)
        data = buffer.getvalue()
        part = Part(
            folder, f"{GENERATION}{self.generation}-{number:06d}.parquet", len(table), hashlib.sha256(data).hexdigest()
        )
        storage.write_bytes(storage.join(self.root, folder, part.name), data)
        return part


class Replacement:
    """New generations of some tables, which take the place of the old ones in one step, all or none.

    with Replacement(root, ["scenes"], "Run `select`.") as new:
        new.add(new.writer.write("scenes", 0, table))
        new.commit()

    What was written and not committed is removed at the end of the block; what a killed command has left is removed by
    the next that commits.
    """

    def __init__(self, root: str, folders: Sequence[str], again: str) -> None:
        """again: what makes the tables again, as a sentence."""
        self.before = read_catalog(root)
        """The catalog when it began."""
        self.writer = PartWriter(root, uuid.uuid4().hex[:12])
        self.committed = False
        self._root, self._again = root, again
        self._parts: dict[str, list[Part]] = {folder: [] for folder in folders}

    def __enter__(self) -> "Replacement":
        return self

    def __exit__(self, *_: object) -> None:
        if not self.committed:
            for part in self._written():
                storage.delete(storage.join(self._root, part.folder, part.name))

    def add(self, *parts: Part) -> None:
        """Add parts to their tables, in this order: new ones, or old ones that stay as they are."""
        for part in parts:
            self._parts[part.folder].append(part)

    def before_parts(self, folder: str) -> tuple[Part, ...]:
        """The parts of a table that the catalog named when it began."""
        table = self.before.tables.get(folder)
        return table.parts if table else ()

    def swap(self, old: Part, table: pa.Table) -> None:
        """Write a part anew, in place of one that was added."""
        parts = self._parts[old.folder]
        number = parts.index(old)
        parts[number] = self.writer.write(old.folder, number, table)

    def parts(self, folder: str) -> list[Part]:
        """The parts of a table up to now."""
        return list(self._parts[folder])

    def commit(
        self, about: dict[str, Any] | None = None, absorbed: Mapping[str, Mapping[str, str]] | None = None
    ) -> None:
        """Put the new generations in place, and remove the old ones.

        about: what to tell of the tables. absorbed: of each table the added parts that the new generation stands for,
        by name with the `Entry.stamp` that they had before they were read; None: the tables do not grow.

        Raises ReplacedError, and changes nothing, where another command has replaced one of them since this began.
        """
        grows = absorbed is not None
        while True:
            now = read_catalog(self._root)
            self.check(now)
            # Listed before: what appears later may belong to a command that begins after this one.
            there = {folder: self._there(folder) for folder in self._parts}
            gone = {folder: _still(folder, now, absorbed or {}, there[folder]) for folder in self._parts}
            new = {
                folder: Table(self.writer.generation, tuple(parts), self._again, about or {}, grows, gone[folder])
                for folder, parts in self._parts.items()
            }
            tables = {folder: _plain(table) for folder, table in {**now.tables, **new}.items()}
            data = json.dumps(tables, ensure_ascii=False).encode()
            if storage.create_bytes(_uri(self._root, now.version + 1), data):
                break
        self.committed = True
        for folder, names in there.items():
            old = {name for name in names if not grows or name in gone[folder] or name.startswith(GENERATION)}
            for name in sorted(old - {part.name for part in self._parts[folder]}):
                storage.delete(storage.join(self._root, folder, name))
        for version in _versions(self._root):
            if version <= now.version + 1 - VERSIONS:
                storage.delete(_uri(self._root, version))

    def check(self, now: Catalog | None = None) -> None:
        """Raise ReplacedError where another command has replaced one of the tables since this began."""
        now = now or read_catalog(self._root)
        for folder in self._parts:
            if now.generation(folder) != self.before.generation(folder):
                raise replaced(self._root, folder)

    def _there(self, folder: str) -> dict[str, str]:
        found = storage.listing(storage.join(self._root, folder), (".parquet",))
        return {entry.name: entry.stamp for entry in found}

    def _written(self) -> list[Part]:
        own = f"{GENERATION}{self.writer.generation}-"
        return [Part(folder, name) for folder in self._parts for name in self._there(folder) if name.startswith(own)]


def replaced(root: str, folder: str) -> ReplacedError:
    """The error of a command whose table another one has replaced."""
    return ReplacedError(
        f"{storage.join(root, folder)} was replaced by another command while this one ran; what that one wrote stays. "
        "Run one command at a time on an output, and this one again."
    )


def _still(
    folder: str, now: Catalog, absorbed: Mapping[str, Mapping[str, str]], there: Mapping[str, str]
) -> dict[str, str]:
    """The parts of a table that are absorbed, now or before, and still lie there as they were."""
    before = now.tables[folder].absorbed if folder in now.tables else {}
    named = [*before.items(), *absorbed.get(folder, {}).items()]
    return {name: stamp for name, stamp in named if there.get(name) == stamp}


def _plain(table: Table) -> dict[str, Any]:
    return {**vars(table), "parts": [[part.name, part.rows, part.digest] for part in table.parts]}

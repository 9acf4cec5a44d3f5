"""Parts of scores/ that are finished become few large ones, and with them their pictures and the scores of families.

A run writes a part for each 64 rows or so: safe, but an output of ten million scenes has 160,000 of them. Compaction
takes many, sorts their rows by shard and video, and writes them as one part of scores/ and one of each family, of the
same name; a family's `row` counts in the new part. Pictures are larger: they stay in the order in which they were made
and become as many parts as their size needs; the column `pictures_part` of scores/ names the part that has a row's. The
catalog then names the new parts in place of the old ones, in one step for all of these tables.

shard: the first 16 bits of the CRC-32 of the video_id. Rows of one shard lie together in every part, so that they can
be read without the others.
"""

import logging
import zlib
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pyarrow as pa

from actors.core import storage
from actors.core.catalog import Part, ReplacedError, Replacement
from actors.core.local_files import Entry
from actors.core.store import Store
from actors.curation.measuring import measured
from actors.curation.tables import PICTURES, PLACES, SELECT_AGAIN

log = logging.getLogger(__name__)

TARGET_BYTES = 100 << 20
"""Bytes of a compacted part, as far as the parts that it is made of tell."""
SMALL_BYTES = TARGET_BYTES // 2
"""Compacted parts of fewer bytes are taken in again with new ones."""
SHARD = "shard"
SHARD_ROWS = 1 << 14
"""Rows of a compacted part that are read without the others."""
PICTURE_ROWS = 16
"""Rows of a compacted part of pictures that are read without the others."""
READERS = 8
"""Parts that are read at once: a store is waited for."""
PICTURE_TABLES: tuple[str, ...] = ("thumbnails", "keyframes")
SCORES_AGAIN = "Run `score` or `run`: the rows that are lost are measured again."


@dataclass
class Compacted:
    """What was compacted."""

    parts: int = 0
    """Parts of scores/ that were there before."""
    rows: int = 0
    made: int = 0
    """Parts of scores/ that took their place."""
    moved: dict[str, tuple[str, str | None]] = field(default_factory=dict)
    """Which part has the rows of each now, and which their pictures; None: the one that had them before."""

    def add(self, other: "Compacted") -> None:
        """Count what was compacted after it."""
        self.parts += other.parts
        self.rows += other.rows
        self.made += other.made
        self.moved |= other.moved

    def now(self, part: str, pictures: str) -> tuple[str, str]:
        """Where the rows and pictures of a part are in the end."""
        while part in self.moved:
            part, moved = self.moved[part]
            pictures = pictures if moved is None else moved
        return part, pictures


@dataclass
class _Group:
    """Parts of scores/ that the same families have measured, and that become one."""

    families: tuple[str, ...]
    """Folders of the families."""
    compacted: list[Part] = field(default_factory=list)
    added: list[Entry] = field(default_factory=list)
    size: dict[str, int] = field(default_factory=dict)
    """Bytes by folder."""


class _Listing:
    """What lies in the tables of an output, before any of it is read."""

    def __init__(self, store: Store) -> None:
        self.families = _families(store)
        self.folders = ("scores", *self.families, *PICTURE_TABLES)
        divided = {folder: store.divided(folder) for folder in self.folders}
        self.named = {folder: named for folder, (named, _) in divided.items()}
        self.added = {folder: {entry.name: entry for entry in added} for folder, (_, added) in divided.items()}
        self._sizes = {
            folder: {entry.name: entry.size for entry in storage.listing(store.uri(folder), (".parquet",))}
            if self.named[folder]
            else {}
            for folder in ("scores", *self.families)
        }

    def size(self, folder: str, name: str) -> int:
        """Bytes of a part; 0 where it is not there."""
        entry = self.added[folder].get(name)
        return entry.size if entry else self._sizes.get(folder, {}).get(name, 0)

    def groups(self, least: int, torn: Collection[str]) -> list[_Group]:
        """What becomes one part, each of at least so many that were added; torn ones stay as they are."""
        alike: dict[tuple[str, ...], list[Part | Entry]] = {}
        for one in [*self.named["scores"], *self.added["scores"].values()]:
            if one.name in torn:
                continue
            has = tuple(folder for folder in self.families if self._has(folder, one.name))
            alike.setdefault(has, []).append(one)
        groups = [group for families, some in alike.items() for group in self._divided(families, some)]
        return [group for group in groups if len(group.added) >= max(least, 2 - len(group.compacted))]

    def _has(self, folder: str, name: str) -> bool:
        return name in self.added[folder] or any(part.name == name for part in self.named[folder])

    def _divided(self, families: tuple[str, ...], some: Sequence[Part | Entry]) -> list[_Group]:
        groups = [_Group(families)]
        for one in some:
            sizes = {folder: self.size(folder, one.name) for folder in ("scores", *families)}
            if isinstance(one, Part) and max(sizes.values()) >= SMALL_BYTES:
                continue
            now = groups[-1].size
            if now and max(now[folder] + sizes[folder] for folder in sizes) > TARGET_BYTES:
                groups.append(_Group(families))
            group = groups[-1]
            group.size = {folder: group.size.get(folder, 0) + size for folder, size in sizes.items()}
            (group.compacted if isinstance(one, Part) else group.added).append(one)  # type: ignore[arg-type]
        return groups


def compact(store: Store, least: int = 1) -> Compacted:
    """Compact what is there, a group of parts after the other; what another command compacts meanwhile is left to it.

    least: added parts that a group must have.
    """
    done, torn = Compacted(), set[str]()
    while True:
        listing = _Listing(store)
        try:
            some = (_compacted(store, listing, group, torn) for group in listing.groups(least, torn))
            made = next((one for one in some if one is not None), None)
        except ReplacedError:
            return done
        if made is None:
            return done
        done.add(made)


def _families(store: Store) -> list[str]:
    """Folders of the versions of families that have parts."""
    names, _ = storage.children(store.uri(measured.FOLDER))
    return [
        f"{measured.FOLDER}/{name}/{version}"
        for name in names
        for version in storage.children(store.uri(measured.FOLDER, name))[0]
    ]


def _compacted(store: Store, listing: _Listing, group: _Group, torn: set[str]) -> Compacted | None:
    """Compact one group, and add to the torn parts; None where less than two can be read."""
    scores, families, sources = _read(store, group)
    torn |= {one.name for one in (*group.compacted, *group.added)} - {name for name, _ in sources}
    if len(sources) < 2:
        return None
    with Replacement(store.root, listing.folders, SCORES_AGAIN) as new:
        old = {part.name for part in group.compacted} - torn
        for folder in listing.folders:
            stays = folder not in ("scores", *group.families)
            new.add(*(part for part in listing.named[folder] if stays or part.name not in old))
        added = {entry.name for entry in group.added} & {name for name, _ in sources}
        pictures = _pictures(store, listing, new, sorted(added))
        scores = _with_columns(scores, sources, pictures)
        numbered = scores.append_column(_BEFORE, pa.array(np.arange(len(scores), dtype=np.int32)))
        ordered = numbered.sort_by([(name, "ascending") for name in _ORDER])
        places = np.empty(len(scores), np.int32)
        places[ordered[_BEFORE].to_numpy()] = np.arange(len(scores), dtype=np.int32)
        new.add(new.writer.write("scores", 0, ordered.drop_columns([_BEFORE]), row_group_size=SHARD_ROWS))
        for folder, table in families.items():
            moved = table.set_column(0, "row", pa.array(places[table["row"].to_numpy()], pa.int32()))
            new.add(new.writer.write(folder, 0, moved.sort_by("row"), row_group_size=SHARD_ROWS))
        gone = {
            folder: {name: entry.stamp for name, entry in listing.added[folder].items() if name in added}
            for folder in listing.folders
            if folder in ("scores", *group.families, *PICTURE_TABLES)
        }
        new.commit(absorbed=gone)
    name = new.parts("scores")[-1].name
    moved = {one: (name, None if one in old else pictures.get(one, "")) for one, _ in sources}
    return Compacted(len(sources), len(scores), 1, moved)


def renew_places(store: Store, done: Compacted) -> None:
    """Tell in places/ where the rows and pictures of the selection are now."""
    table = store.catalog().tables.get("places")
    if table is None or not done.moved:
        return
    with Replacement(store.root, ["places"], SELECT_AGAIN) as new:
        for number, part in enumerate(table.parts):
            rows = store.read_whole(part, PLACES.names, (PICTURES,))
            before = zip(rows["part"].to_pylist(), rows[PICTURES].to_pylist(), strict=True)
            now = [done.now(part, part if pictures is None else pictures) for part, pictures in before]
            columns = [rows["video_id"], rows["scene_id"], *(pa.array(column) for column in zip(*now, strict=True))]
            table_now = pa.table(columns, schema=PLACES) if now else rows
            new.add(new.writer.write("places", number, table_now))
        try:
            new.commit(table.about)
        except ReplacedError:
            log.info("%s: another selection was made meanwhile, which knows the new parts", store.root)


_BEFORE = "before"
_ORDER = (SHARD, "video_id", "ordinal", "scene_id", "written")
"""By what the rows of a compacted part are sorted."""


def _read(store: Store, group: _Group) -> tuple[pa.Table, dict[str, pa.Table], list[tuple[str, int]]]:
    """The rows of a group, those of its families, and from which parts, with their rows; what is torn stays."""
    scores: list[pa.Table] = []
    families: dict[str, list[pa.Table]] = {folder: [] for folder in group.families}
    sources: list[tuple[str, int]] = []
    before = 0
    names = [one.name for one in (*group.compacted, *group.added)]
    tables = _read_parts(store, "scores", names)
    others = {folder: _read_parts(store, folder, names) for folder in families}
    for number, (name, table) in enumerate(zip(names, tables, strict=True)):
        beside = {folder: some[number] for folder, some in others.items()}
        if table is None or any(one is None for one in beside.values()):
            continue
        for folder, one in beside.items():
            assert one is not None
            numbers = pa.array(one["row"].to_numpy() + np.int32(before), pa.int32())
            rest = one.drop_columns(["row"])
            families[folder].append(rest.add_column(0, "row", numbers))
        scores.append(table)
        sources.append((name, len(table)))
        before += len(table)
    whole = pa.concat_tables(scores, promote_options="permissive") if scores else pa.table({})
    joined = {folder: pa.concat_tables(some, promote_options="permissive") for folder, some in families.items() if some}
    return whole, joined, sources


def _read_parts(store: Store, folder: str, names: Sequence[str]) -> list[pa.Table | None]:
    with ThreadPoolExecutor(READERS) as threads:
        return list(threads.map(partial(store.read_part, folder), names))


def _with_columns(scores: pa.Table, sources: Sequence[tuple[str, int]], pictures: Mapping[str, str]) -> pa.Table:
    """Rows with their shard, and where their pictures are."""
    names = np.array([pictures.get(name, "") for name, _ in sources], object)
    here = np.repeat(names, [rows for _, rows in sources])
    if PICTURES in scores.column_names:
        # Rows that were compacted before have theirs.
        known = scores[PICTURES].is_valid().to_numpy()
        here = np.where(known, scores[PICTURES].to_numpy(), here)
    scores = scores.drop_columns([name for name in (PICTURES, SHARD) if name in scores.column_names])
    where = pa.array(here, pa.string())
    return scores.append_column(PICTURES, where).append_column(SHARD, shards(scores["video_id"]))


def shard_of(video_id: str) -> int:
    """The shard of a video."""
    return zlib.crc32(video_id.encode()) >> 16


def shards(video_ids: pa.ChunkedArray | pa.Array) -> pa.Array:
    """The shard of each video, uint16."""
    coded = pa.chunked_array(video_ids).combine_chunks().dictionary_encode()
    if isinstance(coded, pa.ChunkedArray):
        coded = coded.combine_chunks()
    codes = np.array([shard_of(name) for name in coded.dictionary.to_pylist()], np.uint16)
    return pa.array(codes[coded.indices.to_numpy()])


def _pictures(store: Store, listing: _Listing, new: Replacement, names: Sequence[str]) -> dict[str, str]:
    """Write the pictures of parts as few parts; returns which of these has those of each part."""
    made: dict[str, str] = {}
    for number, some in enumerate(_by_size(listing, names), 1):
        for folder in PICTURE_TABLES:
            read = _read_parts(store, folder, [name for name in some if name in listing.added[folder]])
            tables = [table for table in read if table is not None]
            if tables:
                whole = pa.concat_tables(tables).sort_by([("video_id", "ascending"), ("scene_id", "ascending")])
                part = new.writer.write(folder, number, whole, row_group_size=PICTURE_ROWS)
                new.add(part)
                made |= dict.fromkeys(some, part.name)
    return made


def _by_size(listing: _Listing, names: Sequence[str]) -> list[list[str]]:
    chunks: list[list[str]] = []
    full = dict.fromkeys(PICTURE_TABLES, 0)
    for name in names:
        sizes = {folder: listing.size(folder, name) for folder in PICTURE_TABLES}
        if not chunks or max(full[folder] + sizes[folder] for folder in sizes) > TARGET_BYTES:
            chunks.append([])
            full = dict.fromkeys(PICTURE_TABLES, 0)
        full = {folder: full[folder] + size for folder, size in sizes.items()}
        chunks[-1].append(name)
    return chunks

"""Rows of scores/ as plans need them: by ranges of shards, so that memory holds those of one range."""

import logging
import math
from collections.abc import Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import pyarrow as pa
import pyarrow.parquet as pq

from actors.core import storage
from actors.core.catalog import Part
from actors.core.store import Store
from actors.curation.compacting import READERS, SHARD, shards
from actors.curation.tables import ORIGIN, SCORES, strings

log = logging.getLogger(__name__)

SHARDS = 1 << 16
RANGE_ROWS = 1_000_000
"""Rows whose shards are read together."""
COLUMNS = ("video_id", "scene_id", "error", "no_frames", "mean_rgb_diff", "scenes", "written", *ORIGIN)
CAPTIONED = (*COLUMNS, "caption")
Range = tuple[int, int]
"""Shards from the first to before the second."""


@dataclass(frozen=True)
class Reading:
    """The parts of scores/ as they are now."""

    store: Store
    named: tuple[Part, ...]
    """Those that are compacted."""
    loose: pa.Table
    """The rows of the others, of any shard, with their shards: they are read once."""

    def __bool__(self) -> bool:
        return bool(self.named or len(self.loose))

    def ranges(self) -> list[Range]:
        """Ranges of shards of about as many rows each."""
        number = max(1, math.ceil(sum(part.rows for part in self.named) / RANGE_ROWS))
        return list(pairwise(round(i * SHARDS / number) for i in range(number + 1)))

    def within(self, of: Range) -> "Reading":
        """The same with only those of the loose rows that are of a range."""
        return Reading(self.store, self.named, self.loose.filter(_within(self.loose, of)))

    def tables(self, of: Range, columns: Sequence[str] = COLUMNS, only: Set[str] | None = None) -> Iterator[pa.Table]:
        """The rows of a range; only: ids of the videos whose rows are wanted, None: of all."""
        for part in self.named:
            yield from _range(self.store, part, of, columns, only)
        loose = self.loose.filter(_within(self.loose, of)).select(columns)
        yield loose if only is None else loose.filter(_among(loose, only))


def reading(store: Store) -> Reading:
    """What there is to read."""
    named, added = store.divided("scores")
    read = partial(store.read_part, "scores", columns=CAPTIONED, optional=ORIGIN)
    with ThreadPoolExecutor(READERS) as threads:
        tables = list(threads.map(read, [entry.name for entry in added]))
    kept = [table.select(CAPTIONED) for table in tables if table is not None]
    nothing = pa.Table.from_batches([], pa.schema([SCORES.field(name) for name in CAPTIONED]))
    loose = pa.concat_tables(kept, promote_options="permissive") if kept else nothing
    return Reading(store, tuple(named), loose.append_column(SHARD, shards(loose["video_id"])))


def _within(table: pa.Table, of: Range) -> pa.Array:
    shard = table[SHARD].to_numpy()
    return pa.array((shard >= of[0]) & (shard < of[1]))


def _range(store: Store, part: Part, of: Range, columns: Sequence[str], only: Set[str] | None) -> Iterator[pa.Table]:
    """The rows of a range of a compacted part; of the rest of it little is read."""
    uri, tables = store.uri(part.folder, part.name), []
    try:
        with storage.stream(uri) as data, pq.ParquetFile(data) as file:
            shard = file.schema_arrow.names.index(SHARD)
            groups = [i for i in range(file.num_row_groups) if _overlaps(file, i, shard, of)]
            if only is not None:
                groups = [i for i in groups if _holds(file, i, only)]
            if groups:
                tables.append(file.read_row_groups(groups, [*columns, SHARD], use_threads=False))
    except ConnectionError:
        raise
    except (pa.ArrowInvalid, OSError, ValueError) as error:
        store.check_there(part.folder, part.name)
        log.warning("%s cannot be read (%s): its rows are made again", uri, error)
        return
    for table in tables:
        rows = table.filter(_within(table, of)).select(columns)
        yield rows if only is None else rows.filter(_among(rows, only))


def _overlaps(file: pq.ParquetFile, group: int, column: int, of: Range) -> bool:
    bounds = file.metadata.row_group(group).column(column).statistics
    return bounds is None or not bounds.has_min_max or (bounds.max >= of[0] and bounds.min < of[1])


def _holds(file: pq.ParquetFile, group: int, only: Set[str]) -> bool:
    ids = file.read_row_group(group, ["video_id"], use_threads=False)["video_id"].unique()
    return not only.isdisjoint(ids.to_pylist())


def _among(rows: pa.Table, only: Set[str]) -> pa.Array:
    return pa.array(rows["video_id"].to_pandas(types_mapper=strings).isin(only).to_numpy(bool))

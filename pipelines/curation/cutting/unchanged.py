"""The plan of an input that has not changed since it was last planned: it is not read again, but only hashed.

What is done is counted over the rows of scores/, a range of shards at a time, in Ray's tasks where it runs: memory
holds those rows and two numbers per video. A video that is not done keeps its row of plan/todo, or what is left of it.
Where the last plan does not tell what is left of a video, nothing is decided here, and the input is read.
"""

import hashlib
import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from actors.core import storage
from actors.core.catalog import Part, Table
from actors.core.errors import UserError
from actors.core.stage import Row
from actors.core.store import Store
from actors.curation.compacting import SHARD, shards
from actors.curation.sources.origin import HALF, Source
from actors.curation.tables import ORIGIN, PLAN_AGAIN, PLANNED, SCORES, STALE, current, strings, with_origin
from actors.media.film import VIDEO_SUFFIXES
from pipelines.curation.cutting.done import Done
from pipelines.curation.cutting.order import seconds_of
from pipelines.curation.rows import in_tasks
from pipelines.curation.settings import CurationConfig

log = logging.getLogger(__name__)

FORM = 1
"""Another one when plans are made in another way."""
SHARDS = 1 << 16
RANGE_ROWS = 1_000_000
"""Rows whose shards are read together."""
COLUMNS = ("video_id", "scene_id", "error", "no_frames", "mean_rgb_diff", "scenes", "written", *ORIGIN)


def digest_of(config: CurationConfig) -> str:
    """What tells an input, with the settings by which it is planned, from others."""
    about = [FORM, config.videos.start, config.videos.end, config.videos.changed]
    about += [config.frames.max, config.windows.named, storage.absolute(config.input)]
    digest = hashlib.sha256(json.dumps(about).encode())
    if storage.exists(config.input):
        with storage.stream(config.input) as file:
            if config.input.lower().endswith(tuple(VIDEO_SUFFIXES)):
                digest.update(storage.find(config.input).stamp.encode())
            else:
                while piece := file.read(1 << 20):
                    digest.update(piece)
    else:
        for entry in storage.listing(storage.absolute(config.input), tuple(VIDEO_SUFFIXES), as_input=True):
            digest.update(f"{entry.name}\0{entry.size}\0{entry.stamp}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()


@dataclass(frozen=True)
class Unfinished:
    """What is left of the last plan."""

    table: Table
    """The last plan/videos."""
    todo: list[Row]
    """What plan/todo keeps, the longest first."""
    scenes: int
    """Named scenes that are left."""


def unfinished(config: CurationConfig, store: Store, digest: str) -> Unfinished | None:
    """What is left where the input is that of the last plan; None where it is not, or the last plan does not tell."""
    table = store.catalog().tables.get("plan/videos")
    if table is None or table.about.get("input") != digest or config.windows.named:
        return None
    if any(table.about[name] for name in ("changed_films", "changed_scenes")):
        return None
    if table.about["gone"] and config.videos.changed == "refuse":
        return None
    videos = store.read_table("plan/videos", PLANNED, again=PLAN_AGAIN).to_pandas(types_mapper=strings)
    if not _same_sources(videos):
        return None
    counts = counted(config, store, videos)
    have = counts.have.reindex(videos.video_id, fill_value=0).to_numpy()
    done = counts.done.reindex(videos.video_id, fill_value=False).to_numpy(bool)
    left = np.where(videos.scenes < 0, ~done, have < videos.scenes)
    ids = dict(zip(videos.video_id[left], have[left].tolist(), strict=True))
    if not ids:
        return Unfinished(table, [], 0)
    todo = [row for part in store.read_parts("plan/todo", again=PLAN_AGAIN) for row in _named(part, ids)]
    if {row["video_id"] for row in todo} != ids.keys():
        return None
    begun = {video_id for video_id, count in ids.items() if count}
    todo = _longest_first(_shortened(config, store, todo, begun))
    scenes = sum(len(span["scenes"]) for row in todo for span in json.loads(row["spans"] or "[]"))
    return Unfinished(table, todo, scenes)


def _same_sources(videos: pd.DataFrame) -> bool:
    """Whether the local films are those of the last plan."""
    local = videos[videos.url.str.startswith(("/", "file://"))]
    for row in local[["url", *ORIGIN]].itertuples(index=False):
        source = _source(str(row.url))
        if (source.film, source.version) != (row.film, row.version):
            return False
    return True


def _source(url: str) -> Source:
    try:
        entry = storage.find(url)
    except (OSError, UserError):
        return Source(url)
    return Source(url, entry.size, entry.stamp)


def _named(part: pa.Table, ids: dict[str, int]) -> list[Row]:
    return part.filter(pa.array(part["video_id"].to_pandas().isin(ids).to_numpy())).to_pylist()


def _shortened(config: CurationConfig, store: Store, todo: list[Row], begun: set[str]) -> list[Row]:
    """Rows of plan/todo without the scenes that have been measured since."""
    if not begun:
        return todo
    done = Done(store, config, only=begun)
    rows = [done.shortened(row) if row["video_id"] in begun else row for row in todo]
    return [row for row in rows if row is not None]


def _longest_first(todo: list[Row]) -> list[Row]:
    """Rows of plan/todo in its order, but those whose spans tell how long they take anew by what is left of them."""
    ends = {i: [span["end_s"] for span in json.loads(row["spans"] or "[]")] for i, row in enumerate(todo)}
    known = {i: seconds for i in ends if (seconds := seconds_of(ends[i], None)) < math.inf}
    ranked = sorted(known, key=lambda i: (-known[i], todo[i]["video_index"]))
    ordered = list(todo)
    for place, i in zip(known, ranked, strict=True):
        ordered[place] = todo[i]
    return ordered


# ------------------------------------------------------------------------------------------------------------- counting


def counted(config: CurationConfig, store: Store, videos: pd.DataFrame) -> pd.DataFrame:
    """By video_id of the plan: `have`, how many scenes have a row that counts; `done`, of a film whose scenes are found
    by shot detection, whether all of them have.

    videos: the columns of PLANNED.
    """
    named, added = store.divided("scores")
    stale = store.read_table("plan/stale", STALE, again=PLAN_AGAIN)
    # Parts that are not compacted have rows of any shard: they are read once.
    loose = _loose(store, [entry.name for entry in added])
    rows = sum(part.rows for part in named)
    number = max(1, math.ceil(rows / RANGE_ROWS))
    bounds = [round(i * SHARDS / number) for i in range(number + 1)]
    of = shards(pa.array(videos.video_id)).to_numpy() if len(videos) else np.empty(0, np.uint16)
    calls = []
    for low, high in pairwise(bounds):
        here = videos[(of >= low) & (of < high)]
        some = loose.filter(_within(loose, low, high))
        calls.append((store, named, (low, high), some, here.drop(columns="url"), stale))
    count = partial(_counted, most=config.frames.max, keep=config.videos.changed == "keep")
    found = list(in_tasks(count, calls, len(calls) > 1))
    return pd.concat(found) if found else pd.DataFrame({"have": [], "done": []})


def _loose(store: Store, names: Sequence[str]) -> pa.Table:
    tables = [store.read_part("scores", name, COLUMNS, ORIGIN) for name in names]
    kept = [table.select(COLUMNS) for table in tables if table is not None]
    table = pa.concat_tables(kept, promote_options="permissive") if kept else _nothing()
    return table.append_column(SHARD, shards(table["video_id"]))


def _nothing() -> pa.Table:
    return pa.Table.from_batches([], pa.schema([SCORES.field(name) for name in COLUMNS]))


def _within(table: pa.Table, low: int, high: int) -> pa.Array:
    of = table[SHARD].to_numpy()
    return pa.array((of >= low) & (of < high))


def _counted(
    store: Store,
    parts: Sequence[Part],
    within: tuple[int, int],
    loose: pa.Table,
    videos: pd.DataFrame,
    stale: pa.Table,
    most: int,
    keep: bool,
) -> pd.DataFrame:
    tables = [table for part in parts if (table := _range(store, part, *within)) is not None]
    rows = pa.concat_tables([*tables, loose], promote_options="permissive")
    if len(stale):
        rows = rows.filter(current(rows, stale))
    frame = with_origin(rows.drop_columns([SHARD])).to_pandas(types_mapper=strings)
    at = pd.Index(videos.video_id).get_indexer(frame.video_id)
    known = at >= 0
    frame, at = frame[known], at[known]
    counts = _counts(frame, most) & (keep | _same_film(frame, videos.iloc[at]))
    scene = (frame.scene_id != "").to_numpy()
    sound = frame[scene & counts]
    have = np.bincount(
        at[scene & counts][~sound.duplicated(["video_id", "scene_id"]).to_numpy()], minlength=len(videos)
    )
    done = np.zeros(len(videos), bool)
    film = np.flatnonzero(~scene & counts)
    # Of several the sound one counts, else the last.
    film = film[np.lexsort((frame.written.to_numpy()[film], (frame.error == "").to_numpy()[film]))]
    whole, expected = (frame.error == "").to_numpy()[film], frame.scenes.fillna(0).to_numpy()[film]
    done[at[film]] = np.where(whole, have[at[film]] >= expected, have[at[film]] == expected)
    return pd.DataFrame({"have": have, "done": done}, index=pd.Index(videos.video_id))


def _counts(frame: pd.DataFrame, most: int) -> np.ndarray:
    """Which rows count as done: not those that were too long when they were measured, and are not now."""
    frames = frame.no_frames.to_numpy()
    open_ = (frames >= 2) & (frames <= most) & frame.mean_rgb_diff.isna().to_numpy()
    return ~(open_ & (frame.scene_id != "").to_numpy() & (frame.error == "").to_numpy())


def _same_film(old: pd.DataFrame, new: pd.DataFrame) -> np.ndarray:
    """`origin.same_film` of rows and the films that they are to be of, in their order."""
    (film, version), (film_now, version_now) = (
        [table[name].to_numpy(np.int64) for name in ORIGIN] for table in (old, new)
    )
    moved = (film ^ film_now) & ((1 << HALF) - 1) != 0
    stamps = version >> HALF, version_now >> HALF
    stamped = (stamps[0] != 0) & (stamps[1] != 0)
    alike = (film >> HALF == film_now >> HALF) & (moved | (stamps[0] == stamps[1]))
    return ((film == 0) & (version == 0)) | np.where(stamped, alike, ~moved)


def _range(store: Store, part: Part, low: int, high: int) -> pa.Table | None:
    """The rows of a range of shards of a compacted part; of the rest of it little is read."""
    uri = store.uri(part.folder, part.name)
    try:
        with storage.stream(uri) as data, pq.ParquetFile(data) as file:
            column = file.schema_arrow.names.index(SHARD)
            groups = [i for i in range(file.num_row_groups) if _overlaps(file, i, column, low, high)]
            table = file.read_row_groups(groups, [*COLUMNS, SHARD], use_threads=False)
    except ConnectionError:
        raise
    except (pa.ArrowInvalid, OSError, ValueError) as error:
        store.check_there(part.folder, part.name)
        log.warning("%s cannot be read (%s): its rows are made again", uri, error)
        return None
    return table.filter(_within(table, low, high))


def _overlaps(file: pq.ParquetFile, group: int, column: int, low: int, high: int) -> bool:
    bounds = file.metadata.row_group(group).column(column).statistics
    return bounds is None or not bounds.has_min_max or (bounds.max >= low and bounds.min < high)

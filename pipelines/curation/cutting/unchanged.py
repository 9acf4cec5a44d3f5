"""The plan of an input that has not changed since it was last planned: it is not read again, but only hashed.

A video that is not done keeps its row of plan/todo, or what is left of it. Where the last plan does not tell what is
left of a video, nothing is decided here, and the input is read.
"""

import hashlib
import json
import logging
import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa

from actors.core import storage
from actors.core.catalog import Table
from actors.core.errors import UserError
from actors.core.stage import Row
from actors.core.store import Store
from actors.curation.sources.origin import Source
from actors.curation.tables import ORIGIN, PLAN_AGAIN, PLANNED, strings
from actors.media.film import VIDEO_SUFFIXES
from pipelines.curation.cutting.counting import counted
from pipelines.curation.cutting.done import Done
from pipelines.curation.cutting.order import seconds_of
from pipelines.curation.cutting.reading import CAPTIONED, Reading, reading
from pipelines.curation.settings import CurationConfig

log = logging.getLogger(__name__)

FORM = 1
"""Another one when plans are made in another way."""


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
    rows = reading(store)
    counts = counted(config, rows, videos).videos
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
    todo = _longest_first(_shortened(config, rows, todo, begun))
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


def _shortened(config: CurationConfig, rows: Reading, todo: list[Row], begun: set[str]) -> list[Row]:
    """Rows of plan/todo without the scenes that have been measured since."""
    if not begun:
        return todo
    done = Done((table for of in rows.ranges() for table in rows.tables(of, CAPTIONED, begun)), config)
    left = [done.shortened(row) if row["video_id"] in begun else row for row in todo]
    return [row for row in left if row is not None]


def _longest_first(todo: list[Row]) -> list[Row]:
    """Rows of plan/todo in its order, but those whose spans tell how long they take anew by what is left of them."""
    ends = {i: [span["end_s"] for span in json.loads(row["spans"] or "[]")] for i, row in enumerate(todo)}
    known = {i: seconds for i in ends if (seconds := seconds_of(ends[i], None)) < math.inf}
    ranked = sorted(known, key=lambda i: (-known[i], todo[i]["video_index"]))
    ordered = list(todo)
    for place, i in zip(known, ranked, strict=True):
        ordered[place] = todo[i]
    return ordered

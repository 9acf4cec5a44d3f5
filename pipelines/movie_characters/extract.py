"""Frames of a film that a table assigns to categories: the images to train and identify characters with."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from operator import itemgetter
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa

from actors.core import storage
from actors.core.child import CHILD, DECODE_ATTEMPTS, ChildFault
from actors.core.csv_tables import read_csv_table
from actors.core.errors import UserError
from actors.core.stage import Row
from actors.core.store import Store
from actors.media.film import VideoConfig
from actors.media.times import parse_time
from actors.movie_characters.film_frames import Interval, frames_in
from actors.movie_characters.names import checked_class
from pipelines.core.progress import Progress, tracked

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

START, END = "start_time", "end_time"
OF = "frames_of.json"
"""File of digests, per category, of all that its frames depend on; written before the frames."""
REJECTED = pa.schema(
    [("row", pa.int64()), *((name, pa.string()) for name in ("category", START, END, "code", "message"))]
)
"""One row per row of the table without all of its frames; row: its line in the file."""


@dataclass(frozen=True)
class ExtractConfig:
    """Settings of `extract`."""

    # `video` is the reference system's name of the film, and with a dot the group that it is in other verbs.
    ALIASES: ClassVar[dict[str, Any]] = {
        **{f"video.{one.name}": f"decode.{one.name}" for one in fields(VideoConfig)},
        "video": "input",
    }

    csv: str
    """A table with the columns start_time, end_time (HH:MM:SS, also with a fraction, or seconds; both ends belong to
    the interval) and the category: a path or s3://."""
    input: str
    """The film: a path or s3://. Also --video."""
    output: str
    """Where frames are written, as CATEGORY/CATEGORY_frame_NNNN.jpg with underscores for spaces: a path or s3://."""
    category: str
    """The column of the table that holds the category."""
    show: bool = False
    """Write a page, extract.html, that shows some frames of each category."""
    by_index: bool = False
    """Number frames by their position in the film, from 0; false numbers those of each category from 1."""
    decode: VideoConfig = field(default_factory=VideoConfig)
    """How the film is decoded. Also video.decoder and so on, as in other verbs."""


@dataclass(frozen=True)
class Plan:
    """The intervals of the table, and the frames that exist."""

    rows: pd.DataFrame
    """category, start_time, end_time as they stand there, code and message; the index is the line in the file."""
    intervals: list[Interval]
    """Intervals of the rows without an error, in their order."""
    there: frozenset[str]
    """Names of frames that exist."""


def plan_extraction(config: ExtractConfig) -> Plan:
    """Read the table; raises UserError where a column is missing, which lists those there are."""
    if config.decode.num_gpus:
        raise UserError(
            f"video.num_gpus={config.decode.num_gpus:g}: `extract` decodes its film on a CPU of this machine; set 0"
        )
    try:
        table = read_csv_table(config.csv, (START, END, config.category))
    except FileNotFoundError as error:
        raise UserError(f"csv: {error}") from error
    if table.empty:
        raise UserError(f"{config.csv} has no rows: each is an interval, with {START}, {END} and {config.category}")
    if not storage.exists(config.input):
        raise UserError(f"input={config.input} is no file. Give one film; run `extract` once for each film.")
    rows = table[[config.category, START, END]].set_axis(["category", START, END], axis=1)
    found = [_interval(*row) for row in rows.itertuples(index=False)]
    rows["code"] = ["" if isinstance(one, Interval) else one[0] for one in found]
    rows["message"] = ["" if isinstance(one, Interval) else one[1] for one in found]
    root = storage.absolute(config.output)
    there = frozenset(entry.name for entry in storage.listing(root, (".jpg",)))
    plan = Plan(rows, [one for one in found if isinstance(one, Interval)], there)
    before, have = Store(root).read_json(OF) or {}, {name.partition("/")[0] for name in there}
    # Their numbers would be those of other frames.
    if other := [cls for cls, of in _of(config, plan).items() if cls in have and before.get(cls, of) != of]:
        raise UserError(
            f"{config.output} holds frames of {', '.join(other)} of other intervals or another film: "
            "use another output, or remove these folders"
        )
    return plan


def _interval(category: str, start: str, end: str) -> Interval | tuple[str, str]:
    """An interval, or error code and message."""
    name = re.sub(r'[\s/\\:*?"<>|]', "_", category.strip()).lstrip(".")
    if not name:
        return "no_category", "the row has no category"
    try:
        checked_class(name, category)
    except UserError as error:
        return "bad_category", str(error)
    try:
        interval = Interval(name, parse_time(start), parse_time(end))
    except ValueError as error:
        return "bad_time", str(error)
    if interval.end_s < interval.start_s:
        return "bad_interval", f"it ends at {end}, before it starts at {start}"
    return interval


@dataclass(frozen=True)
class Extracted:
    """What an extraction did."""

    rows: pd.DataFrame
    """Those of the plan, with code and message of what the film lacked, and how many frames each has."""
    files: dict[str, int]
    """Frames that exist now, by category."""
    written: int
    damaged: int
    """Frames that the decoder marked as damaged, and that got no file."""
    seconds: float
    decoder: str
    """What has decoded the film; "" where none was."""

    @property
    def rejected(self) -> dict[str, int]:
        """Rows without all of their frames, by code."""
        return dict(Counter(code for code in self.rows.code if code))


def extract(config: ExtractConfig, plan: Plan) -> Extracted:
    """Decode the film once, write the frames that are missing, and rejected/."""
    started = time.monotonic()
    store = Store(config.output)
    film, written = _done(config, plan, store), 0
    if film is None and plan.intervals:
        store.write_json({**(store.read_json(OF) or {}), **_of(config, plan)}, OF)
        film, written = _decode(config, plan, store)
        store.write_json({"of": _digest(config, plan.intervals), "film": film}, "extracted.json")
    rows = plan.rows.assign(frames=0)
    if film:
        sound = rows.index[rows.code == ""]
        rows.loc[sound, "frames"] = film["frames"]
        for line, interval, count in zip(sound, plan.intervals, film["frames"], strict=True):
            code, message = _lack(film, interval, count)
            rows.loc[line, ["code", "message"]] = code, message
    bad = rows[rows.code != ""].drop(columns="frames").rename_axis("row").reset_index()
    store.replace_table("rejected", [pa.Table.from_pandas(bad, REJECTED, preserve_index=False)] if len(bad) else [])
    files, damaged = (film["files"], film["damaged"]) if film else ({}, 0)
    seconds = round(time.monotonic() - started, 2)
    return Extracted(rows, files, written, damaged, seconds, (film or {}).get("decoder", ""))


def _digest(config: ExtractConfig, intervals: Sequence[Interval]) -> str:
    """What frames depend on."""
    asked = [*map(asdict, intervals), config.input, storage.size(config.input), config.by_index]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


def _of(config: ExtractConfig, plan: Plan) -> dict[str, str]:
    """What the frames of each category depend on; not the order of its rows."""
    ordered = sorted(plan.intervals, key=lambda one: (one.start_s, one.end_s))
    return {
        cls: _digest(config, [one for one in ordered if one.category == cls])
        for cls in sorted({one.category for one in ordered})
    }


def _done(config: ExtractConfig, plan: Plan, store: Store) -> Row | None:
    """What an earlier run found of the film, where the same was asked for and all of its frames are there."""
    before = store.read_json("extracted.json")
    if before is None or before["film"]["error"] or before["of"] != _digest(config, plan.intervals):
        return None
    have = Counter(name.partition("/")[0] for name in plan.there)
    return before["film"] if all(have[name] >= count for name, count in before["film"]["files"].items()) else None


def _lack(film: Row, interval: Interval, count: int) -> tuple[str, str]:
    """What an interval lacks: code and message, "" where nothing."""
    if film["error"] and interval.end_s > film.get("end_s", 0.0):
        return film["error"], film["message"]
    if not count:
        return "no_frames", f"the film has no sound frame from {interval.start_s:g} to {interval.end_s:g} s"
    return "", ""


def _decode(config: ExtractConfig, plan: Plan, store: Store) -> tuple[Row, int]:
    """The film's own row, and how many frames were written."""
    written = 0
    progress = Progress("extract", None, "frames")
    limits = config.decode.limits
    again: dict[str, Any] = {"attempts": DECODE_ATTEMPTS, "key": itemgetter("name")}
    film: Row = {}
    try:
        with storage.local(config.input) as path:
            wanted = (plan.intervals, config.by_index, frozenset(plan.there))
            arguments = (str(path), *wanted, config.decode)
            for row in tracked(CHILD.stream(frames_in, *arguments, **limits, **again), progress):
                if not row["name"]:
                    film = row
                    continue
                storage.write_bytes(store.uri(row["name"]), row["jpeg"])
                written += 1
    except ChildFault as fault:
        nothing = {"frames": [0] * len(plan.intervals), "files": {}, "damaged": 0}
        return {**nothing, "error": fault.code, "message": str(fault)}, written
    return film, written

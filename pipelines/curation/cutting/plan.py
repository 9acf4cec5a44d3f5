"""What the input asks for, less what is done: one row per video that has something left to do, the longest first."""

import json
import logging
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from itertools import count
from typing import Any

import pyarrow as pa

from actors.core.catalog import DamagedError, Part, ReplacedError, Replacement
from actors.core.errors import UserError
from actors.core.stage import Row
from actors.core.store import Store
from actors.curation.cutting.scenes import scene_row
from actors.curation.tables import DIGEST, INPUT, NEW_CAPTIONS, ORIGIN, PLAN_AGAIN, SCORES, STALE
from pipelines.curation.cutting.done import Done, Left, Origin
from pipelines.curation.cutting.order import LongestFirst, seconds_of
from pipelines.curation.cutting.reading import CAPTIONED, reading
from pipelines.curation.cutting.settled import RULES, Settled, rules
from pipelines.curation.cutting.unchanged import Unfinished, digest_of, unfinished
from pipelines.curation.cutting.waiting import Waiting
from pipelines.curation.exporting.export import renew_clips
from pipelines.curation.rows import ATTEMPTS
from pipelines.curation.settings import CurationConfig, measured_by
from pipelines.curation.sources.input import Video, read_videos

log = logging.getLogger(__name__)

PART_ROWS = 512
"""Videos in one part of plan/todo."""
TABLE_ROWS = 1 << 15
"""Rows in one part of the other tables of the plan, which are read whole."""
LeftTo = Callable[[Row, int | None], None]
LOCAL = ("/", "file://", "s3://")
"""How urls of files begin."""
TODO = pa.schema(
    [
        ("video_index", pa.int64()),
        ("video_id", pa.string()),
        ("url", pa.string()),
        ("spans", pa.string()),
        ("skip", pa.string()),
        *((name, pa.int64()) for name in ORIGIN),
    ]
)
"""A video to decode: its spans with the scenes still missing, or null and the ids of shots that need no row (JSON)."""


@dataclass(frozen=True)
class Plan:
    """What a run has to do."""

    videos: int
    """Videos of the input, in the range."""
    scenes: int
    """Scenes that the input names, those that cannot be cut included."""
    films: int
    """Videos whose scenes are found by shot detection."""
    todo: int
    """Videos with something left to do."""
    todo_scenes: int
    """Named scenes left to do."""
    remote: bool
    """Whether a video left has a url that is no file's."""
    changed_films: int = 0
    """Videos with rows of another film only."""
    changed_scenes: int = 0
    """Scenes with rows of other times only."""
    gone: int = 0
    """Scenes with rows that the input names no more."""
    captions: int = 0
    """Scenes whose caption is another one than when they were measured."""
    moved: int = 0
    """Videos that lay elsewhere when they were measured, with the same name and size."""
    longest_s: float = field(default=0.0, compare=False)
    """Seconds of the longest video that was left when the input was read, as far as they are known before it is opened;
    0 where they are not."""

    def changes(self) -> str:
        """What has changed in the input since it was measured; "" for nothing."""
        told = {
            "films changed": self.changed_films,
            "scenes with changed times": self.changed_scenes,
            "scenes removed": self.gone,
            "captions changed": self.captions,
            "films moved": self.moved,
        }
        return ", ".join(f"{what} {count}" for what, count in told.items() if count)


def make_plan(
    config: CurationConfig,
    again: frozenset[str] = frozenset(),
    dry: bool = False,
    before: float = math.inf,
    left_to: LeftTo | None = None,
) -> Plan:
    """Read and check the whole input, and write plan/; dry: write nothing.

    again: error codes whose rows are to be made again, those written before that time. left_to: gets each row of
    plan/todo, and the bytes of its film, None: not known. Memory: as many videos of the input as `LongestFirst` holds,
    their ids, and the rows of a range of scores/. What stands in the input as when it was last planned, and is done, is
    not parsed again.
    Raises MetadataError or ValueError where the input is wrong, before anything is written over.
    """
    store, planned = Store(config.output), partial(_planned, config, again, dry, before, left_to)
    generation = store.catalog().generation("plan/todo")
    # What has got its rows would get them twice.
    for _ in range(0 if left_to else ATTEMPTS - 1):
        try:
            return planned()
        except ReplacedError as error:
            if store.catalog().generation("plan/todo") != generation:
                raise
            log.info("scores/ is read again: %s", error)
    return planned()


def _planned(config: CurationConfig, again: frozenset[str], dry: bool, before: float, left_to: LeftTo | None) -> Plan:
    store, digest = Store(config.output), digest_of(config)
    if not again and not left_to and (left := _left(config, store, digest)) is not None:
        return _same_plan(config, store, left, dry)
    rows = reading(store)
    settled, counted = Settled(config, rows, again, before), _Counts()
    stale_before = _stale(store)
    with Replacement(store.root, ["plan/todo", *_TABLES], PLAN_AGAIN) as new, Waiting(rows.ranges()) as waiting:
        tables = _Tables(new, dry, counted, left_to)
        for video in read_videos(config.input, config.videos.start, config.videos.end, settled.lookup):
            if not tables.enter(video, settled):
                continue
            if rows and not video.known:
                waiting.add(video)
            else:
                tables.add(video, Left())
        for number, of in enumerate(waiting.ranges):
            if only := {video.video_id for video in waiting.of(number)}:
                done = Done(rows.tables(of, CAPTIONED, only), config, again, before)
                for video in waiting.of(number):
                    tables.add(video, done.left(video))
        tables.flush()
        counts = {name: value for name, value in vars(counted).items() if name != "stale"}
        plan = Plan(todo=tables.todo.rows, longest_s=tables.todo.longest_s, **counts)
        if config.videos.changed == "refuse" and (plan.changed_films or plan.changed_scenes or plan.gone):
            raise UserError(
                f"{config.input} has changed since it was measured ({plan.changes()}). Set videos.changed=measure to "
                "measure what changed, videos.changed=keep to keep its rows, or another output."
            )
        if not dry:
            # Before the plan, which is what says that they are no longer new.
            renew_clips(store, counted.stale - stale_before)
            new.commit(asdict(plan) | {"input": digest, RULES: rules(config)})
            _write_settings(config, store)
    return plan


def _left(config: CurationConfig, store: Store, digest: str) -> Unfinished | None:
    """What is left of the last plan; None where the input is to be read, as where a part of that plan is damaged."""
    try:
        left = unfinished(config, store, digest)
        if left is not None:
            # These become those of the new plan as they are, and nothing else reads them here.
            for name in ("plan/rejected", "plan/captions"):
                for _ in store.read_parts(name, again=PLAN_AGAIN):
                    pass
        return left
    except DamagedError as error:
        log.warning("The input is read again: %s", error)
        return None


def _same_plan(config: CurationConfig, store: Store, left: Unfinished, dry: bool) -> Plan:
    """The last plan, with what is left to do of it."""
    remote = any(not row["url"].startswith(LOCAL) for row in left.todo)
    # A plan of an earlier version does not tell how long videos are.
    counts = {one.name: left.table.about[one.name] for one in fields(Plan) if one.name in left.table.about}
    plan = Plan(**counts | {"todo": len(left.todo), "todo_scenes": left.scenes, "remote": remote})
    if not dry:
        with Replacement(store.root, ["plan/todo", *_TABLES], PLAN_AGAIN) as new:
            for name in _TABLES:
                new.add(*new.before_parts(name))
            todo = _Writer(new, "plan/todo", TODO, dry, PART_ROWS)
            for row in left.todo:
                todo.add(row)
            todo.flush()
            new.commit(left.table.about | asdict(plan))
        _write_settings(config, store)
    return plan


def write_plan_of(config: CurationConfig, task: Row) -> None:
    """Write the plan of an output that has one video only, as a row of plan/todo; all of its scenes are left to do."""
    store, spans = Store(config.output), json.loads(task["spans"] or "null")
    scenes = -1 if spans is None else sum(len(span["scenes"]) for span in spans)
    with Replacement(store.root, ["plan/todo", *_TABLES], PLAN_AGAIN) as new:
        for name, schema, rows in (("plan/todo", TODO, [task]), ("plan/videos", INPUT, [task | {"scenes": scenes}])):
            table = pa.Table.from_pylist([{key: row.get(key) for key in schema.names} for row in rows], schema=schema)
            new.add(new.writer.write(name, 0, table))
        new.commit()
    _write_settings(config, store)


def _write_settings(config: CurationConfig, store: Store) -> None:
    settings = {"measured_by": measured_by(config), "settings": asdict(config)}
    store.write_json(settings, "plan", "settings.json")


@dataclass
class _Counts:
    """The counts of a `Plan` while the input is read."""

    videos: int = 0
    scenes: int = 0
    films: int = 0
    todo_scenes: int = 0
    remote: bool = False
    changed_films: int = 0
    changed_scenes: int = 0
    gone: int = 0
    captions: int = 0
    moved: int = 0
    stale: set[tuple[str, str, Origin]] = field(default_factory=set)
    """Rows that are of another film or other times: video_id, scene_id, origin."""


def _stale(store: Store) -> set[tuple[str, str, Origin]]:
    """What the plan that is there says of rows that are stale."""
    if "plan/stale" not in store.catalog().tables:
        return set()
    rows = store.read_table("plan/stale", STALE, again=PLAN_AGAIN).to_pylist()
    return {(row["video_id"], row["scene_id"], (row["film"], row["version"])) for row in rows}


class _Tables:
    """The tables of the new plan while they are made."""

    def __init__(self, new: Replacement, dry: bool, counted: _Counts, left_to: LeftTo | None) -> None:
        self.todo = _Todo(new, dry, left_to)
        self._tables = {name: _Writer(new, name, schema, dry, TABLE_ROWS) for name, schema in _TABLES.items()}
        self._counted = counted

    def enter(self, video: Video, settled: Settled) -> bool:
        """Add a video to what the input has; returns whether it may have something left to do."""
        counted = self._counted
        counted.videos += 1
        counted.films += video.spans is None
        if video.known:
            row = settled.planned(video.known)
            counted.scenes += max(0, row["scenes"])
            counted.moved += settled.moved(video.known)
            self._tables["plan/videos"].add(row | {"video_index": video.index})
            return bool(video.spans)
        cuttable = sum(len(span.scenes) for span in video.spans or ())
        counted.scenes += cuttable + sum(bool(row.scene_id) for row in video.rejected)
        for rejected in video.rejected:
            self._tables["plan/rejected"].add(_rejected(video, rejected))
        # The scenes of a video are those of the first that has its id, which may lie outside the range.
        if not video.spans and {rejected.code for rejected in video.rejected} == {"duplicate_id"}:
            return False
        about = {"video_index": video.index, "video_id": video.video_id, "url": video.url}
        about |= {"film": video.source.film, "version": video.source.version, DIGEST: video.digest or None}
        self._tables["plan/videos"].add(about | {"scenes": -1 if video.spans is None else cuttable})
        return True

    def add(self, video: Video, left: Left) -> None:
        """Add what a video has left to do."""
        counted = self._counted
        for scene_id, origin in left.stale:
            row = {"video_id": video.video_id, "scene_id": scene_id} | dict(zip(ORIGIN, origin, strict=True))
            self._tables["plan/stale"].add(row)
            counted.stale.add((video.video_id, scene_id, origin))
        for scene_id, caption in left.captions.items():
            row = {"video_id": video.video_id, "scene_id": scene_id, "caption": caption}
            self._tables["plan/captions"].add(row)
        counted.changed_films += left.film_changed
        counted.changed_scenes += left.scenes_changed
        counted.gone += left.gone
        counted.captions += len(left.captions)
        counted.moved += left.moved
        task, scenes, ends = _task(video, left)
        if task is not None:
            self.todo.add(task, seconds_of(ends, video.source.size), video.source.size)
            counted.todo_scenes += scenes
            counted.remote = counted.remote or not video.url.startswith(LOCAL)

    def flush(self) -> None:
        """Write what has been gathered."""
        for table in (self.todo, *self._tables.values()):
            table.flush()


def _task(video: Video, left: Left) -> tuple[Row | None, int, list[float | None]]:
    """A row of plan/todo, None where nothing is left; how many named scenes it has, and where their spans end."""
    task = {"video_index": video.index, "video_id": video.video_id, "url": video.url, "spans": None, "skip": "[]"}
    task |= {"film": video.source.film, "version": video.source.version}
    if video.spans is None:
        return (None if left.finished else task | {"skip": json.dumps(sorted(left.have))}), 0, []
    spans = []
    for span in video.spans:
        missing = [vars(scene) | {"clip_id": span.clip_id} for scene in span.scenes if scene.scene_id not in left.have]
        if missing:
            spans.append({"start_s": span.start_s, "end_s": span.end_s, "scenes": missing})
    scenes, ends = sum(len(span["scenes"]) for span in spans), [span["end_s"] for span in spans]
    return (task | {"spans": json.dumps(spans)} if spans else None), scenes, ends


def _rejected(video: Video, rejected: Any) -> Row:
    about = {name: getattr(rejected, name) for name in ("clip_id", "scene_id", "ordinal", "caption")}
    row = scene_row(about, rejected.code, rejected.message)
    return row | {"video_index": video.index, "video_id": video.video_id, "uri": video.url, "step": "plan"}


_TABLES = {
    "plan/videos": INPUT,
    "plan/rejected": SCORES,
    "plan/stale": STALE,
    "plan/captions": NEW_CAPTIONS,
}


class _Writer:
    """Gathers rows into parts of a table of the new plan."""

    def __init__(self, new: Replacement, folder: str, schema: pa.Schema, dry: bool, part_rows: int) -> None:
        self._new, self._folder, self._schema, self._dry = new, folder, schema, dry
        self._part_rows = part_rows
        self._pending: list[Row] = []
        self.rows = 0

    def add(self, row: Row) -> None:
        self._pending.append(row)
        self.rows += 1
        if len(self._pending) == self._part_rows:
            self.flush()

    def flush(self) -> None:
        """Write what has been gathered."""
        if self._pending and not self._dry:
            table = pa.Table.from_pylist(self._pending, schema=self._schema)
            number = len(self._new.parts(self._folder))
            self._new.add(self._new.writer.write(self._folder, number, table))
        self._pending = []


class _Todo:
    """Gathers rows of plan/todo of the new plan, the longest first."""

    def __init__(self, new: Replacement, dry: bool, left_to: LeftTo | None) -> None:
        self._new, self._dry, self._left_to = new, dry, left_to
        self._written = count()
        self._order = LongestFirst(PART_ROWS, TODO, self._write)
        self._longest_s = 0.0
        self.rows = 0

    @property
    def longest_s(self) -> float:
        """As of `Plan`."""
        return self._longest_s if self._longest_s < math.inf else 0.0

    def add(self, row: Row, seconds: float, size: int | None) -> None:
        self.rows += 1
        self._longest_s = max(self._longest_s, seconds)
        if self._left_to:
            self._left_to(row, size)
        if not self._dry:
            self._order.add(row, seconds)

    def flush(self) -> None:
        """Write what has been gathered."""
        self._new.add(*self._order.parts())

    def _write(self, table: pa.Table) -> Part:
        return self._new.writer.write("plan/todo", next(self._written), table)

"""Videos of the plan become rows of scores/: fetched, cut in a killable child process, written as whole parts."""

import json
import math
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa

from actors.core import storage
from actors.core.addresses import AddressError
from actors.core.catalog import Part
from actors.core.child import CHILD, DECODE_ATTEMPTS, ChildFault
from actors.core.stage import Batch, Row, codes_of
from actors.core.store import Store
from actors.curation.cutting.cut import CutConfig, cut, film_row
from actors.curation.cutting.keyframes import KEY_FRAMES
from actors.curation.cutting.parts import UndividedError, cut_in_parts
from actors.curation.cutting.scenes import scene_row
from actors.curation.guard import guarded
from actors.curation.measuring.measured import Task, passed_rows
from actors.curation.sources.fetch import FetchConfig, fetch
from actors.curation.sources.origin import times, with_times
from actors.curation.tables import KEYFRAMES, ORIGIN, SCORES, THUMBNAILS

CUT_ROWS = 4
"""Scenes that leave the decode at once, at most 40 MB of frames."""
COLUMNS = ("video_id", "scene_id", "caption", "frames", "error", "message")
"""Of a row where only its frames are wanted."""


@dataclass(frozen=True)
class Choice:
    """Which videos of plan/todo are worked on, by their video_index."""

    only: frozenset[int] | None = None
    """These; None: all."""
    without: frozenset[int] = frozenset()
    """And none of these."""
    share: float = 1.0
    """Of these, this share in the order of the plan, dealt evenly."""
    others: bool = False
    """Those that are not of the share, instead."""
    lost: str = ""
    """Why nothing of them can be measured: each gets rows with the code crashed_worker and this message."""

    def deals(self, number: int) -> bool:
        """Whether the film that comes `number`th, from 0, is taken by its place."""
        dealt = math.floor((number + 1) * self.share + 0.5) > math.floor(number * self.share + 0.5)
        return dealt != self.others


ALL = Choice()
"""All videos of a plan, as they come."""


def read_tasks(row: Row, store: Store, choice: Choice = ALL) -> list[Row]:
    """The chosen videos of one part of plan/todo, by the fields of its `Part`."""
    table = store.read_whole(Part(**row))
    lost = {"error": "crashed_worker", "message": choice.lost, "attempts": DECODE_ATTEMPTS} if choice.lost else {}
    chosen = [
        task | {"spans": task["spans"] or ""} | lost
        for task in table.to_pylist()
        if (choice.only is None or task["video_index"] in choice.only) and task["video_index"] not in choice.without
    ]
    return [task for number, task in enumerate(chosen) if choice.deals(number)]


def fetch_video(task: Row, folder: str, config: FetchConfig) -> Row:
    """Download one video of the plan into a folder; adds uri, error, message, attempts, fetch_s."""
    started = time.monotonic()
    got = fetch(task["video_id"], task["url"], folder, config)
    about = {"uri": got.uri, "error": got.code, "message": got.message, "attempts": got.attempts}
    return {**task, **about, "fetch_s": time.monotonic() - started}


def cut_videos(batch: Batch, config: CutConfig) -> Iterator[Batch]:
    """Decode the videos of a batch, one by one: yields batches of rows.

    Their columns are those of SCORES, frames, thumbnail and KEY_FRAMES.
    A video that has been cut ends with its film's row, whatever went wrong; every scene that was asked for has one.
    """
    rows: list[Row] = []
    for i in range(len(batch["video_id"])):
        for row in guarded(partial(_cut_video, config=config), {name: column[i] for name, column in batch.items()}):
            rows.append(row)
            # Columns for a row alone would cost as much as its resizing; many rows would hold up the next stage.
            if len(rows) == CUT_ROWS:
                yield _columns(rows, config.frames.size)
                rows = []
    if rows:
        yield _columns(rows, config.frames.size)


class _Asked:
    """A video of the plan: the scenes that are asked for, and the rows that they become."""

    def __init__(self, task: Row) -> None:
        self.uri: str = task.get("uri", task["url"])
        self.spans: list[Row] | None = json.loads(task["spans"]) if task["spans"] else None
        self.skip: set[str] = set(json.loads(task["skip"]))
        """Ids of scenes that need no row, and of those that have theirs."""
        self.attempts: int = task.get("attempts", 1)
        self._task = task
        self._cuts = {scene["scene_id"]: scene for span in self.spans or [] for scene in span["scenes"]}
        self._times = {
            scene["scene_id"]: times(span["start_s"], span["end_s"], scene["first"], scene["end"])
            for span in self.spans or []
            for scene in span["scenes"]
        }

    def scene(self, row: Row, step: str = "cut", attempts: int | None = None) -> Row:
        """The row of a scene, or of a film, as scores/ has it; step: where it failed, if it did."""
        # A window of a named scene has its times, and is of it.
        scene = self._cuts.get(row["scene_id"], {"first": 0, "end": -1})
        of = row.get("of", row["scene_id"])
        return {
            **row,
            "video_index": self._task["video_index"],
            "video_id": self._task["video_id"],
            "uri": self.uri,
            "first": scene["first"],
            "end": scene["end"],
            "step": step if row["error"] else "",
            "film": int(self._task.get("film", 0)),
            "version": with_times(int(self._task.get("version", 0)), self._times.get(of, 0)),
            "attempts": self.attempts if attempts is None else attempts,
        }

    def film(self, row: Row, **more: Any) -> Row:
        """The row that closes the film."""
        return self.scene(row, **more) | {"fetch_s": self._task.get("fetch_s", 0.0)}

    def lost(self, code: str, message: str, step: str, attempts: int) -> Iterator[Row]:
        """Rows for all that was asked for and has none yet."""
        for scene_id, scene in self._cuts.items():
            if scene_id not in self.skip:
                about = {name: scene[name] for name in ("clip_id", "scene_id", "ordinal", "caption")}
                yield self.scene(scene_row(about, code, message), step, attempts)
        # Where shots are to be found, it is the film that failed; its scenes are those that were found before.
        error = ("", "") if self.spans is not None else (code, message)
        row = film_row(None, len(self._cuts) or len(self.skip), *error)
        yield self.film(row, step=step, attempts=attempts)


def _cut_video(task: Row, config: CutConfig) -> Iterator[Row]:
    asked = _Asked(task)
    if task.get("error"):
        step = "cut" if task["error"] == "crashed_worker" else "fetch"
        yield from asked.lost(task["error"], task["message"], step, asked.attempts)
        return
    try:
        # Opened here too: what may not be read is known before a child is busy with it.
        with storage.local(asked.uri) as path, path.open("rb"):
            rows = _decoded(str(path), task["video_id"], asked.spans, asked.skip, config)
            film: Row = {}
            while True:
                try:
                    row = next(rows)
                except StopIteration as end:
                    yield asked.film(film) | {"cut_s": end.value}
                    return
                if row["scene_id"]:
                    asked.skip.add(row["scene_id"])
                    yield asked.scene(row)
                else:
                    film = row
    except ChildFault as fault:
        yield from asked.lost(fault.code, str(fault), "cut", fault.attempts)
    except FileNotFoundError:
        yield from asked.lost("not_found", f"there is no {asked.uri}", "fetch", 1)
    except (PermissionError, AddressError) as error:
        code = "bad_url" if isinstance(error, AddressError) else "forbidden"
        yield from asked.lost(code, str(error), "fetch", 1)


def _decoded(
    path: str, video_id: str, spans: list[Row] | None, skip: set[str], config: CutConfig
) -> Generator[Row, None, float]:
    """The rows of `cut`, made in a child process, or in several where the film is divided; returns the CPU seconds.

    skip: ids of scenes that need no row; whoever takes the rows adds theirs.
    """
    spent = 0.0
    if spans is None and config.processes > 1:
        try:
            return (yield from cut_in_parts(path, video_id, config, skip))
        except UndividedError as error:
            spent = error.cpu_s
    rest = yield from CHILD.stream(
        cut,
        *(path, video_id, spans, frozenset(skip)),
        *(config.video, config.frames, config.shots, config.motion, config.windows, config.seek),
        **config.video.limits,
        attempts=DECODE_ATTEMPTS,
        key=itemgetter("scene_id"),
    )
    return spent + rest


def _columns(rows: list[Row], size: int) -> Batch:
    nothing = np.zeros((0, size, size, 3), np.uint8)
    frames = np.empty(len(rows), object)
    # One by one: numpy would stack frames of one shape.
    for i, row in enumerate(rows):
        frames[i] = nothing if row["frames"] is None else row["frames"]
    # As objects: numpy's own bytes lose zeros at their end. Never null, so that all batches have one type.
    names = ("thumbnail", "phash", *KEY_FRAMES)
    batch: Batch = {name: np.array([row[name] or b"" for row in rows], object) for name in names}
    batch["frames"] = frames
    for column in SCORES:
        if column.name in batch:
            continue
        kind = column.type.to_pandas_dtype()
        missing = "" if pa.types.is_string(column.type) else 0
        values = [row.get(column.name, missing) for row in rows]
        batch[column.name] = np.array(values, object if kind is np.object_ else kind)
    return batch


def cut_frames(batch: Batch, config: CutConfig) -> Iterator[Batch]:
    """Decode the videos of a batch: yields batches of rows of COLUMNS, without the films' own.

    KEY_FRAMES are among the columns where the settings have them made.
    """
    names = (*COLUMNS, *KEY_FRAMES) if config.frames.keyframes else COLUMNS
    for rows in cut_videos(batch, config):
        scenes = rows["scene_id"] != ""
        if scenes.any():
            yield {name: rows[name][scenes] for name in names}


def write_rows(batch: Batch, store: Store, families: Sequence[Task] = ()) -> Batch:
    """Write rows as a part of scores/, one of thumbnails/, one of keyframes/ and one of each family that was measured
    with them, all of one name; returns how many films and scenes they were, and their error codes."""
    hashes = np.array([value or None for value in batch["phash"]], object)
    written = np.full(len(batch["scene_id"]), time.time())
    values = {**batch, "phash": hashes, "written": written}
    table = pa.table({name: pa.array(values[name], SCORES.field(name).type) for name in SCORES.names}, schema=SCORES)
    thumbnails, keyframes = _pictures(batch, THUMBNAILS), _pictures(batch, KEYFRAMES)
    # With their origin: rows of another film do not take the place of those before, which may count again.
    names = ("video_id", "scene_id", "error", *ORIGIN)
    keys = ["/".join(map(str, row)) for row in zip(*(batch[name] for name in names), strict=True)]
    # Scores last: rows are done when they are there.
    store.write_part("thumbnails", thumbnails, keys)
    if len(keyframes):
        store.write_part("keyframes", keyframes, keys, row_group_size=1)
    for task in families:
        if (rows := passed_rows(batch, task)) is not None:
            store.write_part(task.folder, rows, keys)
    store.write_part("scores", table, keys)
    films = batch["scene_id"] == ""
    counts = {"films": np.array([films.sum()]), "scenes": np.array([(~films).sum()])}
    return {**counts, "codes": codes_of(batch["error"])}


def _pictures(batch: Batch, schema: pa.Schema) -> pa.Table:
    """A table of ids and pictures, of the rows that have the first of these."""
    first = schema.names[2]
    seen = np.array([len(picture) > 0 for picture in batch[first]], bool)
    columns = {name: batch[name][seen] for name in schema.names}
    for name in schema.names[2:]:
        columns[name] = np.array([picture or None for picture in columns[name]], object)
    return pa.table({name: pa.array(columns[name], schema.field(name).type) for name in schema.names}, schema=schema)

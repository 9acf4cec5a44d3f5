"""Families of scores are measured: on the scenes of a part of scores/, or on rows while their films are decoded."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby, islice
from operator import itemgetter
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa

from actors.core import storage
from actors.core.addresses import AddressError
from actors.core.child import CHILD, DECODE_ATTEMPTS, ChildFault
from actors.core.computed import COMPUTED
from actors.core.stage import Batch, ModelStage, Row, codes_of
from actors.core.store import Store
from actors.curation.cutting.keyframes import KEY_FRAMES, decode_jpeg
from actors.curation.cutting.pictures import Key, film_of, film_task, read_pictures, stored
from actors.curation.cutting.videos import CutConfig, cut_frames
from actors.curation.measuring.family import Placed, scorer_class
from actors.curation.measuring.measured import KEYS, TEXTS, TOLD, Task, folder_of, is_measurable, rows_of_slice
from actors.curation.tables import (
    LATER,
    ORIGIN,
    PICTURES,
    PLAN_AGAIN,
    STALE,
    check_columns,
    current,
    pictures_of,
    plan_places,
    strings,
    with_new_captions,
    with_places,
)
from actors.media.film import FilmError
from actors.media.sound_spans import sound_of

READ = (
    *("video_id", "scene_id", "clip_id", "caption", "uri", "start_s", "end_s", "width", "height"),
    *("error", "mean_rgb_diff", "clock_jumps", *ORIGIN),
)
"""Columns of scores/ that families need."""
SOUND_RATE = 48_000
"""Samples per second that families get of sound."""
SOUND_S = 900.0
"""Longest scene whose sound is measured, in seconds: families get it as one array, of 5.1 up to 1 GiB."""
IN_PASS = ("keyframes", "frames")
"""What families read that are measured while films are decoded."""


class _Scorer:
    """A family's scorer, loaded; makes rows as they are stored."""

    def __init__(self, task: Task) -> None:
        kind = scorer_class(task.name)
        self._name, self._size = task.name, max(1, task.config.batch_size)
        self._scorer: Any = kind(task.config) if hasattr(kind, "settings") else kind()  # pyright: ignore[reportCallIssue]
        self.columns = dict(self._scorer.columns)
        check_columns(task.name, self.columns)
        self._texts = [(TEXTS, pa.string())] if getattr(kind, "texts", False) else []
        self.schema = pa.schema([*KEYS, *self.columns.items(), *TOLD, *self._texts])
        self._computed = f"{task.name}: {task.config.computed}" if isinstance(task.config, ModelStage) else ""
        # On a GPU the pictures of one part are read while another is measured.
        self._turn = Lock()

    def rows(self, inputs: Iterator[Row]) -> pa.Table:
        """Measure scenes: a row each, in their order; those with an error have no values."""
        tables = [self.schema.empty_table()]
        while batch := list(islice(inputs, self._size)):
            tables.append(self._rows(batch))
        return pa.concat_tables(tables)

    def _rows(self, inputs: list[Row]) -> pa.Table:
        sound = [i for i, row in enumerate(inputs) if not row["error"]]
        values: dict[str, Any] = {}
        if sound:
            with self._turn:
                values = dict(self._scorer(_batch([inputs[i] for i in sound])))
        told = {name: values.pop(name, [""] * len(sound)) for name in ("error", "message")}
        if sound and set(values) != set(self.columns):
            raise RuntimeError(f"{self._name} gave the columns {sorted(values)}, and has {sorted(self.columns)}")
        about = {name: [row[name] for row in inputs] for name in ("row", "video_id", "scene_id", "error", "message")}
        for name, column in told.items():
            for i, text in zip(sound, column, strict=True):
                about[name][i] = str(text)
        columns: dict[str, Any] = about | {COMPUTED: [self._computed if not error else "" for error in about["error"]]}
        at = np.full(len(inputs), -1)
        at[sound] = np.arange(len(sound))
        at[np.array(about["error"]) != ""] = -1
        for name, kind in self.columns.items():
            given = _array(values[name], kind, f"{self._name}.{name}") if sound else pa.nulls(0, kind)
            columns[name] = given.take(pa.array(at, mask=at < 0))
        if self._texts:
            columns[TEXTS] = [row[TEXTS] for row in inputs]
        return pa.table(columns).select(self.schema.names).cast(self.schema)


def _batch(rows: list[Row]) -> Batch:
    """Rows as columns; arrays and lists stay one an entry."""
    batch: Batch = {}
    for name in rows[0]:
        column = np.empty(len(rows), object)
        for i, row in enumerate(rows):
            column[i] = row[name]
        plain = isinstance(rows[0][name], int | float)
        batch[name] = np.array(column.tolist()) if plain else column
    return batch


def _array(values: Any, kind: pa.DataType, name: str) -> pa.Array:
    """Values of a column; NaN and None are null."""
    if pa.types.is_fixed_size_list(kind):
        flat = np.asarray(values, kind.value_type.to_pandas_dtype())
        return pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel()), kind.list_size)
    try:
        return pa.array(values, from_pandas=True).cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        raise RuntimeError(f"{name} is to be {kind}: {error}") from error


def text_digest(caption: str, recaption: str) -> str:
    """What tells the captions of a scene apart from others."""
    return hashlib.sha256(f"{caption}\0{recaption}".encode()).hexdigest()[:12]


# ----------------------------------------------------------------------------------------------------- a part at a time


class PartScorer:
    """Measure one family on the scenes of parts of scores/, and write a part for each.

    Reads:  part      str (N,), names of parts of scores/, or of slices of them
            pictures  str (N,), JSON, of a family that reads videos: by video_id the key frames to look at, each a part,
                      a scene_id and a box as of `Placed`
    Gives:  scenes  int (N,): rows that were written
            codes   str (N,), JSON: how many of them got which error code
    """

    def __init__(self, store: Store, task: Task, cutting: CutConfig, recaptions: Mapping[Key, str]) -> None:
        self._store, self._task, self._cutting, self._recaptions = store, task, cutting, recaptions
        self._scorer = _Scorer(task)
        self._reads = scorer_class(task.name).reads
        self._stale = store.read_table("plan/stale", STALE, again=PLAN_AGAIN)

    def __call__(self, batch: Batch) -> Batch:
        pictures = batch.get("pictures", np.full(len(batch["part"]), ""))
        tables = [self._measured(str(part), str(about)) for part, about in zip(batch["part"], pictures, strict=True)]
        codes = np.concatenate([codes_of(table["error"].to_pylist()) for table in tables])
        return {"scenes": np.array([len(table) for table in tables]), "codes": codes}

    def _measured(self, name: str, pictures: str) -> pa.Table:
        part, first, count = rows_of_slice(name)
        table = self._store.read_part("scores", part, (*READ, PICTURES), (*LATER, PICTURES))
        if table is None:
            # Measured when `score` has made it again.
            return self._scorer.schema.empty_table()
        rows = self._rows(table.slice(first, count), part, first)
        kept = self._kept(part, rows)
        there = set(kept["row"].to_pylist())
        left = [row for row in rows if row["row"] not in there]
        made = self._scorer.rows(self._inputs(left, pictures))
        whole = pa.concat_tables([kept, made]).sort_by("row")
        self._store.write_table(whole, self._task.folder, name)
        return made

    def _rows(self, table: pa.Table, part: str, first: int) -> list[Row]:
        """The scenes to measure of rows of a part of scores/, which has others before the `first` of these."""
        where = pictures_of(table, part)
        table = table.drop_columns([PICTURES]).append_column(PICTURES, where)
        chosen = is_measurable(table) & current(table, self._stale).to_numpy(zero_copy_only=False)
        numbers = pa.array(np.arange(first, first + len(table)))
        rows = table.append_column("row", numbers).filter(pa.array(chosen))
        frame = with_new_captions(self._store, rows.to_pandas(types_mapper=strings))
        frame = with_places(self._store, frame, plan_places(self._store))
        found: list[Any] = frame.fillna({"caption": ""}).to_dict("records")
        for row in found:
            row["recaption"] = self._recaptions.get((row["video_id"], row["scene_id"]), "")
            row[TEXTS] = text_digest(row["caption"], row["recaption"])
        return found

    def _kept(self, part: str, rows: list[Row]) -> pa.Table:
        """Sound rows of the version before; those of other captions do not count, where the family looks at these."""
        nothing = self._scorer.schema.empty_table()
        if not self._task.before:
            return nothing
        try:
            folder = folder_of(self._task.name, self._task.before)
            table = self._store.read_part(folder, part, self._scorer.schema.names)
        except FileNotFoundError:
            return nothing
        if table is None:
            return nothing
        texts = {row["row"]: row[TEXTS] for row in rows}
        numbers, there = table["row"].to_pylist(), TEXTS in table.column_names
        said = table[TEXTS].to_pylist() if there else [texts.get(number) for number in numbers]
        same = [number in texts and texts[number] == text for number, text in zip(numbers, said, strict=True)]
        return table.filter(pa.array(np.array(same, bool) & (table["error"].to_numpy() == "")))

    def _inputs(self, rows: list[Row], pictures: str) -> Iterator[Row]:
        numbers = {(row["video_id"], row["scene_id"]): row for row in rows}
        if not rows:
            return
        if self._reads == "keyframes":
            for where, some in groupby(sorted(rows, key=itemgetter(PICTURES)), itemgetter(PICTURES)):
                wanted = {"part": _objects(where), "scenes": _objects(json.dumps(list(some)))}
                for one in read_pictures(wanted, self._store, self._cutting):
                    yield _input(numbers[one["video_id"][0], one["scene_id"][0]], **_first(one))
        elif self._reads == "frames":
            for film, scenes in groupby(sorted(rows, key=film_of), film_of):
                task = {name: _objects(value) for name, value in film_task(*film, list(scenes)).items()}
                for batch in cut_frames(task, self._cutting):
                    for i, scene_id in enumerate(batch["scene_id"]):
                        told = {name: batch[name][i] for name in ("frames", "error", "message")}
                        yield _input(numbers[batch["video_id"][i], scene_id], **told, interval_s=self._interval_s)
        elif self._reads == "sound":
            for film, scenes in groupby(sorted(rows, key=film_of), film_of):
                yield from self._sounds(film[1], sorted(scenes, key=lambda row: row["start_s"]))
        else:
            yield from self._videos(rows, json.loads(pictures or "{}"))

    @property
    def _interval_s(self) -> float:
        return self._cutting.frames.interval_ms / 1000

    def _sounds(self, uri: str, rows: list[Row]) -> Iterator[Row]:
        """The sound of scenes of one film, in their order; first those that are too long."""
        nothing: Row = {"sound": np.zeros((0, 0), np.float32), "sample_rate": SOUND_RATE}
        for row in rows:
            if _length_s(row) > SOUND_S:
                told = f"the scene lasts {_length_s(row):.0f} s, and sound is measured of up to {SOUND_S:.0f}"
                yield _input(row, error="too_large", message=told, **nothing)
        rows = [row for row in rows if _length_s(row) <= SOUND_S]
        spans = [(float(row["start_s"]), float(row["end_s"])) for row in rows]
        video, left = self._cutting.video, iter(rows)
        code, message = "", ""
        try:
            with storage.local(uri) as path, path.open("rb"):
                limits = video.limits | {"attempts": DECODE_ATTEMPTS}
                for number, sound in CHILD.stream(sounds_in, str(path), spans, **limits, key=itemgetter(0)):
                    if number < 0:
                        code, message = sound
                    else:
                        yield _input(next(left), sound=sound, sample_rate=SOUND_RATE)
        except ChildFault as fault:
            code, message = fault.code, str(fault)
        except FileNotFoundError:
            code, message = "not_found", f"there is no {uri}"
        except PermissionError as error:
            code, message = "forbidden", str(error)
        except AddressError as error:
            code, message = "bad_url", str(error)
        for row in left:
            yield _input(row, error=code, message=message, **nothing)

    def _videos(self, rows: list[Row], pictures: Mapping[str, list[Any]]) -> Iterator[Row]:
        """Scenes of whole videos, with the pictures of these."""
        for video_id, scenes in groupby(rows, lambda row: row["video_id"]):
            placed = self._placed(video_id, pictures.get(video_id, []))
            for row in scenes:
                yield _input(row, pictures=placed)

    def _placed(self, video_id: str, wanted: list[Any]) -> list[Placed]:
        placed = []
        for part, scenes in groupby(wanted, lambda one: one[0]):
            boxes = {scene_id: box for _, scene_id, box in scenes}
            found = stored(self._store, part, {(video_id, scene_id) for scene_id in boxes})
            for (_, scene_id), files in found.items():
                placed.append(Placed(decode_jpeg(files[len(files) // 2]), tuple(boxes[scene_id])))
        return placed


def _length_s(row: Row) -> float:
    return float(row["end_s"]) - float(row["start_s"])


def sounds_in(path: str, spans: Sequence[tuple[float, float]]) -> Iterator[tuple[int, Any] | None]:
    """The sound of spans of a film, numbered; None: still alive. After a fault of the film comes -1 with its code and
    message."""
    number = 0
    try:
        for sound in sound_of(path, spans, SOUND_RATE):
            yield None if sound is None else (number, sound)
            number += sound is not None
    except FilmError as error:
        yield -1, (error.code, str(error))


def _objects(value: Any) -> np.ndarray:
    column = np.empty(1, object)
    column[0] = value
    return column


def _first(batch: Batch) -> Row:
    return {name: batch[name][0] for name in ("frames", "error", "message")}


def _input(row: Row, error: str = "", message: str = "", **seen: Any) -> Row:
    """What a family gets of a scene, as `Scorer` says it, and what names its row."""
    about = {name: row[name] for name in ("row", "video_id", "scene_id", "caption", "recaption", TEXTS)}
    sizes = {name: int(row[name]) for name in ("width", "height")}
    times = {name: float(row[name]) for name in ("start_s", "end_s")}
    return {**about, **sizes, **times, "error": str(error), "message": str(message), **seen}


# -------------------------------------------------------------------------------------------------- while films decode


class PassScorer:
    """Measure families on rows of scenes while they carry their frames.

    Reads:  the columns of SCORES, frames and KEY_FRAMES
    Adds:   Task.column  bytes (N,) for each family: its row as a table of Arrow; b"" where there is nothing to measure
    """

    def __init__(self, tasks: Sequence[Task], interval_s: float) -> None:
        self._interval_s = interval_s
        self._scorers = [(task.column, scorer_class(task.name).reads, _Scorer(task)) for task in tasks]

    def __call__(self, batch: Batch) -> Batch:
        scenes = (batch["scene_id"] != "") & (batch["error"] == "")
        rows = np.flatnonzero(scenes & np.isfinite(batch["mean_rgb_diff"]))
        pictures: dict[int, np.ndarray] = {}
        added: Batch = {}
        for column, reads, scorer in self._scorers:
            if reads == "keyframes" and not pictures:
                pictures = {int(i): _pictures(batch, int(i)) for i in rows}
            table = scorer.rows(self._input(batch, int(i), reads, pictures) for i in rows)
            values = np.full(len(batch["error"]), b"", object)
            for number, i in enumerate(rows):
                values[i] = _packed(table.slice(number, 1))
            added[column] = values
        return {**batch, **added}

    def _input(self, batch: Batch, i: int, reads: str, pictures: Mapping[int, np.ndarray]) -> Row:
        row = {name: batch[name][i] for name in ("video_id", "scene_id", "width", "height", "start_s", "end_s")}
        row |= {"row": i, "caption": batch["caption"][i] or "", "recaption": "", TEXTS: ""}
        if reads == "keyframes":
            return _input(row, frames=pictures[i])
        return _input(row, frames=batch["frames"][i], interval_s=self._interval_s)


def _pictures(batch: Batch, i: int) -> np.ndarray:
    return np.stack([decode_jpeg(batch[name][i]) for name in KEY_FRAMES if batch[name][i]])


def _packed(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()

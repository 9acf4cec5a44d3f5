"""Rows of chosen scenes in their order, on this machine's disk: memory holds a batch of them, however many there are.

Tables of an output hold scenes in other orders. A scene has a number, its place among those that are chosen; what is
found of it is put aside with that of its neighbours, and a batch of neighbours is put together at a time.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from actors.core.errors import BrokenRunError, machine_fault
from actors.core.stage import Row
from actors.core.store import Store
from actors.core.temporary import TemporaryFolder
from actors.curation.captioning.styles import IMPROVED, STYLES
from actors.curation.tables import (
    BARS,
    LATER,
    NEW_CAPTIONS,
    ORIGIN,
    PICTURES,
    PLAN_AGAIN,
    SCORES,
    SELECT_AGAIN,
    STALE,
    current,
    pictures_of,
    plan_places,
    with_origin,
    with_places,
)
from pipelines.curation.rows import IncompleteError, read_answers

compute: Any = pc
"""Most of its functions are made when it is imported, so that no type checker knows them."""
Key = tuple[str, str]
"""A scene: its video_id and scene_id."""
KEYS = ["video_id", "scene_id"]
KEPT = ["video_id", "clip_id", "scene_id", "caption", "first", "end", "start_s", "end_s", "uri"]
KEPT += ["width", "height", "clock_jumps", "converted", *BARS]
"""What is known of a scene."""
LOCATED = pa.schema(
    [
        *(SCORES.field(name) for name in (*KEPT, *ORIGIN)),
        *((name, pa.string()) for name in ("part", "recaption", "captions")),
    ]
)
BATCH_ROWS = 50_000
"""Scenes of a batch: some 50 MB."""
ROWS = 1000
"""Scenes that are Python objects at once."""
NUMBER = "number"
HASH_KEYS = ("first of filmray", "other of filmray")


class Names:
    """Places of names among those that it was made of: 20 bytes a name, however long it is.

    Names are compared by two hashes of 64 bits: of 100 million, two are taken for one with a probability of 1e-23.
    """

    def __init__(self, names: Iterable[Any]) -> None:
        """names: arrays of them, all different."""
        found = [_hashes(some) for some in names]
        first, second = np.concatenate([np.zeros((2, 0), np.uint64), *found], axis=1)
        self._order = np.argsort(first, kind="stable").astype(np.int32)
        self._first, self._second = first[self._order], second[self._order]

    def __len__(self) -> int:
        return len(self._order)

    def places(self, names: Any) -> np.ndarray:
        """The place of each name of an array, int32 (N,); -1 where it is none of them."""
        first, second = _hashes(names)
        at = np.searchsorted(self._first, first)
        while True:
            there = at < len(self)
            there[there] = self._first[at[there]] == first[there]
            other = np.flatnonzero(there)
            other = other[self._second[at[other]] != second[other]]
            if not len(other):
                break
            # The first hash is that of another name, too.
            at[other] += 1
        found = np.full(len(first), -1, np.int32)
        found[there] = self._order[at[there]]
        return found


def _hashes(names: Any) -> np.ndarray:
    """uint64 (2, N)."""
    texts = np.asarray(names.to_numpy(zero_copy_only=False) if isinstance(names, pa.Array) else names, object)
    return np.stack([pd.util.hash_array(texts, hash_key=key, categorize=False) for key in HASH_KEYS])


def scene_names(rows: pa.Table, names: Sequence[str] = KEYS) -> pa.Array | pa.ChunkedArray:
    """A name for each scene: both of its ids, or these columns."""
    columns = (compute.fill_null(rows[name].cast(pa.string()), "") for name in names)
    return compute.binary_join_element_wise(*columns, "\0")


def names_of(scenes: "Chosen", names: Sequence[str] = KEYS) -> Iterator[Any]:
    """The `scene_names` of scenes, in arrays."""
    if isinstance(scenes, Scenes):
        yield from (scene_names(table, names) for table in scenes.tables(*names))
    elif scenes:
        columns = {name: pa.array([row[name] for row in scenes], pa.string()) for name in names}
        yield scene_names(pa.table(columns), names)


def first_of(scenes: "Chosen") -> np.ndarray:
    """Which scenes are named for the first time, bool (N,)."""
    if isinstance(scenes, Scenes):
        return np.ones(len(scenes), bool)
    return ~pd.Series([(row["video_id"], row["scene_id"]) for row in scenes], dtype=object).duplicated().to_numpy()


class Shelf:
    """Rows with numbers, put aside on disk by batches of neighbours."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name = folder, name
        self._waiting: list[pa.Table] = []
        self._rows = 0

    def add(self, rows: pa.Table) -> None:
        """Put rows aside; those of a number stay in the order in which they came."""
        if len(rows):
            self._waiting.append(rows)
            self._rows += len(rows)
        if self._rows >= BATCH_ROWS:
            self._write()

    def batch(self, number: int) -> pa.Table | None:
        """What was put aside of a batch; None for nothing."""
        self._write()
        path = self._path(number)
        if not path.exists():
            return None
        found = []
        with pa.OSFile(str(path)) as file:
            while file.tell() < file.size():
                found.append(pa.ipc.open_stream(file).read_all())
        return pa.concat_tables(found, promote_options="permissive")

    def remove(self, number: int) -> None:
        """Forget a batch."""
        self._path(number).unlink(missing_ok=True)

    def _path(self, number: int) -> Path:
        return self._folder / f"{self._name}-{number:06d}.arrow"

    def _write(self) -> None:
        if not self._rows:
            return
        rows = pa.concat_tables(self._waiting, promote_options="permissive")
        self._waiting, self._rows = [], 0
        of = rows[NUMBER].to_numpy() // BATCH_ROWS
        order = np.argsort(of, kind="stable")
        rows, of = rows.take(pa.array(order)).combine_chunks(), of[order]
        for number, start, end in runs_of(of):
            with _appended(self._path(int(number))) as file:
                options = pa.ipc.IpcWriteOptions(compression="lz4")
                with pa.ipc.new_stream(file, rows.schema, options=options) as stream:
                    stream.write_table(rows.slice(start, end - start))


@contextmanager
def _appended(path: Path) -> Iterator[BinaryIO]:
    """A file that is written on; BrokenRunError where this machine has no room for it."""
    try:
        with path.open("ab") as file:
            yield file
    except OSError as error:
        raise BrokenRunError(machine_fault(error, writing=True) or str(error)) from error


def runs_of(values: np.ndarray) -> Iterator[tuple[Any, int, int]]:
    """Values that stand side by side, each with where it starts and ends."""
    starts = np.flatnonzero(np.append(True, values[1:] != values[:-1])) if len(values) else np.zeros(0, int)
    for start, end in zip(starts, [*starts[1:], len(values)], strict=True):
        yield values[start], int(start), int(end)


class Scenes:
    """Sound scenes of scores/ in an order: KEPT, ORIGIN, the part of keyframes/ that has their pictures, the recaption,
    "" for none, and `captions` of other styles, by style. They may be gone through any number of times."""

    def __init__(self, folder: TemporaryFolder, shelf: Shelf, chosen: np.ndarray) -> None:
        """chosen: which of the rows on the shelf, bool (N,)."""
        # It is there as long as one of them.
        self._folder, self._shelf, self._chosen = folder, shelf, chosen
        self._count = int(chosen.sum())

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Row]:
        return self.rows()

    def rows(self, *names: str) -> Iterator[Row]:
        """The scenes one after the other; names: of the columns that are needed, none: all."""
        for table in self.tables(*names):
            for start in range(0, len(table), ROWS):
                for row in table.slice(start, ROWS).to_pylist():
                    if "captions" in row:
                        row["captions"] = json.loads(row["captions"]) if row["captions"] else {}
                    yield row

    def tables(self, *names: str) -> Iterator[pa.Table]:
        """Batches of them; captions are JSON, "" for none."""
        for number, start in enumerate(range(0, len(self._chosen), BATCH_ROWS)):
            chosen = self._chosen[start : start + BATCH_ROWS]
            if chosen.any():
                table = self._shelf.batch(number)
                assert table is not None
                yield table.select(names or LOCATED.names).filter(pa.array(chosen))

    def where(self, chosen: np.ndarray) -> "Scenes":
        """Those of them that are chosen; chosen: bool (N,)."""
        whole = self._chosen.copy()
        whole[self._chosen] = chosen
        return Scenes(self._folder, self._shelf, whole)


Chosen = Scenes | Sequence[Row]
"""Scenes, as many as there are, or some rows of theirs."""


def kept_scenes(store: Store) -> Scenes:
    """The scenes that scenes/ says are kept, in its order."""
    parts = store.read_parts("scenes", [*KEYS, "kept"], again=SELECT_AGAIN)
    return located(store, (part.filter(part["kept"]).select(KEYS) for part in parts))


def located(store: Store, keys: Iterable[pa.Table]) -> Scenes:
    """Sound scenes of scores/ in the order of their names; keys: tables of video_id and scene_id.

    Films are looked for where the input has them now, captions are those of the input now.
    """
    folder = TemporaryFolder()
    asked = Shelf(folder.path, "asked")
    numbers = Names(_numbered(keys, asked))
    shelves = {name: Shelf(folder.path, name) for name in ("sound", "captions", "answers")}
    if len(numbers):
        _find_sound(store, numbers, shelves["sound"])
        _find_captions(store, numbers, shelves["captions"])
        _find_answers(store, numbers, shelves["answers"])
    done, plan, missing = Shelf(folder.path, "scenes"), plan_places(store), []
    batches = range(-(-len(numbers) // BATCH_ROWS))
    for number in batches:
        found = {name: shelf.batch(number) for name, shelf in shelves.items()}
        first, wanted = number * BATCH_ROWS, asked.batch(number)
        assert wanted is not None
        rows = None if found["sound"] is None else _last(found["sound"], ["written"])
        there = np.zeros(len(wanted), bool)
        if rows is not None:
            there[rows[NUMBER].to_numpy() - first] = True
        missing += wanted.filter(pa.array(~there)).select(["scene_id"]).to_pylist()
        if rows is not None and not missing:
            rows = with_places(store, rows.to_pandas(), plan)
            done.add(_whole(rows, found["captions"], found["answers"]))
        for shelf in (asked, *shelves.values()):
            shelf.remove(number)
    if missing:
        raise _unknown(store, [row["scene_id"] for row in missing])
    return Scenes(folder, done, np.ones(len(numbers), bool))


def _numbered(keys: Iterable[pa.Table], shelf: Shelf) -> Iterator[Any]:
    before = 0
    for table in keys:
        shelf.add(table.append_column(NUMBER, pa.array(np.arange(before, before + len(table)))))
        before += len(table)
        yield scene_names(table)


def numbered(rows: pa.Table, numbers: Names) -> pa.Table:
    """Those rows whose scenes have numbers, with these."""
    places = numbers.places(scene_names(rows))
    return rows.append_column(NUMBER, pa.array(places)).filter(pa.array(places >= 0))


def _find_sound(store: Store, numbers: Names, shelf: Shelf) -> None:
    """Rows of the films and times that the input has."""
    stale = store.read_table("plan/stale", STALE, again=PLAN_AGAIN)
    columns = [*KEPT, "error", "written", *ORIGIN, PICTURES]
    for name in store.parts("scores"):
        part = store.read_part("scores", name, columns, (*LATER, PICTURES))
        if part is None:
            continue
        for some in slices(part):
            _add_sound(some, name, numbers, stale, shelf)


def slices(rows: pa.Table) -> Iterator[pa.Table]:
    """The rows, a batch at a time."""
    return (rows.slice(start, BATCH_ROWS) for start in range(0, len(rows), BATCH_ROWS))


def _add_sound(part: pa.Table, name: str, numbers: Names, stale: pa.Table, shelf: Shelf) -> None:
    rows = numbered(part.filter(compute.equal(part["error"], "")), numbers)
    if len(rows):
        rows = with_origin(rows.filter(current(rows, stale)))
        # Where its key frames are.
        pictures = pictures_of(rows, name)
        rows = rows.select([*KEPT, *ORIGIN, "written", NUMBER]).append_column("part", pictures)
        shelf.add(rows.cast(pa.schema([_SOUND.get(field.name, field) for field in rows.schema])))


_SOUND = {field.name: field for field in LOCATED}


def _find_captions(store: Store, numbers: Names, shelf: Shelf) -> None:
    """Captions of the input that are others than those in scores/."""
    for part in store.read_parts("plan/captions", NEW_CAPTIONS.names, again=PLAN_AGAIN):
        rows = numbered(part.select(NEW_CAPTIONS.names).cast(NEW_CAPTIONS), numbers)
        shelf.add(rows.select([NUMBER, "caption"]).filter(rows["caption"].is_valid()))


def _find_answers(store: Store, numbers: Names, shelf: Shelf) -> None:
    columns = [NUMBER, "style", "recaption", "code", "written"]
    for part in read_answers(store):
        for rows in slices(part):
            shelf.add(numbered(rows, numbers).select(columns))


def _last(rows: pa.Table, order: Sequence[str], by: Sequence[str] = ()) -> pa.Table:
    """Of the rows of a number (and what else they are told apart by) the last in an order, sorted by number."""
    keys = [NUMBER, *by]
    sort: list[Any] = [(name, "ascending") for name in (*keys, *order)]
    rows = rows.take(compute.sort_indices(rows, sort_keys=sort))
    told = [rows[name].combine_chunks().dictionary_encode().indices.to_numpy() for name in by]
    marks = np.stack([rows[NUMBER].to_numpy(), *told])
    last = np.append((marks[:, 1:] != marks[:, :-1]).any(axis=0), True)[: len(rows)]
    return rows.filter(pa.array(last))


def _whole(rows: pd.DataFrame, captions: pa.Table | None, answers: pa.Table | None) -> pa.Table:
    """The rows of a batch with all that is known."""
    unsaid = dict.fromkeys(("caption", "converted"), "") | dict.fromkeys(BARS, 0)
    rows = rows.set_index(NUMBER)
    if captions is not None:
        new = _last(captions, []).to_pandas().set_index(NUMBER).caption
        rows.loc[new.index, "caption"] = new
    rows = rows.fillna(unsaid).assign(recaption="", captions="")
    if answers is not None:
        sound = compute.equal(answers["code"], "")
        last = _last(answers.append_column("sound", sound), ["sound", "written"], ["style"])
        said: dict[int, dict[str, str]] = defaultdict(dict)
        for row in last.select([NUMBER, "style", "recaption"]).to_pylist():
            if row["recaption"]:
                said[row[NUMBER]][row["style"]] = row["recaption"]
        improved = {number: texts.pop(IMPROVED) for number, texts in said.items() if IMPROVED in texts}
        others = {
            number: json.dumps({style: texts[style] for style in STYLES if style in texts})
            for number, texts in said.items()
            if texts.keys() & STYLES.keys()
        }
        for name, texts in (("recaption", improved), ("captions", others)):
            rows[name] = pd.Series(texts, rows.index, object).fillna("")
    table = pa.Table.from_pandas(rows, LOCATED, preserve_index=False)
    return table.append_column(NUMBER, pa.array(rows.index.to_numpy()))


def _unknown(store: Store, scene_ids: Sequence[str]) -> IncompleteError:
    some = ", ".join(scene_ids[:3])
    return IncompleteError(
        f"{store.uri('scenes')} has {len(scene_ids)} scenes without a sound row in scores/ ({some}). {SELECT_AGAIN}"
    )

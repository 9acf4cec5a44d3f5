"""The rows of scores/: which of them count, whether they add up to the input, and what they cost.

Parts are read by Ray's tasks where they are many and Ray runs. A few narrow columns of all rows wait on disk, and are
looked at a range of videos at a time.
"""

import logging
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from actors.core.catalog import Part, ReplacedError
from actors.core.computed import COMPUTED, mixed
from actors.core.store import Store
from actors.curation.captioning.styles import IMPROVED
from actors.curation.compacting import shards
from actors.curation.features.motion import BY_FARNEBACK
from actors.curation.tables import (
    CAPTIONS,
    CAPTIONS_AGAIN,
    ORIGIN,
    PLAN_AGAIN,
    REJECTED,
    SCORES,
    STALE,
    UNMEASURED,
    VIDEOS,
    Look,
    check_planned,
    current,
    read_at,
    read_rows,
    strings,
    with_new_captions,
)
from pipelines.curation.gathered import Divided, counted
from pipelines.curation.measuring.families import check_measured, families_with

log = logging.getLogger(__name__)
Result = TypeVar("Result")

RANGE_ROWS = 500_000
"""Rows whose shards are held together."""
LOOSE_ROWS = 64
"""Rows of a part whose rows the catalog does not tell, about."""
TASK_PARTS = 250
"""Parts that one task reads."""
TASK_ROWS = 100_000
"""Rows of a compacted part that has a task of its own."""
MANY_CALLS = 4
"""As many are made here before Ray's tasks would have started."""
WAITING_CALLS = 100
"""Tasks that are asked for before the first of them is needed."""
SCORE_APART = (
    "The column computed of scenes/ tells them apart. To measure all alike, use the same kind of device throughout, in "
    "another output."
)
"""What to do where the scores of an output were computed in several ways."""


ATTEMPTS = 5
"""How often rows are read while other commands compact them."""


class IncompleteError(RuntimeError):
    """Rows do not add up: something of the input has no row, or has two."""


@dataclass(frozen=True)
class HowFar:
    """How much of the plan has been scored."""

    videos: int
    """Videos of the input, in the range."""
    done: int
    """Videos whose scenes all have a row."""
    scenes: int
    """Scenes that have a row."""
    failed_scenes: int
    """Scenes whose row has an error code."""
    failed_videos: int
    """Videos whose scenes could not be found, or not all of them."""


class Rows(NamedTuple):
    """What is there of the plan, or of a range of its videos."""

    scenes: pd.DataFrame
    """In the order of the plan."""
    films: pd.DataFrame
    """Rows of whole videos, in the order of the plan."""
    videos: pd.Series
    """How many scenes the plan has of each video, by video_id; -1: its film's row tells."""
    notes: list[str]
    """What could not be read or checked, and which scores are not comparable, in sentences; known at the end."""


def rows_now(store: Store, columns: Sequence[str] = ()) -> Rows:
    """What is there of the plan, all at once: as `Ranges`."""
    [rows] = Ranges(store, columns, whole=True)
    return rows


class Ranges:
    """What is there of the plan, a range of videos after the other: scenes and films, and the plan's scenes per video.

    scores/ is read once, to its end, before the first range is there. A row that counts, as `counted` tells, has its
    columns, `part` and `row` (where it lies below the store), the NARROW columns, and `columns` of SCORES or, where
    there is a `look`, what that makes of them, in a task's own process; it returns a row for each that it is given.
    Columns may also be those of families of scores, null where a scene has no value; UserError, at the end, where one
    has not measured all scenes.
    """

    def __init__(
        self, store: Store, columns: Sequence[str] = (), look: Look | None = None, whole: bool = False
    ) -> None:
        """whole: all videos are one range."""
        check_planned(store)
        self._store, self._columns, self._look = store, columns, look
        self._families = families_with(store, list(columns))
        plan = store.read_table("plan/videos", VIDEOS, again=PLAN_AGAIN).to_pandas().set_index("video_id")
        self.videos: pd.Series = plan.scenes
        """How many scenes the plan has of each video, in its order; -1: its film's row tells."""
        self.notes: list[str] = []
        """As those of `Rows`."""
        rows = sum(max(part.rows, LOOSE_ROWS) for part in store.listed("scores"))
        self._count = 1 if whole else max(1, min(-(-rows // RANGE_ROWS), 1 << 16))
        range_of = self._numbers(pa.array(plan.index, pa.string()))
        order = np.argsort(range_of, kind="stable")
        self._plans = np.split(order, np.cumsum(np.bincount(range_of, minlength=self._count))[:-1])
        self._index = plan.video_index

    def __len__(self) -> int:
        return self._count

    def _numbers(self, video_ids: pa.Array | pa.ChunkedArray) -> np.ndarray:
        """The range of each video."""
        return shards(video_ids).to_numpy().astype(np.int64) * self._count >> 16

    def __iter__(self) -> Iterator[Rows]:
        computed, left = Counter[Any](), np.zeros(len(self._families), np.int64)
        divided, torn = self._read()
        with divided:
            for number, some in enumerate(self._plans):
                scenes, films = counted(divided.of(number), self._index.iloc[some].sort_index(), self._columns)
                for rows in (scenes, films):
                    computed.update(rows[COMPUTED].value_counts().to_dict())
                    if self._families:
                        left += [int((rows[UNMEASURED].to_numpy() >> bit & 1).sum()) for bit in range(len(left))]
                if "caption" in scenes:
                    scenes = with_new_captions(self._store, scenes)
                yield Rows(scenes, films, self.videos.iloc[some], self.notes)
                # Before the next range is there.
                del scenes, films, rows
        check_measured(self._store, self._families, left.tolist())
        self.notes += _notes(self._store, torn, computed)

    def _read(self) -> tuple[Divided, list[str]]:
        """All rows, and which parts of scores/ are torn."""
        for _ in range(ATTEMPTS - 1):
            try:
                return self._read_once()
            except ReplacedError as error:
                log.info("read again: %s", error)
        return self._read_once()

    def _read_once(self) -> tuple[Divided, list[str]]:
        store = self._store
        scores = store.listed("scores")
        large = [part for part in scores if part.rows >= TASK_ROWS]
        parts = [*store.listed("plan/rejected"), *(part for part in scores if part.rows < TASK_ROWS)]
        groups = [parts[start : start + TASK_PARTS] for start in range(0, len(parts), TASK_PARTS)] or [[]]
        groups += [[part] for part in large]
        stale = store.read_table("plan/stale", STALE, again=PLAN_AGAIN)
        calls = [(store, group, self._columns, self._look, stale, self._families) for group in groups]
        torn: list[str] = []
        with ExitStack() as held:
            divided = held.enter_context(Divided(self._count))
            for table, some in in_tasks(read_rows, calls, len(calls) > MANY_CALLS):
                torn += some
                divided.add(table, self._numbers(table["video_id"]))
                del table
                # What reading took is given back before the next is read.
                pa.default_memory_pool().release_unused()
            held.pop_all()
        return divided, torn


def _notes(store: Store, torn: list[str], computed: Mapping[Any, int]) -> list[str]:
    notes = mixed(computed, "scores", "scenes", SCORE_APART)
    if without := sum(count for how, count in computed.items() if BY_FARNEBACK in str(how)):
        notes.append(
            f"motion.flow=vectors: {without:,} scenes have no motion vectors (of HEVC, VP9, AV1 or single pictures, or "
            "decoded by torchcodec), so their velocities are Farneback's, mostly lower. To measure all alike, use "
            "motion.flow=scaled in another output."
        )
    if "plan/videos" not in store.catalog().tables:
        notes.append(
            f"The plan of {store.root} is of an earlier version, which kept no count: that it is whole cannot be "
            "checked. `score` and `run` make it again."
        )
    if torn:
        some = ", ".join(torn[:3])
        notes.append(f"Torn parts of scores/, left out: {len(torn)} ({some}). `score` and `run` measure them again.")
    for note in notes:
        log.warning("%s", note)
    return notes


def in_tasks(function: Callable[..., Result], calls: Iterable[tuple[Any, ...]], many: bool) -> Iterator[Result]:
    """What `function` makes of each of the calls, in order; where they are many, in the tasks of a Ray that runs."""
    if not many or "ray" not in sys.modules:
        yield from (function(*call) for call in calls)
        return
    import ray

    if not ray.is_initialized():
        yield from (function(*call) for call in calls)
        return
    from pipelines.core.attempts import repeated

    task = repeated(function)
    waiting: deque[Any] = deque()
    for call in calls:
        waiting.append(task(*call))
        if len(waiting) == WAITING_CALLS:
            yield ray.get(waiting.popleft())
    while waiting:
        yield ray.get(waiting.popleft())


class Inventory:
    """How many scenes the input has, and what their rows cost, added up range by range."""

    def __init__(self, videos: pd.Series) -> None:
        """videos: those of the plan, in its order."""
        self._videos = videos
        self._expected = 0
        self._missing: list[str] = []
        self._extra: list[str] = []
        self._rows, self._seconds = Counter[str](), Counter[str]()
        self._about = Counter[str]()
        self._decoders = Counter[str]()
        self._worst: tuple[float, int, str] | None = None

    def add(self, rows: Rows) -> None:
        """Add a range."""
        self._count(*rows[:3])
        self._measure(rows.scenes, rows.films)

    def _count(self, scenes: pd.DataFrame, films: pd.DataFrame, videos: pd.Series) -> None:
        planned = (scenes.step == "plan").to_numpy()
        passed = films[films.step != "plan"]
        expected = videos.where(videos >= 0, _by_video(videos, passed.video, passed.scenes, np.nan))
        # Windows of scenes that the input names are no scenes of the input; these tell how many there are.
        named = np.append((videos.sort_index() >= 0).to_numpy(), False)
        windows = (scenes.window >= 0).to_numpy() & named[scenes.video]
        parts = _counts(videos, scenes.video[windows])
        told = _counts(videos, scenes.video[~planned], scenes.scenes[~planned])
        have = _counts(videos, scenes.video[~planned & ~windows])
        # More than a failed pass had: it was tried again, and ended before its film was.
        broken = _by_video(videos, passed.video, passed.error != "", False)
        halfway = (videos < 0) & broken & (have > expected)
        missing = expected.isna() | (have < expected) | (parts < told) | halfway
        self._missing += videos.index[missing].tolist()
        self._extra += videos.index[have > expected].tolist()
        self._expected += int(expected.sum() + planned.sum() + windows.sum())

    def _measure(self, scenes: pd.DataFrame, films: pd.DataFrame) -> None:
        cut = ~scenes.step.isin(["plan", "fetch"])
        costs = {"fetch": films.fetch_s, "cut": films.cut_s, "latents": scenes.latents_s}
        for name, seconds in costs.items():
            spent = seconds[seconds > 0].to_numpy(np.float64)
            self._seconds[name] += spent.sum()
            self._rows[name] += int(cut.sum()) if name == "cut" else len(spent)
        read = films[films.source > 0]
        self._about.update(decoded=int(read.decoded.sum()), source=int(read.source.sum()))
        self._decoders.update({str(name): int(films) for name, films in read.decoder.value_counts().items()})
        if len(read):
            ratio = (read.decoded / read.source).to_numpy()
            worst = read.iloc[int(ratio.argmax())]
            found = -float(ratio.max()), int(worst["index"]), str(worst.video_id)
            self._worst = min(self._worst or found, found)

    def expected(self) -> int:
        """How many scenes the input has; raises IncompleteError where scores/ has fewer or more of a video."""
        if self._missing:
            raise IncompleteError(
                f"{len(self._missing)} videos have scenes without a row ({self._some(self._missing)}): run the same "
                "command again"
            )
        if self._extra:
            raise IncompleteError(
                f"{len(self._extra)} videos have more scenes in scores/ than in the input ({self._some(self._extra)}): "
                "the input has changed. Run `score` or `run` to plan it again."
            )
        return self._expected

    def _some(self, videos: list[str]) -> str:
        return ", ".join(self._videos.index[self._videos.index.isin(videos)][:5])

    def measurements(self) -> dict[str, Any]:
        """What the rows cost: rows per second and worker of each stage, decoded over source frames, by whom."""
        stages = {
            name: {
                "rows": self._rows[name],
                "seconds": round(float(seconds), 2),
                "rows_per_s": round(self._rows[name] / float(seconds), 2),
            }
            for name, seconds in self._seconds.items()
            if seconds > 0
        }
        about: dict[str, Any] = {name: self._about[name] for name in ("decoded", "source")}
        about["decoders"] = dict(self._decoders.most_common())
        if self._worst:
            about |= {"worst_ratio": round(-self._worst[0], 3), "worst": self._worst[2]}
        return {"stages": stages, "films": about}


def _by_video(videos: pd.Series, video: pd.Series, values: pd.Series, nothing: Any) -> pd.Series:
    """A value for each video of the plan, in its order, from those by the number of the video."""
    found = values.set_axis(video).reindex(range(len(videos)), fill_value=nothing)
    return found.set_axis(videos.index.sort_values()).reindex(videos.index)


def _counts(videos: pd.Series, video: pd.Series, weights: pd.Series | None = None) -> pd.Series:
    """How often each video of the plan is there, or the sum of its weights, in the order of the plan."""
    there = (video >= 0).to_numpy()
    summed = None if weights is None else weights[there]
    counts = np.bincount(video[there], summed, len(videos)).astype(np.int64)
    return pd.Series(counts, videos.index.sort_values()).reindex(videos.index)


def inventory(store: Store) -> tuple[int, dict[str, Any]]:
    """How many scenes the input has, and the `measurements` of their rows; raises IncompleteError as the former."""
    ranges = Ranges(store)
    found = Inventory(ranges.videos)
    for rows in ranges:
        found.add(rows)
    return found.expected(), {**found.measurements(), "notes": ranges.notes}


def how_far(store: Store) -> HowFar:
    """How much of the plan is in scores/, also while a run writes there."""
    counts = np.zeros(5, np.int64)
    for scenes, films, videos, _ in Ranges(store):
        found = films[films.step != "plan"]
        expected = videos.where(videos >= 0, _by_video(videos, found.video, found.scenes, np.nan))
        done = (_counts(videos, scenes.video) >= expected).sum()
        counts += [len(videos), done, len(scenes), (scenes.error != "").sum(), (films.error != "").sum()]
    return HowFar(*counts.tolist())


def failures(store: Store) -> pd.DataFrame:
    """What failed, scenes, videos, captions and clips: video_id, scene_id, step, error, attempts, message of each."""
    schema = pa.schema(
        [SCORES.field(name) for name in ("video_id", "scene_id", "step", "error", "attempts", "message")]
    )
    places = [
        [rows.loc[rows.error != "", ["index", "part", "row"]] for rows in (scenes, films)]
        for scenes, films, *_ in Ranges(store)
    ]
    scenes, films = (
        read_at(store, pd.concat(some).sort_values("index", kind="stable"), schema).to_pandas(types_mapper=strings)
        for some in zip(*places, strict=True)
    )
    answers = captions_by_style(store).rename(columns={"code": "error"}).assign(step="caption")
    named = np.where(answers["style"] == IMPROVED, "", answers["style"] + ": ")
    answers["message"] = named + answers.message
    # The rest of it was copied there from what is read above.
    clips = store.read_table("rejected", REJECTED).to_pandas().rename(columns={"code": "error"})
    bad = pd.concat([scenes, films, clips[clips.step == "export"], answers[answers.error != ""]])
    # A scene is counted where it failed first: one without a clip may have no caption either.
    again = bad.duplicated(["video_id", "scene_id"]) & bad.step.isin(["export", "caption"])
    bad = bad[~again]
    return bad[["video_id", "scene_id", "step", "error", "attempts", "message"]]


def captions(store: Store, *more: str) -> pd.DataFrame:
    """Answers of the style improved, which are the recaptions, one a scene: of several the last sound, else the last.
    Columns: video_id, scene_id, recaption, code, and more of CAPTIONS.

    Raises DamagedError where a part is torn: its answers were paid for.
    """
    keys = ["video_id", "scene_id"]
    columns = [*keys, "recaption", "code", *more, "written"]
    found = [part.filter(pc.field("style") == IMPROVED).select(columns) for part in read_answers(store)]
    rows = pa.concat_tables([CAPTIONS.empty_table().select(columns), *found])
    order = np.lexsort((rows["written"].to_numpy(), np.array(rows["code"]) == ""))
    last = np.zeros(len(rows), bool)
    last[order] = ~rows.select(keys).to_pandas(types_mapper=strings).iloc[order].duplicated(keep="last")
    return rows.filter(pa.array(last)).drop_columns("written").to_pandas(types_mapper=strings)


def captions_by_style(store: Store) -> pd.DataFrame:
    """Answers with the columns of CAPTIONS, one for each style of a scene: of several the last sound, else the last.

    Raises DamagedError where a part is torn: its answers were paid for.
    """
    rows = current_answers(store).to_pandas(types_mapper=strings)
    rows = rows.assign(sound=rows.code == "").sort_values(["sound", "written"], kind="stable")
    named = ["video_id", "scene_id", "style"]
    return rows.drop_duplicates(named, keep="last").drop(columns="sound").reset_index(drop=True)


def current_answers(store: Store) -> pa.Table:
    """Rows of captions/ for the films and times that the input has now."""
    rows = answers(store)[0]
    return rows.filter(current(rows, store.read_table("plan/stale", STALE, again=PLAN_AGAIN)))


def read_answers(store: Store) -> Iterator[pa.Table]:
    """The rows of `current_answers`, part by part; some of them twice where another command gathers them meanwhile."""
    stale = store.read_table("plan/stale", STALE, again=PLAN_AGAIN)
    while True:
        try:
            for part in store.listed("captions"):
                rows = answers_of_part(store, part.name)
                yield rows.filter(current(rows, stale))
            return
        except FileNotFoundError:
            # Gathered into others since.
            continue


def answers_of_part(store: Store, name: str) -> pa.Table:
    """The rows of a part of captions/."""
    rows = store.read_whole(Part("captions", name), CAPTIONS.names, (*ORIGIN, "style"), CAPTIONS_AGAIN)
    rows = rows.select(CAPTIONS.names).cast(CAPTIONS)
    # Rows of earlier versions have none.
    column = CAPTIONS.get_field_index("style")
    return rows.set_column(column, CAPTIONS.field(column), rows["style"].fill_null(IMPROVED))


def answers(store: Store) -> tuple[pa.Table, list[str]]:
    """All rows of captions/, and the names of the parts that hold them."""
    while True:
        parts = store.listed("captions")
        try:
            tables = [answers_of_part(store, part.name) for part in parts]
        except FileNotFoundError:
            # Another command has gathered them into others since.
            continue
        return pa.concat_tables([CAPTIONS.empty_table(), *tables]), [part.name for part in parts]

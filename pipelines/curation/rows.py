"""The rows of scores/: which of them count, whether they add up to the input, and what they cost.

Parts are read by Ray's tasks where they are many and Ray runs; what meets in one place are a few narrow columns.
"""

import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa

from actors.core.catalog import Part, ReplacedError
from actors.core.computed import COMPUTED, mixed
from actors.core.store import Store
from actors.curation.captioning.styles import IMPROVED
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
from pipelines.curation.gathered import counted, divided, gathered
from pipelines.curation.measuring.families import check_measured, families_with

log = logging.getLogger(__name__)
Result = TypeVar("Result")

MANY_PARTS = 1000
"""As many parts are read here before Ray's tasks would have started."""
MANY_ROWS = 2_000_000
"""As many rows of compacted parts are read here before Ray's tasks would have started."""
TASK_PARTS = 250
"""Parts that one task reads."""
TASK_ROWS = 100_000
"""Rows of a compacted part that has a task of its own."""
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
    """What is there of the plan."""

    scenes: pd.DataFrame
    """In the order of the plan."""
    films: pd.DataFrame
    """Rows of whole videos, in the order of the plan."""
    videos: pd.Series
    """How many scenes the plan has of each video, by video_id; -1: its film's row tells."""
    notes: list[str]
    """What could not be read or checked, and which scores are not comparable, in sentences."""


def rows_now(store: Store, columns: Sequence[str] = (), look: Look | None = None, ids: bool = True) -> Rows:
    """What is there of the plan: scenes and films, in its order, and its scenes per video.

    Of rows that were made more than once a sound one counts, else the last. A video of unknown scenes counts -1. A row
    has the numbers of `gathered`, with `ids` also the ids themselves, its `place`, `part` and `row` (where it lies
    below the store), the NARROW columns that are of scenes or of films, and `columns` of SCORES or, where there is a
    `look`, what that makes of them, in a task's own process; it returns a row for each that it is given. Columns may
    also be those of families of scores, null where a scene has no value; UserError where one has not measured all
    scenes.
    """
    for _ in range(ATTEMPTS - 1):
        try:
            return _rows_now(store, columns, look, ids)
        except ReplacedError as error:
            log.info("read again: %s", error)
    return _rows_now(store, columns, look, ids)


def _rows_now(store: Store, columns: Sequence[str], look: Look | None, ids: bool) -> Rows:
    check_planned(store)
    families = families_with(store, list(columns))
    videos = store.read_table("plan/videos", VIDEOS, again=PLAN_AGAIN).to_pandas().set_index("video_id")
    scores = store.listed("scores")
    large = [part for part in scores if part.rows >= TASK_ROWS]
    parts = [*store.listed("plan/rejected"), *(part for part in scores if part.rows < TASK_ROWS)]
    groups = [parts[start : start + TASK_PARTS] for start in range(0, len(parts), TASK_PARTS)] or [[]]
    groups += [[part] for part in large]
    stale = store.read_table("plan/stale", STALE, again=PLAN_AGAIN)
    calls = [(store, group, columns, look, stale, families) for group in groups]
    torn: list[str] = []

    def tables() -> Iterator[pa.Table]:
        for table, some in in_tasks(read_rows, calls, are_many(scores)):
            torn.extend(some)
            yield table

    whole = gathered(tables(), videos.video_index.sort_index(), columns, ids)
    count = counted(whole.rows)
    notes = _notes(store, torn, whole.rows[COMPUTED].to_pandas().iloc[count].value_counts().to_dict())
    # Handed over, so that columns are let go of one by one.
    held = [whole]
    del whole
    scenes, films = divided(held.pop(), count)
    if families:
        left = [rows.pop(UNMEASURED).to_numpy() for rows in (scenes, films)]
        check_measured(store, families, np.concatenate(left))
    if "caption" in scenes:
        scenes = with_new_captions(store, scenes)
    return Rows(scenes, films, videos.scenes, notes)


def are_many(parts: Sequence[Part]) -> bool:
    """Whether Ray's tasks read parts of scores/ faster than this process."""
    return len(parts) > MANY_PARTS or sum(part.rows for part in parts) > MANY_ROWS


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
    waiting = [task(*call) for call in calls][::-1]
    while waiting:
        yield ray.get(waiting.pop())


def expected_scenes(scenes: pd.DataFrame, films: pd.DataFrame, videos: pd.Series) -> int:
    """How many scenes the input has; raises IncompleteError where scores/ has fewer or more of a video."""
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
    if missing.any():
        some = ", ".join(missing.index[missing][:5])
        raise IncompleteError(f"{missing.sum()} videos have scenes without a row ({some}): run the same command again")
    extra = have > expected
    if extra.any():
        some = ", ".join(extra.index[extra][:5])
        raise IncompleteError(
            f"{extra.sum()} videos have more scenes in scores/ than in the input ({some}): the input has changed. "
            "Run `score` or `run` to plan it again."
        )
    return int(expected.sum() + planned.sum() + windows.sum())


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
    scenes, films, videos, notes = rows_now(store, ids=False)
    return expected_scenes(scenes, films, videos), {**measurements(scenes, films), "notes": notes}


def how_far(store: Store) -> HowFar:
    """How much of the plan is in scores/, also while a run writes there."""
    scenes, films, videos, _ = rows_now(store, ids=False)
    found = films[films.step != "plan"]
    expected = videos.where(videos >= 0, _by_video(videos, found.video, found.scenes, np.nan))
    done = _counts(videos, scenes.video) >= expected
    failed = int((scenes.error != "").sum()), int((films.error != "").sum())
    return HowFar(len(videos), int(done.sum()), len(scenes), *failed)


def failures(store: Store) -> pd.DataFrame:
    """What failed, scenes, videos, captions and clips: video_id, scene_id, step, error, attempts, message of each."""
    schema = pa.schema(
        [SCORES.field(name) for name in ("video_id", "scene_id", "step", "error", "attempts", "message")]
    )
    now = rows_now(store, ids=False)
    scenes, films = (
        read_at(store, rows[rows.error != ""], schema).to_pandas(types_mapper=strings)
        for rows in (now.scenes, now.films)
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


def measurements(scenes: pd.DataFrame, films: pd.DataFrame) -> dict[str, Any]:
    """What the rows cost: rows per second and worker of each stage, decoded over source frames of films, by whom."""
    costs = {
        "fetch": films.fetch_s[films.fetch_s > 0],
        "cut": films.cut_s[films.cut_s > 0],
        "latents": scenes.latents_s[scenes.latents_s > 0],
    }
    cut = ~scenes.step.isin(["plan", "fetch"])
    rows = {"fetch": len(costs["fetch"]), "cut": int(cut.sum()), "latents": len(costs["latents"])}
    stages = {
        name: {
            "rows": rows[name],
            "seconds": round(float(s.sum()), 2),
            "rows_per_s": round(rows[name] / float(s.sum()), 2),
        }
        for name, s in costs.items()
        if s.sum() > 0
    }
    read = films[films.source > 0]
    about: dict[str, Any] = {"decoded": int(read.decoded.sum()), "source": int(read.source.sum())}
    about["decoders"] = {str(name): int(films) for name, films in read.decoder.value_counts().items()}
    if len(read):
        ratio = (read.decoded / read.source).to_numpy()
        about |= {"worst_ratio": round(float(ratio.max()), 3), "worst": str(read.video_id.iloc[int(ratio.argmax())])}
    return {"stages": stages, "films": about}


def captions(store: Store) -> pd.DataFrame:
    """Answers of the style improved, which are the recaptions: the columns of CAPTIONS, one a scene.

    Raises DamagedError where a part is torn: its answers were paid for.
    """
    rows = captions_by_style(store)
    return rows[rows["style"] == IMPROVED].reset_index(drop=True)


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

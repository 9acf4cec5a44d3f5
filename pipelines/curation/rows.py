"""The rows of scores/: which of them count, whether they add up to the input, and what they cost.

Parts are read by Ray's tasks where they are many and Ray runs; what meets in one place are a few narrow columns.
"""

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
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
    STALE,
    UNMEASURED,
    VIDEOS,
    Look,
    check_planned,
    current,
    read_rows,
    strings,
    with_new_captions,
)
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


def rows_now(store: Store, columns: Sequence[str] = (), look: Look | None = None) -> Rows:
    """What is there of the plan: scenes and films, in its order, and its scenes per video.

    Of rows that were made more than once a sound one counts, else the last. A video of unknown scenes counts -1. A row
    has the NARROW columns, `part` and `row` (where it lies below the store), and `columns` of SCORES or, where there is
    a `look`, what that makes of them, in a task's own process; it returns a row for each that it is given. Columns may
    also be those of families of scores, null where a scene has no value; UserError where one has not measured all
    scenes.
    """
    for _ in range(ATTEMPTS - 1):
        try:
            return _rows_now(store, columns, look)
        except ReplacedError as error:
            log.info("read again: %s", error)
    return _rows_now(store, columns, look)


def _rows_now(store: Store, columns: Sequence[str], look: Look | None) -> Rows:
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
    read = in_tasks(read_rows, calls, are_many(scores))
    torn = [path for _, some in read for path in some]
    whole = pa.concat_tables([table for table, _ in read], promote_options="permissive").unify_dictionaries()
    del read
    rows = whole.to_pandas(types_mapper=strings, self_destruct=True, split_blocks=True)
    del whole
    planned = (rows.step == "plan").to_numpy()
    # A video may have been scored in a run over another range of the input: this plan leaves it out.
    # Its place in the input may have changed since, as when a film was added to a folder.
    video = videos.index.get_indexer(pd.Index(rows.video_id))
    places = np.append(videos.video_index.to_numpy(), -1)[video]
    rows["video_index"] = np.where(planned, rows.video_index, places)
    made = rows.loc[~planned & (video >= 0), ["video_id", "scene_id", "error", "written"]]
    made = made.iloc[np.lexsort((made.written, made.error == ""))]
    last = made.index[~made.duplicated(["video_id", "scene_id"], keep="last")]
    counted = np.concatenate([last.to_numpy(), np.flatnonzero(planned)])
    order = np.lexsort((rows.ordinal.to_numpy()[counted], rows.video_index.to_numpy()[counted]))
    rows = rows.iloc[counted[order]]
    if families:
        check_measured(store, families, rows.pop(UNMEASURED).to_numpy())
    if "caption" in rows:
        rows = with_new_captions(store, rows)
    scenes = (rows.scene_id != "").to_numpy()
    notes = _notes(store, torn, rows[COMPUTED].value_counts().to_dict())
    return Rows(rows[scenes].reset_index(drop=True), rows[~scenes], videos.scenes, notes)


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


def in_tasks(function: Callable[..., Result], calls: Sequence[tuple[Any, ...]], many: bool) -> list[Result]:
    """What `function` makes of each of the calls, in order; where they are many, in the tasks of a Ray that runs."""
    if not many or "ray" not in sys.modules:
        return [function(*call) for call in calls]
    import ray

    if not ray.is_initialized():
        return [function(*call) for call in calls]
    from pipelines.core.attempts import repeated

    task = repeated(function)
    return ray.get([task(*call) for call in calls])


def expected_scenes(scenes: pd.DataFrame, films: pd.DataFrame, videos: pd.Series) -> int:
    """How many scenes the input has; raises IncompleteError where scores/ has fewer or more of a video."""
    planned = scenes.step == "plan"
    passed = films[films.step != "plan"].set_index("video_id").reindex(videos.index)
    expected = videos.where(videos >= 0, passed.scenes)
    # Windows of scenes that the input names are no scenes of the input; these tell how many there are.
    windows = ((scenes.window >= 0) & scenes.video_id.isin(videos.index[videos >= 0])).to_numpy()
    parts = scenes.video_id[windows].value_counts().reindex(videos.index, fill_value=0)
    told = scenes[~planned].groupby("video_id").scenes.sum().reindex(videos.index, fill_value=0)
    have = scenes[~planned & ~windows].groupby("video_id").size().reindex(videos.index, fill_value=0)
    # More than a failed pass had: it was tried again, and ended before its film was.
    halfway = (videos < 0) & (passed.error != "") & (have > expected)
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


def inventory(store: Store) -> tuple[int, dict[str, Any]]:
    """How many scenes the input has, and the `measurements` of their rows; raises IncompleteError as the former."""
    scenes, films, videos, notes = rows_now(store)
    return expected_scenes(scenes, films, videos), {**measurements(scenes, films), "notes": notes}


def how_far(store: Store) -> HowFar:
    """How much of the plan is in scores/, also while a run writes there."""
    scenes, films, videos, _ = rows_now(store)
    found = films[films.step != "plan"].set_index("video_id").scenes.reindex(videos.index)
    expected = videos.where(videos >= 0, found)
    done = scenes.groupby("video_id").size().reindex(videos.index, fill_value=0) >= expected
    failed = int((scenes.error != "").sum()), int((films.error != "").sum())
    return HowFar(len(videos), int(done.sum()), len(scenes), *failed)


def failures(store: Store) -> pd.DataFrame:
    """What failed, scenes, videos, captions and clips: video_id, scene_id, step, error, attempts, message of each."""
    scenes, films, *_ = rows_now(store, ["attempts", "message"])
    answers = captions_by_style(store).rename(columns={"code": "error"}).assign(step="caption")
    named = np.where(answers["style"] == IMPROVED, "", answers["style"] + ": ")
    answers["message"] = named + answers.message
    # The rest of it was copied there from what is read above.
    clips = store.read_table("rejected", REJECTED).to_pandas().rename(columns={"code": "error"})
    bad = pd.concat([rows[rows.error != ""] for rows in (scenes, films, clips[clips.step == "export"], answers)])
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


def answers(store: Store) -> tuple[pa.Table, list[str]]:
    """All rows of captions/, and the names of the parts that hold them."""
    while True:
        parts = store.listed("captions")
        try:
            read = [store.read_whole(part, CAPTIONS.names, (*ORIGIN, "style"), CAPTIONS_AGAIN) for part in parts]
        except FileNotFoundError:
            # Another command has gathered them into one part since.
            continue
        tables = (part.select(CAPTIONS.names).cast(CAPTIONS) for part in read)
        rows = pa.concat_tables([CAPTIONS.empty_table(), *tables])
        # Rows of earlier versions have none.
        column = CAPTIONS.get_field_index("style")
        styles = rows["style"].fill_null(IMPROVED)
        return rows.set_column(column, CAPTIONS.field(column), styles), [part.name for part in parts]

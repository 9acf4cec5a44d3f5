"""The rows of scores/: which of them count, whether they add up to the input, and what they cost.

Parts are read by Ray's tasks where they are many and Ray runs; what meets in one place are a few narrow columns.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa

from actors.core.errors import UserError
from actors.core.store import Store
from actors.curation.tables import CAPTIONS, REJECTED, VIDEOS, Look, read_rows, strings

Result = TypeVar("Result")

MANY_PARTS = 1000
"""As many parts are read here before Ray's tasks would have started."""
TASK_PARTS = 250
"""Parts that one task reads."""


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


def rows_now(
    store: Store, columns: Sequence[str] = (), look: Look | None = None
) -> tuple[pd.DataFrame, pd.DataFrame, pd.Series]:
    """What is there of the plan: scenes and films, in its order, and its scenes per video.

    Of rows that were made more than once a sound one counts, else the last. A video of unknown scenes counts -1. A row
    has the NARROW columns, `part` and `row` (where it lies below the store), and `columns` of SCORES or, where there is
    a `look`, what that makes of them, in a task's own process; it returns a row for each that it is given.
    """
    videos = store.read_table("plan/videos", VIDEOS).to_pandas().set_index("video_id")
    parts = [f"{folder}/{name}" for folder in ("plan/rejected", "scores") for name in store.parts(folder)]
    groups = [parts[start : start + TASK_PARTS] for start in range(0, len(parts), TASK_PARTS)] or [[]]
    tables = in_tasks(read_rows, [(store, group, columns, look) for group in groups], len(parts) > MANY_PARTS)
    whole = pa.concat_tables(tables, promote_options="permissive").unify_dictionaries()
    del tables
    rows = whole.to_pandas(types_mapper=strings, self_destruct=True, split_blocks=True)
    del whole
    planned = (rows.step == "plan").to_numpy()
    if videos.empty and not planned.any():
        raise UserError(f"{store.root} has no plan, so it is not the output of a run. Check the path.")
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
    scenes = (rows.scene_id != "").to_numpy()
    return rows[scenes].reset_index(drop=True), rows[~scenes], videos.scenes


def in_tasks(function: Callable[..., Result], calls: Sequence[tuple[Any, ...]], many: bool) -> list[Result]:
    """What `function` makes of each of the calls, in order; where they are many, in the tasks of a Ray that runs."""
    if not many or "ray" not in sys.modules:
        return [function(*call) for call in calls]
    import ray

    if not ray.is_initialized():
        return [function(*call) for call in calls]
    task = ray.remote(max_retries=3)(function)
    return ray.get([task.remote(*call) for call in calls])


def expected_scenes(scenes: pd.DataFrame, films: pd.DataFrame, videos: pd.Series) -> int:
    """How many scenes the input has; raises IncompleteError where scores/ has fewer or more of a video."""
    planned = scenes.step == "plan"
    passed = films[films.step != "plan"].set_index("video_id").reindex(videos.index)
    expected = videos.where(videos >= 0, passed.scenes)
    have = scenes[~planned].groupby("video_id").size().reindex(videos.index, fill_value=0)
    # More than a failed pass had: it was tried again, and ended before its film was.
    halfway = (videos < 0) & (passed.error != "") & (have > expected)
    missing = expected.isna() | (have < expected) | halfway
    if missing.any():
        some = ", ".join(missing.index[missing][:5])
        raise IncompleteError(f"{missing.sum()} videos have scenes without a row ({some}): run the same command again")
    extra = have > expected
    if extra.any():
        some = ", ".join(extra.index[extra][:5])
        raise IncompleteError(
            f"{extra.sum()} videos have more scenes in scores/ than in the input ({some}): the input has changed; "
            "use another output for it"
        )
    return int(expected.sum() + planned.sum())


def inventory(store: Store) -> tuple[int, dict[str, Any]]:
    """How many scenes the input has, and the `measurements` of their rows; raises IncompleteError as the former."""
    scenes, films, videos = rows_now(store)
    return expected_scenes(scenes, films, videos), measurements(scenes, films)


def how_far(store: Store) -> HowFar:
    """How much of the plan is in scores/, also while a run writes there."""
    scenes, films, videos = rows_now(store)
    found = films[films.step != "plan"].set_index("video_id").scenes.reindex(videos.index)
    expected = videos.where(videos >= 0, found)
    done = scenes.groupby("video_id").size().reindex(videos.index, fill_value=0) >= expected
    failed = int((scenes.error != "").sum()), int((films.error != "").sum())
    return HowFar(len(videos), int(done.sum()), len(scenes), *failed)


def failures(store: Store) -> pd.DataFrame:
    """What failed, scenes, videos, captions and clips: video_id, scene_id, step, error, attempts, message of each."""
    scenes, films, _ = rows_now(store, ["attempts", "message"])
    answers = captions(store).rename(columns={"code": "error"}).assign(step="caption")
    # The rest of it was copied there from what is read above.
    clips = store.read_table("rejected", REJECTED).to_pandas().rename(columns={"code": "error"})
    bad = pd.concat([rows[rows.error != ""] for rows in (scenes, films, answers, clips[clips.step == "export"])])
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
    """Answers with the columns of CAPTIONS, one a scene: of several the last sound one, else the last."""
    rows = store.read_table("captions", CAPTIONS).to_pandas(types_mapper=strings)
    rows = rows.assign(sound=rows.code == "").sort_values(["sound", "written"], kind="stable")
    return rows.drop_duplicates(["video_id", "scene_id"], keep="last").drop(columns="sound").reset_index(drop=True)

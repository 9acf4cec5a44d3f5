"""How many scenes of each video of the last plan have a row that counts: over a range of shards of scores/ at a time,
in Ray's tasks where it runs. Memory holds the rows of a range, and a few numbers per video."""

import math
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from actors.curation.compacting import shards
from actors.curation.sources.origin import HALF
from actors.curation.tables import ORIGIN, PLAN_AGAIN, STALE, current, strings, with_origin
from pipelines.curation.cutting.done import AGAIN, FAILED, SOUND, UNMEASURED, states
from pipelines.curation.cutting.reading import Range, Reading
from pipelines.curation.rows import in_tasks
from pipelines.curation.settings import CurationConfig


class Counted(NamedTuple):
    """What scores/ has of the videos of a plan."""

    videos: pd.DataFrame
    """By video_id: `have`, how many scenes have a row that counts; `done`, of a film whose scenes are found by shot
    detection, whether all of them have; `moved`, whether it lay elsewhere when a row of it was written."""
    again: pd.DataFrame
    """video_id, scene_id of scenes that failed and are to be tried again."""


def counted(
    config: CurationConfig,
    rows: Reading,
    videos: pd.DataFrame,
    again: frozenset[str] = frozenset(),
    until: float = math.inf,
) -> Counted:
    """Count; videos: the columns of PLANNED. again, until: as `Done`."""
    stale = rows.store.read_table("plan/stale", STALE, again=PLAN_AGAIN)
    ranges = rows.ranges()
    of = shards(pa.array(videos.video_id)).to_numpy() if len(videos) else np.empty(0, np.uint16)
    about = videos[["video_id", *ORIGIN]]
    calls = [(rows.within(one), one, about[(of >= one[0]) & (of < one[1])], stale) for one in ranges]
    how = {"most": config.frames.max, "keep": config.videos.changed == "keep", "again": again, "until": until}
    found = list(in_tasks(partial(_counted, **how), calls, len(calls) > 1))
    return Counted(*(pd.concat(tables) for tables in zip(*found, strict=True)))


def _counted(
    rows: Reading,
    of: Range,
    videos: pd.DataFrame,
    stale: pa.Table,
    most: int,
    keep: bool,
    again: frozenset[str],
    until: float,
) -> Counted:
    table = pa.concat_tables(rows.tables(of), promote_options="permissive")
    if len(stale):
        table = table.filter(current(table, stale))
    state = states(table, most, again, until)
    frame = with_origin(table).to_pandas(types_mapper=strings)
    del table
    at = pd.Index(videos.video_id).get_indexer(frame.video_id)
    known = at >= 0
    frame, at, state = frame[known], at[known], state[known]
    alike, elsewhere = _same_film(frame, videos.iloc[at])
    counts = (keep | alike) & (state != UNMEASURED)
    scene = (frame.scene_id != "").to_numpy()
    scenes = pd.DataFrame({"at": at, "scene_id": frame.scene_id.array, "written": frame.written.array})
    best = _best(scenes, state, np.flatnonzero(scene & counts))
    have = np.bincount(at[best][state[best] >= FAILED], minlength=len(videos))
    retried = frame.iloc[best[state[best] == AGAIN]][["video_id", "scene_id"]]
    done = np.zeros(len(videos), bool)
    film = np.flatnonzero(~scene & counts)
    # Of several the sound one counts, else the last.
    film = film[np.lexsort((frame.written.to_numpy()[film], state[film] == SOUND))]
    expected = frame.scenes.fillna(0).to_numpy()[film]
    whole = np.where(state[film] == SOUND, have[at[film]] >= expected, have[at[film]] == expected)
    done[at[film]] = whole & (state[film] != AGAIN)
    moved = np.zeros(len(videos), bool)
    moved[at[(keep | alike) & elsewhere]] = True
    return Counted(pd.DataFrame({"have": have, "done": done, "moved": moved}, index=pd.Index(videos.video_id)), retried)


def _best(scenes: pd.DataFrame, state: np.ndarray, some: np.ndarray) -> np.ndarray:
    """The row of each scene that counts, of some rows: the sound one, else the last."""
    if (state[some] != SOUND).any():
        some = some[np.lexsort((scenes.written.to_numpy()[some], state[some] == SOUND))]
    return some[~scenes[["at", "scene_id"]].iloc[some].duplicated(keep="last").to_numpy()]


def _same_film(old: pd.DataFrame, new: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """`origin.same_film` and `origin.moved` of rows and the films that they are to be of, in their order."""
    (film, version), (film_now, version_now) = (
        [table[name].to_numpy(np.int64) for name in ORIGIN] for table in (old, new)
    )
    unknown, moved = (film == 0) & (version == 0), (film ^ film_now) & ((1 << HALF) - 1) != 0
    stamps = version >> HALF, version_now >> HALF
    stamped = (stamps[0] != 0) & (stamps[1] != 0)
    alike = (film >> HALF == film_now >> HALF) & (moved | (stamps[0] == stamps[1]))
    return unknown | np.where(stamped, alike, ~moved), moved & ~unknown

"""What scores/ holds already, and which of its rows are still of the films and times that the input has now."""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from actors.core.stage import Row
from actors.curation.sources.origin import moved, same_film, same_times, times, with_times
from actors.curation.tables import ORIGIN, strings
from pipelines.curation.settings import CurationConfig
from pipelines.curation.sources.input import Video

UNMEASURED, AGAIN, FAILED, SOUND = range(4)
"""States of a row: too long for frames.max then and not now; failed, to be tried again or not; sound."""
Origin = tuple[int, int]
"""`film` and `version` of a row; zeros where an earlier version wrote it."""
Rows = dict[str, int | list[int]]
"""Numbers of the rows of a video by scene_id, "" for the film's own."""


@dataclass
class Left:
    """What a video has left to do."""

    have: set[str] = field(default_factory=set)
    """Ids of scenes that have a row which counts."""
    finished: bool = False
    """Whether a film of unknown scenes was decoded to its end and all its scenes have a row."""
    stale: list[tuple[str, Origin]] = field(default_factory=list)
    """Rows that are of another film or other times: scene_id, origin."""
    captions: dict[str, str] = field(default_factory=dict)
    """Captions of the input that are others than those of the rows, by scene_id."""
    film_changed: bool = False
    """Whether it has rows of another film, and none of this one."""
    scenes_changed: int = 0
    """Scenes of the same film that have rows with other times only."""
    gone: int = 0
    """Scenes that have rows and are no longer in the input."""
    moved: bool = False
    """Whether the film lay elsewhere when it was measured."""


class Done:
    """Rows of scores/ by video and scene: where they come from, and whether they are sound."""

    def __init__(
        self,
        tables: Iterable[pa.Table],
        config: CurationConfig,
        again: frozenset[str] = frozenset(),
        until: float = math.inf,
    ) -> None:
        """tables: rows with the columns CAPTIONED. again: error codes whose rows do not count as done, where they were
        written before that time."""
        self._keep = config.videos.changed == "keep"
        self._divided = config.windows.named
        self._rows: dict[str, Rows] = {}
        parts: list[list[np.ndarray]] = []
        count = 0
        for part in tables:
            keys = zip(part["video_id"].to_pylist(), part["scene_id"].to_pylist(), strict=True)
            for number, (video_id, scene_id) in enumerate(keys, count):
                rows = self._rows.setdefault(video_id, {})
                before = rows.get(scene_id)
                if before is None:
                    rows[scene_id] = number
                elif isinstance(before, int):
                    rows[scene_id] = [before, number]
                else:
                    before.append(number)
            count += len(part)
            parts.append(_columns(part, config.frames.max, again, until))
        kinds = (np.uint8, np.float64, np.int64, np.int64, np.int64, np.int64)
        whole: list[Any] = [
            np.concatenate([np.empty(0, kind), *(part[number] for part in parts)]) for number, kind in enumerate(kinds)
        ]
        # Single values of a memoryview come faster than those of an array.
        self._state, self._written, self._scenes, self._caption, self._film, self._version = map(memoryview, whole)

    def left(self, video: Video) -> Left:
        """What a video of the input has left to do."""
        rows, left = self._rows.get(video.video_id), Left()
        if not rows:
            return left
        now = video.source.film, video.source.version
        film = self._counts(rows.get("", []), now, None, "", left)
        if video.spans is None:
            for scene_id, numbers in rows.items():
                best = self._counts(numbers, now, None, scene_id, left) if scene_id else None
                if best is not None and self._state[best] >= FAILED:
                    left.have.add(scene_id)
        else:
            self._named(video, rows, now, left)
        if film is not None and self._state[film] >= FAILED:
            # More than a failed pass had: it was tried again, and ended before its film was.
            have, count = len(left.have), self._scenes[film]
            left.finished = have >= count if self._state[film] == SOUND else have == count
        left.film_changed = film is None and not left.have and any(not same_film(old, now) for _, old in left.stale)
        return left

    def shortened(self, task: Row) -> Row | None:
        """A row of plan/todo without the scenes that have been measured since; None where nothing is left.

        The input is the one that it was planned from.
        """
        rows, now, nothing = self._rows.get(task["video_id"], {}), (task["film"], task["version"]), Left()
        if task["spans"] is None:
            have = [
                scene_id
                for scene_id, numbers in rows.items()
                if scene_id and self._counts_as_done(numbers, now, None, nothing)
            ]
            return task | {"skip": json.dumps(sorted(have))}
        spans = []
        for span in json.loads(task["spans"]):
            missing = []
            for scene in span["scenes"]:
                code = times(span["start_s"], span["end_s"], scene["first"], scene["end"])
                numbers = rows.get(scene["scene_id"], [])
                if not self._counts_as_done(numbers, now, code, nothing):
                    missing.append(scene)
            if missing:
                spans.append(span | {"scenes": missing})
        return task | {"spans": json.dumps(spans)} if spans else None

    def _counts_as_done(self, numbers: int | list[int], now: Origin, code: int | None, left: Left) -> bool:
        best = self._counts(numbers, now, code, "", left)
        return best is not None and self._state[best] >= FAILED

    def _named(self, video: Video, rows: Rows, now: Origin, left: Left) -> None:
        """The scenes that the input names, and those that it names no more."""
        known = {""}
        windows: dict[str, list[str]] = {}
        if self._divided:
            windows = _windows(rows, {scene.scene_id for span in video.spans or () for scene in span.scenes})
        for span in video.spans or ():
            for scene in span.scenes:
                known.add(scene.scene_id)
                numbers = rows.get(scene.scene_id)
                if numbers is None:
                    continue
                code, before = times(span.start_s, span.end_s, scene.first, scene.end), len(left.stale)
                parts = 0
                for name in windows.get(scene.scene_id, ()):
                    known.add(name)
                    part = self._counts(rows[name], now, code, name, left)
                    parts += part is not None and self._state[part] >= FAILED
                best = self._counts(numbers, now, code, scene.scene_id, left)
                if best is None:
                    left.scenes_changed += any(same_film(old, now) for _, old in left.stale[before:])
                    continue
                if self._state[best] >= FAILED and parts >= self._scenes[best]:
                    left.have.add(scene.scene_id)
                if self._caption[best] != hash(scene.caption):
                    left.captions[scene.scene_id] = scene.caption
        for scene_id in rows.keys() - known:
            left.gone += 1
            left.stale += [(scene_id, self._origin(number)) for number in _listed(rows[scene_id])]

    def _counts(self, numbers: int | list[int], now: Origin, code: int | None, scene_id: str, left: Left) -> int | None:
        """The row of a scene that counts: of those of this film and these times the sound one, else the last."""
        version = now[1] if code is None else with_times(now[1], code)
        if isinstance(numbers, int) and self._film[numbers] == now[0] and self._version[numbers] == version:
            return numbers
        best: int | None = None
        for number in _listed(numbers):
            old = self._origin(number)
            if not (self._keep or (same_film(old, now) and (code is None or same_times(old, code)))):
                left.stale.append((scene_id, old))
                continue
            left.moved = left.moved or moved(old, now)
            if best is None or self._order(number) > self._order(best):
                best = number
        return best

    def _origin(self, number: int) -> Origin:
        return self._film[number], self._version[number]

    def _order(self, number: int) -> tuple[int, float]:
        # Of failed ones the last counts, whether it is to be tried again or not.
        return (0, 1, 1, 2)[self._state[number]], self._written[number]


def _windows(rows: Rows, named: set[str]) -> dict[str, list[str]]:
    """Ids of windows of the scenes that the input names, by the scene's."""
    found: dict[str, list[str]] = {}
    for name in rows:
        scene_id, mark, number = name.rpartition("_w")
        if mark and number.isdecimal() and scene_id in named and name not in named:
            found.setdefault(scene_id, []).append(name)
    return found


def _listed(numbers: int | list[int]) -> list[int]:
    return [numbers] if isinstance(numbers, int) else numbers


def states(rows: pa.Table, most_frames: int, again: frozenset[str], until: float) -> np.ndarray:
    """The state of each row, uint8; again, until: as `Done`."""
    written, frames = rows["written"].to_numpy(), rows["no_frames"].to_numpy()
    unknown = np.isnan(rows["mean_rgb_diff"].to_numpy().astype(np.float32))
    error, scene_id = (rows[name].to_pandas(types_mapper=strings) for name in ("error", "scene_id"))
    failed, scene = (error != "").to_numpy(bool), (scene_id != "").to_numpy(bool)
    open_ = scene & (frames >= 2) & (frames <= most_frames) & unknown
    tried = error.isin(again).to_numpy(bool) & (written < until)
    state = np.where(open_, UNMEASURED, SOUND).astype(np.uint8)
    return np.where(failed, np.where(tried, AGAIN, FAILED), state).astype(np.uint8)


def _columns(part: pa.Table, most_frames: int, again: frozenset[str], until: float) -> list[np.ndarray]:
    """State, written, scenes, hash of the caption, and origin of the rows of a part."""
    captions = np.array([hash(caption or "") for caption in part["caption"].to_pylist()], np.int64)
    numbers = [_whole(part[name]) for name in ("scenes", *ORIGIN)]
    written = part["written"].to_numpy()
    return [states(part, most_frames, again, until), written, numbers[0], captions, *numbers[1:]]


def _whole(column: pa.ChunkedArray) -> np.ndarray:
    """Numbers, 0 where there is none."""
    return (column.cast(pa.int64()).fill_null(0) if column.null_count else column).to_numpy()

"""What the input asks for, less what is done: one row per video that has something left to do."""

import json
import math
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from actors.core.catalog import Replacement
from actors.core.stage import Row
from actors.core.store import Store
from actors.curation.cut import scene_row
from actors.curation.tables import PLAN_AGAIN, SCORES, VIDEOS
from pipelines.curation.input import Video, read_videos
from pipelines.curation.settings import CurationConfig, measured_by

PART_ROWS = 512
"""Videos in one part of the plan."""
TODO = pa.schema(
    [
        ("video_index", pa.int64()),
        ("video_id", pa.string()),
        ("url", pa.string()),
        ("spans", pa.string()),
        ("skip", pa.string()),
    ]
)
"""A video to decode: its spans with the scenes still missing, or null and the ids of shots that need no row (JSON)."""


class Done:
    """What scores/ holds already: ids of scenes per video, and how many a film turned out to have."""

    def __init__(
        self, store: Store, config: CurationConfig, again: frozenset[str] = frozenset(), before: float = math.inf
    ) -> None:
        """again: error codes whose rows do not count as done, where they were written before that time."""
        self._scenes: dict[str, set[str]] = {}
        self._films: dict[str, int] = {}
        self._failed_films: dict[str, int] = {}
        failed: dict[tuple[str, str], tuple[float, str, int]] = {}
        columns = ["video_id", "scene_id", "error", "no_frames", "mean_rgb_diff", "scenes", "written"]
        for part in store.read_parts("scores", columns):
            rows = (part.column(name).to_pylist() for name in columns)
            for video_id, scene_id, error, frames, difference, scenes, written in zip(*rows, strict=True):
                if error:
                    key = video_id, scene_id
                    failed[key] = max(failed.get(key, (0.0, "", 0)), (written, error, scenes))
                elif not scene_id:
                    self._films[video_id] = scenes
                # A scene with too many frames for frames.max was not measured; under a higher bound it is.
                elif not (2 <= frames <= config.frames.max and math.isnan(difference)):
                    self._scenes.setdefault(video_id, set()).add(scene_id)
        # Parts come in no order: as in `rows_now`, of rows that were made again a sound one counts, else the last.
        for (video_id, scene_id), (written, error, scenes) in failed.items():
            if error in again and written < before:
                continue
            if scene_id:
                self._scenes.setdefault(video_id, set()).add(scene_id)
            else:
                self._failed_films[video_id] = scenes

    def scenes(self, video_id: str) -> set[str]:
        """Ids of the video's scenes that have a row."""
        return self._scenes.get(video_id, set())

    def film(self, video_id: str) -> bool:
        """Whether a film of unknown scenes was decoded to its end and all its scenes have a row."""
        have = len(self.scenes(video_id))
        if video_id in self._films:
            return have >= self._films[video_id]
        # More than a failed pass had: it was tried again, and ended before its film was.
        return have == self._failed_films.get(video_id)


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


def make_plan(
    config: CurationConfig, again: frozenset[str] = frozenset(), dry: bool = False, before: float = math.inf
) -> Plan:
    """Read and check the whole input, and write plan/; dry: write nothing.

    again: error codes whose rows are to be made again, those written before that time. Memory: one video of the input,
    and the ids of what is done.
    Raises MetadataError or ValueError where the input is wrong, before anything is written over.
    """
    store = Store(config.output)
    done = Done(store, config, again, before)
    videos = scenes = films = todo_scenes = 0
    remote = False
    with Replacement(store.root, list(_TABLES), PLAN_AGAIN) as new:
        tables = {name: _Writer(new, name, schema, dry) for name, schema in _TABLES.items()}
        for video in read_videos(config.input, config.videos.start, config.videos.end):
            videos += 1
            films += video.spans is None
            cuttable = sum(len(span.scenes) for span in video.spans or ())
            scenes += cuttable + sum(bool(row.scene_id) for row in video.rejected)
            # The scenes of a video are those of the first that has its id, which may lie outside the range.
            if video.spans or {rejected.code for rejected in video.rejected} != {"duplicate_id"}:
                named = -1 if video.spans is None else cuttable
                tables["plan/videos"].add({"video_index": video.index, "video_id": video.video_id, "scenes": named})
            for rejected in video.rejected:
                tables["plan/rejected"].add(_rejected(video, rejected))
            task, count = _left(video, done)
            if task is not None:
                tables["plan/todo"].add(task)
                todo_scenes += count
                remote = remote or not video.url.startswith(("/", "file://", "s3://"))
        for table in tables.values():
            table.flush()
        plan = Plan(videos, scenes, films, tables["plan/todo"].rows, todo_scenes, remote)
        if not dry:
            new.commit(asdict(plan))
            settings = {"measured_by": measured_by(config), "settings": asdict(config)}
            store.write_json(settings, "plan", "settings.json")
    return plan


def _left(video: Video, done: Done) -> tuple[Row | None, int]:
    have = done.scenes(video.video_id)
    task = {"video_index": video.index, "video_id": video.video_id, "url": video.url, "spans": None, "skip": "[]"}
    if video.spans is None:
        return (None if done.film(video.video_id) else task | {"skip": json.dumps(sorted(have))}), 0
    spans = []
    for span in video.spans:
        missing = [vars(scene) | {"clip_id": span.clip_id} for scene in span.scenes if scene.scene_id not in have]
        if missing:
            spans.append({"start_s": span.start_s, "end_s": span.end_s, "scenes": missing})
    return (task | {"spans": json.dumps(spans)} if spans else None), sum(len(span["scenes"]) for span in spans)


def _rejected(video: Video, rejected: Any) -> Row:
    about = {name: getattr(rejected, name) for name in ("clip_id", "scene_id", "ordinal", "caption")}
    row = scene_row(about, rejected.code, rejected.message)
    return row | {"video_index": video.index, "video_id": video.video_id, "uri": video.url, "step": "plan"}


_TABLES = {"plan/todo": TODO, "plan/videos": VIDEOS, "plan/rejected": SCORES}


class _Writer:
    """Gathers rows into parts of a table of the new plan."""

    def __init__(self, new: Replacement, folder: str, schema: pa.Schema, dry: bool) -> None:
        self._new, self._folder, self._schema, self._dry = new, folder, schema, dry
        self._pending: list[Row] = []
        self.rows = 0

    def add(self, row: Row) -> None:
        self._pending.append(row)
        self.rows += 1
        if len(self._pending) == PART_ROWS:
            self.flush()

    def flush(self) -> None:
        """Write what has been gathered."""
        if self._pending and not self._dry:
            table = pa.Table.from_pylist(self._pending, schema=self._schema)
            number = len(self._new.parts(self._folder))
            self._new.add(self._new.writer.write(self._folder, number, table))
        self._pending = []

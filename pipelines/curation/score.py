"""Measure what the plan says is missing.

read     task     1 -> N: a part of the plan, a row per video
fetch    task     1 -> 1: http(s) sources end in videos/; left out where there are none
cut      task     1 -> N: one decode in a child process; a row per scene, with its frames, and one for the film
measure  actors   1 -> 1: the features that need a model; the last one drops the frames
write    task     N -> 1: whole parts of scores/ and thumbnails/; a row of counts
"""

import json
import logging
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.data import Dataset

from actors.core import storage
from actors.core.child import CHILD, DECODE_ATTEMPTS, ChildFault
from actors.core.stage import Batch, Row, Stage
from actors.core.store import Store
from actors.curation.cut import cut, film_row, scene_row
from actors.curation.fetch import fetch
from actors.curation.frame_scorer import FrameScorer
from pipelines.core.progress import Progress, tracked
from pipelines.core.ray_data import fitted, in_blocks, ray_actors, ray_task, set_context
from pipelines.curation.plan import Plan
from pipelines.curation.settings import CurationConfig
from pipelines.curation.tables import SCORES, THUMBNAILS

log = logging.getLogger(__name__)

CUT_ROWS = 4
"""Scenes that leave the decode at once, at most 40 MB of frames."""
READ = Stage(num_cpus=0.1)
"""Reading a part of the plan."""


@dataclass
class Measured:
    """What one run of the stages has done."""

    films: int = 0
    scenes: int = 0
    failed: int = 0
    seconds: float = 0.0


def score(config: CurationConfig, plan: Plan) -> Measured:
    """Run the stages over plan/todo until every row is in scores/."""
    stages = fitted(*stages_of(config, plan.remote), config.autoscaling)
    set_context()
    rows = _todo(config, stages)
    for step in (_fetched, _cut, _measured, _written):
        rows = step(rows, config, stages)
    measured, started = Measured(), time.monotonic()
    batches = rows.iter_batches(batch_size=None, prefetch_batches=0)
    # Shot detection finds scenes that no plan counts.
    progress = Progress("score", None if plan.films else plan.todo_scenes, "scenes")
    for counts in tracked(batches, progress, lambda counts: int(counts["scenes"].sum())):
        measured.films += int(counts["films"].sum())
        measured.scenes += int(counts["scenes"].sum())
        measured.failed += int(counts["failed"].sum())
        measured.seconds = time.monotonic() - started
    return measured


def fetch_all(config: CurationConfig, plan: Plan) -> Counter[str]:
    """Only fetch what the plan names; returns how many videos got which error code, "" for none."""
    set_context()
    stages = fitted(*stages_of(config, plan.remote), config.autoscaling)
    fetched = _fetched(_todo(config, stages), config, stages)
    codes: Counter[str] = Counter()
    batches = fetched.iter_batches(batch_size=None, prefetch_batches=0)
    for batch in tracked(batches, Progress("fetch", plan.todo, "videos"), lambda batch: len(batch["video_id"])):
        codes.update(map(str, batch.get("error", [""] * len(batch["video_id"]))))
    return codes


def stages_of(config: CurationConfig, remote: bool) -> tuple[dict[str, Stage], dict[str, Stage]]:
    """The actor pools and the tasks that a run has, by name.

    RAFT shares the VAE's workers where both run on the same kind of device, so that frames reach it once.
    """
    pools: dict[str, Stage] = {"latents": config.latents}
    if config.motion.flow == "raft" and bool(config.motion.num_gpus) != bool(config.latents.num_gpus):
        pools["motion"] = config.motion
    tasks: dict[str, Stage] = {"read": READ, "video": config.video, "write": config.write}
    return pools, tasks | ({"fetch": config.fetch} if remote else {})


def _todo(config: CurationConfig, stages: dict[str, Stage]) -> Dataset:
    store = Store(config.output)
    parts = ray.data.from_items([{"part": name} for name in store.parts("plan/todo")])
    read = parts.flat_map(partial(_read_part, store=store), **ray_task(stages["read"]))
    return in_blocks(read, 1, stages["read"])


def _read_part(row: Row, store: Store) -> list[Row]:
    table = store.read_part("plan/todo", row["part"])
    if table is None:
        raise RuntimeError(f"{store.uri('plan/todo', row['part'])} is torn; run the same command again")
    return [task | {"spans": task["spans"] or ""} for task in table.to_pylist()]


def _fetched(tasks: Dataset, config: CurationConfig, stages: dict[str, Stage]) -> Dataset:
    if "fetch" not in stages:
        return tasks
    return tasks.map(partial(fetch_video, config=config), **ray_task(stages["fetch"]))


def fetch_video(task: Row, config: CurationConfig) -> Row:
    """Fetch one video of the plan; adds uri, error, message, attempts, fetch_s."""
    started = time.monotonic()
    got = fetch(task["video_id"], task["url"], Store(config.output).uri("videos"), config.fetch)
    about = {"uri": got.uri, "error": got.code, "message": got.message, "attempts": got.attempts}
    return {**task, **about, "fetch_s": time.monotonic() - started}


def _cut(tasks: Dataset, config: CurationConfig, stages: dict[str, Stage]) -> Dataset:
    cut: Any = partial(cut_videos, config=config)
    return tasks.map_batches(cut, batch_size=1, **ray_task(stages["video"]))


def cut_videos(batch: Batch, config: CurationConfig) -> Iterator[Batch]:
    """Decode the videos of a batch, one by one: yields batches of rows with columns of SCORES, frames, thumbnail.

    A video that has been cut ends with its film's row, whatever went wrong; every scene that was asked for has one.
    """
    rows: list[Row] = []
    for i in range(len(batch["video_id"])):
        for row in _cut_video({name: column[i] for name, column in batch.items()}, config):
            rows.append(row)
            # Columns for a row alone would cost as much as its resizing; many rows would hold up the next stage.
            if len(rows) == CUT_ROWS:
                yield _columns(rows, config.frames.size)
                rows = []
    if rows:
        yield _columns(rows, config.frames.size)


def _cut_video(task: Row, config: CurationConfig) -> Iterator[Row]:
    spans = json.loads(task["spans"]) if task["spans"] else None
    skip = set(json.loads(task["skip"]))
    uri = task.get("uri", task["url"])
    cuts = {scene["scene_id"]: scene for span in spans or [] for scene in span["scenes"]}
    video = {"video_index": task["video_index"], "video_id": task["video_id"], "uri": uri}
    fetched = {"fetch_s": task.get("fetch_s", 0.0), "attempts": task.get("attempts", 1)}

    def finished(row: Row, step: str, **more: Any) -> Row:
        scene = cuts.get(row["scene_id"], {"first": 0, "end": -1})
        about = {**video, "first": scene["first"], "end": scene["end"], "step": step if row["error"] else ""}
        return {**row, **about, "attempts": fetched["attempts"], **more}

    def lost(code: str, message: str, step: str, attempts: int) -> Iterator[Row]:
        """Rows for all that was asked for and has none yet."""
        for scene_id, scene in cuts.items():
            if scene_id not in skip:
                about = {name: scene[name] for name in ("clip_id", "scene_id", "ordinal", "caption")}
                yield finished(scene_row(about, code, message), step, attempts=attempts)
        # Where shots are to be found, it is the film that failed; its scenes are those that were found before.
        error = ("", "") if spans is not None else (code, message)
        yield finished(
            film_row(None, len(cuts) or len(skip), *error), step, attempts=attempts, fetch_s=fetched["fetch_s"]
        )

    if task.get("error"):
        yield from lost(task["error"], task["message"], "fetch", fetched["attempts"])
        return
    try:
        # Opened here too: what may not be read is known before a child is busy with it.
        with storage.local(uri) as path, path.open("rb"):
            rows = CHILD.stream(
                cut,
                *(str(path), task["video_id"], spans, frozenset(skip)),
                *(config.video, config.frames, config.shots, config.motion),
                stall_s=config.video.stall_s,
                timeout_s=config.video.timeout_s,
                attempts=DECODE_ATTEMPTS,
                key=itemgetter("scene_id"),
            )
            film: Row = {}
            while True:
                try:
                    row = next(rows)
                except StopIteration as end:
                    yield finished(film, "cut", cut_s=end.value, fetch_s=fetched["fetch_s"])
                    return
                if row["scene_id"]:
                    skip.add(row["scene_id"])
                    yield finished(row, "cut")
                else:
                    film = row
    except ChildFault as fault:
        yield from lost(fault.code, str(fault), "cut", fault.attempts)
    except FileNotFoundError:
        yield from lost("not_found", f"there is no {uri}", "fetch", 1)
    except PermissionError as error:
        yield from lost("forbidden", str(error), "fetch", 1)


def _columns(rows: list[Row], size: int) -> Batch:
    nothing = np.zeros((0, size, size, 3), np.uint8)
    frames = np.empty(len(rows), object)
    # One by one: numpy would stack frames of one shape.
    for i, row in enumerate(rows):
        frames[i] = nothing if row["frames"] is None else row["frames"]
    # As objects: numpy's own bytes lose zeros at their end. Never null, so that all batches have one type.
    batch: Batch = {name: np.array([row[name] or b"" for row in rows], object) for name in ("thumbnail", "phash")}
    batch["frames"] = frames
    for column in SCORES:
        if column.name in batch:
            continue
        kind = column.type.to_pandas_dtype()
        missing = "" if pa.types.is_string(column.type) else 0
        values = [row.get(column.name, missing) for row in rows]
        batch[column.name] = np.array(values, object if kind is np.object_ else kind)
    return batch


def _measured(rows: Dataset, config: CurationConfig, stages: dict[str, Stage]) -> Dataset:
    with_raft = config.motion if config.motion.flow == "raft" else None
    if "motion" in stages:
        rows = _scored(rows, stages["motion"], (None, with_raft), keep_frames=True)
        with_raft = None
    return _scored(rows, stages["latents"], (config.latents, with_raft), keep_frames=False)


def _scored(rows: Dataset, stage: Stage, models: tuple[Any, Any], keep_frames: bool) -> Dataset:
    arguments = [*models, stage.num_cpus, stage.num_gpus > 0, keep_frames]
    return rows.map_batches(
        FrameScorer, fn_constructor_args=arguments, batch_size=stage.batch_size, **ray_actors(stage)
    )


def _written(rows: Dataset, config: CurationConfig, stages: dict[str, Stage]) -> Dataset:
    write: Any = partial(write_rows, store=Store(config.output))
    return rows.map_batches(write, batch_size=config.write.batch_size, **ray_task(stages["write"]))


def write_rows(batch: Batch, store: Store) -> Batch:
    """Write rows as a part of scores/ and one of thumbnails/; returns how many films, scenes and failures they were."""
    hashes = np.array([value or None for value in batch["phash"]], object)
    written = np.full(len(batch["scene_id"]), time.time())
    values = {**batch, "phash": hashes, "written": written}
    table = pa.table({name: pa.array(values[name], SCORES.field(name).type) for name in SCORES.names}, schema=SCORES)
    seen = np.array([len(thumbnail) > 0 for thumbnail in batch["thumbnail"]], bool)
    thumbnails = pa.table({name: pa.array(batch[name][seen], THUMBNAILS.field(name).type) for name in THUMBNAILS.names})
    keys = [f"{v}/{s}/{e}" for v, s, e in zip(batch["video_id"], batch["scene_id"], batch["error"], strict=True)]
    # Scores last: rows are done when they are there.
    store.write_part("thumbnails", thumbnails, keys)
    store.write_part("scores", table, keys)
    films = batch["scene_id"] == ""
    failed = batch["error"] != ""
    return {"films": np.array([films.sum()]), "scenes": np.array([(~films).sum()]), "failed": np.array([failed.sum()])}

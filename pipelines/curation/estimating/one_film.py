"""One film goes through all steps of a run in one process, and what that takes is measured."""

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from actors.core import machine
from actors.core.addresses import is_s3
from actors.core.stage import Batch, Row
from actors.core.store import Store
from actors.core.temporary import TemporaryFolder
from actors.curation.cutting.videos import cut_videos, fetch_video, write_rows
from actors.curation.exporting.export import ExportJob, export_films
from actors.curation.features.frame_scorer import FrameScorer
from actors.curation.measuring.measured import Task
from actors.curation.measuring.scoring import PassScorer
from actors.curation.selecting.select_settings import SelectConfig
from pipelines.curation.cutting.plan import LOCAL, write_plan_of
from pipelines.curation.cutting.score import in_pools
from pipelines.curation.estimating.duration import EXPORT, VIDEO
from pipelines.curation.kept import kept_scenes
from pipelines.curation.selecting.select import select
from pipelines.curation.settings import CurationConfig

PICTURES = ("thumbnails", "keyframes")
"""Tables of pictures."""


@dataclass
class Cost:
    """What one film takes."""

    cpu_s: float = 0.0
    """CPU-seconds to fetch and to measure it, of all processes, and to hand its rows from worker to worker."""
    gpu_s: float = 0.0
    """Seconds at work on GPUs, times the share of a GPU."""
    work: dict[str, float] = field(default_factory=dict)
    """Seconds that one worker of each stage is at work on it."""
    seconds: float = 0.0
    """Seconds that all steps take one after the other."""
    whole_cpu_s: float = 0.0
    """CPU-seconds of all that was done to measure it, more than a run does."""
    rows: int = 0
    """Rows of scores/."""
    scenes: int = 0
    kept: int = 0
    """Scenes that the rules keep which look at one scene alone."""
    row_bytes: int = 0
    """Bytes of its rows and pictures, without what a part has anyway."""
    film_bytes: int = 0
    """Bytes of its download."""
    clip_cpu_s: float = 0.0
    clip_bytes: int = 0
    clip_files: int = 0
    reads: int = 0
    """Requests that read it from S3, each time that it is decoded."""
    tables: int = 0
    """Tables that it has rows in."""
    part_bytes: int = 0
    """Bytes of a part of scores/ with one row: what each part has anyway."""
    error: str = ""
    """Why it failed, if it did."""


class OneFilm:
    """Measures films one by one; holds what a run's workers hold."""

    def __init__(self, config: CurationConfig, families: list[Task], export: bool) -> None:
        began = time.monotonic()
        raft = config.motion if config.motion.flow == "raft" else None
        cpus, gpu = config.latents.num_cpus, config.latents.num_gpus > 0
        together = raft is None or bool(raft.num_gpus) == gpu
        self._config, self._export, self._families = config, export, families
        self._actors: list[tuple[str, Callable[[Batch], Batch], float]] = []
        """Name of the pool, worker and its GPUs, in the order of a run."""
        for name, some in in_pools(families).items():
            scorer, gpus = PassScorer(some, config.frames.interval_ms / 1000), max(one.config.num_gpus for one in some)
            self._actors.append((name, scorer, gpus))
        if raft is not None and not together:
            scorer = FrameScorer(None, raft, raft.num_cpus, raft.num_gpus > 0, keep_frames=True)
            self._actors.append(("motion", scorer, raft.num_gpus))
            raft = None
        scorer = FrameScorer(config.latents, raft, cpus, gpu, keep_frames=False)
        self._actors.append(("latents", scorer, config.latents.num_gpus))
        # With the CPU-seconds in which Ray starts a process.
        self.start = machine.cpu_s(), time.monotonic() - began
        """CPU-seconds and seconds until all is loaded."""

    def started(self, smallest: Row) -> tuple[float, float]:
        """CPU-seconds and seconds until all is loaded; measures a film twice, since the first pays for imports."""
        first, later = self.measured(smallest), self.measured(smallest)
        cpu_s, seconds = self.start
        return cpu_s + max(0.0, first.cpu_s - later.cpu_s), seconds + max(0.0, first.seconds - later.seconds)

    def measured(self, task: Row) -> Cost:
        """Measure the film of a row of plan/todo, in a temporary folder."""
        config, cost, task = self._config, Cost(), task | {"spans": task["spans"] or ""}
        with TemporaryFolder() as folder:
            store = Store(str(folder))
            began, before = time.monotonic(), machine.cpu_s()
            with _reads(task["url"], cost):
                if not task["url"].startswith(LOCAL):
                    with _at_work(cost, "fetch"):
                        task = fetch_video(task, store.uri("videos"), config.fetch)
                self._measure(task, store, cost)
            cost.cpu_s = machine.cpu_s() - before
            cost.film_bytes = _bytes(folder / "videos")[0]
            self._count_parts(store, cost)
            if self._export and cost.scenes:
                self._write_clips(task, store, cost)
                (clips, files), (frames, more) = _bytes(folder / "clips"), _bytes(folder / "frames")
                cost.clip_bytes, cost.clip_files = clips + frames, files + more
            cost.seconds, cost.whole_cpu_s = time.monotonic() - began, machine.cpu_s() - before
        return cost

    def _measure(self, task: Row, store: Store, cost: Cost) -> None:
        config = self._config
        rows = _each(cut_videos(_column(task), config.cutting), cost, VIDEO, config.video.num_gpus)
        written = []
        for batch in _gathered(rows, config.latents.batch_size):
            for name, actor, gpus in self._actors:
                with _at_work(cost, name, gpus):
                    batch = _handed_on(actor(batch))
            written.append(batch)
        for batch in _gathered(written, config.write.batch_size):
            with _at_work(cost, "write"):
                counts = write_rows(batch, store, self._families)
            cost.rows += len(batch["scene_id"])
            cost.scenes += int(counts["scenes"][0])
            films = batch["scene_id"] == ""
            cost.error = next((str(code) for code in batch["error"][films] if code), cost.error)

    def _count_parts(self, store: Store, cost: Cost) -> None:
        folders = [*PICTURES, *(task.folder for task in self._families)]
        sizes = [_bytes(Path(store.uri(folder)))[0] for folder in folders]
        scores, parts = _bytes(Path(store.uri("scores")))
        cost.tables = 1 + sum(size > 0 for size in sizes)
        part = store.read_part("scores", store.parts("scores")[0])
        assert part is not None
        store.write_table(part.slice(0, 1), "one.parquet")
        cost.part_bytes = os.path.getsize(store.uri("one.parquet"))
        cost.row_bytes = max(0, scores + sum(sizes) - parts * cost.part_bytes)

    def _write_clips(self, task: Row, store: Store, cost: Cost) -> None:
        """Write the clips of scenes that pass the rules on what every scene has."""
        given = self._config.select
        rules = {name: getattr(given, name) for name in ("min_velocity", "max_rgb_diff", "max_hold_s", "fraction")}
        config = replace(self._config, output=store.root, select=SelectConfig(**rules))
        write_plan_of(config, task)
        select(config)
        kept = list(kept_scenes(store))
        cost.kept = len(kept)
        if not kept:
            return
        interval_ms = config.frames.interval_ms if config.export.frames else None
        job = ExportJob(store, config.export, config.video, interval_ms, config.cutting.frames.look)
        film = {"video_id": kept[0]["video_id"], "uri": kept[0]["uri"], "wanted": json.dumps(kept)}
        spent = machine.cpu_s()
        with _reads(task["url"], cost), _at_work(cost, EXPORT, config.export.num_gpus):
            for _ in export_films(_column(film), job):
                pass
        cost.clip_cpu_s = machine.cpu_s() - spent


def _column(row: Row) -> Batch:
    batch: Batch = {}
    for name, value in row.items():
        batch[name] = np.empty(1, object)
        batch[name][0] = value
    return batch


def _gathered(batches: Iterable[Batch], size: int) -> Iterator[Batch]:
    """The same rows, so many at a time."""
    held: list[Batch] = []
    for batch in batches:
        held.append(batch)
        while held and sum(len(one["scene_id"]) for one in held) >= size:
            whole = {name: np.concatenate([one[name] for one in held]) for name in held[0]}
            yield {name: column[:size] for name, column in whole.items()}
            rest = {name: column[size:] for name, column in whole.items()}
            held = [rest] if len(rest["scene_id"]) else []
    if held:
        yield {name: np.concatenate([one[name] for one in held]) for name in held[0]}


@contextmanager
def _at_work(cost: Cost, stage: str, gpus: float = 0.0) -> Iterator[None]:
    """Count the seconds meanwhile as those of a stage; gpus: what its worker holds."""
    began = time.perf_counter()
    yield
    seconds = time.perf_counter() - began
    cost.work[stage] = cost.work.get(stage, 0.0) + seconds
    cost.gpu_s += gpus * seconds


def _each(batches: Iterator[Batch], cost: Cost, stage: str, gpus: float) -> Iterator[Batch]:
    """The same batches, as the next stage gets them; making each is the work of a stage."""
    while True:
        with _at_work(cost, stage, gpus):
            batch = next(batches, None)
            if batch is None:
                return
            batch = _handed_on(batch)
        yield batch


def _handed_on(batch: Batch) -> Batch:
    """A batch as it comes out of Ray's store of objects, where each stage puts what it hands on."""
    import ray
    from ray.data.block import BlockAccessor

    block = ray.get(ray.put(BlockAccessor.batch_to_block(batch)))
    handed: Any = BlockAccessor.for_block(block).to_batch_format("numpy")
    return handed


@contextmanager
def _reads(url: str, cost: Cost) -> Iterator[None]:
    """Count the requests to S3 meanwhile, where the film lies there."""
    if not is_s3(url):
        yield
        return
    from actors.core import s3

    events = s3.client().meta.events

    def count(**_: Any) -> None:
        cost.reads += 1

    events.register("before-send.s3", count)
    try:
        yield
    finally:
        events.unregister("before-send.s3", count)


def _bytes(folder: Path) -> tuple[int, int]:
    """Bytes and number of the files below a folder."""
    sizes = [os.path.getsize(Path(where, name)) for where, _, names in os.walk(folder) for name in names]
    return sum(sizes), len(sizes)

"""Measure what the plan says is missing.

read     task     1 -> N: a part of the plan, a row per video
fetch    task     1 -> 1: http(s) sources end in videos/; left out where there are none
cut      task     1 -> N: one decode in a child process; a row per scene, with its frames, and one for the film
families actors   1 -> 1: the scores that `scores` names, of those that look at frames or key frames
measure  actors   1 -> 1: the features that need a model; the last one drops the frames
write    task     N -> 1: whole parts of scores/, thumbnails/ and keyframes/; a row of counts
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import ray
from ray.data import Dataset

from actors.core.stage import Stage, codes_in
from actors.core.store import Store
from actors.curation.cutting.videos import ALL, Choice, cut_videos, fetch_video, read_tasks, write_rows
from actors.curation.features.frame_scorer import FrameScorer
from actors.curation.measuring.measured import Task
from actors.curation.measuring.scoring import PassScorer
from actors.media.limits import FilmStage
from pipelines.core.deaths import Perseverance, while_it_fits
from pipelines.core.progress import Progress, tracked
from pipelines.core.ray_data import batches, fitted, in_blocks, ray_actors, ray_task, set_context, widened
from pipelines.curation.compact import Compactor
from pipelines.curation.cutting.division import ON_CPUS, Division, divided
from pipelines.curation.cutting.plan import Plan
from pipelines.curation.measuring.measure import passed, pool_of
from pipelines.curation.settings import CurationConfig

log = logging.getLogger(__name__)

ROWS_AT_ONCE = 8
"""Rows with their frames that a worker of families gets, at most 80 MB."""
READ = Stage(num_cpus=0.1)
"""Reading a part of the plan."""
TASK_S, TASKS, VIDEOS = 60, 64, 16
"""A task has as many videos as have so many seconds together, but for less than so many tasks, and so many videos at
most. Ray Data takes 0.1 to 0.2 s to give a worker its next task: a third of what a clip of 4 s takes."""


@dataclass
class Measured:
    """What one run of the stages has done."""

    films: int = 0
    scenes: int = 0
    failed: int = 0
    seconds: float = 0.0


def score(config: CurationConfig, plan: Plan, left: Callable[[], Plan]) -> Measured:
    """Run the stages over plan/todo until every row is in scores/; left: plan what is missing anew.

    A video that kills its workers gets rows with the code crashed_worker, and the run goes on with what is left. Where
    they were at several videos, or the kernel killed them for lack of memory, which others may have taken, each of
    these comes last and alone. Where nodes that are lost end the run of the stages, it goes on, too, once Ray has
    noticed.
    """
    set_context()
    measured, started = Measured(), time.monotonic()
    compactor = Compactor(Store(config.output))
    suspects: dict[int, str] = {}
    again = Perseverance()
    try:
        while plan.todo:
            without = Choice(without=frozenset(suspects))
            if again.tried(partial(_run, config, plan, without, measured, compactor, again.ran)):
                break
            again.pause(measured.films)
            sure = len(again.killed) == 1 and not again.for_memory
            suspects |= dict.fromkeys(again.killed, again.why if sure else "")
            plan = left()
        for suspect, why in sorted(suspects.items()):
            _alone(config, left(), suspect, why, measured, compactor)
        compactor.finish()
    finally:
        measured.seconds = time.monotonic() - started
    return measured


def _alone(
    config: CurationConfig, plan: Plan, suspect: int, why: str, measured: Measured, compactor: Compactor
) -> None:
    """Measure one video by itself, if it is left; where its workers die again, or it is known why it cannot be
    measured, it gets rows that say so."""
    only, again = frozenset([suspect]), Perseverance(ran=True)
    choice = Choice(only, lost=why)
    while not again.tried(partial(_run, config, plan, choice, measured, compactor, again.ran)):
        again.pause(measured.films)
        if again.killed:
            choice = Choice(only, lost=again.why)


def _run(
    config: CurationConfig, plan: Plan, choice: Choice, measured: Measured, compactor: Compactor, again: bool = False
) -> None:
    pools, tasks = stages_of(config, plan.remote and not choice.lost)
    pools |= {name: pool_of(pools[name]) for name in _passed(config)}
    stages = fitted(pools, tasks, config.autoscaling, again)
    if plan.films and not config.autoscaling and not config.video.workers:
        stages["video"] = widened("video", stages, pools, plan.todo)
    stages["video"] = replace(stages["video"], batch_size=together(plan))
    # What is measured alone is not divided.
    divide = ON_CPUS in stages and choice.only is None
    rows = _decoded(config, stages, choice, divided(config, stages, pools) if divide else None)
    # Of a film whose scenes are still to be found, which mostly are a batch at least.
    calls = 1 if choice.only else min(plan.films, plan.todo) + -(-plan.todo_scenes // config.latents.batch_size)
    rows = _measured(_families(rows, config, stages, calls), config, stages, calls)
    rows = _written(rows, config, stages)
    # Shot detection finds scenes that no plan counts.
    progress = Progress("score", None if plan.films else plan.scenes, "scenes")
    if not plan.films:
        progress.resume(plan.scenes - plan.todo_scenes)
    done = batches(rows)
    if not config.autoscaling:
        done = while_it_fits(done, *({name: stages[name] for name in kind} for kind in (pools, tasks)))
    for counts in tracked(done, progress, lambda counts: int(counts["scenes"].sum()), codes_in):
        measured.films += int(counts["films"].sum())
        measured.scenes += int(counts["scenes"].sum())
        measured.failed += codes_in(counts).total()
        compactor.wrote(len(counts["films"]))


def together(plan: Plan) -> int:
    """Videos of a task: more than one where all are short, and none is to be downloaded."""
    if plan.remote or not plan.longest_s:
        return 1
    return max(1, min(VIDEOS, plan.todo // TASKS, int(TASK_S / plan.longest_s)))


def fetch_all(config: CurationConfig, plan: Plan) -> Counter[str]:
    """Only fetch what the plan names; returns how many videos got which error code, "" for none."""
    set_context()
    stages = fitted(*stages_of(config, plan.remote), config.autoscaling)
    fetched = _fetched(_todo(config, stages, ALL), config, stages)
    codes: Counter[str] = Counter()
    done = batches(fetched)
    progress = Progress("fetch", plan.todo, "videos")
    for batch in tracked(done, progress, lambda batch: len(batch["video_id"]), codes_in):
        codes.update(map(str, batch.get("error", [""] * len(batch["video_id"]))))
    return codes


def stages_of(config: CurationConfig, remote: bool) -> tuple[dict[str, Stage], dict[str, Stage]]:
    """The actor pools and the tasks that a run has, by name.

    RAFT shares the VAE's workers where both run on the same kind of device, so that frames reach it once.
    """
    pools: dict[str, Stage] = {"latents": config.latents}
    if config.motion.flow == "raft" and bool(config.motion.num_gpus) != bool(config.latents.num_gpus):
        pools["motion"] = config.motion
    for name, families in _passed(config).items():
        pools[name] = _together([task.config for task in families])
    tasks: dict[str, Stage] = {"read": READ, "video": config.video, "write": config.write}
    if config.cpu_films:
        workers = 0 if config.cpu_films == "auto" else config.cpu_films
        tasks[ON_CPUS] = FilmStage(workers, config.video.num_cpus, memory_gb=config.video.memory_gb)
    return pools, tasks | ({"fetch": config.fetch} if remote else {})


def _todo(config: CurationConfig, stages: dict[str, Stage], choice: Choice) -> Dataset:
    store = Store(config.output)
    parts = ray.data.from_items([vars(part) for part in store.listed("plan/todo")])
    read = parts.flat_map(partial(read_tasks, store=store, choice=choice), **ray_task(stages["read"]))
    return in_blocks(read, stages["video"].batch_size, stages["read"])


def _fetched(tasks: Dataset, config: CurationConfig, stages: dict[str, Stage]) -> Dataset:
    if "fetch" not in stages:
        return tasks
    fetch = partial(fetch_video, folder=Store(config.output).uri("videos"), config=config.fetch)
    return tasks.map(fetch, **ray_task(stages["fetch"]))


def _decoded(
    config: CurationConfig, stages: dict[str, Stage], choice: Choice, division: Division | None = None
) -> Dataset:
    """Rows of the chosen videos; with a division those that GPUs decode, and those that CPUs decode beside them."""
    if division is None:
        return _cut(_fetched(_todo(config, stages, choice), config, stages), config, stages)
    cpus_only = replace(config, video=replace(config.video, num_gpus=0.0))
    video, on_cpus = replace(stages["video"], workers=division.gpus), replace(stages[ON_CPUS], workers=division.cpus)
    # Both download.
    shared = dict(stages)
    if "fetch" in shared:
        shared["fetch"] = replace(shared["fetch"], workers=-(-shared["fetch"].workers // 2))
    ours = replace(choice, share=division.share)
    by_gpus = _decoded(config, shared | {"video": video}, ours)
    return by_gpus.union(_decoded(cpus_only, shared | {"video": on_cpus}, replace(ours, others=True)))


def _cut(tasks: Dataset, config: CurationConfig, stages: dict[str, Stage]) -> Dataset:
    cutting = replace(config.cutting, processes=max(1, int(stages["video"].num_cpus)))
    cut: Any = partial(cut_videos, config=cutting)
    return tasks.map_batches(cut, batch_size=1, **ray_task(stages["video"]))


def _passed(config: CurationConfig) -> dict[str, list[Task]]:
    """The families that are measured while films are decoded, by the pool that they share."""
    return in_pools(passed(config))


def in_pools(tasks: Sequence[Task]) -> dict[str, list[Task]]:
    """Families by the pool that they share: CPUs, GPUs."""
    pools = {
        "families": [task for task in tasks if not task.config.num_gpus],
        "families_on_gpus": [task for task in tasks if task.config.num_gpus],
    }
    return {name: some for name, some in pools.items() if some}


@dataclass(frozen=True)
class _Together(Stage):
    """A pool whose workers hold several families, one after the other at work on the same rows."""

    memory_of_all: float = 0.0

    @property
    def worker_gb(self) -> float:
        return self.memory_of_all


def _together(stages: Sequence[Stage]) -> Stage:
    workers, memory = [stage.workers for stage in stages], sum(stage.worker_gb for stage in stages)
    cpus, gpus = (max(getattr(stage, name) for stage in stages) for name in ("num_cpus", "num_gpus"))
    return _Together(max(workers) if all(workers) else 0, cpus, gpus, batch_size=ROWS_AT_ONCE, memory_of_all=memory)


def _families(rows: Dataset, config: CurationConfig, stages: dict[str, Stage], calls: int) -> Dataset:
    for name, tasks in _passed(config).items():
        stage = stages[name]
        # Where CPUs say how many there may be, all at once would leave none for the films that they wait for.
        by_cpus = not stage.num_gpus and not all(task.config.workers for task in tasks)
        fitting = [replace(task, config=replace(task.config, num_cpus=stage.num_cpus)) for task in tasks]
        rows = rows.map_batches(
            PassScorer,
            fn_constructor_args=[fitting, config.frames.interval_ms / 1000],
            batch_size=stage.batch_size,
            **ray_actors(stage, threads=True, inputs=None if by_cpus else calls),
        )
    return rows


def _measured(rows: Dataset, config: CurationConfig, stages: dict[str, Stage], calls: int) -> Dataset:
    with_raft = config.motion if config.motion.flow == "raft" else None
    if "motion" in stages:
        rows = _scored(rows, stages["motion"], (None, with_raft), calls, keep_frames=True)
        with_raft = None
    return _scored(rows, stages["latents"], (config.latents, with_raft), calls, keep_frames=False)


def _scored(rows: Dataset, stage: Stage, models: tuple[Any, Any], calls: int, keep_frames: bool) -> Dataset:
    arguments = [*models, stage.num_cpus, stage.num_gpus > 0, keep_frames]
    actors = ray_actors(stage, threads=True, inputs=calls)
    return rows.map_batches(FrameScorer, fn_constructor_args=arguments, batch_size=stage.batch_size, **actors)


def _written(rows: Dataset, config: CurationConfig, stages: dict[str, Stage]) -> Dataset:
    write: Any = partial(write_rows, store=Store(config.output), families=passed(config))
    return rows.map_batches(write, batch_size=config.write.batch_size, **ray_task(stages["write"]))

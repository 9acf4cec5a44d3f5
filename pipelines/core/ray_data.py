"""How stages run on Ray: what of them fits the cluster, and with what each is started."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from actors.core.errors import UserError
from actors.core.stage import Batch, Row, Stage, codes_in
from pipelines.core.progress import Progress, tracked

if TYPE_CHECKING:
    from ray.data import Dataset

LazyStage = Callable[[], Stage]
"""A stage as it fits the cluster; asked for where there is work for it, since Ray may have to start for the answer."""

log = logging.getLogger(__name__)

BLOCK_BYTES = 32 << 20
"""Rows go on to the next stage in blocks of about this size: a few scenes with their frames."""


class TooSmallError(UserError):
    """The cluster has no room for one worker of each stage."""


def set_context() -> None:
    """Ray Data's settings for our datasets."""
    import ray

    from pipelines.core.attempts import count_deaths
    from pipelines.core.failed_runs import EndActors

    count_deaths()
    context = ray.data.DataContext.get_current()
    context.custom_execution_callback_classes = [EndActors]
    context.target_max_block_size = BLOCK_BYTES
    context.enable_progress_bars = False
    # A worker's error comes as it is, not as text in one of Ray's.
    context.raise_original_map_exception = True
    # It tells of the memory that a Python process takes before it does anything.
    context.issue_detectors_config.high_memory_detector_config.detection_time_interval_s = -1
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def fit(
    pools: dict[str, Stage],
    tasks: dict[str, Stage],
    cpus: float,
    gpus: float,
    memory_gb: float = math.inf,
    nodes: Sequence[float] = (),
) -> tuple[dict[str, Stage], list[str]]:
    """Scale stages down until one task of each kind runs beside all actors; returns them, and a line for each that
    has fewer workers or less than half of its CPUs.

    Actors that hold every CPU leave none for tasks, and Ray then waits without a word. Raises TooSmallError where the
    GPUs are too few for one worker of each stage, or there is no CPU. memory_gb: what all actors may take. nodes: CPUs
    of each; there is room for a task wherever Ray places the actors.
    """
    asked = {**pools, **tasks}
    fitting = dict(asked)
    if cpus <= 0:
        raise TooSmallError("the cluster has no CPUs for workers: add a node, or let the autoscaler add some")

    def wanted(resource: str) -> float:
        workers = {name: fitting[name].workers if name in pools else 1 for name in fitting}
        return sum(workers[name] * getattr(stage, resource) for name, stage in fitting.items())

    memory = ""
    for resource, there in (("num_gpus", gpus), ("num_cpus", cpus), ("worker_gb", memory_gb)):
        while wanted(resource) > there + 1e-9:
            users = [name for name in pools if fitting[name].workers > 1 and getattr(fitting[name], resource) > 0]
            if not users:
                break
            most = max(users, key=lambda name: fitting[name].workers)
            fitting[most] = replace(fitting[most], workers=fitting[most].workers - 1)
            memory = f", and {memory_gb:.1f} GiB for models" if resource == "worker_gb" else ""
    if wanted("num_gpus") > gpus + 1e-9:
        needs = ", ".join(f"{name} {stage.num_gpus:g}" for name, stage in fitting.items() if stage.num_gpus)
        raise TooSmallError(
            f"one worker of each stage needs more GPUs ({needs}) than there are ({gpus:g}): "
            "let them share with num_gpus below 1, set it to 0, or, where the cluster grows, set autoscaling=true"
        )
    if (share := cpus / wanted("num_cpus")) < 1:
        fitting = {name: replace(s, num_cpus=int(s.num_cpus * share * 1000) / 1000) for name, s in fitting.items()}
    fitting = _unblocked(fitting, pools, nodes)
    return fitting, _changes(asked, fitting, f"{cpus:g} CPUs and {gpus:g} GPUs{memory}")


def _changes(asked: dict[str, Stage], fitting: dict[str, Stage], there: str) -> list[str]:
    """A line for each stage that has fewer workers, or less than half of its CPUs."""
    lines = []
    for name, stage in fitting.items():
        before, changes = asked[name], []
        if stage.workers != before.workers:
            changes.append(f"{stage.workers} workers instead of {before.workers}")
        # CPUs are a share for Ray's planning; a little less of it slows nothing down.
        if stage.num_cpus < before.num_cpus / 2:
            changes.append(f"{stage.num_cpus:g} CPUs per worker instead of {before.num_cpus:g}")
        if changes:
            lines.append(f"{name}: {', '.join(changes)}, to fit {there}")
    return lines


def _unblocked(stages: dict[str, Stage], pools: Collection[str], nodes: Sequence[float]) -> dict[str, Stage]:
    """Stages with fewer actors, or fewer CPUs for each worker, so that `_may_block` holds no longer."""
    while nodes and _may_block(stages, pools, nodes):
        larger = [name for name in pools if stages[name].workers > 1 and stages[name].num_cpus]
        if larger:
            most = max(larger, key=lambda name: stages[name].workers)
            stages = {**stages, most: replace(stages[most], workers=stages[most].workers - 1)}
        else:
            stages = {name: replace(stage, num_cpus=int(stage.num_cpus * 950) / 1000) for name, stage in stages.items()}
    return stages


def _may_block(stages: Mapping[str, Stage], pools: Collection[str], nodes: Sequence[float]) -> bool:
    """Whether actors may be placed so that each node has some CPUs left, and none has enough for a task."""
    actors = [round(1000 * stages[name].num_cpus) for name in pools for _ in range(stages[name].workers)]
    there = [round(1000 * cpus) for cpus in nodes]
    # What is left on a node is a multiple of this.
    grain = math.gcd(*actors, *there) or 1
    free = sum(there) - sum(actors)
    tasks = [round(1000 * stage.num_cpus) for name, stage in stages.items() if name not in pools]
    return any(
        # Each node that has enough needs an actor of its own to have it no longer.
        0 < sum(cpus >= task for cpus in there) <= len(actors)
        and free <= sum(min(cpus, (-(-task // grain) - 1) * grain) for cpus in there)
        for task in tasks
    )


def check_nodes(stages: dict[str, Stage], nodes: list[dict[str, float]]) -> None:
    """Raise TooSmallError where no node is large enough for one worker of a stage: Ray would wait without a word.

    nodes: what each has, by Ray's names CPU and GPU.
    """
    for name, stage in stages.items():
        if not any(stage.num_cpus <= node.get("CPU", 0) and stage.num_gpus <= node.get("GPU", 0) for node in nodes):
            have = ", ".join(sorted({f"{node.get('CPU', 0):g} and {node.get('GPU', 0):g}" for node in nodes}))
            raise TooSmallError(
                f"{name}: a worker asks for {stage.num_cpus:g} CPUs and {stage.num_gpus:g} GPUs of one node, and nodes "
                f"have {have}: lower {name}.num_cpus or {name}.num_gpus"
            )
        memory = stage.resources().get("memory", 0)
        if memory > (most := max((node.get("memory", 0) for node in nodes), default=0)):
            raise TooSmallError(
                f"{name}: a worker asks for {memory / 2**30:g} GiB of memory of one node, and Ray gives out at most "
                f"{most / 2**30:.1f}: lower {name}.memory_gb"
            )


def fitted(
    pools: dict[str, Stage], tasks: dict[str, Stage], autoscaling: bool, again: bool = False
) -> dict[str, Stage]:
    """Stages as they fit the cluster; as asked where it grows by what is asked for, or has no workers yet.

    again: it had workers. Raises TooSmallError where one worker of each stage has no room.
    """
    import ray

    there = ray.cluster_resources()
    if autoscaling or not (there.get("CPU") or again):
        log.warning("autoscaling=true (or no workers yet): not checking whether pools fit")
        return {**pools, **tasks}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    memory_gb, _ = memory_for({**pools, **tasks}, nodes)
    each = [node["CPU"] for node in nodes if node.get("CPU")]
    stages, lines = fit(pools, tasks, there.get("CPU", 0), there.get("GPU", 0), memory_gb, each)
    check_nodes(stages, nodes)
    stages, told = reserving(stages, nodes)
    for line in (*lines, *told):
        log.info(line)
    # Imported here: it takes no part in most commands.
    from actors.media.film import VideoConfig
    from pipelines.core.nodes import check_nvdec

    for stage in stages.values():
        if isinstance(stage, VideoConfig) and stage.by_nvdec:
            check_nvdec(stage.num_gpus)
    return stages


def memory_for(stages: Mapping[str, Stage], nodes: list[dict[str, float]]) -> tuple[float, float]:
    """Memory in GiB that models may take together, and one worker of them; films that are decoded beside them take the
    rest. On a node that is too small for a worker there is room for one all the same, which gets what there is.

    nodes: what each has, by Ray's names CPU and memory.
    """
    free = [there for there, _ in _for_models(stages, nodes)]
    largest = max((stage.worker_gb for stage in stages.values()), default=0.0)
    if not free or not largest:
        return math.inf, math.inf
    if len(free) == 1:
        return free[0], free[0]
    large = [there for there in free if there >= largest]
    return (sum(there // largest * largest for there in large), largest) if large else (len(free) * largest, min(free))


def _for_models(stages: Mapping[str, Stage], nodes: list[dict[str, float]]) -> list[tuple[float, dict[str, float]]]:
    """Of each node on which workers run, memory in GiB that is left to models by films."""
    from actors.media.limits import SHARE, FilmStage

    rest = 1 - SHARE if any(isinstance(stage, FilmStage) for stage in stages.values()) else 1
    return [(rest * node["memory"] / 2**30, node) for node in nodes if node.get("CPU") and node.get("memory")]


def reserving(stages: dict[str, Stage], nodes: list[dict[str, float]]) -> tuple[dict[str, Stage], list[str]]:
    """Stages with the memory that Ray is to reserve for each worker, and a line where that is less than models take.

    For a model it is what was measured; where one worker of each is too much for the nodes, an equal share of it.
    nodes: what each has, by Ray's names CPU and memory.
    """
    found = {name: _decoding(stage, nodes) for name, stage in stages.items()}
    models = {name: stage for name, stage in stages.items() if stage.worker_gb}
    if not models:
        return found, []
    free, most = memory_for(stages, nodes)
    needed = sum(stage.workers * stage.worker_gb for stage in models.values())
    share = min(1.0, free / needed, most / max(stage.worker_gb for stage in models.values()))
    for name, stage in models.items():
        each = min(stage.worker_gb * share, _beside_others(stage, stages, nodes))
        found[name] = stage.reserving(math.floor(each * 1024) / 1024)
    if share == 1:
        return found, []
    told = ", ".join(f"{name} {stage.worker_gb:g}" for name, stage in models.items())
    return found, [f"models take {told} GiB a worker, and Ray has {share:.0%} of it for them: memory may run short"]


def _beside_others(stage: Stage, stages: Mapping[str, Stage], nodes: list[dict[str, float]]) -> float:
    """Memory in GiB that a worker on a GPU finds on each node that has one, wherever Ray places the models on CPUs: if
    it asked for more, it could wait for these without end. Infinite for other workers, and where there is one node."""
    there = _for_models(stages, nodes)
    if not stage.num_gpus or len(there) < 2:
        return math.inf
    on_cpus = sum(one.workers * one.worker_gb for one in stages.values() if not one.num_gpus)
    with_gpus = [(free, node["GPU"]) for free, node in there if node.get("GPU", 0) >= stage.num_gpus]
    return max(0.0, min(((free - on_cpus) * stage.num_gpus / gpus for free, gpus in with_gpus), default=0.0))


def _decoding(stage: Stage, nodes: list[dict[str, float]]) -> Stage:
    """A stage that decodes films, and of which settings do not say how much memory a worker gets, with such a share of
    a node's that as many fit as by CPUs and `workers`; any other stage as it is."""
    from actors.media.limits import SHARE, FilmStage

    if not isinstance(stage, FilmStage) or stage.memory_gb or not stage.num_cpus:
        return stage
    shares = [
        SHARE * node["memory"] / stage.at_once(node["CPU"])
        for node in nodes
        if node.get("memory") and node.get("CPU", 0) >= stage.num_cpus
    ]
    # Rounded down: as many are to fit.
    return replace(stage, memory_gb=math.floor(min(shares, default=0.0) / 2**20) / 2**10)


def widened(name: str, stages: dict[str, Stage], pools: Collection[str], rows: int) -> Stage:
    """A task stage that has few rows, with the CPUs for each that the other stages would leave idle."""
    import ray

    stage = stages[name]
    others = (one.num_cpus * (one.workers if key in pools else 1) for key, one in stages.items() if key != name)
    nodes = [node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]]
    cpus = int(min(max(nodes, default=0.0), sum(nodes) - sum(others)) / rows)
    return replace(stage, num_cpus=float(cpus)) if cpus > stage.num_cpus and not stage.num_gpus else stage


def in_blocks(dataset: Dataset, rows: int, stage: Stage) -> Dataset:
    """The same rows in blocks of so many, so that the next stage can divide them among its workers."""
    divided = dataset.repartition(target_num_rows_per_block=rows)
    # Ray asks for a whole CPU here, has no argument for it, and waits without end where pools leave less.
    step: Any = divided._logical_plan.dag
    step.ray_remote_args.update(stage.resources())
    return divided


def batches(dataset: Dataset) -> Iterator[Batch]:
    """Run a dataset and yield its batches as they were written."""
    found: Any = dataset.iter_batches(batch_size=None, prefetch_batches=0)
    yield from found


def rows_of(dataset: Dataset) -> Iterator[Row]:
    """Run a dataset and yield its rows."""
    yield from dataset.iter_rows()


def ray_task(stage: Stage) -> dict[str, Any]:
    """Arguments of a stage of tasks."""
    from ray.data import TaskPoolStrategy

    return {"compute": TaskPoolStrategy(stage.workers or None), **stage.resources()}


def ray_actors(
    stage: Stage, threads: bool = False, calls: int | None = None, inputs: int | None = None
) -> dict[str, Any]:
    """Arguments of a stage of actors; on a GPU the next batch is put together while one is computed.

    threads: there the actor itself takes two batches at once. calls: batches that an actor takes at once, since it
    waits for others. inputs: batches that are there when the stages start, where it is known. As many workers start at
    once; otherwise one does, and the pool grows with what waits for it.
    """
    from ray.data import ActorPoolStrategy

    gpu = stage.num_gpus > 0
    pool = ActorPoolStrategy(
        min_size=1,
        initial_size=max(1, min(stage.workers, inputs or 1)),
        max_size=stage.workers,
        max_concurrent_calls_per_actor=calls or (2 if gpu else None),
        enable_true_multi_threading=bool(calls) or (gpu and threads),
    )
    return {"compute": pool, **stage.resources()}


def finish(rows: Dataset, column: str, progress: Progress) -> None:
    """Run a dataset whose batches say in a column how much they have done, and in `codes` what failed of it."""
    for _ in tracked(batches(rows), progress, lambda counts: int(counts[column].sum()), codes_in):
        pass

"""How long the stages of a run take: side by side, each with the workers that it has at once, on CPUs that they share.

Films are measured by stages that hand rows to each other, so that the slowest decides; clips are written after that.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from actors.core.stage import Stage
from pipelines.curation.estimating.scaling import Total

WAITING = ("fetch",)
"""Stages that wait for others, and take no CPU meanwhile."""
VIDEO, EXPORT = "video", "export"
LONGEST = "the longest film"
TASKS = ("fetch", VIDEO)
"""Stages whose tasks have whole films."""
TURN_S = 0.15
"""Seconds until the worker of a task gets its next. Ray Data looks ten times a second which tasks have ended, and it
may take two looks."""


@dataclass(frozen=True)
class Workers:
    """The workers of a run's stages."""

    cpus: float
    """CPUs of the cluster; 0 where it has none yet."""
    at_once: Mapping[str, float]
    """How many of each stage are at work at once, at most."""
    threads: Mapping[str, int]
    """CPUs that one of each computes on; 0 where it is a GPU or waits."""
    cut_by: int
    """Processes that cut one film."""
    held_gpus: float
    """GPUs that pools hold while films are measured, at work or not."""
    task_gpus: Mapping[str, float]
    """GPUs that one worker of each other stage holds while it is at work."""
    together: int = 1
    """Films that a task of `video` has."""


def workers_of(stages: Mapping[str, Stage], pools: Collection[str], export: Stage, cpus: float, gpus: float) -> Workers:
    """The workers of stages as they fit a cluster; pools: names of those whose workers hold a model.

    Where the cluster has no CPUs yet, it gets as many as are asked for.
    """
    if not cpus:
        gpus = math.inf
    room = cpus or math.inf
    actors = {name: stages[name] for name in pools}
    tasks = {name: stage for name, stage in stages.items() if name not in pools}
    held = {name: sum(one.workers * getattr(one, name) for one in actors.values()) for name in ("num_cpus", "num_gpus")}
    at_once: dict[str, float] = {name: max(1, stage.workers) for name, stage in actors.items()}
    for name, stage in tasks.items():
        # There is room for one of each other task.
        others = sum(one.num_cpus for other, one in tasks.items() if other != name)
        at_once[name] = _fitting(stage, room - held["num_cpus"] - others, gpus - held["num_gpus"])
    at_once[EXPORT] = _fitting(export, room, gpus)
    every = {**stages, EXPORT: export}
    return Workers(
        cpus=cpus,
        at_once=at_once,
        threads={
            name: 0 if stage.num_gpus or name in WAITING else max(1, int(stage.num_cpus))
            for name, stage in every.items()
        },
        cut_by=max(1, int(stages[VIDEO].num_cpus)),
        held_gpus=held["num_gpus"],
        task_gpus={name: stage.num_gpus for name, stage in every.items() if name not in pools and stage.num_gpus},
    )


def _fitting(stage: Stage, cpus: float, gpus: float) -> float:
    limits = [stage.workers or math.inf]
    limits += [there / each for there, each in ((cpus, stage.num_cpus), (gpus, stage.num_gpus)) if each]
    # A little less than a whole number is one that was rounded.
    return max(1.0, (min(limits) + 1e-6) // 1) if min(limits) < math.inf else math.inf


class Duration(NamedTuple):
    """Seconds from when all workers have loaded."""

    measuring: Total
    """Of all films."""
    exporting: Total
    """Of all clips."""
    waits_for: str
    """What measuring takes so long for: a stage with its workers, the CPUs, or the longest film."""

    @property
    def whole(self) -> Total:
        """One after the other."""
        return Total(self.measuring.value + self.exporting.value, self.measuring.margin + self.exporting.margin)


def duration(work: Mapping[str, Total], longest: float, films: int, workers: Workers) -> Duration:
    """How long a run takes.

    work: seconds of one worker at all that a stage has to do. longest: of that, the share of the longest film, which
    one worker has from its start to its end.
    """
    turns_s = TURN_S * films / workers.together
    measuring = {name: seconds for name, seconds in work.items() if name != EXPORT}
    film_s = longest * work[VIDEO].value / (workers.cut_by if workers.threads[VIDEO] else 1)
    limits = {
        name: seconds.plus(turns_s if name in TASKS else 0.0).times(1 / workers.at_once[name])
        for name, seconds in measuring.items()
    }
    limits |= {"its CPUs": _on_cpus(measuring, workers), LONGEST: Total(film_s, 0.0)}
    slowest = max(limits, key=lambda name: limits[name])
    # A stage waits for its first film, and those after it still have its last.
    stage = VIDEO if slowest == LONGEST else slowest
    others = sum(seconds.value for name, seconds in measuring.items() if name != stage) if stage in measuring else 0.0
    ends = [Total(0.0, 0.0)]
    if clips := work.get(EXPORT):
        ends = [clips.plus(TURN_S * films).times(1 / workers.at_once[EXPORT]), Total(longest * clips.value, 0.0)]
    waits_for = f"{slowest}, {workers.at_once[slowest]:g} at once" if slowest in measuring else slowest
    return Duration(limits[slowest].plus(others / films), max(ends), waits_for)


def _on_cpus(work: Mapping[str, Total], workers: Workers) -> Total:
    """Seconds in which all CPUs do all that is to be done on them."""
    busy = {name: workers.threads[name] for name in work if workers.threads[name] and workers.cpus}
    shares = [work[name].times(threads / workers.cpus) for name, threads in busy.items()]
    return Total(sum(one.value for one in shares), sum(one.margin for one in shares))


def held_gpu_s(work: Mapping[str, Total], took: Duration, start_s: float, workers: Workers) -> Total:
    """GPU-seconds that workers hold: those of pools from their start until all films are measured, at work or not;
    those of tasks while these are at work."""
    held = took.measuring.times(workers.held_gpus)
    tasks = [work[name].times(gpus) for name, gpus in workers.task_gpus.items() if name in work]
    start = start_s * workers.held_gpus
    value = held.value + start + sum(one.value for one in tasks)
    return Total(value, held.margin + sum(one.margin for one in tasks))

"""Estimate what a run will take: a sample of its films is measured for real, and scaled to all of them."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from actors.core import machine
from actors.core.stage import Row, Stage
from pipelines.core.progress import Progress, tracked
from pipelines.curation.cutting.plan import Plan, make_plan
from pipelines.curation.estimating.duration import EXPORT, Duration, Workers, duration, held_gpu_s, workers_of
from pipelines.curation.estimating.known import Drawn, Known, known_of
from pipelines.curation.estimating.one_film import Cost, OneFilm
from pipelines.curation.estimating.requests import run_requests
from pipelines.curation.estimating.scaling import Sample, Total, draw, total
from pipelines.curation.measuring.measure import passed, pool_of
from pipelines.curation.settings import CurationConfig


@dataclass(frozen=True)
class Machines:
    """What a run has, and what it takes beside its work."""

    gpus: float
    workers: Workers
    ray_s: float
    """Seconds until the plan is made and Ray runs, imports included."""
    one_s: float
    """Seconds until one worker has loaded all."""
    one_cpu_s: float
    """CPU-seconds of that."""
    ray_cpu_s: float
    """CPU-seconds until Ray runs: of this process, and of Ray's own where it started them."""
    head_cpus: float
    """CPUs that these take while workers are at work."""

    @property
    def loading(self) -> float:
        """Workers that load at the start: one on each CPU, and one at least of each stage but the last."""
        return max(self.workers.cpus, len(self.workers.at_once) - 1)

    @property
    def load_s(self) -> float:
        """Seconds until all of them have loaded."""
        return self.one_s * (self.loading / self.workers.cpus if self.workers.cpus else 1.0)

    @property
    def load_cpu_s(self) -> float:
        """CPU-seconds of that."""
        return self.one_cpu_s * self.loading

    @property
    def start_s(self) -> float:
        """Seconds until the first film is at work."""
        return self.ray_s + self.load_s

    @property
    def start_cpu_s(self) -> float:
        """CPU-seconds of the start."""
        return self.ray_cpu_s + self.load_cpu_s


@dataclass(frozen=True)
class Estimate:
    """What a run will take; time, CPU- and GPU-seconds without the start."""

    films: int
    measured: int
    """Films of the sample."""
    probed: int
    """Films whose containers were opened."""
    film_s: Total
    """Seconds of film, of scenes where the input names them."""
    scenes: Total
    cpu_s: Total
    """Of workers."""
    gpu_s: Total
    """At work."""
    held_gpu_s: Total
    """That workers hold, at work or not."""
    seconds: Duration
    bytes: Total
    """Of all files in the output."""
    files: Total
    """Files of rows, pictures and clips."""
    puts: Total
    """PUT, POST and LIST requests, where the output is on S3."""
    gets: Total
    """GET and HEAD requests, where the output is on S3; of films, where these are."""
    failed: Mapping[str, str]
    """Error codes of films of the sample, by video_id."""


def estimate(
    config: CurationConfig, again: frozenset[str], export: bool, start: Callable[[], None]
) -> tuple[Estimate, Machines] | None:
    """Measure a sample of the films that are left to do; None where none is. Writes nothing to the output.

    again: error codes whose rows are to be made again. export: whether clips are written. start: starts Ray.
    """
    # Until here there were imports, which nothing waits for but a CPU.
    rng, began = np.random.default_rng(config.estimate.seed), time.monotonic() - time.process_time()
    drawn = Drawn(rng)
    plan = make_plan(config, again, dry=True, left_to=drawn.add)
    if not drawn.films:
        return None
    plan_s = time.monotonic() - began
    known = known_of(drawn.films, drawn.bytes)
    sample = draw(known.sizes, config.estimate.films, rng)
    smallest = drawn.films[min(sample.chosen, key=lambda at: known.sizes[at])]
    costs, machines = measured(config, drawn.at(sample), smallest, plan, export, start)
    machines = replace(machines, ray_s=plan_s + machines.ray_s)
    return scaled(config, drawn, known, sample, costs, machines), machines


def measured(
    config: CurationConfig, films: Sequence[Row], smallest: Row, plan: Plan, export: bool, start: Callable[[], None]
) -> tuple[list[Cost], Machines]:
    """What films take, in their order, each measured by one worker of Ray."""
    began = time.monotonic()
    start()
    _run_nothing()
    ray_s, ray_cpu_s = time.monotonic() - began, machine.cpu_s()
    import ray
    from ray.util import ActorPool

    from pipelines.core.attempts import DEATHS

    stages, workers = _workers(config, plan)
    cpus, gpus = (max(getattr(stage, name) for stage in stages) for name in ("num_cpus", "num_gpus"))
    there = ray.cluster_resources()
    fits = [there.get(name, 0) // each for name, each in (("CPU", cpus), ("GPU", gpus)) if each]
    count = len(films) if config.autoscaling else max(1, int(min(len(films), *fits)))
    needs: dict[str, Any] = {"num_cpus": cpus, "num_gpus": gpus, "max_restarts": DEATHS, "max_task_retries": DEATHS}
    kind: Any = ray.remote(**needs)(OneFilm)
    actors = [kind.remote(config, passed(config), export) for _ in range(count)]
    started = ray.get([actor.started.remote(smallest) for actor in actors])
    pool, costs = ActorPool(actors), []
    began, ours, all_of = time.monotonic(), time.process_time(), machine.cpu_s()
    done = pool.map(lambda actor, film: actor.measured.remote(film), list(films))
    for cost in tracked(done, Progress("estimate", len(films), "films"), lambda _: 1):
        costs.append(cost)
    # Where Ray ran before, its processes are not ours, and those of workers are not either.
    head_cpu_s = max(time.process_time() - ours, machine.cpu_s() - all_of - sum(cost.whole_cpu_s for cost in costs))
    head_cpus = head_cpu_s / (time.monotonic() - began)
    one_cpu_s, one_s = (float(np.mean([one[number] for one in started])) for number in (0, 1))
    return costs, Machines(there.get("GPU", 0.0), workers, ray_s, one_s, one_cpu_s, ray_cpu_s, head_cpus)


def _run_nothing() -> None:
    """Run a dataset of one row: what Ray starts for the first of a process takes as long as Ray itself."""
    import ray

    from pipelines.core.ray_data import ray_task, set_context
    from pipelines.curation.cutting.score import READ

    set_context()
    ray.data.from_items([{"row": 0}]).map(lambda row: row, **ray_task(READ)).materialize()


def _workers(config: CurationConfig, plan: Plan) -> tuple[list[Stage], Workers]:
    """The stages of a run as they fit the cluster, and their workers."""
    import ray

    from pipelines.core.ray_data import fitted, widened
    from pipelines.curation.cutting.score import in_pools, stages_of, together

    pools, tasks = stages_of(config, plan.remote)
    pools |= {name: pool_of(pools[name]) for name in in_pools(passed(config))}
    stages = fitted(pools, tasks, config.autoscaling)
    if plan.films and not config.autoscaling and not config.video.workers:
        stages["video"] = widened("video", stages, pools, plan.todo)
    there = ray.cluster_resources()
    export = config.export
    asked = Stage(export.workers, export.num_cpus, export.num_gpus)
    workers = workers_of(stages, pools, asked, there.get("CPU", 0.0), there.get("GPU", 0.0))
    return list(stages.values()), replace(workers, together=together(plan))


def scaled(
    config: CurationConfig, drawn: Drawn, known: Known, sample: Sample, costs: Sequence[Cost], machines: Machines
) -> Estimate:
    """What all films take, of which a sample has these costs."""

    def of(cost_of: Callable[[Cost], float]) -> Total:
        values = np.array([cost_of(cost) for cost in costs], float)
        return total(known.about, known.sizes, sample, values).of_more(drawn.factor, drawn.spread(known.sizes))

    kept, limit = of(lambda cost: cost.kept).value, config.select.count
    # Of scenes that pass the rules, no more than select.count become clips.
    clips = 1.0 if limit is None or kept <= limit else limit / kept
    rows = config.write.batch_size
    part_bytes = float(np.mean([cost.part_bytes for cost in costs]))
    shares = {name: clips if name == EXPORT else 1.0 for cost in costs for name in cost.work}
    work = {name: of(lambda cost, name=name: shares[name] * cost.work.get(name, 0.0)) for name in shares}
    longest = known.sizes.max() / known.sizes.sum() / drawn.factor
    seconds = duration(work, longest, drawn.count, machines.workers)
    files = of(lambda cost: (cost.film_bytes > 0) + cost.rows / rows * cost.tables + clips * cost.clip_files)
    beside = run_requests(
        parts=of(lambda cost: cost.rows / rows).value,
        tables=max(cost.tables for cost in costs),
        clips=min(kept, limit or kept),
        seconds=machines.start_s + seconds.whole.value,
    )
    failed = {film["video_id"]: cost.error for film, cost in zip(drawn.at(sample), costs, strict=True) if cost.error}
    return Estimate(
        films=drawn.count,
        measured=len(costs),
        probed=known.probed,
        film_s=Total(float(known.seconds.sum()), 0.0).of_more(drawn.factor, drawn.spread(known.seconds)),
        scenes=of(lambda cost: cost.scenes),
        cpu_s=of(lambda cost: cost.cpu_s + clips * cost.clip_cpu_s),
        gpu_s=of(lambda cost: cost.gpu_s),
        held_gpu_s=held_gpu_s(work, seconds, machines.load_s, machines.workers),
        seconds=seconds,
        bytes=of(
            lambda cost: cost.film_bytes + cost.row_bytes + cost.rows / rows * part_bytes + clips * cost.clip_bytes
        ),
        files=files,
        puts=files.plus(beside.puts),
        gets=of(lambda cost: cost.reads).plus(beside.gets),
        failed=failed,
    )


def told(config: CurationConfig, found: Estimate, machines: Machines) -> list[str]:
    """An estimate as lines of a table."""
    workers = machines.workers
    head_cpu_s = machines.head_cpus * found.seconds.whole.value
    rest_cpu_s = machines.start_cpu_s + head_cpu_s
    lines = [
        f"estimate from {found.measured} of {found.films:,} films (estimate.seed={config.estimate.seed}); in "
        "parentheses the 95 % interval over films",
        f"seconds of film: {_number(found.film_s)}, by the containers of {found.probed} films",
        f"scenes: {_number(found.scenes)}",
        f"CPU-hours: {_number(found.cpu_s, 3600)}, {machines.start_cpu_s / 3600:.3g} for the start, and "
        f"{head_cpu_s / 3600:.3g} for the head",
        f"GPU-hours: {_number(found.held_gpu_s, 3600)} held by workers, {_number(found.gpu_s, 3600)} at work",
        f"storage in GB: {_number(found.bytes, 1e9)}, in {_number(found.files)} files",
        f"requests: {_number(found.puts)} PUT, POST and LIST, {_number(found.gets)} GET and HEAD",
    ]
    if workers.cpus:
        hours = found.seconds.whole.plus(machines.start_s)
        there = f"{workers.cpus:g} CPUs and {machines.gpus:g} GPUs"
        lines.append(f"hours on {there}: {_number(hours, 3600)}; measuring waits for {found.seconds.waits_for}")
    lines += _price(config, found, rest_cpu_s)
    if found.failed:
        failed = ", ".join(f"{video_id} {code}" for video_id, code in found.failed.items())
        lines.append(f"NOTE: films of the sample that failed: {failed}")
    return lines + [f"NOTE: {note}" for note in left_out(config)]


def _price(config: CurationConfig, found: Estimate, rest_cpu_s: float) -> list[str]:
    rates = config.estimate
    prices = {
        "CPUs": rates.cpu_hour * (found.cpu_s.value + rest_cpu_s) / 3600,
        "GPUs": rates.gpu_hour * found.held_gpu_s.value / 3600,
        "requests": (rates.put_1000 * found.puts.value + rates.get_1000 * found.gets.value) / 1000,
    }
    given = {name: price for name, price in prices.items() if price}
    lines = []
    if given:
        parts = ", ".join(f"{name} {price:,.2f}" for name, price in given.items())
        lines.append(f"price: {sum(given.values()):,.2f} ({parts}), where no machine is idle")
    if rates.gb_month:
        lines.append(f"price of storage: {rates.gb_month * found.bytes.value / 1e9:,.2f} a month")
    return lines


def left_out(config: CurationConfig) -> list[str]:
    """What of a run the estimate does not have, in sentences."""
    from pipelines.curation.measuring.measure import tasks_of

    select, notes = config.select, []
    there = {task.name for task in passed(config)}
    if apart := [task.name for task in tasks_of(config) if task.name not in there]:
        notes.append(f"scores={','.join(apart)} are measured after films are decoded, and are not in the estimate.")
    compared = select.dedupe is not None or select.semantic_dedupe is not None or select.balance.concepts
    if compared or select.rules or select.by == "classifier":
        notes.append("Clips are at most so many: select.rules, the filter and comparisons of scenes are left out.")
    if config.export.preset or config.export.layout:
        notes.append("Files of export.preset and export.layout are not in the estimate.")
    return notes


def _number(value: Total, unit: float = 1.0) -> str:
    """A total with its interval."""

    def text(number: float) -> str:
        return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"

    middle, margin = value.value / unit, value.margin / unit
    if not margin:
        return text(middle)
    if not np.isfinite(margin):
        return f"{text(middle)} (too few films for an interval)"
    return f"{text(middle)} ({text(max(0.0, middle - margin))} to {text(middle + margin)})"

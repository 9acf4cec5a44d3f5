"""Estimate what a run will take: a sample of its films is measured for real, and scaled to all of them."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from actors.core.stage import Row
from pipelines.core.progress import Progress, tracked
from pipelines.curation.cutting.plan import make_plan
from pipelines.curation.estimating.known import Drawn, Known, known_of
from pipelines.curation.estimating.one_film import Cost, OneFilm
from pipelines.curation.estimating.scaling import Sample, Total, draw, total
from pipelines.curation.measuring.measure import passed
from pipelines.curation.settings import CurationConfig

RAY_SHARE = 0.16
"""CPU-seconds that a run takes beside its steps, per CPU-second of these: processes of Ray, and frames that go from one
to another (docs/benchmarks.md: 0.86 of the rows per CPU-second of one plain process)."""


@dataclass(frozen=True)
class Machines:
    """What a run has, and what its start takes."""

    cpus: float
    gpus: float
    start_s: float
    """Seconds until Ray runs and a worker has loaded all."""
    start_cpu_s: float
    """CPU-seconds in which one worker loads all."""


@dataclass(frozen=True)
class Estimate:
    """What a run will take, without its start."""

    films: int
    measured: int
    """Films of the sample."""
    probed: int
    """Films whose containers were opened."""
    film_s: Total
    """Seconds of film, of scenes where the input names them."""
    scenes: Total
    cpu_s: Total
    gpu_s: Total
    bytes: Total
    """Of all files in the output."""
    puts: Total
    """Files that are written: PUT requests on S3."""
    gets: Total
    """GET requests: of films on S3, and of parts of rows, once."""
    longest_s: float
    """CPU-seconds of the longest film, which one worker decodes."""
    failed: Mapping[str, str]
    """Error codes of films of the sample, by video_id."""


def estimate(
    config: CurationConfig, again: frozenset[str], export: bool, start: Callable[[], None]
) -> tuple[Estimate, Machines] | None:
    """Measure a sample of the films that are left to do; None where none is. Writes nothing to the output.

    again: error codes whose rows are to be made again. export: whether clips are written. start: starts Ray.
    """
    rng = np.random.default_rng(config.estimate.seed)
    drawn = Drawn(rng)
    plan = make_plan(config, again, dry=True, left_to=drawn.add)
    if not drawn.films:
        return None
    known = known_of(drawn.films, drawn.bytes)
    sample = draw(known.sizes, config.estimate.films, rng)
    smallest = drawn.films[min(sample.chosen, key=lambda at: known.sizes[at])]
    costs, machines = _measured(config, drawn.at(sample), smallest, plan.remote, export, start)
    return scaled(config, drawn, known, sample, costs), machines


def _measured(
    config: CurationConfig, films: Sequence[Row], smallest: Row, remote: bool, export: bool, start: Callable[[], None]
) -> tuple[list[Cost], Machines]:
    """What films take, in their order, each measured by one worker of Ray."""
    began = time.monotonic()
    start()
    ray_s = time.monotonic() - began
    import ray
    from ray.util import ActorPool

    from pipelines.core.attempts import DEATHS
    from pipelines.core.ray_data import fitted
    from pipelines.curation.cutting.score import stages_of

    stages = fitted(*stages_of(config, remote), config.autoscaling).values()
    cpus, gpus = (max(getattr(stage, name) for stage in stages) for name in ("num_cpus", "num_gpus"))
    there = ray.cluster_resources()
    fits = [there.get(name, 0) // each for name, each in (("CPU", cpus), ("GPU", gpus)) if each]
    count = len(films) if config.autoscaling else max(1, int(min(len(films), *fits)))
    needs: dict[str, Any] = {"num_cpus": cpus, "num_gpus": gpus, "max_restarts": DEATHS, "max_task_retries": DEATHS}
    kind: Any = ray.remote(**needs)(OneFilm)
    workers = [kind.remote(config, passed(config), export) for _ in range(count)]
    started = ray.get([worker.started.remote(smallest) for worker in workers])
    pool, costs = ActorPool(workers), []
    done = pool.map(lambda worker, film: worker.measured.remote(film), list(films))
    for cost in tracked(done, Progress("estimate", len(films), "films"), lambda _: 1):
        costs.append(cost)
    start_cpu_s, start_s = (float(np.mean([one[number] for one in started])) for number in (0, 1))
    return costs, Machines(there.get("CPU", 0.0), there.get("GPU", 0.0), ray_s + start_s, start_cpu_s)


def scaled(config: CurationConfig, drawn: Drawn, known: Known, sample: Sample, costs: Sequence[Cost]) -> Estimate:
    """What all films take, of which a sample has these costs."""

    def of(cost_of: Callable[[Cost], float]) -> Total:
        values = np.array([cost_of(cost) for cost in costs], float)
        return total(known.about, known.sizes, sample, values).of_more(drawn.factor, drawn.spread(known.sizes))

    kept, limit = of(lambda cost: cost.kept).value, config.select.count
    # Of scenes that pass the rules, no more than select.count become clips.
    clips = 1.0 if limit is None or kept <= limit else limit / kept
    ray, rows = 1 + RAY_SHARE, config.write.batch_size
    part_bytes = float(np.mean([cost.part_bytes for cost in costs]))
    cpu_s = of(lambda cost: ray * (cost.cpu_s + clips * cost.clip_cpu_s))
    longest = known.sizes.max() / known.sizes.sum() * cpu_s.value / drawn.factor
    failed = {film["video_id"]: cost.error for film, cost in zip(drawn.at(sample), costs, strict=True) if cost.error}
    return Estimate(
        films=drawn.count,
        measured=len(costs),
        probed=known.probed,
        film_s=Total(float(known.seconds.sum()), 0.0).of_more(drawn.factor, drawn.spread(known.seconds)),
        scenes=of(lambda cost: cost.scenes),
        cpu_s=cpu_s,
        gpu_s=of(lambda cost: cost.gpu_s),
        bytes=of(
            lambda cost: cost.film_bytes + cost.row_bytes + cost.rows / rows * part_bytes + clips * cost.clip_bytes
        ),
        puts=of(lambda cost: (cost.film_bytes > 0) + cost.rows / rows * cost.tables + clips * cost.clip_files),
        gets=of(lambda cost: cost.reads + cost.rows / rows),
        longest_s=longest,
        failed=failed,
    )


def told(config: CurationConfig, found: Estimate, machines: Machines) -> list[str]:
    """An estimate as lines of a table."""
    cpu_s = found.cpu_s
    start_cpu_s = machines.start_cpu_s * max(1.0, machines.cpus)
    lines = [
        f"estimate from {found.measured} of {found.films:,} films (estimate.seed={config.estimate.seed}); in "
        "parentheses the 95 % interval over films",
        f"seconds of film: {_number(found.film_s)}, by the containers of {found.probed} films",
        f"scenes: {_number(found.scenes)}",
        f"CPU-hours: {_number(cpu_s, 3600)}, and {start_cpu_s / 3600:.3g} for the start",
        f"GPU-hours: {_number(found.gpu_s, 3600)}",
        f"storage in GB: {_number(found.bytes, 1e9)}",
        f"requests: {_number(found.puts)} PUT, {_number(found.gets)} GET",
    ]
    if machines.cpus:
        limits = [cpu_s.times(1 / machines.cpus), Total(found.longest_s, 0.0)]
        limits += [found.gpu_s.times(1 / machines.gpus)] if machines.gpus else []
        slowest = max(limits, key=lambda one: one.value)
        hours = Total(slowest.value + machines.start_s, slowest.margin)
        lines.append(f"hours on {machines.cpus:g} CPUs and {machines.gpus:g} GPUs: {_number(hours, 3600)}")
    lines += _price(config, found, start_cpu_s)
    if found.failed:
        failed = ", ".join(f"{video_id} {code}" for video_id, code in found.failed.items())
        lines.append(f"NOTE: films of the sample that failed: {failed}")
    return lines + [f"NOTE: {note}" for note in left_out(config)]


def _price(config: CurationConfig, found: Estimate, start_cpu_s: float) -> list[str]:
    rates = config.estimate
    prices = {
        "CPUs": rates.cpu_hour * (found.cpu_s.value + start_cpu_s) / 3600,
        "GPUs": rates.gpu_hour * found.gpu_s.value / 3600,
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

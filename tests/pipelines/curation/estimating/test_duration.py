"""How long stages take that work side by side."""

import heapq

import numpy as np
import pytest

from actors.core.stage import Stage
from pipelines.curation.estimating.duration import TURN_S, Workers, duration, held_gpu_s, workers_of
from pipelines.curation.estimating.scaling import Total

RNG = np.random.default_rng(5)
SECONDS = np.sort(np.exp(RNG.normal(1, 0.8, 200)))[::-1]
"""Of films, the longest first."""


def workers(stages: dict[str, Stage], cpus: float, gpus: float = 0.0, pools: tuple[str, ...] = ("latents",)) -> Workers:
    return workers_of(stages, pools, Stage(workers=0), cpus, gpus)


def simulated(films: int, scorers: int, cut_s: np.ndarray, score_s: np.ndarray, clip_s: np.ndarray, cpus: int) -> float:
    """Seconds until the last clip, where workers take the next film when idle, and tasks at their turn."""

    def passed(ready: np.ndarray, seconds: np.ndarray, count: int, turn_s: float = 0.0) -> np.ndarray:
        idle, ends = [0.0] * count, []
        for at, length in zip(ready, seconds, strict=True):
            ends.append(max(at, heapq.heappop(idle)) + length)
            heapq.heappush(idle, ends[-1] + turn_s)
        return np.array(ends)

    cut = passed(np.zeros(len(cut_s)), cut_s, films, TURN_S)
    order = np.argsort(cut)
    scored = passed(cut[order], score_s[order], scorers).max()
    return scored + passed(np.zeros(len(clip_s)), clip_s, cpus, TURN_S).max()


@pytest.mark.parametrize(("cpus", "scorers"), [(2, 1), (4, 1), (16, 2), (64, 4)])
@pytest.mark.parametrize(("score", "clip"), [(0.1, 0.3), (0.8, 0.0), (2.0, 1.0)])
def test_stages_side_by_side_take_as_long_as_their_slowest(cpus: int, scorers: int, score: float, clip: float) -> None:
    there = workers({"latents": Stage(workers=scorers), "video": Stage(workers=0)}, cpus)
    work = {"video": SECONDS, "latents": score * SECONDS, "export": clip * SECONDS}
    totals = {name: Total(float(seconds.sum()), 0.0) for name, seconds in work.items()}
    found = duration(totals, float(SECONDS[0] / SECONDS.sum()), len(SECONDS), there).whole.value
    films = cpus - scorers
    assert there.at_once == {"latents": scorers, "video": films, "export": cpus}
    expected = simulated(films, scorers, work["video"], work["latents"], work["export"], cpus)
    assert found == pytest.approx(expected, rel=0.1)


def test_cpus_that_are_fewer_than_workers_are_shared() -> None:
    """As pools and tasks are fitted to a small machine, with less than a CPU for each."""
    small = {"latents": Stage(num_cpus=0.6), "video": Stage(workers=0, num_cpus=0.6), "write": Stage(num_cpus=0.6)}
    there = workers(small, 2)
    assert there.at_once["video"] == 1
    work = {"latents": Total(100, 10), "video": Total(100, 10), "write": Total(40, 4)}
    took = duration(work, 0.1, 10, there)
    assert took.measuring == (120, 12) and took.waits_for == "its CPUs"


def test_the_longest_film_is_no_shorter_for_many_workers() -> None:
    there = workers({"latents": Stage(), "video": Stage(workers=0)}, 1000)
    work = {"latents": Total(10, 1), "video": Total(4000, 100)}
    took = duration(work, 0.5, 10, there)
    assert took.measuring.value == 2000 + 10 / 10 and took.waits_for == "the longest film"
    divided = workers({"latents": Stage(), "video": Stage(workers=0, num_cpus=8)}, 1000)
    assert duration(work, 0.5, 10, divided).measuring.value == 250 + 10 / 10


def test_a_cluster_without_cpus_gets_as_many_as_are_asked_for() -> None:
    there = workers({"latents": Stage(workers=4, num_gpus=1), "video": Stage(workers=0)}, 0)
    took = duration({"latents": Total(80, 8), "video": Total(4000, 0), "export": Total(90, 0)}, 0.001, 1000, there)
    assert took.measuring == (20 + 4, 2) and took.exporting.value == pytest.approx(0.09)


def test_workers_hold_gpus_until_all_films_are_measured() -> None:
    stages = {"latents": Stage(workers=2, num_gpus=0.5), "video": Stage(workers=0, num_gpus=0.25)}
    there = workers(stages, 16, 2)
    # On the GPU that the models leave.
    assert there.at_once["video"] == 4
    work = {"latents": Total(100, 20), "video": Total(800, 40), "export": Total(64, 0)}
    took = duration(work, 0.01, 100, there)
    # Decoding is slower; the models wait for it with their GPU.
    measuring_s, turns_s = (800 + 100 * TURN_S) / 4 + 100 / 100, 100 * TURN_S
    assert took == ((measuring_s, 10), ((64 + turns_s) / 16, 0), "video, 4 at once")
    assert held_gpu_s(work, took, 15, there) == (measuring_s + 15 + 0.25 * 800, 10 + 10)

"""How long a pool of 16 actors takes to be at work as a whole, where an actor loads for 5 s and 160 batches wait.

    python -m tests.benchmarks.pools

Ray is told of 16 CPUs. Actors only sleep, so that a small machine will do; what it needs to start 16 processes is part
of the time.
"""

import sys
import time
from typing import Any

import numpy as np
import ray

from actors.core.stage import Batch, Stage
from pipelines.core.ray_data import batches, ray_actors, set_context

WORKERS, BATCHES, SECONDS, LOADING_S = 16, 160, 3.0, 5.0


class Sleeper:
    """Tells which worker a batch was at, and when it began."""

    def __init__(self) -> None:
        time.sleep(LOADING_S)
        self.id = ray.get_runtime_context().get_actor_id()

    def __call__(self, batch: Batch) -> Batch:
        began = time.time()
        time.sleep(SECONDS)
        return {**batch, "worker": np.array([self.id]), "began": np.array([began])}


def measure(inputs: int | None) -> str:
    """The seconds until each of some numbers of workers had a batch, and until all batches were done."""
    rows = ray.data.from_items([{"number": number} for number in range(BATCHES)], override_num_blocks=BATCHES)
    pool: Any = ray_actors(Stage(workers=WORKERS), inputs=inputs)
    started = time.time()
    found = list(batches(rows.map_batches(Sleeper, batch_size=1, **pool)))
    ended = time.time() - started
    first: dict[str, float] = {}
    for began, worker in sorted((float(batch["began"][0]), str(batch["worker"][0])) for batch in found):
        first.setdefault(worker, began - started)
    at_work = sorted(first.values())
    times = ", ".join(f"{count} at {at_work[count - 1]:.0f}" for count in (1, 4, 8, 16) if count <= len(at_work))
    return f"workers at work after seconds: {times}; all done after {ended:.0f} s"


if __name__ == "__main__":
    ray.init(address="local", num_cpus=WORKERS, include_dashboard=False, log_to_driver=False)
    set_context()
    for name, inputs in (("grown from one", None), ("all at once", BATCHES)):
        sys.stdout.write(f"{name}: {measure(inputs)}\n")
    ray.shutdown()

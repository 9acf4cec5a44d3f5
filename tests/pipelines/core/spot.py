"""A dataset of one row whose nodes are lost and whose workers crash.

    python -m tests.pipelines.core.spot FOLDER

A task is begun eight times: five times its node is lost, and twice, between them, its worker crashes. After it,
so does an actor with its node lost once. FOLDER gets a file for each time that one of them was begun.
"""

import os
import signal
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from actors.core.stage import Batch, Stage
from pipelines.core.ray_data import batches, ray_actors, ray_task, set_context
from tests.support import forked_workers

TASK, ACTOR = "NKNKNNN", "KNK"
"""What each try ends with: N, its node is lost; K, its worker crashes. The one after the last is good."""


def begin(batch: Batch, folder: Path, ends: str) -> Batch:
    """Work on a row, if none of the ends is left."""
    number = len(list(folder.iterdir()))
    (folder / str(number)).touch()
    end = ends[number] if number < len(ends) else ""
    if end == "K":
        os.kill(os.getpid(), signal.SIGSEGV)
    if end == "N":
        time.sleep(600)
    return batch


class Beginning:
    """The same as an actor."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, batch: Batch) -> Batch:
        return begin(batch, self.folder, ACTOR)


def lose(cluster: Cluster, node: Any, folder: Path) -> None:
    """End the node under each try that waits for it; another one is there before."""
    for place, ends in (("task", TASK), ("actor", ACTOR)):
        for number in (number for number, end in enumerate(ends) if end == "N"):
            while not (folder / place / str(number)).exists():
                time.sleep(0.05)
            other = cluster.add_node(num_cpus=1)
            cluster.remove_node(node, allow_graceful=False)
            node = other


if __name__ == "__main__":
    there = Path(sys.argv[1])
    for place in ("task", "actor"):
        (there / place).mkdir()
    forked_workers.use_forks()
    head = {"num_cpus": 0, "include_dashboard": False}
    shared = Cluster(initialize_head=True, head_node_args=head, shutdown_at_exit=False)
    try:
        first = shared.add_node(num_cpus=1)
        ray.init(shared.address, log_to_driver=False)
        set_context()
        threading.Thread(target=lose, args=(shared, first, there), daemon=True).start()
        work: Any = partial(begin, folder=there / "task", ends=TASK)
        rows = ray.data.from_items([{"id": 0}]).map_batches(work, **ray_task(Stage(num_cpus=0.25)))
        actors = ray_actors(Stage(num_cpus=0.5))
        found = list(batches(rows.map_batches(Beginning, fn_constructor_args=[there / "actor"], **actors)))
        sys.stdout.write(f"{[batch['id'].tolist() for batch in found]}\n")
    finally:
        ray.shutdown()
        shared.shutdown()

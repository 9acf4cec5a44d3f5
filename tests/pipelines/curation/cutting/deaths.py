"""Runs on a cluster of two nodes of which one is lost.

    python -m tests.pipelines.curation.cutting.deaths INPUT OUTPUT WHICH

The node that dies is that of the actor which measures (WHICH is own), or the one beside it (other).
"""

import sys
import threading
import time
from typing import Any

import ray
from ray.cluster_utils import Cluster
from ray.util.state import list_actors

from jobs.core.session import start_logging
from pipelines.core import deaths
from pipelines.curation.cutting.plan import make_plan
from pipelines.curation.cutting.score import score
from tests.pipelines.curation.outputs import quick


def node_of_the_scorer(address: str) -> str | None:
    """The node on which frames are measured."""
    actors: list[Any] = list_actors(address, filters=[("state", "=", "ALIVE")])
    for actor in actors:
        if "FrameScorer" in actor.class_name and actor.node_id:
            return actor.node_id
    return None


def lose_a_node(cluster: Cluster, workers: dict[str, Any], which: str) -> None:
    """Once there is the actor, end its node, or the other one."""
    while (node := node_of_the_scorer(str(cluster.address))) not in workers:
        time.sleep(0.2)
    (other,) = workers.keys() - {node}
    cluster.remove_node(workers[node if which == "own" else other], allow_graceful=False)
    sys.stdout.write("a node is gone\n")


if __name__ == "__main__":
    folder, place, which = sys.argv[1:]
    start_logging()
    deaths.QUIET_S = 10
    # The driver's node has no CPUs, so that every worker is on a node that may die.
    shared = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    two = [shared.add_node(num_cpus=1) for _ in range(2)]
    ray.init(shared.address, log_to_driver=False)
    settings = quick(folder, place)
    losing = threading.Thread(target=lose_a_node, args=(shared, {node.node_id: node for node in two}, which))
    losing.start()
    score(settings, make_plan(settings), lambda: make_plan(settings))
    losing.join()
    ray.shutdown()
    shared.shutdown()

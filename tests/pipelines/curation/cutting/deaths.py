"""Runs on a cluster of two nodes of which some are lost.

    python -m tests.pipelines.curation.cutting.deaths INPUT OUTPUT WHICH [SETTING...] [-- VERB SETTING...]

WHICH: own, the node of the actor which measures; other, the one beside it; both, and new ones come once the run says
that it waits for them; or folders of the output, as videos,measured: one node after the other, each once a folder has a
file, and each time another one comes. With the other one all workers of the head die: the actors that the driver and
Ray Data keep there. VERB: what follows on the output.
"""

import logging
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import ray
from ray._private.state import actors
from ray.cluster_utils import Cluster

from jobs.core.session import start_logging
from jobs.curation.__main__ import app
from pipelines.core import deaths
from tests.support import forked_workers
from tests.support.corpus import FAST

COMMAND = ("frames.size=64", "latents.model=tiny", *FAST[-2:])


def node_of_the_scorer() -> str | None:
    """The node on which frames are measured, as the head knows; its dashboard may take minutes to start."""
    for actor in actors().values():
        if actor["State"] == "ALIVE" and "FrameScorer" in actor["ActorClassName"]:
            return actor["Address"]["NodeID"]
    return None


def kill_workers_of_the_head(cluster: Cluster) -> None:
    """Kill what Ray runs in workers of the head's node, and none of its own processes there."""
    head: Any = cluster.head_node
    raylet = head.all_processes["raylet"][0].process.pid
    children = psutil.Process(raylet).children(recursive=True)
    # With its agents the raylet itself ends.
    workers = [child for child in children if any(word.endswith("default_worker.py") for word in child.cmdline())]
    for worker in workers:
        worker.kill()
    sys.stdout.write(f"{len(workers)} workers of the head are gone\n")


def lose(cluster: Cluster, workers: dict[str, Any], which: str, output: Path, waits: threading.Event) -> None:
    """End nodes, as the first paragraph says."""
    if which not in ("own", "other", "both"):
        for folder in which.split(","):
            while not any(path.is_file() and path.name[0] != "." for path in (output / folder).rglob("*")):
                time.sleep(0.02)
            lost = next(iter(workers))
            cluster.remove_node(workers.pop(lost), allow_graceful=False)
            sys.stdout.write("a node is gone\n")
            node = cluster.add_node(num_cpus=1)
            workers[node.node_id] = node
            sys.stdout.write("nodes have come\n")
        return
    while (node := node_of_the_scorer()) not in workers:
        time.sleep(0.2)
    (other,) = workers.keys() - {node}
    for lost in (node, other) if which == "both" else (other,) if which == "other" else (node,):
        cluster.remove_node(workers[lost], allow_graceful=False)
        sys.stdout.write("a node is gone\n")
    if which == "other":
        kill_workers_of_the_head(cluster)
    if which == "both":
        waits.wait()
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        sys.stdout.write("nodes have come\n")


class Waits(logging.Handler):
    """Notes that the run says it waits for nodes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        if "Waiting for nodes" in record.getMessage():
            self.seen.set()


if __name__ == "__main__":
    folder, place, which, *more = sys.argv[1:]
    end = more.index("--") if "--" in more else len(more)
    settings, then = more[:end], more[end + 1 :]
    start_logging()
    forked_workers.use_forks()
    deaths.QUIET_S, deaths.PAUSES_S = 10, (2.0,) * 10
    waiting = Waits()
    logging.getLogger("pipelines").addHandler(waiting)
    # The driver's node has no CPUs, so that every worker is on a node that may die. A thread that adds a node cannot
    # set the handlers of signals that would end it.
    head = {"num_cpus": 0, "include_dashboard": False}
    shared = Cluster(initialize_head=True, head_node_args=head, shutdown_at_exit=False)
    try:
        two = [shared.add_node(num_cpus=1) for _ in range(2)]
        ray.init(shared.address, log_to_driver=False)
        nodes = {node.node_id: node for node in two}
        losing = threading.Thread(target=lose, args=(shared, nodes, which, Path(place), waiting.seen), daemon=True)
        losing.start()
        code = app(["run", f"input={folder}", f"output={place}", *COMMAND, *settings], standalone_mode=False)
        if then and not code:
            code = app([then[0], place, *then[1:]], standalone_mode=False)
        losing.join(60)
    finally:
        ray.shutdown()
        shared.shutdown()
    sys.exit(code)

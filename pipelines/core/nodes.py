"""What every node of a cluster must see, or be able to do, before work begins."""

import logging
import time
import uuid
from collections.abc import Callable

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.core import storage
from actors.core.errors import UserError
from actors.media.torch_decoding import check_worker

log = logging.getLogger(__name__)

BUSY_S = 120.0
"""Seconds after which a node whose GPUs are all taken is left to the checks that its workers make."""
TRIES = 3
"""A shared file system may show a new file some seconds late."""


def check_shared(folder: str, sees: Callable[[str], bool] = storage.exists) -> None:
    """Raise UserError where a node with CPUs does not see a local folder: its workers could not write there.

    A token in the folder is looked for from every node but the driver's. sees: what looks, on the node.
    """
    here = ray.get_runtime_context().get_node_id()
    nodes = {
        node["NodeID"]: node["NodeManagerHostname"]
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get("CPU") and node["NodeID"] != here
    }
    if not nodes or folder.startswith("s3://"):
        return
    token = storage.join(folder, f".filmray-token-{uuid.uuid4().hex}")
    storage.write_bytes(token, b"")
    try:
        blind = _blind(nodes, sees, token)
        for number in range(1, TRIES):
            if blind:
                time.sleep(2 * number)
                blind = _blind(nodes, sees, token)
    finally:
        storage.delete(token)
    if not blind:
        return
    names = ", ".join(sorted({nodes[node] for node in blind})[:5])
    raise UserError(
        f"output={folder} is a local folder that {len(blind)} of {len(nodes)} other nodes do not see ({names}): "
        "write to s3://bucket/folder, or to a file system that all nodes share"
    )


def _blind(nodes: dict[str, str], sees: Callable[[str], bool], token: str) -> list[str]:
    """The nodes that do not see the token; one that dies meanwhile is none of them."""
    look = ray.remote(num_cpus=0)(sees)
    asked = {
        node: look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(token)
        for node in nodes
    }
    blind = []
    for node, answer in asked.items():
        try:
            if not ray.get(answer):
                blind.append(node)
        except RayTaskError:
            raise
        except RayError:
            continue
    return blind


def check_nvdec(num_gpus: float, check: Callable[[float], object] = check_worker) -> None:
    """Raise what a worker on a node with GPUs raises that cannot decode films on its share of one.

    check: what a worker does, with its share.
    """
    look = ray.remote(num_cpus=0, num_gpus=num_gpus, max_retries=0)(check)
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU", 0) >= num_gpus]
    asked = [
        look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(num_gpus)
        for node in nodes
    ]
    done, busy = ray.wait(asked, num_returns=len(asked), timeout=BUSY_S) if asked else ([], [])
    for answer in busy:
        ray.cancel(answer)
    if busy:
        log.warning(
            "%d of %d nodes have no GPU free: whether they can decode is not checked yet", len(busy), len(asked)
        )
    ray.get(done)

"""How many workers died of what they were at, apart from those that were lost with their node.

Ray repeats tasks of both, and without an end. So each task of a dataset has a note while it is under way, in the
key-value store of Ray's head: which workers began it. One that is begun again finds in Ray's table of workers how those
before ended, and asks their nodes whether the kernel has killed something for lack of memory meanwhile.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ray
from ray._private.state import state
from ray._raylet import WorkerID
from ray.core.generated import common_pb2, gcs_pb2
from ray.data._internal.execution.operators.map_operator import MapOperator
from ray.data._internal.execution.operators.map_transformer import MapTransformer
from ray.data._internal.logical.interfaces import Plan, Rule
from ray.data._internal.logical.optimizers import get_physical_ruleset
from ray.data._internal.logical.rules import FuseOperators
from ray.data.block import Block, BlockAccessor
from ray.exceptions import RayError
from ray.experimental import internal_kv
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

DEATHS = 3
"""Workers that what they are at may kill."""
NOTES = "filmray"
"""Namespace of the notes."""
_EXITS: Any = common_pb2
CRASHES = tuple(map(_EXITS.WorkerExitType.Value, ("SYSTEM_ERROR", "USER_ERROR")))
"""How a worker ends that its node did not end itself, as where memory ran short."""
VMSTAT = Path("/proc/vmstat")
LOOK_S = 60
"""Seconds for a node to say what its kernel has killed."""
FILM, NAME = "video_index", "video_id"
"""Columns that tell which videos a task is at, where it has them."""


class KilledError(RuntimeError):
    """What a task is at has killed DEATHS workers.

    films: the video_index of each video in it, where it has them. for_memory: the kernel killed some of the workers for
    lack of memory, as far as is known, which others may have taken.
    """

    def __init__(self, message: str, films: frozenset[int] = frozenset(), for_memory: bool = False) -> None:
        super().__init__(message, films, for_memory)
        self.films, self.for_memory = films, for_memory

    def __str__(self) -> str:
        return self.args[0]


def count_deaths() -> None:
    """Bound how often tasks of this process's datasets are begun again, by the deaths that they cause themselves."""
    rules = get_physical_ruleset()
    if _CountDeaths not in rules:
        rules.add(_CountDeaths)


def repeated(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """A task of Ray that is begun again whenever its node is lost, and DEATHS times where it kills its worker."""
    task: Any = ray.remote(max_retries=-1, **options)(_counted)
    return lambda *arguments: task.remote(function, *arguments)


def _counted(function: Callable[..., Any], *arguments: Any) -> Any:
    with _noted():
        return function(*arguments)


class _CountDeaths(Rule):
    @classmethod
    def dependencies(cls) -> list[type[Rule]]:
        return [FuseOperators]

    def apply(self, plan: Plan) -> Plan:
        for step in plan.dag.post_order_iter():
            if isinstance(step, MapOperator):
                step.get_map_transformer().__class__ = _Counted
        return plan


class _Counted(MapTransformer):
    """What an operator of Ray Data does in a task, and when its actors start."""

    def init(self) -> None:
        with _noted():
            super().init()

    def apply_transform(self, input_blocks: Iterable[Block], *arguments: Any, **options: Any) -> Iterator[Block]:
        blocks = list(input_blocks)
        with _noted(blocks):
            yield from super().apply_transform(blocks, *arguments, **options)

    def fuse(self, other: MapTransformer) -> MapTransformer:
        fused = super().fuse(other)
        fused.__class__ = _Counted
        return fused


@contextmanager
def _noted(blocks: Iterable[Block] = ()) -> Iterator[None]:
    """Note what this thread is at, unless it has killed DEATHS workers: then raise KilledError."""
    context = ray.get_runtime_context()
    key = f"{context.get_job_id()} {context.get_task_id()}"
    now = {"worker": context.get_worker_id(), "node": context.get_node_id(), "kills": memory_kills()}
    begun_before = internal_kv._internal_kv_put(key, json.dumps([now]), overwrite=False, namespace=NOTES)
    try:
        if begun_before:
            before = json.loads(internal_kv._internal_kv_get(key, namespace=NOTES) or "[]")
            # Later the kernel may have killed others.
            before = [one if "crashed" in one else one | _ended(**one) for one in before]
            if sum(one["crashed"] for one in before) >= DEATHS:
                raise _killed(blocks, any(one["for_memory"] for one in before))
            internal_kv._internal_kv_put(key, json.dumps([*before, now]), namespace=NOTES)
        yield
    finally:
        # One that stays costs 200 bytes of a head that is going away.
        with suppress(RayError):
            internal_kv._internal_kv_del(key, namespace=NOTES)


def memory_kills() -> int:
    """How many processes the kernel of this machine has killed for lack of memory, of it or of a container."""
    try:
        found = re.search(r"^oom_kill (\d+)$", VMSTAT.read_text(), re.MULTILINE)
    except FileNotFoundError:
        return 0
    return int(found[1]) if found else 0


def _ended(worker: str, node: str, kills: int) -> dict[str, bool]:
    """How a worker ended that began when the kernel of its node had killed so many processes."""
    if not _crashed(worker, node):
        return {"crashed": False, "for_memory": False}
    there: Any = NodeAffinitySchedulingStrategy(node, soft=False)
    look: Any = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(memory_kills)
    # Where the node is lost meanwhile, a crash remains.
    with suppress(RayError):
        kills_now: Any = ray.get(look.remote(), timeout=LOOK_S)
        return {"crashed": True, "for_memory": kills_now > kills}
    return {"crashed": True, "for_memory": False}


def _crashed(worker: str, node: str) -> bool:
    """Whether a worker crashed whose node lives: it did not go with its node, nor had to make room for others.

    It is the node that tells of the crash: one that is lost with all its workers tells nothing.
    """
    told = state._connect_and_get_accessor().get_worker_info(WorkerID.from_hex(worker))
    messages: Any = gcs_pb2
    about = messages.WorkerTableData.FromString(told) if told else None
    if about is None or about.is_alive or about.exit_type not in CRASHES:
        return False
    return node in {one["NodeID"] for one in ray.nodes() if one["Alive"]}


def _killed(blocks: Iterable[Block], for_memory: bool) -> KilledError:
    films: dict[int, str] = {}
    for block in blocks:
        rows: Any = BlockAccessor.for_block(block)
        if {FILM, NAME} <= set(rows.column_names()):
            narrow = BlockAccessor.for_block(rows.select([FILM, NAME])).to_arrow().to_pydict()
            films |= dict(zip(narrow[FILM], map(str, narrow[NAME]), strict=True))
    what = ", ".join([*films.values()][:5]) or str(ray.get_runtime_context().get_task_name())
    why = ". The kernel killed processes for lack of memory meanwhile: lower workers" if for_memory else ""
    return KilledError(f"{DEATHS} workers died at {what}, and none of their nodes{why}", frozenset(films), for_memory)

"""What to do when deaths of workers or nodes end what Ray runs: wait until Ray has noticed, and go on."""

import gc
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import ray
from ray import exceptions

from actors.core.stage import Stage
from pipelines.core.attempts import KilledError
from pipelines.core.progress import duration
from pipelines.core.ray_data import TooSmallError, check_nodes, fit

log = logging.getLogger(__name__)
T = TypeVar("T")

PAUSES_S = (10.0, 20.0, 40.0, 80.0, 120.0)
"""Ray takes up to half a minute to notice that a node is gone, and a new one minutes to start."""
ROOM_S = 1800.0
"""Seconds for which nodes are waited for where a cluster that was large enough has no room for one worker of each."""
LOOK_S, TOLD_EVERY_S = 5.0, 120.0
"""Seconds between two looks for them, and between two lines that say so."""
QUIET_S = 60.0
"""Seconds without a result after which it is asked whether the workers still fit the cluster."""


class ShrunkError(RuntimeError):
    """The cluster lost so much that what was asked for when the work began waits without end."""


_DEATHS = (
    KilledError,
    exceptions.ActorDiedError,
    exceptions.ActorUnavailableError,
    exceptions.NodeDiedError,
    exceptions.ObjectLostError,
    exceptions.OutOfMemoryError,
    exceptions.WorkerCrashedError,
)


class Perseverance:
    """Tries again after deaths, with longer and longer pauses; gives up after as many as there are without progress.

    Where nodes were lost meanwhile there is no end.

    ran: the cluster had room before; where it has none now, nodes are waited for.
    """

    def __init__(self, ran: bool = False) -> None:
        self.why = ""
        """The latest death in one line."""
        self.killed: frozenset[int] = frozenset()
        """The videos, by video_index, one of which killed the workers of the latest try; none where it is not known."""
        self.for_memory = False
        """Whether the kernel killed some of them for lack of memory."""
        self._known: frozenset[int] = frozenset()
        self._error: Exception | None = None
        self._pauses = 0
        self._done = -1
        self._nodes: frozenset[str] = frozenset()
        self.ran = ran
        """Whether something was tried before."""
        self._small_since: float | None = None

    def tried(self, work: Callable[[], None]) -> bool:
        """Do the work; False where a death ended it, or no room is left after one. Raises every other error."""
        self._error, self.killed, self._nodes = None, frozenset(), living_nodes()
        try:
            work()
        except TooSmallError as error:
            if not self.ran:
                raise
            self._error, self.why = error, str(error)
        except (exceptions.RayError, KilledError, ShrunkError) as error:
            if not died(error):
                raise
            told = getattr(error, "cause", error)
            told = told if isinstance(told, KilledError) else error
            self.killed = told.films if isinstance(told, KilledError) else frozenset()
            self.for_memory = isinstance(told, KilledError) and told.for_memory
            self._error, self.why = error, f"{type(told).__name__}: {str(told).strip().splitlines()[0]}"
            # Its frames hold the actors of the work that ended; these would start again and keep their CPUs.
            error.__traceback__ = error.__cause__ = error.__context__ = None
        self.ran = True
        if self._error is not None:
            gc.collect()
            return False
        return True

    @property
    def no_room(self) -> bool:
        """Whether the latest try did not begin, since the cluster had become too small."""
        return isinstance(self._error, TooSmallError)

    @property
    def lost_nodes(self) -> bool:
        """Whether nodes are gone that were there when the latest try began."""
        return not living_nodes() >= self._nodes

    def pause(self, done: int) -> None:
        """Wait before the next try; done: how much is there, to see progress. Raises the death where there is none."""
        if isinstance(self._error, TooSmallError):
            self._wait_for_nodes(self._error)
            return
        if self.killed - self._known:
            self._known |= self.killed
            log.warning("%s; going on without", self.why)
            return
        self._small_since = None
        if done > self._done:
            self._done, self._pauses = done, 0
        seconds = PAUSES_S[min(self._pauses, len(PAUSES_S) - 1)]
        self._pauses += 1
        log.warning("%s; going on with what is left in %.0f s", self.why, seconds)
        time.sleep(seconds)
        if self._error and self._pauses > len(PAUSES_S) and not self.lost_nodes:
            raise self._error

    def _wait_for_nodes(self, error: TooSmallError) -> None:
        """Wait until nodes have come or gone, or for as long as passes between two lines that say so."""
        nodes, now = living_nodes(), time.monotonic()
        self._small_since = now if self._small_since is None else self._small_since
        left = self._small_since + ROOM_S - now
        if left <= 0:
            raise ShrunkError(f"{error} (no nodes came within {duration(ROOM_S)})") from error
        log.warning("%s. Waiting for nodes, for up to %s; what is written is kept", error, duration(left))
        until = now + min(left, TOLD_EVERY_S)
        while living_nodes() == nodes and time.monotonic() < until:
            time.sleep(LOOK_S)


def died(error: Exception) -> bool:
    """Whether an error tells of a worker or node that died, by no exception of the code that it ran."""
    return isinstance(error, (*_DEATHS, ShrunkError)) and not getattr(error, "actor_init_failed", False)


def while_it_fits(results: Iterable[T], pools: dict[str, Stage], tasks: dict[str, Stage]) -> Iterator[T]:
    """Results of stages that run; raises ShrunkError where none comes and the cluster has become too small for them.

    Ray itself waits without a word: an actor that started again on what is left holds the CPUs that tasks need. Only in
    the main thread, since it is a signal that ends the wait.
    """
    if threading.current_thread() is not threading.main_thread():
        yield from results
        return
    latest, over = [time.monotonic()], threading.Event()
    main = threading.main_thread().ident
    assert main is not None

    def watch() -> None:
        while not over.wait(min(QUIET_S / 4, 15)):
            if time.monotonic() - latest[0] > QUIET_S and not _fits(pools, tasks) and not over.is_set():
                signal.pthread_kill(main, signal.SIGUSR2)
                return

    cpus, gpus, memory = (_wanted(name, pools, tasks) for name in ("num_cpus", "num_gpus", "memory"))
    needs = _told(cpus, gpus, memory)

    def shrunk(*_: object) -> None:
        there = ray.cluster_resources()
        have = _told(there.get("CPU", 0), there.get("GPU", 0), there.get("memory", 0))
        raise ShrunkError(f"the cluster has only {have} left, and the workers that were started need {needs}")

    with _handled(signal.SIGUSR2, shrunk):
        threading.Thread(target=watch, daemon=True).start()
        try:
            for result in results:
                latest[0] = time.monotonic()
                yield result
                latest[0] = time.monotonic()
        finally:
            over.set()


def _fits(pools: dict[str, Stage], tasks: dict[str, Stage]) -> bool:
    there, nodes = ray.cluster_resources(), [node["Resources"] for node in ray.nodes() if node["Alive"]]
    each = [node["CPU"] for node in nodes if node.get("CPU")]
    try:
        stages, _ = fit(pools, tasks, there.get("CPU", 0), there.get("GPU", 0), nodes=each)
        check_nodes(stages, nodes)
    except TooSmallError:
        return False
    memory = _wanted("memory", pools, tasks) <= there.get("memory", 0)
    return memory and stages == {**pools, **tasks}


def _told(cpus: float, gpus: float, memory: float) -> str:
    return f"{cpus:g} CPUs, {gpus:g} GPUs and {memory / 2**30:.1f} GiB of memory"


def _wanted(resource: str, pools: dict[str, Stage], tasks: dict[str, Stage]) -> float:
    """Of a resource, what all actors and one task of each kind ask Ray for."""
    each = (*((stage, stage.workers) for stage in pools.values()), *((stage, 1) for stage in tasks.values()))
    return sum(stage.resources().get(resource, 0) * workers for stage, workers in each)


@contextmanager
def _handled(number: signal.Signals, handler: Callable[..., None]) -> Iterator[None]:
    before: Any = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


def living_nodes() -> frozenset[str]:
    """Ids of the nodes that Ray counts as alive."""
    return frozenset(node["NodeID"] for node in ray.nodes() if node["Alive"])

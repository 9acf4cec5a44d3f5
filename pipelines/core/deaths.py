"""What to do when workers or nodes die more often than Ray repeats them: wait until Ray has noticed, and go on."""

import gc
import logging
import time
from collections.abc import Callable

import ray
from ray import exceptions

log = logging.getLogger(__name__)

PAUSES_S = (10.0, 20.0, 40.0, 80.0, 120.0)
"""Ray takes up to half a minute to notice that a node is gone, and a new one minutes to start."""
_DEATHS = (
    exceptions.ActorDiedError,
    exceptions.ActorUnavailableError,
    exceptions.NodeDiedError,
    exceptions.ObjectLostError,
    exceptions.OutOfMemoryError,
    exceptions.WorkerCrashedError,
)


class Perseverance:
    """Tries again after deaths, with longer and longer pauses; gives up after as many as there are without progress."""

    def __init__(self) -> None:
        self.why = ""
        """The latest death in one line."""
        self._error: Exception | None = None
        self._pauses = 0
        self._done = -1

    def tried(self, work: Callable[[], None]) -> bool:
        """Do the work; False where a death ended it. Raises every other error."""
        self._error = None
        try:
            work()
        except exceptions.RayError as error:
            if not died(error):
                raise
            self._error, self.why = error, f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
            # Its frames hold the actors of the work that ended; these would start again and keep their CPUs.
            error.__traceback__ = error.__cause__ = error.__context__ = None
        if self._error is not None:
            gc.collect()
            return False
        return True

    def pause(self, done: int) -> None:
        """Wait before the next try; done: how much is there, to see progress. Raises the death where there is none."""
        if done > self._done:
            self._done, self._pauses = done, 0
        if self._error and self._pauses == len(PAUSES_S):
            raise self._error
        seconds = PAUSES_S[self._pauses]
        self._pauses += 1
        log.warning("%s; going on with what is left in %.0f s", self.why, seconds)
        time.sleep(seconds)


def died(error: exceptions.RayError) -> bool:
    """Whether an error of Ray tells of a worker or node that died, by no exception of the code that it ran."""
    return isinstance(error, _DEATHS) and not getattr(error, "actor_init_failed", False)


def living_nodes() -> frozenset[str]:
    """Ids of the nodes that Ray counts as alive."""
    return frozenset(node["NodeID"] for node in ray.nodes() if node["Alive"])

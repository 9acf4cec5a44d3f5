"""Actors of a dataset that failed are ended, not only let go of."""

from typing import Any

import ray
from ray.actor import ActorHandle
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data._internal.execution.streaming_executor import StreamingExecutor


class EndActors(ExecutionCallback):
    """A callback for Ray Data's context, after which a dataset that fails leaves no actors.

    Ray drops its references and waits for the calls that are under way. One whose input was on a node that is lost
    never ends: its actor would keep the CPUs that the next try needs. Ray 2.60 has no setting for it.
    """

    def before_execution_starts(self, executor: StreamingExecutor) -> None:
        """Called by Ray Data."""
        executor.__class__ = _Ending


class _Ending(StreamingExecutor):
    def shutdown(self, force: bool, exception: Exception | None = None) -> None:
        actors = _actors(self) if exception else []
        super().shutdown(force, exception)
        for actor in actors:
            ray.kill(actor)


def _actors(executor: StreamingExecutor) -> list[ActorHandle]:
    pools: Any = [pool for operator in executor._topology or () for pool in operator.get_autoscaling_actor_pools()]
    return [actor for pool in pools for actor in [*pool._running_actors, *pool._pending_actors.values()]]

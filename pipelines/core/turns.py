"""The turns in which all workers of a run ask one service: an actor of Ray keeps them."""

import time
from typing import Any

from actors.models.vlm.asking import End, Turns
from actors.models.vlm.settings import VlmConfig


class RemoteTurns(Turns):
    """The turns of a run, which an actor of Ray keeps."""

    def __init__(self, keeper: Any) -> None:
        self._keeper = keeper

    def turn(self, name: str) -> float | None:
        return self._call("turn", name)

    def hold(self, wait_s: float | None) -> None:
        self._call("hold", wait_s)

    def heard(self) -> None:
        self._call("heard")

    def answered(self) -> bool:
        return self._call("answered")

    def settled(self, name: str, fault: str | None) -> None:
        self._call("settled", name, fault)

    def end(self, status: int, message: str) -> None:
        self._call("end", status, message)

    def ended(self) -> End | None:
        return self._call("ended")

    def stop(self) -> int:
        return self._call("stop")

    def _call(self, method: str, *arguments: Any) -> Any:
        import ray

        return ray.get(getattr(self._keeper, method).remote(*arguments))


def shared_turns(config: VlmConfig) -> RemoteTurns:
    """New turns of a run, by its settings."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    limits = config.requests_per_minute, config.max_requests, config.patience_s
    # On the driver's node, which is there as long as the run. If it dies, pauses and rates begin anew, but a budget
    # would, too.
    here: Any = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    lives = 0 if config.max_requests is not None else -1
    keeper = ray.remote(num_cpus=0, scheduling_strategy=here, max_restarts=lives, max_task_retries=lives)(Turns)
    return RemoteTurns(keeper.remote(*limits))


def finish_turns(turns: RemoteTurns, patience_s: float) -> None:
    """Stop, and wait until those under way have written what they get."""
    until = time.monotonic() + patience_s
    while turns.stop() and time.monotonic() < until:
        time.sleep(0.1)

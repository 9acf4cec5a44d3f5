"""Forks are processes of their own."""

import os
from typing import Any

import ray


class Worker:
    def tell(self) -> tuple[int, list[str]]:
        """Of whom it is a fork, and ids."""
        return os.getppid(), [ray.ObjectRef.from_random().hex() for _ in range(100)]


def test_forks_draw_ids_of_their_own(ray_cluster: None) -> None:
    actor: Any = ray.remote(num_cpus=1)(Worker)
    workers = [actor.remote() for _ in range(2)]
    (parent, some), (other, more) = ray.get([worker.tell.remote() for worker in workers])
    assert parent == other and parent != os.getpid(), "no forks of one server"
    assert set(some).isdisjoint(more)

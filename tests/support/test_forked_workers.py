"""Forks are processes of their own."""

import os

import ray


def test_forks_draw_ids_of_their_own(ray_cluster: None) -> None:
    @ray.remote(num_cpus=1)
    class Worker:
        def tell(self) -> tuple[int, list[str]]:
            return os.getppid(), [ray.ObjectRef.from_random().hex() for _ in range(100)]

    workers = [Worker.remote() for _ in range(2)]
    (parent, some), (other, more) = ray.get([worker.tell.remote() for worker in workers])
    assert parent == other and parent != os.getpid(), "no forks of one server"
    assert set(some).isdisjoint(more)

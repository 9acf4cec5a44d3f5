"""Parts of scores/ become few while a run goes on, and in the end: by one task of Ray at a time."""

from collections.abc import Sequence
from typing import Any

from actors.core.store import Store
from actors.curation.compacting import Compacted, compact, renew_places

MANY_PARTS = 1000
"""Parts that a run compacts together; less than half of them stay as they are."""
MEMORY_BYTES = 3 << 29
"""Memory that compaction takes for a group of parts of 100 MB; it has one at a time."""


def compact_output(store: Store) -> Compacted:
    """Compact all that can be, and tell places/ of it."""
    done = compact(store)
    renew_places(store, done)
    return done


class Compactor:
    """Compacts what a run has written, beside it."""

    def __init__(self, store: Store) -> None:
        self._store, self._written = store, 0
        self._running: list[Any] = []

    def wrote(self, parts: int) -> None:
        """Count parts that were written; where they are many, they are compacted."""
        self._written += parts
        if self._written >= MANY_PARTS and self._is_idle():
            self._start()

    def finish(self) -> None:
        """Compact what is left, if it is much, and wait for it."""
        import ray

        ray.get(self._running)
        if self._written >= MANY_PARTS:
            self._start()
            ray.get(self._running)

    def _is_idle(self) -> bool:
        import ray

        done, running = ray.wait(self._running, timeout=0) if self._running else ([], [])
        # A fault of the store is one of the run.
        ray.get(done)
        return not running

    def _start(self) -> None:
        import ray

        from pipelines.core.attempts import repeated

        # No CPU of its own: pools may hold all of them.
        task = repeated(compact, num_cpus=0, **_reserved(ray.nodes()))
        self._running, self._written = [task(self._store, MANY_PARTS // 2)], 0


def _reserved(nodes: Sequence[Any]) -> dict[str, int]:
    """Memory that Ray reserves for compaction: what it takes, or what the largest node has if that is less.

    nodes: as Ray lists them.
    """
    most = max((int(node["Resources"].get("memory", 0)) for node in nodes if node["Alive"]), default=0)
    memory = min(MEMORY_BYTES, most)
    return {"memory": memory} if memory else {}

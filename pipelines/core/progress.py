"""How far a run is, told every ten seconds."""

import logging
import time

from ray.data import Dataset

log = logging.getLogger(__name__)

INTERVAL_S = 10.0


class Ticker:
    """Due once in ten seconds, for the first time ten seconds after it was made."""

    def __init__(self) -> None:
        self._made = self._last = time.monotonic()

    def due(self) -> bool:
        """Whether it is time; if so, the next ten seconds begin."""
        now = time.monotonic()
        if now - self._last <= INTERVAL_S:
            return False
        self._last = now
        return True

    def rate(self, count: int) -> float:
        """So many in all, by the second since it was made."""
        return count / (time.monotonic() - self._made)


def finish(rows: Dataset, column: str, total: int, done: str) -> None:
    """Run a dataset whose batches say in a column how much they have done, of so much in all.

    Args:
        done: what is done, in words, as "boxes cut".
    """
    count, ticker = 0, Ticker()
    for counts in rows.iter_batches(batch_size=None, prefetch_batches=0):
        count += int(counts[column].sum())
        if ticker.due():
            log.info("%d of %d %s, %.0f a second", count, total, done, ticker.rate(count))

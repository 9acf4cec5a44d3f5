"""When to say how far a run is."""

import time

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

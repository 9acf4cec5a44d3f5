"""What this process reads, writes and decodes, counted; whoever can export it takes the counts."""

import threading
from collections.abc import Callable, Mapping

FILM = "film_seconds"
"""Seconds of film that were decoded."""
READ, WRITTEN = "read_bytes", "written_bytes"
"""Bytes read from and written to a store; a film of a folder counts whole, since its decoder reads it by itself."""
S3, FOLDER = "s3", "folder"

Counted = tuple[str, str]
"""What is counted, and of which store; "" where it is of none."""


class Meters:
    """Counts of one process: handed on one by one where somebody takes them, held until then."""

    def __init__(self) -> None:
        self._held: dict[Counted, float] = {}
        self._taker: Callable[[Counted, float], None] | None = None
        self._lock = threading.Lock()

    def add(self, what: str, amount: float, store: str = "") -> None:
        """Count so much more."""
        if amount <= 0:
            return
        if self._taker is not None:
            self._taker((what, store), amount)
            return
        with self._lock:
            self._held[what, store] = self._held.get((what, store), 0) + amount

    def update(self, counts: Mapping[Counted, float]) -> None:
        """Count what another process has counted."""
        for (what, store), amount in counts.items():
            self.add(what, amount, store)

    def take(self) -> dict[Counted, float]:
        """What was counted since the last call."""
        with self._lock:
            counts, self._held = self._held, {}
        return counts

    def hand_to(self, taker: Callable[[Counted, float], None] | None) -> None:
        """From now on call this for each count, and once for each that is held; None: hold them again."""
        self._taker = taker
        if taker is not None:
            self.update(self.take())


METERS = Meters()
"""The counts of this process."""


class Gathered:
    """What comes in many small amounts, counted when enough of it is there, since counting takes its time."""

    def __init__(self, what: str, enough: float = 10.0) -> None:
        self._what, self._enough, self._amount = what, enough, 0.0

    def add(self, amount: float) -> None:
        """Gather so much more."""
        self._amount += amount
        if self._amount > self._enough:
            self.hand_on()

    def hand_on(self) -> None:
        """Count what is there."""
        METERS.add(self._what, self._amount)
        self._amount = 0.0

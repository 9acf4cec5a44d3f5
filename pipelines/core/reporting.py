"""What others see of a run while it goes on: runs/VERB.progress.json, which `status` reads, and the page status.html.

A thread writes them, so that the run neither waits for them nor ends where they cannot be written.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

from actors.core import storage
from actors.core.patience import ENDING_S, briefly
from actors.core.store import Store

log = logging.getLogger(__name__)

FIRST_S, EVERY_S, LAST_S = 1.0, 10.0, 60.0
"""Seconds until the first write, and between two: at first, and at most."""
SLOWER = 0.05
"""Share of a run's time that passes between two writes, in between: after 10 minutes, 30 s."""
LINES = 20
"""Log lines that the page shows."""
PAGE = "status.html"


@dataclass(frozen=True)
class Snapshot:
    """How far a run is."""

    stages: dict[str, dict[str, Any]]
    """`Progress.about` of each, and the `time` of it."""
    lines: list[str]
    """The last log lines."""
    next_s: float | None
    """Seconds until the next one; None: the run has ended."""


class _Lines(logging.Handler):
    """Keeps the last log lines of this project, and warnings of others."""

    def __init__(self) -> None:
        super().__init__()
        self.last: deque[str] = deque(maxlen=LINES)
        self.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))

    def emit(self, record: logging.LogRecord) -> None:
        self.last.append(self.format(record))


class Report:
    """The reports of one run of a verb; page: makes the page of a snapshot."""

    def __init__(self, store: Store, verb: str, page: Callable[[Snapshot], bytes]) -> None:
        self._store, self._page = store, page
        self._name = ("runs", f"{verb}.progress.json")
        self._stages: dict[str, dict[str, Any]] = {}
        self._changed = self._there = self._shown = self._told = self._closed = False
        self._lines, self._over = _Lines(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def begin(self) -> None:
        """Write from now on."""
        logging.getLogger().addHandler(self._lines)
        self._thread.start()

    def update(self, stage: str, about: dict[str, Any]) -> None:
        """Say how far a stage is; returns at once."""
        # A new mapping: the thread may be reading the one before.
        self._stages = {**self._stages, stage: about}
        self._changed = True

    def close(self, mistaken: bool = False) -> None:
        """Remove the progress file, and let the page say how the run has ended, if it was there long enough for one.

        mistaken: the user has to mend something first, so that a page of an earlier run stays.
        """
        if self._closed:
            return
        self._closed = True
        self._over.set()
        logging.getLogger().removeHandler(self._lines)
        # A write that waits for its store is not waited for.
        self._thread.join(timeout=ENDING_S)
        with briefly():
            if self._there:
                self._kept(lambda: storage.delete(self._store.uri(*self._name)))
            if not self._thread.is_alive():
                self._kept(partial(self._end_page, mistaken))

    def _end_page(self, mistaken: bool) -> None:
        # One of an earlier run would still say that it was killed.
        if self._shown or (not mistaken and storage.exists(self._store.uri(PAGE))):
            self._write_page(None)

    def _run(self) -> None:
        begun, wait = time.monotonic(), FIRST_S
        while not self._over.wait(wait):
            passed = time.monotonic() - begun
            wait = EVERY_S - FIRST_S if wait == FIRST_S else min(max(EVERY_S, SLOWER * passed), LAST_S)
            if self._changed:
                self._changed = False
                self._kept(self._write_progress)
            if passed >= EVERY_S - FIRST_S:
                self._kept(partial(self._write_page, wait))

    def _write_progress(self) -> None:
        self._there = True
        self._store.write_json(self._stages, *self._name)

    def _write_page(self, next_s: float | None) -> None:
        storage.write_bytes(self._store.uri(PAGE), self._page(Snapshot(self._stages, list(self._lines.last), next_s)))
        self._shown = True

    def _kept(self, write: Callable[[], None]) -> None:
        """Write or remove something, and warn once where that fails: a run does not fail by it."""
        try:
            write()
        except (OSError, ValueError) as fault:
            if not self._told:
                log.warning("%s: how far the run is cannot be written (%s); it goes on", self._store.root, fault)
            self._told = True


_REPORT: ContextVar[Report | None] = ContextVar("report", default=None)


@contextmanager
def reporting(store: Store, verb: str, page: Callable[[Snapshot], bytes]) -> Iterator[Report]:
    """Report how far a verb is until the end of the block, or until `close`; after a kill the last reports stay."""
    report = Report(store, verb, page)
    token = _REPORT.set(report)
    report.begin()
    try:
        yield report
    finally:
        _REPORT.reset(token)
        report.close()


def report_progress(stage: str, about: dict[str, Any]) -> None:
    """Say how far a stage is, if somebody reports it."""
    if (report := _REPORT.get()) is not None:
        report.update(stage, {**about, "time": time.time()})

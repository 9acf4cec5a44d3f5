"""How far a stage is: a live line on a terminal, elsewhere log lines at growing intervals, and a file for `status`."""

import logging
import math
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import copy_context
from types import TracebackType
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Live

from actors.core import storage
from actors.core.log_format import as_json
from actors.core.store import Store
from pipelines.core.monitoring import export_failed, export_progress
from pipelines.core.reporting import report_progress

log = logging.getLogger(__name__)
T = TypeVar("T")

FIRST_S, LAST_S = 10.0, 600.0
"""Seconds between two log lines of a stage: first, and at most; each interval is twice the one before."""
FOLLOW_S = 2.0
"""Seconds between two looks at how far a training is."""
PROGRESS_FILE = "training.progress.json"


class Progress:
    """Progress of one stage, as a context: `advance` counts what is done.

    Args:
        stage: its name.
        total: how much there is to do; None where nobody knows.
        unit: what is counted, in the plural.
    """

    _live: Live | None = None
    _open = 0

    def __init__(self, stage: str, total: int | None, unit: str = "rows") -> None:
        self.stage, self.total, self.unit = stage, total, unit
        self.done: float = 0
        self.codes: Counter[str] = Counter()
        """How many rows got which error code."""
        self._before: float = 0
        self._started = time.monotonic()
        self._interval = FIRST_S
        self._next = self._started + FIRST_S
        self._task: Any = None

    def __enter__(self) -> "Progress":
        if sys.stderr.isatty() and not as_json():
            if Progress._live is None:
                columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), "{task.fields[unit]}")
                rate = TextColumn("{task.fields[rate]}")
                Progress._live = Live(*columns, rate, TimeRemainingColumn(), console=Console(stderr=True))
                Progress._live.start()
            self._task = Progress._live.add_task(self.stage, total=self.total, unit=self.unit, rate="")
            Progress._open += 1
        report_progress(self.stage, self.about())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None and Progress._live is not None:
            Progress._open -= 1
            if not Progress._open:
                Progress._live.stop()
                Progress._live = None

    @property
    def rate(self) -> float:
        """How much is done a second, since the stage began."""
        return (self.done - self._before) / max(time.monotonic() - self._started, 1e-9)

    def resume(self, done: float) -> None:
        """Count what an earlier run had done, which says nothing of the rate."""
        self.done = self._before = done

    def advance(self, count: float = 1, note: str = "") -> None:
        """Count what is done, 0 to say that the stage still runs; note: more that a line should say, as a loss."""
        self.done += count
        export_progress(self.stage, self.unit, count, self.done, self.total)
        now = time.monotonic()
        if self._task is not None and Progress._live is not None:
            rate = f"{self.rate:.3g}/s {note}".strip()
            Progress._live.update(self._task, completed=self.done, rate=rate)
        elif now >= self._next:
            log.info("%s%s", str(self), f", {note}" if note else "", extra=self.about(note))
            self._interval = min(2 * self._interval, LAST_S)
            self._next = now + self._interval
        report_progress(self.stage, self.about(note))

    def about(self, note: str = "") -> dict[str, Any]:
        """How far it is, as values by name."""
        numbers = {"done": self.done, "total": self.total, "unit": self.unit, "rate": round(self.rate, 3)}
        more = {"remaining_s": self.remaining_s, "note": note, "codes": dict(self.codes)}
        return {"stage": self.stage, **numbers, **more}

    def fail(self, codes: Mapping[str, int]) -> None:
        """Count rows by the error code that they got, for who watches the run."""
        self.codes.update(codes)
        export_failed(self.stage, self.unit, codes)

    @property
    def remaining_s(self) -> float | None:
        """Seconds left at the rate so far; None where that is not known."""
        if self.total is None or self.done <= self._before:
            return None
        return round((self.total - self.done) / self.rate, 1)

    def __str__(self) -> str:
        return line(self.stage, self.done, self.total, self.unit, self.rate, self.remaining_s)


def line(stage: str, done: float, total: int | None, unit: str, rate: float, remaining_s: float | None) -> str:
    """Progress as a line of text; of what is done in part, with one digit."""
    count = f"{done:,}" if done == int(done) else f"{done:,.1f}"
    of = "" if total is None else f" of {total:,}"
    left = "" if remaining_s is None else f", {duration(remaining_s)} left"
    speed = f", {rate:.3g}/s" if rate or done else ""
    return f"{stage}: {count}{of} {unit}{speed}{left}"


def duration(seconds: float) -> str:
    """A length of time, as 2 h 05 min."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min"


def tracked(
    items: Iterable[T],
    progress: Progress,
    count: Callable[[T], int] = lambda _: 1,
    codes: Callable[[T], Mapping[str, int]] = lambda _: {},
) -> Iterator[T]:
    """The items, counted once each is dealt with; count: how much is done with an item; codes: what failed of it."""
    with progress:
        for item in items:
            yield item
            progress.fail(codes(item))
            progress.advance(count(item))


@contextmanager
def ticking(progress: Progress, note: str = "") -> Iterator[None]:
    """Show that a stage still runs, while one step of it says nothing."""
    progress.advance(0, note)
    with _polling(lambda: progress.advance(0, note)):
        yield


@contextmanager
def _polling(look: Callable[[], None]) -> Iterator[None]:
    """Call `look` every FOLLOW_S."""
    over = threading.Event()

    def run() -> None:
        while not over.wait(FOLLOW_S):
            look()

    # In a copy of the context, where the verb's progress file is known.
    thread = threading.Thread(target=copy_context().run, args=(run,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


class ProgressFile:
    """How a training worker tells the driver how far it is: a file below the output.

    begin: what was done before, by an earlier run.
    """

    def __init__(self, output: str, begin: float = 0) -> None:
        self._store, self._written, self._begin = Store(output), -math.inf, begin

    def write(self, done: float, note: str, every: float = 1.0) -> None:
        """Write how much is done, and a note such as a loss, if the last time is so many seconds ago."""
        if time.monotonic() - self._written >= every:
            self._store.write_json({"done": done, "note": note, "begin": self._begin}, PROGRESS_FILE)
            self._written = time.monotonic()


@contextmanager
def following(output: str, progress: Progress) -> Iterator[None]:
    """Show what workers write into the progress file while the driver waits for them; removes the file in the end."""
    store, note, known = Store(output), "workers start", False

    def look() -> None:
        nonlocal note, known
        if about := store.read_json(PROGRESS_FILE):
            if not known:
                progress.resume(about["begin"])
            known, note = True, about["note"]
            progress.advance(about["done"] - progress.done, note)
        else:
            progress.advance(0, note)

    def clear() -> None:
        if store.read_json(PROGRESS_FILE) is not None:
            storage.delete(store.uri(PROGRESS_FILE))

    # What a killed training left says nothing of this one.
    clear()
    try:
        with progress, _polling(look):
            yield
    finally:
        clear()

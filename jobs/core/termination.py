"""SIGTERM ends a command as SIGINT does: its record is written, and Ray and child processes end."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

REPEATED_S = 10.0
"""Seconds in which further SIGTERMs change nothing: `timeout` sends two, and the record is being written."""


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived. A KeyboardInterrupt, since that is what Ray and this project's own code clean up after."""


class _Handler:
    def __init__(self) -> None:
        self._last: float | None = None

    def __call__(self, number: int, frame: Any) -> None:
        now = time.monotonic()
        if self._last is None or now - self._last > REPEATED_S:
            self._last = now
            raise Terminated("by SIGTERM")


@contextmanager
def terminable() -> Iterator[None]:
    """Raise Terminated where SIGTERM arrives meanwhile; outside the main thread nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _Handler())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def kept_handler() -> Iterator[None]:
    """Keep the handler of SIGTERM where a library sets its own, as ray.init does, which exits with 15."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit as error:
        if error.code == signal.SIGTERM and isinstance(before, _Handler):
            raise Terminated("by SIGTERM") from error
        raise
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)

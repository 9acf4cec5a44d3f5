"""SIGTERM ends a command as SIGINT does, with its record and nothing left running. A second SIGINT kills it."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from actors.core.log_format import as_json, json_line
from actors.core.patience import set_ending

AT_ONCE_S = 0.2
"""Seconds in which a further SIGINT is the same one: `timeout` sends two."""
REPEATED_S = 10.0
"""Seconds in which further SIGTERMs change nothing: the record is being written. After that one kills."""


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived. A KeyboardInterrupt, since that is what Ray and this project's own code clean up after."""


class _Handler:
    """The handler of both signals: the first one raises, a later one kills."""

    def __init__(self) -> None:
        self._first: float | None = None

    def begin(self) -> None:
        """Note that the first one is here."""
        self._first = time.monotonic()
        set_ending(True)

    def __call__(self, number: int, frame: Any) -> None:
        now = time.monotonic()
        if self._first is None:
            self.begin()
            if number == signal.SIGTERM:
                raise Terminated("by SIGTERM")
            _tell(b"Stopping. Press Ctrl-C again to kill.\n")
            raise KeyboardInterrupt
        if now - self._first > (AT_ONCE_S if number == signal.SIGINT else REPEATED_S):
            _tell(b"Killed. Rerun the same command to resume.\n")
            # Decoding processes and a Ray that this process has started end with it.
            os._exit(128 + number)


def _tell(line: bytes) -> None:
    if as_json():
        line = f"{json_line('WARNING', __name__, line.decode().strip())}\n".encode()
    # Python's own files may be in the middle of a line here.
    with suppress(OSError):
        os.write(2, line)


@contextmanager
def terminable() -> Iterator[None]:
    """Raise Terminated or KeyboardInterrupt where a signal arrives meanwhile, and kill at another one.

    Outside the main thread nothing changes. SIGINT stays ignored where it was, as in the background of a shell.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = _Handler()
    numbers = [signal.SIGTERM]
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        numbers.append(signal.SIGINT)
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
        set_ending(False)


@contextmanager
def kept_handler() -> Iterator[None]:
    """Keep the handler of SIGTERM where a library sets its own, as ray.init does, which exits with 15."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit as error:
        if error.code == signal.SIGTERM and isinstance(before, _Handler):
            before.begin()
            raise Terminated("by SIGTERM") from error
        raise
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)

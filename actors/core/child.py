"""Run a generator function in a child process that can crash, hang or be killed at the cost of one call.

Decoders are C code fed with whatever a corpus holds. A worker keeps one child alive and hands it one video after the
other; the child sends back what the function yields. A value of None is a sign of life and is not passed on.
"""

import atexit
import importlib
import itertools
import logging
import math
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

from actors.core.errors import BrokenRunError, machine_fault
from actors.core.log_format import LineFormatter
from actors.core.machine import private_bytes
from actors.core.meters import METERS

log = logging.getLogger(__name__)
ROOT = Path(__file__).resolve().parents[2]

IDLE_S = 30.0
"""Seconds without a call after which a child ends. Ray keeps a worker process long after a stage's last task, and the
memory of its child, on a GPU also a CUDA context, would be missing elsewhere. Starting one takes a second or two."""
WATCH_S = 0.1
"""Seconds between two looks at a child's memory. A decoder fills about 1 GiB a second."""
COUNTED_S = 5.0
"""Seconds between two reports of a child of what it has counted, within one call."""
DECODE_ATTEMPTS = 2
"""Calls in all for a film whose decoding crashes: the crash may have been another's, as when memory ran out."""


class ChildFault(Exception):
    """The child crashed, hung, failed or took too long.

    code: the error code of the row that it worked on. attempts: how many calls were made.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.attempts = 1


class Child:
    """One child process, started at the first call and again after a fault; it ends when it was idle for IDLE_S."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls = 0
        self._timer: threading.Timer | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None
        self._devices: str | None = None
        self._grown = 0

    def stream(
        self,
        function: Callable[..., Iterable[Any]],
        *args: Any,
        stall_s: float,
        timeout_s: float,
        memory_bytes: float = math.inf,
        attempts: int = 1,
        key: Callable[[Any], Hashable] | None = None,
    ) -> Generator[Any, None, float]:
        """Yield what a function of a module yields in the child, called with the arguments; return the CPU seconds.

        memory_bytes: what the process may take for itself, beside files that it has mapped. attempts: calls in all;
        only a call that crashed is made again. key: what tells rows apart, by which those that come again after a crash
        are skipped; without it they are yielded again.

        Raises ChildFault with the code `crashed` (the process ended), `stalled` (no sign of life for `stall_s`),
        `timeout` (`timeout_s` for one call), `too_large` (more memory than it may take) or `exception` (the function
        raised; its traceback is logged); BrokenRunError where the function raised that, or is not there.
        """
        name = _name(function)
        seen: set[Hashable] = set()

        def fresh(row: Any) -> bool:
            if key is None:
                return True
            count = len(seen)
            seen.add(key(row))
            return len(seen) > count

        for attempt in itertools.count(1):
            try:
                return (yield from self._call(name, args, stall_s, timeout_s, memory_bytes, fresh))
            except ChildFault as fault:
                fault.attempts = attempt
                if fault.code != "crashed" or attempt == attempts:
                    raise
        raise AssertionError("unreachable")

    def _call(
        self,
        name: str,
        args: tuple[Any, ...],
        stall_s: float,
        timeout_s: float,
        memory_bytes: float,
        fresh: Callable[[Any], bool],
    ) -> Generator[Any, None, float]:
        """One call of the function by that name, as `stream` describes it; yields the rows that are `fresh`."""
        pipe = self._slim(memory_bytes)
        until = time.monotonic() + timeout_s
        done = False
        try:
            with self._watched(memory_bytes):
                pipe.send((name, args))
                while True:
                    left = until - time.monotonic()
                    if left <= 0:
                        raise ChildFault("timeout", f"not done after {timeout_s:.0f} s")
                    if not pipe.poll(min(stall_s, left)):
                        if stall_s < left:
                            raise ChildFault("stalled", f"no progress for {stall_s:.0f} s")
                        continue
                    kind, value = self._receive(pipe, stall_s)
                    if kind == "counted":
                        METERS.update(value)
                        continue
                    done = kind != "item"
                    if kind == "broken":
                        raise BrokenRunError(value)
                    if kind == "exception":
                        about = {"film": args[0] if args else None, "code": "exception"}
                        log.warning("%s%r failed: %s", name, args[:1], value, extra=about)
                        raise ChildFault("exception", value.strip().rpartition("\n")[2])
                    if kind == "end":
                        return value
                    if value is not None and fresh(value):
                        yield value
        except (EOFError, OSError) as error:
            # An OSError also where it ended in the middle of a row.
            raise self._crash(memory_bytes) from error
        finally:
            if done:
                self._rest()
            else:
                self.kill()

    @contextmanager
    def _watched(self, memory_bytes: float) -> Iterator[None]:
        """Kill the child while this lasts, where it takes more memory; `_grown` is how much it had then."""
        process, over, self._grown = self._process, threading.Event(), 0
        assert process is not None

        def watch() -> None:
            while not over.wait(WATCH_S):
                taken = private_bytes(process.pid)
                if taken > memory_bytes:
                    self._grown = taken
                    process.kill()
                    return

        watcher = threading.Thread(target=watch, daemon=True)
        if math.isfinite(memory_bytes):
            watcher.start()
        try:
            yield
        finally:
            over.set()
            if watcher.is_alive():
                watcher.join()

    def _rest(self) -> None:
        """End the child after a while, unless another call has begun by then."""

        def end(calls: int) -> None:
            with self._lock:
                if calls == self._calls:
                    self.kill()

        self._timer = threading.Timer(IDLE_S, end, [self._calls])
        self._timer.daemon = True
        self._timer.start()

    def _receive(self, pipe: Connection, stall_s: float) -> tuple[str, Any]:
        """One message whose first bytes are there; raises ChildFault where the child stops in the middle of it."""
        assert self._process is not None
        stalled = threading.Event()

        def end(process: subprocess.Popen[bytes]) -> None:
            stalled.set()
            process.kill()

        timer = threading.Timer(stall_s, end, [self._process])
        timer.start()
        try:
            return pipe.recv()
        except (EOFError, OSError):
            if stalled.is_set():
                raise ChildFault("stalled", f"no progress for {stall_s:.0f} s in the middle of a row") from None
            raise
        finally:
            timer.cancel()

    def interrupt(self) -> None:
        """End the call that another thread waits in: it raises ChildFault with the code `crashed`."""
        process = self._process
        if process is not None:
            process.kill()

    def kill(self) -> None:
        """End the child at once; the next call starts another."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None

    def _crash(self, memory_bytes: float) -> ChildFault:
        """Why the child has ended."""
        assert self._process is not None
        code = self._process.wait()
        if self._grown:
            took, may = (f"{size / 2**30:.1f} GiB" for size in (self._grown, memory_bytes))
            return ChildFault("too_large", f"decoding took {took} of memory, and memory_gb allows {may}")
        how = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        return ChildFault("crashed", f"the decoding process ended {how}")

    def _slim(self, memory_bytes: float) -> Connection:
        """The pipe to a child that has most of this memory left: what calls before hold must not count against one."""
        pipe = self._start()
        assert self._process is not None
        if private_bytes(self._process.pid) <= memory_bytes / 2:
            return pipe
        self.kill()
        return self._start()

    def _start(self) -> Connection:
        if self._timer:
            self._timer.cancel()
        # It may be at work already.
        with self._lock:
            self._calls += 1
        devices = os.environ.get("CUDA_VISIBLE_DEVICES")
        # A worker process may serve another GPU in its next task; the child has its own from the start.
        if self._process is not None and (self._process.poll() is not None or devices != self._devices):
            self.kill()
        if self._process is None:
            ours, theirs = Pipe()
            path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
            # One thread a child: parallelism is over files.
            threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
            self._process = subprocess.Popen(
                [sys.executable, "-m", "actors.core.child", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env={**os.environ, **threads, "PYTHONPATH": path},
            )
            theirs.close()
            self._pipe, self._devices = ours, devices
        assert self._pipe is not None
        return self._pipe


def _name(function: Callable[..., Any]) -> str:
    """`module:function`, by which the child finds it."""
    module = function.__module__
    # A module that runs as a program has this name here; in the child it is another one.
    if module == "__main__" and (spec := sys.modules[module].__spec__) is not None:
        module = spec.name
    return f"{module}:{function.__qualname__}"


CHILD = Child()
"""The child of this worker process."""
atexit.register(CHILD.kill)


def _leave_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def serve(pipe: Connection) -> None:
    """What the child does: call after call until the pipe is closed."""
    while True:
        try:
            function, args = pipe.recv()
        except EOFError:
            return
        module, name = function.split(":")
        started, counted = time.process_time(), time.monotonic()
        METERS.take()
        try:
            try:
                for value in getattr(importlib.import_module(module), name)(*args):
                    pipe.send(("item", value))
                    if time.monotonic() - counted > COUNTED_S:
                        pipe.send(("counted", METERS.take()))
                        counted = time.monotonic()
            finally:
                pipe.send(("counted", METERS.take()))
        except BrokenPipeError:
            return
        except (BrokenRunError, ImportError) as error:
            pipe.send(("broken", str(error)))
        except Exception as error:
            fault = machine_fault(error)
            pipe.send(("broken", fault) if fault else ("exception", traceback.format_exc()))
        else:
            pipe.send(("end", time.process_time() - started))


if __name__ == "__main__":
    # Ctrl-C reaches the whole group of processes; the parent ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if logging.lastResort:
        # What writes warnings where nothing else is set up.
        logging.lastResort.setFormatter(LineFormatter())
    threading.Thread(target=_leave_with, args=(os.getppid(),), daemon=True).start()
    # By the module's own name, so that its exceptions are those that functions import and raise.
    importlib.import_module("actors.core.child").serve(Connection(int(sys.argv[1])))

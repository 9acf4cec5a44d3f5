"""Run a generator function in a child process that can crash, hang or be killed at the cost of one call.

Decoders are C code fed with whatever a corpus holds. A worker keeps one child alive and hands it one video after the
other; the child sends back what the function yields. A value of None is a sign of life and is not passed on.
"""

import atexit
import importlib
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Generator
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


class ChildFault(Exception):
    """The child crashed, hung or took too long; `code` is the error code of the row that it worked on."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Child:
    """One child process, started at the first call and again after a fault."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None
        self._devices: str | None = None

    def stream(self, function: str, *args: Any, stall_s: float, timeout_s: float) -> Generator[Any, None, float]:
        """Yield what `module:function` yields in the child, called with the arguments; return the CPU seconds it took.

        Raises ChildFault with the code `crashed` (the process ended), `stalled` (no sign of life for `stall_s`) or
        `timeout` (`timeout_s` in all); RuntimeError with the child's traceback where the function itself raised.
        """
        pipe = self._start()
        until = time.monotonic() + timeout_s
        done = False
        try:
            pipe.send((function, args))
            while True:
                left = until - time.monotonic()
                if left <= 0:
                    raise ChildFault("timeout", f"not done after {timeout_s:.0f} s")
                if not pipe.poll(min(stall_s, left)):
                    if stall_s < left:
                        raise ChildFault("stalled", f"no progress for {stall_s:.0f} s")
                    continue
                kind, value = pipe.recv()
                if kind == "error":
                    done = True
                    raise RuntimeError(f"{function} failed in the child process:\n{value}")
                if kind == "end":
                    done = True
                    return value
                if value is not None:
                    yield value
        except (EOFError, OSError) as error:
            # An OSError also where it ended in the middle of a row.
            raise ChildFault("crashed", f"the decoding process ended {self._exit()}") from error
        finally:
            if not done:
                self.kill()

    def kill(self) -> None:
        """End the child at once; the next call starts another."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None

    def _exit(self) -> str:
        assert self._process is not None
        code = self._process.wait()
        return f"by signal {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"

    def _start(self) -> Connection:
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
                [sys.executable, "-m", "actors.process", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env={**os.environ, **threads, "PYTHONPATH": path},
            )
            theirs.close()
            self._pipe, self._devices = ours, devices
        assert self._pipe is not None
        return self._pipe


CHILD = Child()
"""The child of this worker process."""
atexit.register(CHILD.kill)


def _leave_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _serve(pipe: Connection) -> None:
    while True:
        try:
            function, args = pipe.recv()
        except EOFError:
            return
        module, name = function.split(":")
        started = time.process_time()
        try:
            for value in getattr(importlib.import_module(module), name)(*args):
                pipe.send(("item", value))
        except BrokenPipeError:
            return
        except Exception:
            pipe.send(("error", traceback.format_exc()))
        else:
            pipe.send(("end", time.process_time() - started))


if __name__ == "__main__":
    threading.Thread(target=_leave_with, args=(os.getppid(),), daemon=True).start()
    _serve(Connection(int(sys.argv[1])))

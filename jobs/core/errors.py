"""What an error ends a command with: 2 for what the user can mend, 1 for a fault, by the cause that Ray wraps."""

import logging
import re
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import typer

from actors.core.errors import FURTHER, UserError
from actors.core.log_format import as_json
from jobs.core.termination import Terminated

log = logging.getLogger(__name__)

DONE, FAILED, USAGE, REJECTED = 0, 1, 2, 3
"""Exit codes: done, failed, bad usage or settings, more rows rejected than allowed."""
INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM
"""Exit codes of a command that SIGINT (130) or SIGTERM (143) ended, as shells have them."""

_NO_CUDA = re.compile(
    r"Found no NVIDIA driver|No CUDA GPUs are available|not compiled with CUDA|CUDA driver version is insufficient"
    r"|no CUDA-capable device|NVIDIA driver on your system is too old|requires at least one CUDA device"
)
_RAY_HINT = re.compile(r"(?:^|\n)Failed to apply UDF transform after \d+/\d+ attempts.*", re.DOTALL)
"""What Ray Data writes behind a message, which may be empty."""


@dataclass(frozen=True)
class Cause:
    """The root cause of an error."""

    name: str
    """Class of the exception, without its module."""
    message: str
    users: bool
    """Whether the user can mend it."""

    def __str__(self) -> str:
        return f"{self.name}: {self.message}".strip().removesuffix(":")


def root_cause(error: BaseException) -> Cause:
    """The error that a worker raised, where Ray wraps it; else the error itself."""
    while (inner := _inside(error)) is not None:
        error = inner
    kind = type(error).__name__
    if kind == "UnserializableException" or (kind == "ActorDiedError" and "raised in its creation task" in str(error)):
        return _cause_in(error)
    return Cause(kind, _RAY_HINT.sub("", str(error)), isinstance(error, UserError))


def _inside(error: BaseException) -> BaseException | None:
    """What a Ray error wraps."""
    if not type(error).__module__.startswith("ray."):
        # RayTaskError(ValueError) is a class made for the case, with the module of Ray's exceptions.
        return None
    failures: Any = getattr(error, "worker_failures", None)
    if failures:
        return next(iter(failures.values()))
    # A training whose workers could not begin has the first, and other errors the second.
    cause = getattr(error, "controller_failure", None) or getattr(error, "cause", None)
    if isinstance(cause, BaseException):
        return cause
    before = error.__cause__
    # Ray Data raises its errors from an exception of its own that says nothing.
    return before if before is not None and str(before) else None


def _cause_in(error: BaseException) -> Cause:
    """The exception at the end of the traceback that a Ray error tells: nothing else is left of one that cannot be
    unpickled, and of an actor that failed to start."""
    lines = _RAY_HINT.sub("", str(error)).strip().splitlines()
    frames = [number for number, line in enumerate(lines) if line.startswith("  File ")]
    after = frames[-1] + 1 if frames else 0
    # The code of the frame; a message may have lines that are indented, too, but not its first.
    while after < len(lines) - 1 and lines[after].startswith(" "):
        after += 1
    last = "\n".join(lines[after:])
    found = re.match(r"([A-Za-z_][\w.]*)(?:: (.*))?$", last, re.DOTALL)
    if found is None:
        return Cause(type(error).__name__, last, False)
    users = found[1] in {f"{one.__module__}.{one.__qualname__}" for one in _kinds(UserError)}
    return Cause(found[1].rpartition(".")[2], found[2] or "", users)


def _kinds(kind: type) -> list[type]:
    return [kind, *(deep for one in kind.__subclasses__() for deep in _kinds(one))]


@contextmanager
def inputs_are_named() -> Iterator[None]:
    """Turn a file that is missing or cannot be read into a UserError; for plans, which read nothing but inputs."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError) as error:
        reason = {
            FileNotFoundError: "does not exist",
            IsADirectoryError: "is a folder, and a file is needed",
            NotADirectoryError: "is a file, and a folder is needed",
        }.get(type(error), "cannot be read: permission denied")
        told = f"{error.filename} {reason}" if error.filename else str(error)
        raise UserError(f"{told}. Check the setting that names it.") from error


def no_cuda(cause: Cause, config: Any) -> str:
    """What to do where a worker that holds a GPU found no CUDA device; "" for another cause. config: of the verb."""
    if not _NO_CUDA.search(cause.message):
        return ""
    settings = ", ".join(f"{name}={value:g}" for name, value in _gpus(config)) or "num_gpus"
    first = cause.message.partition(". ")[0]
    return (
        f"{settings}: a worker was given a GPU on which CUDA does not run ({first}). Check that node's driver with "
        "nvidia-smi, or set num_gpus=0 to compute on CPUs."
    )


def _gpus(config: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """Settings that ask for GPUs, by dotted path."""
    for one in fields(config) if is_dataclass(config) else ():
        value = getattr(config, one.name)
        if one.name == "num_gpus" and value:
            yield f"{path}num_gpus", value
        yield from _gpus(value, f"{path}{one.name}.")


@contextmanager
def exit_codes() -> Iterator[None]:
    """Turn a UserError into its message and exit code 2, any other error into its traceback, its cause and 1.

    SIGINT and SIGTERM end with a line that names them, and 130 or 143.
    """
    try:
        yield
    except typer.Exit:
        raise
    except KeyboardInterrupt as error:
        name, code = ("SIGTERM", TERMINATED) if isinstance(error, Terminated) else ("SIGINT", INTERRUPTED)
        told = "Ended by %s. What is written so far is kept. Rerun the same command to resume."
        log.warning(told, name, extra={"exit_code": int(code)})
        raise typer.Exit(code) from error
    except Exception as error:
        cause = root_cause(error)
        if cause.users:
            if as_json():
                for mistake in cause.message.split(FURTHER):
                    log.error(mistake, extra={"exit_code": USAGE})
            else:
                print(f"error: {cause.message}", file=sys.stderr)
            raise typer.Exit(USAGE) from error
        last = str(cause).splitlines()[0] if str(cause) else cause.name
        raise failed(FAILED, last, error) from error


def failed(code: int, reason: str, error: BaseException | None = None) -> typer.Exit:
    """Tell why a command fails, with the traceback of an error, and return what ends it with that code."""
    if as_json():
        log.error("failed: %s", reason, extra={"exit_code": code}, exc_info=error)
    else:
        trace = "".join(traceback.format_exception(error)) if error else ""
        print(f"{trace}failed: {reason}", file=sys.stderr, flush=True)
    return typer.Exit(code)

"""A child that crashes, hangs or fails costs one call, and the next call works."""

import importlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from actors.core import child as child_module
from actors.core.child import Child, ChildFault
from actors.core.errors import BrokenRunError


def count(n: int) -> Iterator[int | None]:
    for i in range(n):
        yield None
        yield i


def die(after: int, how: int) -> Iterator[int]:
    yield from range(after)
    os.kill(os.getpid(), how)


def die_until(tries: int, tally: str) -> Iterator[int]:
    """0 and 1 and a crash, `tries` times, each a byte longer file; then 0 to 3."""
    with open(tally, "ab") as file:
        file.write(b".")
        calls = file.tell()
    yield from range(2 if calls <= tries else 4)
    if calls <= tries:
        os.kill(os.getpid(), signal.SIGKILL)


def hang() -> Iterator[int]:
    yield 1
    time.sleep(60)


def beat_forever() -> Iterator[None]:
    while True:
        time.sleep(0.01)
        yield None


def rest_for(seconds: float) -> Iterator[int]:
    """The process that answers, after a while without a sign of life."""
    time.sleep(seconds)
    yield os.getpid()


def fail() -> Iterator[int]:
    yield 1
    raise KeyError("wrong")


def lack() -> Iterator[int]:
    raise BrokenRunError("install it")
    yield 1


def need() -> Iterator[int]:
    importlib.import_module("no_such_module")
    yield 1


def exhaust() -> Iterator[int]:
    raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore lines")
    yield 1


def stop_sending() -> Iterator[bytes]:
    """Stop the process with a pipe full of the beginning of a row; nobody reads before."""
    yield b""
    threading.Timer(0.5, os.kill, [os.getpid(), signal.SIGSTOP]).start()
    yield bytes(64 << 20)


HELD: list[bytearray] = []


def fill(mebibytes: int, keep: bool) -> Iterator[int]:
    """Take memory, a MiB in a few milliseconds, and maybe keep it after the call; yields the process first."""
    yield os.getpid()
    for _ in range(mebibytes):
        HELD.append(bytearray(b"x") * (1 << 20))
        time.sleep(0.002)
    if not keep:
        HELD.clear()


@pytest.fixture
def child() -> Iterator[Child]:
    child = Child()
    yield child
    child.kill()


def test_yields_what_the_function_yields_and_stays_alive(child: Child):
    assert list(child.stream(count, 3, stall_s=20, timeout_s=30)) == [0, 1, 2]
    assert list(child.stream(count, 2, stall_s=20, timeout_s=30)) == [0, 1]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSEGV])
def test_a_crash_keeps_what_came_before_and_names_the_signal(child: Child, how: signal.Signals):
    stream = child.stream(die, 2, int(how), stall_s=20, timeout_s=30)
    assert [next(stream), next(stream)] == [0, 1]
    with pytest.raises(ChildFault, match=how.name) as fault:
        next(stream)
    assert fault.value.code == "crashed"
    assert list(child.stream(count, 2, stall_s=20, timeout_s=30)) == [0, 1]


@pytest.mark.parametrize(("key", "expected"), [(None, [0, 1, 0, 1, 0, 1, 2, 3]), (abs, [0, 1, 2, 3])])
def test_a_call_that_crashed_is_made_again(
    child: Child, tmp_path: Path, key: Callable[[int], int] | None, expected: list[int]
):
    tally = str(tmp_path / "calls")
    assert list(child.stream(die_until, 2, tally, stall_s=20, timeout_s=30, attempts=3, key=key)) == expected


def test_the_last_crash_is_raised_with_the_number_of_attempts(child: Child, tmp_path: Path):
    tally = tmp_path / "calls"
    stream = child.stream(die_until, 9, str(tally), stall_s=20, timeout_s=30, attempts=2, key=abs)
    assert [next(stream), next(stream)] == [0, 1]
    with pytest.raises(ChildFault, match="SIGKILL") as fault:
        next(stream)
    assert (fault.value.code, fault.value.attempts, tally.stat().st_size) == ("crashed", 2, 2)


def start(child: Child) -> None:
    """Start the child, which takes a second or more: no part of a stall that a test waits for."""
    assert list(child.stream(count, 1, stall_s=20, timeout_s=30)) == [0]


@pytest.mark.parametrize(
    ("function", "limits", "code"),
    [
        (hang, {"stall_s": 3, "timeout_s": 30}, "stalled"),
        (beat_forever, {"stall_s": 3, "timeout_s": 2}, "timeout"),
        (fail, {"stall_s": 20, "timeout_s": 30}, "exception"),
    ],
)
def test_only_a_crash_is_followed_by_another_attempt(
    child: Child, function: Callable[[], Iterator[int]], limits: dict[str, Any], code: str
):
    with pytest.raises(ChildFault) as fault:
        list(child.stream(function, **limits, attempts=2))
    assert (fault.value.code, fault.value.attempts) == (code, 1)


def test_a_hang_ends_after_the_stall_and_endless_work_after_the_timeout(child: Child):
    start(child)
    stream = child.stream(hang, stall_s=3, timeout_s=30)
    assert next(stream) == 1
    with pytest.raises(ChildFault) as fault:
        next(stream)
    assert fault.value.code == "stalled"
    with pytest.raises(ChildFault) as fault:
        list(child.stream(beat_forever, stall_s=3, timeout_s=2))
    assert fault.value.code == "timeout"
    assert list(child.stream(count, 1, stall_s=20, timeout_s=30)) == [0]


def test_an_exception_costs_one_call_and_its_traceback_is_logged(child: Child, caplog: pytest.LogCaptureFixture):
    with pytest.raises(ChildFault, match=r"^KeyError: 'wrong'$") as fault:
        list(child.stream(fail, stall_s=20, timeout_s=30))
    assert fault.value.code == "exception"
    assert "Traceback" in caplog.text and "in fail" in caplog.text
    assert list(child.stream(count, 1, stall_s=20, timeout_s=30)) == [0]


@pytest.mark.parametrize(
    ("function", "told"),
    [(lack, "install it"), (need, "no_such_module"), (exhaust, "CUDA out of memory.*raise num_gpus")],
)
def test_what_would_fail_for_every_file_ends_the_run(child: Child, function: Callable[[], Iterator[int]], told: str):
    with pytest.raises(BrokenRunError, match=told):
        list(child.stream(function, stall_s=20, timeout_s=30))
    assert list(child.stream(count, 1, stall_s=20, timeout_s=30)) == [0]


def test_a_child_that_stops_in_the_middle_of_a_row_has_stalled(child: Child):
    start(child)
    stream = child.stream(stop_sending, stall_s=3, timeout_s=30)
    assert next(stream) == b"" and child._process is not None
    process = psutil.Process(child._process.pid)
    while process.status() != psutil.STATUS_STOPPED:
        time.sleep(0.05)
    with pytest.raises(ChildFault, match="in the middle of a row") as fault:
        next(stream)
    assert fault.value.code == "stalled"
    assert list(child.stream(count, 1, stall_s=20, timeout_s=30)) == [0]


def test_a_call_that_is_left_early_leaves_no_process_at_work(child: Child):
    stream = child.stream(count, 100_000, stall_s=20, timeout_s=30)
    assert next(stream) == 0
    stream.close()
    assert list(child.stream(count, 1, stall_s=20, timeout_s=30)) == [0]


def test_another_thread_ends_a_call(child: Child):
    stream = child.stream(hang, stall_s=60, timeout_s=60)
    assert next(stream) == 1
    threading.Timer(0.1, child.interrupt).start()
    with pytest.raises(ChildFault, match="SIGKILL") as fault:
        next(stream)
    assert fault.value.code == "crashed"
    assert list(child.stream(count, 1, stall_s=20, timeout_s=30)) == [0]


def test_an_idle_child_ends_and_the_next_call_works(child: Child, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(child_module, "IDLE_S", 1.0)
    assert list(child.stream(count, 1, stall_s=20, timeout_s=30)) == [0]
    assert child._process is not None
    process = psutil.Process(child._process.pid)
    process.wait(timeout=20)
    assert list(child.stream(count, 1, stall_s=20, timeout_s=30)) == [0]


def test_a_child_that_has_another_call_does_not_end(child: Child, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(child_module, "IDLE_S", 0.3)
    assert list(child.stream(count, 1, stall_s=20, timeout_s=30)) == [0]
    assert child._process is not None
    before = child._process.pid
    assert list(child.stream(rest_for, 1.0, stall_s=20, timeout_s=30)) == [before]


def test_a_call_that_takes_more_memory_ends_and_the_next_one_works(child: Child):
    limits: dict[str, Any] = {"stall_s": 20, "timeout_s": 30, "attempts": 3}
    stream = child.stream(fill, 4000, False, memory_bytes=300 << 20, **limits)
    assert next(stream) > 0
    with pytest.raises(ChildFault, match=r"took 0\.\d GiB of memory, and memory_gb allows 0\.3 GiB") as fault:
        next(stream)
    assert (fault.value.code, fault.value.attempts) == ("too_large", 1)
    assert 300 << 20 < child._grown < 600 << 20
    assert len(list(child.stream(fill, 100, False, memory_bytes=300 << 20, **limits))) == 1
    assert list(child.stream(count, 2, stall_s=20, timeout_s=30)) == [0, 1]


def test_memory_is_watched_while_nobody_takes_rows(child: Child):
    stream = child.stream(fill, 4000, False, stall_s=20, timeout_s=30, memory_bytes=200 << 20)
    process = psutil.Process(next(stream))
    process.wait(20)
    with pytest.raises(ChildFault) as fault:
        next(stream)
    assert fault.value.code == "too_large"


def test_what_a_call_has_left_does_not_count_against_the_next(child: Child):
    limits: dict[str, Any] = {"stall_s": 20, "timeout_s": 30}
    [first] = child.stream(fill, 250, True, memory_bytes=400 << 20, **limits)
    [second] = child.stream(fill, 250, True, memory_bytes=400 << 20, **limits)
    [third] = child.stream(fill, 10, True, memory_bytes=4000 << 20, **limits)
    assert first != second == third

"""What this machine, or the container that a process is in, has: memory and CPUs; and what a process takes of them."""

import os
from contextlib import suppress
from pathlib import Path

_MEMORY_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_CPU_LIMIT = "/sys/fs/cgroup/cpu.max"


def memory_bytes() -> int:
    """Memory of this machine, or of its container where that has less, in bytes."""
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in _MEMORY_LIMITS:
        # Without a limit, "max" stands there, or a number beyond all memory.
        with suppress(OSError, ValueError):
            there = min(there, int(Path(name).read_text()))
    return there


def cpus() -> float:
    """CPUs that this process may use."""
    there = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    with suppress(OSError, ValueError):
        quota, period = Path(_CPU_LIMIT).read_text().split()
        there = min(there, int(quota) / int(period))
    return there


def private_bytes(pid: int) -> int:
    """Memory that a process has for itself, in bytes, without files that it has mapped; 0 where that is not known."""
    try:
        _, resident, shared, *_ = Path(f"/proc/{pid}/statm").read_bytes().split()
    except (OSError, ValueError):
        return 0
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")


def cpu_s() -> float:
    """CPU-seconds that this process and those that it started have taken, living ones included where /proc tells."""
    now = os.times()
    return now.user + now.system + now.children_user + now.children_system + sum(map(_cpu_s, _children(os.getpid())))


def _cpu_s(pid: int) -> float:
    """CPU-seconds of a process and those that it started; 0 where that is not known."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    # utime, stime, cutime, cstime
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK") + sum(map(_cpu_s, _children(pid)))


def _children(pid: int) -> list[int]:
    found = []
    for tasks in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            found += map(int, tasks.read_text().split())
    return found

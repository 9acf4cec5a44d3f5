"""What this machine, or the container that a process is in, has: memory and CPUs; and what memory a process takes."""

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

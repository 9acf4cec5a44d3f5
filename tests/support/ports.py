"""Ports for servers that a test starts as processes, which must be told theirs before they listen."""

import os
import random
import socket
from contextlib import ExitStack

FIRST, EACH, WORKERS = 20_000, 2_000, 6
"""Between the ports of Ray's workers and those that the system gives out by itself, 2,000 for each of pytest's workers.
Of the system's, one that was free a moment ago may be another's by then: a client that knocks too early would talk to
that one, and keep its connection."""


def free_ports(count: int) -> list[int]:
    """As many ports of 127.0.0.1 on which nothing listens, and which no other of pytest's workers draws."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    first = FIRST + worker % WORKERS * EACH
    with ExitStack() as held:
        found: list[int] = []
        for port in random.SystemRandom().sample(range(first, first + EACH), EACH):
            taken = held.enter_context(socket.socket())
            try:
                taken.bind(("127.0.0.1", port))
            except OSError:
                continue
            found.append(port)
            if len(found) == count:
                return found
    raise OSError(f"no {count} free ports from {first} to {first + EACH}")

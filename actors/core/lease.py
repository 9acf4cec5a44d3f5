"""Who is at work on an output: a small file there, renewed while its run lives, that counts for a minute after.

It spares a second run the work. Rows are right also where two are at work: so two that take over at the same moment do
no harm, and a holder that finds the file taken over goes on.
"""

import json
import logging
import os
import secrets
import shlex
import socket
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from actors.core import storage
from actors.core.errors import UserError
from actors.core.patience import ENDING_S
from actors.core.store import Store

log = logging.getLogger(__name__)

RENEWED_S = 10.0
"""Seconds between two renewals."""
LEASE_S = 60.0
"""Seconds for which a lease counts that is not renewed, by the clock of the store."""
LOOK_S = 2.0
"""Seconds between two looks at the lease of another machine."""


class HeldError(UserError):
    """Another run is at work."""


class Lease:
    """The lease `runs/NAME.lease` of an output, as a context; force: take it whoever is at work; about: what else it
    says of the run.

    Raises HeldError where a run is at work. Whether one of another machine still is shows by a renewal, which is waited
    for; one of this machine, by its process.
    """

    def __init__(self, store: Store, name: str, force: bool = False, **about: str) -> None:
        self._root, self._uri, self._force = store.root, store.uri("runs", f"{name}.lease"), force
        self._about: dict[str, Any] = {
            "token": secrets.token_hex(8),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": shlex.join(sys.argv[1:]),
            "machine": _machine(),
            "started": _started(os.getpid()),
            "renewed": 0,
            **about,
        }
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)

    def __enter__(self) -> "Lease":
        if not storage.create_bytes(self._uri, self._data()):
            self._take_over()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        # A renewal that waits for its store is not waited for.
        self._thread.join(timeout=ENDING_S)
        try:
            if self._is_ours():
                storage.delete(self._uri)
        except OSError as fault:
            log.info("%s stays for %.0f s: %s", self._uri, LEASE_S, fault)

    def _data(self) -> bytes:
        return json.dumps(self._about, indent=1).encode()

    def _take_over(self) -> None:
        """Replace the lease of a run that has ended, or raise HeldError."""
        told, before = False, b""
        while not self._force:
            try:
                data, age = storage.read_bytes(self._uri), storage.age_s(self._uri)
            except FileNotFoundError:
                break
            other = _parsed(data)
            alive = _alive(other)
            if alive or (before and data != before):
                raise HeldError(_at_work(self._root, other))
            if alive is False or age >= LEASE_S:
                break
            if not told:
                log.info("%s Waiting for up to %.0f s to see whether it is.", _named(self._root, other), LEASE_S - age)
            told, before = True, data
            time.sleep(LOOK_S)
        if self._force:
            log.warning("--force: not checking who else is at work on %s", self._root)
        storage.write_bytes(self._uri, self._data())

    def _is_ours(self) -> bool:
        try:
            return _parsed(storage.read_bytes(self._uri)).get("token") == self._about["token"]
        except FileNotFoundError:
            return False

    def _renew(self) -> None:
        while not self._over.wait(RENEWED_S):
            try:
                if not self._is_ours():
                    log.warning("Another run has taken over %s. This one goes on; the rows stay right.", self._uri)
                    return
                self._about["renewed"] += 1
                storage.write_bytes(self._uri, self._data())
            except OSError as fault:
                # What the work itself meets there ends the run, if it has to.
                log.info("%s is not renewed: %s", self._uri, fault)


def holders(store: Store) -> Iterator[tuple[dict[str, Any], bool]]:
    """What each lease of an output says, and whether its run is at work: it lives, or renewed its lease lately."""
    for entry in storage.listing(store.uri("runs"), (".lease",)):
        try:
            other, age = _parsed(storage.read_bytes(entry.uri)), storage.age_s(entry.uri)
        except FileNotFoundError:
            continue
        alive = _alive(other)
        yield other, age < LEASE_S if alive is None else alive


def _parsed(data: bytes) -> dict[str, Any]:
    try:
        about = json.loads(data)
    except ValueError:
        about = None
    return about if isinstance(about, dict) else {}


def _named(root: str, other: dict[str, Any]) -> str:
    who = f"{other.get('host', 'another machine')}, process {other.get('pid', '?')}"
    return f"{root}: a run may be at work ({who}, since {other.get('since', '?')}: {other.get('command', '?')})."


def _at_work(root: str, other: dict[str, Any]) -> str:
    return (
        f"{root}: another run is at work on it: {other.get('host')}, process {other.get('pid')}, since "
        f"{other.get('since')}: {other.get('command')}. Wait for its end, or add --force to work beside it."
    )


def _machine() -> str:
    """This boot of this machine, and the container in which process ids count; "" where the system does not say."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(pid: int) -> str:
    """When a process of this machine began, in ticks; "" where there is none, or it is dead."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def _alive(other: dict[str, Any]) -> bool | None:
    """Whether the holder lives, if it is a process of this machine; None where that cannot be known from here."""
    if not _machine() or other.get("machine") != _machine():
        return None
    return bool(other.get("started")) and _started(int(other["pid"])) == other["started"]

"""The page by which a run is watched without Ray: one file that asks for itself anew while the run goes on."""

import base64
import hashlib
import os
import re
import shlex
import socket
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from actors.core.lease import LEASE_S
from actors.core.store import Store
from pipelines.core.progress import duration, line
from pipelines.core.reporting import Snapshot

if TYPE_CHECKING:
    from jobs.core.verbs import Verb

SCRIPT = """
const about = document.documentElement.dataset, age = () => Date.now() / 1000 - about.updated;
const told = seconds => seconds < 90 ? Math.round(seconds) + " s" : Math.round(seconds / 60) + " min";
function show() {
  document.getElementById("age").textContent = "(" + told(Math.max(0, age())) + " ago)";
  if (about.stale && age() > about.stale) {
    document.getElementById("state").textContent = "No update for " + told(age());
    document.getElementById("killed").hidden = false;
    document.body.className = "bad-run";
    document.title = document.title.replace(/^Running/, "No update");
  }
}
show();
setInterval(show, 1000);
"""
_SECRET = re.compile(r"(?<=://)[^/@\s]+@")
"""User name and password of an address."""


def page(verb: "Verb", record: Mapping[str, Any], store: Store, snapshot: Snapshot) -> bytes:
    """The page of a run as it is now; record: what is kept at its end, as far as it is filled."""
    from jobs.core.pages import render

    ended, now = snapshot.next_s is None, datetime.now(UTC)
    stages = [_stage(about, now.timestamp()) for about in snapshot.stages.values()]
    text = render(
        "core/status.html.j2",
        state=_state(record) if ended else "Running",
        bad=ended and record["status"] != "done",
        error=record["error"] if ended else None,
        root=store.root,
        verb=record["command"],
        started=record["started"],
        seconds=(now - datetime.fromisoformat(record["started"])).total_seconds(),
        command=_SECRET.sub("", shlex.join(sys.argv[1:])),
        host=socket.gethostname(),
        pid=os.getpid(),
        updated=now,
        refresh=None if ended else max(5, round(snapshot.next_s or 0)),
        # Two updates may be late by a while, as a lease may.
        stale=None if ended else round(2 * (snapshot.next_s or 0) + LEASE_S),
        stages=stages,
        codes=[(one["stage"], code, count) for one in stages for code, count in sorted(one["codes"].items())],
        summary=verb.summary(record, store) if ended and record["status"] == "done" else [],
        lines=[_SECRET.sub("", one) for one in snapshot.lines],
        script=SCRIPT,
        digest=base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode(),
    )
    return text.encode()


def _stage(about: Mapping[str, Any], now: float) -> dict[str, Any]:
    numbers = (about[key] for key in ("done", "total", "unit", "rate", "remaining_s"))
    text = line("", *numbers).removeprefix(": ")
    share = min(about["done"] / about["total"], 1.0) if about["total"] else None
    return {**about, "text": text, "share": share, "ago": duration(now - about["time"])}


def _state(record: Mapping[str, Any]) -> str:
    error = str(record["error"])
    if error.startswith(("KeyboardInterrupt", "Terminated")):
        return "Interrupted"
    return {"done": "Done", "rejected": "Too many rows rejected"}.get(record["status"], "Failed")

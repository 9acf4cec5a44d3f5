"""Watch the runs of an output from outside until they end: by their leases, their progress files and their records."""

import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from actors.core.lease import holders
from actors.core.log_format import as_json
from actors.core.store import Store
from pipelines.core.progress import FIRST_S, LAST_S

log = logging.getLogger(__name__)


def watch(store: Store, interval_s: float, lines: Callable[[], list[str]]) -> str:
    """Show how far the runs of an output are until none is at work; returns why the last one failed, "" if it did not.

    lines: what is shown of them.
    """
    seen: dict[str, dict[str, Any]] = {}
    with _screen() as show:
        while True:
            alive = {other["token"]: other for other, lives in holders(store) if lives}
            seen |= alive
            if not alive:
                break
            show([*(at_work(other) for other in alive.values()), *lines()])
            time.sleep(interval_s)
    left = {other["token"]: other for other, _ in holders(store)}
    # Without one that was seen at work: a lease that stayed is of a run that was killed.
    reasons = [_fault(store, other, token in left) for token, other in (seen or left).items()]
    if not seen and not left and (last := _last(store)):
        reasons = [_fault_of(last)]
    return "; ".join(filter(None, reasons))


def at_work(other: dict[str, Any]) -> str:
    """Who holds a lease, as a line."""
    since = other.get("since", "?")
    return f"at work: {other.get('command', '?')} ({other.get('host')}, process {other.get('pid')}, since {since})"


def _fault(store: Store, other: dict[str, Any], left: bool) -> str:
    """Why a run that is over failed; "" if it did not."""
    verb = other.get("verb", "a run")
    if left:
        return f"{verb} was killed, or its machine is gone. Rerun the same command to resume"
    # Curation has one record for all of its verbs.
    for name in (("runs", f"{verb}.json"), ("run.json",)):
        record = store.read_json(*name)
        if record is not None and record.get("started") == other.get("run"):
            return _fault_of(record)
    return f"{verb} was ended by a mistake in its settings or its input"


def _fault_of(record: dict[str, Any]) -> str:
    done = record["status"] == "done"
    return "" if done else f"{record['command']} {record['status']}: {record['error'] or 'too many rows rejected'}"


def _last(store: Store) -> dict[str, Any] | None:
    """The record of the run that began last."""
    from actors.core import storage

    names = [entry.name for entry in storage.listing(store.uri("runs"), (".json",))]
    found = [store.read_json("runs", name) for name in names if not name.endswith(".progress.json")]
    records = [one for one in [*found, store.read_json("run.json")] if one and "started" in one]
    return max(records, key=lambda one: one["started"], default=None)


@contextmanager
def _screen() -> Iterator[Callable[[Sequence[str]], None]]:
    """What shows lines: a terminal is refreshed; elsewhere they are logged when they change, at growing intervals."""
    if sys.stdout.isatty() and not as_json():
        with Live(console=Console(), auto_refresh=False) as live:
            yield lambda lines: live.update(Text("\n".join(lines)), refresh=True)
        return
    due, interval = time.monotonic(), FIRST_S

    def show(lines: Sequence[str]) -> None:
        nonlocal due, interval
        if time.monotonic() >= due:
            for line in lines:
                log.info("%s", line)
            due, interval = time.monotonic() + interval, min(2 * interval, LAST_S)

    yield show

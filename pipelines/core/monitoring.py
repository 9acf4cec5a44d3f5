"""Metrics of a run, beside Ray's own on the port of each node that Prometheus reads; docs/grafana.json draws them.

Of a stage, in its unit: filmray_items_total counts what this run has done, filmray_errors_total by error code what has
failed; filmray_done_items and filmray_expected_items are how much is done, by earlier runs too, and how much there is.
Of each worker: filmray_film_seconds_total, filmray_read_bytes_total and filmray_written_bytes_total.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

from actors.core.meters import FILM, METERS, READ, WRITTEN, Counted

if TYPE_CHECKING:
    from ray.util.metrics import Counter, Gauge

METERED = {
    FILM: "Seconds of film that were decoded",
    READ: "Bytes that were read from a store",
    WRITTEN: "Bytes that were written to a store",
}

GAUGES = {
    "filmray_done_items": "Items of a stage that are done",
    "filmray_expected_items": "Items of a stage in all",
}
SHOWN_S = 5.0
"""Seconds between two exports of a gauge: Ray drops one that is not set for some 10 s, as that of a slow stage would
be, and those of a driver that was killed are."""
_shown: dict[tuple[str, str, str], float] = {}


def export_progress(stage: str, unit: str, more: float, done: float, total: float | None) -> None:
    """Export how far a stage is, where this process has joined Ray; more: what is done since the last call."""
    if not _joined():
        return
    tags = {"stage": stage, "unit": unit}
    if more > 0:
        _counter("filmray_items_total", "Items of a stage that this run has done", *tags).inc(more, tags)
    _shown["filmray_done_items", stage, unit] = done
    if total is not None:
        _shown["filmray_expected_items", stage, unit] = total
    _show()


def export_failed(stage: str, unit: str, codes: Mapping[str, int]) -> None:
    """Export how many more rows of a stage have failed, by error code, where this process has joined Ray."""
    for code, count in codes.items() if _joined() else ():
        tags = {"stage": stage, "unit": unit, "code": code}
        _counter("filmray_errors_total", "Rows of a stage that got an error code", *tags).inc(count, tags)


@contextmanager
def metered() -> Iterator[None]:
    """Export what this process reads, writes and decodes while it has joined Ray, and again and again how far it is."""
    over = threading.Event()

    def repeat() -> None:
        while not over.wait(SHOWN_S):
            _show()

    thread = threading.Thread(target=repeat, daemon=True)
    METERS.hand_to(_export)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        METERS.hand_to(None)
        _shown.clear()


def _show() -> None:
    for (name, stage, unit), value in list(_shown.items()):
        tags = {"stage": stage, "unit": unit}
        _gauge(name, GAUGES[name], *tags).set(value, tags)


def meter_worker() -> None:
    """Export what this process reads, writes and decodes; run in each worker when it starts."""
    METERS.hand_to(_export)


def _export(counted: Counted, amount: float) -> None:
    what, store = counted
    tags = {"store": store} if store else {}
    _counter(f"filmray_{what}_total", METERED[what], *tags).inc(amount, tags)


def _joined() -> bool:
    # A command that has not needed Ray must not import it.
    return "ray" in sys.modules and sys.modules["ray"].is_initialized()


@cache
def _gauge(name: str, description: str, *tags: str) -> Gauge:
    from ray.util.metrics import Gauge

    return Gauge(name, description, tags)


@cache
def _counter(name: str, description: str, *tags: str) -> Counter:
    from ray.util.metrics import Counter

    return Counter(name, description, tags)

"""Metrics of a run, beside Ray's own on the port of each node that Prometheus reads; docs/grafana.json draws them.

filmray_done, filmray_total  gauges: how much of a stage is done, and how much there is, in the stage's unit
filmray_failed               counter: rows of a stage that got an error code
"""

from __future__ import annotations

import sys
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ray.util.metrics import Counter, Gauge


def export_progress(stage: str, unit: str, done: float, total: float | None) -> None:
    """Export how far a stage is, where this process has joined Ray."""
    if _has_ray():
        tags = {"stage": stage, "unit": unit}
        _gauge("filmray_done", "Items of a stage that are done").set(done, tags)
        if total is not None:
            _gauge("filmray_total", "Items of a stage in all").set(total, tags)


def export_failed(stage: str, unit: str, count: int) -> None:
    """Export that rows of a stage have failed, where this process has joined Ray."""
    # Also with 0: a series that begins with its first failure has no rate.
    if _has_ray():
        _counter("filmray_failed", "Rows of a stage that got an error code").inc(count, {"stage": stage, "unit": unit})


def _has_ray() -> bool:
    # A command that has not needed Ray must not import it.
    return "ray" in sys.modules and sys.modules["ray"].is_initialized()


@cache
def _gauge(name: str, description: str) -> Gauge:
    from ray.util.metrics import Gauge

    return Gauge(name, description, ("stage", "unit"))


@cache
def _counter(name: str, description: str) -> Counter:
    from ray.util.metrics import Counter

    return Counter(name, description, ("stage", "unit"))

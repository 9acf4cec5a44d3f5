"""Metrics of a run, beside Ray's own on the port of each node that Prometheus reads; docs/grafana.json draws them.

All are gauges, in the unit of the stage: filmray_done and filmray_total, how much is done and how much there is;
filmray_failed, how many of its rows got an error code.
"""

from __future__ import annotations

import sys
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ray.util.metrics import Gauge


def export_progress(stage: str, unit: str, done: float, total: float | None) -> None:
    """Export how far a stage is, where this process has joined Ray."""
    _export("filmray_done", "Items of a stage that are done", stage, unit, done)
    if total is not None:
        _export("filmray_total", "Items of a stage in all", stage, unit, total)


def export_failed(stage: str, unit: str, count: int) -> None:
    """Export how many rows of a stage have failed so far, where this process has joined Ray."""
    _export("filmray_failed", "Rows of a stage that got an error code", stage, unit, count)


def _export(name: str, description: str, stage: str, unit: str, value: float) -> None:
    # A command that has not needed Ray must not import it.
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        _gauge(name, description).set(value, {"stage": stage, "unit": unit})


@cache
def _gauge(name: str, description: str) -> Gauge:
    from ray.util.metrics import Gauge

    return Gauge(name, description, ("stage", "unit"))

"""Which columns of scenes the report draws, and how: units, axes, and the thresholds of rules."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from actors.curation.cutting.scenes import FEATURES
from actors.curation.selecting.column_rules import ColumnRule, column_rules
from actors.curation.selecting.select_settings import REASONS
from jobs.curation.histogram import Histogram, Mark, axis_of, scaled

CHARTS = 48
"""Histograms at most, those of the seven features and of rules' columns not counted."""
UNITS = {
    "max_rgb_diff": "squared, of 0–255",
    "mean_rgb_diff": "squared, of 0–255",
    "max_velocity": "pixels per step",
    "mean_velocity": "pixels per step",
    "mse": "of latents",
    "cos_sim": "of latents",
    "no_frames": "sampled",
    "probability": "of good, says the filter",
    **dict.fromkeys(("width", "height", "bar_top", "bar_bottom", "bar_left", "bar_right"), "pixels"),
    **dict.fromkeys(("start_s", "end_s", "longest_hold_s", "trimmed_before_s", "trimmed_after_s"), "seconds"),
    "rotation": "degrees",
}
FLOOR = {"max_rgb_diff": 0.01, "mean_rgb_diff": 0.01, "max_velocity": 1e-3, "mean_velocity": 1e-3, "mse": 1e-6}
"""Where the axes of these begin at the lowest: below is no more than rounding, as in a scene of one black picture."""
LINEAR = {"cos_sim", "no_frames", "probability"}
"""Features drawn on a linear axis; the others have long tails."""
SKEWED = 20.0
"""How many times the median a column's highest values are that is drawn on a logarithmic axis."""


def rules_of(settings: Mapping[str, Any]) -> tuple[ColumnRule, ...]:
    """The rules on columns in the settings of a run record; those of earlier versions have none."""
    return column_rules(settings["select"].get("rules") or {}, REASONS)


@dataclass(frozen=True)
class Charts:
    """What is drawn of the columns."""

    histograms: list[Histogram]
    left_out: list[str]
    """Columns that vary and are not drawn, since they are too many."""


def charts(
    sample: Mapping[str, np.ndarray],
    varies: Mapping[str, bool],
    measured: int,
    settings: Mapping[str, Any],
    rules: Sequence[ColumnRule],
) -> Charts:
    """Empty histograms of the columns, the seven features first; those in which all scenes are alike are left out.

    sample: values (n,) of some scenes by column; measured: how many scenes there are.
    """
    always = [name for name in sample if name in FEATURES or any(rule.column == name for rule in rules)]
    others = [name for name in sample if name not in always and varies[name]]
    drawn = [_histogram(name, sample[name], measured, settings, rules) for name in [*always, *others[:CHARTS]]]
    if settings["select"]["by"] == "classifier":
        drawn.append(Histogram("probability", 0, 1, 40, log=False, marks=[Mark("probability", 0, 0, -1)]))
    return Charts(drawn, others[CHARTS:])


def _histogram(
    name: str, sample: np.ndarray, measured: int, settings: Mapping[str, Any], rules: Sequence[ColumnRule]
) -> Histogram:
    """An empty histogram whose axis suits the sample and, where they are near, the thresholds."""
    frames, select = settings["frames"], settings["select"]
    # A number of frames that is still kept lies inside.
    marks = {
        "max_rgb_diff": [Mark("select.max_rgb_diff", select["max_rgb_diff"], select["max_rgb_diff"], 1)],
        "mean_velocity": [Mark("select.min_velocity", select["min_velocity"], select["min_velocity"], -1)],
        "no_frames": [
            Mark("frames.min", frames["min"], frames["min"] - 0.5, -1),
            Mark("frames.max", frames["max"], frames["max"] + 0.5, 1),
        ],
    }.get(name, [])
    for rule in rules:
        if rule.column == name:
            at = f"select.rules.{rule.name}"
            marks += [Mark(f"{at}.{bound}", value, value, side) for bound, value, side in rule.bounds]
    log = _is_long_tailed(name, sample)
    values = scaled(np.maximum(sample, FLOOR.get(name, -np.inf)), log)
    edges = scaled(np.array([mark.edge for mark in marks], np.float64), log)
    bins = int(np.clip(2 * math.sqrt(measured), 10, 48))
    axis = axis_of(values[np.isfinite(values)], edges[np.isfinite(edges)], bins, whole=name == "no_frames")
    return Histogram(name, *axis, log, marks)


def _is_long_tailed(name: str, sample: np.ndarray) -> bool:
    """Whether the axis of a column is logarithmic."""
    if name in FEATURES:
        return name not in LINEAR
    there = sample[np.isfinite(sample)]
    if not len(there) or there.min() < 0:
        return False
    middle, high = np.quantile(there, [0.5, 0.99])
    return bool(middle > 0 and high > SKEWED * middle)

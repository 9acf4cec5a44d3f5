"""Metrics of a filter on held-out folds: accuracy, ROC-AUC, calibration, intervals over videos."""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    pass
from pipelines.curation.filter import BINS

DRAWS = 1000
"""Of the bootstrap."""


# ------------------------------------------------------------------------------------------------------------- judging


def judged(labels: np.ndarray, chance: np.ndarray, videos: np.ndarray, seed: int = 0) -> dict[str, dict[str, float]]:
    """How good predictions are, each measure with a 95 % interval and beside what always answering the majority gives.

    Measures: accuracy (at 0.5), roc_auc, pr_auc (average precision of "good"), brier, and gain, by how much accuracy is
    above always answering the majority. Intervals are percentiles of a bootstrap that draws whole videos, since the
    scenes of one are not independent of each other (Field and Welsh 2007, Bootstrapping clustered data).

    Args:
        labels: (N,) 0 or 1
        chance: (N,) probability of 1
        videos: int (N,) the video of each, from 0 without gaps
    """
    values = {name: float(value[0]) for name, value in _measures(labels, chance, np.ones((1, len(labels)))).items()}
    random, count = np.random.default_rng(seed), int(videos.max()) + 1
    at_once = max(1, 4_000_000 // len(labels))
    drawn: dict[str, list[np.ndarray]] = {name: [] for name in values}
    for start in range(0, DRAWS, at_once):
        weights = random.multinomial(count, [1 / count] * count, min(at_once, DRAWS - start))[:, videos]
        for name, value in _measures(labels, chance, weights.astype(np.float64)).items():
            drawn[name].append(value)
    good = float(labels.mean())
    share = max(good, 1 - good)
    always = {"accuracy": share, "roc_auc": 0.5, "pr_auc": good, "brier": 1 - share, "gain": 0.0}
    report = {}
    for name, value in values.items():
        low, high = np.nanpercentile(np.concatenate(drawn[name]), [2.5, 97.5])
        numbers = {"value": value, "low": float(low), "high": float(high), "always": always[name]}
        report[name] = {key: round(number, 4) for key, number in numbers.items()}
    return report


def _measures(labels: np.ndarray, chance: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Each measure for every row of weights (D, N); NaN where a draw has scenes of one kind only."""
    order = np.argsort(-chance, kind="stable")
    y, p, w = labels[order].astype(np.float64), chance[order].astype(np.float64), weights[:, order]
    # What is equally likely stands on one side of a threshold.
    ends = np.flatnonzero(np.append(np.diff(p) != 0, True))
    total, positive = w.sum(axis=1), (w * y).sum(axis=1)
    hits = np.cumsum(w * y, axis=1)[:, ends]
    alarms = np.cumsum(w * (1 - y), axis=1)[:, ends]
    steps = np.diff(hits, prepend=0.0, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        under = (np.diff(alarms, prepend=0.0, axis=1) * (hits - steps / 2)).sum(axis=1)
        roc_auc = under / (positive * (total - positive))
        precision = np.nan_to_num(hits / (hits + alarms))
        pr_auc = (steps * precision).sum(axis=1) / positive
    accuracy = (w * ((p >= 0.5) == y)).sum(axis=1) / total
    share = positive / total
    return {
        "accuracy": accuracy,
        "roc_auc": roc_auc,
        "pr_auc": pr_auc,
        "brier": (w * (p - y) ** 2).sum(axis=1) / total,
        "gain": accuracy - (share if y.mean() >= 0.5 else 1 - share),
    }


def calibration(labels: np.ndarray, chance: np.ndarray) -> list[dict[str, float]]:
    """What share of scenes is good where the model says how likely it is, in bins of as many scenes each."""
    parts = np.array_split(np.argsort(chance, kind="stable"), int(np.clip(len(labels) // BINS, 1, BINS)))
    return [
        {
            "predicted": round(float(chance[part].mean()), 4),
            "good": round(float(labels[part].mean()), 4),
            "scenes": len(part),
        }
        for part in parts
    ]

"""Metrics of a filter on held-out folds: accuracy, ROC-AUC, calibration, intervals over videos."""

import numpy as np

from actors.curation.selecting.filter import BINS
from pipelines.core import metrics

DRAWS = 1000
"""Of the bootstrap."""
MEASURES = ("accuracy", "roc_auc", "pr_auc", "brier", "gain")


def judged(labels: np.ndarray, chance: np.ndarray, videos: np.ndarray, seed: int = 0) -> dict[str, dict[str, float]]:
    """How good predictions are, each measure with a 95 % interval and beside what always answering the majority gives.

    Measures: accuracy (at 0.5), roc_auc, pr_auc (average precision of "good"), brier, and gain, by how much accuracy is
    above always answering the majority. Intervals are percentiles of a bootstrap that draws whole videos, since the
    scenes of one are not independent of each other (Field and Welsh 2007, Bootstrapping clustered data). Where videos
    are few they are wider, and never of width 0 (`metrics.widened`).

    Args:
        labels: (N,) 0 or 1
        chance: (N,) probability of 1
        videos: int (N,) the video of each, from 0 without gaps
    """
    (values,) = _measures(labels, chance, np.ones((1, len(labels))))
    lows, highs = metrics.bootstrap(
        lambda weights: _measures(labels, chance, weights[:, videos]),
        int(videos.max()) + 1,
        DRAWS,
        seed,
        at_once=max(1, 4_000_000 // len(labels)),
    )
    good = float(labels.mean())
    share = max(good, 1 - good)
    for number, (count, least) in enumerate(_least(labels, chance, videos)):
        lows[number], highs[number] = metrics.widened(values[number], lows[number], highs[number], count, least)
    # Gain is accuracy less the share of the majority.
    lows[-1], highs[-1] = min(lows[-1], lows[0] - share), max(highs[-1], highs[0] - share)
    always = (share, 0.5, good, 1 - share, 0.0)
    report = {}
    for name, *numbers in zip(MEASURES, values, lows, highs, always, strict=True):
        each = zip(("value", "low", "high", "always"), numbers, strict=True)
        report[name] = {key: round(float(number), 4) for key, number in each}
    return report


def _least(
    labels: np.ndarray, chance: np.ndarray, videos: np.ndarray
) -> list[tuple[float, tuple[float, float] | None]]:
    """Of accuracy, roc_auc, pr_auc and brier: the videos that they depend on, and the least interval of few."""
    count = np.bincount(videos)
    hits = np.bincount(videos, (chance >= 0.5) == labels)
    squares = np.bincount(videos, (chance - labels) ** 2)
    good, bad = (len(np.unique(videos[labels == kind])) for kind in (1, 0))
    return [
        (len(count), metrics.clustered(hits, count)),
        (min(good, bad), None),
        (good, None),
        (len(count), metrics.clustered(squares, count)),
    ]


def _measures(labels: np.ndarray, chance: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """MEASURES, float64 (D, 5), for every row of weights (D, N); NaN where a draw has scenes of one kind only."""
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
    pr_auc = metrics.average_precision(chance[:, None], labels[:, None], weights)[:, 0]
    accuracy = (w * ((p >= 0.5) == y)).sum(axis=1) / total
    share = positive / total
    brier = (w * (p - y) ** 2).sum(axis=1) / total
    gain = accuracy - (share if y.mean() >= 0.5 else 1 - share)
    return np.column_stack([accuracy, roc_auc, pr_auc, brier, gain])


def calibration(labels: np.ndarray, chance: np.ndarray) -> list[dict[str, float]]:
    """What share of scenes is good where the model says how likely it is, in bins of as many scenes each."""
    bins = int(np.clip(len(labels) // BINS, 1, BINS))
    binned, _ = metrics.calibration(chance[:, None], labels[:, None], bins, by="count")
    rows = zip(binned.probability, binned.true, binned["count"], strict=True)
    return [
        {"predicted": round(float(predicted), 4), "good": round(float(good), 4), "scenes": int(count)}
        for predicted, good, count in rows
    ]

"""How well scores find the films of several classes: precision and recall, their curve, calibration, and intervals.

Everywhere: scores float (N, C), higher is likelier; labels 0/1 (N, C), a row a film. A class that no film has counts
nowhere in a mean. Intervals are of the bootstrap over films: films, not frames, are what is drawn anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

AVERAGES = ("micro", "macro", "weighted")
"""Over all films and classes at once; over classes that occur; the same, weighted by how often they do."""


ENOUGH = 10
"""Below so many cases of a kind, a rank statistic or a calibration is not reported: chance decides it."""
FEW = 30
"""Below so many cases, an interval of the bootstrap is widened: it is too narrow there."""
_NORMAL = 1.959964
"""The 97.5 % point of the normal distribution."""


def wilson(share: float, count: float) -> tuple[float, float]:
    """The 95 % score interval of a share in 0..1 of so many cases; never of width 0 (Wilson 1927).

    count may be an effective number, of cases that are not independent or not equally weighted.
    """
    if not count > 0:
        return 0.0, 1.0
    square = _NORMAL**2 / count
    centre = share + square / 2
    spread = _NORMAL * np.sqrt(share * (1 - share) / count + square / (4 * count))
    low, high = (centre - spread) / (1 + square), (centre + spread) / (1 + square)
    # Rounding aside, a share of 0 or 1 is an end of its interval.
    return (0.0 if share == 0 else float(low)), (1.0 if share == 1 else float(high))


def effective(counts: Sequence[int]) -> float:
    """The number of cases whose plain share is as uncertain as the unweighted mean over classes of so many cases."""
    return len(counts) ** 2 / sum(1 / count for count in counts) if len(counts) else 0.0


def clustered(hits: np.ndarray, count: np.ndarray, most: float | None = None) -> tuple[float, float]:
    """The 95 % interval of a share of cases that come in groups, such as pictures of films; never of width 0.

    hits, count: (G,), right cases and cases of each group; hits may be sums of values in 0..1. most: cases at most, the
    sum of count if None. It is Wilson's for as many independent cases as have the variance of the ratio between groups
    (Kish 1965, the design effect), which of few groups is as uncertain as Student's t says; where groups do not differ,
    for the groups.
    """
    from scipy import stats

    groups, share = len(count), hits.sum() / count.sum()
    residuals = hits - share * count
    variance = (residuals**2).sum() / count.sum() ** 2 * groups / max(groups - 1, 1)
    variance *= (stats.t.ppf(0.975, max(groups - 1, 1)) / _NORMAL) ** 2
    alike = share * (1 - share)
    cases = min(alike / variance, count.sum() if most is None else most) if variance > 0 else groups
    return wilson(float(share), float(max(cases, 1)))


def widened(
    value: float, low: float, high: float, cases: float, least: tuple[float, float] | None = None
) -> tuple[float, float]:
    """The interval of a bootstrap, at least as wide as another where cases are FEW, or where all draws agree.

    A bootstrap draws what there is: of few cases that are all right it makes an interval of width 0. NaN stays NaN.

    least: the other interval; None: Wilson's, since no mean of values in 0..1 varies more than a share does.
    """
    if np.isnan(value) or (cases >= FEW and high > low):
        return low, high
    ends = wilson(value, cases) if least is None else least
    return float(np.nanmin([low, ends[0]])), float(np.nanmax([high, ends[1]]))


def average_precision(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Average precision of each class, float64 (C,), or (R, C) for weights (R, N) of films; NaN where none has it.

    The mean, over the films that have a class, of the precision among all that score at least as high; films of one
    score are thus taken together.
    """
    scores, labels = _checked(scores, labels)
    drawn = np.ones((1, len(scores))) if weights is None else np.asarray(weights, float)
    precision = np.full((len(drawn), scores.shape[1]), np.nan)
    for number in range(scores.shape[1]):
        order = np.argsort(-scores[:, number], kind="stable")
        ranked, hits = scores[order, number], labels[order, number]
        last = np.searchsorted(-ranked, -ranked[hits], side="right") - 1
        weight = drawn[:, order]
        found, above = np.cumsum(weight * hits, 1), np.cumsum(weight, 1)
        with np.errstate(invalid="ignore"):
            share = np.where(weight[:, hits] > 0, found[:, last] / above[:, last], 0)
            precision[:, number] = (weight[:, hits] * share).sum(1) / weight[:, hits].sum(1)
    return precision[0] if weights is None else precision


def averages(precision: np.ndarray, support: np.ndarray) -> dict[str, np.ndarray]:
    """macro and weighted mean of average precisions (..., C) over the classes whose support (..., C) is not 0."""
    there = support > 0
    known = np.where(there, precision, 0)
    with np.errstate(invalid="ignore"):
        macro = known.sum(-1) / there.sum(-1)
        return {"macro": macro, "weighted": (known * support).sum(-1) / support.sum(-1)}


def _precisions(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Average precision of each class, then AVERAGES, float64 (R, C + 3)."""
    each = average_precision(scores, labels, weights)
    means = averages(each, weights @ labels)
    micro = average_precision(scores.reshape(-1, 1), labels.reshape(-1, 1), np.repeat(weights, labels.shape[1], 1))
    return np.column_stack([each, micro[:, 0], means["macro"], means["weighted"]])


def bootstrap(
    statistic: Callable[[np.ndarray], np.ndarray],
    films: int,
    draws: int = 1000,
    seed: int | np.random.Generator = 0,
    at_once: int = 50,
) -> tuple[np.ndarray, np.ndarray]:
    """2.5 and 97.5 % points (K,) of a statistic over films drawn with replacement: the percentile bootstrap.

    `statistic` takes weights float64 (R, N), how often each film was drawn, and gives (R, K); a draw in which it is NaN
    (a class that does not occur) does not count. at_once: R at most, which bounds memory.

    Efron and Tibshirani 1993, An introduction to the bootstrap, chapter 13.
    """
    random = np.random.default_rng(seed)
    rows = [
        statistic(random.multinomial(films, np.full(films, 1 / films), min(at_once, draws - first)).astype(float))
        for first in range(0, draws, at_once)
    ]
    values = np.concatenate(rows)
    points = np.full((2, values.shape[1]), np.nan)
    known = ~np.isnan(values).all(0)
    points[:, known] = np.nanpercentile(values[:, known], (2.5, 97.5), axis=0)
    return points[0], points[1]


def difference(
    scores: np.ndarray, others: np.ndarray, labels: np.ndarray, draws: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """By how much scores beat others on the same films: rows AVERAGES, columns ap, ap_low, ap_high, in 0..1."""
    import pandas as pd

    def lead(weights: np.ndarray) -> np.ndarray:
        both = (_precisions(one, truth, weights)[:, -len(AVERAGES) :] for one in (scores, others))
        return next(both) - next(both)

    scores, truth = _checked(scores, labels)
    others, _ = _checked(others, labels)
    low, high = bootstrap(lead, len(scores), draws, seed)
    values = lead(np.ones((1, len(scores))))[0]
    return pd.DataFrame({"ap": values, "ap_low": low, "ap_high": high}, pd.Index(AVERAGES, name="class"))


def table(
    scores: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
    thresholds: float | np.ndarray = 0.5,
    draws: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """One row a class, then AVERAGES: precision, recall, f1 at the thresholds (C,), support, and ap with its interval.

    All in 0..1. A draw holds some films twice, which lifts average precision a little, most for rare classes; the
    interval lies high by as much. Its cases, where these are few (`widened`), are the films that have the class, and
    all films for AVERAGES. Precision is 0 where nothing is chosen; a class that does not occur has recall, f1
    and ap NaN.
    """
    import pandas as pd

    scores, truth = _checked(scores, labels)
    if len(names) != truth.shape[1]:
        raise ValueError(f"{len(names)} names for {truth.shape[1]} classes")
    chosen = scores >= thresholds
    support = truth.sum(0)
    each = _counted((chosen & truth).sum(0), chosen.sum(0), support)
    micro = _counted(*(np.array([count.sum()]) for count in ((chosen & truth), chosen, truth)))
    there = support > 0
    columns: dict[str, np.ndarray] = {}
    for name, values in each.items():
        macro = values[there].mean() if there.any() else np.nan
        weighted = (values[there] * support[there]).sum() / support.sum() if there.any() else np.nan
        columns[name] = np.concatenate([values, micro[name], [macro, weighted]])
    columns["support"] = np.concatenate([support, [support.sum()] * len(AVERAGES)])
    columns["ap"] = _precisions(scores, truth, np.ones((1, len(scores))))[0]
    low, high = bootstrap(lambda weights: _precisions(scores, truth, weights), len(scores), draws, seed)
    cases = [*support.tolist(), *[len(scores)] * len(AVERAGES)]
    ends = [widened(*one) for one in zip(columns["ap"], low, high, cases, strict=True)]
    columns["ap_low"], columns["ap_high"] = np.array(ends).T
    return pd.DataFrame(columns, pd.Index([*names, *AVERAGES], name="class"))


def _counted(hits: np.ndarray, chosen: np.ndarray, support: np.ndarray) -> dict[str, np.ndarray]:
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "precision": np.where(chosen > 0, hits / chosen, 0.0),
            "recall": hits / support,
            "f1": np.where(support > 0, 2 * hits / (chosen + support), np.nan),
        }


def thresholds(scores: np.ndarray, labels: np.ndarray, otherwise: float = 0.5, most: float = np.inf) -> np.ndarray:
    """The score from which each class is best chosen, float64 (C,): the F1 of these films is highest there.

    It lies halfway to the next lower score, so that it depends less on one film. `otherwise` where no film has the
    class. With `most`, at most so many times as many films are chosen as have the class: of one that is hardly told,
    F1 is highest where nearly every film is chosen.
    """
    from sklearn.metrics import precision_recall_curve

    scores, truth = _checked(scores, labels)
    found = np.full(truth.shape[1], float(otherwise))
    for number in np.flatnonzero(truth.any(0)):
        precision, recall, at = precision_recall_curve(truth[:, number], scores[:, number])
        with np.errstate(invalid="ignore"):
            f1 = np.nan_to_num(2 * precision * recall / (precision + recall))[:-1]
            # Films that are chosen, by films that have the class.
            f1[recall[:-1] > most * precision[:-1]] = -1
        best = int(f1.argmax())
        found[number] = at[best] if best == 0 else (at[best] + at[best - 1]) / 2
    return found


def curve(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall of one class, from scores and labels (N,), by falling recall from 1 to 0."""
    from sklearn.metrics import precision_recall_curve

    precision, recall, _ = precision_recall_curve(labels, scores)
    return precision, recall


def calibration(
    probabilities: np.ndarray, labels: np.ndarray, bins: int = 10, by: Literal["width", "count"] = "width"
) -> tuple[pd.DataFrame, float]:
    """Mean probability, share that is true and count of each bin, and the expected calibration error.

    by: bins are equally wide, or each holds equally many probabilities. The error is the mean distance of the two,
    weighted by count (Guo et al., "On Calibration of Modern Neural Networks", 2017), over all films and classes; empty
    bins are left out.
    """
    import pandas as pd

    probabilities, truth = _checked(probabilities, labels)
    if probabilities.min() < 0 or probabilities.max() > 1:
        raise ValueError("calibration is of probabilities, and some lie outside 0..1")
    if by == "width":
        which = np.minimum((probabilities * bins).astype(int), bins - 1).ravel()
    else:
        which = np.empty(probabilities.size, int)
        for number, part in enumerate(np.array_split(np.argsort(probabilities, axis=None, kind="stable"), bins)):
            which[part] = number
    pairs = pd.DataFrame({"probability": probabilities.ravel(), "true": truth.ravel().astype(float), "bin": which})
    binned = pairs.groupby("bin").agg(
        probability=("probability", "mean"), true=("true", "mean"), count=("true", "size")
    )
    error = np.average((binned.probability - binned.true).abs(), weights=binned["count"])
    return binned, float(error)


def _checked(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores float64 and labels bool of one shape (N, C); NaN has no rank."""
    scores, labels = np.asarray(scores, float), np.asarray(labels)
    if scores.ndim != 2 or scores.shape != labels.shape or not len(scores):
        raise ValueError(f"scores and labels are (films, classes), not {scores.shape} and {labels.shape}")
    if not np.isfinite(scores).all():
        raise ValueError("some scores are not numbers: the model did not learn, or a film's embedding is broken")
    return scores, labels.astype(bool)

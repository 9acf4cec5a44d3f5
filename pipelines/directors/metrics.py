"""Accuracy, calibration and the threshold of "unknown" for a classifier of pictures, and of films as many pictures.

Everywhere: log-probabilities float (N, C) and labels int (N,), the number of the class; one row per picture or film.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipelines.core.metrics import calibration, clustered, wilson

BINS = 15
"""Bins of the calibration error."""
_NOTHING: Any = {"zero_division": 0}
"""F1 of a director who is never predicted is 0."""


def by_film(log_probabilities: np.ndarray, films: np.ndarray) -> np.ndarray:
    """Mean log-probability of the pictures of each film 0 to F - 1, renormalised to sum to 1: float64 (F, C).

    films: int (N,), the film of each picture.
    """
    from scipy.special import log_softmax

    sums = np.zeros((films.max() + 1, log_probabilities.shape[1]))
    np.add.at(sums, films, log_probabilities)
    return log_softmax(sums / np.bincount(films)[:, None], 1)


def in_top(log_probabilities: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    """Whether the right class is among the k likeliest, float (N,); a tie at the edge counts as its fair share."""
    own = log_probabilities[np.arange(len(labels)), labels][:, None]
    better, alike = (log_probabilities > own).sum(1), (log_probabilities == own).sum(1)
    return np.clip((k - better) / alike, 0, 1)


def temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature that maximises the likelihood of these labels when logits are divided by it (Guo et al., 2017).

    Its logarithm has a normal prior with mean 0 and deviation 0.5. Without it, a few labels that are all predicted
    correctly would drive probabilities to 1.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    def cost(log_t: float) -> float:
        return 2 * log_t**2 - log_softmax(logits / np.exp(log_t), 1)[np.arange(len(labels)), labels].sum()

    found: Any = minimize_scalar(cost, bounds=(-4, 4), method="bounded")
    return float(np.exp(found.x))


def calibration_error(log_probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Expected calibration error of the likeliest class, 0..1."""
    sure, right = _answers(log_probabilities, labels)
    return calibration(sure, right, BINS)[1]


def reliability(log_probabilities: np.ndarray, labels: np.ndarray) -> Any:
    """Mean probability, accuracy and count of each bin of confidence; see `pipelines.core.metrics.calibration`."""
    return calibration(*_answers(log_probabilities, labels), BINS)[0]


def _answers(log_probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    # Rounding may lift a probability above 1.
    sure = np.minimum(np.exp(log_probabilities.max(1)), 1)
    return sure[:, None], (log_probabilities.argmax(1) == labels)[:, None]


def threshold(known: np.ndarray, strangers: np.ndarray) -> float:
    """The confidence that best separates known from unknown directors: true minus false positive rate is highest."""
    from sklearn.metrics import roc_curve

    truth = np.repeat([1, 0], [len(known), len(strangers)])
    wrong, right, at = roc_curve(truth, np.concatenate([known, strangers]), drop_intermediate=False)
    best = int(np.argmax(right - wrong))
    # Halfway to the next lower confidence, so that it depends less on one answer.
    following = at[best + 1] if best + 1 < len(at) else 0.0
    return float((min(at[best], 1.0) + following) / 2)


def auroc(known: np.ndarray, strangers: np.ndarray) -> float:
    """AUROC: probability that an answer for a known director is more confident than one for an unknown director."""
    from sklearn.metrics import roc_auc_score

    truth = np.repeat([1, 0], [len(known), len(strangers)])
    return float(roc_auc_score(truth, np.concatenate([known, strangers])))


def figures(
    log_probabilities: np.ndarray,
    labels: np.ndarray,
    films: np.ndarray,
    labels_of: np.ndarray,
    ks: Sequence[int] = (1, 3),
) -> dict[str, float]:
    """Top-k accuracy of pictures and films, 95 % intervals of top 1, and macro F1 of both, all in 0..1.

    Intervals are Wilson's; pictures come in groups, the films. films: int (N,), the film of each picture, 0 to F - 1.
    labels_of: int (F,), the labels of films; those of pictures may differ where a film has several directors.
    """
    from sklearn.metrics import f1_score

    whole = by_film(log_probabilities, films)
    count = np.bincount(films).astype(float)
    hits = np.bincount(films, in_top(log_probabilities, labels, 1))
    right = in_top(whole, labels_of, 1)

    intervals = {"picture": clustered(hits, count), "film": wilson(float(right.mean()), len(right))}
    found: dict[str, float] = {}
    sides = {"picture": (log_probabilities, labels), "film": (whole, labels_of)}
    for name, (rows, truth) in sides.items():
        for k in ks:
            found[f"{name}_top{k}"] = float(in_top(rows, truth, k).mean())
        found |= dict(zip((f"{name}_low", f"{name}_high"), intervals[name], strict=True))
        found[f"{name}_n"] = len(rows)
        found[f"{name}_f1"] = float(f1_score(truth, rows.argmax(1), average="macro", **_NOTHING))
    return found

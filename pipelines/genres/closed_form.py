"""The mean probe's weights in closed form: ridge regression whose genres lend each other what they know.

With few films and many genres, logistic regression learns each genre alone and shrinks the rare ones most. Least
squares shrink all alike; their answers are then drawn towards what the covariance of genres expects of them together
(crime is likely thriller), as in Breiman and Friedman, "Predicting Multivariate Responses in Multiple Linear
Regression", 1997. What turns answers into probabilities is fitted to those that every film gets from all others
(leave-one-out, which has a closed form). All of it is linear, and ends in the probe's one layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from actors.core.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from actors.genres.heads import MeanProbe


@dataclass(frozen=True)
class SolveConfig:
    """How the probe is solved."""

    ridge: float = 4.0
    """Weight of the squares of the weights, beside one square a film; films have features of length 1."""
    coupling: float = 1.0
    """How far answers are drawn to each other, as `coupling` does: at 0 each class is alone."""

    def __post_init__(self) -> None:
        if not self.ridge > 0 or self.coupling < 0:
            raise UserError(f"ridge is above 0 and coupling starts at 0: {self}")


def solve(probe: MeanProbe, frames: Tensor, mask: Tensor, labels: np.ndarray, config: SolveConfig) -> np.ndarray:
    """Set the probe's centre and weights from films; the same films give the same weights.

    A class that no film has gets the same low probability for every film.

    Args:
        frames, mask: float (N, T, D) and bool (N, T), as heads take them.
        labels: 0/1 (N, C).

    Returns:
        float64 (N, C), the logits that each film gets from the answers of all others: thresholds can be taken from
        them, so that no film has to be kept from the weights. The centre and the few values that make probabilities of
        answers are of all films.
    """
    import torch
    from scipy.special import logit

    from actors.genres.heads import mean_directions

    count = len(labels)
    if count < 2:
        raise UserError(f"a probe is solved from two films or more, not {count}")
    probe.centre.copy_(mean_directions(frames, mask).mean(0))
    scale = frames.shape[2] ** 0.5
    x = probe.features(frames, mask).detach().double().cpu().numpy() / scale
    share = labels.mean(0)
    weights = np.linalg.solve(x.T @ x + config.ridge * np.eye(x.shape[1]), x.T)
    answers = x @ weights @ (labels - share)
    # A film's own part in its answer, the mean's included.
    own = (x * weights.T).sum(1) + 1 / count
    without = (labels - share) - (labels - share - answers) / (1 - own)[:, None]
    coupled = coupling(labels, config.coupling)
    bias = logit(np.clip(share, 0.5 / count, 1 - 0.5 / count))
    # Near its mean, an answer that is off by d moves the logit by d / (share (1 - share)).
    spread = share * (1 - share)
    to_logits = np.divide(1, spread, where=spread > 0, out=np.zeros_like(spread))
    evidence = without @ coupled * to_logits
    slope, shift = _fitted(evidence, labels, bias)
    linear = slope * (weights @ (labels - share) @ coupled * to_logits)
    with torch.no_grad():
        probe.linear.weight.copy_(torch.from_numpy(linear.T / scale))
        probe.linear.bias.copy_(torch.from_numpy(shift))
    return slope * evidence + shift


def coupling(labels: np.ndarray, noise: float) -> np.ndarray:
    """What noisy answers for all classes say of each: float64 (C, C), to multiply answers (N, C) with from the right.

    The best linear guess of centred labels (N, C) from answers that are off by `noise` times each label's variance.
    """
    covariance = np.cov(labels.T, bias=True).reshape(labels.shape[1], -1)
    variance = np.diag(covariance).copy()
    # A class without variance has no answer that could be drawn anywhere.
    variance[variance == 0] = 1
    covariance = covariance + np.diag(variance - np.diag(covariance))
    return np.linalg.solve(covariance + noise * np.diag(variance), covariance)


def _fitted(evidence: np.ndarray, labels: np.ndarray, bias: np.ndarray) -> tuple[float, np.ndarray]:
    """One slope for all classes and a shift (C,) for each, by maximum likelihood."""
    from scipy.optimize import minimize
    from scipy.special import expit

    varied = evidence.any(0)

    def negative_likelihood(values: np.ndarray) -> tuple[float, np.ndarray]:
        logits = values[0] * evidence + bias + values[1:]
        surplus = expit(logits) - labels
        loss = (np.logaddexp(0, logits) - labels * logits).sum()
        return loss, np.concatenate([[(surplus * evidence).sum()], surplus.sum(0) * varied])

    start = np.concatenate([[1.0], np.zeros(len(bias))])
    # Above 0, so that a higher answer is never less likely.
    bounds = [(1e-6, None), *[(None, None)] * len(bias)]
    values = minimize(negative_likelihood, start, jac=True, method="L-BFGS-B", bounds=bounds).x
    return float(values[0]), bias + values[1:]

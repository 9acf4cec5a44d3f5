"""What all films take, from what a sample of them took.

Films are drawn with a probability in proportion to what each is likely to take (systematic sampling along the order of
that). Totals are those of a regression on what is known of all films, plus what it lacks on the sample, by probability
(the GREG estimator): right on average whatever the regression misses, and the closer the better that fits.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


@dataclass(frozen=True)
class Sample:
    """Films that are measured."""

    chosen: np.ndarray
    """Places of the films, int (n,)."""
    probability: np.ndarray
    """Of each that it is in the sample, float (n,), above 0 to 1."""


class Total(NamedTuple):
    """What all films take."""

    value: float
    margin: float
    """Half of the 95 % interval; infinite where the sample is too small to tell."""

    def times(self, factor: float) -> "Total":
        """As many times as much."""
        return Total(self.value * factor, self.margin * factor)

    def plus(self, amount: float) -> "Total":
        """So much more."""
        return Total(self.value + amount, self.margin)

    def of_more(self, factor: float, spread: float) -> "Total":
        """What so many times as many films take, of which these were drawn; spread: half of the 95 % interval of what
        was drawn, as a share."""
        value = self.value * factor
        return Total(value, float(np.hypot(self.margin * factor, value * spread)))


def draw(sizes: np.ndarray, count: int, rng: np.random.Generator) -> Sample:
    """Draw `count` films, or all where they are no more, the larger the likelier; sizes: float (N,), above 0."""
    if count >= len(sizes):
        return Sample(np.arange(len(sizes)), np.ones(len(sizes)))
    certain = np.zeros(len(sizes), bool)
    # What is larger than a step of the others is in every sample.
    while (large := ~certain & (sizes * (count - certain.sum()) >= sizes[~certain].sum())).any():
        certain |= large
    left = count - int(certain.sum())
    probability = np.where(certain, 1.0, sizes * left / sizes[~certain].sum()) if left else certain.astype(float)
    order = np.flatnonzero(~certain)
    order = order[np.lexsort((rng.random(len(order)), sizes[order]))]
    ends = np.cumsum(probability[order])
    points = rng.random() + np.arange(left)
    drawn = order[np.minimum(np.searchsorted(ends, points, side="right"), len(order) - 1)] if left else order[:0]
    chosen = np.concatenate([np.flatnonzero(certain), drawn])
    return Sample(chosen, probability[chosen])


def total(about: np.ndarray, sizes: np.ndarray, sample: Sample, values: np.ndarray) -> Total:
    """What all films take, of which the sample took `values`, float (n,).

    about: float (N, K), 0 or more: what is known of each film that values may grow with. sizes: float (N,), above 0:
    about in proportion to the error that the regression makes of each.
    """
    from scipy.optimize import nnls
    from scipy.stats import t

    if len(values) == len(sizes):
        return Total(float(values.sum()), 0.0)
    weights = 1 / sample.probability
    scale = np.sqrt(weights) / sizes[sample.chosen]
    known = about[sample.chosen]
    # Columns of one size, for the solver.
    unit = np.maximum(about.mean(axis=0), 1e-12)
    factors, _ = nnls(known / unit * scale[:, None], values * scale)
    lacking = (values - known / unit @ factors) * weights
    value = max(float((about / unit @ factors).sum() + lacking.sum()), float(values.sum()))
    free = len(values) - max(1, int((factors > 0).sum()))
    if free < 1:
        return Total(value, np.inf)
    variance = len(values) / free * ((1 - sample.probability) * lacking**2).sum()
    return Total(value, float(t.ppf(0.975, free) * np.sqrt(variance)))

"""Whether one group of scenes scores higher than another: the difference, its interval, its p and its size.

Scenes of one video are alike, so it is videos that count as independent, in both of what follows.

interval  of the difference of means, 95 %: the percentile bootstrap, with videos drawn anew (Efron and Tibshirani 1993,
          An introduction to the bootstrap, chapter 13; Davison and Hinkley 1997, chapter 3.8, for clusters)
p         two-sided, that a difference this large arises where there is none: in every round each video's share of the
          difference keeps or changes its sign, as if in that video the two groups had been swapped (Canay, Romano and
          Shaikh 2017, Randomization tests under an approximate symmetry assumption). For pairs this is the permutation
          test that swaps them, all pairs of a video together. p = (1 + rounds at least as large) / (1 + rounds), which
          is never 0 (Phipson and Smyth 2010)
effect    Cohen's d: the difference in standard deviations, of the differences where scenes are paired (d_z), else of
          the two groups pooled (d)

A scene may belong to both groups: it adds the same to both means, and so nothing to the difference.
"""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from actors.core.errors import UserError
from pipelines.core.metrics import bootstrap

CHUNK = 1 << 22
"""Random numbers that are held at once."""


@dataclass(frozen=True)
class Comparison:
    """The first group against the second."""

    means: tuple[float, float]
    difference: float
    """Of the means, first minus second."""
    interval: tuple[float, float]
    """95 % of the difference; NaN where there is one video only."""
    p: float
    effect: float
    """Cohen's d_z of pairs, else d; NaN where scores do not vary."""
    scenes: tuple[int, int]
    """How many each group has."""
    videos: int
    """How many they come from."""


def compare(first: pd.Series, second: pd.Series, paired: bool, resamples: int, seed: int) -> Comparison:
    """Compare scores, each indexed by (video_id, scene_id) without NaN; where paired both have the same scenes.

    Raises ValueError where a group is empty, or pairs are not.
    """
    if first.empty or second.empty:
        raise UserError("a group without scenes cannot be compared")
    if paired and not first.index.equals(second.index):
        raise UserError("paired groups have the same scenes in the same order")
    a, b = first.to_numpy(float), second.to_numpy(float)
    sums = _by_video(first, second)
    difference = float(a.mean() - b.mean())
    random = np.random.default_rng(seed)
    return Comparison(
        (float(a.mean()), float(b.mean())),
        difference,
        _interval(sums, resamples, random),
        _p(sums, resamples, random),
        _effect(a, b, paired),
        (len(a), len(b)),
        len(sums),
    )


def _by_video(first: pd.Series, second: pd.Series) -> np.ndarray:
    """Sum and count of each group's scores, a row a video: (V, 4)."""
    both = [group.groupby(level=0).agg(["sum", "count"]) for group in (first, second)]
    return pd.concat(both, axis=1).fillna(0).sort_index().to_numpy(float)


def _interval(sums: np.ndarray, resamples: int, random: np.random.Generator) -> tuple[float, float]:
    videos = len(sums)
    if videos < 2:
        return math.nan, math.nan

    def difference(weights: np.ndarray) -> np.ndarray:
        total = weights @ sums
        # A round may draw none of the videos that one group comes from.
        with np.errstate(invalid="ignore", divide="ignore"):
            return (total[:, 0] / total[:, 1] - total[:, 2] / total[:, 3])[:, None]

    low, high = bootstrap(difference, videos, resamples, random, at_once=max(1, CHUNK // videos))
    return float(low[0]), float(high[0])


def _p(sums: np.ndarray, resamples: int, random: np.random.Generator) -> float:
    total = sums.sum(axis=0)
    mean = (total[0] + total[2]) / (total[1] + total[3])
    shares = (sums[:, 0] - mean * sums[:, 1]) / total[1] - (sums[:, 2] - mean * sums[:, 3]) / total[3]
    # What differs in its last digits only is as large.
    least = abs(shares.sum()) - 1e-9 * np.abs(shares).sum()
    larger = 0
    at_once = max(1, CHUNK // len(shares))
    for first in range(0, resamples, at_once):
        rounds = min(at_once, resamples - first)
        signs = random.integers(0, 2, (rounds, len(shares)), dtype=np.int8) * 2 - 1
        larger += int((np.abs(signs @ shares) >= least).sum())
    return (1 + larger) / (1 + resamples)


def _effect(a: np.ndarray, b: np.ndarray, paired: bool) -> float:
    if paired:
        spread = (a - b).std(ddof=1) if len(a) > 1 else 0.0
    else:
        free = len(a) + len(b) - 2
        spread = math.sqrt(((len(a) * a.var()) + len(b) * b.var()) / free) if free else 0.0
    return float((a.mean() - b.mean()) / spread) if spread > 1e-12 else math.nan

"""How near clusters are to who is who."""

import math

import numpy as np
import pytest

from pipelines.clusters import bcubed


def by_loop(labels: np.ndarray, clusters: np.ndarray) -> tuple[float, float]:
    """Precision and recall as they are defined, an instance after the other."""
    together = [[np.flatnonzero(column == column[i]) for i in range(len(column))] for column in (labels, clusters)]
    both = [len(np.intersect1d(same, cluster)) for same, cluster in zip(*together, strict=True)]
    recall, precision = (np.mean([n / len(of) for n, of in zip(both, kind, strict=True)]) for kind in together)
    return float(precision), float(recall)


def test_bcubed_by_hand_and_by_its_definition() -> None:
    labels = np.array(["a", "a", "b", "b", "b"])
    assert bcubed(labels, np.array([7, 7, 3, 3, 3])) == (1, 1, 1)
    # All in one: an instance of a finds 2 of 5, one of b 3 of 5.
    assert bcubed(labels, np.zeros(5)) == pytest.approx((13 / 25, 1, 26 / 38))
    # Each by itself: 1 of 2 for a, 1 of 3 for b.
    assert bcubed(labels, np.arange(5)) == pytest.approx((1, 0.4, 4 / 7))
    assert all(map(math.isnan, bcubed(np.array([]), np.array([]))))
    random = np.random.default_rng(0)
    for count in (1, 9, 40):
        labels, clusters = random.integers(0, 5, (2, count))
        precision, recall, f1 = bcubed(labels, clusters)
        assert (precision, recall) == pytest.approx(by_loop(labels, clusters))
        assert f1 == pytest.approx(2 * precision * recall / (precision + recall))

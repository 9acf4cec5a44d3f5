"""Clusters with what is known beforehand, who is known by name, and how near clusters are to who is who."""

import math
from typing import Any

import numpy as np
import pytest
from sklearn.cluster import DBSCAN, AgglomerativeClustering

from pipelines.comic_characters.clusters import Bank, bcubed, best, cluster, curve, in_panels
from pipelines.core.linkage import tree


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


def spread(seed: int, count: int = 12) -> np.ndarray:
    """Vectors of length 1 about four middles."""
    random = np.random.default_rng(seed)
    vectors = random.normal(size=(4, 6))[random.integers(0, 4, count)] + 0.45 * random.normal(size=(count, 6))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def free(count: int) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(count), np.zeros((count, count), bool)


def same(left: np.ndarray, right: np.ndarray) -> bool:
    """Whether two clusterings are one, whatever their numbers."""
    return bool(((left[:, None] == left) == (right[:, None] == right)).all())


@pytest.mark.parametrize("threshold", [0.3, 0.6, 0.82, 1.1])
def test_without_constraints_it_is_what_scikit_learn_does(threshold: float) -> None:
    options: Any = {"n_clusters": None, "distance_threshold": threshold, "linkage": "average"}
    for seed in range(20):
        vectors = spread(seed)
        linked = AgglomerativeClustering(**options).fit_predict(vectors)
        assert same(cluster(vectors, *free(12), "agglomerative", threshold)[0], linked)
        dense = DBSCAN(eps=threshold, min_samples=1).fit_predict(vectors)
        found = cluster(vectors, *free(12), "dbscan", threshold)[0]
        assert same(found, dense)
        assert found[0] == 0 and (np.diff(np.unique(found, return_index=True)[1]) > 0).all(), "numbered as they appear"


def greedy(distances: np.ndarray, groups: np.ndarray, cannot: np.ndarray, method: str, threshold: float) -> np.ndarray:
    """Join the two nearest clusters that may be joined, until none is near enough."""
    parts = [set(np.flatnonzero(groups == group).tolist()) for group in np.unique(groups)]
    while True:
        nearest = (math.inf, 0, 0)
        for i in range(len(parts)):
            for j in range(i):
                pairs = np.ix_(sorted(parts[i]), sorted(parts[j]))
                if not cannot[pairs].any():
                    height = distances[pairs].mean() if method == "agglomerative" else distances[pairs].min()
                    nearest = min(nearest, (float(height), i, j))
        if nearest[0] > threshold:
            break
        parts[nearest[2]] |= parts.pop(nearest[1])
    found = np.zeros(len(distances), int)
    for number, part in enumerate(parts):
        found[sorted(part)] = number
    return found


@pytest.mark.parametrize("method", ["agglomerative", "dbscan"])
def test_with_constraints_it_is_what_joining_step_by_step_gives(method: Any) -> None:
    differs = 0
    for seed in range(40):
        random = np.random.default_rng(seed)
        vectors = spread(seed)
        panels, people = random.integers(0, 4, 12), random.integers(-1, 3, 12)
        groups, cannot = in_panels(panels, people)
        distances = np.linalg.norm(vectors[:, None] - vectors, axis=-1)
        for threshold in (0.5, 0.82, 1.3):
            expected = greedy(distances, groups, cannot, method, threshold)
            found, _ = cluster(vectors, groups, cannot, method, threshold)
            assert same(found, expected)
            assert not cannot[found[:, None] == found].any()
            assert not ((groups[:, None] == groups) & (found[:, None] != found)).any()
            differs += not same(found, cluster(vectors, *free(12), method, threshold)[0])
    assert differs > 20


@pytest.mark.parametrize("method", ["agglomerative", "dbscan"])
def test_face_and_body_stay_together_and_two_in_a_panel_apart(method: Any) -> None:
    # A face and a body that look nothing alike, and someone else in their panel who looks like the face.
    vectors = np.eye(4)[[0, 1, 0, 0]]
    groups, cannot = in_panels(np.array(["0_0", "0_0", "0_0", "0_1"]), np.array([5, 5, -1, 5]))
    found, _ = cluster(vectors, groups, cannot, method, 0.5)
    assert found[0] == found[1] != found[2], "one char_index, and the third is somebody else"
    assert found[3] in (found[0], found[2]), "a char_index says nothing of another panel"
    unknown, _ = cluster(vectors, *in_panels(np.zeros(4), np.full(4, -1)), method, 2.0)
    assert unknown.tolist() == [0, 1, 2, 3]
    assert cluster(vectors[:1], *free(1), method, 1.0)[0].tolist() == [0]


@pytest.mark.parametrize("method", ["agglomerative", "dbscan"])
def test_the_bank_names_whom_it_knows_and_nobody_else(method: Any) -> None:
    def turned(*degrees: float) -> np.ndarray:
        return np.stack([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], 1)

    bank = Bank(["Anna", "Boris"], turned(0, 10, 100), np.array([0, 2]))
    np.testing.assert_allclose(
        bank.distances(turned(0)), [[np.sin(np.radians(5)), 2 * np.sin(np.radians(50))]], atol=1e-9
    )
    seen = turned(5, 104, 200, 14)
    found, names = cluster(seen, *free(4), method, 0.3, bank)
    assert found.tolist() == [0, 1, 2, 0] and names == {0: "Anna", 1: "Boris"}
    # Two of one panel are not both Anna: the nearer one is.
    found, names = cluster(seen, *in_panels(np.array([0, 1, 2, 0]), np.full(4, -1)), method, 0.3, bank)
    assert found.tolist() == [0, 1, 2, 3] and names == {0: "Anna", 1: "Boris"}
    # Two names are never one cluster, however near.
    found, names = cluster(turned(50, 52), *free(2), method, 1.9, bank)
    assert len(names) == 1 and found.tolist() == [0, 0]
    # An example is who it is said to be, whatever it looks like.
    found, names = cluster(seen, *free(4), method, 0.3, bank, np.array([-1, -1, 1, -1]))
    assert names[int(found[2])] == "Boris" and names[int(found[0])] == "Anna"
    assert cluster(turned(200), *free(1), method, 0.3, bank)[1] == {}


def test_the_curve_is_bcubed_at_each_threshold_and_its_best_is_found() -> None:
    thresholds = np.array([0.1, 0.5, 0.9, 1.3])
    trees, labels, known = [], [], []
    expected: dict[float, list[np.ndarray]] = {threshold: [] for threshold in thresholds}
    for seed in range(3):
        vectors = spread(seed)
        distances = np.linalg.norm(vectors[:, None] - vectors, axis=-1)
        trees.append(tree(distances, *free(12), "agglomerative"))
        labels.append(np.random.default_rng(seed).integers(0, 3, 12) + 10 * seed)
        known.append(np.arange(12) != seed)
        for threshold in thresholds:
            clusters = cluster(vectors, *free(12), "agglomerative", threshold)[0] + 100 * seed
            expected[threshold].append(clusters[known[-1]])
    truth = np.concatenate([one[sure] for one, sure in zip(labels, known, strict=True)])
    found = curve(trees, labels, known, thresholds)
    for threshold, one in zip(thresholds, found, strict=True):
        assert one == pytest.approx(bcubed(truth, np.concatenate(expected[threshold])))
    assert best(thresholds, np.array([0.1, 0.7, 0.3, 0.2])) == 0.5
    assert best(np.arange(8) / 10, np.array([1, 0, 0.5, 1, 1, 1, 0, 1.0])) == pytest.approx(0.4)

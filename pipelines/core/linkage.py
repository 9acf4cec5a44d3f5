"""Clusters that grow from the two that are nearest, with pairs that must be, and pairs that cannot be, in one cluster.

Two clusters are never joined that hold a pair which cannot be. What is joined up to a threshold does not depend on the
threshold, so one tree serves all of them.
"""

from typing import Literal

import numpy as np

Method = Literal["agglomerative", "dbscan"]
"""agglomerative: by the mean distance of all pairs of two clusters (average linkage); dbscan: by the distance of the
nearest pair, which is what DBSCAN does where one neighbour makes a core point (min_samples=1)."""
MUST = -1.0
"""The height at which a tree joins those who must be together; distances start at 0."""


def tree(distances: np.ndarray, groups: np.ndarray, cannot: np.ndarray, method: Method) -> np.ndarray:
    """The merges of N instances, as SciPy has them: (N - 1, 4), for `cut`.

    Args:
        distances: (N, N), from 0 to 2.
        groups: int (N,); those of one number are joined first, come what may.
        cannot: bool (N, N), symmetric; pairs that are not joined, nor are the groups that they belong to.
    """
    from scipy.cluster.hierarchy import linkage
    from scipy.spatial.distance import squareform

    count = len(distances)
    if count < 2:
        return np.zeros((0, 4))
    together = groups[:, None] == groups
    np.fill_diagonal(together, False)
    if together.any():
        member = np.eye(int(groups.max()) + 1)[groups]
        cannot = (member @ (member.T @ cannot @ member) @ member.T > 0) & ~together
    # A mean over fewer than count² pairs, one of which is so far, is beyond each distance.
    far = 4.0 * count * count
    heights = np.where(cannot, far, np.where(together, MUST, distances))
    if method == "dbscan":
        return _nearest_pairs(heights, cannot, far)
    # SciPy takes no heights below 0.
    merges = linkage(squareform(heights - MUST, checks=False), "average")
    merges[:, 2] += MUST
    return merges


def _nearest_pairs(heights: np.ndarray, cannot: np.ndarray, far: float) -> np.ndarray:
    """Join pairs from the nearest to the farthest, but for those whose clusters cannot be one; the rest at `far`."""
    from scipy.cluster.hierarchy import DisjointSet

    count = len(heights)
    left, right = np.triu_indices(count, 1)
    order = np.argsort(heights[left, right], kind="stable")
    apart = cannot.copy()
    number = list(range(count))
    merges: list[tuple[float, ...]] = []
    clusters = DisjointSet(range(count))

    def join(a: int, b: int, height: float) -> None:
        clusters.merge(a, b)
        root = clusters[a]
        apart[root] = apart[:, root] = apart[a] | apart[b]
        merges.append((*sorted((number[a], number[b])), height, clusters.subset_size(root)))
        number[root] = count + len(merges) - 1

    for i, j in zip(left[order].tolist(), right[order].tolist(), strict=True):
        a, b = clusters[i], clusters[j]
        if a != b and not apart[a, b]:
            join(a, b, float(heights[i, j]))
    for other in range(1, count):
        if (a := clusters[0]) != (b := clusters[other]):
            join(a, b, far)
    return np.array(merges)


def cut(merges: np.ndarray, threshold: float) -> np.ndarray:
    """The clusters at a threshold, which itself still joins: int (N,), numbered from 0 as they appear."""
    from scipy.cluster.hierarchy import fcluster

    if not len(merges):
        return np.zeros(1, int)
    shifted = merges.copy()
    shifted[:, 2] -= MUST
    found = fcluster(shifted, threshold - MUST, "distance")
    _, first, clusters = np.unique(found, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[clusters]

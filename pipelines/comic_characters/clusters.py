"""Who is the same in a few panels, by the distances of vectors and by what is known beforehand; and how right that is.

must-link    faces and bodies of one character of a panel, and named examples of one character
cannot-link  others in one panel, and characters of different names

How clusters grow: `pipelines/core/linkage.py`.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from pipelines.core.linkage import Method, cut, tree


class Bank(NamedTuple):
    """Characters that are known by name, by examples of each."""

    names: list[str]
    vectors: np.ndarray
    """float32 (E, D), those of one character behind one another."""
    starts: np.ndarray
    """int (C,): the first example of each name."""

    def distances(self, vectors: np.ndarray) -> np.ndarray:
        """From vectors (N, D) to each character, the mean over its examples: (N, C)."""
        from scipy.spatial.distance import cdist

        counts = np.diff(self.starts, append=len(self.vectors))
        return np.add.reduceat(cdist(vectors, self.vectors), self.starts, axis=1) / counts


def in_panels(panels: np.ndarray, people: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Groups and pairs that cannot be for `tree`, of instances in panels.

    Args:
        panels: (N,), in which panel each instance is.
        people: int (N,), the same for instances of one panel that are known to be one person; -1 where it is unknown.
    """
    alone = np.arange(len(panels)) + people.max(initial=-1) + 1
    keys = np.stack([np.unique(panels, return_inverse=True)[1], np.where(people >= 0, people, alone)])
    groups = np.unique(keys, axis=1, return_inverse=True)[1].reshape(-1)
    return groups, (panels[:, None] == panels) & (groups[:, None] != groups)


def cluster(
    vectors: np.ndarray,
    groups: np.ndarray,
    cannot: np.ndarray,
    method: Method,
    threshold: float,
    bank: Bank | None = None,
    known: np.ndarray | None = None,
) -> tuple[np.ndarray, dict[int, str]]:
    """Clusters of one sequence, int (N,), numbered as they appear, and the names of those that are known.

    A named character is one more point, whose distance to an instance is the mean over its examples. So by the same
    threshold it is joined with those it is near to, with no two who stand in one panel, and with nobody else's name.

    Args:
        vectors: float (N, D), N at least 1; the others as in `tree`.
        known: int (N,), which character of the bank an instance is an example of, -1 where it is none.
    """
    from scipy.spatial.distance import cdist

    distances = cdist(vectors, vectors)
    if bank is None:
        return cut(tree(distances, groups, cannot, method), threshold), {}
    count = len(vectors)
    if known is None:
        known = np.full(count, -1)
    to_names = bank.distances(vectors)
    # Nobody can be joined with one who is too far from every single instance.
    near = np.union1d(np.flatnonzero((to_names <= threshold).any(0)), known[known >= 0]).astype(int)
    whole = np.block([[distances, to_names[:, near]], [to_names[:, near].T, np.zeros((len(near), len(near)))]])
    apart = np.zeros(whole.shape, bool)
    apart[:count, :count] = cannot
    apart[count:, count:] = ~np.eye(len(near), dtype=bool)
    linked = np.concatenate([groups, groups.max() + 1 + np.arange(len(near))])
    for place, name in enumerate(near):
        for group in np.unique(groups[known == name]):
            linked[linked == group] = linked[count + place]
    found = cut(tree(whole, linked, apart, method), threshold)
    names = {int(found[count + place]): bank.names[name] for place, name in enumerate(near)}
    _, first, clusters = np.unique(found[:count], return_index=True, return_inverse=True)
    order = np.argsort(np.argsort(first))
    return order[clusters], {int(order[clusters][i]): names[int(found[i])] for i in first if int(found[i]) in names}


class Agreement(NamedTuple):
    """How clusters agree with characters, each in 0..1."""

    precision: float
    recall: float
    f1: float


def bcubed(labels: np.ndarray, clusters: np.ndarray) -> Agreement:
    """B-cubed (Bagga and Baldwin 1998, "Entity-based cross-document coreferencing"), NaN where there is no instance.

    Precision: of the instances in an instance's cluster, itself included, the share that is of its label; recall: of
    those with its label the share that is in its cluster; both are means over instances, F1 their harmonic mean.

    Args:
        labels, clusters: (N,) of anything that can be sorted; where sequences stand for themselves, neither label nor
            cluster may be the same in two of them.
    """
    if not len(labels):
        return Agreement(np.nan, np.nan, np.nan)
    _, label = np.unique(labels, return_inverse=True)
    _, found = np.unique(clusters, return_inverse=True)
    # How many instances share label and cluster, for each pair of these that there is.
    pairs, shared = np.unique(label * (found.max() + 1) + found, return_counts=True)
    of_label, of_cluster = np.divmod(pairs, found.max() + 1)
    precision = float((shared**2 / np.bincount(found)[of_cluster]).sum() / len(label))
    recall = float((shared**2 / np.bincount(label)[of_label]).sum() / len(label))
    return Agreement(precision, recall, 2 * precision * recall / (precision + recall))


def curve(
    trees: list[np.ndarray], labels: list[np.ndarray], known: list[np.ndarray], thresholds: np.ndarray
) -> list[Agreement]:
    """B-cubed over all sequences at each threshold.

    Args:
        trees: of `tree`, one a sequence of N instances.
        labels: int (N,) each, which character an instance is, of numbers that no two sequences share.
        known: bool (N,) each; others are joined, too, but do not count.
    """
    sure = np.concatenate(known)
    truth = np.concatenate(labels)[sure]

    def clusters(threshold: float) -> Iterator[np.ndarray]:
        before = 0
        for merges in trees:
            found = cut(merges, threshold)
            yield found + before
            before += len(found)

    return [bcubed(truth, np.concatenate(list(clusters(float(one))))[sure]) for one in thresholds]


def best(thresholds: np.ndarray, f1: np.ndarray) -> float:
    """The threshold with the highest F1; the middle one of the longest stretch where several in a row have it."""
    top = np.flatnonzero(f1 >= f1.max() - 1e-12)
    stretches = np.split(top, np.flatnonzero(np.diff(top) > 1) + 1)
    longest = max(stretches, key=len)
    return float(thresholds[longest[(len(longest) - 1) // 2]])

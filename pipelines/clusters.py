"""Clusters of instances, and how near they are to who is who."""

from typing import NamedTuple

import numpy as np


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

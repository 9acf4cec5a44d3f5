"""Groups of scenes that look alike, from their perceptual hashes.

Two scenes are near-duplicates where their hashes differ in at most so many bits; a group is what is connected by such
pairs. So a group may hold scenes that differ by more, with others between them: a slow pan that was cut into pieces is
one group, where each piece is close to the next.

Pairs are found exactly: hashes that differ in at most 2 B - 1 bits, cut into B bands, differ in at most one bit of some
band (Norouzi, Punjani and Fleet, "Fast Search in Hamming Space with Multi-Index Hashing", 2012). In a band of 21 bits
few of a million different hashes meet by chance, so that few pairs have to be compared in full.
"""

import logging
from collections.abc import Iterator

import numpy as np

from actors.core.errors import UserError

log = logging.getLogger(__name__)

BANDS = tuple((word, shift, bits) for word in range(3) for shift, bits in ((0, 21), (21, 21), (42, 22)))
"""Word, first bit and number of bits of each band of a hash of three words."""
FARTHEST = 2 * len(BANDS) - 1
"""The largest distance for which pairs are found, in bits."""
MANY_PAIRS = 5_000_000_000
"""As many are compared in about a minute."""
WINDOW = 1 << 20
"""Pairs that are compared at once: about 100 MB."""


def near_duplicates(hashes: np.ndarray, distance: int) -> np.ndarray:
    """The group of each hash, int64 (N,), numbered in the order of their first members; -1: like no other.

    Args:
        hashes: uint64 (N, 3).
        distance: the most bits in which near-duplicates differ, 0 to FARTHEST.

    Memory is about 110 bytes a hash and that of one window. Time is near N log N, unless very many hashes share a band
    and are not alike: their pairs are all compared.
    """
    if not 0 <= distance <= FARTHEST:
        raise UserError(f"near-duplicates differ in 0 to {FARTHEST} of 192 bits, not in {distance}")
    if not len(hashes):
        return np.empty(0, np.int64)
    # Single columns, and numbers of 4 bytes, since there may be very many hashes.
    order = np.lexsort(hashes.T).astype(np.int32)
    new = np.ones(len(hashes), bool)
    new[1:] = False
    for word in range(hashes.shape[1]):
        new[1:] |= np.diff(hashes[order, word]) != 0
    which = np.empty(len(hashes), np.int32)
    which[order] = np.cumsum(new, dtype=np.int32) - 1
    order = order[new]
    components = _Components([hashes[order, word] for word in range(hashes.shape[1])], distance)
    del order, new
    for band in BANDS:
        components.join_equal(*band)
    # Most copies are together now, and are not compared again.
    for band in BANDS if distance >= len(BANDS) else ():
        components.join_close(*band)
    return numbered(components.labels[which])


class _Components:
    """Different hashes, and the component that each is known to belong to."""

    def __init__(self, words: list[np.ndarray], distance: int) -> None:
        self._words, self._distance = words, distance
        self.labels = np.arange(len(words[0]), dtype=np.int32)

    def join_equal(self, word: int, shift: int, bits: int) -> None:
        """Join hashes that are near each other and have this band in common."""
        # Many copies of one thing find together through their first; what is together need not be compared.
        order, _, starts, ends = self._buckets(word, shift, bits)
        sizes = ends - starts
        first = np.repeat(starts, sizes)
        self._compare(word, order, first, first + (self.labels[order] != self.labels[order[first]]))
        order, _, starts, ends = self._buckets(word, shift, bits)
        labels = self.labels[order]
        begins = np.append(True, labels[1:] != labels[:-1])
        begins[starts] = True
        runs = np.flatnonzero(begins).astype(np.int32)
        del labels, begins
        after = np.append(runs[1:], np.int32(len(order)))
        self._compare(word, order, np.repeat(after, after - runs), np.repeat(ends, sizes))

    def join_close(self, word: int, shift: int, bits: int) -> None:
        """Join hashes that are near each other and differ in one bit of this band."""
        order, keys, starts, ends = self._buckets(word, shift, bits)
        labels = self.labels[order]
        # A bucket's labels are sorted.
        lowest, highest = labels[starts], labels[ends - 1]
        for bit in range(bits):
            other = keys | np.uint32(1 << bit)
            at = np.searchsorted(keys, other).clip(max=len(keys) - 1)
            pair = (keys[at] == other) & (other != keys)
            pair &= (lowest != lowest[at]) | (highest != highest[at]) | (lowest != highest)
            begin, end = np.where(pair, starts[at], 0), np.where(pair, ends[at], 0)
            sizes = ends - starts
            self._compare(word, order, np.repeat(begin, sizes), np.repeat(end, sizes))

    def _buckets(self, word: int, shift: int, bits: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """An order by band and then label; the different values of the band, and where each begins and ends in it."""
        keys = (self._words[word] >> np.uint64(shift) & np.uint64((1 << bits) - 1)).astype(np.uint32)
        order = np.lexsort((self.labels, keys)).astype(np.int32)
        keys = keys[order]
        ends = np.append(np.flatnonzero(np.diff(keys)) + 1, len(keys)).astype(np.int32)
        starts = np.append(np.int32(0), ends[:-1])
        return order, keys[starts], starts, ends

    def _compare(self, word: int, order: np.ndarray, begin: np.ndarray, end: np.ndarray) -> None:
        """Join each hash order[i] with those of order[begin[i]:end[i]] that are near it."""
        found: list[np.ndarray] = []
        waiting = 0
        for i, j in _windows(begin, end):
            a, b = order[i], order[j]
            apart = np.zeros(len(a), np.uint8)
            # Most pairs are far apart in a word that they were not chosen by.
            for other in ((word + 1) % 3, (word + 2) % 3, word):
                apart += np.bitwise_count(self._words[other][a] ^ self._words[other][b])
                near = apart <= self._distance
                a, b, apart = a[near], b[near], apart[near]
            edges = np.stack([self.labels[a], self.labels[b]])
            found.append(edges[:, edges[0] != edges[1]])
            waiting += found[-1].shape[1]
            if waiting > WINDOW:
                self._merge(found)
                found, waiting = [], 0
        if waiting:
            self._merge(found)

    def _merge(self, found: list[np.ndarray]) -> None:
        self.labels = merged(self.labels, np.concatenate(found, axis=1))


def merged(labels: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """The labels of components, int32 (N,), where pairs of labels (2, n) are joined."""
    # Importing scipy takes time, which a refused setting need not cost.
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    a, b = edges
    size = len(labels)
    _, joined = connected_components(coo_array((np.ones(len(a), bool), (a, b)), (size, size)), directed=False)
    return joined[labels].astype(np.int32)


def united(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Groups that two ways of grouping make together, int64 (N,); -1: alone in both. Each has -1 for those alone."""
    labels, edges = np.arange(len(one)), []
    for groups in (one, other):
        members = np.flatnonzero(groups >= 0)
        _, first, which = np.unique(groups[members], return_index=True, return_inverse=True)
        edges.append(np.stack([members, members[first][which]]))
    return numbered(merged(labels, np.concatenate(edges, axis=1)))


def _windows(begin: np.ndarray, end: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All pairs (i, j) with begin[i] <= j < end[i], at most WINDOW at a time."""
    some = np.flatnonzero(end > begin)
    upto = np.cumsum(end[some] - begin[some])
    total = int(upto[-1]) if len(upto) else 0
    if total > MANY_PAIRS:
        log.warning("%.1e pairs of hashes are compared, since many unlike ones share a part: minutes", total)
    for low in range(0, total, WINDOW):
        high = min(low + WINDOW, total)
        first, last = np.searchsorted(upto, [low, high - 1], side="right")
        rows, until = some[first : last + 1], upto[first : last + 1]
        sizes = np.diff(np.minimum(until, high), prepend=low)
        yield np.repeat(rows, sizes), np.repeat(end[rows] - until, sizes) + np.arange(low, high)


def numbered(labels: np.ndarray) -> np.ndarray:
    """Labels as numbers in the order of their first rows, -1 for those of one row."""
    _, first, which, sizes = np.unique(labels, return_index=True, return_inverse=True, return_counts=True)
    shared = sizes > 1
    number = np.full(len(sizes), -1)
    number[shared] = np.argsort(np.argsort(first[shared]))
    return number[which]

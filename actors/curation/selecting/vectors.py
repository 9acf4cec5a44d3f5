"""The vectors of a corpus in a temporary file, their k-means cells, and groups of those with a high cosine.

Nothing here holds more than some blocks of vectors in memory.

Vectors are put into cells, each of what lies nearest to a centre. A vector is compared with a whole cell at once,
unless nothing there can be close enough: between it and all that lies in cell b passes the plane halfway between its
own centre a and b, and a vector x is (2 x (a - b) + |b|^2 - |a|^2) / 2 |a - b| away from it. So groups are exact for up
to EXACT vectors. Of more, each is compared with the PROBES nearest cells at most, which is where almost all that is
close to it lies, and takes minutes in place of hours.
"""

import logging
import os
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from actors.core.temporary import private_folder
from actors.curation.selecting.duplicates import merged, numbered

log = logging.getLogger(__name__)

BLOCK = 8192
"""Vectors that are held at once: 17 MB of 512 numbers."""
CELL = 1024
"""Vectors in a cell, on average."""
SAMPLE = 100_000
"""Vectors that centres are found from, at most."""
EDGES = 1 << 20
"""Pairs that wait to be joined."""
EXACT = 200_000
"""Up to so many vectors, each is compared with all that may be close: at most 1e13 products, minutes on a few cores."""
PROBES = 16
"""Cells that a vector is compared with, where vectors are more."""


class Vectors:
    """Vectors of length 1, by their places 0 to `count` - 1, in a temporary file of float16: 2 D bytes each."""

    def __init__(self, count: int, width: int) -> None:
        self.count, self.width = count, width
        self.there = np.zeros(count, bool)
        """Which places have a vector."""
        self._file, path = tempfile.mkstemp(dir=private_folder())
        # It goes with the process, however that ends.
        os.unlink(path)
        os.ftruncate(self._file, count * width * 2)

    def __enter__(self) -> "Vectors":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def put(self, places: np.ndarray, vectors: np.ndarray) -> None:
        """Store vectors float16 (n, D) at places int (n,)."""
        order = np.argsort(places, kind="stable")
        places, vectors = places[order], np.ascontiguousarray(vectors[order], np.float16)
        runs = np.flatnonzero(np.diff(places) != 1) + 1
        for first, end in zip(np.append(0, runs), np.append(runs, len(places)), strict=True):
            if end > first:
                os.pwrite(self._file, vectors[first:end].tobytes(), int(places[first]) * self.width * 2)
        self.there[places] = True

    def stored(self, first: int, end: int) -> np.ndarray:
        """What the file has from one place to another, float16 (n, D); zeros where there is no vector."""
        size = self.width * 2
        data = os.pread(self._file, (end - first) * size, first * size)
        return np.frombuffer(data, np.float16).reshape(-1, self.width)

    def read(self, first: int, end: int) -> np.ndarray:
        """Vectors float32 (n, D) of length 1; zeros where there is none."""
        found = self.stored(first, end).astype(np.float32)
        return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-6)

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Places int (n,) and vectors float32 (n, D), block by block, of what is there."""
        for first in range(0, self.count, BLOCK):
            end = min(first + BLOCK, self.count)
            there = self.there[first:end]
            if there.any():
                yield np.flatnonzero(there) + first, self.read(first, end)[there]

    def centres(self, count: int, spread: bool = True) -> np.ndarray:
        """Centres of k-means, float32 (count or fewer, D), from a sample; the same for the same vectors.

        spread: begin with vectors that are far from each other, which takes longer.
        """
        from sklearn.cluster import MiniBatchKMeans

        places = np.flatnonzero(self.there)
        if len(places) > SAMPLE:
            places = np.sort(np.random.default_rng(0).choice(places, SAMPLE, replace=False))
        sample = np.concatenate(
            [self.read(place, place + 1) for place in places.tolist()] or [np.empty((0, self.width))]
        )
        count = min(count, len(sample))
        if count < 2:
            return sample[:count].astype(np.float32)
        start: dict[str, Any] = {"init": "k-means++" if spread else "random", "n_init": 1}
        means = MiniBatchKMeans(count, batch_size=4096, random_state=0, reassignment_ratio=0, **start).fit(sample)
        return np.asarray(means.cluster_centers_, np.float32)

    def nearest(self, centres: np.ndarray) -> np.ndarray:
        """The index of the centre that is nearest to each vector, int32 (count,); -1 where there is none."""
        found, half = np.full(self.count, -1, np.int32), (centres**2).sum(1) / 2
        for places, vectors in self.blocks():
            found[places] = (vectors @ centres.T - half).argmax(1)
        return found


def concepts(vectors: Vectors, count: int) -> np.ndarray:
    """The k-means cluster of each vector, int32 (N,), 0 for the largest; -1 where there is no vector."""
    if not vectors.there.any():
        return np.full(vectors.count, -1, np.int32)
    found = vectors.nearest(vectors.centres(count))
    sizes = np.bincount(found[found >= 0])
    rank = np.empty(len(sizes) + 1, np.int32)
    rank[np.lexsort((np.arange(len(sizes)), -sizes))] = np.arange(len(sizes))
    rank[-1] = -1
    return rank[found]


def similar(vectors: Vectors, cosine: float) -> np.ndarray:
    """The group of each vector, int64 (N,), numbered in the order of their first members; -1: like no other.

    Two belong together where their cosine is at least so much, above 0; a group is what is connected by such pairs.
    """
    places = np.flatnonzero(vectors.there)
    if not len(places):
        return np.full(vectors.count, -1)
    centres = vectors.centres(max(1, len(places) // CELL), spread=False)
    cells = vectors.nearest(centres)[places]
    places, cells = places[np.argsort(cells, kind="stable")], np.sort(cells)
    place_of = np.full(vectors.count, -1)
    place_of[places] = np.arange(len(places))
    with Vectors(len(places), vectors.width) as ordered:
        for some, values in vectors.blocks():
            ordered.put(place_of[some], values)
        labels = np.full(vectors.count, -1)
        labels[places] = _joined(ordered, cells, centres, cosine)
    labels[labels < 0] = labels.max(initial=0) + 1 + np.arange((labels < 0).sum())
    return numbered(labels)


def _joined(vectors: Vectors, cells: np.ndarray, centres: np.ndarray, cosine: float) -> np.ndarray:
    """Labels of components, of vectors that lie in the order of their cells."""
    labels, found, waiting, products = np.arange(vectors.count), [], 0, 0.0
    exact = vectors.count <= EXACT or len(centres) <= PROBES
    starts = np.searchsorted(cells, np.arange(len(centres) + 1))
    # A little more than the distance of the closest that need not be found, for rounding.
    reach = np.sqrt(2 - 2 * cosine) + 1e-3
    apart = 2 * np.sqrt(np.maximum(0, _squares(centres, centres)))
    for first in range(0, vectors.count, BLOCK):
        end = min(first + BLOCK, vectors.count)
        here, own = vectors.read(first, end), cells[first:end]
        far = (centres**2).sum(1) - 2 * here @ centres.T
        far -= far[np.arange(len(own)), own][:, None]
        near = far <= reach * apart[own]
        if exact:
            near[own[:, None] > np.arange(len(centres))] = False
        else:
            near &= far <= np.partition(far, PROBES - 1, axis=1)[:, PROBES - 1 : PROBES]
        for cell in np.flatnonzero(near.any(axis=0)):
            if starts[cell] == starts[cell + 1]:
                continue
            rows, columns = np.flatnonzero(near[:, cell]), labels[starts[cell] : starts[cell + 1]]
            there = vectors.read(starts[cell], starts[cell + 1])
            products += len(rows) * there.size
            for part in np.array_split(rows, -(-len(rows) // 4096)):
                i, j = np.nonzero(here[part] @ there.T >= cosine)
                edges = np.stack([labels[first + part[i]], columns[j]])
                found.append(edges[:, edges[0] != edges[1]])
                waiting += found[-1].shape[1]
            if waiting > EDGES:
                labels, found, waiting = merged(labels, np.concatenate(found, axis=1)), [], 0
    log.info("%.1e products to compare %d embeddings", products, vectors.count)
    return merged(labels, np.concatenate(found, axis=1)) if waiting else labels


def _squares(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Squared distances (n, m)."""
    return (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T

"""How well vectors bring instances of one character together: ranks of retrieval, and clusters.

The scores are those of pytorch-metric-learning's AccuracyCalculator, and CMC, per query, so that a bootstrap can
average them. Among equal distances, wrong answers come first.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from actors.comic_characters.instances import Instance
from actors.core.errors import UserError
from pipelines.comic_characters.clusters import bcubed
from pipelines.comic_characters.sequences import Sequence as Panels
from pipelines.comic_characters.sequences import known_to_differ

RANKS: tuple[str, ...] = ("map_at_r", "map", "mrr", "r_precision", "cmc_1", "cmc_5", "cmc_10")
"""Mean average precision at R and over all, mean reciprocal rank, precision at R; share of queries with one of their
character among the first 1 (precision at 1), 5 and 10. R: how many of its character there are to be found."""
CLUSTERS: tuple[str, ...] = ("ami", "nmi", "ari", "bcubed_precision", "bcubed_recall", "bcubed_f1")
"""Adjusted and normalised mutual information, adjusted Rand index, and B-cubed."""
ADJUSTED = ("ami", "ari")
"""Of CLUSTERS, those that may be below 0."""


def rank_scores(distances: np.ndarray, same: np.ndarray, counts: np.ndarray | None = None) -> np.ndarray:
    """RANKS of each query, float64 (Q, 7), NaN where there is none of its character to be found.

    Args:
        distances: float (Q, N) of queries to all among which they search.
        same: bool (Q, N), which of these show the character of the query.
        counts: bool (Q, N), which of these count; others are as if they were not there. None: all.
    """
    there = np.ones_like(same) if counts is None else counts
    same = same & there
    order = np.lexsort((same, np.where(there, distances, np.inf)))
    hits = np.take_along_axis(same, order, 1)
    total = hits.sum(1)
    place = np.arange(1, hits.shape[1] + 1)
    precision = np.cumsum(hits, 1) / place
    first = place <= total[:, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        found = [
            (precision * hits * first).sum(1) / total,
            (precision * hits).sum(1) / total,
            1 / (1 + hits.argmax(1)),
            (hits * first).sum(1) / total,
            *(hits[:, :most].any(1) for most in (1, 5, 10)),
        ]
    return np.where(total[:, None] > 0, np.stack(found, 1), np.nan)


def cluster_scores(labels: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """CLUSTERS of instances, float64 (6,), from the character and the cluster of each, (N,)."""
    from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score, normalized_mutual_info_score

    return np.array(
        [
            adjusted_mutual_info_score(labels, clusters),
            normalized_mutual_info_score(labels, clusters),
            adjusted_rand_score(labels, clusters),
            *bcubed(labels, clusters),
        ]
    )


def k_means(vectors: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Clusters (N,) of vectors (N, D), as many as are asked for."""
    from sklearn.cluster import KMeans

    often: Any = 4
    return KMeans(count, n_init=often, random_state=seed).fit_predict(vectors)


def k_reciprocal(distances: np.ndarray, k1: int, k2: int, weight: float) -> np.ndarray:
    """Distances (N, N) by which neighbours are shared: Zhong et al., "Re-ranking Person Re-identification with
    k-reciprocal Encoding", 2017.

    Two are near if each is among the other's k1 nearest, and both have the same such neighbours, weighted by exp(-d),
    d squared and by the greatest of its row; each one's neighbours are the mean of those of its k2 nearest, itself
    included. The result is (1 - weight) · Jaccard distance + weight · d.

    Args:
        distances: float (N, N), Euclidean, of all queries and references to one another; 0 to themselves.
    """
    count = len(distances)
    scaled = distances.astype(np.float64) ** 2
    scaled /= np.maximum(scaled.max(1, keepdims=True), 1e-12)
    # Each is its own nearest, whatever is equal to it.
    order = np.argsort(np.where(np.eye(count, dtype=bool), -1.0, scaled), 1, kind="stable")
    neighbours, halves = (_reciprocal(order, k) for k in (k1, round(k1 / 2)))
    # Neighbours of neighbours join where they are mostly the same ones.
    shared = neighbours.astype(np.float32) @ halves.T.astype(np.float32)
    joins = neighbours & (shared > 2 / 3 * halves.sum(1))
    members = neighbours | (joins.astype(np.float32) @ halves.astype(np.float32) > 0)
    weights = np.where(members, np.exp(-scaled), 0)
    weights /= weights.sum(1, keepdims=True)
    weights = weights[order[:, :k2]].mean(1)
    jaccard = np.empty_like(scaled)
    for row, own in enumerate(weights):
        used = np.flatnonzero(own)
        least = np.minimum(own[used], weights[:, used]).sum(1)
        jaccard[row] = 1 - least / (2 - least)
    return (1 - weight) * jaccard + weight * scaled


def _reciprocal(order: np.ndarray, k: int) -> np.ndarray:
    """Which are among each other's k nearest beside themselves, bool (N, N)."""
    near = np.zeros(order.shape, bool)
    np.put_along_axis(near, order[:, : k + 1], True, 1)
    return near & near.T


# ---------------------------------------------------------------------------------------------------- who is searched


@dataclass(frozen=True)
class Labelled:
    """Instances as sequences name them, one a row; one that stands in two sequences is two rows."""

    instances: list[Instance]
    characters: np.ndarray
    """str (N,)."""
    sequences: np.ndarray
    """int (N,), a number for each."""
    series: np.ndarray
    """str (N,)."""
    uncertain: np.ndarray
    """bool (N,)."""

    def take(self, rows: np.ndarray) -> "Labelled":
        """Some of them."""
        columns = (self.characters, self.sequences, self.series, self.uncertain)
        return Labelled([self.instances[row] for row in rows.tolist()], *(column[rows] for column in columns))

    def relations(self) -> tuple[np.ndarray, np.ndarray]:
        """Which pairs are other drawings of one character, and which are known to be of two: bool (N, N) each."""
        numbers = {one: number for number, one in enumerate(dict.fromkeys(self.instances))}
        drawing = np.array([numbers[one] for one in self.instances])
        same = (self.characters[:, None] == self.characters) & (drawing[:, None] != drawing)
        return same, known_to_differ(self.characters, self.sequences, self.series, self.uncertain)


def labelled(sequences: Sequence[Panels], sound: set[Instance]) -> Labelled:
    """The sound instances of sequences, in their order."""
    rows = [
        (instance, one.characters[row], number, one.series, one.uncertain[row])
        for number, one in enumerate(sequences)
        for row, instance in enumerate(one.instances)
        if instance in sound
    ]
    instances, *columns = list(zip(*rows, strict=True)) or [()] * 5
    types = (str, int, str, bool)
    return Labelled(list(instances), *(np.array(column, kind) for column, kind in zip(columns, types, strict=True)))


@dataclass(frozen=True)
class Within:
    """Groups in which characters are told apart."""

    series: list[np.ndarray]
    """Rows of each series that is searched in."""
    sequences: list[tuple[int, np.ndarray]]
    """Rows of each sequence that is clustered, and to which of these series they belong."""
    skipped: int
    """Series and sequences that have too few instances, or a single character."""
    queries: int
    """Instances of these series that have one to find and one to be confused with."""


def within(rows: Labelled, least: int) -> Within:
    """Series of which instances are searched, and sequences that are clustered, where there are so many instances.

    What may be the same as another is left out of clusters.
    """
    groups: list[np.ndarray] = []
    parts: list[tuple[int, np.ndarray]] = []
    skipped = queries = 0
    for name in dict.fromkeys(rows.series.tolist()):
        own = np.flatnonzero(rows.series == name)
        same, differ = rows.take(own).relations()
        asked = int((same.any(1) & differ.any(1)).sum())
        if len(own) < least or not asked:
            skipped += 1
            continue
        queries += asked
        for number in dict.fromkeys(rows.sequences[own].tolist()):
            part = own[(rows.sequences[own] == number) & ~rows.uncertain[own]]
            if len(part) < least or len(set(rows.characters[part].tolist())) < 2:
                skipped += 1
            else:
                parts.append((len(groups), part))
        groups.append(own)
    return Within(groups, parts, skipped, queries)


@dataclass(frozen=True)
class Between:
    """One search across series, among characters who are all known to differ."""

    queries: np.ndarray
    """Rows, one of each character."""
    references: np.ndarray
    """Rows, all others of these characters."""


def between(rows: Labelled, seed: int) -> Between:
    """Of each series the largest set of characters known to differ who have two instances; a query of each at random.

    Which instance is the query depends on the seed and the names alone.
    """
    queries: list[int] = []
    references: list[int] = []
    for name in dict.fromkeys(rows.series.tolist()):
        own = np.flatnonzero(rows.series == name)
        for character in largest_known(rows.take(own)):
            found: dict[Instance, int] = {}
            for row in own[rows.characters[own] == character].tolist():
                found.setdefault(rows.instances[row], row)
            order = np.array(list(found.values()))
            random = np.random.default_rng([seed, *f"{name}/{character}".encode()])
            query = int(random.integers(len(order)))
            queries.append(int(order[query]))
            references.extend(np.delete(order, query).tolist())
    return Between(np.array(queries, int), np.array(references, int))


def largest_known(rows: Labelled) -> list[str]:
    """The largest set of characters of one series of whom each two are known to differ, and who have two instances.

    Exact: a maximum clique of the graph in which these are joined.
    """
    import networkx

    drawings: defaultdict[str, set[Instance]] = defaultdict(set)
    for instance, character in zip(rows.instances, rows.characters.tolist(), strict=True):
        drawings[character].add(instance)
    names = sorted(name for name, found in drawings.items() if len(found) > 1)
    _, differ = rows.relations()
    graph = networkx.Graph()
    # Numbers, since the order of strings in sets changes from process to process.
    graph.add_nodes_from(range(len(names)))
    at = [np.flatnonzero(rows.characters == name) for name in names]
    graph.add_edges_from(
        (first, second)
        for first in range(len(names))
        for second in range(first)
        if differ[np.ix_(at[first], at[second])].any()
    )
    alike: Any = None
    chosen, _ = networkx.max_weight_clique(graph, weight=alike)
    return [names[number] for number in sorted(chosen)]


# --------------------------------------------------------------------------------------------------------------- scores


@dataclass(frozen=True)
class Rerank:
    """Re-ranking by k-reciprocal neighbours, see `k_reciprocal`."""

    k1: int = 20
    """Nearest neighbours, from 1, among which two instances are mutual neighbours."""
    k2: int = 6
    """Nearest neighbours, from 1, whose neighbourhoods are averaged."""
    weight: float = 0.3
    """Weight of the original distance, 0 to 1; the rest is the distance of neighbourhoods."""

    def __post_init__(self) -> None:
        if self.k1 < 1 or self.k2 < 1 or not 0 <= self.weight <= 1:
            raise UserError(
                f"score.rerank: k1 and k2 start at 1, weight lies in [0, 1], not {self.k1}, {self.k2} and {self.weight}"
            )


def distances_of(vectors: np.ndarray, rerank: Rerank | None = None) -> np.ndarray:
    """Euclidean distances float64 (N, N) of vectors (N, D), or what re-ranking makes of them."""
    from scipy.spatial.distance import cdist

    distances = cdist(vectors, vectors)
    return distances if rerank is None else k_reciprocal(distances, rerank.k1, rerank.k2, rerank.weight)


@dataclass(frozen=True)
class Tally:
    """Scores by series: a score is the sum of `sums` by that of `counts`, so that series can be drawn anew."""

    sums: np.ndarray
    """float64 (S, K)."""
    counts: np.ndarray
    """float64 (S, K)."""

    def means(self, weights: np.ndarray) -> np.ndarray:
        """Scores (R, K) for weights (R, S) of series; NaN where there is none."""
        with np.errstate(invalid="ignore"):
            return (weights @ self.sums) / (weights @ self.counts)


def _tally(values: np.ndarray, series: np.ndarray, count: int) -> Tally:
    """Values (N, K), NaN where there is none, and the series (N,) of each."""
    known = ~np.isnan(values)
    sums, counts = np.zeros((2, count, values.shape[1]))
    np.add.at(sums, series, np.where(known, values, 0))
    np.add.at(counts, series, known)
    return Tally(sums, counts)


def score_within(rows: Labelled, groups: Within, vectors: np.ndarray, seed: int, rerank: Rerank | None) -> Tally:
    """RANKS and CLUSTERS (S, 13) within series: the mean over its queries, and over its sequences.

    A query counts that has somebody to find and somebody to be taken for; of whom it is not known whether they are
    the same do not count. Every sequence is clustered by k-means with its own number of characters.
    """
    series = len(groups.series)
    ranks, clusters = np.full((series, len(RANKS)), np.nan), np.full((len(groups.sequences), len(CLUSTERS)), np.nan)
    for number, own in enumerate(groups.series):
        same, differ = rows.take(own).relations()
        asked = same.any(1) & differ.any(1)
        distances = distances_of(vectors[own], rerank)
        ranks[number] = rank_scores(distances[asked], same[asked], (same | differ)[asked]).mean(0)
    if rerank is None:
        for number, (_, part) in enumerate(groups.sequences):
            characters = rows.characters[part]
            found = k_means(vectors[part], len(set(characters.tolist())), seed)
            clusters[number] = cluster_scores(characters, found)
    clustered = _tally(clusters, np.array([number for number, _ in groups.sequences], int), series)
    # Each series tells one value of each score.
    with np.errstate(invalid="ignore"):
        means = np.hstack([ranks, clustered.sums / clustered.counts])
    return _tally(means, np.arange(series), series)


@dataclass(frozen=True)
class Across:
    """What a search between series has found."""

    ranks: Tally
    """RANKS of the queries (S, 7)."""
    clusters: np.ndarray
    """CLUSTERS (6,) of queries and references together, by k-means with as many clusters as characters; NaN where they
    were re-ranked."""


def score_between(rows: Labelled, search: Between, vectors: np.ndarray, seed: int, rerank: Rerank | None) -> Across:
    """Find the character of each query among all references of all series, and cluster both together."""
    both = np.concatenate([search.queries, search.references])
    count = len(search.queries)
    # A name may stand for two characters in two series.
    names = np.char.add(np.char.add(rows.series[both], "/"), rows.characters[both])
    _, series = np.unique(rows.series[both], return_inverse=True)
    distances = distances_of(vectors[both], rerank)[:count, count:]
    ranks = rank_scores(distances, names[:count, None] == names[count:])
    clusters = np.full(len(CLUSTERS), np.nan)
    if rerank is None:
        clusters = cluster_scores(names, k_means(vectors[both], count, seed))
    return Across(_tally(ranks, series[:count], int(series.max()) + 1), clusters)

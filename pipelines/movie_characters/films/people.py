"""People whom no gallery explains: their tracks, of all films of a run, are clustered as unknown_1, unknown_2, ...

Tracks that overlap in time are never one person. A cluster keeps its number when the run goes on with more films, or
with other settings, as long as most of it stays together; so a table of names goes on to fit.
"""

import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from actors.core.csv_tables import read_csv_rows
from actors.core.errors import UserError
from pipelines.core.linkage import cut, tree

log = logging.getLogger(__name__)

MOST = 4000
"""Tracks that are clustered at once: their distances take 0.1 GB, and several tables of that size are needed."""
SAME = 0.999
"""Cosine from which tracks, such as those of one title sequence, are not told apart any more: too many are divided."""
ROWS = 2048
"""Tracks whose cosines with all others are held at once."""
CLUSTER, NAME = "cluster", "name"
"""Columns of a table of names."""
_UNKNOWN = re.compile(r"unknown_(\d+)")


def unknown_name(number: int) -> str:
    """The name of a cluster."""
    return f"unknown_{number}"


def cluster_tracks(vectors: np.ndarray, films: np.ndarray, spans: np.ndarray, alike: float) -> np.ndarray:
    """Clusters of tracks by average linkage, int (T,), numbered from 0 as they appear.

    Two clusters are joined where the mean cosine of their tracks is at least `alike`. Then at least one pair is so
    near; so groups of tracks between which no pair is can be clustered one by one.

    Args:
        vectors: float (T, D), of length 1.
        films: int (T,).
        spans: float (T, 2), start and end in seconds; tracks of one film that overlap are never joined.
        alike: a cosine.
    """
    found = np.zeros(len(vectors), int)
    count = 0
    todo = [(members, alike) for members in _groups(vectors, alike)]
    while todo:
        members, least = todo.pop()
        if len(members) > MOST:
            # A chain of tracks, each near the next one, of which average linkage would join few.
            stricter = least + 0.05 * (1 - least)
            log.warning("%d tracks are too many to be clustered at once from a cosine of %.3f on: they are clustered "
                        "from %.3f on", len(members), least, stricter)  # fmt: skip
            parts = np.array_split(np.arange(len(members)), -(-len(members) // MOST))
            groups = _groups(vectors[members], stricter) if stricter < SAME else parts
            todo += [(members[some], stricter) for some in groups]
            continue
        own = vectors[members]
        apart = _overlapping(films[members], spans[members])
        heights = np.where(np.eye(len(members), dtype=bool), 0, np.clip(1 - own @ own.T, 0, 2))
        merges = tree((heights + heights.T) / 2, np.arange(len(members)), apart, "agglomerative")
        clusters = cut(merges, 1 - least + 1e-9)
        found[members] = clusters + count
        count += int(clusters.max()) + 1
    _, first, numbers = np.unique(found, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[numbers]


def _groups(vectors: np.ndarray, alike: float) -> list[np.ndarray]:
    """Numbers of vectors in groups, such that no two of different groups have a cosine of `alike` or more."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    count = len(vectors)
    if not count:
        return []
    # In tiles, and of each only what joins groups: of people who are often on screen, all pairs would not fit.
    labels = np.arange(count)
    for start in range(0, count, ROWS):
        for other in range(start, count, ROWS):
            near = vectors[start : start + ROWS] @ vectors[other : other + ROWS].T >= alike - 1e-6
            rows, columns = np.nonzero(
                near & (labels[start : start + ROWS, None] != labels[None, other : other + ROWS])
            )
            if len(rows):
                pairs = labels[rows + start], labels[columns + other]
                graph = coo_array((np.ones(len(rows), bool), pairs), (count, count))
                labels = connected_components(graph, directed=False)[1][labels]
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)


def _overlapping(films: np.ndarray, spans: np.ndarray) -> np.ndarray:
    """Which tracks are on screen at one time: bool (T, T)."""
    starts, ends = spans[:, 0], spans[:, 1]
    both = (films[:, None] == films) & (starts[:, None] < ends) & (starts < ends[:, None])
    np.fill_diagonal(both, False)
    return both


def number_clusters(
    clusters: np.ndarray, tracks: Sequence[str], seconds: np.ndarray, before: Mapping[str, str]
) -> list[str]:
    """The name of each track's cluster: unknown_N.

    A cluster keeps the name that most of its tracks had before, if no other has more of that name; new names go on from
    the highest number, by the time on screen, longest first.

    Args:
        clusters: int (T,).
        tracks: (T,), what names a track in every run.
        seconds: float (T,).
        before: names of an earlier run, by track.
    """
    shared = Counter(
        (cluster, before[track]) for cluster, track in zip(clusters, tracks, strict=True) if track in before
    )
    names: dict[int, str] = {}
    for (cluster, name), _ in sorted(shared.items(), key=lambda one: (-one[1], one[0])):
        if cluster not in names and name not in names.values():
            names[cluster] = name
    lengths = np.bincount(clusters, seconds) if len(clusters) else np.zeros(0)
    number = max((int(match[1]) for name in before.values() if (match := _UNKNOWN.fullmatch(name))), default=0)
    for cluster in np.argsort(-lengths, kind="stable").tolist():
        if cluster not in names:
            number += 1
            names[cluster] = unknown_name(number)
    return [names[cluster] for cluster in clusters.tolist()]


def read_names(uri: str) -> dict[str, str]:
    """Names by cluster, from a table with the columns cluster and name; rows without a name are left out.

    Raises UserError where there is no table, a row names no cluster, or a cluster has two names.
    """
    names: dict[str, str] = {}
    try:
        rows = read_csv_rows(uri, [CLUSTER, NAME])
    except FileNotFoundError as error:
        raise UserError(f"names={uri}: there is no such file. Fill in people.csv of an earlier run.") from error
    for line, row in rows:
        cluster, name = row[CLUSTER], row[NAME]
        if not _UNKNOWN.fullmatch(cluster):
            raise UserError(f"{uri}, line {line}: {cluster!r} is no cluster. Clusters are named as unknown_1.")
        if name and names.setdefault(cluster, name) != name:
            raise UserError(f"{uri}, line {line}: {cluster} is named {names[cluster]} and {name}. Keep one of them.")
        if "/" in name or _UNKNOWN.fullmatch(name):
            raise UserError(f"{uri}, line {line}: {name!r} cannot be a name. Use one without /, and not as unknown_1.")
    return names


def check_names(uri: str, names: Mapping[str, str], clusters: Iterable[str]) -> None:
    """Raise UserError where a table names clusters that there are not; clusters: of this run and all before."""
    if wrong := sorted(set(names) - set(clusters)):
        raise UserError(f"{uri} names {', '.join(wrong)}, and there is no such cluster. See people.csv of the output.")

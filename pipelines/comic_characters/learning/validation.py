"""What stage 1 is validated by: how well its features find other instances of a character, or other views of a picture.

The loss of stage 1 is no measure of that: it depends on the batch and on temperature, and grows again while retrieval
still gets better. With labels of the validation series, MAP@R within series counts, as in `score`. Without, the mean
reciprocal rank of another view of each picture, among the views of all validation pairs.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from actors.comic_characters.instances import Instance
from actors.core import storage
from actors.core.checkpoints import Tensors
from pipelines.comic_characters.labels import read_labels, sequences_uri
from pipelines.comic_characters.learning.retrieval import RANKS, Labelled, distances_of, rank_scores
from pipelines.comic_characters.sequences import Sequence
from pipelines.comic_characters.settings import Identities
from pipelines.core.float32 import in_float32
from pipelines.core.metrics import ENOUGH

RELATIONS = ("character", "sequence", "series", "uncertain")
"""Columns of a validation pair: numbers of its character, sequence and series, -1 where it has no label; 0 or 1."""
MOST = 2048
"""Pairs, and labelled pairs of a series, that are searched at most, so that validation costs little."""


@dataclass(frozen=True)
class Validation:
    """By what the best epoch is chosen."""

    by: str
    """identities or views."""
    queries: int
    """Labelled pairs with another of their character to find and one that is known to differ; or pairs."""

    @property
    def said(self) -> str:
        """In words, for the log."""
        if self.by == "identities":
            return f"the best epoch finds other instances of a character best (MAP@R of {self.queries} labelled pairs)"
        return (
            f"no labelled characters to validate with ({ENOUGH} needed; set labels): the best epoch finds another view "
            f"of each picture best, among {self.queries} pairs"
        )


def labels_of(
    labels: str, pairs: pd.DataFrame, identities: Identities = "sequences"
) -> dict[Instance, tuple[int, int, int, int]]:
    """RELATIONS of the pairs (columns of KEY) that the validation labels name."""
    if not labels or not storage.exists(sequences_uri(labels, "validation")):
        return {}
    return relations(read_labels(labels, "validation", identities), pairs)


def relations(sequences: list[Sequence], pairs: pd.DataFrame) -> dict[Instance, tuple[int, int, int, int]]:
    """RELATIONS of the pairs that these sequences name, by their face or their body; the first sequence counts."""
    numbers: dict[tuple[str, str], int] = {}
    known: dict[tuple[Any, ...], tuple[int, int, int, int]] = {}
    for place, one in enumerate(sequences):
        series = numbers.setdefault(("series", one.series), len(numbers))
        for (name, page, face, body), who, doubt in zip(one.instances, one.characters, one.uncertain, strict=True):
            row = (numbers.setdefault(("character", who), len(numbers)), place, series, int(doubt))
            for kind, index in (("face", face), ("body", body)):
                if index is not None:
                    known.setdefault((name, page, kind, index), row)
    found = {}
    for name, page, face, body in pairs.itertuples(index=False, name=None):
        row = known.get((name, page, "face", int(face)), known.get((name, page, "body", int(body))))
        if row is not None:
            found[name, page, int(face), int(body)] = row
    return found


def validation_of(known: Mapping[Instance, tuple[int, int, int, int]], pairs: int) -> Validation:
    """By identities where enough labelled pairs can be searched for, else by views."""
    queries = sum(int(asked.sum()) for _, _, _, asked in _groups(list(known), np.array(list(known.values()), int)))
    return Validation("identities", queries) if queries >= ENOUGH else Validation("views", min(pairs, MOST))


def _groups(
    instances: list[Instance], columns: np.ndarray
) -> Iterable[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Of each series: rows, same (n, n), known to differ (n, n), and which are queries (n,)."""
    if not len(columns):
        return
    for series in dict.fromkeys(columns[:, 2].tolist()):
        rows = np.flatnonzero(columns[:, 2] == series)[:MOST]
        own = columns[rows]
        labelled = Labelled(
            [instances[row] for row in rows], own[:, 0].astype(str), own[:, 1], own[:, 2].astype(str), own[:, 3] > 0
        )
        same, differ = labelled.relations()
        yield rows, same, differ, np.asarray(same.any(1) & differ.any(1))


def identity_retrieval(vectors: np.ndarray, columns: np.ndarray) -> float:
    """MAP@R of labelled pairs within series, the mean over queries; NaN without queries.

    vectors: float (N, D); columns: int (N, 4), RELATIONS, -1 where there is no label.
    """
    known = np.flatnonzero(columns[:, 0] >= 0)
    instances: list[Instance] = [("", str(row), row, row) for row in known.tolist()]
    found = []
    for rows, same, differ, asked in _groups(instances, columns[known]):
        if asked.any():
            distances = distances_of(vectors[known[rows]])
            scores = rank_scores(distances[asked], same[asked], (same | differ)[asked])
            found.append(scores[:, RANKS.index("map_at_r")])
    return float(np.concatenate(found).mean()) if found else float("nan")


@in_float32
def view_retrieval(first: Tensor, second: Tensor) -> float:
    """Mean over both views (N, D), of length 1, of 1 / rank of the partner among all others; N is MOST at most.

    Among equal similarities wrong answers come first.
    """
    first, second = first[:MOST], second[:MOST]
    both, count = torch.cat([first, second]), len(first)
    total = 0.0
    for begin in range(0, 2 * count, 512):
        rows = torch.arange(begin, min(begin + 512, 2 * count), device=both.device)
        alike = both[rows] @ both.T
        alike.scatter_(1, rows[:, None], -torch.inf)
        partner = alike.gather(1, ((rows + count) % (2 * count))[:, None])
        # The partner itself is not below itself; nor is what is not a number, which thus comes last.
        total += (1 / (~(alike < partner)).sum(1)).sum().item()
    return total / (2 * count)


def features_of(networks: Mapping[str, nn.Module], batch: Tensors) -> Tensor:
    """The stage 1 vectors of `score`, float32 (N, F): the sum of the features of face and body, each of length 1."""
    total: Any = 0
    for kind in ("face", "body"):
        pixels = batch[kind].permute(0, 3, 1, 2).float().div(127.5).sub(1)
        total = total + normalize(networks[kind](pixels.contiguous(memory_format=torch.channels_last)).float(), dim=1)
    return normalize(total, dim=1)

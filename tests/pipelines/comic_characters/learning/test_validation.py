"""By what stage 1's best epoch is chosen: retrieval against slow oracles, and by which labels."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn.functional import normalize

from actors.comic_characters.pairs import KEY
from actors.core.store import Store
from pipelines.comic_characters.learning.pretrain import evaluate, networks_of
from pipelines.comic_characters.learning.retrieval import labelled, score_within, within
from pipelines.comic_characters.learning.validation import (
    RELATIONS,
    features_of,
    identity_retrieval,
    labels_of,
    relations,
    validation_of,
    view_retrieval,
)
from pipelines.comic_characters.settings import PretrainConfig
from pipelines.core.training_config import best_epoch
from tests.pipelines.comic_characters.learning.test_pretrain import batch, tiny, vectors
from tests.pipelines.comic_characters.learning.test_retrieval import comic


def pairs_of(instances: list[Any]) -> pd.DataFrame:
    return pd.DataFrame(instances, columns=KEY)


@pytest.mark.parametrize("uncertain", [False, True])
def test_identities_are_searched_as_score_does_within_series(uncertain: bool) -> None:
    sequences, truth = comic(series=4, uncertain=uncertain)
    instances: list[Any] = list(truth)
    known = relations(sequences, pairs_of(instances))
    assert list(known) == instances
    columns = np.array([known[one] for one in instances])
    drawn = np.random.default_rng(0).normal(size=(100, 8))[list(truth.values())]
    drawn += np.random.default_rng(1).normal(size=drawn.shape)
    rows = labelled(sequences, set(truth))
    tally = score_within(rows, within(rows, 2), drawn, 0, None)
    assert identity_retrieval(drawn, columns) == pytest.approx(tally.means(np.ones((1, 4)))[0, 0])
    # Pairs without a label neither search nor are found.
    more = np.concatenate([drawn, drawn[:9]])
    unknown = np.concatenate([columns, np.full((9, 4), -1)])
    assert identity_retrieval(more, unknown) == pytest.approx(identity_retrieval(drawn, columns))


def test_views_find_their_partner_as_one_by_one() -> None:
    first, second = vectors(700, 0), vectors(700, 1)
    second = normalize(first + 0.5 * second, dim=1)
    both = torch.cat([first, second])
    found = []
    for row in range(1400):
        alike = both @ both[row]
        alike[row] = -2
        found.append(1 / float((alike >= alike[(row + 700) % 1400]).sum()))
    assert view_retrieval(first, second) == pytest.approx(np.mean(found), rel=1e-3)
    assert view_retrieval(first, first) == pytest.approx(1)
    # A network that finds everything alike finds nothing.
    assert view_retrieval(torch.ones(50, 4) / 2, torch.ones(50, 4) / 2) == pytest.approx(1 / 99)


def test_labels_count_from_so_many_queries_on() -> None:
    sequences, truth = comic(series=1, people=2, panels=4)
    instances: list[Any] = list(truth)
    few = validation_of(relations(sequences, pairs_of(instances)), 500)
    assert (few.by, few.queries) == ("views", 500) and "no labelled characters" in few.said
    sequences, truth = comic(series=2)
    enough = validation_of(relations(sequences, pairs_of(list(truth))), 500)
    assert (enough.by, enough.queries) == ("identities", 40) and "MAP@R of 40 labelled pairs" in enough.said
    assert validation_of({}, 10_000).queries == 2048


def test_pairs_are_known_by_their_face_or_their_body() -> None:
    sequences, truth = comic(series=1)
    one = next(iter(truth))
    rows: list[Any] = [(one[0], one[1], one[2], 99), (one[0], one[1], 99, one[3]), (one[0], one[1], 98, 98)]
    assert list(relations(sequences, pairs_of(rows))) == rows[:2]
    assert labels_of("", pairs_of(rows)) == {}


def test_a_folder_without_validation_labels_has_none(tmp_path: Path) -> None:
    assert labels_of(Store(str(tmp_path)).root, pairs_of([])) == {}


def test_an_epoch_is_validated_by_the_features_that_are_kept() -> None:
    model: Any = tiny().eval()
    rows = batch(12) | dict(zip(RELATIONS, torch.zeros(4, 12, dtype=torch.int64), strict=True))
    rows["character"] = torch.arange(12) % 3
    rows["series"] = torch.full((12,), 100)
    with torch.no_grad():
        found = evaluate(PretrainConfig(), model, iter([rows]), by="identities")
        views = evaluate(PretrainConfig(), model, iter([rows]))
        features = features_of(networks_of(model), rows).numpy()
    columns = torch.stack([rows[name] for name in RELATIONS], 1).numpy()
    assert found["retrieval"] == found["identity_map_at_r"] == pytest.approx(identity_retrieval(features, columns))
    assert views["retrieval"] == views["view_mrr"] == found["view_mrr"] and "identity_map_at_r" not in views


def test_the_best_epoch_is_the_one_that_finds_most_and_not_of_least_loss() -> None:
    history: list[Any] = [
        {"epoch": 1, "retrieval": 0.2, "valid_loss": 5.0},
        {"epoch": 2, "retrieval": 0.3, "valid_loss": 4.0},
        {"epoch": 3, "retrieval": 0.6, "valid_loss": 6.0},
    ]
    assert best_epoch(history, PretrainConfig().training) == 3

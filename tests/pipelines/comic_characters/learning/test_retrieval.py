"""Ranks and clusters against pytorch-metric-learning, re-ranking against its definition, and who is searched where."""

import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from actors.comic_characters.instances import Instance
from pipelines.comic_characters.learning.retrieval import (
    CLUSTERS,
    RANKS,
    Rerank,
    between,
    cluster_scores,
    distances_of,
    k_means,
    k_reciprocal,
    labelled,
    largest_known,
    rank_scores,
    score_between,
    score_within,
    within,
)
from pipelines.comic_characters.sequences import Sequence

NAMES = {
    "map_at_r": "mean_average_precision_at_r",
    "map": "mean_average_precision",
    "mrr": "mean_reciprocal_rank",
    "r_precision": "r_precision",
    "cmc_1": "precision_at_1",
}
"""Ours, and those of pytorch-metric-learning."""


def noisy(random: np.random.Generator, labels: np.ndarray, noise: float = 1.0) -> np.ndarray:
    """Vectors (N, 8) of length 1 about a place of each label's own."""
    places = random.normal(size=(labels.max() + 1, 8))
    found = places[labels] + noise * random.normal(size=(len(labels), 8))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def calculator(count: int) -> Any:
    from pytorch_metric_learning.distances import LpDistance
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
    from pytorch_metric_learning.utils.inference import CustomKNN

    return AccuracyCalculator(
        knn_func=CustomKNN(LpDistance(normalize_embeddings=False)),
        kmeans_func=lambda vectors, clusters: k_means(vectors.numpy(), clusters, 0),
    )


@pytest.mark.parametrize("seed", range(3))
def test_scores_are_those_of_pytorch_metric_learning(seed: int) -> None:
    """Within one set, and of queries among references, some of whom are nobody's."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 7, 40)
    vectors = noisy(random, labels)
    distances, same = distances_of(vectors), labels[:, None] == labels
    others = ~np.eye(len(labels), dtype=bool)
    ours = rank_scores(distances, same, others)
    theirs = calculator(7).get_accuracy(vectors, labels)
    means = dict(zip(RANKS, np.nanmean(ours, 0), strict=True))
    for name, their_name in NAMES.items():
        assert means[name] == pytest.approx(theirs[their_name], abs=1e-6), name
    clustered = dict(zip(CLUSTERS, cluster_scores(labels, k_means(vectors, len(set(labels.tolist())), 0)), strict=True))
    assert clustered["ami"] == pytest.approx(theirs["AMI"]) and clustered["nmi"] == pytest.approx(theirs["NMI"])
    lone = np.append(labels[20:], 99)
    found = rank_scores(distances[:20, 20:], labels[:20, None] == labels[20:])
    theirs = calculator(7).get_accuracy(vectors[:20], labels[:20], np.vstack([vectors[20:], 9 + vectors[:1]]), lone)
    for name, value in zip(RANKS, np.nanmean(found, 0), strict=True):
        if name in ("mrr", "r_precision", "cmc_1", "map_at_r", "map"):
            assert value == pytest.approx(theirs[NAMES[name]], abs=1e-6), name


def test_ranks_of_a_list_that_is_known() -> None:
    """Of a character with two others the second and the fourth are right, and somebody in between does not count."""
    distances = np.array([[0.1, 0.2, 0.3, 0.35, 0.4, 0.5]])
    same = np.array([[False, True, False, True, True, False]])
    counts = np.array([[True, True, True, False, True, True]])
    found = dict(zip(RANKS, rank_scores(distances, same, counts)[0], strict=True))
    assert found["map_at_r"] == pytest.approx(1 / 4) and found["map"] == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert found["mrr"] == found["r_precision"] == 0.5
    assert [found[f"cmc_{most}"] for most in (1, 5, 10)] == [0, 1, 1]
    assert np.isnan(rank_scores(distances, same & ~same)).all()


def test_what_is_as_near_stands_before() -> None:
    distances, same = np.zeros((1, 3)), np.array([[True, False, False]])
    assert rank_scores(distances, same)[0, RANKS.index("mrr")] == pytest.approx(1 / 3)


def by_definition(distances: np.ndarray, k1: int, k2: int, weight: float) -> np.ndarray:
    """Re-ranking with sets, sentence by sentence of the paper; distances are without ties."""
    count = len(distances)
    scaled = distances**2 / (distances**2).max(1, keepdims=True)
    order = [sorted(range(count), key=lambda other: (other != row, scaled[row, other])) for row in range(count)]

    def mutual(row: int, k: int) -> set[int]:
        return {other for other in order[row][: k + 1] if row in order[other][: k + 1]}

    encoded = np.zeros((count, count))
    for row in range(count):
        members = mutual(row, k1)
        grown = set(members)
        for other in members:
            half = mutual(other, round(k1 / 2))
            if len(half & members) > 2 / 3 * len(half):
                grown |= half
        for other in grown:
            encoded[row, other] = np.exp(-scaled[row, other])
        encoded[row] /= encoded[row].sum()
    mean = np.array([np.mean([encoded[other] for other in order[row][:k2]], 0) for row in range(count)])
    found = np.zeros((count, count))
    for row in range(count):
        for other in range(count):
            low, high = np.minimum(mean[row], mean[other]).sum(), np.maximum(mean[row], mean[other]).sum()
            found[row, other] = (1 - weight) * (1 - low / high) + weight * scaled[row, other]
    return found


@pytest.mark.parametrize(("k1", "k2", "weight"), [(6, 3, 0.3), (20, 6, 0.0), (5, 1, 0.7), (100, 3, 0.3)])
def test_re_ranking_is_what_the_paper_says(k1: int, k2: int, weight: float) -> None:
    random = np.random.default_rng(k1)
    distances = distances_of(noisy(random, random.integers(0, 5, 30)))
    assert k_reciprocal(distances, k1, k2, weight) == pytest.approx(by_definition(distances, k1, k2, weight), abs=1e-6)


def test_re_ranking_with_the_whole_weight_changes_no_rank() -> None:
    random = np.random.default_rng(0)
    distances = distances_of(noisy(random, random.integers(0, 5, 30)))
    assert (k_reciprocal(distances, 5, 2, 1.0).argsort(1) == distances.argsort(1)).all()


def comic(
    series: int = 6, people: int = 5, panels: int = 4, names: str = "a", uncertain: bool = False
) -> tuple[list[Sequence], dict[Instance, int]]:
    """A sequence a series, in which everybody stands in every panel; and who that is, by number."""
    sequences, truth = [], {}
    for number in range(series):
        instances: list[Instance] = [(f"s{number}", f"0_{n // people}", n, n) for n in range(people * panels)]
        who = [n % people for n in range(people * panels)]
        truth |= {one: number * people + name for one, name in zip(instances, who, strict=True)}
        doubt = [uncertain and name == 0 for name in who]
        sequences.append(Sequence(f"q{number}", f"s{number}", instances, [f"{names}{n}" for n in who], doubt))
    return sequences, truth


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
def test_between_series_everybody_is_searched_once_by_whom_no_name_is_shared() -> None:
    """Characters of one name in two series are two."""
    sequences, truth = comic()
    rows = labelled(sequences, set(truth))
    search = between(rows, seed=0)
    who = np.array([truth[one] for one in rows.instances])
    assert sorted(who[search.queries].tolist()) == list(range(30))
    assert not set(search.queries.tolist()) & set(search.references.tolist())
    assert len(search.references) == 90
    vectors = np.eye(30)[who]
    found = score_between(rows, search, vectors, 0, None)
    assert found.ranks.means(np.ones((1, 6))) == pytest.approx(1)
    assert found.clusters == pytest.approx(1)
    # All who are called alike look alike: of six, five are somebody else.
    found = score_between(rows, search, np.eye(5)[who % 5], 0, None)
    assert found.ranks.means(np.ones((1, 6)))[0, RANKS.index("mrr")] == pytest.approx(1 / 16)


def test_whom_nothing_is_known_of_is_not_searched_together() -> None:
    """Two sequences of a series: the larger one's characters count, unless one name joins both."""
    one = Sequence("q", "s", [("s", "0_0", n, None) for n in range(6)], list("aabbcc"), [False] * 6)
    more = Sequence("r", "s", [("s", "1_0", n, None) for n in range(5)], list("ddeef"), [False] * 5)
    sound = {*one.instances, *more.instances}
    assert largest_known(labelled([one, more], sound)) == ["a", "b", "c"]
    joined = replace(more, characters=list("aaeef"))
    assert largest_known(labelled([one, joined], sound)) == ["a", "b", "c"]
    both = replace(more, characters=list("aabbf"), instances=[("s", "1_0", n, None) for n in range(5)])
    third = Sequence("t", "s", [("s", "2_0", n, None) for n in range(8)], list("ddaabbcc"), [False] * 8)
    assert largest_known(labelled([one, both, third], {*sound, *third.instances})) == ["a", "b", "c", "d"]
    doubt = replace(one, uncertain=[name == "c" for name in one.characters])
    assert largest_known(labelled([doubt], sound)) == ["a", "b"]
    # What stands in two sequences is drawn once.
    again = replace(more, instances=one.instances[:2], characters=["a", "a"], uncertain=[False] * 2)
    assert len(between(labelled([one, again], sound), 0).references) == 3


def test_within_series_only_what_is_known_counts() -> None:
    """The second sequence is turned against the first: nothing is known of the two, and no score changes."""
    random = np.random.default_rng(0)
    first, truth = comic(series=3, people=3)
    second = [
        replace(one, name=f"again {one.name}", instances=[(s, f"1{page}", f, b) for s, page, f, b in one.instances])
        for one in first
    ]
    second = [replace(one, characters=[f"other {name}" for name in one.characters]) for one in second]
    sequences = [*first, *second]
    rows = labelled(sequences, {instance for one in sequences for instance in one.instances})
    groups = within(rows, least=5)
    assert (len(groups.series), len(groups.sequences), groups.skipped) == (3, 6, 0)
    vectors = noisy(random, np.array([truth[one] for one in list(truth)] * 2), 0.8)
    turned = vectors.copy()
    turned[len(truth) :] *= -1
    before, after = (score_within(rows, groups, some, 0, None).means(np.ones((1, 3))) for some in (vectors, turned))
    assert after == pytest.approx(before) and (before[0, :4] < 1).all()
    alone = labelled(first, set(truth))
    halves = score_within(alone, within(alone, 5), vectors[: len(truth)], 0, None).means(np.ones((1, 3)))[0]
    assert halves[:2] != pytest.approx(before[0, :2])


def test_what_is_too_small_is_skipped_and_counted() -> None:
    sequences, truth = comic(series=3, people=2, panels=2)
    sequences = [*sequences, *comic(series=4, people=3, panels=2)[0][3:]]
    sound = {instance for one in sequences for instance in one.instances}
    groups = within(labelled(sequences, sound), least=5)
    assert (len(groups.series), groups.skipped) == (1, 3)
    doubt = [replace(one, uncertain=[True] * len(one.instances)) for one in sequences]
    assert within(labelled(doubt, sound), least=2).series == []
    assert largest_known(labelled([], sound)) == []
    assert len(truth) == 12


def test_the_query_depends_on_no_hash_seed() -> None:
    code = (
        "from tests.pipelines.comic_characters.learning.test_retrieval import *; sequences, truth = comic();"
        "print(between(labelled(sequences, set(truth)), 3).queries.tolist())"
    )
    environment = {"PYTHONHASHSEED": "1", "PYTHONPATH": "."}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True, text=True)
    sequences, truth = comic()
    rows = labelled(sequences, set(truth))
    assert json.loads(run.stdout) == between(rows, 3).queries.tolist() != between(rows, 4).queries.tolist()


def test_drawn_anew_a_series_counts_as_often_as_it_is_drawn() -> None:
    """Whatever is drawn twice counts twice, and what is not drawn not at all."""
    sequences, truth = comic(series=3)
    rows = labelled(sequences, set(truth))
    vectors = noisy(np.random.default_rng(0), np.array([truth[one] for one in rows.instances]), 1.5)
    inside = score_within(rows, within(rows, 5), vectors, 0, None)
    ones, some = inside.means(np.eye(3)), inside.means(np.array([[2, 1, 0]]))
    assert some[0] == pytest.approx((2 * ones[0] + ones[1]) / 3)
    across = score_between(rows, between(rows, 0), vectors, 0, None)
    assert across.ranks.means(np.array([[3, 3, 3]])) == pytest.approx(across.ranks.means(np.ones((1, 3))))
    reranked = score_between(rows, between(rows, 0), vectors, 0, Rerank())
    assert np.isnan(reranked.clusters).all() and not np.isnan(across.clusters).any()
    assert (reranked.ranks.means(np.ones((1, 3))) != across.ranks.means(np.ones((1, 3)))).any()

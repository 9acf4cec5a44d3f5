"""Figures against scikit-learn's, and intervals against what statistics says of them."""

from typing import Any, Literal

import numpy as np
import pytest
from scipy import stats
from scipy.stats import binomtest
from sklearn.calibration import calibration_curve
from sklearn.metrics import average_precision_score, f1_score, precision_recall_fscore_support

from pipelines.core.metrics import (
    average_precision,
    bootstrap,
    calibration,
    clustered,
    curve,
    difference,
    effective,
    table,
    thresholds,
    widened,
    wilson,
)

FILMS, CLASSES = 60, 4
NAMES = ["a", "b", "never", "d"]


@pytest.fixture
def sample() -> tuple[np.ndarray, np.ndarray]:
    """Scores with ties, and labels; one class does not occur."""
    random = np.random.default_rng(0)
    labels = (random.random((FILMS, CLASSES)) < [0.5, 0.2, 0, 0.05]).astype(np.uint8)
    labels[0, 3] = 1
    return np.round(np.clip(0.3 * labels + 0.7 * random.random((FILMS, CLASSES)), 0, 1), 1), labels


def test_average_precision_is_that_of_sklearn_with_ties_and_weights(sample: tuple[np.ndarray, np.ndarray]):
    scores, labels = sample
    weights = np.random.default_rng(1).integers(0, 3, (5, FILMS))
    ours, weighted = average_precision(scores, labels), average_precision(scores, labels, weights)
    assert np.isnan(ours[2]) and np.isnan(weighted[:, 2]).all()
    for number in (0, 1, 3):
        assert ours[number] == pytest.approx(average_precision_score(labels[:, number], scores[:, number]))
        for draw in range(5):
            at = weights[draw] > 0
            truth = labels[at, number]
            theirs = (
                average_precision_score(truth, scores[at, number], sample_weight=weights[draw, at])
                if truth.any()
                else np.nan
            )
            assert weighted[draw, number] == pytest.approx(theirs, nan_ok=True)


def counted(labels: np.ndarray, chosen: np.ndarray, **how: Any) -> Any:
    # Its stub wants a string where it takes a number.
    zero: Any = 0
    return precision_recall_fscore_support(labels, chosen, zero_division=zero, **how)


def test_the_table_is_that_of_sklearn_over_classes_that_occur(sample: tuple[np.ndarray, np.ndarray]):
    scores, labels = sample
    rows = table(scores, labels, NAMES, np.array([0.5, 0.6, 0.5, 0.95]), draws=20)
    chosen = scores >= [0.5, 0.6, 0.5, 0.95]
    there = [0, 1, 3]
    assert list(rows.index) == [*NAMES, "micro", "macro", "weighted"]
    theirs = counted(labels[:, there], chosen[:, there])
    for name, values in zip(["precision", "recall", "f1", "support"], theirs, strict=True):
        assert rows.loc[["a", "b", "d"], name].to_numpy() == pytest.approx(np.asarray(values))
    for average in ("micro", "macro", "weighted"):
        # The choices of a class that does not occur count in micro, as false alarms.
        columns = slice(None) if average == "micro" else there
        theirs = counted(labels[:, columns], chosen[:, columns], average=average)
        assert rows.loc[[average], ["precision", "recall", "f1"]].to_numpy()[0] == pytest.approx(theirs[:3])
        precision = average_precision_score(labels[:, columns], scores[:, columns], average=average)
        assert rows.loc[average, "ap"] == pytest.approx(precision)
    never, others = rows.loc[["never"]], rows.drop(index="never")
    assert never[["recall", "f1", "ap", "ap_low"]].isna().all(axis=None) and never.support.eq(0).all()
    assert (others.ap_low <= others.ap_high).all()


def test_nothing_chosen_has_precision_0(sample: tuple[np.ndarray, np.ndarray]):
    rows = table(*sample, NAMES, 2.0, draws=2)
    assert (rows.precision == 0).all() and rows.f1.drop("never").eq(0).all()


def test_thresholds_give_the_best_f1_that_any_gives(sample: tuple[np.ndarray, np.ndarray]):
    scores, labels = sample
    found = thresholds(scores, labels, otherwise=0.7)
    assert found[2] == 0.7
    for number in (0, 1, 3):
        f1 = [f1_score(labels[:, number], scores[:, number] >= at) for at in np.arange(0, 1.01, 0.05)]
        assert f1_score(labels[:, number], scores[:, number] >= found[number]) == pytest.approx(max(f1))


def test_a_threshold_lies_between_the_two_scores_that_it_parts():
    scores = np.array([[0.1], [0.2], [0.6], [0.9]])
    assert thresholds(scores, np.array([[0], [0], [1], [1]])) == pytest.approx([0.4])
    assert thresholds(scores, np.ones((4, 1))) == pytest.approx([0.1])


def test_bootstrap_finds_the_interval_of_a_mean():
    values = np.random.default_rng(0).normal(size=400)
    low, high = bootstrap(lambda weights: (weights @ values / 400)[:, None], 400, 4000)
    error = values.std() / np.sqrt(400)
    assert low[0] == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error)
    assert high[0] == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error)
    again = bootstrap(lambda weights: (weights @ values / 400)[:, None], 400, 4000)
    assert (low[0], high[0]) == (again[0][0], again[1][0])


def test_the_bootstrap_is_the_percentile_one_of_scipy():
    values = np.random.default_rng(5).exponential(size=60)
    low, high = bootstrap(lambda weights: weights @ values[:, None] / 60, 60, draws=9999)
    theirs = stats.bootstrap((values,), np.mean, method="percentile", rng=np.random.default_rng(6)).confidence_interval
    assert (low[0], high[0]) == pytest.approx((theirs.low, theirs.high), abs=0.02)


def test_bootstrap_draws_do_not_depend_on_how_many_are_held_at_once():
    values = np.random.default_rng(7).normal(size=(30, 1))
    ends = [bootstrap(lambda weights: weights @ values, 30, 200, at_once=size) for size in (1, 50, 1000)]
    assert np.ptp(np.array(ends), axis=0) == pytest.approx(0, abs=1e-9)


def test_a_difference_is_paired(sample: tuple[np.ndarray, np.ndarray]):
    scores, labels = sample
    same = difference(scores, scores**2, labels, draws=50)
    assert same.loc[["macro", "weighted"]].eq(0).all(axis=None)
    worse = np.random.default_rng(2).random(scores.shape)
    lead = difference(scores, worse, labels, draws=200)
    both = [table(values, labels, NAMES, draws=2).ap for values in (scores, worse)]
    assert lead.ap.tolist() == pytest.approx((both[0] - both[1])[list(lead.index)].tolist())
    assert (lead.ap_low < lead.ap).all() and (lead.ap < lead.ap_high).all() and lead.ap_low["weighted"] > 0


def test_a_curve_runs_from_all_to_none():
    precision, recall = curve(np.array([0.1, 0.4, 0.35, 0.8]), np.array([0, 0, 1, 1]))
    assert precision == pytest.approx([0.5, 2 / 3, 0.5, 1, 1]) and recall == pytest.approx([1, 1, 0.5, 0.5, 0])


def test_calibration_of_a_known_case():
    probabilities = np.array([[0.1, 0.1], [0.1, 1.0], [0.9, 0.9]])
    bins, error = calibration(probabilities, np.array([[0, 1], [0, 1], [1, 0]]), bins=5)
    assert bins["count"].tolist() == [3, 3]
    assert bins.true.tolist() == pytest.approx([1 / 3, 2 / 3])
    assert error == pytest.approx((1 / 3 - 0.1) / 2 + (2.8 / 3 - 2 / 3) / 2)


@pytest.mark.parametrize(("by", "strategy"), [("width", "uniform"), ("count", "quantile")])
def test_calibration_bins_are_those_of_sklearn(by: Literal["width", "count"], strategy: str):
    random = np.random.default_rng(8)
    chance = random.random(200)
    labels = random.random(200) < chance**2
    true, probability = calibration_curve(labels, chance, n_bins=10, strategy=strategy)
    binned, error = calibration(chance[:, None], labels[:, None], 10, by)
    np.testing.assert_allclose(binned[["probability", "true"]], np.column_stack([probability, true]))
    assert error == pytest.approx(np.average(abs(probability - true), weights=binned["count"]))
    assert binned["count"].sum() == 200 and (by == "width" or set(binned["count"]) == {20})


def test_what_has_no_rank_is_refused():
    with pytest.raises(ValueError, match="not numbers"):
        average_precision(np.array([[np.nan]]), np.array([[1]]))
    with pytest.raises(ValueError, match="films, classes"):
        average_precision(np.zeros((3, 2)), np.zeros((2, 2)))
    with pytest.raises(ValueError, match="outside"):
        calibration(np.array([[2.0]]), np.array([[1]]))
    with pytest.raises(ValueError, match="names for"):
        table(np.zeros((2, 2)), np.eye(2), ["a"])


@pytest.mark.parametrize(("hits", "count"), [(0, 3), (3, 3), (8, 10), (45, 80), (500, 1000)])
def test_the_interval_of_a_share_is_scipys_and_never_empty(hits: int, count: int) -> None:
    expected = binomtest(hits, count).proportion_ci(method="wilson")
    low, high = wilson(hits / count, count)
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-6)
    assert low < high


def test_no_case_says_nothing() -> None:
    assert wilson(0.0, 0) == (0.0, 1.0)


def test_a_mean_over_classes_is_as_sure_as_so_many_images() -> None:
    assert effective([20, 20, 20]) == pytest.approx(60)
    # The variance of the mean of shares: p (1 - p) (1/1 + 1/99) / 4.
    assert effective([1, 99]) == pytest.approx(4 / (1 + 1 / 99))


def test_cases_in_groups_are_as_sure_as_their_groups_differ() -> None:
    ten = np.full(40, 10.0)
    # All or nothing: each group is one case. Groups that do not differ by more than chance count as their cases.
    of_few = float((stats.t.ppf(0.975, 39) / stats.norm.ppf(0.975)) ** 2)
    assert clustered(np.array([0.0, 10.0] * 20), ten) == pytest.approx(wilson(0.5, 39 / of_few), abs=1e-5)
    hits = np.random.default_rng(0).binomial(10, 0.5, 40).astype(float)
    low, high = clustered(hits, ten)
    of_400 = wilson(hits.mean() / 10, 400)
    assert high - low == pytest.approx(of_400[1] - of_400[0], rel=0.2)
    # Three films that are all right are three cases, however many pictures they have.
    assert clustered(ten[:3], ten[:3]) == wilson(1.0, 3)
    # Two groups that happen to be alike say little of others.
    low, high = clustered(np.array([79.0, 81.0]), np.array([100.0, 100.0]))
    assert high - low > 0.1


def test_intervals_of_few_cases_are_as_wide_as_those_of_shares() -> None:
    nan = float("nan")
    assert widened(1, 1, 1, 12) == wilson(1, 12) and widened(1, 1, 1, 500) == wilson(1, 500)
    assert widened(0.5, 0.4, 0.6, 30) == (0.4, 0.6)
    assert widened(0.5, 0.45, 0.95, 29) == (wilson(0.5, 29)[0], 0.95)
    assert widened(0.5, 0.45, 0.55, 29, (0.4, 0.5)) == (0.4, 0.55)
    assert widened(0.5, nan, nan, 3) == wilson(0.5, 3)
    assert np.isnan(widened(nan, nan, nan, 3)).all()


def test_a_perfect_table_of_few_films_has_intervals() -> None:
    labels = np.tile(np.eye(3), (4, 1))
    rows = table(labels.astype(float), labels, ["a", "b", "c"], draws=50)
    assert rows.ap.eq(1).all() and (rows.ap_low < 0.8).all()
    assert rows.ap_low["a"] == pytest.approx(wilson(1, 4)[0]) and rows.ap_low["macro"] == pytest.approx(
        wilson(1, 12)[0]
    )

"""Samples of films, and what they tell of all."""

import numpy as np
import pytest

from pipelines.curation.estimating.scaling import draw, total

RNG = np.random.default_rng(3)
SECONDS = np.exp(RNG.normal(3, 1, 300))
ABOUT = np.stack([np.ones(300), SECONDS, SECONDS * RNG.choice([25e3, 230e3, 920e3], 300)], axis=1)
SIZES = SECONDS + ABOUT[:, 2] / 50e6 * 25
COSTS = ABOUT @ [0.5, 0.2, 4e-7] * np.exp(RNG.normal(0, 0.3, 300))


def estimates(values: np.ndarray, count: int, seeds: int = 300) -> np.ndarray:
    """Value and margin of the estimate of each seed."""
    found = []
    for seed in range(seeds):
        sample = draw(SIZES, count, np.random.default_rng(seed))
        found.append(total(ABOUT, SIZES, sample, values[sample.chosen]))
    return np.array(found)


def test_all_films_are_exact() -> None:
    sample = draw(SIZES, 300, np.random.default_rng(0))
    assert sorted(sample.chosen) == list(range(300))
    assert total(ABOUT, SIZES, sample, COSTS[sample.chosen]) == pytest.approx((COSTS.sum(), 0))


def test_what_is_known_of_films_tells_all_where_nothing_else_matters() -> None:
    values = ABOUT @ [2.0, 0.5, 1e-6]
    found = estimates(values, 8, 20)
    assert found[:, 0] == pytest.approx(np.full(20, values.sum()))
    assert found[:, 1] == pytest.approx(np.zeros(20), abs=1e-6 * values.sum())


@pytest.mark.parametrize("values", [COSTS, np.sqrt(COSTS) * 9])
def test_estimates_are_right_on_average_whatever_values_grow_with(values: np.ndarray) -> None:
    found = estimates(values, 30)[:, 0]
    error = found.std() / np.sqrt(len(found))
    assert abs(found.mean() - values.sum()) < 3 * error + 0.03 * values.sum()


def test_intervals_hold_the_total_and_narrow_with_more_films() -> None:
    few, many = estimates(COSTS, 8), estimates(COSTS, 32)
    for found in (few, many):
        holds = abs(found[:, 0] - COSTS.sum()) <= found[:, 1]
        assert holds.mean() > 0.85
    assert np.median(many[:, 1]) < np.median(few[:, 1]) / 1.8
    assert (abs(few[:, 0] / COSTS.sum() - 1) < 0.3).mean() > 0.85


def test_one_film_has_no_interval() -> None:
    assert np.isinf(estimates(COSTS, 1, 1)[0, 1])


def test_large_films_are_drawn_more_often_and_the_largest_always() -> None:
    sizes = np.array([1000.0, *np.linspace(1, 20, 99)])
    times = np.zeros(100)
    for seed in range(400):
        sample = draw(sizes, 6, np.random.default_rng(seed))
        assert len(set(sample.chosen)) == 6
        times[sample.chosen] += 1
    assert times[0] == 400
    share = sizes[1:] * 5 / sizes[1:].sum()
    assert times[1:] / 400 == pytest.approx(share, abs=0.06)

"""Who leaves and who wins, against a t-test of scipy and questions whose answer is known."""

from typing import Any

import numpy as np
import pytest
from scipy import stats

from actors.movie_characters.diffusion import DiffusionConfig, OneByOne
from actors.movie_characters.diffusion_classifier import (
    Ask,
    StagesConfig,
    ask_all,
    decide,
    looks,
    paired,
    race,
    survivors,
)

STAGES = StagesConfig(samples=(4, 8, 32), keep=(6, 3, 1), p=0.01, look=2)


def drawn(means: np.ndarray, pairs: int, spread: float, seed: int = 0) -> np.ndarray:
    """Losses (K, P): what all share varies much, what is each one's own little."""
    random = np.random.default_rng(seed)
    shared = random.normal(1, 0.5, pairs)
    return means[:, None] + shared + random.normal(0, spread, (len(means), pairs))


def asking(losses: np.ndarray, calls: list[np.ndarray]) -> Ask:
    def ask(rows: np.ndarray) -> np.ndarray:
        calls.append(rows)
        return losses[tuple(rows.T)]

    return ask


def test_the_paired_test_is_that_of_scipy() -> None:
    random = np.random.default_rng(0)
    one, other = random.normal(size=(2, 9))
    p, margin = paired(one - other)
    truth = stats.ttest_rel(one, other, alternative="greater")
    assert (p, margin) == pytest.approx((truth.pvalue, truth.statistic))
    assert np.isnan(paired(np.ones(1))).all()
    assert paired(np.zeros(4)) == (0.5, 0.0) and paired(np.ones(4)) == (0.0, np.inf)


def test_looks_come_after_every_stage_and_between() -> None:
    assert looks(StagesConfig(samples=(3, 6, 9), keep=(4, 2, 1), look=2)) == [3, 5, 6, 7, 9]


def test_stages_keep_the_best_and_the_test_drops_who_is_certain_to_lose() -> None:
    losses = drawn(np.array([0.3, 0, 0.2, 0.1, 0.25]), 8, 0)
    no_test = StagesConfig(samples=(2, 8), keep=(3, 1), p=0)
    assert survivors(losses[:, :2], np.arange(5), no_test).tolist() == [1, 2, 3]
    assert survivors(losses, np.array([0, 2, 3]), no_test).tolist() == [3]
    # Differences that never vary are certain after two pairs.
    assert survivors(losses[:, :2], np.arange(5), StagesConfig(samples=(2, 8), keep=(5, 1))).tolist() == [1]


def test_a_race_finds_the_answer_of_all_losses_for_a_fraction_of_them() -> None:
    random = np.random.default_rng(1)
    pictures, identities = 40, 20
    winners = random.integers(0, identities, pictures)
    means = random.uniform(0.1, 0.3, (pictures, identities))
    means[np.arange(pictures), winners] = 0
    full = np.stack([drawn(row, 32, 0.03, seed) for seed, row in enumerate(means)])
    raced = race([range(identities)] * pictures, identities, STAGES, asking(full, calls := []))
    answers = [decide(losses) for losses in raced]
    assert [answer.best for answer in answers] == full.mean(2).argmin(1).tolist() == winners.tolist()
    asked = np.concatenate(calls)
    assert len(np.unique(asked, axis=0)) == len(asked) == sum(answer.evaluations for answer in answers)
    assert len(asked) < 0.25 * full.size
    assert all(answer.margin > 2 for answer in answers)
    assert np.isfinite(raced).sum() == len(asked)


def late_and_full(pictures: int, in_a_call: int) -> float:
    """Share of full calls of the UNet after the first look."""
    random = np.random.default_rng(2)
    means = random.uniform(0, 0.3, (pictures, 20))
    full = np.stack([drawn(row, 50, 0.03, seed) for seed, row in enumerate(means)])
    sizes: list[int] = []
    for first in range(0, pictures, in_a_call):
        some = full[first : first + in_a_call]
        race([range(20)] * len(some), 20, StagesConfig(), asking(some, calls := []))
        for rows in calls[1:]:
            sizes += [len(rows[start : start + 32]) for start in range(0, len(rows), 32)]
    return float(np.mean(np.array(sizes) == 32))


def test_calls_are_full_to_the_end_with_as_many_pictures_as_a_gpu_has_by_default() -> None:
    on_cpu, on_gpu = DiffusionConfig().rows_per_call, DiffusionConfig(num_gpus=1).rows_per_call
    assert late_and_full(256, on_cpu) < 0.3 and late_and_full(256, on_gpu) > 0.85
    assert DiffusionConfig(num_gpus=1, batch_size=8).rows_per_call == 8
    with pytest.raises(ValueError, match="batch_size is 1 or more"):
        OneByOne(batch_size=0)


def test_what_cannot_be_told_apart_is_asked_to_the_end_and_is_not_certain() -> None:
    losses = drawn(np.zeros(2), 32, 0.05, seed=3)[None]
    answer = decide(race([[0, 1]], 2, StagesConfig(samples=(4, 8, 32), keep=(2, 2, 1)), asking(losses, []))[0])
    assert answer.evaluations == 64 and answer.p_noise > 0.05 and abs(answer.margin) < 2
    assert answer.losses == pytest.approx(losses[0].mean(1))


def test_the_order_of_identities_does_not_matter() -> None:
    losses = drawn(np.random.default_rng(2).uniform(0, 0.1, 12), 32, 0.05)[None]
    order = np.random.default_rng(4).permutation(12)
    one = decide(race([range(12)], 12, STAGES, asking(losses, []))[0])
    other = decide(race([range(12)], 12, STAGES, asking(losses[:, order], []))[0])
    assert other.losses == pytest.approx(one.losses[order]) and order[other.best] == one.best
    assert (other.p_noise, other.evaluations) == (pytest.approx(one.p_noise), one.evaluations)


def test_who_left_early_ranks_below_who_stayed_however_well_it_began() -> None:
    nan = np.nan
    losses = np.array(
        [
            [1.0, 1.0, 3.0, 3.0],
            [1.5, 1.5, 1.0, 1.0],
            [1.2, 1.3, nan, nan],
        ]
    )
    answer = decide(losses)
    assert answer.best == 1 and answer.evaluations == 10
    # Identity 2 was better than the winner on the two pairs that it had, and yet it left.
    assert answer.losses[:2] == pytest.approx([2, 1.25])
    assert answer.losses.argsort().tolist() == [1, 0, 2]


def test_who_left_early_is_as_far_behind_as_on_the_pairs_that_both_had() -> None:
    losses = np.array([[1.0, 3.0, 5.0], [1.25, 3.75, np.nan]])
    assert decide(losses).losses.tolist() == [3.0, 3.5]


def test_the_p_of_noise_is_corrected_for_identities_and_looks() -> None:
    losses = drawn(np.array([0, 0.03, 0.5]), 20, 0.05, seed=5)
    single = paired(losses[1] - losses[0])[0]
    assert decide(losses).p_noise == pytest.approx(3 * single)
    assert decide(losses, looked=4).p_noise == pytest.approx(12 * single)
    assert decide(losses, looked=10**9).p_noise == 1


def test_a_single_identity_has_nobody_to_be_compared_with() -> None:
    raced = race([[0]], 1, STAGES, asking(np.ones((1, 1, 32)), []))
    answer = decide(raced[0])
    assert answer.evaluations == 4 and np.isnan(answer.p_noise) and answer.losses.tolist() == [1]


def test_asking_all_asks_only_for_what_is_wanted() -> None:
    losses = np.random.default_rng(0).random((2, 3, 5)).astype(np.float32)
    found = ask_all([[0, 2], []], 3, 5, asking(losses, []))
    assert np.array_equal(found[0, [0, 2]], losses[0, [0, 2]])
    assert np.isnan(found[0, 1]).all() and np.isnan(found[1]).all()


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"samples": (4, 8), "keep": (1,)}, "belong together"),
        ({"samples": (8, 4), "keep": (2, 1)}, "samples grow"),
        ({"samples": (4, 8), "keep": (3, 2)}, "keep shrinks to 1"),
        ({"p": 0.7}, "p lies in"),
    ],
)
def test_wrong_stages_are_told(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        StagesConfig(**wrong)

"""Differences between groups of scenes: what is known of them in closed form, to scipy, and of data made by chance."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from pipelines.curation.evaluating.significance import Comparison, compare


def scores(values: object, videos: object = None) -> pd.Series:
    """Scores of scenes; each of a video of its own where none are named."""
    values = np.asarray(values, float)
    names = np.arange(len(values)) if videos is None else np.asarray(videos)
    keys = pd.MultiIndex.from_arrays([[f"v{name}" for name in names], [f"s{i}" for i in range(len(values))]])
    return pd.Series(values, keys)


def t_test(first: Any, second: Any) -> Any:
    """Student's, which takes every scene for independent."""
    return stats.ttest_ind(first, second)


def run(first: pd.Series, second: pd.Series, paired: bool = False, resamples: int = 9999) -> Comparison:
    return compare(first, second, paired, resamples, seed=0)


def test_of_eight_pairs_that_all_rise_the_two_extremes_of_256_are_as_large():
    before = scores([1, 2, 3, 4, 5, 6, 7, 8])
    found = run(before.add([1, 2, 1, 2, 1, 2, 1, 2]), before, paired=True)
    assert found.p == pytest.approx(2 / 256, abs=0.003)
    assert found.difference == pytest.approx(1.5)
    assert found.means == pytest.approx((6, 4.5))
    # Half of the differences lie .5 above, half .5 below their mean.
    assert found.effect == pytest.approx(1.5 / math.sqrt(8 * 0.25 / 7))
    assert (found.scenes, found.videos) == ((8, 8), 8)


def test_pairs_agree_with_scipy():
    random = np.random.default_rng(1)
    before, rise = random.normal(27, 3, 40), random.normal(0.8, 2, 40)
    found = run(scores(before + rise), scores(before), paired=True)
    exact = stats.permutation_test(
        (rise,), np.mean, permutation_type="samples", n_resamples=20_000, rng=np.random.default_rng(2)
    )
    assert found.p == pytest.approx(exact.pvalue, abs=0.006)
    low, high = stats.bootstrap((rise,), np.mean, method="percentile", rng=np.random.default_rng(3)).confidence_interval
    assert found.interval == pytest.approx((low, high), abs=0.03)
    assert found.effect == pytest.approx(rise.mean() / rise.std(ddof=1))


def test_two_groups_agree_with_scipy():
    random = np.random.default_rng(4)
    kept, others = random.normal(30.2, 2, 150), random.normal(29.7, 2, 150)
    both = scores(np.concatenate([kept, others]))
    found = run(both[:150], both[150:])
    assert found.p == pytest.approx(t_test(kept, others).pvalue, abs=0.01)
    ends = t_test(kept, others).confidence_interval()
    assert found.interval == pytest.approx((ends.low, ends.high), abs=0.06)
    assert found.effect == pytest.approx(t_test(kept, others).statistic * math.sqrt(2 / 150))
    assert found.videos == 300


def test_the_order_of_groups_and_scenes_changes_the_sign_only():
    random = np.random.default_rng(5)
    a, b = scores(random.normal(1, 1, 12)), scores(random.normal(0, 1, 15))
    there, back = run(a, b), run(b, a)
    assert back.difference == -there.difference
    assert back.effect == -there.effect
    assert back.p == pytest.approx(there.p, abs=0.02)
    assert run(a[::-1], b[::-1]).p == there.p


def test_a_scene_in_both_groups_adds_nothing_to_the_difference():
    random = np.random.default_rng(6)
    both = scores(random.normal(30, 3, 60))
    apart = run(both[:20], both[20:40])
    overlapping = run(both[:40], both[20:])
    assert run(both, both).p == 1
    assert run(both, both).interval == (0, 0)
    assert apart.scenes == (20, 20) and overlapping.scenes == (40, 40)
    # Scenes 20 to 39 are in both: what is left is that of 0 to 19 against 40 to 59, over 40 instead of 20.
    assert overlapping.difference == pytest.approx(run(both[:20], both[40:]).difference / 2)


@pytest.mark.slow
@pytest.mark.parametrize("paired", [True, False])
def test_scenes_of_one_video_do_not_count_as_many(paired: bool):
    """Where groups differ by chance alone, and whole videos are alike, one p in twenty is below .05."""
    random = np.random.default_rng(7)
    small, inside, alone = 0, 0, 0
    for _ in range(200):
        videos = np.repeat(np.arange(30), 8)
        mood = random.normal(0, 1, 30)[videos]
        if paired:
            first, second = scores(mood + random.normal(0, 0.3, 240), videos), scores(np.zeros(240), videos)
        else:
            both = scores(mood + random.normal(0, 0.3, 240), videos)
            first, second = both[:120], both[120:]
        found = run(first, second, paired, resamples=199)
        small += found.p <= 0.05
        inside += found.interval[0] <= 0 <= found.interval[1]
        alone += t_test(first, second).pvalue <= 0.05
    assert 2 <= small <= 20
    assert inside >= 176
    # What takes each scene for independent sees a difference in half of them.
    assert alone > 60


def test_a_single_video_proves_nothing():
    found = run(scores([5, 6, 7], [0, 0, 0]), scores([1, 2, 3], [0, 0, 0]))
    assert found.p == 1
    assert all(map(math.isnan, found.interval))
    assert found.difference == 4


def test_scores_that_do_not_vary_have_no_effect_size():
    assert math.isnan(run(scores([2, 2, 2]), scores([1, 1, 1])).effect)
    assert math.isnan(run(scores([2.0]), scores([1.0]), paired=True).effect)


def test_the_same_seed_gives_the_same_result():
    random = np.random.default_rng(8)
    groups = scores(random.normal(1, 1, 30)), scores(random.normal(0, 1, 30))
    assert compare(*groups, False, 999, seed=3) == compare(*groups, False, 999, seed=3)
    assert compare(*groups, False, 999, seed=3).interval != compare(*groups, False, 999, seed=4).interval


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="without scenes"):
        run(scores([]), scores([1]))
    with pytest.raises(ValueError, match="same scenes"):
        run(scores([1, 2]), scores([1]), paired=True)

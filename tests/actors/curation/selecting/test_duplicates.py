"""Groups of near-duplicates are those that comparing every pair would find, also where many hashes share a part."""

import logging
import tracemalloc

import numpy as np
import pytest

from actors.curation.selecting import duplicates
from actors.curation.selecting.duplicates import BANDS, FARTHEST, near_duplicates


def noise(n: int, seed: int = 0) -> np.ndarray:
    """Random hashes."""
    return np.random.default_rng(seed).integers(0, 2**64, (n, 3), dtype=np.uint64)


def flipped(hashes: np.ndarray, bits: int, seed: int = 0) -> np.ndarray:
    """Each hash with so many of its bits, at other places in each, turned over."""
    random = np.random.default_rng(seed)
    copies = hashes.copy()
    for row in copies:
        for place in random.choice(192, bits, replace=False):
            row[place // 64] ^= np.uint64(1 << (int(place) % 64))
    return copies


def by_every_pair(hashes: np.ndarray, distance: int) -> list[int]:
    """The oracle: compares all, and walks from each to what is near it."""
    numbers = [int(a) << 128 | int(b) << 64 | int(c) for a, b, c in hashes]
    near = [[j for j, b in enumerate(numbers) if (a ^ b).bit_count() <= distance] for a in numbers]
    group = [-1] * len(numbers)
    count = 0
    for i in range(len(numbers)):
        if group[i] >= 0 or near[i] == [i]:
            continue
        reached = [i]
        for j in reached:
            group[j] = count
            reached += [k for k in near[j] if group[k] < 0 and k not in reached]
        count += 1
    return group


def shuffled(hashes: np.ndarray) -> np.ndarray:
    return hashes[np.random.default_rng(1).permutation(len(hashes))]


@pytest.mark.parametrize("distance", [0, 1, 5, 8, 9, 12, 16, FARTHEST])
def test_groups_are_those_of_comparing_every_pair(distance: int) -> None:
    base = noise(120)
    copies = [flipped(base[: 100 - 4 * bits], bits, bits) for bits in range(20)]
    hashes = shuffled(np.concatenate([base, base[:5], *copies]))[:500]
    groups = near_duplicates(hashes, distance)
    assert groups.tolist() == by_every_pair(hashes, distance)
    assert (groups >= 0).any() and (groups < 0).any()


@pytest.mark.parametrize("distance", [4, 9, FARTHEST])
@pytest.mark.parametrize("window", [7, 1 << 20])
def test_hashes_that_share_a_part_are_all_compared(monkeypatch: pytest.MonkeyPatch, distance: int, window: int) -> None:
    monkeypatch.setattr(duplicates, "WINDOW", window)
    one = noise(1)
    unlike = noise(80, 1)
    unlike[:, 0] = one[0, 0]
    cloud = [flipped(np.repeat(one, 12, axis=0), bits, bits) for bits in range(1, 12, 2)]
    hashes = shuffled(np.concatenate([unlike, flipped(unlike[:30], 6), *cloud, noise(20, 2)]))
    assert near_duplicates(hashes, distance).tolist() == by_every_pair(hashes, distance)


def test_bits_spread_as_badly_as_can_be_are_found() -> None:
    """One bit in one band and two in all others."""
    base = noise(len(BANDS))
    others = base.copy()
    for row, alone in enumerate(range(len(BANDS))):
        for band, (word, shift, bits) in enumerate(BANDS):
            others[row, word] ^= np.uint64((1 if band == alone else 3) << (shift + bits - 2))
    pairs = np.concatenate([base, others])
    assert near_duplicates(pairs, FARTHEST).tolist() == [*range(len(BANDS))] * 2
    assert near_duplicates(pairs, FARTHEST - 1).tolist() == [-1] * 2 * len(BANDS)


def test_bands_cover_every_bit_once() -> None:
    covered = sorted(64 * word + shift + bit for word, shift, bits in BANDS for bit in range(bits))
    assert covered == list(range(192))


def test_a_chain_of_small_steps_is_one_group() -> None:
    chain = [noise(1)]
    for step in range(20):
        chain.append(flipped(chain[-1], 4, step))
    hashes = np.concatenate(chain)
    assert near_duplicates(hashes, 4).tolist() == [0] * 21
    assert near_duplicates(hashes[[0, 20]], FARTHEST).tolist() == [-1, -1]


def test_groups_are_numbered_by_their_first_rows() -> None:
    a, b, c = noise(3)
    assert near_duplicates(np.stack([c, b, a, b, c, c]), 0).tolist() == [0, 1, -1, 1, 0, 0]


@pytest.mark.parametrize("count", [0, 1])
def test_few_hashes_have_no_group(count: int) -> None:
    assert near_duplicates(noise(count), FARTHEST).tolist() == [-1] * count


@pytest.mark.parametrize("distance", [-1, FARTHEST + 1])
def test_a_distance_for_which_pairs_would_be_missed_is_refused(distance: int) -> None:
    with pytest.raises(ValueError, match=f"0 to {FARTHEST} of 192 bits"):
        near_duplicates(noise(2), distance)


def test_so_many_comparisons_that_it_takes_long_are_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(duplicates, "MANY_PAIRS", 1000)
    unlike = noise(60)
    unlike[:, 1] = 7
    with caplog.at_level(logging.WARNING):
        assert (near_duplicates(unlike, 3) == -1).all()
    assert "pairs of hashes are compared" in caplog.text


def test_a_hundred_thousand_copies_of_one_scene_are_quick() -> None:
    """Comparing their pairs would take a minute."""
    copies = np.repeat(noise(1), 100_000, axis=0)
    random = np.random.default_rng(0)
    for _ in range(6):
        word, bit = random.integers(0, 3, len(copies)), random.integers(0, 64, len(copies), dtype=np.uint64)
        copies[np.arange(len(copies)), word] ^= np.uint64(1) << bit
    hashes = np.concatenate([copies, noise(1000, 1)])
    assert near_duplicates(hashes, 12).tolist() == [0] * 100_000 + [-1] * 1000


@pytest.mark.slow
def test_memory_of_a_million_scenes() -> None:
    base = noise(900_000)
    hashes = np.concatenate([base, base[:100_000] ^ np.array([1, 1 << 30, 1 << 60], np.uint64)])
    tracemalloc.start()
    try:
        groups = near_duplicates(hashes, 16)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 400e6
    assert (groups[:100_000] == groups[900_000:]).all() and (groups[100_000:900_000] == -1).all()

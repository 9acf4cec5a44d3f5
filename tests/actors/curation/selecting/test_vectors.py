"""Groups of vectors are those that comparing every pair would find, and concepts those that were put in."""

import numpy as np
import pytest

from actors.curation.selecting import vectors as module
from actors.curation.selecting.vectors import Vectors, concepts, similar


def drawn(count: int, width: int = 32, centres: int = 12, seed: int = 0) -> np.ndarray:
    """Vectors around some centres, a part of which are close to another one."""
    random = np.random.default_rng(seed)
    found = random.normal(size=(centres, width))[random.integers(0, centres, count)] + random.normal(
        scale=0.5, size=(count, width)
    )
    copies = random.random(count) < 0.4
    change = random.uniform(0, 0.3, (copies.sum(), 1)) * random.normal(size=(copies.sum(), width))
    found[copies] = found[random.integers(0, count, copies.sum())] + change
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float16)


def stored(values: np.ndarray, missing: np.ndarray | None = None) -> Vectors:
    made = Vectors(len(values), values.shape[1])
    places = np.flatnonzero(~missing) if missing is not None else np.arange(len(values))
    # In any order, in several parts.
    for part in np.array_split(np.random.default_rng(1).permutation(places), 3):
        made.put(part, values[part])
    return made


def by_every_pair(values: np.ndarray, cosine: float, missing: np.ndarray) -> list[int]:
    """The oracle: compares all, and walks from each to what is near it."""
    unit = values.astype(np.float64) / np.linalg.norm(values.astype(np.float64), axis=1, keepdims=True)
    near = (unit @ unit.T >= cosine) & ~missing & ~missing[:, None]
    group, count = [-1] * len(values), 0
    for i in range(len(values)):
        if group[i] >= 0 or near[i].sum() < 2:
            continue
        reached = [i]
        for j in reached:
            group[j] = count
            reached += [int(k) for k in np.flatnonzero(near[j]) if group[k] < 0 and k not in reached]
        count += 1
    return group


@pytest.mark.parametrize("cosine", [0.7, 0.9, 0.95, 0.999])
@pytest.mark.parametrize("cell", [16, 100, 4096])
def test_groups_are_those_of_comparing_every_pair(cosine: float, cell: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CELL", cell)
    monkeypatch.setattr(module, "BLOCK", 130)
    monkeypatch.setattr(module, "EDGES", 50)
    values, missing = drawn(600), np.random.default_rng(2).random(600) < 0.1
    with stored(values, missing) as vectors:
        groups = similar(vectors, cosine)
    assert groups.tolist() == by_every_pair(values, cosine, missing)
    assert (groups[~missing] >= 0).any() and (groups[missing] == -1).all()


def test_cells_leave_out_what_cannot_be_close(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    monkeypatch.setattr(module, "CELL", 40)
    values = drawn(2000)
    with caplog.at_level("INFO"), stored(values) as vectors:
        similar(vectors, 0.95)
    assert float(caplog.messages[-1].split()[0]) < 0.3 * len(values) ** 2 * values.shape[1] / 2


def test_of_many_vectors_few_cells_are_looked_at_and_almost_all_pairs_found(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(module, "CELL", 40)
    # Without clusters, and with pairs: what planes do not tell apart.
    random = np.random.default_rng(0)
    values = random.normal(size=(1500, 48))
    values = np.concatenate([values, values + random.normal(scale=0.3, size=values.shape)])
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    spent, groups = [], []
    for exact in (len(values), 0):
        monkeypatch.setattr(module, "EXACT", exact)
        with caplog.at_level("INFO"), stored(values.astype(np.float16)) as vectors:
            groups.append(similar(vectors, 0.9))
        spent.append(float(caplog.messages[-1].split()[0]))
    whole, few = groups
    assert spent[1] < 0.6 * spent[0]
    assert (few[whole >= 0] >= 0).mean() > 0.99 and (few[whole < 0] < 0).all()


@pytest.mark.parametrize("count", [0, 1])
def test_few_vectors_have_no_group(count: int):
    values = drawn(3)
    with stored(values, np.arange(3) >= count) as vectors:
        assert similar(vectors, 0.9).tolist() == [-1, -1, -1]
        assert concepts(vectors, 5).tolist() == [*[0] * count, *[-1] * (3 - count)]


def test_concepts_are_the_clusters_the_largest_first_whatever_order_they_came_in():
    random = np.random.default_rng(0)
    truth = random.permutation(np.repeat([0, 1, 2, 3], [400, 300, 200, 100]))
    values = np.eye(16)[truth] + random.normal(scale=0.05, size=(1000, 16))
    with stored(values.astype(np.float16)) as vectors:
        assert concepts(vectors, 4).tolist() == truth.tolist()

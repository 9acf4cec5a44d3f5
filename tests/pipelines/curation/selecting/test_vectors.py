"""Embeddings in a selection: copies that no hash finds, concepts with a cap, and scenes without an embedding."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from actors.core.errors import UserError
from actors.core.store import Store
from actors.curation.selecting.select_settings import BalanceConfig, SelectConfig
from pipelines.curation.selecting.search import nearest
from pipelines.curation.selecting.select import select
from tests.pipelines.curation.outputs import Row, config, scene, write_embeddings, write_plan, write_scores

Vector = tuple[float, ...] | None


def output(
    folder: Path, *parts: dict[str, Vector], rank: dict[str, float] | None = None, about: dict[str, Any] | None = None
) -> Store:
    """An output whose parts of scores/ have scenes with these vectors; rank: their steadiness, else that of the id."""
    store = Store(str(folder))
    names = [name for part in parts for name in part]
    videos: dict[str, int] = {}
    for name in names:
        videos[name.partition(".")[0]] = videos.get(name.partition(".")[0], 0) + 1
    write_plan(store, videos)
    for part in parts:
        rows: list[Row] = []
        for name in part:
            steady = (rank or {}).get(name, 1 - names.index(name) / 100)
            rows.append(scene(name, mean_velocity=steady, max_velocity=1.0, **(about or {}).get(name, {})))
        write_embeddings(store, write_scores(store, *rows), rows, list(part.values()))
    return store


def chosen(store: Store, **rules: Any) -> pd.DataFrame:
    """What became of each scene, by its id."""
    select(config(store.root, select=SelectConfig(**rules)))
    return pd.concat([part.to_pandas() for part in store.read_parts("scenes")]).set_index("scene_id")


def at(degrees: float) -> Vector:
    angle = np.radians(degrees)
    return float(np.cos(angle)), float(np.sin(angle))


def test_the_best_of_what_is_alike_stays_over_parts_and_videos(tmp_path: Path):
    # Cosines: 5 degrees .996, 20 degrees .94.
    store = output(
        tmp_path,
        {"a.0_0": at(0), "a.1_0": at(60)},
        {"b.0_0": at(5), "b.1_0": at(80), "b.2_0": at(10)},
        rank={"b.0_0": 1.0, "a.0_0": 0.5},
    )
    found = chosen(store, semantic_dedupe=0.95)
    assert found.reason.to_dict() == {
        "a.0_0": "near_duplicate",
        "a.1_0": "",
        "b.0_0": "",
        "b.1_0": "",
        "b.2_0": "near_duplicate",
    }
    assert found.duplicate_group.dropna().to_dict() == {"a.0_0": 0, "b.0_0": 0, "b.2_0": 0}
    assert (chosen(store).reason == "").all() and (chosen(store, semantic_dedupe=0.5).reason == "").sum() == 1


def test_groups_by_hash_and_by_embedding_are_joined(tmp_path: Path):
    same, other = {"phash": b"\1" * 24}, {"phash": b"\xee" * 24}
    about = {"a.0_0": same, "a.1_0": same, "a.2_0": other, "a.3_0": {"phash": b"\x55\x33" * 12}}
    store = output(tmp_path, {"a.0_0": at(0), "a.1_0": at(60), "a.2_0": at(62), "a.3_0": at(120)}, about=about)
    found = chosen(store, semantic_dedupe=0.99, dedupe=8)
    assert found.reason.tolist() == ["", "near_duplicate", "near_duplicate", ""]
    assert found.duplicate_group.dropna().tolist() == [0, 0, 0]


def test_scenes_without_an_embedding_are_like_no_other_and_counted(tmp_path: Path):
    store = output(tmp_path, {"a.0_0": at(0), "a.1_0": None, "a.2_0": None, "a.3_0": at(1)})
    settings = config(store.root, select=SelectConfig(semantic_dedupe=0.95, balance=BalanceConfig(2, 1)))
    [note] = [note for note in select(settings).costs["notes"] if "be embedded" in note]
    assert note.startswith("2 scenes could not be embedded")
    found = pd.concat([part.to_pandas() for part in store.read_parts("scenes")]).set_index("scene_id")
    assert found.reason.to_dict() == {"a.0_0": "", "a.1_0": "", "a.2_0": "", "a.3_0": "near_duplicate"}
    assert found.concept.isna().tolist() == [False, True, True, False]


def test_without_embeddings_the_command_says_which_to_run(tmp_path: Path):
    store = Store(str(tmp_path))
    write_plan(store, {"a": 1})
    write_scores(store, scene("a.0_0"))
    with pytest.raises(UserError, match="curation embed"):
        chosen(store, semantic_dedupe=0.95)


def test_scenes_that_have_yet_to_be_measured_are_refused(tmp_path: Path):
    store = output(tmp_path, {"a.0_0": at(0), "a.1_0": at(50)})
    write_plan(store, {"a": 4})
    write_scores(store, scene("a.2_0"), scene("a.3_0", no_frames=2))
    with pytest.raises(UserError, match=r"1 scenes have no embedding.*curation embed"):
        chosen(store, semantic_dedupe=0.95)


def spread() -> dict[str, Vector]:
    """Ten scenes of one kind, four of another, two of a third; the best first in each."""
    angles = [*np.linspace(0, 9, 10), *np.linspace(60, 63, 4), 120, 121]
    return {f"v{i}.0_0": at(angle) for i, angle in enumerate(angles)}


@pytest.mark.parametrize(("cap", "left"), [(3, (3, 3, 2)), (0.25, (4, 4, 2)), (0.01, (1, 1, 1)), (20, (10, 4, 2))])
def test_no_concept_keeps_more_than_its_cap_and_the_best_stay(tmp_path: Path, cap: float, left: tuple[int, ...]):
    found = chosen(output(tmp_path, spread()), balance=BalanceConfig(3, cap))
    assert found.concept.tolist() == [0] * 10 + [1] * 4 + [2] * 2
    for concept, count in enumerate(left):
        reasons = found.reason[found.concept == concept].tolist()
        assert reasons == [""] * count + ["concept_full"] * (len(reasons) - count)


def test_a_count_takes_the_best_of_those_that_fit(tmp_path: Path):
    found = chosen(output(tmp_path, spread()), balance=BalanceConfig(3, 2), count=4)
    assert found.index[found.reason == ""].tolist() == ["v0.0_0", "v1.0_0", "v10.0_0", "v11.0_0"]
    assert (found.reason == "not_selected").sum() == 2


@pytest.mark.parametrize("wrong", [{"concepts": 1}, {"concepts": 3, "cap": 0}, {"concepts": 3, "cap": 2.5}])
def test_a_balance_that_means_nothing_is_refused(wrong: dict[str, Any]):
    with pytest.raises(UserError, match=r"select\.balance"):
        BalanceConfig(**wrong)


def test_the_nearest_come_first_and_only_scenes_that_count(tmp_path: Path):
    parts: list[dict[str, Vector]] = [{f"v{i}.{j}_0": at(7 * i + 40 * j) for i in range(9)} for j in range(3)]
    store = output(tmp_path, *parts)
    # Of another time of the input: measured, and no scene any more.
    folder = "measured/embedding/0123456789ab"
    old = store.read_part(folder, store.parts(folder)[0])
    assert old is not None
    chosen(store)
    store.write_table(old, folder, "part-old.parquet")
    expected = sorted((-np.cos(np.radians(7 * i + 40 * j)), f"v{i}.{j}_0") for i in range(9) for j in range(3))
    for count in (1, 5, 27):
        found = nearest(store, np.array([3.0, 0.0]), count)
        cosines = [-value for value, _ in expected[:count]]
        assert [row["scene_id"] for row in found] == [name for _, name in expected[:count]]
        np.testing.assert_allclose([row["cosine"] for row in found], cosines, atol=2e-3)

"""Fusion, reckoned by hand and by what it must not depend on."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipelines.movie_characters import fuse as fusion
from pipelines.movie_characters.results import read_results, write_about
from tests.support import results

CLASSES = ["a", "b", "c"]


def table(*rows: list[float], classes: list[str] = CLASSES) -> pd.DataFrame:
    return pd.DataFrame(rows, [f"i{n}" for n in range(len(rows))], classes)


def test_standard_scores_do_not_depend_on_a_models_unit():
    one, other = table([1, 2, 4], [5, 1, 0]), table([9, 1, 1], [0, 0, 2])
    found = fusion.fused([one, other], [1, 1], "zsum")
    scaled = fusion.fused([one * 1000 - 7, other], [1, 1], "zsum")
    pd.testing.assert_frame_equal(found, scaled)
    assert found.to_numpy().sum() == pytest.approx(0)
    # (1, 2, 4) has the mean 7/3 and the deviation sqrt(14)/3; (9, 1, 1) is (2, -1, -1) / sqrt(2).
    expected = np.array([-4, -1, 5]) / 14**0.5 + np.array([2, -1, -1]) / 2**0.5
    assert found.to_numpy()[0] == pytest.approx(expected)


def test_reciprocal_ranks_count_only_the_order():
    found = fusion.fused([table([1, 2, 4]), table([0.3, 0.2, 0.1])], [1, 2], "rank")
    assert found.to_numpy()[0] == pytest.approx([1 / 63 + 2 / 61, 1 / 62 + 2 / 62, 1 / 61 + 2 / 63])


@pytest.mark.parametrize("by", ["zsum", "rank"])
def test_what_one_model_does_not_know_is_worst_with_it(by):
    found = fusion.fused([table([3, 2, 1]), table([2, 1], classes=["b", "a"])], [1, 1], by)
    assert list(found.columns) == CLASSES
    assert found.to_numpy().argmin() == 2
    assert not np.isnan(found.to_numpy()).any()


def test_a_model_for_which_all_are_alike_says_nothing():
    one = table([1, 2, 4])
    found = fusion.fused([one, table([5, 5, 5])], [1, 1], "zsum")
    pd.testing.assert_frame_equal(found, fusion.fused([one, one * 0], [1, 1], "zsum"))


def telling(truth: list[int], count: int, strength: float, seed: int) -> pd.DataFrame:
    """Scores of classes that are noise, with so much more for the true one."""
    scores = np.random.default_rng(seed).normal(size=(len(truth), count))
    scores[np.arange(len(truth)), truth] += strength
    return pd.DataFrame(scores, [f"i{n}" for n in range(len(truth))], [f"c{n}" for n in range(count)])


def test_who_knows_more_weighs_more_and_who_knows_nothing_nothing():
    truth = np.random.default_rng(9).integers(0, 6, 400).tolist()
    labels = pd.Series([f"c{cls}" for cls in truth], [f"i{n}" for n in range(400)])
    tables = [telling(truth, 6, strength, seed) for seed, strength in enumerate((2.0, 1.0, 0.0))]
    # In another unit and turned round, it is still noise.
    tables[2] *= -1000
    parts = fusion.comparable(tables, "zsum")
    strong, weak, noise = fusion.learnt_weights(parts, labels)
    assert strong > 1.3 * weak > 0 and noise < 0.1 * strong and strong + weak + noise == pytest.approx(3)

    def right(weights: list[float]) -> float:
        return float((fusion.fused(tables, weights, "zsum").idxmax(axis=1) == labels).mean())

    assert right([strong, weak, noise]) > max(right([1, 1, 1]), right([1, 0, 0])) + 0.01
    # As Gaussian noise of one deviation has it: the log-likelihood of a class grows by strength times its score.
    alike = fusion.learnt_weights([tables[0], tables[1]], labels)
    assert alike[0] / alike[1] == pytest.approx(2, rel=0.15)
    with pytest.raises(ValueError, match="no model is better than chance there"):
        fusion.learnt_weights([-table for table in parts[:2]], labels)


def test_several_folders_teach_one_set_of_weights(tmp_path: Path):
    random = np.random.default_rng(3)
    names = [f"{cls}_{n}" for cls in CLASSES for n in range(20)]

    def said(folder: str, strength: float) -> str:
        scores = {
            name: {f"{cls}_0": random.normal() + strength * (cls == name[0]) for cls in CLASSES} for name in names
        }
        return results.write(tmp_path / folder, scores)

    # By day both know the same, at night only the first knows anything; images have the same names.
    day, night = (said("day1", 4), said("day2", 4)), (said("night1", 4), said("night2", 0))

    def weights(*folders: tuple[str, str]) -> dict[str, float]:
        models = {
            name: fusion.Source(folders[0][number], True, validation=[turn[number] for turn in folders])
            for number, name in enumerate(("one", "other"))
        }
        return fusion.fuse(fusion.FuseConfig(models, str(tmp_path / "out"))).weights

    by_day, by_both, by_night = weights(day), weights(day, night), weights(night)
    assert by_day["other"] > 0.7 and by_night["other"] < 0.3
    assert by_night["other"] < by_both["other"] < by_day["other"]
    with pytest.raises(ValueError, match="as many folders, in the same order"):
        fusion.FuseConfig(
            {"a": fusion.Source("a", validation=["b", "c"]), "d": fusion.Source("d", validation="e")}, "o"
        )


def test_images_of_nobody_known_teach_no_weights():
    truth = np.random.default_rng(1).integers(0, 4, 60).tolist()
    labels = pd.Series([f"c{cls}" for cls in truth], [f"i{n}" for n in range(60)])
    parts = [telling(truth, 4, strength, seed) for seed, strength in enumerate((2.0, 1.0))]
    more = [pd.concat([part, part.set_axis([f"u{n}" for n in range(60)])]) for part in parts]
    strangers = pd.concat([labels, pd.Series("nobody", [f"u{n}" for n in range(60)])])
    assert fusion.learnt_weights(more, strangers) == pytest.approx(fusion.learnt_weights(parts, labels), rel=0.01)


def test_validation_is_of_all_models_and_in_place_of_weights():
    with pytest.raises(ValueError, match="and b has none"):
        fusion.FuseConfig({"a": fusion.Source("a", validation="v"), "b": fusion.Source("b")}, "out")
    with pytest.raises(ValueError, match="Remove validation or weight=2"):
        fusion.Source("a", weight=2, validation="v")


def test_fused_results_are_a_folder_of_results(tmp_path: Path):
    losses = {"Ann_1": {"Ann_1": 0.1, "Bob_1": 0.11}, "Bob_1": {"Ann_1": 0.1, "Bob_1": 0.2}, "Bob_2": {"Bob_1": 1.0}}
    cosines = {"Ann_1": {"Ann_1": 0.2, "Bob_1": 0.9, "Cid_1": 0.9}, "Bob_1": {"Ann_1": 0.1, "Bob_1": 0.9, "Cid_1": 0.1}}
    sources = {
        "sd": fusion.Source(results.write(tmp_path / "sd", losses)),
        "clip": fusion.Source(results.write(tmp_path / "clip", cosines), clip_csv=True, weight=2),
    }
    done = fusion.fuse(fusion.FuseConfig(sources, str(tmp_path / "out")))
    assert (done.images, done.answered, done.silent, done.classes) == (3, 3, {"clip": 1}, 3)
    found = read_results(str(tmp_path / "out"), clip_csv=True)
    assert found.images.to_dict() == {"Ann_1": "Ann", "Bob_1": "Bob", "Bob_2": "Bob"}
    best = found.rows[found.rows.image == "Bob_1"].sort_values("score").iloc[-1]
    assert best.cls == "Bob"


@pytest.mark.parametrize("by", ["zsum", "rank"])
def test_where_a_model_has_no_answer_the_others_decide(by: str):
    sure = table([3, 2, 1], [1, 2, 3], [np.nan, np.nan, np.nan])
    other = table([np.nan] * 3, [1, 3, 2], [1, 2, 3])
    found = fusion.fused([sure, other], [1, 1], by)  # pyright: ignore[reportArgumentType]
    assert sorted(found.index) == ["i0", "i1", "i2"]
    assert found.idxmax(axis=1)[["i0", "i2"]].to_dict() == {"i0": "a", "i2": "c"}


def test_a_fusion_counts_every_image(tmp_path: Path):
    """One model is silent for all but one image, and the fusion is as good as the other there."""
    names = [f"{cls}_{n}" for cls in CLASSES for n in range(4)]
    right = {name: {f"{cls}_0": float(cls == name[0]) for cls in CLASSES} for name in names}
    clip = results.write(tmp_path / "clip", {name: right[name] for name in names[:6]} | {"b_9": right["b_1"]})
    faces = results.write(tmp_path / "faces", {names[0]: right[names[0]]})
    results_about(clip, names[6:])
    results_about(faces, names[1:])
    models = {"clip": fusion.Source(clip), "faces": fusion.Source(faces)}
    done = fusion.fuse(fusion.FuseConfig(models, str(tmp_path / "out")))
    assert (done.images, done.answered, done.silent) == (13, 7, {"clip": 6, "faces": 12})
    found = read_results(str(tmp_path / "out"), None)
    assert found.higher and len(found.unanswered) == 6 and len(found.images) == 13


def results_about(folder: str, silent: list[str]) -> None:
    write_about(folder, "a model", True, (), silent)

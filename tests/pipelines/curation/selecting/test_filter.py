"""What a filter learns, how it is judged, and which files are refused."""

import json
import math
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from actors.core.store import Store
from actors.curation.cutting.scenes import FEATURES
from actors.curation.selecting.filter import Filter, feature_settings, load_filter, save_filter
from pipelines.curation.selecting.filter_metrics import calibration, judged
from pipelines.curation.selecting.fit_filter import Labelled, fit, read_labelled
from pipelines.curation.selecting.label_settings import FitConfig
from pipelines.curation.selecting.labels import write_labels
from tests.pipelines.curation.outputs import fast_is_good, film, scene, write_plan, write_scores

CONFIG = FitConfig("out")


@pytest.fixture(scope="module")
def learnt() -> Filter:
    return fit(fast_is_good(noise=0.1), CONFIG)


def report_of(labelled: Labelled, config: FitConfig = CONFIG) -> dict[str, Any]:
    return fit(labelled, config).about["report"]


# ------------------------------------------------------------------------------------------------------------- learning


def test_what_makes_a_scene_good_is_found_and_the_rest_is_not_believed(learnt: Filter):
    report = learnt.about["report"]
    accuracy = report["metrics"]["accuracy"]
    # One label in ten is wrong.
    assert 0.8 <= accuracy["value"] <= 0.95
    assert accuracy["low"] < accuracy["value"] < accuracy["high"]
    assert accuracy["low"] > accuracy["always"] + 0.15
    assert report["importance"]["mean_velocity"] > 0.5
    assert sum(report["importance"].values()) == pytest.approx(1, abs=0.001)
    assert (report["scenes"], report["videos"], report["folds"]) == (120, 12, 5)
    assert [part["videos"] for part in report["learning_curve"]] == [3, 6, 9, 12][-len(report["learning_curve"]) :]
    assert report["learning_curve"][-1]["metrics"] == report["metrics"]


def test_labels_that_depend_on_nothing_are_not_learnt():
    labelled = fast_is_good()
    random = np.random.default_rng(1).integers(0, 2, len(labelled.scenes))
    report = report_of(replace(labelled, scenes=labelled.scenes.assign(label=random)))
    assert report["metrics"]["roc_auc"]["low"] < 0.5 < report["metrics"]["roc_auc"]["high"]


def test_what_only_marks_a_video_does_not_count_as_known():
    # Scenes of a video are alike and share a label, which says nothing of other videos.
    labelled = fast_is_good(videos=30)
    random = np.random.default_rng(2)
    video = labelled.scenes.video_id.str[1:].astype(int)
    marks = {name: random.normal(size=30)[video] for name in FEATURES}
    scenes = labelled.scenes.assign(**marks, label=random.permutation([0, 1] * 15)[video])
    report = report_of(replace(labelled, scenes=scenes))
    # Split by scene they would all be known.
    assert report["metrics"]["accuracy"]["value"] < 0.8
    assert report["metrics"]["accuracy"]["high"] - report["metrics"]["accuracy"]["low"] > 0.2


def test_the_same_labels_give_the_same_filter(learnt: Filter):
    assert fit(fast_is_good(noise=0.1), CONFIG).raw == learnt.raw


def test_missing_features_are_learnt_from_and_judged():
    labelled = fast_is_good()
    gaps = labelled.scenes.copy()
    gaps.loc[::3, "mse"] = math.nan
    gaps["cos_sim"] = math.nan
    learnt = fit(replace(labelled, scenes=gaps), CONFIG)
    assert learnt.about["report"]["metrics"]["accuracy"]["value"] > 0.9
    unknown = pd.DataFrame([dict.fromkeys(FEATURES, math.nan)])
    assert 0 < learnt.probability(unknown)[0] < 1
    assert learnt.about["spread"]["cos_sim"] == {"edges": [], "counts": [0]}


def test_contributions_add_up_to_the_log_odds(learnt: Filter):
    scenes = fast_is_good().scenes.head(20)
    added = learnt.contributions(scenes).sum(axis=1)
    assert 1 / (1 + np.exp(-added)) == pytest.approx(learnt.probability(scenes), abs=1e-5)
    assert np.abs(learnt.contributions(scenes)[:, :7]).mean(axis=0).argmax() == FEATURES.index("mean_velocity")


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (lambda video: np.ones(len(video)), "all 120 labels are good. Label bad scenes, too"),
        (lambda video: np.zeros(len(video)), "all 120 labels are bad. Label good scenes, too"),
        (lambda video: video < 2, r"too few videos \(2 with good ones, 10 with bad ones\)"),
    ],
)
def test_labels_that_cannot_be_learnt_from_are_refused(label: Any, message: str):
    labelled = fast_is_good()
    video = labelled.scenes.video_id.str[1:].astype(int).to_numpy()
    with pytest.raises(ValueError, match=message):
        fit(replace(labelled, scenes=labelled.scenes.assign(label=np.asarray(label(video), int))), CONFIG)


def test_few_videos_make_fewer_folds_and_the_report_says_so():
    report = report_of(fast_is_good(videos=4, scenes=30))
    assert report["folds"] == 4
    assert report["notes"] == ["4 folds, not 5: 4 videos have good scenes"]


# ------------------------------------------------------------------------------------------------------------- judging


def test_measures_are_those_of_scikit_learn():
    from sklearn.metrics import accuracy_score, average_precision_score, brier_score_loss, roc_auc_score

    random = np.random.default_rng(0)
    labels = random.integers(0, 2, 300)
    # With ties.
    chance = np.round(np.clip(0.3 * labels + random.uniform(0, 0.7, 300), 0, 1), 1)
    measured = judged(labels, chance, np.arange(300))
    expected = {
        "accuracy": accuracy_score(labels, chance >= 0.5),
        "roc_auc": roc_auc_score(labels, chance),
        "pr_auc": average_precision_score(labels, chance),
        "brier": brier_score_loss(labels, chance),
        "gain": accuracy_score(labels, chance >= 0.5) - max(labels.mean(), 1 - labels.mean()),
    }
    for name, value in expected.items():
        assert measured[name]["value"] == pytest.approx(value, abs=1e-4)


def test_the_interval_of_independent_scenes_is_the_binomial_one():
    labels = np.ones(400, int)
    labels[:200] = 0
    chance = np.where(np.arange(400) % 5 == 0, 1 - labels, labels).astype(float)
    accuracy = judged(labels, chance, np.arange(400))["accuracy"]
    half = 1.96 * math.sqrt(0.8 * 0.2 / 400)
    assert accuracy["value"] == pytest.approx(0.8)
    assert [accuracy["low"], accuracy["high"]] == pytest.approx([0.8 - half, 0.8 + half], abs=0.01)


def test_scenes_of_one_video_count_as_one_where_they_are_alike():
    random = np.random.default_rng(0)
    labels, right = random.integers(0, 2, 40), random.random(40) < 0.7
    chance = np.where(right, labels, 1 - labels).astype(float)

    def width(times: int) -> float:
        many = judged(np.repeat(labels, times), np.repeat(chance, times), np.repeat(np.arange(40), times))
        return many["accuracy"]["high"] - many["accuracy"]["low"]

    assert width(25) == pytest.approx(width(1), abs=0.03)


def test_calibration_tells_how_often_a_probability_holds():
    random = np.random.default_rng(0)
    chance = random.random(5000)
    labels = (random.random(5000) < chance).astype(int)
    curve = calibration(labels, chance)
    assert len(curve) == 10 and sum(part["scenes"] for part in curve) == 5000
    assert [part["good"] for part in curve] == pytest.approx([part["predicted"] for part in curve], abs=0.06)
    assert len(calibration(labels[:23], chance[:23])) == 2


def test_a_corpus_that_differs_from_the_labels_is_told_and_chance_is_not(learnt: Filter):
    def corpus(seed: int, faster: float = 1) -> pd.DataFrame:
        scenes = fast_is_good(videos=12, scenes=2000).scenes.sample(500, random_state=seed)
        return scenes.assign(mean_velocity=scenes.mean_velocity * faster)

    assert not any(learnt.drift(learnt.spread_counts(corpus(seed))) for seed in range(20))
    assert list(learnt.drift(learnt.spread_counts(corpus(0, faster=2)))) == ["mean_velocity"]
    # Counts of parts add up, and nothing measured is nothing to compare.
    one, other = corpus(0).iloc[:250], corpus(0).iloc[250:]
    added = learnt.spread_counts(one) + learnt.spread_counts(other)
    assert (added == learnt.spread_counts(corpus(0))).all()
    assert learnt.drift(learnt.spread_counts(corpus(0).iloc[:0])) == {}


# ------------------------------------------------------------------------------------------------------------- the file


def test_a_filter_is_xgboosts_json_and_comes_back(learnt: Filter, tmp_path: Path):
    import xgboost

    uri = str(tmp_path / "filter.json")
    save_filter(learnt, uri)
    scenes = fast_is_good().scenes
    again = load_filter(uri, {"motion.flow": "farneback", "shots.detector": "content"})
    assert (again.probability(scenes) == learnt.probability(scenes)).all()
    assert again.about == learnt.about
    plain = xgboost.Booster(model_file=uri)
    assert plain.feature_names == list(FEATURES)
    assert set(learnt.about["versions"]) == {"xgboost", "scikit-learn", "numpy"}


def tampered(learnt: Filter, **changes: Any) -> bytes:
    model = json.loads(learnt.raw)
    return json.dumps(model | {"learner": model["learner"] | changes}).encode()


def test_what_is_no_filter_of_ours_is_refused(learnt: Filter, tmp_path: Path):
    import xgboost

    booster = xgboost.Booster(model_file=bytearray(learnt.raw))
    names = json.loads(learnt.raw)["learner"]["feature_names"]
    cases = {
        "but a pickle": pickle.dumps(booster),
        "but another model": bytes(booster.save_raw("ubj")),
        "but not JSON": b"PAR1",
        "or damaged": learnt.raw[:1000],
        "another model or": tampered(learnt, attributes={}),
        "in this order": tampered(learnt, feature_names=names[::-1]),
    }
    for message, data in cases.items():
        path = tmp_path / "filter.json"
        path.write_bytes(data)
        with pytest.raises(ValueError, match=message):
            load_filter(str(path))
    with pytest.raises(ValueError, match="does not exist"):
        load_filter(str(tmp_path / "none.json"))


def test_features_measured_with_other_settings_are_refused(learnt: Filter, tmp_path: Path):
    uri = str(tmp_path / "filter.json")
    save_filter(learnt, uri)
    with pytest.raises(ValueError, match=r"flow=farneback there, raft here, latents\.model=None there"):
        load_filter(uri, {"motion.flow": "raft", "latents.model": "tiny"})


# ------------------------------------------------------------------------------------------------------- from an output


def test_labels_meet_their_scenes(tmp_path: Path):
    store = Store(str(tmp_path))
    with pytest.raises(ValueError, match="has no plan"):
        read_labelled(FitConfig(store.root))
    write_plan(store, {"a": 3})
    store.write_json({"measured_by": {"motion.flow": "raft", "shots.width": 9}}, "plan", "settings.json")
    write_scores(store, scene("a.0_0"), scene("a.1_0", error="crashed"), scene("a.2_0", mse=math.nan), film("a", 3))
    with pytest.raises(ValueError, match=r"labels holds no labels"):
        read_labelled(FitConfig(store.root))
    said = {("a", "a.0_0"): 1, ("a", "a.1_0"): 1, ("a", "a.2_0"): 0, ("a", "a.9_0"): 0}
    write_labels(store.uri("labels", "me.json"), said)
    write_labels(store.uri("labels", "you.json"), {("a", "a.2_0"): 0})
    labelled = read_labelled(FitConfig(store.root))
    assert labelled.scenes[["scene_id", "label"]].to_numpy().tolist() == [["a.0_0", 1], ["a.2_0", 0]]
    assert labelled.scenes.mse.isna().tolist() == [False, True]
    assert (labelled.people, labelled.lost) == (["me", "you"], 2)
    assert labelled.measured_by == {"motion.flow": "raft"}
    # An earlier version says nothing of what is done to pictures, which was nothing.
    for name in ("frames.crop_bars", "frames.deinterlace", "frames.color_managed"):
        assert feature_settings({name: False}) == {} != feature_settings({name: True})
    write_labels(str(tmp_path / "other.json"), {("x", "x.0_0"): 1})
    with pytest.raises(ValueError, match="None of the 1 labels"):
        read_labelled(FitConfig(store.root, labels=str(tmp_path / "other.json")))


@pytest.mark.slow
def test_workers_that_share_the_labels_learn_the_same(ray_cluster: None, tmp_path: Path):
    labelled = fast_is_good(noise=0.1)
    alone = fit(labelled, FitConfig(str(tmp_path)))
    config = FitConfig(str(tmp_path), worker_bytes=3000)
    assert labelled.workers(config) == 2
    shared = fit(labelled, config)
    scenes = fast_is_good(videos=40).scenes
    # Bins of a feature are chosen from what each worker has.
    assert shared.probability(scenes) == pytest.approx(alone.probability(scenes), abs=0.05)
    accuracy = [learnt.about["report"]["metrics"]["accuracy"]["value"] for learnt in (alone, shared)]
    assert accuracy[1] == pytest.approx(accuracy[0], abs=0.03)
    assert not list((tmp_path / "fit").rglob("*.json"))

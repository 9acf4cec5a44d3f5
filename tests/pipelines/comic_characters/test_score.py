"""Methods beside each other: what is guessed, what intervals say, and which ablations can be."""

import csv
import io
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from actors.comic_characters.instances import Instance
from actors.comic_characters.network_settings import BackboneConfig
from pipelines.comic_characters.features import Features
from pipelines.comic_characters.retrieval import CLUSTERS, RANKS, Rerank, labelled
from pipelines.comic_characters.score import OURS, Found, Method, fused, scores_of, trained_anew, unit, variant
from pipelines.comic_characters.settings import ComicsConfig, FineTuneConfig, PretrainConfig, ScoreConfig
from pipelines.core.metrics import wilson
from tests.pipelines.comic_characters.test_retrieval import comic

CONFIG = ComicsConfig(output="out", labels="labels", score=ScoreConfig(draws=100))


def test_face_and_body_count_alike_and_what_is_not_there_is_guessed() -> None:
    features = [
        Features(np.array([3.0, 0.0]), np.array([0.0, 0.1])),
        Features(None, np.array([0.0, 2.0])),
        Features(np.array([5.0, 0.0]), None),
    ]
    both = fused(features, ("face", "body"), 0)
    assert both.vectors == pytest.approx(np.array([[np.sqrt(0.5)] * 2, [0, 1], [1, 0]])) and both.guessed == 0
    face = fused(features, ["face"], 0)
    assert face.guessed == 1 and face.vectors[[0, 2]] == pytest.approx(np.array([[1.0, 0], [1, 0]]))
    assert np.linalg.norm(face.vectors, axis=1) == pytest.approx(1)
    assert fused(features, ["face"], 1).vectors[1] != pytest.approx(face.vectors[1])


def told(
    noises: Mapping[str, float], draws: int = 100, doubled: bool = False, series: int = 12, people: int = 5
) -> Found:
    """Methods that know who is who but for so much noise."""
    sequences, truth = comic(series=series, people=people)
    instances = list(truth)
    places = np.random.default_rng(0).normal(size=(100, 16))
    methods = {
        name: Method(
            unit(places[list(truth.values())] + noise * np.random.default_rng(1).normal(size=(len(truth), 16)))
        )
        for name, noise in noises.items()
    }
    if doubled:
        methods["re-ranked"] = replace(methods[OURS], rerank=Rerank())
    place: dict[Instance, int] = {one: row for row, one in enumerate(instances)}
    config = replace(CONFIG, score=ScoreConfig(draws=draws))
    return scores_of(config, labelled(sequences, set(truth)), place, methods, {"ImageNet x": "no network"})


def test_more_noise_is_a_lower_score_and_its_interval_says_so() -> None:
    found = told({"bad": 3.0, "worse": 6.0, OURS: 1.0}, doubled=True)
    assert list(found.methods) == ["bad", "worse", OURS, "re-ranked"]
    assert list(found.methods[OURS]["between"]) == list(found.methods[OURS]["within"]) == [*RANKS, *CLUSTERS]
    for place in ("between", "within"):
        ours, bad, worse = (found.methods[name][place]["map_at_r"] for name in (OURS, "bad", "worse"))
        assert ours["value"] > bad["value"] > worse["value"]
        assert bad["low"] <= bad["value"] <= bad["high"] and bad["high"] - bad["low"] > 0.01
        assert bad["ahead"] == pytest.approx(ours["value"] - bad["value"], abs=1e-5) and bad["ahead_low"] > 0
        assert ours["ahead"] == ours["ahead_low"] == ours["ahead_high"] == 0
        assert found.methods[OURS][place]["bcubed_f1"]["value"] > found.methods["worse"][place]["bcubed_f1"]["value"]
        assert np.isnan(found.methods["re-ranked"][place]["ami"]["value"])
        assert found.as_json()["methods"]["re-ranked"][place]["ami"]["value"] is None
    assert found.facts["series"] == 12 and found.facts["characters between series"] == 60
    assert found.facts["queries within"] == 240 and found.few == []
    assert found.as_json() == told({"bad": 3.0, "worse": 6.0, OURS: 1.0}, doubled=True).as_json()


def test_few_series_have_wide_intervals_and_no_lead() -> None:
    found = told({"bad": 3.0, OURS: 0.0}, series=3)
    assert found.few == [f"no lead {place} series: 3 series, and 10 are needed" for place in ("between", "within")]
    for place in ("between", "within"):
        ours, bad = (found.methods[name][place]["map_at_r"] for name in (OURS, "bad"))
        # All is right, in every draw: three series cannot tell that it is everywhere.
        assert (ours["value"], ours["high"]) == (1, 1) and ours["low"] == pytest.approx(wilson(1, 3)[0], abs=1e-5)
        assert bad["low"] < bad["value"] < bad["high"] and np.isnan([bad["ahead"], bad["ahead_low"]]).all()


def test_few_queries_have_a_sentence_and_no_figure() -> None:
    found = told({OURS: 0.0}, series=1)
    assert found.few[0] == "no scores between series: 5 queries, and 10 are needed"
    assert all(np.isnan(value["value"]) for value in found.methods[OURS]["between"].values())
    assert found.methods[OURS]["within"]["map_at_r"]["low"] == pytest.approx(wilson(1, 1)[0], abs=1e-5)


def test_what_could_not_be_had_is_a_row_of_the_table() -> None:
    rows = list(csv.reader(io.StringIO(told({OURS: 1.0}, draws=2).as_csv().decode())))
    assert len(rows) == 1 + 26 + 1 and {len(row) for row in rows} == {len(rows[0])}
    assert rows[-1][0] == "ImageNet x" and rows[-1][-1] == "no network"


def test_an_ablation_trains_what_differs_and_nothing_else() -> None:
    head = variant(CONFIG, "cat", replace(CONFIG, fine_tune=FineTuneConfig(loss="triplet")))
    assert head.fine_tune.folder == "scores/ablations/cat/fine-tune" and not trained_anew(CONFIG, head)
    stage = variant(CONFIG, "alone", replace(CONFIG, pretrain=PretrainConfig(identity=False)))
    assert stage.pretrain.folder == "scores/ablations/alone/pretrain" and trained_anew(CONFIG, stage)
    assert trained_anew(CONFIG, variant(CONFIG, "small", replace(CONFIG, backbone=BackboneConfig("resnet18"))))
    fixed = replace(CONFIG, features=replace(CONFIG.features, weights="w.safetensors"))
    with pytest.raises(ValueError, match=r"score.ablations.alone: .* add features.weights=null"):
        variant(fixed, "alone", replace(fixed, pretrain=PretrainConfig(identity=False)))
    for other in (replace(CONFIG, labels="else"), replace(CONFIG, backbone=BackboneConfig(face_size=32))):
        with pytest.raises(ValueError, match="only pretrain, fine_tune"):
            variant(CONFIG, "no", other)
    with pytest.raises(ValueError, match="named by letters"):
        ScoreConfig(ablations={"a/b": []})

"""Methods beside each other: what intervals say, and what is refused."""

import csv
import io
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from actors.comic_characters.instances import Instance
from actors.core.errors import UserError
from pipelines.comic_characters.learning.retrieval import CLUSTERS, RANKS, Rerank, labelled
from pipelines.comic_characters.score import OURS, Found, plan_scores, scores_of
from pipelines.comic_characters.score_methods import Method, unit
from pipelines.comic_characters.settings import ComicsConfig, ScoreConfig
from pipelines.core.metrics import wilson
from tests.pipelines.comic_characters.learning.test_retrieval import comic
from tests.support.embedded_comics import embedded_comic, write_vectors

CONFIG = ComicsConfig(output="out", labels="labels", score=ScoreConfig(draws=100))


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


def test_what_is_missing_is_refused_by_the_plan(tmp_path: Path) -> None:
    config, sequences = embedded_comic(tmp_path)
    with pytest.raises(UserError, match="Run `fine-tune` first"):
        plan_scores(config, {})
    write_vectors(config, sequences[:4])
    with pytest.raises(UserError, match=r"test_sequences.json has \d+ instances that are not in embeddings/, such as"):
        plan_scores(config, {})

"""What is said of one scene."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from actors.core.store import Store
from actors.curation.selecting.filter import save_filter
from actors.curation.selecting.select_settings import SelectConfig
from pipelines.curation.selecting.explain import explain
from pipelines.curation.selecting.fit_filter import fit
from pipelines.curation.selecting.label_settings import FitConfig
from pipelines.curation.selecting.select import fail_scenes, select
from pipelines.curation.settings import CurationConfig
from tests.pipelines.curation.outputs import Row, config, fast_is_good, film, scene, write_plan, write_scores


@pytest.fixture
def output(tmp_path: Path) -> CurationConfig:
    """Spans of one and two scenes; of the ten that pass, steadiness falls with the number."""
    settings = config(tmp_path, select=SelectConfig(count=4))
    store = Store(settings.output)
    ten = [scene(f"a.{i}_0", max_velocity=2.0 + i, mean_velocity=2.0, caption="a dog", ordinal=i) for i in range(10)]
    other: list[Row] = [
        scene("a.0_1", max_velocity=4.0, mean_velocity=2.0, ordinal=20),
        scene("a.10_0", mean_velocity=0.04, first=24, end=72, ordinal=21),
        scene("a.11_0", error="truncated", message="the film breaks off", ordinal=22),
    ]
    rejected = [scene("a.0_0", error="duplicate_id", step="plan", ordinal=30)]
    write_plan(store, {"a": 13}, rejected)
    store.write_json({"measured_by": {"motion.flow": "farneback"}}, "plan", "settings.json")
    write_scores(store, *ten, *other, film("a", 13))
    return settings


def told(settings: CurationConfig, name: str) -> str:
    return "\n".join(explain(settings, name))


def test_a_kept_scene_has_its_source_its_place_and_its_margin(output: CurationConfig):
    select(output)
    text = told(output, "a.1_0")
    assert text.startswith("a.1_0 of video a\n  film.mp4\n  0.000 s to 2.000 s\n  640 x 360 pixels, 8 frames")
    # Of 12 measured scenes two have a lower max_velocity: a.0_0, and the slow one.
    assert f"max_velocity            3 {200 / 12:5.1f} %" in text
    assert "measured with motion.flow=farneback" in text
    assert "static     kept by 1.9: mean_velocity 2, select.min_velocity 0.1" in text
    assert "kept\n  steadiness 0.6667: rank 2 of 11 that pass the rules" in text
    # a.0_0, a.1_0, a.2_0 and a.3_0 are kept.
    assert "the last that is kept, a.3_0, has 0.4, 0.2667 less" in text
    assert text.endswith("caption: a dog")


def test_what_ranks_too_low_is_told_how_far_it_is_from_being_kept(output: CurationConfig):
    select(output)
    text = told(output, "a.9_0")
    assert "dropped: not_selected\n  steadiness 0.1818: rank 11 of 11" in text
    assert "the last that is kept, a.3_0, has 0.4, 0.2182 more" in text


def test_what_shares_its_span_is_told_with_whom(output: CurationConfig):
    select(output)
    text = told(output, "a.0_1")
    # a.2_0 has the same rank, and comes later by its id.
    assert "dropped: same_span\n  steadiness 0.5: rank 3 of 11" in text
    assert "a.0_0 of the same span has 1" in text


def test_a_near_duplicate_is_told_of_which_scene(tmp_path: Path):
    settings = config(tmp_path, select=SelectConfig(dedupe=0))
    store = Store(settings.output)
    ranks = {"a.0_0": 2.0, "a.0_1": 4.0, "a.1_0": 1.0}
    hashed = {"a.0_0": b"\1" * 24, "a.0_1": b"\2" * 24, "a.1_0": b"\1" * 24}
    write_scores(store, *(scene(name, max_velocity=ranks[name], phash=hashed[name]) for name in ranks), film("a", 3))
    write_plan(store, {"a": 3})
    select(settings)
    text = told(settings, "a.0_0")
    assert "dropped: near_duplicate\n  steadiness 0.5: rank 2 of 3" in text
    assert "a.1_0 of the same group of near-duplicates has 1" in text


def test_a_broken_rule_is_told_by_how_much(output: CurationConfig):
    select(output)
    text = told(output, "a.10_0")
    assert "film.mp4, frames 24 to 72 of its span" in text
    assert "static     broken by 0.06: mean_velocity 0.04, select.min_velocity 0.1" in text
    assert text.endswith("dropped: static\nno caption")


def test_what_failed_is_told_with_its_step(output: CurationConfig):
    select(output)
    assert "failed: truncated at cut, tried 1 times: the film breaks off" in told(output, "a.11_0")
    fail_scenes(
        Store(output.output), [{"video_id": "a", "scene_id": "a.1_0", "error": "crashed", "message": "by signal 9"}]
    )
    assert "failed: crashed at export, tried 1 times: by signal 9" in told(output, "a.1_0")


def test_a_filter_is_told_with_what_each_feature_adds(output: CurationConfig):
    learnt = fit(fast_is_good(), FitConfig(output.output))
    save_filter(learnt, str(Path(output.output) / "filter.json"))
    settings = replace(output, select=SelectConfig(by="classifier", count=4))
    select(settings)
    lines = explain(settings, "a.1_0")
    at = next(i for i, line in enumerate(lines) if line.startswith("filter "))
    assert "filter.json, from 120 labels of 12 videos, xgboost" in lines[at]
    words = lines[at + 1].split()
    probability, odds = float(words[3].rstrip(",")), float(words[5].rstrip(","))
    parts = [float(line.split()[0]) for line in lines[at + 2 : at + 10]]
    assert sum(parts) == pytest.approx(odds, abs=0.05)
    assert probability == pytest.approx(1 / (1 + math.exp(-odds)), abs=0.01)
    # Slower than what the labels call good.
    assert probability < 0.5 and lines[at + 3].endswith("of mean_velocity") and parts[1] < 0
    assert "the filter has changed" not in "\n".join(lines)
    save_filter(fit(fast_is_good(noise=0.2), FitConfig(output.output)), str(Path(output.output) / "filter.json"))
    assert "the filter has changed: scenes/ was decided with probability" in told(settings, "a.1_0")


def test_a_scene_that_is_not_there_and_one_that_is_there_twice(output: CurationConfig):
    select(output)
    with pytest.raises(ValueError, match=r"has no scene a\.10_1: it has a\.10_0"):
        explain(output, "a.10_1")
    store = Store(output.output)
    write_plan(store, {"a": 13, "b": 1})
    write_scores(store, scene("a.1_0", video_id="b", caption="a cat"), film("b", 1))
    select(output)
    with pytest.raises(ValueError, match=r"2 scenes are named a\.1_0: ask for one of a/a\.1_0, b/a\.1_0"):
        explain(output, "a.1_0")
    assert told(output, "b/a.1_0").endswith("caption: a cat")

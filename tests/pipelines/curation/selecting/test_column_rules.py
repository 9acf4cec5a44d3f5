"""Rules on any column: what they drop, why, and which are refused."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from actors.core.errors import UserError
from actors.core.store import Store
from actors.curation.cutting.scenes import FEATURES
from actors.curation.selecting.filter import load_filter, save_filter
from actors.curation.selecting.select_settings import REASONS, SelectConfig
from jobs.core.settings import SettingsError, load
from pipelines.curation.selecting.columns import check_rules_of
from pipelines.curation.selecting.explain import explain
from pipelines.curation.selecting.fit_filter import fit, read_labelled
from pipelines.curation.selecting.label_settings import FitConfig
from pipelines.curation.selecting.labels import write_labels
from pipelines.curation.selecting.select import fail_scenes, select, tally
from pipelines.curation.settings import CurationConfig
from tests.pipelines.curation.outputs import (
    Row,
    config,
    fast_is_good,
    film,
    scene,
    write_measured,
    write_plan,
    write_scores,
    write_settings,
)
from tests.pipelines.curation.selecting.test_select import chosen, frame, judge

LOOKS = {
    "text_area": pa.float32(),
    "camera": pa.string(),
    "shaky": pa.bool_(),
    "faces": pa.int64(),
    "vector": pa.list_(pa.float16(), 2),
}
BIG = 2**60 + 1
ROWS: list[Row] = [
    {"text_area": 0.05, "camera": "still", "shaky": False, "faces": BIG},
    {"text_area": 0.06, "camera": "still", "shaky": False, "faces": 0},
    {"text_area": 0.0, "camera": "shake", "shaky": True, "faces": 2},
    {"text_area": math.nan, "camera": None, "shaky": None, "faces": None, "error": "odd"},
    {"text_area": 0.01, "camera": "pan", "shaky": False, "faces": 1},
]


def made(folder: Path, rows: list[Row] = ROWS, **rules: Any) -> CurationConfig:
    """An output of scenes that all pass the fixed rules, with a family that looked at the first of them."""
    settings = config(folder, select=SelectConfig(rules=rules))
    store = Store(settings.output)
    scenes = [scene(f"v.{i}_0", ordinal=i, caption=f"c{i}") for i in range(5)]
    part = write_scores(store, *scenes, film("v", 5))
    write_plan(store, {"v": 5})
    write_settings(settings)
    write_measured(store, "looks", LOOKS, part, [{"row": i, **row} for i, row in enumerate(rows)])
    return settings


def whole(settings: CurationConfig) -> pd.DataFrame:
    return pd.concat(part.to_pandas() for part in Store(settings.output).read_parts("scenes"))


def reasons(settings: CurationConfig) -> list[str]:
    select(settings)
    return whole(settings).reason.to_list()


@pytest.mark.parametrize(
    ("rules", "about", "reason"),
    [
        ({"width": {"min": 640}}, {"width": 640}, ""),
        ({"width": {"min": 640}}, {"width": 639}, "width"),
        ({"width": {"max": 640}}, {"width": 640}, ""),
        ({"width": {"min": 10, "max": 640}}, {"width": 641}, "width"),
        # A float32 of 0.1 is not below 0.1.
        ({"mse": {"min": 0.1}}, {"mse": 0.1}, ""),
        ({"small": {"column": "height", "min": 720}}, {"height": 360}, "small"),
        ({"interlaced": {"is": False}}, {"interlaced": True}, "interlaced"),
        ({"interlaced": {"is": False}}, {"interlaced": False}, ""),
        ({"converted": {"not": ["tone_mapped", "mirrored"]}}, {"converted": "mirrored"}, "converted"),
        ({"converted": {"not": "mirrored"}}, {"converted": ""}, ""),
        ({"converted": {"is": ["", "rotated"]}}, {"converted": "mirrored"}, "converted"),
        # What is not known is no better than what is bad.
        ({"bar_top": {"max": 10}}, {"bar_top": None}, "unmeasured"),
        ({"interlaced": {"is": False}}, {"interlaced": None}, "unmeasured"),
        ({"converted": {"not": ["mirrored"]}}, {"converted": None}, "unmeasured"),
        # In the order written, after the fixed rules.
        ({"width": {"min": 640}, "height": {"min": 720}}, {"width": 9, "height": 9}, "width"),
        ({"height": {"min": 720}, "width": {"min": 640}}, {"width": 9, "height": 9}, "height"),
        ({"bar_top": {"max": 10}, "width": {"min": 640}}, {"width": 9, "bar_top": None}, "unmeasured"),
        ({"width": {"min": 640}, "bar_top": {"max": 10}}, {"width": 9, "bar_top": None}, "width"),
        ({"width": {"min": 640}}, {"width": 9, "max_rgb_diff": 5000}, "cut_inside"),
        # Off.
        ({"width": None}, {"width": 1}, ""),
        ({"width": {"min": None}}, {"width": 1}, ""),
    ],
)
def test_a_rule_drops_what_is_outside_its_bounds(rules: dict[str, Any], about: Row, reason: str):
    scenes = frame(scene("a.0_0", **about), scene("b.0_0", width=9999, height=9999))
    assert chosen(scenes, rules=rules)["a.0_0"] == reason


def test_scenes_that_failed_have_no_reason_and_ranks_go_by_those_that_pass():
    scenes = frame(scene("a.0_0", error="crashed", width=1), scene("a.1_0", width=1), scene("a.1_1"), scene("b.0_0"))
    told = chosen(scenes, rules={"wide": {"column": "width", "min": 2}}, count=1)
    assert told == {"a.0_0": "", "a.1_0": "wide", "a.1_1": "", "b.0_0": "not_selected"}


def test_without_rules_nothing_more_is_read_and_reasons_are_the_fixed_ones():
    assert SelectConfig().reasons == REASONS
    named = SelectConfig(rules={"b": {"column": "width", "min": 1}, "a": {"column": "height", "max": 1}})
    assert [name for name in named.reasons if name not in REASONS] == ["b", "a"]
    assert [name for name in named.reasons if name in REASONS] == list(REASONS)
    assert judge(frame(scene("a.0_0")), config("x").frames, SelectConfig()).columns.to_list() == [
        *("reason", "rank", "probability"),
    ]


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("static: {min: 1}", r"select\.rules\.static: 'static' is the name of another reason"),
        ("kept: {min: 1}", "name of another reason"),
        ("'a b': {min: 1}", "no name of letters and digits"),
        ("width: {}", "set either min or max"),
        ("width: {min: 3, max: 2}", "min=3 is above max=2"),
        ("width: {min: 3, is: true}", "set either min or max"),
        ("width: {max: .inf}", "are numbers, or null for no bound"),
        ("width: {least: 3}", r"select\.rules\.width\.least: there is no such setting"),
        ("width: {min: x}", r"select\.rules\.width\.min: Input should be a valid number"),
        ("width: 3", r"select\.rules\.width: "),
        (", ".join(f"a{i}: {{min: 1}}" for i in range(101)), "101 rules: set at most 100"),
    ],
)
def test_what_is_no_rule_is_refused(rule: str, message: str):
    with pytest.raises(SettingsError, match=message):
        load(CurationConfig, ["input=x", "output=y", f"select.rules={{{rule}}}"])


def test_rules_of_a_file_are_changed_and_turned_off_one_by_one():
    base = {"input": "x", "output": "y", "select": {"rules": {"width": {"min": 9}, "height": {"min": 9}}}}
    found = load(CurationConfig, ["select.rules.width.max=99", "select.rules.height=null"], base)
    assert [(rule.name, rule.min, rule.max) for rule in found.select.column_rules] == [("width", 9, 99)]


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (
            {"textarea": {"max": 1}},
            r"textarea: there is no column textarea\. There are start_s, .*text_area, .* measure",
        ),
        ({"vector": {"max": 1}}, "no column vector"),
        ({"caption": {"is": "x"}}, "no column caption"),
        ({"text_area": {"is": "x"}}, "text_area is float, so set min or max"),
        ({"camera": {"min": 1}}, "camera is string, so set is or not"),
        ({"shaky": {"min": 1}}, "shaky is bool, so set is: true or is: false"),
        ({"shaky": {"is": "yes"}}, "shaky is bool: write its values without quotes"),
        ({"camera": {"not": [True]}}, "camera is string: write its values in quotes"),
    ],
)
def test_rules_on_columns_that_cannot_be_are_refused_before_any_work(
    tmp_path: Path, rules: dict[str, Any], message: str
):
    settings = made(tmp_path, **rules)
    with pytest.raises(UserError, match=message):
        check_rules_of(settings)
    with pytest.raises(UserError, match=message):
        select(settings)
    assert not Store(settings.output).parts("scenes")


def test_columns_that_a_run_will_measure_are_there_for_its_rules(tmp_path: Path):
    settings = made(tmp_path, brightness={"max": 1})
    with pytest.raises(UserError, match="no column brightness"):
        check_rules_of(settings)
    check_rules_of(settings, ["tests.support.families:Brightness"])


# ------------------------------------------------------------------------------------------------------------- families


def test_rules_are_on_columns_of_families_and_scenes_has_these(tmp_path: Path):
    settings = made(
        tmp_path, text_area={"max": 0.05}, camera={"not": ["shake"]}, crowd={"column": "faces", "max": 9e18}
    )
    assert reasons(settings) == ["", "text_area", "camera", "unmeasured", ""]
    rows = Store(settings.output).read_parts("scenes")
    [table] = list(rows)
    assert {name: table.schema.field(name).type for name in table.column_names[-4:]} == {
        name: kind for name, kind in LOOKS.items() if name != "vector"
    }
    # A whole number of 61 bits stays what it is, and what is no number is null.
    assert table["faces"].to_pylist() == [BIG, 0, 2, None, 1]
    assert table["text_area"].null_count == 1
    assert table["shaky"].to_pylist() == [False, False, True, None, False]
    told = tally(Store(settings.output))
    assert (told.kept, told.dropped) == (2, {"camera": 1, "text_area": 1, "unmeasured": 1})


def test_scenes_that_are_still_to_be_measured_are_told_with_the_command(tmp_path: Path):
    settings = made(tmp_path, ROWS[:3], text_area={"max": 0.05})
    with pytest.raises(UserError, match=r"2 scenes have no scores of looks.* measure .*scores=\[looks\]"):
        select(settings)
    # Without a rule on it nothing is asked of the family, and scenes/ has what there is.
    select(replace(settings, select=SelectConfig()))
    assert whole(settings).camera.isna().tolist() == [False, False, False, True, True]


def test_what_is_told_of_scenes_later_leaves_their_columns(tmp_path: Path):
    settings = made(tmp_path)
    select(settings)
    before = list(Store(settings.output).read_parts("scenes"))
    store = Store(settings.output)
    fail_scenes(store, [{"video_id": "v", "scene_id": "v.1_0", "error": "export_failed", "message": "disk"}])
    [after], [table] = list(store.read_parts("scenes")), before
    assert after["error"].to_pylist() == ["", "export_failed", "", "", ""]
    assert after["kept"].to_pylist() == [True, False, True, True, True]
    assert after.drop(["error", "kept"]).equals(table.drop(["error", "kept"]))


def test_a_scene_is_explained_by_its_columns_and_rules(tmp_path: Path):
    settings = made(tmp_path, text_area={"max": 0.05}, camera={"not": ["shake"]})
    select(settings)
    lines = explain(settings, "v.1_0")
    assert any(line.split()[:2] == ["text_area", "0.06"] and line.endswith("75.0 %") for line in lines)
    assert any("camera=still" in line and "shaky=false" in line for line in lines)
    # All scenes are alike in it.
    assert not any(line.split()[:1] == ["width"] for line in lines)
    assert "  text_area  broken: text_area 0.06, dropped where text_area > 0.05" in lines
    assert "  camera     kept: camera still, dropped where camera is shake" in lines
    assert "dropped: text_area" in lines
    assert "  text_area  not known: text_area is missing" in explain(settings, "v.3_0")


# --------------------------------------------------------------------------------------------------------------- filter


def labelled_by(settings: CurationConfig, features: list[str] | None) -> FitConfig:
    """Many scenes of which those without text are good, labelled."""
    store = Store(settings.output)
    rows = [
        scene(f"w{i // 10}.{i % 10}_0", video_index=i // 10 + 1, ordinal=i % 10, mean_velocity=1 + i % 7)
        for i in range(120)
    ]
    part = write_scores(store, *rows)
    text = [{"row": i, "text_area": 0.5 * (i % 2), "shaky": bool(i % 3)} for i in range(120)]
    write_measured(store, "looks", LOOKS, part, text)
    write_plan(store, {"v": 5, **{f"w{i}": 10 for i in range(12)}})
    labels = {(row["video_id"], row["scene_id"]): int(i % 2 == 0) for i, row in enumerate(rows)}
    write_labels(store.uri("labels", "me.json"), labels)
    store.write_json({"measured_by": {"motion.flow": "raft"}}, "plan", "settings.json")
    return FitConfig(settings.output, features=features)


def test_a_filter_learns_from_any_columns_and_says_which(tmp_path: Path):
    settings = replace(made(tmp_path), select=SelectConfig(by="classifier"))
    store = Store(settings.output)
    plain = fit(read_labelled(labelled_by(settings, None)), FitConfig(settings.output))
    assert plain.features == FEATURES and plain.about["report"]["metrics"]["accuracy"]["value"] < 0.7
    asked = labelled_by(settings, ["text_area", "mean_velocity", "shaky"])
    learnt = fit(read_labelled(asked), asked)
    assert learnt.about["report"]["metrics"]["accuracy"]["value"] > 0.95
    assert list(learnt.about["report"]["importance"]) == ["text_area", "mean_velocity", "shaky"]
    save_filter(learnt, store.uri("filter.json"))
    assert load_filter(store.uri("filter.json")).features == ("text_area", "mean_velocity", "shaky")

    selected = select(settings)
    rows = whole(settings).set_index("scene_id")
    assert (rows.probability[rows.text_area == 0] > 0.5).all() and (rows.probability[rows.text_area == 0.5] < 0.5).all()
    assert rows.reason["v.3_0"] == "unmeasured" and not rows.kept["v.3_0"]
    assert set(selected.drift) <= {"text_area", "mean_velocity", "shaky"}
    assert any("of text_area" in line for line in explain(settings, "v.0_0"))


def test_a_filter_is_refused_where_its_columns_are_missing_or_measured_otherwise(tmp_path: Path):
    settings = replace(made(tmp_path), select=SelectConfig(by="classifier"))
    store = Store(settings.output)
    asked = labelled_by(settings, ["text_area"])
    save_filter(fit(read_labelled(asked), asked), store.uri("filter.json"))
    about = store.read_json("measured", "looks.json")
    store.write_json(about | {"fingerprint": "0" * 12}, "measured", "looks.json")
    with pytest.raises(UserError, match=r"measured with other settings .looks=ffffffffffff there"):
        select(settings)
    (tmp_path / "measured" / "looks.json").unlink()
    with pytest.raises(UserError, match=r"reads columns that .* lacks: there is no column text_area\. .* measure "):
        select(settings)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (["text_area", "nothing"], "features: there is no column nothing"),
        (["camera"], "camera is text"),
        (["vector"], "no column vector"),
    ],
)
def test_features_that_cannot_be_learnt_from_are_refused(tmp_path: Path, features: list[str], message: str):
    with pytest.raises(UserError, match=message):
        read_labelled(labelled_by(made(tmp_path), features))
    with pytest.raises(UserError, match="name at least one"):
        FitConfig(str(tmp_path), features=[])


def test_a_filter_of_the_seven_features_is_what_it_was():
    learnt = fit(fast_is_good(), FitConfig("output"))
    assert "families" not in learnt.about and learnt.features == FEATURES

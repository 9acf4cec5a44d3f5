"""What is kept, by which rule, and that every row is accounted for."""

import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from actors.core.store import Store
from actors.curation.cutting.scenes import FEATURES, FramesConfig
from actors.curation.selecting.filter import Filter, save_filter
from actors.curation.selecting.rules import judge
from actors.curation.selecting.select_settings import SelectConfig
from actors.curation.tables import LATER, PLACES, REJECTED, SCENES, SCORES
from pipelines.curation.rows import IncompleteError
from pipelines.curation.selecting.choose import Judged, alike, choose
from pipelines.curation.selecting.fit_filter import fit
from pipelines.curation.selecting.label_settings import FitConfig
from pipelines.curation.selecting.select import alarms, fail_scenes, select, tally
from pipelines.curation.settings import CurationConfig
from tests.pipelines.curation.outputs import Row, config, fast_is_good, film, scene, write_plan, write_scores

NAN = math.nan


def frame(*rows: Row) -> pd.DataFrame:
    return pd.DataFrame(rows)


def decide(scenes: pd.DataFrame, settings: CurationConfig, model: Filter | None = None) -> pd.DataFrame:
    """What becomes of scenes with the columns of SCORES."""
    rows = scenes.join(judge(scenes, settings.frames, settings.select, model))
    numbers = {
        name: rows[of].rank(method="dense").astype(int) for name, of in (("video", "video_id"), ("span", "clip_id"))
    }
    rows = rows.assign(index=np.arange(len(rows)), **numbers)
    with Judged(1) as judged:
        judged.add(rows)
        groups = None if settings.select.dedupe is None else alike(judged, settings.select.dedupe)
        code = choose(judged, settings.select, groups)
    reason = np.array(settings.select.reasons, object)[code]
    kept = (reason == "") & (scenes.error == "")
    return scenes.assign(kept=kept, reason=reason, probability=rows.probability)


def chosen(scenes: pd.DataFrame, most: int = 60, **rules: Any) -> dict[str, str]:
    """The reason of each scene; kept ones have none."""
    settings = config("out", select=SelectConfig(**rules), frames=FramesConfig(max=most))
    decided = decide(scenes, settings)
    assert ((decided.reason == "") == (decided.kept | (decided.error != ""))).all()
    return dict(zip(decided.scene_id, decided.reason, strict=True))


def kept(scenes: pd.DataFrame, **rules: Any) -> list[str]:
    return [name for name, reason in chosen(scenes, **rules).items() if not reason]


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("no_frames", 3, "too_short"),
        ("no_frames", 4, ""),
        ("no_frames", 60, ""),
        ("no_frames", 61, "too_long"),
        ("mean_velocity", 0.24, "static"),
        ("mean_velocity", 0.25, ""),
        ("max_rgb_diff", 4000, ""),
        ("max_rgb_diff", 4001, "cut_inside"),
    ],
)
def test_each_rule_keeps_its_own_threshold(name: str, value: float, reason: str):
    assert chosen(frame(scene("a.0_0", **{name: value})), min_velocity=0.25) == {"a.0_0": reason}


@pytest.mark.parametrize("feature", FEATURES[:-1])
def test_a_scene_without_a_feature_is_not_taken_for_a_good_one(feature: str):
    assert chosen(frame(scene("a.0_0", **{feature: NAN}))) == {"a.0_0": "unmeasured"}


def test_the_first_rule_that_holds_is_the_reason():
    bad: Row = {"mean_velocity": 0, "max_rgb_diff": 9000}
    unmeasured = dict.fromkeys(FEATURES[:-1], NAN)
    scenes = frame(
        scene("a.0_0", no_frames=1, **unmeasured),
        scene("a.1_0", no_frames=99, **unmeasured),
        scene("a.2_0", **bad | {"mse": NAN}),
        scene("a.3_0", **bad),
        scene("a.4_0", **bad | {"mean_velocity": 1}),
    )
    assert list(chosen(scenes).values()) == ["too_short", "too_long", "unmeasured", "static", "cut_inside"]
    # What was too long when it was scored is not measured by a higher bound.
    assert chosen(scenes, most=120)["a.1_0"] == "unmeasured"


def test_the_steadiest_motion_of_a_span_stays_and_a_still_scene_comes_last():
    scenes = frame(
        scene("a.0_0", mean_velocity=2, max_velocity=4),
        scene("a.0_1", mean_velocity=3, max_velocity=4),
        scene("a.0_2", mean_velocity=0, max_velocity=0),
        scene("a.1_0", mean_velocity=0, max_velocity=0),
    )
    assert chosen(scenes, min_velocity=0) == {"a.0_0": "same_span", "a.0_1": "", "a.0_2": "same_span", "a.1_0": ""}
    assert kept(scenes, min_velocity=0, count=1) == ["a.0_1"]


def test_ties_go_by_scene_id_then_by_video_whatever_the_order_of_the_rows():
    scenes = frame(
        scene("b.0_1"),
        scene("b.0_0"),
        scene("a.1_0"),
        scene("c.5_0", scene_id="a.1_0"),
        scene("a.0_9", mean_velocity=0),
    )
    for order in ([0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 0, 4, 1, 3]):
        shuffled = scenes.iloc[order].reset_index(drop=True)
        decided = decide(shuffled, config("out", select=SelectConfig(count=2)))
        assert sorted(decided[decided.kept][["video_id", "scene_id"]].itertuples(index=False)) == [
            ("a", "a.1_0"),
            ("c", "a.1_0"),
        ]
        assert chosen(shuffled)["b.0_1"] == "same_span"
        one = decide(shuffled, config("out", select=SelectConfig(count=1)))
        assert list(one.video_id[one.kept]) == ["a"]


def phash(number: int, bits: int = 0) -> bytes:
    """A hash far from those of other numbers, with so many bits turned over."""
    value = int.from_bytes(np.random.default_rng(number).bytes(24), "little")
    return (value ^ ((1 << bits) - 1)).to_bytes(24, "little")


def test_the_best_of_near_duplicates_stays_before_the_best_of_a_span():
    scenes = frame(
        scene("a.0_0", phash=phash(1), max_velocity=4),
        scene("b.0_0", phash=phash(1, 6), max_velocity=2),
        scene("b.0_1", phash=phash(2), max_velocity=3),
        scene("c.0_0", phash=phash(3), max_velocity=5),
    )
    assert kept(scenes) == ["a.0_0", "b.0_0", "c.0_0"]
    assert kept(scenes, dedupe=5) == ["a.0_0", "b.0_0", "c.0_0"]
    assert chosen(scenes, dedupe=6) == {"a.0_0": "near_duplicate", "b.0_0": "", "b.0_1": "same_span", "c.0_0": ""}
    assert chosen(scenes, dedupe=6, count=1)["c.0_0"] == "not_selected"
    # A share is one of what passes the rules.
    assert len(kept(scenes, dedupe=6, fraction=0.5)) == 2


def test_what_breaks_a_rule_stands_for_no_near_duplicate_but_links_them():
    scenes = frame(
        scene("a.0_0", phash=phash(1)),
        scene("b.0_0", phash=phash(1, 8), mean_velocity=0),
        scene("c.0_0", phash=phash(1, 16)),
        scene("d.0_0", phash=phash(1, 16), error="truncated"),
    )
    assert chosen(scenes, dedupe=8) == {"a.0_0": "", "b.0_0": "static", "c.0_0": "near_duplicate", "d.0_0": ""}


def test_scenes_without_a_hash_are_no_duplicates_of_each_other():
    scenes = frame(*(scene(f"{name}.0_0", phash=None) for name in "abc"))
    assert kept(scenes, dedupe=17) == ["a.0_0", "b.0_0", "c.0_0"]


def test_near_duplicates_of_a_corpus_tell_their_group(tmp_path: Path):
    settings = replace(config(tmp_path), select=SelectConfig(dedupe=8))
    store = Store(settings.output)
    first = write_scores(store, *(scene(f"a.{i}_0", ordinal=i, phash=phash(i)) for i in range(3)), film("a", 3))
    again = [scene(f"b.{i}_0", ordinal=i, phash=phash(i + 1, 3), max_velocity=i + 0.5, video_index=1) for i in range(3)]
    second = write_scores(store, *again, film("b", 3, video_index=1))
    write_plan(store, {"a": 3, "b": 3})
    select(settings)
    rows = table(settings, "scenes", SCENES)
    assert [(row["scene_id"], row["reason"], row["duplicate_group"]) for row in rows] == [
        ("a.0_0", "", None),
        ("a.1_0", "near_duplicate", 0),
        ("a.2_0", "", 1),
        ("b.0_0", "", 0),
        ("b.1_0", "near_duplicate", 1),
        ("b.2_0", "", None),
    ]
    places = table(settings, "places", PLACES)
    assert [(row["scene_id"], row["part"]) for row in places] == [
        (row["scene_id"], part) for row, part in zip(rows, [first] * 3 + [second] * 3, strict=True)
    ]
    select(replace(settings, select=SelectConfig()))
    rows = table(settings, "scenes", SCENES)
    assert all(row["kept"] and row["duplicate_group"] is None for row in rows)


@pytest.mark.parametrize("distance", [-1, 18])
def test_distances_that_are_not_searched_are_refused(distance: int):
    with pytest.raises(ValueError, match="0 to 17 bits"):
        SelectConfig(dedupe=distance)


def test_a_scene_that_breaks_a_rule_takes_no_place_in_its_span():
    scenes = frame(scene("a.0_0", no_frames=2), scene("a.0_1", error="decode_error"), scene("a.0_2", max_velocity=9))
    assert chosen(scenes) == {"a.0_0": "too_short", "a.0_1": "", "a.0_2": ""}
    assert kept(scenes) == ["a.0_1", "a.0_2"]
    assert not decide(scenes, config("out")).kept[1]


@pytest.mark.parametrize(
    ("rules", "number"),
    [
        ({"count": 0}, 0),
        ({"count": 3}, 3),
        ({"count": 1000}, 80),
        ({"fraction": 0}, 0),
        ({"fraction": 0.29}, 29),
        ({"fraction": 0.295}, 29),
        ({"fraction": 1}, 80),
        ({}, 80),
    ],
)
def test_a_count_or_a_share_of_those_that_pass_is_kept_the_best_first(rules: dict[str, Any], number: int):
    # 100 pass in 80 spans; 10 do not.
    sound = [scene(f"v.{i % 80}_{i // 80}", max_velocity=1 + i) for i in range(100)]
    scenes = frame(*sound, *(scene(f"w.{i}_0", no_frames=1) for i in range(10)))
    reasons = chosen(scenes, **rules)
    assert [name for name, reason in reasons.items() if not reason] == [f"v.{i}_0" for i in range(number)]
    assert list(reasons.values()).count("same_span") == 20
    assert list(reasons.values()).count("not_selected") == 80 - number


@pytest.fixture(scope="module")
def model() -> Filter:
    """A filter for which fast scenes are good."""
    return fit(fast_is_good(), FitConfig("out"))


def test_a_classifier_ranks_by_its_probability(model: Filter):
    speeds = {"a.0_0": 1, "a.0_1": 9, "a.1_0": 5, "a.2_0": 1, "a.3_0": 9, "a.4_0": 9}
    about: dict[str, Row] = {"a.3_0": {"no_frames": 1}, "a.4_0": {"error": "crashed"}}
    scenes = frame(*(scene(name, mean_velocity=v, **about.get(name, {})) for name, v in speeds.items()))
    decided = decide(scenes, config("out", select=SelectConfig(by="classifier", count=1)), model)
    assert list(decided.reason) == ["same_span", "", "not_selected", "not_selected", "too_short", ""]
    assert list(decided.kept) == [False, True, False, False, False, False]
    good = decided.probability > 0.5
    assert list(good) == [False, True, True, False, True, False]
    assert np.isnan(decided.probability[5])


def test_the_argument_is_left_as_it_was():
    scenes = frame(scene("a.0_0"), scene("a.0_1"), scene("a.1_0", error="crashed"))
    before = scenes.copy(deep=True)
    decide(scenes, config("out", select=SelectConfig(count=1)))
    pd.testing.assert_frame_equal(scenes, before)


def test_nothing_at_all_can_be_decided():
    empty = frame(scene("a.0_0")).iloc[:0]
    assert decide(empty, config("out")).empty


# ----------------------------------------------------------------------------------------------- with an output at hand


def an_output(folder: Path) -> CurationConfig:
    """Two sound videos and a film that breaks off, a scene that cannot be cut, a film that cannot be read."""
    settings = config(folder)
    store = Store(settings.output)
    rejected = scene("a.1_0", error="bad_span", step="plan", ordinal=2, message="the span ends before its start")
    write_plan(store, {"a": 2, "b": 1, "c": -1, "d": -1}, [rejected])
    write_scores(store, scene("a.0_0"), scene("a.0_1", ordinal=1, max_velocity=2), film("a", 2))
    write_scores(store, scene("b.0_0", no_frames=2), film("b", 1))
    truncated = {"error": "truncated", "message": "the film breaks off"}
    write_scores(store, scene("c.0_0"), scene("c.1_0", ordinal=1, **truncated), film("c", 2, **truncated))
    write_scores(store, film("d", 0, error="not_a_video", message="no container"))
    return settings


def table(settings: CurationConfig, name: str, schema: pa.Schema) -> list[Row]:
    return Store(settings.output).read_table(name, schema).to_pylist()


def times(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_every_scene_of_the_input_is_kept_dropped_or_failed(tmp_path: Path):
    settings = an_output(tmp_path)
    expected = select(settings).expected
    assert expected == 6
    scenes = table(settings, "scenes", SCENES)
    assert [(row["scene_id"], row["kept"], row["reason"], row["error"]) for row in scenes] == [
        ("a.0_0", True, "", ""),
        ("a.0_1", False, "same_span", ""),
        ("a.1_0", False, "", "bad_span"),
        ("b.0_0", False, "too_short", ""),
        ("c.0_0", True, "", ""),
        ("c.1_0", False, "", "truncated"),
    ]
    assert [row["mean_velocity"] for row in scenes] == [1, 1, None, 1, 1, None]
    assert [row["probability"] for row in scenes] == [None] * 6
    about = ("video_id", "scene_id", "step", "code", "message")
    assert [tuple(row[name] for name in about) for row in table(settings, "rejected", REJECTED)] == [
        ("a", "a.1_0", "plan", "bad_span", "the span ends before its start"),
        ("c", "", "cut", "truncated", "the film breaks off"),
        ("c", "c.1_0", "cut", "truncated", "the film breaks off"),
        ("d", "", "cut", "not_a_video", "no container"),
    ]
    counted = tally(Store(settings.output), expected)
    assert (counted.rows, counted.kept) == (6, 2)
    assert counted.dropped == {"same_span": 1, "too_short": 1}
    assert counted.failed == {"bad_span": 1, "truncated": 1}
    assert counted.lost_videos == {"not_a_video": 1}, "no video of which scenes were kept"
    assert counted.incomplete_videos == {"truncated": 1}
    assert counted.rows == counted.kept + sum(counted.dropped.values()) + sum(counted.failed.values())


def test_a_threshold_touches_nothing_but_the_decision(tmp_path: Path):
    settings = an_output(tmp_path)
    (tmp_path / "clips" / "a").mkdir(parents=True)
    (tmp_path / "clips" / "a" / "a.0_0.mp4").touch()
    select(settings)
    before = times(tmp_path)
    time.sleep(0.01)
    select(replace(settings, frames=FramesConfig(min=2), select=SelectConfig(count=2)))
    after = times(tmp_path)
    changed = {name.split("/")[0] for name in {*before, *after} if before.get(name) != after.get(name)}
    assert changed == {"scenes", "places", "rejected", "tables"}
    assert [row["scene_id"] for row in table(settings, "scenes", SCENES) if row["kept"]] == ["a.0_0", "b.0_0"]


def test_the_same_decision_twice_is_the_same_table(tmp_path: Path):
    settings = an_output(tmp_path)
    select(settings)
    first = table(settings, "scenes", SCENES), table(settings, "rejected", REJECTED)
    select(settings)
    assert (table(settings, "scenes", SCENES), table(settings, "rejected", REJECTED)) == first


def test_a_missing_row_stops_the_decision_and_leaves_the_one_before(tmp_path: Path):
    settings = an_output(tmp_path)
    select(settings)
    before = times(tmp_path / "scenes")
    (part,) = [p for p in Store(settings.output).parts("scores") if "b.0_0" in scene_ids(settings, p)]
    (tmp_path / "scores" / part).unlink()
    with pytest.raises(IncompleteError, match=r"\(b\)"):
        select(settings)
    assert times(tmp_path / "scenes") == before


def scene_ids(settings: CurationConfig, part: str) -> list[str]:
    read = Store(settings.output).read_part("scores", part)
    assert read is not None
    return read["scene_id"].to_pylist()


def test_a_filter_decides_over_the_output(tmp_path: Path, model: Filter):
    settings = replace(an_output(tmp_path), select=SelectConfig(by="classifier"))
    with pytest.raises(ValueError, match=r"filter\.json does not exist\. Label scenes"):
        select(settings)
    assert not (tmp_path / "scenes").exists()
    save_filter(model, str(tmp_path / "filter.json"))
    select(settings)
    scenes = {row["scene_id"]: row for row in table(settings, "scenes", SCENES)}
    assert scenes["a.0_0"]["probability"] == pytest.approx(float(model.probability(frame(scene("a.0_0")))[0]))
    assert scenes["b.0_0"]["probability"] is not None
    assert scenes["c.1_0"]["probability"] is None
    with pytest.raises(ValueError, match=r"other\.json"):
        select(replace(settings, filter=str(tmp_path / "other.json")))


def test_a_filter_of_features_measured_in_another_way_is_refused(tmp_path: Path, model: Filter):
    settings = replace(an_output(tmp_path), select=SelectConfig(by="classifier"))
    save_filter(model, str(tmp_path / "filter.json"))
    made = {"measured_by": {"motion.flow": "raft", "shots.width": 9}}
    Store(settings.output).write_json(made, "plan", "settings.json")
    with pytest.raises(ValueError, match=r"motion\.flow=farneback there, raft here"):
        select(settings)


def test_an_alarm_where_nothing_is_kept_and_where_features_have_drifted(tmp_path: Path):
    settings = an_output(tmp_path)
    select(replace(settings, select=SelectConfig(min_velocity=50)))
    counted = tally(Store(settings.output))
    assert alarms(counted, {}) == ["nothing is kept: all 4 measured scenes are dropped (static 3, too_short 1)"]
    select(settings)
    counted = tally(Store(settings.output))
    assert alarms(counted, {}) == []
    [drifted] = alarms(counted, {"mse": 0.61})
    assert "mse 0.61" in drifted


def test_a_kept_scene_that_could_not_be_written_is_failed(tmp_path: Path):
    settings = an_output(tmp_path)
    # A duplicate of a kept scene, which failed for itself.
    rejected = [
        scene("c.0_0", error="duplicate_id", step="plan", ordinal=7),
        scene("a.1_0", error="bad_span", step="plan"),
    ]
    write_plan(Store(settings.output), {"a": 2, "b": 1, "c": -1, "d": -1}, rejected)
    expected = select(settings).expected
    store = Store(settings.output)
    before = tally(store, expected)
    fail_scenes(store, [{"video_id": "c", "scene_id": "c.0_0", "error": "crashed", "message": "by signal 9"}])
    after = tally(store, expected)
    assert (after.rows, after.kept) == (before.rows, before.kept - 1)
    assert after.failed == {**before.failed, "crashed": 1}
    row = next(row for row in table(settings, "scenes", SCENES) if row["error"] == "crashed")
    assert (row["scene_id"], row["kept"], row["reason"], row["mean_velocity"]) == ("c.0_0", False, "", 1)
    assert table(settings, "rejected", REJECTED)[-1] == {
        "video_id": "c",
        "clip_id": "c.0.mp4",
        "scene_id": "c.0_0",
        "step": "export",
        "code": "crashed",
        "message": "by signal 9",
        "attempts": 1,
    }
    assert len(table(settings, "rejected", REJECTED)) == 6


def test_no_failure_in_export_changes_nothing(tmp_path: Path):
    settings = an_output(tmp_path)
    select(settings)
    before = table(settings, "scenes", SCENES), table(settings, "rejected", REJECTED)
    fail_scenes(Store(settings.output), [])
    # Nor does one of a scene that is not kept any more.
    fail_scenes(Store(settings.output), [{"video_id": "b", "scene_id": "b.0_0", "error": "crashed", "message": ""}])
    assert (table(settings, "scenes", SCENES), table(settings, "rejected", REJECTED)) == before


@pytest.mark.parametrize(
    "tampered",
    [
        {"kept": [True, True, False, False, True, False]},
        {"reason": [""] * 6},
        {"error": ["", "", "", "", "", "truncated"]},
        # Sums that agree by chance are no proof.
        {"kept": [True, True, False, False, False, False]},
    ],
)
def test_rows_that_are_not_one_thing_each_do_not_add_up(tmp_path: Path, tampered: dict[str, list[Any]]):
    settings = an_output(tmp_path)
    expected = select(settings).expected
    store = Store(settings.output)
    whole = store.read_table("scenes", SCENES).to_pydict()
    store.commit_table("scenes", [pa.Table.from_pydict(whole | tampered, SCENES)], "")
    with pytest.raises(IncompleteError, match="do not add up"):
        tally(store, expected)


@pytest.mark.parametrize("rows", [5, 7])
def test_a_row_too_few_or_too_many_does_not_add_up(tmp_path: Path, rows: int):
    settings = an_output(tmp_path)
    expected = select(settings).expected
    store = Store(settings.output)
    whole = store.read_table("scenes", SCENES)
    store.commit_table("scenes", [pa.concat_tables([whole, whole]).slice(0, rows)], "")
    with pytest.raises(IncompleteError, match="the input has 6"):
        tally(store, expected)
    assert tally(store).rows == rows


@pytest.mark.slow
def test_two_hundred_thousand_scenes(tmp_path: Path):
    settings = replace(config(tmp_path), select=SelectConfig(count=10_000))
    store = Store(settings.output)
    n = 200_000
    random = np.random.default_rng(0)
    number = np.arange(n)
    rows = pd.DataFrame([scene("v.0_0")]).loc[np.zeros(n, int)].reset_index(drop=True)
    # Videos of 40 scenes, spans of 2.
    rows["video_id"] = [f"v{i}" for i in number // 40]
    rows["clip_id"] = [f"v{i // 40}.{i % 40 // 2}.mp4" for i in number]
    rows["scene_id"] = [f"v{i // 40}.{i % 40 // 2}_{i % 2}" for i in number]
    rows["ordinal"] = number % 40
    rows["no_frames"] = random.integers(2, 70, n)
    rows["max_velocity"] = random.uniform(1, 3, n)
    rows.loc[random.random(n) < 0.1, "error"] = "decode_error"
    for start in range(0, n, n // 4):
        part = rows.iloc[start : start + n // 4].sample(frac=1, random_state=0)
        store.write_part("scores", pa.Table.from_pandas(part, SCORES, preserve_index=False), [str(start)])
    write_plan(store, {f"v{i}": 40 for i in range(n // 40)})
    expected = select(settings).expected
    counted = tally(store, expected)
    assert expected == counted.rows == n
    assert counted.kept == 10_000
    assert counted.failed == {"decode_error": int((rows.error != "").sum())}
    assert counted.dropped["too_short"] == int(((rows.error == "") & (rows.no_frames < 4)).sum())
    assert [row["scene_id"] for row in table(settings, "scenes", SCENES)[:3]] == ["v0.0_0", "v0.0_1", "v0.1_0"]
    assert len(store.parts("scenes")) == 2


@pytest.mark.parametrize(
    ("about", "reason"),
    [
        ({"longest_hold_s": 3.0}, ""),
        ({"longest_hold_s": 3.1}, "frozen"),
        ({"longest_hold_s": 1200.0, "end_s": 1204.0, "no_frames": 16}, "frozen"),
        ({"longest_hold_s": 1200.0, "no_frames": 1, "mean_velocity": NAN}, "frozen"),
        # Sixty samples, a picture each, of a steady film and of one with a picture a second.
        ({"end_s": 15.042, "no_frames": 60}, ""),
        ({"end_s": 60.0, "no_frames": 60, "longest_hold_s": 1.0}, "too_long"),
        # A row of an earlier version.
        ({"longest_hold_s": None}, ""),
    ],
)
def test_held_pictures_and_seconds_count(about: Row, reason: str):
    assert chosen(frame(scene("v.0_0", **about), scene("w.0_0")))["v.0_0"] == reason
    if reason == "frozen":
        assert chosen(frame(scene("v.0_0", **about), scene("w.0_0")), max_hold_s=2000.0)["v.0_0"] != "frozen"


def test_rows_of_earlier_versions_are_selected_and_fail_as_before(tmp_path: Path):
    settings = config(tmp_path)
    store = Store(settings.output)
    old = pa.schema([field for field in SCORES if field.name not in LATER])
    rows = [scene("v.0_0"), scene("v.1_0", no_frames=2), film("v", 2)]
    store.write_part("scores", pa.Table.from_pylist(rows, old), ["old"])
    write_plan(store, {"v": 2})
    select(settings)
    for name in ("v.0_0", "v.1_0"):
        [row] = [row for row in table(settings, "scenes", SCENES) if row["scene_id"] == name]
        assert row["reason"] == ("" if name == "v.0_0" else "too_short")
        assert row["longest_hold_s"] is row["clock_jumps"] is row["interlaced"] is row["bar_top"] is None
    fail_scenes(store, [{"video_id": "v", "scene_id": "v.0_0", "error": "export_failed", "message": "no"}])
    assert [row["error"] for row in table(settings, "scenes", SCENES)] == ["export_failed", ""]

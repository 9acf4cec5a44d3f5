"""CLIPScores of films and texts in known colours: what is compared with what, what is left out, what is kept."""

import json
import math
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from actors.core.store import Store
from actors.curation.cutting.scenes import FramesConfig
from actors.curation.evaluating.clip_scores import clip_score
from actors.curation.selecting.select_settings import SelectConfig
from actors.curation.tables import CAPTIONS, EVALUATION
from actors.models.clip import EmbeddingsConfig
from pipelines.curation.evaluating.evaluate import Plan, comparisons, draw, evaluate, plan_evaluation, totals
from pipelines.curation.exporting.digests import TOTALS
from pipelines.curation.exporting.export import proven
from pipelines.curation.kept import KEYS, kept_scenes
from pipelines.curation.selecting.select import select, tell_captions
from pipelines.curation.settings import CurationConfig, EvaluateConfig
from tests.pipelines.curation.outputs import config, film, scene, write_plan, write_scores
from tests.support import colours
from tests.support.colours import BLUE, GREEN, RED

BOTH = 100 * 0.5**0.5
"""Score of "red blue" for what is red."""
SECONDS = 2
FILMS = {
    "a": [*(RED, GREEN) * 4, *(RED,) * 8],
    "b": [RED, GREEN, RED, GREEN, BLUE, GREEN, BLUE, GREEN, *(BLUE,) * 8],
    "c": [*(GREEN,) * 24],
}
"""Scenes of 8 frames each: what colour a frame has."""
SCENES: dict[str, tuple[str, str, float, float]] = {
    "a.0_0": ("green", "red", 0, 100),
    "a.1_0": ("red blue", "red", BOTH, 100),
    "b.0_0": ("red", "blue red", 50, BOTH),
    "b.1_0": ("dark", "", 0, math.nan),
    "c.0_0": ("green", "green red", 100, BOTH),
    "c.1_0": ("", "green", math.nan, 100),
    "c.2_0": ("blue", "green", 0, 100),
    "d.0_0": ("red", "red", math.nan, math.nan),
}
"""Caption, recaption and their scores; of b.1_0 the recaption failed, the film d is gone."""
KEPT = ("a.0_0", "a.1_0", "b.0_0", "b.1_0")


def write_captions(store: Store, recaptions: dict[str, str]) -> None:
    """Write captions/ as `recaption` does, and tell scenes/ of it."""
    rows = [
        {"video_id": name[0], "scene_id": name, "recaption": text, "code": "" if text else "caption_failed"}
        for name, text in recaptions.items()
    ]
    store.replace_table("captions", [pa.Table.from_pylist(rows, CAPTIONS)])
    tell_captions(store)


def output(folder: Path, clip_folder: str, **groups: Any) -> CurationConfig:
    """An output with films that keeps four scenes, has four others of their length, a short one and a failed one."""
    folder.mkdir()
    model = EmbeddingsConfig(model=clip_folder, dtype="float32", images_per_call=3)
    made = config(folder / "out", **{"frames": FramesConfig(size=32), "embeddings": model, **groups})
    store, rows = Store(made.output), []
    for name, pictures in FILMS.items():
        colours.film(folder / f"{name}.mkv", pictures)
    for name, (caption, *_) in SCENES.items():
        start = SECONDS * int(name[2])
        times = {"start_s": float(start), "end_s": float(start + SECONDS), "uri": str(folder / f"{name[0]}.mkv")}
        rows.append(scene(name, caption=caption, mean_velocity=1.0 if name in KEPT else 0.0, **times))
    rows += [scene("e.0_0", no_frames=3), scene("e.1_0", error="bad_scene_cut")]
    write_scores(store, *rows, *(film(name, 1) for name in "abcde"))
    write_plan(store, {"a": 2, "b": 2, "c": 3, "d": 1, "e": 2})
    select(made)
    write_captions(store, {name: recaption for name, (_, recaption, *_) in SCENES.items()})
    return made


def table(made: CurationConfig) -> pd.DataFrame:
    rows = Store(made.output).read_table("evaluation", EVALUATION).to_pandas()
    assert not rows.duplicated(["video_id", "scene_id"]).any()
    return rows.set_index("scene_id").sort_index()


@pytest.fixture(scope="module")
def proof(ray_cluster: None, clip_folder: str, tmp_path_factory: pytest.TempPathFactory) -> CurationConfig:
    """An output that has been evaluated."""
    folder = tmp_path_factory.mktemp("proof") / "films"
    made = output(folder, clip_folder, evaluate=EvaluateConfig(resamples=199))
    evaluate(made, plan_evaluation(made))
    return made


@pytest.fixture(scope="module")
def result(proof: CurationConfig) -> dict[str, Any]:
    return Store(proof.output).read_json("evaluation.json")


def test_scores_are_those_of_every_second_frame(proof: CurationConfig):
    rows = table(proof)
    assert set(KEPT) < set(rows.index) <= set(SCENES)
    for name, row in rows.iterrows():
        *texts, caption, recaption = SCENES[str(name)]
        assert [row.caption, row.recaption] == texts
        assert row.score_caption == pytest.approx(caption, abs=0.5, nan_ok=True)
        assert row.score_recaption == pytest.approx(recaption, abs=0.5, nan_ok=True)
        assert row.frames == (0 if name == "d.0_0" else 4)
    assert rows.kept[rows.kept].index.to_list() == list(KEPT)
    assert rows.error["d.0_0"] == "not_found" and "d.mkv" in rows.message["d.0_0"]
    assert (rows.error.drop("d.0_0") == "").all()


def test_each_comparison_has_its_means_and_says_what_it_leaves_out(proof: CurationConfig, result: dict[str, Any]):
    rows = table(proof)
    drawn = rows[rows.random].index
    assert len(drawn) == 4 and "d.0_0" in drawn and len(set(drawn) & set(KEPT)) == 1
    pairs, recaptions, captions = result["comparisons"]
    assert pairs["paired"] and not recaptions["paired"]
    assert pairs["means"] == pytest.approx([(200 + BOTH) / 3, (50 + BOTH) / 3], abs=0.5)
    assert pairs["difference"] == pytest.approx(50, abs=0.5)
    assert (pairs["scenes"], pairs["videos"], pairs["left_out"]) == ([3, 3], 2, {"caption_failed": 1})
    for compared, column in ((recaptions, 3), (captions, 2)):
        scores = [np.array([SCENES[name][column] for name in group], float) for group in (KEPT, drawn)]
        assert compared["means"] == pytest.approx([np.nanmean(group) for group in scores], abs=0.5)
        assert compared["scenes"] == [np.isfinite(group).sum() for group in scores]
    assert recaptions["left_out"] == {"caption_failed": 1, "not_found": 1}
    assert captions["left_out"]["not_found"] == 1
    assert (result["kept"], result["random"], result["both"], result["scored"]) == (4, 4, 1, 7)
    for compared in result["comparisons"]:
        assert compared["interval"][0] <= compared["difference"] <= compared["interval"][1]
        assert 0 < compared["p"] <= 1


def test_the_references_totals_are_means(result: dict[str, Any]):
    pairs, recaptions, _ = result["comparisons"]
    assert list(result["totals"]) == list(TOTALS)
    assert result["totals"]["total_caption_score"] == pairs["means"][1]
    assert result["totals"]["total_recaption_score"] == pairs["means"][0]
    assert result["totals"]["total_score_selected"] == recaptions["means"][0]
    assert result["totals"]["total_score_random"] == recaptions["means"][1]


@pytest.fixture
def copy(proof: CurationConfig, tmp_path: Path) -> CurationConfig:
    """The same output to change something in."""
    shutil.copytree(proof.output, tmp_path / "out")
    return replace(proof, output=str(tmp_path / "out"))


def rewrite(made: CurationConfig, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    """Change the stored scores."""
    store = Store(made.output)
    rows = change(store.read_table("evaluation", EVALUATION).to_pandas())
    made_anew = pa.Table.from_pandas(rows, schema=EVALUATION, preserve_index=False)
    store.commit_table("evaluation", [made_anew], "", absorbed=store.parts("evaluation"))


def todo(made: CurationConfig) -> list[str]:
    return sorted(row["scene_id"] for row in plan_evaluation(made).todo)


def test_only_what_is_missing_is_scored(ray_cluster: None, proof: CurationConfig, copy: CurationConfig):
    """One row was lost with a kill, one recaption is another; a score that is there is believed, whatever it says."""
    before = table(proof)
    rewrite(copy, lambda rows: rows[rows.scene_id != "c.0_0"].replace({"score_recaption": {100.0: 12.5}}))
    recaptions = {name: recaption for name, (_, recaption, *_) in SCENES.items()}
    write_captions(Store(copy.output), recaptions | {"a.1_0": "green red"})
    assert todo(copy) == ["a.1_0", "c.0_0", "d.0_0"]
    assert evaluate(copy, plan_evaluation(copy))["scored"] == 3
    after = table(copy)
    assert after.index.equals(before.index)
    assert after.score_recaption["a.0_0"] == 12.5
    assert after.score_recaption["a.1_0"] == pytest.approx(BOTH, abs=0.5)
    same = ["b.0_0", "b.1_0", "c.0_0", "d.0_0"]
    pd.testing.assert_frame_equal(after.loc[same], before.loc[same])
    # What did not succeed is tried again, the rest is not.
    assert todo(copy) == ["d.0_0"]


def test_scores_of_two_devices_are_told(copy: CurationConfig, result: dict[str, Any]):
    assert result["notes"] == [] and set(table(copy).computed.drop("d.0_0")) == {"cpu float32"}
    elsewhere = {"computed": {"cpu float32": "cuda float32"}}
    rewrite(copy, lambda rows: pd.concat([rows[rows.scene_id == "c.0_0"].replace(elsewhere), rows]))
    plan = plan_evaluation(copy)
    assert not [row for row in plan.todo if row["scene_id"] == "c.0_0"]
    [note] = evaluate(copy, replace(plan, todo=[]))["notes"]
    assert note.startswith("CLIPScores of 5 scenes were computed on cpu in float32, of 1 on cuda in float32: ")


def test_scores_of_another_model_do_not_count(copy: CurationConfig):
    assert todo(copy) == ["d.0_0"]
    half = replace(copy, embeddings=replace(copy.embeddings, dtype="bfloat16"))
    assert todo(half) == table(copy).index.to_list()


def test_a_sound_row_counts_where_there_is_one_with_an_error_too(copy: CurationConfig):
    rewrite(copy, lambda rows: pd.concat([rows, rows[rows.error != ""].assign(error="", frames=4, score_caption=1.0)]))
    assert todo(copy) == []


def test_each_text_is_embedded_once(copy: CurationConfig):
    other = replace(copy, embeddings=replace(copy.embeddings, dtype="bfloat16"))
    assert plan_evaluation(other).texts == ["blue red", "dark", "green", "green red", "red", "red blue"]


def test_an_output_that_keeps_nothing_has_nothing_to_prove(copy: CurationConfig):
    Store(copy.output).replace_table("captions", [])
    select(replace(copy, select=SelectConfig(count=0)))
    with pytest.raises(ValueError, match="keeps no scene"):
        plan_evaluation(copy)


def test_totals_belong_to_the_scenes_and_recaptions_that_were_evaluated(copy: CurationConfig, result: dict[str, Any]):
    store = Store(copy.output)
    kept = list(kept_scenes(store))
    # Of the four that were chosen one has no recaption, and is kept no more.
    assert [row["scene_id"] for row in kept] == list(KEPT[:3])
    assert proven(store, kept[::-1]) == result["totals"]
    assert proven(store, kept[:2]) == dict.fromkeys(TOTALS)
    write_captions(store, dict.fromkeys(KEPT, "other words"))
    assert proven(store, kept_scenes(store)) == dict.fromkeys(TOTALS)


def test_the_population_is_what_is_sound_and_of_a_length_to_be_kept(copy: CurationConfig):
    made = replace(copy, evaluate=EvaluateConfig(seed=1))
    Store(made.output).replace_table("captions", [])
    select(replace(made, select=SelectConfig(min_velocity=0)))
    rows = plan_evaluation(made).rows
    # Nothing is static, so all that is of such a length is chosen, and drawn.
    assert set(rows.scene_id[rows.kept]) == set(rows.scene_id[rows.random]) == set(SCENES)


def test_a_draw_is_fair_and_only_the_seed_changes_it():
    scenes = {(f"v{i % 7}", f"s{i}") for i in range(40)}

    def drawn_of(scenes: set[tuple[str, str]], count: int, seed: int, size: int = 7) -> list[tuple[str, str]]:
        """From tables of so many scenes."""
        ordered = sorted(scenes)
        parts = [ordered[start : start + size] for start in range(0, len(ordered), size)]
        tables = [pa.table(dict(zip(KEYS, zip(*part, strict=True), strict=True))) for part in parts]
        return [(row["video_id"], row["scene_id"]) for row in draw(tables, count, seed).to_pylist()]

    drawn = drawn_of(scenes, 10, seed=0)
    assert drawn_of(scenes, 10, seed=0, size=40) == drawn != drawn_of(scenes, 10, seed=1)
    assert drawn_of(scenes, 4, seed=0) == drawn[:4]
    assert set(drawn_of(scenes, 100, seed=0)) == scenes
    counts = Counter(scene for seed in range(400) for scene in drawn_of(scenes, 10, seed))
    # Each is drawn in a quarter of 400 draws: a standard deviation is 8.7.
    assert len(counts) == 40 and min(counts.values()) > 65 and max(counts.values()) < 135
    more = scenes | {("new", f"s{i}") for i in range(4)}
    assert len(set(drawn) - set(drawn_of(more, 10, seed=0))) <= 4


def evaluated(**columns: Any) -> pd.DataFrame:
    """Rows of evaluation/: two kept scenes and two random ones."""
    rows = {
        "video_id": ["a", "b", "c", "d"],
        "scene_id": ["a.0_0", "b.0_0", "c.0_0", "d.0_0"],
        "kept": [True, True, False, False],
        "random": [False, False, True, True],
        "caption": ["words"] * 4,
        "recaption": ["better words"] * 4,
        "caption_code": [""] * 4,
        "score_caption": [20.0, 22.0, 19.0, 21.0],
        "score_recaption": [25.0, 26.0, 22.0, 20.0],
        "error": [""] * 4,
    }
    return pd.DataFrame(rows | columns)


@pytest.mark.parametrize(
    ("columns", "comparable"),
    [
        ({}, True),
        ({"caption": [""] * 4}, True),
        ({"caption": [""] * 4, "recaption": [""] * 4}, False),
        # A comparison has two sides.
        ({"caption": ["words", "", "", ""], "recaption": ["", "words", "", ""]}, False),
        ({"caption": ["words", "", "", ""], "recaption": ["words", "", "", ""]}, True),
        ({"caption": ["", "", "words", ""], "recaption": ["", "", "words", ""]}, False),
        ({"caption": ["words", "", "words", ""], "recaption": [""] * 4}, True),
    ],
)
def test_what_can_be_compared_is_known_before(columns: dict[str, Any], comparable: bool):
    rows = evaluated(**columns)
    scores = {f"score_{name}": [1.0 if text else math.nan for text in rows[name]] for name in ("caption", "recaption")}
    assert Plan(rows, [], []).comparable == comparable
    assert comparable == any(one["means"] is not None for one in comparisons(rows.assign(**scores), 99, 0))


def test_without_captions_the_rest_is_compared():
    rows = evaluated(caption=[""] * 4, score_caption=[math.nan] * 4)
    pairs, recaptions, captions = comparisons(rows, 99, 0)
    assert pairs["difference"] is pairs["p"] is pairs["scenes"] is captions["means"] is None
    assert pairs["left_out"] == {"no_caption": 2} and captions["left_out"] == {"no_caption": 4}
    assert recaptions["means"] == (25.5, 21.0) and recaptions["left_out"] == {}
    assert totals([pairs, recaptions]) == dict(zip(TOTALS, (None, None, 21.0, 25.5), strict=True))


def test_without_recaptions_captions_are_compared():
    rows = evaluated(recaption=[""] * 4, caption_code=["not_asked"] * 3 + [""], score_recaption=[math.nan] * 4)
    pairs, recaptions, captions = comparisons(rows, 99, 0)
    assert pairs["means"] is recaptions["means"] is None
    assert recaptions["left_out"] == {"not_asked": 3, "no_recaption": 1}
    assert captions["difference"] == 1


def test_what_json_has_no_word_for_is_null():
    one = evaluated().iloc[[0, 2]].assign(video_id="a")
    for compared in comparisons(one, 99, 0):
        assert compared["interval"] is compared["effect"] is None
        json.dumps(compared, allow_nan=False)


def test_clip_score_cuts_each_frame_at_zero():
    frames = np.array([[1, 0], [0, 1], [-1, 0]], np.float32)
    assert clip_score(frames, np.array([1, 0], np.float32)) == pytest.approx(100 / 3)
    assert clip_score(frames[:1], np.array([0.6, 0.8], np.float32)) == pytest.approx(60)

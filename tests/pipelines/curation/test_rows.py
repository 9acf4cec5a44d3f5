"""Which rows of scores/ count, and whether they add up to the plan."""

import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from actors.core.store import Store
from actors.curation.tables import SCORES
from pipelines.curation.rows import IncompleteError, inventory, rows_now
from tests.pipelines.curation.outputs import film, scene, write_plan, write_scores


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


def expected(store: Store) -> int:
    return inventory(store)[0]


def costs(store: Store) -> dict[str, Any]:
    return {name: value for name, value in inventory(store)[1].items() if name != "notes"}


def test_rows_come_in_the_order_of_the_plan_scenes_apart_from_films(store: Store):
    bad = scene("a.1_0", error="bad_span", step="plan", ordinal=1)
    write_plan(store, {"b": 1, "a": 2, "c": -1}, [bad | {"video_index": 1}])
    write_scores(store, film("c", 2), scene("c.1_0", ordinal=1), film("a", 2), scene("c.0_0"))
    write_scores(store, scene("a.2_0", ordinal=2), film("b", 1), scene("a.0_0"), scene("b.0_0"))
    scenes, films, videos, _ = rows_now(store)
    assert list(scenes.scene_id) == ["b.0_0", "a.0_0", "a.1_0", "a.2_0", "c.0_0", "c.1_0"]
    assert list(films.video_id) == ["b", "a", "c"]
    assert videos.to_dict() == {"b": 1, "a": 2, "c": -1}
    assert expected(store) == 6


def test_the_place_of_a_video_is_that_of_the_last_plan(store: Store):
    write_scores(store, scene("b.0_0", video_index=0), scene("b.1_0", video_index=0, ordinal=1))
    write_plan(store, {"a": 1, "b": 2})
    write_scores(store, scene("a.0_0", video_index=0))
    assert list(rows_now(store)[0].scene_id) == ["a.0_0", "b.0_0", "b.1_0"]


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (1, 3, 0, 2)])
def test_of_rows_made_twice_a_sound_one_counts_else_the_last(store: Store, order: tuple[int, ...]):
    write_plan(store, {"a": 2})
    rows = [
        scene("a.0_0", error="crashed", written=3),
        scene("a.0_0", width=111, written=2),
        scene("a.1_0", error="crashed", written=1, ordinal=1),
        scene("a.1_0", error="truncated", written=2, ordinal=1),
    ]
    for i in order:
        write_scores(store, rows[i])
    scenes = rows_now(store, ["width"])[0]
    assert list(scenes.error) == ["", "truncated"]
    assert scenes.width[0] == 111
    assert expected(store) == 2


def test_of_two_sound_rows_the_last_counts(store: Store):
    write_plan(store, {"a": 1})
    write_scores(store, scene("a.0_0", no_frames=80, mean_velocity=math.nan, written=1))
    # Another part, since the same row in a part of its own would take the place of the first.
    write_scores(store, scene("a.0_0", no_frames=80, mean_velocity=2.0, written=2), film("a", 1))
    assert list(rows_now(store, ["mean_velocity"])[0].mean_velocity) == [2.0]


def test_videos_outside_the_plan_are_left_out(store: Store):
    write_plan(store, {"a": 1})
    write_scores(store, scene("a.0_0"), scene("b.0_0"), film("b", 1))
    scenes, films, *_ = rows_now(store)
    assert list(scenes.scene_id) == ["a.0_0"]
    assert films.empty
    assert expected(store) == 1


def test_an_output_without_a_plan_says_only_that(store: Store, caplog: pytest.LogCaptureFixture):
    with pytest.raises(ValueError, match="has no plan"):
        rows_now(store)
    assert not caplog.records


def test_a_plan_of_rejected_rows_only_is_a_plan(store: Store):
    write_plan(store, {}, [scene("a.0_0", error="duplicate_id", step="plan")])
    assert expected(store) == 1


def test_before_anything_is_measured_all_is_missing(store: Store):
    write_plan(store, {"a": 1, "b": -1})
    with pytest.raises(IncompleteError, match=r"2 videos have scenes without a row \(a, b\)"):
        expected(store)


@pytest.mark.parametrize("rows", [[scene("a.0_0")], [scene("a.0_0"), film("a", 2)]])
def test_a_missing_scene_is_told(store: Store, rows: list[dict]):
    write_plan(store, {"a": 2})
    write_scores(store, *rows)
    with pytest.raises(IncompleteError, match=r"1 videos have scenes without a row \(a\): run the same command again"):
        expected(store)


def test_a_film_without_its_own_row_is_not_complete(store: Store):
    write_plan(store, {"a": -1})
    write_scores(store, scene("a.0_0"), scene("a.1_0"))
    with pytest.raises(IncompleteError, match="without a row"):
        expected(store)
    write_scores(store, film("a", 2))
    assert expected(store) == 2


def test_what_cannot_be_cut_is_no_scene_to_wait_for_but_one_to_count(store: Store):
    rejected = [scene("a.1_0", error="bad_span", step="plan"), film("b", 0, error="no_scenes", step="plan")]
    write_plan(store, {"a": 1, "b": 0}, rejected)
    write_scores(store, scene("a.0_0"))
    assert expected(store) == 2


def test_scenes_of_another_input_are_told(store: Store):
    write_plan(store, {"a": 1})
    write_scores(store, scene("a.0_0"), scene("a.0_1"))
    with pytest.raises(IncompleteError, match="the input has changed"):
        expected(store)


def test_a_retry_that_was_ended_has_to_go_on(store: Store):
    write_plan(store, {"a": -1})
    write_scores(store, scene("a.0_0"), film("a", 1, error="crashed"))
    assert expected(store) == 1
    write_scores(store, scene("a.1_0"))
    with pytest.raises(IncompleteError, match="run the same command again"):
        expected(store)


def test_measurements_are_those_of_what_was_done(store: Store):
    write_plan(store, {"a": 2, "b": 1, "c": -1}, [scene("a.2_0", error="bad_span", step="plan")])
    write_scores(
        store,
        *(scene("a.0_0", latents_s=0.5), scene("a.1_0", latents_s=1.5)),
        film("a", 2, fetch_s=4.0, cut_s=2.0, decoded=100, source=100, decoder="pyav"),
        *(scene("b.0_0", error="fetch_gone", step="fetch"), film("b", 1, fetch_s=6.0)),
        *(
            scene("c.0_0", error="truncated"),
            film("c", 1, cut_s=2.0, decoded=105, source=100, decoder="torchcodec+pyav"),
        ),
    )
    assert costs(store) == {
        "stages": {
            "fetch": {"rows": 2, "seconds": 10.0, "rows_per_s": 0.2},
            "cut": {"rows": 3, "seconds": 4.0, "rows_per_s": 0.75},
            "latents": {"rows": 2, "seconds": 2.0, "rows_per_s": 1.0},
        },
        "films": {
            **{"decoded": 205, "source": 200, "worst_ratio": 1.05, "worst": "c"},
            "decoders": {"pyav": 1, "torchcodec+pyav": 1},
        },
    }


def test_scores_of_two_devices_are_told_and_those_of_earlier_versions_are_unknown(store: Store):
    gpu, cpu = "latents: cuda bfloat16", "latents: cpu bfloat16"
    write_plan(store, {"a": 4})
    write_scores(store, scene("a.0_0", computed=gpu), scene("a.1_0", computed=gpu), film("a", 4, computed=""))
    old = pa.Table.from_pylist([scene("a.2_0")], SCORES).drop_columns(["computed"])
    store.write_table(old, "scores", "part-old.parquet")
    assert not any("computed" in note for note in rows_now(store).notes)
    write_scores(store, scene("a.3_0", computed=cpu), scene("a.1_0", error="crashed", computed=cpu))
    [note] = [note for note in rows_now(store).notes if "computed" in note]
    assert note.startswith("latents of 2 scenes were computed on cuda in bfloat16, of 1 on cpu in bfloat16: ")
    assert "the same kind of device" in note


def test_scenes_without_motion_vectors_are_told(store: Store):
    write_plan(store, {"a": 3})
    write_scores(store, *(scene(f"a.{i}_0", computed="motion: farneback, latents: cpu float32") for i in range(2)))
    [note] = [note for note in rows_now(store).notes if note.startswith("motion")]
    assert note.startswith("motion.flow=vectors: 2 scenes have no motion vectors")
    write_scores(store, scene("a.2_0", computed="motion: vectors, latents: cpu float32"), film("a", 3))
    mixture, again = (note for note in rows_now(store).notes if note.startswith("motion"))
    assert again == note
    assert mixture.startswith("motion of 2 scenes was computed by farneback, of 1 by vectors: ")


def test_nothing_was_done_and_that_is_measured_too(store: Store):
    write_plan(store, {"a": 1})
    write_scores(store, scene("a.0_0", error="not_found", step="fetch"))
    assert costs(store) == {"stages": {}, "films": {"decoded": 0, "source": 0, "decoders": {}}}

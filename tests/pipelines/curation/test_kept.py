"""Kept scenes are gone through by batches, and the batches make no difference."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from actors.core.store import Store
from actors.curation.tables import CAPTIONS, NEW_CAPTIONS
from pipelines.curation import kept
from pipelines.curation.exporting import digests
from pipelines.curation.kept import KEYS, Names, kept_scenes
from pipelines.curation.measuring import whole_videos
from pipelines.curation.rows import IncompleteError
from pipelines.curation.selecting.select import select
from tests.pipelines.curation.outputs import config, scene, write_plan, write_scores


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Five kept scenes of two videos in parts that are in no order; one was measured twice, some have captions."""
    settings = config(tmp_path)
    store = Store(settings.output)
    write_plan(store, {"b": 2, "a": 3})
    write_scores(store, scene("a.2_0", ordinal=2, caption="old"), scene("b.0_0"))
    write_scores(store, scene("a.0_0"), scene("b.1_0", ordinal=1, uri="before.mp4", written=1.0))
    write_scores(store, scene("a.1_0", ordinal=1), scene("b.1_0", ordinal=1, uri="after.mp4", written=2.0, width=32))
    said = [("a", "a.0_0", "improved", "first", 1.0), ("a", "a.0_0", "improved", "second", 2.0)]
    said += [("b", "b.0_0", "tags", "t", 1.0), ("b", "b.0_0", "short", "s", 1.0), ("x", "x.0_0", "short", "s", 1.0)]
    for number, (video_id, scene_id, style, text, written) in enumerate(said):
        about = {"video_id": video_id, "scene_id": scene_id, "style": style, "recaption": text, "written": written}
        row = dict.fromkeys(CAPTIONS.names) | {"code": "", "film": 0, "version": 0} | about
        store.write_part("captions", pa.Table.from_pylist([row], CAPTIONS), [str(number)])
    failed = dict.fromkeys(CAPTIONS.names) | {
        "film": 0,
        "version": 0,
        "video_id": "a",
        "scene_id": "a.0_0",
        "style": "improved",
        "code": "caption_failed",
        "written": 3.0,
    }
    store.write_part("captions", pa.Table.from_pylist([failed | {"recaption": ""}], CAPTIONS), ["failed"])
    new = {"video_id": "a", "scene_id": "a.2_0", "caption": "new"}
    store.replace_table("plan/captions", [pa.Table.from_pylist([new], NEW_CAPTIONS)])
    select(settings)
    return store


@pytest.mark.parametrize("size", [2, 50_000])
def test_rows_come_in_the_order_of_the_selection_with_what_counts_now(
    store: Store, monkeypatch: pytest.MonkeyPatch, size: int
):
    monkeypatch.setattr(kept, "BATCH_ROWS", size)
    monkeypatch.setattr(kept, "ROWS", size)
    scenes = kept_scenes(store)
    rows = list(scenes)
    assert len(scenes) == 5
    assert [row["scene_id"] for row in rows] == ["b.0_0", "b.1_0", "a.0_0", "a.1_0", "a.2_0"]
    assert [row["caption"] for row in rows] == ["", "", "", "", "new"]
    assert [row["recaption"] for row in rows] == ["", "", "second", "", ""]
    assert [row["captions"] for row in rows] == [{"short": "s", "tags": "t"}, {}, {}, {}, {}]
    assert list(rows[0]["captions"]) == ["short", "tags"]
    assert [(row["width"], row["film"], row["bar_top"]) for row in rows[:2]] == [(640, 0, 0), (32, 0, 0)]
    some = scenes.where(np.array([False, True, True, False, True]))
    assert list(some) == [rows[1], rows[2], rows[4]]
    assert list(some.where(np.array([True, False, True])).rows(*KEYS)) == [
        {"video_id": "b", "scene_id": "b.1_0"},
        {"video_id": "a", "scene_id": "a.2_0"},
    ]


def test_scenes_without_a_row_are_counted_over_all_batches(store: Store, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kept, "BATCH_ROWS", 2)
    for name in store.parts("scores")[:2]:
        store.remove_part("scores", name)
    left = {row["scene_id"] for part in store.read_parts("scores") for row in part.to_pylist()}
    with pytest.raises(IncompleteError, match=f"has {5 - len(left)} scenes without a sound row"):
        kept_scenes(store)


def test_names_with_one_and_the_same_first_hash_are_told_apart(monkeypatch: pytest.MonkeyPatch):
    inner = kept._hashes
    monkeypatch.setattr(kept, "_hashes", lambda names: np.stack([inner(names)[0] % 2, inner(names)[1]]))
    some = [f"name {i}" for i in range(20)]
    names = Names([np.array(some[:7], object), pa.array(some[7:])])
    assert names.places(pa.array(["else", *some[::-1], "other"])).tolist() == [-1, *range(19, -1, -1), -1]


def test_a_digest_of_scenes_is_the_same_in_any_order_and_sorted_on_disk(monkeypatch: pytest.MonkeyPatch):
    rows: list[Any] = [{"video_id": "a", "scene_id": f"é{i}", "recaption": i % 3 and f"\n{i}"} for i in range(11)]
    whole = digests.digest(rows)
    monkeypatch.setattr(digests, "LINES", 3)
    assert digests.digest(rows[::-1]) == whole != digests.digest(rows[1:])


def test_parts_that_are_looked_into_one_by_one_have_the_pictures_of_their_whole_videos(
    store: Store, monkeypatch: pytest.MonkeyPatch
):
    pictures = {}
    for size in (256, 1):
        monkeypatch.setattr(whole_videos, "AT_ONCE", size)
        items = whole_videos.pictures_of(store, [{"part": part} for part in store.parts("scores")])
        pictures[size] = {item["part"]: json.loads(item["pictures"]) for item in items}
    assert pictures[1] == pictures[256]
    tables = zip(pictures[1], store.read_parts("scores"), strict=True)
    part_of = {scene_id: name for name, table in tables for scene_id in table["scene_id"].to_pylist()}
    whole = [[part_of[f"a.{i}_0"], f"a.{i}_0", [0.0, 0.0, 1.0, 1.0]] for i in range(3)]
    for name in (part_of["a.0_0"], part_of["a.1_0"], part_of["a.2_0"]):
        assert pictures[1][name]["a"] == sorted(whole)

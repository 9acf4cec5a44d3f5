"""Parts of scores/ become few, and whoever reads an output sees what it saw before, whenever compaction was killed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from actors.core import storage
from actors.core.catalog import GENERATION, ReplacedError
from actors.core.store import Store
from actors.curation import compacting
from actors.curation.compacting import SHARD, compact, renew_places, shards
from actors.curation.cutting.pictures import stored
from actors.curation.tables import KEYFRAMES, PICTURES, THUMBNAILS
from pipelines.curation.rows import rows_now
from tests.pipelines.curation.outputs import scene, write_measured, write_plan, write_scores

SCENES = [[f"{video}.0_{number}" for video in some] for number, some in enumerate(["ca", "bd", "ab", "cd", "ad"])]
"""The scenes of each part: each film has scenes in several."""


class Killed(BaseException):
    """The process ends here."""


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return output(str(tmp_path / "o") if request.param == "folder" else request.getfixturevalue("s3"))


@pytest.fixture
def local(tmp_path: Path) -> Store:
    return output(str(tmp_path / "o"))


def output(root: str) -> Store:
    store = Store(root)
    write_plan(store, {name: sum(name in "".join(some) for some in SCENES) for name in "abcd"})
    for number, some in enumerate(SCENES):
        write_part(store, some, number)
    return store


def write_part(store: Store, some: list[str], number: int) -> str:
    rows = [scene(name, ordinal=number, mean_velocity=hue(name), written=float(number)) for name in some]
    part = write_scores(store, *rows)
    for folder, schema in (("thumbnails", THUMBNAILS), ("keyframes", KEYFRAMES)):
        pictures = [{"video_id": name[0], "scene_id": name} | picture(schema, name) for name in some]
        store.write_table(pa.Table.from_pylist(pictures, schema), folder, part)
    measured = [{"row": i, "video_id": name[0], "scene_id": name, "hue": hue(name)} for i, name in enumerate(some)]
    write_measured(store, "colour", {"hue": pa.float32()}, part, measured)
    return part


def picture(schema: pa.Schema, name: str) -> dict[str, bytes]:
    return dict.fromkeys(schema.names[2:], name.encode())


def hue(name: str) -> float:
    return float(1000 * ord(name[0]) + int(name[-1]))


def seen(store: Store) -> dict[str, tuple[Any, ...]]:
    """What readers have of each scene: its score, a family's, and its pictures."""
    scenes = rows_now(store, ["mean_velocity", "hue"]).scenes
    assert not scenes.duplicated(["video_id", "scene_id"]).any()
    found = {}
    for row in scenes.to_dict("records"):
        key = row["video_id"], row["scene_id"]
        files = stored(store, row[PICTURES], {key})[key]
        found[row["scene_id"]] = row["mean_velocity"], row["hue"], files[0]
    return found


EXPECTED = {name: (hue(name), hue(name), name.encode()) for some in SCENES for name in some}


def raw(store: Store) -> list[str]:
    """The scenes of all parts as they lie there, those that stand twice too."""
    return sorted(name for part in store.read_parts("scores", ["scene_id"]) for name in part["scene_id"].to_pylist())


def files(store: Store) -> list[str]:
    names = (entry.name for entry in storage.listing(store.root, (".parquet",)))
    return [name for name in names if not name.startswith("plan/")]


def test_many_parts_become_one_and_each_scene_keeps_its_scores_and_pictures(store: Store):
    assert seen(store) == EXPECTED
    done = compact(store)
    assert (done.parts, done.rows, done.made) == (5, 10, 1)
    assert len(store.parts("scores")) == 1 and raw(store) == sorted(EXPECTED)
    assert seen(store) == EXPECTED
    assert len(files(store)) == 4, "scores, a family, thumbnails and key frames: what was compacted is gone"


def test_rows_of_a_shard_and_a_video_lie_together(local: Store):
    compact(local)
    (table,) = local.read_parts("scores", [SHARD, "video_id", "ordinal"])
    rows = list(zip(*(table[name].to_pylist() for name in (SHARD, "video_id", "ordinal")), strict=True))
    assert rows == sorted(rows)
    assert table[SHARD].to_pylist() == shards(table["video_id"]).to_pylist()
    assert shards(pa.array(["", "123456789"])).to_pylist() == [0, 0xCBF4], "CRC-32's check value is 0xCBF43926"


def test_new_parts_join_the_compacted_one_and_nothing_is_done_twice(store: Store):
    compact(store)
    write_part(store, ["e.0_7", "f.0_8"], 8)
    write_plan(store, {**{name: sum(name in "".join(some) for some in SCENES) for name in "abcd"}, "e": 1, "f": 1})
    expected = EXPECTED | {name: (hue(name), hue(name), name.encode()) for name in ("e.0_7", "f.0_8")}
    assert seen(store) == expected
    assert compact(store).parts == 2
    assert len(store.parts("scores")) == 1 and seen(store) == expected
    assert compact(store).parts == 0


def test_a_part_that_a_family_has_yet_to_measure_stays_apart(local: Store):
    part = write_scores(local, scene("a.0_9", ordinal=9))
    compact(local)
    assert [name for name in local.parts("scores") if not name.startswith(GENERATION)] == [part]


def steps(monkeypatch: pytest.MonkeyPatch, number: int) -> Iterator[int]:
    """Kill at the n-th write or removal of a file."""
    count = 0

    def counted(function: Any) -> Any:
        def step(*arguments: Any) -> Any:
            nonlocal count
            count += 1
            if count == number:
                raise Killed
            return function(*arguments)

        return step

    with monkeypatch.context() as patched:
        for name in ("write_bytes", "create_bytes", "delete"):
            patched.setattr(storage, name, counted(getattr(storage, name)))
        yield number


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "s3"])
def test_killed_between_any_two_steps_no_row_is_lost_or_read_twice(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
):
    number, killed = 0, True
    while killed:
        number += 1
        root = str(tmp_path / str(number)) if kind == "folder" else f"{request.getfixturevalue('s3')}/{number}"
        store = output(root)
        # The steps of a killed process do not clean up.
        monkeypatch.setattr(compacting.Replacement, "__exit__", lambda *_: None)
        for _ in steps(monkeypatch, number):
            try:
                compact(store)
                killed = False
            except Killed:
                pass
        assert raw(store) == sorted(EXPECTED) and seen(store) == EXPECTED, f"killed at step {number}"
        compact(store)
        assert raw(store) == sorted(EXPECTED) and seen(store) == EXPECTED, f"killed at step {number}, and again"
        if kind == "s3" and number > 12:
            # Steps after it only remove files.
            break
    assert number > 12


def test_what_a_killed_compaction_left_goes_with_the_next(local: Store, monkeypatch: pytest.MonkeyPatch):
    for _ in steps(monkeypatch, 8):
        with pytest.raises(Killed):
            compact(local)
    write_part(local, ["a.0_6", "b.0_6"], 6)
    compact(local)
    assert len(files(local)) <= 8 and all(name.rpartition("/")[2].startswith(GENERATION) for name in files(local))


def test_a_part_that_is_written_again_after_it_was_compacted_counts(local: Store, monkeypatch: pytest.MonkeyPatch):
    first = local.parts("scores")[0]
    before = local.read_part("scores", first)
    assert before is not None
    monkeypatch.setattr(storage, "delete", lambda uri: None)
    compact(local)
    assert raw(local) == sorted(EXPECTED), "the compacted parts still lie there"
    newer = before.set_column(before.column_names.index("written"), "written", pa.array([99.0] * len(before)))
    newer = newer.set_column(newer.column_names.index("mean_velocity"), "mean_velocity", pa.array([7.0] * 2, "float32"))
    local.write_table(newer, "scores", first)
    again = rows_now(local, ["mean_velocity"]).scenes.set_index("scene_id").mean_velocity
    assert (again[before["scene_id"].to_pylist()] == 7.0).all() and len(again) == len(EXPECTED)


def test_of_two_compactions_at_once_one_succeeds(local: Store, monkeypatch: pytest.MonkeyPatch):
    commit = compacting.Replacement.commit

    def late(new: Any, *arguments: Any, **named: Any) -> None:
        monkeypatch.setattr(compacting.Replacement, "commit", commit)
        compact(local)
        commit(new, *arguments, **named)

    monkeypatch.setattr(compacting.Replacement, "commit", late)
    assert compact(local).made == 0, "the other one was first"
    assert raw(local) == sorted(EXPECTED) and seen(local) == EXPECTED


def test_who_reads_a_part_that_was_compacted_meanwhile_is_told(local: Store):
    reading = local.read_parts("scores", ["scene_id"])
    next(reading)
    compact(local)
    with pytest.raises(ReplacedError):
        list(reading)


def test_a_torn_part_stays_and_its_rows_are_made_again(local: Store):
    torn = local.parts("scores")[0]
    storage.write_bytes(local.uri("scores", torn), storage.read_bytes(local.uri("scores", torn))[:100])
    assert compact(local).parts == 4
    assert torn in local.parts("scores")


@pytest.mark.parametrize("damage", ["torn", "missing"])
def test_a_damaged_compacted_part_is_told_and_left_out(local: Store, damage: str, caplog: pytest.LogCaptureFixture):
    compact(local)
    uri = local.uri("scores", local.parts("scores")[0])
    data = storage.read_bytes(uri)
    if damage == "torn":
        storage.write_bytes(uri, data[:1000])
    else:
        storage.delete(uri)
    assert rows_now(local).scenes.empty
    assert "made again" in caplog.text


def test_places_name_the_new_parts(local: Store):
    old = local.parts("scores")
    rows = [{"video_id": "a", "scene_id": "a.0_0", "part": old[0], PICTURES: old[0]}]
    local.commit_table("places", [pa.Table.from_pylist(rows, compacting.PLACES)], "")
    done = compact(local)
    renew_places(local, done)
    (place,) = local.read_table("places", compacting.PLACES).to_pylist()
    assert place["part"] == local.parts("scores")[0] and place[PICTURES] in local.parts("thumbnails")


def test_parts_are_as_large_as_told(local: Store, monkeypatch: pytest.MonkeyPatch):
    size = max(entry.size for entry in storage.listing(local.uri("scores")))
    monkeypatch.setattr(compacting, "TARGET_BYTES", 2 * size)
    monkeypatch.setattr(compacting, "SMALL_BYTES", size // 4)
    assert compact(local).made == 2
    assert seen(local) == EXPECTED
    rows = np.array([part.rows for part in local.divided("scores")[0]])
    assert rows.tolist() == [4, 4] and len(local.parts("scores")) == 3

"""Label files in the reference's form, and how often people agree."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from actors.core import storage
from pipelines.curation.selecting.labels import Agreement, kappa, majority, read_labels, write_labels


def write(path: Path, tree: Any) -> str:
    path.write_text(tree if isinstance(tree, str) else json.dumps(tree))
    return str(path)


@pytest.mark.parametrize(
    "path",
    [
        "frames/v.mp4/v.mp4.0_1",
        "frames\\v.mp4\\v.mp4.0_1",
        "/data/x/frames/v.mp4/v.mp4.0_1/",
        "C:\\f\\v.mp4\\v.mp4.0_1\\",
    ],
)
def test_a_frames_path_names_its_scene_however_it_is_written(path: str, tmp_path: Path):
    file = write(tmp_path / "anna.json", {path: 1, "frames/w/w.0_0": 0})
    assert read_labels(file) == {"anna": {("v.mp4", "v.mp4.0_1"): 1, ("w", "w.0_0"): 0}}


def test_what_is_written_is_the_reference_form_and_is_read_back(tmp_path: Path):
    labels = {("b", "b.0_0"): 1, ("ä", "ä.0_0"): 0}
    write_labels(str(tmp_path / "labels" / "anna.json"), labels)
    assert json.loads((tmp_path / "labels" / "anna.json").read_text()) == {"frames/b/b.0_0": 1, "frames/ä/ä.0_0": 0}
    write_labels(str(tmp_path / "labels" / "bert.json"), {})
    read = read_labels(str(tmp_path / "labels"))
    assert read == {"anna": labels, "bert": {}}
    assert list(read["anna"]) == list(labels)


def test_labels_lie_in_a_store_too(s3: str):
    write_labels(f"{s3}/labels/anna.json", {("a", "a.0_0"): 1})
    assert read_labels(f"{s3}/labels") == read_labels(f"{s3}/labels/anna.json") == {"anna": {("a", "a.0_0"): 1}}


@pytest.mark.parametrize("name", ["labels", "anna.json"])
def test_nothing_there_is_no_labels(name: str, tmp_path: Path):
    assert read_labels(str(tmp_path / name)) == {}


def test_only_the_folder_itself_holds_labels(tmp_path: Path):
    storage.write_bytes(str(tmp_path / "old" / "anna.json"), b"{}")
    storage.write_bytes(str(tmp_path / "notes.txt"), b"")
    assert read_labels(str(tmp_path)) == {}


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"frames/a/a.0_0": 2}, "'frames/a/a.0_0' is 2"),
        ({"frames/a/a.0_0": -1}, "'frames/a/a.0_0' is -1"),
        ({"frames/a/a.0_0": True}, "'frames/a/a.0_0' is true"),
        ({"frames/a/a.0_0": 1.0}, "'frames/a/a.0_0' is 1.0"),
        ({"frames/a/a.0_0": "1"}, "'frames/a/a.0_0' is \"1\""),
        ({"frames/a/a.0_0": None}, "'frames/a/a.0_0' is null"),
        ({"a.0_0": 1}, "'a.0_0' names no scene"),
        ({"": 1}, "'' names no scene"),
        ({"frames/../a.0_0": 1}, "names no scene"),
        ({"frames//a.0_0": 1}, "names no scene"),
        ({"frames/a/a.0_0": 1, "frames\\a\\a.0_0": 0}, "twice"),
        ('{"frames/a/a.0_0": 1, "frames/a/a.0_0": 0}', "twice"),
        ([], "one object"),
        ([["frames/a/a.0_0", 1]], "one object"),
        ("1", "one object"),
        ('{"frames/a/a.0_0": 1', "not JSON"),
        ("", "not JSON"),
    ],
)
def test_what_is_no_label_is_refused_with_file_and_key(tree: Any, message: str, tmp_path: Path):
    file = write(tmp_path / "anna.json", tree)
    with pytest.raises(ValueError, match=r"anna\.json") as refused:
        read_labels(file)
    assert message in str(refused.value)


def test_the_majority_decides_and_a_tie_is_left_out():
    a, b, c, d = (("v", name) for name in "abcd")
    said = [{a: 1, b: 0, c: 1}, {a: 1, b: 0, c: 0}, {a: 0, d: 1}]
    assert majority(said) == {a: 1, b: 0, d: 1}


def people(table: dict[tuple[int, int], int]) -> dict[str, dict[tuple[str, str], int]]:
    """Two people whose labels make this table of counts."""
    pairs = [pair for pair, count in table.items() for _ in range(count)]
    return {name: {("v", str(i)): pair[side] for i, pair in enumerate(pairs)} for side, name in enumerate("xy")}


@pytest.mark.parametrize(
    ("table", "share", "value"),
    [
        # Fifty grant proposals, the usual example of κ: 20 yes-yes, 15 no-no, 5 and 10 apart; .7 of .5 by chance.
        ({(1, 1): 20, (1, 0): 5, (0, 1): 10, (0, 0): 15}, 0.7, 0.4),
        ({(1, 1): 3, (0, 0): 1}, 1, 1),
        ({(1, 0): 2, (0, 1): 2}, 0, -1),
        ({(1, 1): 1, (1, 0): 1, (0, 1): 1, (0, 0): 1}, 0.5, 0),
        # One calls all good: whatever the other says, chance explains it.
        ({(1, 1): 9, (1, 0): 1}, 0.9, 0),
    ],
)
def test_kappa_of_known_tables(table: dict[tuple[int, int], int], share: float, value: float):
    found = kappa(people(table))["x", "y"]
    assert found.scenes == sum(table.values())
    assert (found.share, found.kappa) == pytest.approx((share, value), abs=1e-12)


def test_kappa_is_unknown_where_both_have_one_answer_only():
    found = kappa(people({(1, 1): 4}))["x", "y"]
    assert (found.scenes, found.share) == (4, 1)
    assert math.isnan(found.kappa)


def test_kappa_looks_at_shared_scenes_of_each_pair_only():
    a, b, c = (("v", name) for name in "abc")
    labels = {"z": {a: 1, b: 0, c: 1}, "x": {a: 1, b: 0}, "y": {c: 0}}
    assert kappa(labels) == {("x", "z"): Agreement(2, 1, 1), ("y", "z"): Agreement(1, 0, 0)}

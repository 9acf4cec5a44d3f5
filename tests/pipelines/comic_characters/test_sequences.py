"""Sequences of panels as people have labelled them, and who is known to be someone else."""

import json
from pathlib import Path

import numpy as np
import pytest

from pipelines.comic_characters.sequences import known_to_differ, read_sequences
from tests.support.comics import write_comic


def test_sequences_of_a_comic(tmp_path: Path) -> None:
    rows = write_comic(tmp_path)
    sequences = read_sequences(str(tmp_path / "sequences.json"))
    assert len(sequences) == 6 and sequences[0].name == "s0_0_0+s0_0_1+s0_0_2+s0_0_3"
    found = {
        (s, page, kind, i)
        for one in sequences
        for s, page, *parts in one.instances
        for kind, i in zip(("face", "body"), parts, strict=True)
        if i is not None
    }
    assert found == {(row["series_id"], row["page_id"], row["type"], row["index"]) for row in rows}
    assert {one.series for one in sequences} == {"s0", "s1", "s2"}


@pytest.mark.parametrize(
    ("instance", "problem"),
    [
        ({}, "a face, a body or both"),
        ({"face": "s_1_0_body_0"}, "a face, a body or both"),
        ({"face": "s_1_0_face_0", "body": "s_1_1_body_0"}, "in one panel"),
        ({"face": "nobody"}, "is no instance"),
    ],
)
def test_what_is_no_instance_is_told_with_its_place(tmp_path: Path, instance: dict[str, str], problem: str) -> None:
    good = {"seq_id": "a", "annotations": [{"charId": "x", "charInstances": [{"face": "s_1_0_face_0"}]}]}
    bad = {"seq_id": "b", "annotations": [{"charId": "x", "charInstances": [instance]}]}
    path = tmp_path / "sequences.json"
    path.write_text(json.dumps([good, bad]))
    with pytest.raises(ValueError, match=f"sequence 1: .*{problem}"):
        read_sequences(str(path))
    path.write_text("[")
    with pytest.raises(ValueError, match="not JSON"):
        read_sequences(str(path))


def test_only_what_is_said_is_known() -> None:
    """Characters a, b and, uncertain, c in one sequence; d in another one of the series; e in another series."""
    differ = known_to_differ(
        np.array(["a", "a", "b", "c", "d", "e"]),
        np.array([0, 0, 0, 0, 1, 2]),
        np.array(["s", "s", "s", "s", "s", "t"]),
        np.array([False, False, False, True, False, False]),
    )
    pairs = {(a, b) for a, b in zip(*np.nonzero(differ), strict=True) if a < b}
    assert pairs == {(0, 2), (1, 2), *((n, 5) for n in range(5))}
    assert (differ == differ.T).all()


def test_a_face_of_two_characters_is_refused_with_both(tmp_path: Path) -> None:
    face = {"face": "1_2_0_face_0"}
    people = [{"charId": name, "charInstances": [face]} for name in ("Ann", "Bob")]
    file = tmp_path / "sequences.json"
    file.write_text(json.dumps([{"seq_id": "a", "annotations": people}]))
    with pytest.raises(ValueError, match="1_2_0_face_0 is listed under two characters, Ann and Bob"):
        read_sequences(str(file))
    # Who may be somebody else may have the same face.
    people[1]["uncertain"] = True
    file.write_text(json.dumps([{"seq_id": "a", "annotations": people}]))
    assert len(read_sequences(str(file))[0].instances) == 2

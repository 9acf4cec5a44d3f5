"""Who is who: by the sequences, or by lists of characters; and who is in no sequence with another."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from actors.core.errors import UserError
from pipelines.comic_characters.labels import read_labels, without_lone
from pipelines.comic_characters.learning.metric_losses import metric_loss, relations
from pipelines.comic_characters.sequences import Sequence, known_to_differ
from pipelines.comic_characters.settings import FineTuneConfig


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    """Ann and Bob in one sequence, Ann again in another under a charId of its own, and somebody of no list."""
    sequences = [
        {"seq_id": "a", "annotations": [_of("1", "s_0_0", 0), _of("2", "s_0_0", 1)]},
        {"seq_id": "b", "annotations": [_of("3", "s_1_0", 0), _of("4", "s_1_0", 1)]},
    ]
    (tmp_path / "validation_sequences.json").write_text(json.dumps(sequences))
    lists = {"faces": {"Ann": ["s_0_0_face_0", "s_1_0_face_0"]}, "bodies": {"Bob": ["s_0_0_body_1"], "Ann": []}}
    for name, tree in lists.items():
        (tmp_path / f"val_char_{name}.json").write_text(json.dumps(tree))
    return tmp_path


def _of(character: str, place: str, number: int) -> dict[str, object]:
    instance = {kind: f"{place}_{kind}_{number}" for kind in ("face", "body")}
    return {"charId": character, "charInstances": [instance]}


def test_lists_join_a_character_across_sequences_and_leave_others_out(labels: Path) -> None:
    assert [one.characters for one in read_labels(str(labels), "validation", "sequences")] == [["1", "2"], ["3", "4"]]
    found = read_labels(str(labels), "validation", "lists")
    assert [one.characters for one in found] == [["Ann", "Bob"], ["Ann"]]
    assert found[1].instances == [("s", "1_0", 0, 0)] and found[1].uncertain == [False]
    # Under any of both names.
    (labels / "val_char_faces.json").rename(labels / "validation_char_faces.json")
    assert read_labels(str(labels), "validation", "lists") == found


def test_lists_that_contradict_themselves_are_refused(labels: Path) -> None:
    (labels / "val_char_bodies.json").write_text(json.dumps({"Bob": ["s_0_0_body_0"]}))
    with pytest.raises(UserError, match=r"s_0_0_face_0 Ann and s_0_0_body_0 Bob"):
        read_labels(str(labels), "validation", "lists")
    (labels / "val_char_bodies.json").write_text(json.dumps({"Bob": ["x"], "Ann": ["x"]}))
    with pytest.raises(UserError, match="x is listed under two characters, Bob and Ann"):
        read_labels(str(labels), "validation", "lists")
    (labels / "val_char_bodies.json").unlink()
    with pytest.raises(UserError, match=r"none exists. Set identities=sequences"):
        read_labels(str(labels), "validation", "lists")


def test_the_only_character_of_a_series_is_a_negative_for_others_unless_left_out() -> None:
    alone = Sequence("b", "t", [("t", "0_0", 0, 0), ("t", "0_1", 0, 0)], ["C", "C"], [False, False])
    two = Sequence("a", "s", [("s", "0_0", 0, 0), ("s", "0_0", 1, 1)], ["A", "B"], [False, False])
    kept = without_lone([two, alone])
    assert kept[0] == two and not kept[1].instances
    rows = {
        "character": torch.tensor([0, 1, 2, 2]),
        "sequence": torch.tensor([0, 0, 1, 1]),
        "series": torch.tensor([0, 0, 1, 1]),
        "uncertain": torch.zeros(4, dtype=torch.bool),
    }
    same, differ = relations(rows)
    assert same[2, 3] and differ[:2, 2:].all()
    columns = [rows[name].numpy() for name in ("character", "sequence", "series", "uncertain")]
    assert np.array_equal(differ.numpy(), known_to_differ(*columns))
    # Their gradient reaches characters of the other series.
    vectors = normalize(torch.tensor([[1.0, 0.1], [-1, 0], [1, 0], [0.9, 0.1]])).requires_grad_()
    whole, _ = torch.autograd.grad(metric_loss(FineTuneConfig(), vectors, rows), [vectors, vectors])
    first = {name: column[:2] for name, column in rows.items()}
    (without,) = torch.autograd.grad(metric_loss(FineTuneConfig(), vectors[:2], first), vectors)
    assert not torch.allclose(whole[0], without[0])

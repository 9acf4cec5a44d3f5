"""Answers for faces beside annotated people: which face is whose, and what each answer is worth."""

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from actors.core import storage
from actors.core.errors import UserError
from actors.core.store import Store
from actors.media.movienet import Appearance, Box
from jobs.movie_characters.__main__ import app
from pipelines.movie_characters.cast import CastConfig, iou, matched, plan_cast
from pipelines.movie_characters.face_answers import ANSWERS


def person(body: Box | None, face: Box | None = None) -> Appearance:
    return Appearance("a", 0, 0, body, face, "nm1")


def test_overlap_of_boxes():
    assert iou((0, 0, 2, 2), (0, 0, 2, 2)) == 1 and iou((0, 0, 1, 1), (2, 2, 3, 3)) == 0
    assert iou((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(1 / 3)


def test_a_face_belongs_to_the_body_whose_head_it_is():
    # One stands before the other: both faces lie in the wide body, and one in the other, too.
    wide, narrow = person((0.1, 0.1, 0.9, 1.0)), person((0.6, 0.2, 0.8, 1.0))
    faces = [(0.66, 0.26, 0.74, 0.36), (0.46, 0.15, 0.54, 0.27)]
    assert list(matched([wide, narrow], faces, 0.5)) == [1, 0]
    assert list(matched([wide, narrow], faces[:1], 0.5)) == [None, 0]
    assert list(matched([wide], [], 0.5)) == [None]
    # A face outside of all bodies is nobody's.
    assert list(matched([narrow], [(0.0, 0.0, 0.1, 0.1)], 0.5)) == [None]


def test_an_annotated_face_wants_an_overlap():
    known = person((0.0, 0.0, 1.0, 1.0), (0.4, 0.1, 0.6, 0.3))
    near, off = (0.42, 0.1, 0.6, 0.3), (0.6, 0.1, 0.8, 0.3)
    assert list(matched([known], [off, near], 0.5)) == [1]
    assert list(matched([known], [off], 0.5)) == [None] and list(matched([known], [near], 0.95)) == [None]


def annotated(shot: int, body: list[int], pid: str) -> dict[str, Any]:
    """A person as MovieNet marks one, in pixels of another size than the key frame's."""
    about = {"shot_idx": shot, "img_idx": 0, "resolution": [400, 200], "face": None, "pid": pid}
    return {"id": f"{shot}{pid}", **about, "body": {"type": "detected", "bbox": body}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three key frames of 200 x 100: two people in the first, one of them and a stranger in the second."""
    (tmp_path / "images" / "tt1").mkdir(parents=True)
    (tmp_path / "annotations").mkdir()
    (tmp_path / "gallery").mkdir()
    for shot in range(3):
        Image.new("RGB", (200, 100)).save(tmp_path / "images" / "tt1" / f"shot_{shot:04d}_img_0.jpg")
    for name in ("nm1_1", "nm2_1"):
        Image.new("RGB", (8, 8)).save(tmp_path / "gallery" / f"{name}.jpg")
    left, right = [0, 0, 160, 200], [240, 0, 400, 200]
    cast = [annotated(0, left, "nm1"), annotated(0, right, "nm2")]
    cast += [annotated(1, left, "others"), annotated(1, right, "nm1")]
    (tmp_path / "annotations" / "tt1.json").write_text(json.dumps({"cast": cast}))
    answers = [(0, 30, "nm1"), (0, 150, "nm1"), (1, 30, "unknown"), (2, 30, "nm2")]
    rows = [
        {
            **{"image": f"shot_{shot:04d}_img_0.jpg", "face": number, "left": x, "right": x + 20.0, "top": 5.0},
            **{"bottom": 25.0, "height": 20.0, "answer": answer, "identity": "nm1_1", "score": 0.9, "margin": 0.1},
        }
        for number, (shot, x, answer) in enumerate(answers)
    ]
    Store(str(tmp_path / "out")).write_table(pa.Table.from_pylist(rows, ANSWERS), "face_answers.parquet")
    return tmp_path


def test_every_annotated_person_is_right_or_says_what_was_answered(folder: Path):
    given = {"input": "out", "images": "images", "annotations": "annotations", "gallery": "gallery", "output": "scores"}
    arguments = [f"{name}={folder / where}" for name, where in given.items()]
    told = CliRunner().invoke(app, ["score", "cast", *arguments])
    assert told.exit_code == 0 and "people of the gallery: 33.3 %" in told.output, told.output
    rows = pq.read_table(io.BytesIO(storage.read_bytes(str(folder / "scores" / "cast.parquet")))).to_pylist()
    assert [(row["image"][5:9], row["person"], row["outcome"]) for row in rows] == [
        ("0000", "nm1", "right"),
        ("0000", "nm2", "other"),
        ("0001", "", "stranger_right"),
        ("0001", "nm1", "no_face"),
    ]
    found = json.loads((folder / "scores" / "cast.json").read_text())
    assert found["known"]["boxes"] == 3 and found["known_with_a_face"]["share"] == 0.5
    assert found["strangers"]["share"] == 1 and found["known"]["low"] < 1 / 3 < found["known"]["high"]


def test_films_without_annotations_are_told(folder: Path):
    images, gallery, none = (str(folder / name) for name in ("images", "gallery", "none"))
    config = CastConfig(str(folder / "out"), str(folder / "scores"), images, none, gallery)
    with pytest.raises(UserError, match="no key frame with annotated people"):
        plan_cast(config)

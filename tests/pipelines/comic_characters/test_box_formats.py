"""Boxes of datasets in their own formats, as rows of the CSV; and back to COCO JSON without a loss."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from actors.comic_characters.crops import BOX
from actors.core.errors import UserError
from pipelines.comic_characters.box_formats import coco, read_dataset
from pipelines.comic_characters.crop import checked, located, read_boxes
from pipelines.comic_characters.detect import convert
from pipelines.comic_characters.settings import ComicsConfig

MANGA = """<?xml version="1.0" encoding="UTF-8"?>
<book title="ARMS"><characters>
  <character id="00000003" name="A"/><character id="00000010" name="B"/><character id="000000ff" name="_Other"/>
</characters><pages>
  <page index="0" width="1654" height="1170"/>
  <page index="6" width="1654" height="1170">
    <frame id="1" xmin="10" ymin="10" xmax="400" ymax="500"/>
    <frame id="2" xmin="420" ymin="10" xmax="800" ymax="500"/>
    <body id="3" xmin="500" ymin="20" xmax="700" ymax="480" character="00000010"/>
    <face id="4" xmin="550" ymin="30" xmax="650" ymax="130" character="00000010"/>
    <body id="5" xmin="50" ymin="20" xmax="200" ymax="480" character="000000ff"/>
    <face id="6" xmin="100" ymin="30" xmax="150" ymax="90" character="000000ff"/>
    <text id="7" xmin="1" ymin="1" xmax="9" ymax="9">words</text>
  </page>
</pages></book>"""
COMIX = {
    "page_id": "c00004_p006",
    "book_id": "c00004",
    "page_number": 6,
    "image": {"file": "c00004_p006.jpg", "width": 1280, "height": 1920},
    "detections": {
        "fasterrcnn": {
            "panels": [{"bbox": [700, 10, 1200, 900], "score": 0.9}, {"bbox": [10, 10, 680, 900], "score": 0.9}],
            "characters": [{"bbox": [800, 100, 1000, 800], "score": 0.8}],
            "faces": [{"bbox": [850, 110, 950, 220], "score": 0.7}],
            "textboxes": [{"bbox": [1, 1, 5, 5]}],
        }
    },
}
COCO: dict[str, Any] = {
    "images": [{"id": 7, "file_name": "books/one/p_12.png", "width": 600, "height": 900}],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 1, "bbox": [0, 0, 300, 900]},
        {"id": 2, "image_id": 7, "category_id": 1, "bbox": [310, 0, 290, 900]},
        {"id": 3, "image_id": 7, "category_id": 2, "bbox": [320, 20, 100, 300], "attributes": {"character": "Anna"}},
        {"id": 4, "image_id": 7, "category_id": 7, "bbox": [330, 30, 40, 40], "attributes": {"character": "Anna"}},
        {"id": 5, "image_id": 7, "category_id": 4, "bbox": [1, 1, 2, 2]},
    ],
    "categories": [{"id": i, "name": name} for i, name in ((1, "panel"), (2, "character"), (4, "text"), (7, "face"))],
}


def told(path: Path, reading: Any = None) -> list[tuple[Any, ...]]:
    """Series, page, type, index, char_index and box of each row, as `crop` reads them."""
    boxes = checked(read_boxes(str(path), reading))
    assert set(boxes.error) == {""}
    boxes["char_index"] = boxes.char_index.fillna(-1)
    return [
        tuple(row) for row in boxes[["series_id", "page_id", "type", "index", "char_index", *BOX]].to_numpy().tolist()
    ]


def test_manga109(tmp_path: Path) -> None:
    path = tmp_path / "ARMS.xml"
    path.write_text(MANGA, encoding="utf-8")
    assert told(path) == [
        # Read from the right; whoever has no name of their own is paired by place.
        ("ARMS", "006_0", "body", 0, 1, 500, 20, 700, 480),
        ("ARMS", "006_0", "face", 0, 1, 550, 30, 650, 130),
        ("ARMS", "006_1", "body", 0, 2, 50, 20, 200, 480),
        ("ARMS", "006_1", "face", 0, 2, 100, 30, 150, 90),
    ]
    assert [row[1] for row in told(path, "left_to_right")] == ["006_0", "006_0", "006_1", "006_1"]
    assert told(path, "left_to_right")[0][5] == 50
    (tmp_path / "images/ARMS").mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(tmp_path / "images/ARMS/006.jpg")
    found = located(checked(read_boxes(str(tmp_path))), str(tmp_path / "images"))
    assert set(found.picture) == {str(tmp_path / "images/ARMS/006.jpg")}


def test_comix(tmp_path: Path) -> None:
    (tmp_path / "c00004_p006.json").write_text(json.dumps(COMIX))
    assert told(tmp_path) == [
        ("c00004", "p006_1", "body", 0, 0, 800, 100, 1000, 800),
        ("c00004", "p006_1", "face", 0, 0, 850, 110, 950, 220),
    ]
    Image.new("RGB", (9, 9)).save(tmp_path / "c00004_p006.jpg")
    assert located(checked(read_boxes(str(tmp_path))), str(tmp_path)).error.tolist() == ["", ""]


def test_coco(tmp_path: Path) -> None:
    path = tmp_path / "val.json"
    path.write_text(json.dumps(COCO))
    assert told(path) == [
        ("books-one", "p-12_1", "body", 0, 0, 320, 20, 420, 320),
        ("books-one", "p-12_1", "face", 0, 0, 330, 30, 370, 70),
    ]
    assert told(path, "right_to_left")[0][1] == "p-12_0"
    lost = located(checked(read_boxes(str(path))), str(tmp_path))
    assert lost.error.tolist() == ["missing_page"] * 2 and "books/one/p_12.png does not exist" in lost.message[0]
    # Without panels, pictures are those of panels, or pages of one.
    some = [one for one in COCO["annotations"] if one["category_id"] != 1]
    path.write_text(json.dumps(COCO | {"annotations": some}))
    assert {row[1] for row in told(path)} == {"p_12"}


@pytest.mark.parametrize("name", ["ARMS.xml", "page.json", "val.json"])
def test_what_was_read_is_written_as_coco_and_read_again(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text({"ARMS.xml": MANGA, "page.json": json.dumps(COMIX), "val.json": json.dumps(COCO)}[name])
    config = ComicsConfig(str(tmp_path / "out"), boxes=str(path))
    rows = convert(config)["rows"]
    assert rows == {"in": rows["out"], "out": rows["out"], "rejected": {}} and rows["out"] >= 2
    written = json.loads((tmp_path / "out/boxes.json").read_text())
    assert told(tmp_path / "out/boxes.json") == told(tmp_path / "out/boxes.csv") == told(path)
    again = read_dataset(str(tmp_path / "out/boxes.json"), None)
    assert again and coco(again) == written
    image = next(one for one in written["images"] if one["id"] == written["annotations"][0]["image_id"])
    assert image["width"] > 0 and {one["name"] for one in written["categories"]} == {"panel", "face", "body"}
    first = written["annotations"][0]
    assert first["area"] == first["bbox"][2] * first["bbox"][3]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.xml", "<annotations/>", "its root is annotations, not book"),
        ("a.xml", "<book", "ParseError"),
        ("a.json", "[{}]", "neither images, annotations and categories"),
        (
            "a.json",
            json.dumps(COCO | {"categories": [{"id": i, "name": "cat"} for i in range(9)]}),
            "no category is one",
        ),
        ("a.json", json.dumps(COCO | {"images": [{"id": 7, "file_name": "1.jpg"}]}), "has no folder"),
        ("none.xml", None, "there is no such file"),
    ],
)
def test_what_is_no_dataset_is_told(tmp_path: Path, name: str, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        read_boxes(str(tmp_path / name))

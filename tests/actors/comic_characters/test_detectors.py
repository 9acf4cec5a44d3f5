"""Detectors by path: ONNX and TorchScript give their network's boxes, others say what they need."""

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from actors.comic_characters.detection import DetectConfig
from actors.comic_characters.detectors import Detector, inspect
from actors.core.errors import UserError
from actors.core.stage import Batch
from actors.models.detection import letterbox
from tests.support.tiny_detector import save

SIZE = 32


class Spot(nn.Module):
    """Of the brightest pixel a box of 8 by 8 around it: (N, 6, 1024) as YOLOv8, of two classes."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        bright = (pixels.mean(1) > 0.9).float().flatten(1)
        place = torch.arange(SIZE * SIZE).float().expand_as(bright)
        columns = place.remainder(SIZE) + 0.5
        rows = (place / SIZE).floor() + 0.5
        eight = torch.full_like(bright, 8.0)
        return torch.stack([columns, rows, eight, eight, 0 * bright, 0.9 * bright], 1)


def batch(*places: tuple[int, int]) -> Batch:
    """Pages of 64 x 32 pixels with a bright square of 4 pixels at (x, y)."""
    squares = []
    for x, y in places:
        page = np.zeros((64, 32, 3), np.uint8)
        page[y : y + 4, x : x + 4] = 255
        squares.append(letterbox(page, (SIZE, SIZE)))
    count = len(places)
    return {
        "square": np.stack(squares),
        "height": np.full(count, 64),
        "width": np.full(count, 32),
        "error": np.array([""] * (count - 1) + ["broken_page"]),
    }


@pytest.mark.parametrize("name", ["spot.torchscript", "spot.onnx"])
def test_boxes_of_a_network_are_in_pixels_of_the_page(name: str, tmp_path: Path) -> None:
    save(Spot(), tmp_path / name, SIZE)
    config = DetectConfig(weights=str(tmp_path / name), classes=("face", "Body"), size=SIZE)
    weights = inspect(config)
    assert weights.shape == (SIZE, SIZE) and weights.names == ("face", "Body")
    found = [json.loads(one) for one in Detector(config, weights)(batch((8, 20), (16, 48), (0, 0)))["found"]]
    assert found[2] == [] and all(found[:2])
    for boxes, (x, y) in zip(found[:2], ((8, 20), (16, 48)), strict=True):
        label, score, *corners = boxes[0]
        assert label == "body" and score == pytest.approx(0.9)
        # One pixel of the input is two of the page.
        assert np.allclose(corners, [x - 6, y - 6, x + 10, y + 10], atol=3)


def test_names_and_size_that_ultralytics_writes_into_its_exports_are_used(tmp_path: Path) -> None:
    jit: Any = torch.jit
    about = {"names": {"1": "body", "0": "face"}, "imgsz": [SIZE, SIZE], "batch": 1}
    path = tmp_path / "best.pt"
    extra = {"config.txt": json.dumps(about)}
    jit.save(jit.trace(Spot(), torch.zeros(1, 3, SIZE, SIZE)), str(path), _extra_files=extra)
    weights = inspect(DetectConfig(weights=str(path)))
    assert (weights.kind, weights.names, weights.shape, weights.single) == (
        "torchscript",
        ("face", "body"),
        (SIZE, SIZE),
        True,
    )
    found = Detector(DetectConfig(weights=str(path)), weights)(batch((8, 20), (16, 48), (0, 0)))["found"]
    assert [len(json.loads(one)) for one in found] == [1, 1, 0]
    with pytest.raises(UserError, match=rf"takes {SIZE} x {SIZE} pixels"):
        inspect(DetectConfig(weights=str(path), size=640))


def test_what_is_missing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "net.pt"
    save(Spot(), path, SIZE)
    cases: list[tuple[dict[str, Any], str]] = [
        ({}, r"detect\.weights: this setting is required.*ONNX or TorchScript"),
        ({"weights": str(tmp_path / "none.onnx")}, "there is no such file"),
        ({"weights": str(path)}, r"detect\.classes: .* does not name its classes"),
        ({"weights": str(path), "classes": ("cat", "dog")}, "detects cat, dog: no faces or bodies"),
        ({"weights": str(path), "classes": ("face", "body"), "panels": "detector"}, r"Set detect\.panels=find"),
    ]
    for settings, message in cases:
        with pytest.raises(UserError, match=message):
            inspect(DetectConfig(**settings))
    (tmp_path / "yolo.pt").write_bytes(b"a pickle, of ultralytics")
    monkeypatch.setitem(sys.modules, "ultralytics", None)
    with pytest.raises(UserError, match=r"needs the package ultralytics, which is under AGPL-3\.0"):
        inspect(DetectConfig(weights=str(tmp_path / "yolo.pt")))


def test_a_model_of_ultralytics_is_asked_where_that_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a stand-in with the same interface, since the package is no dependency."""
    asked: list[dict[str, Any]] = []

    class Stub:
        names = {0: "face", 1: "body"}  # noqa: RUF012

        def __init__(self, path: str) -> None:
            assert Path(path).read_bytes() == b"a pickle"

        def predict(self, pictures: list[np.ndarray], **options: Any) -> list[Any]:
            asked.append({"colours": pictures[0][16, 16].tolist(), **options})
            boxes = SimpleNamespace(
                xyxy=torch.tensor([[8.0, 0, 16, 8]]), conf=torch.tensor([0.7]), cls=torch.tensor([1.0])
            )
            return [SimpleNamespace(boxes=boxes)] * len(pictures)

    library: Any = ModuleType("ultralytics")
    library.YOLO, library.__spec__ = Stub, SimpleNamespace()
    monkeypatch.setitem(sys.modules, "ultralytics", library)
    path = tmp_path / "yolo.pt"
    path.write_bytes(b"a pickle")
    config = DetectConfig(weights=str(path), size=SIZE, threshold=0.3)
    given = batch((8, 20), (0, 0))
    given["square"] = given["square"].copy()
    given["square"][0, 16, 16] = (1, 2, 3)
    found = Detector(config, inspect(config))(given)["found"]
    assert json.loads(found[0]) == [["body", pytest.approx(0.7), 0, 0, 16, 16]]
    assert asked[0]["colours"] == [3, 2, 1] and asked[0]["conf"] == 0.3 and asked[0]["imgsz"] == [SIZE, SIZE]

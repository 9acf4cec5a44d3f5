"""Detectors of faces by path: each layout of outputs gives the boxes, confidences and points of the drawn faces."""

from pathlib import Path

import numpy as np
import pytest
import torch

from actors.core.errors import UserError
from actors.models.detection import LayoutError
from actors.models.faces import Box
from actors.movie_characters.recognition.face_detectors import PathDetector, scrfd, yolo_faces
from tests.support import face_networks
from tests.support.face_networks import FACE, POINTS, YUNET, Scrfd, YoloFace, YuNet, drawn

pytest.importorskip("onnxruntime")

SCRFD = tuple(f"{name}_{stride}" for name in ("score", "bbox", "kps") for stride in (8, 16, 32))
PLACES = [(16, 24), (80, 56)]
SIZE = (96, 128)
SURE = {"scrfd": 0.9, "boxes": 0.9, "yunet": 0.9, "yolo": 0.7, "plain": 0.7}
"""Confidence of a face; of YuNet the root of its two scores."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("detectors")
    shape = 3, *SIZE
    made = {
        "scrfd": face_networks.save(Scrfd(), folder / "scrfd.onnx", shape, SCRFD, free=()),
        "sizes": face_networks.save(Scrfd(), folder / "sizes.onnx", shape, SCRFD, free=(2, 3)),
        "boxes": face_networks.save(Scrfd(False), folder / "boxes.onnx", shape, SCRFD[:6], free=()),
        "yunet": face_networks.save(YuNet(), folder / "yunet.onnx", (3, 640, 640), YUNET, free=()),
        "yolo": face_networks.save(YoloFace(), folder / "yolo.onnx", shape),
        "torchscript": face_networks.save(YoloFace(), folder / "yolo.pt", (3, 640, 640)),
        "plain": face_networks.save(YoloFace(False), folder / "plain.onnx", shape),
    }
    return {name: str(path) for name, path in made.items()}


def detector(path: str, least: float = 0.5) -> PathDetector:
    return PathDetector(path, least, 1, gpu=False)


@pytest.mark.parametrize("name", SURE)
def test_each_kind_finds_faces_with_their_box_confidence_and_points(name: str, files: dict[str, str]) -> None:
    found = detector(files[name])
    with_points = name not in ("boxes", "plain")
    assert found.points == with_points
    # The first picture is as large as the input of most, the second twice as large, the third has no face.
    one, two, none = drawn(*PLACES), drawn(*PLACES).repeat(2, 0).repeat(2, 1), drawn()
    if name == "yunet":
        # OpenCV takes pictures as they are.
        two = drawn(*[(2 * x, 2 * y) for x, y in PLACES], height=192, width=256)
    faces = found([one, two, none])
    assert [len(some) for some in faces] == [2, 2, 0]
    for scale, some in zip((1, 2), faces, strict=False):
        side = FACE if name == "yunet" else scale * FACE
        for box, (x, y) in zip(sorted(some, key=lambda box: box.left), PLACES, strict=True):
            expected = scale * x, scale * y, scale * x + side - 1, scale * y + side - 1
            assert np.abs(np.subtract(box[:4], expected)).max() <= 2 * scale
            assert box.confidence == pytest.approx(SURE[name], abs=0.01)
            if with_points:
                assert box.points is not None
                middle = np.array([scale * x + side / 2, scale * y + side / 2])
                assert np.abs(box.points - middle - POINTS * side / FACE).max() <= 2 * scale
            else:
                assert box.points is None


@pytest.mark.parametrize("name", ["sizes", "yunet"])
def test_pictures_of_several_sizes_have_the_faces_that_they_have_alone(name: str, files: dict[str, str]) -> None:
    found = detector(files[name])
    pictures = [drawn(*PLACES), drawn(PLACES[0], height=64, width=80), drawn(), drawn(PLACES[1], width=160)]
    together = [[box[:5] for box in some] for some in found(pictures)]
    assert together == [[box[:5] for box in found([picture])[0]] for picture in pictures]
    assert [len(some) for some in together] == [2, 1, 0, 1]
    assert together[3][0][:4] == (80, 56, 95, 71)


def test_torchscript_takes_squares_of_640_pixels(files: dict[str, str]) -> None:
    ((box,),) = detector(files["torchscript"])([drawn((320, 400), height=640, width=640)])
    assert box[:4] == (320, 400, 335, 415) and box.points is not None


def test_faces_below_the_least_confidence_are_left_out(files: dict[str, str]) -> None:
    assert detector(files["scrfd"], 0.95)([drawn(*PLACES)]) == [[]]
    # Of the two anchors of a cell the surer one stays.
    assert len(detector(files["scrfd"], 0.1)([drawn(*PLACES)])[0]) == 2


def by_loop(outputs: list[np.ndarray], shape: tuple[int, int]) -> list[tuple[float, ...]]:
    """Score, corners and points of each anchor of three strides, one by one."""
    found = []
    for level, stride in enumerate((8, 16, 32)):
        scores, sides, moves = outputs[level], outputs[3 + level], outputs[6 + level]
        number = 0
        for y in range(0, shape[0], stride):
            for x in range(0, shape[1], stride):
                for _ in range(2):
                    left, top, right, bottom = stride * sides[number]
                    points = [(x, y)[i % 2] + stride * moves[number][i] for i in range(10)]
                    found.append((scores[number][0], x - left, y - top, x + right, y + bottom, *points))
                    number += 1
    return found


def test_scrfd_is_decoded_anchor_by_anchor_in_whatever_order_its_outputs_are() -> None:
    random, shape = np.random.default_rng(0), (64, 96)
    counts = [2 * shape[0] * shape[1] // stride**2 for stride in (8, 16, 32)]
    outputs = [random.random((count, width)) for width in (1, 4, 10) for count in counts]
    expected = np.array(by_loop(outputs, shape))
    for order in (range(9), reversed(range(9)), (0, 3, 6, 1, 4, 7, 2, 5, 8)):
        (found,) = scrfd([outputs[i] for i in order], shape)
        assert found.points is not None
        flat = np.column_stack([found.scores, found.boxes, found.points.reshape(-1, 10)])
        assert flat == pytest.approx(expected)
    batch = scrfd([np.stack([output, output[::-1]]) for output in outputs], shape)
    assert len(batch) == 2 and batch[0].boxes == pytest.approx(expected[:, 1:5])
    with pytest.raises(LayoutError, match="do not fit an input"):
        scrfd(outputs, (64, 80))
    with pytest.raises(LayoutError, match="not those of SCRFD"):
        scrfd(outputs[:8], shape)


def test_outputs_of_yolov5_with_points_are_understood_and_others_are_left_to_others() -> None:
    row = [50, 40, 20, 10, 0.5, *range(10), 0.8]
    found = yolo_faces(np.array([[row, [0.0] * 16]]))
    assert found is not None and found[0].points is not None
    assert found[0].scores.tolist() == [0.4, 0] and found[0].boxes[0].tolist() == [40, 35, 60, 45]
    assert found[0].points[0].tolist() == np.arange(10.0).reshape(5, 2).tolist()
    assert yolo_faces(np.zeros((1, 5, 100))) is None and yolo_faces(np.zeros((1, 100, 6))) is None


def test_files_that_are_no_detector_of_faces_are_refused(tmp_path: Path) -> None:
    class Wrong(torch.nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return pixels.mean((2, 3))

    wrong = face_networks.save(Wrong(), tmp_path / "wrong.onnx", (3, *SIZE))
    with pytest.raises(UserError, match=r"faces\.detector=.*not understood for 1 classes"):
        detector(str(wrong))
    (tmp_path / "pickle.pt").write_bytes(b"no archive")
    with pytest.raises(UserError, match=r"neither ONNX \(\.onnx\) nor TorchScript"):
        detector(str(tmp_path / "pickle.pt"))
    with pytest.raises(UserError, match="there is no such file"):
        detector(str(tmp_path / "none.onnx"))


def test_a_box_in_a_picture_keeps_its_points() -> None:
    box = Box(-3, 2, 30, 9, 0.7, POINTS).within(8, 20)
    assert box[:5] == (0, 2, 19, 7, 0.7) and box.points is POINTS

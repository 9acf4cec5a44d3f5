"""Faces cut for embedders in files, and vectors that these give: alignment by an oracle, colours as they were set."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from skimage.transform import SimilarityTransform

from actors.core.errors import UserError
from actors.models.faces import Box, load_mtcnn
from actors.movie_characters.recognition.face_embedders import TEMPLATE, PathEmbedder, cut, similarity, upright
from actors.movie_characters.recognition.faces import FaceEmbedder, FacesConfig, check_embedder
from actors.movie_characters.recognition.frame_faces import FrameFaces
from tests.support import face_networks
from tests.support.face_networks import YUNET, Colours, YoloFace, YuNet, drawn

pytest.importorskip("onnxruntime")


def embedder_in(path: Path | str, pixels: tuple[float, float], bgr: bool = False) -> PathEmbedder:
    return PathEmbedder(str(path), "faces.embedder", None, (112, 112), pixels, bgr)


def test_the_transform_is_that_of_scikit_image() -> None:
    random = np.random.default_rng(0)
    for _ in range(20):
        points = random.uniform(0, 300, (5, 2))
        expected: Any = SimilarityTransform.from_estimate(points, TEMPLATE)
        assert similarity(points, TEMPLATE) == pytest.approx(expected.params[:2])


@pytest.mark.parametrize("side", [112, 160])
def test_a_turned_face_has_its_points_on_the_template(side: int) -> None:
    turn = np.deg2rad(25)
    matrix = 1.7 * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    points = TEMPLATE @ matrix.T + (60, 20)
    picture = np.zeros((330, 330, 3), np.uint8)
    for x, y in points.round().astype(int):
        picture[y - 3 : y + 4, x - 3 : x + 4] = 255
    square = upright(picture, points, side)
    assert square.shape == (side, side, 3)
    for x, y in (TEMPLATE * side / 112).round().astype(int):
        assert square[y, x].min() > 200
    assert (square > 128).mean() < 0.03


def test_a_photographed_face_looks_straight_ahead_whichever_way_its_picture_is_turned() -> None:
    """Of the astronaut: the eyes lie level in the cut, whatever the picture's turn."""
    picture, find = data.astronaut(), load_mtcnn(40)
    squares = []
    for degrees in (0, 20, -20):
        turned = np.asarray(Image.fromarray(picture).rotate(degrees, center=(224, 120)))
        (face,) = find(turned)
        assert face.points is not None
        squares.append(upright(turned, face.points, 112).astype(float).mean(2)[20:100, 20:92])
    alike = [np.corrcoef(squares[0].ravel(), other.ravel())[0, 1] for other in squares[1:]]
    assert min(alike) > 0.8


def test_a_box_is_cut_as_far_as_it_lies_in_the_picture() -> None:
    picture = np.zeros((20, 30, 3), np.uint8)
    picture[:10, :8] = 200
    found = cut(picture, Box(-4, -2, 7, 9), (16, 12))
    assert found.shape == (16, 12, 3) and (found == 200).all()


@pytest.mark.parametrize("name", ["embed.onnx", "embed.pt"])
def test_pixels_are_normalised_as_it_was_set_and_vectors_have_length_one(name: str, tmp_path: Path) -> None:
    path = str(face_networks.save(Colours(), tmp_path / name, (3, 112, 112)))
    face = np.zeros((112, 112, 3), np.uint8)
    face[:56], face[56:] = (255, 0, 51), (0, 0, 51)
    halves = np.array([(255, 0, 51), (0, 0, 51)], float)
    for pixels, bgr in (((127.5, 127.5), False), ((0.0, 255.0), False), ((127.5, 127.5), True)):
        embedder = embedder_in(path, pixels, bgr)
        assert (embedder.shape, embedder.width) == ((112, 112), 9)
        given = (halves[:, ::-1] if bgr else halves) - pixels[0]
        expected = np.concatenate([given.mean(0), *given])
        (vector, again) = embedder([face, face])
        assert vector == pytest.approx(expected / np.linalg.norm(expected), abs=1e-5)
        assert again == pytest.approx(vector)
    assert embedder([]).shape == (0, 9)


def test_an_embedder_for_one_face_at_a_time_gives_the_same(tmp_path: Path) -> None:
    faces = list(np.random.default_rng(0).integers(0, 256, (3, 112, 112, 3), dtype=np.uint8))
    one = face_networks.save(Colours(), tmp_path / "one.onnx", (3, 112, 112), free=())
    many = face_networks.save(Colours(), tmp_path / "many.onnx", (3, 112, 112))
    first, second = (embedder_in(path, (0, 255))(faces) for path in (one, many))
    assert first == pytest.approx(second)


class Map(torch.nn.Module):
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels[:, :1]


def test_what_is_no_embedder_or_has_another_size_is_refused(tmp_path: Path) -> None:
    wrong = face_networks.save(Map(), tmp_path / "map.onnx", (3, 112, 112))
    with pytest.raises(UserError, match=r"faces\.embedder=.*where a vector each is expected"):
        embedder_in(wrong, (0, 1))
    right = face_networks.save(Colours(), tmp_path / "right.onnx", (3, 112, 112))
    with pytest.raises(UserError, match="takes 112 x 112 pixels, not"):
        check_embedder(FacesConfig(embedder=str(right), side=160))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("networks")
    return {
        "embedder": str(face_networks.save(Colours(), folder / "embed.pt", (3, 112, 112))),
        "points": str(face_networks.save(YoloFace(), folder / "yolo.onnx", (3, 96, 128))),
        "plain": str(face_networks.save(YoloFace(False), folder / "plain.onnx", (3, 96, 128))),
        "yunet": str(face_networks.save(YuNet(), folder / "yunet.onnx", (3, 640, 640), YUNET, free=())),
    }


def test_faces_of_a_frame_by_detector_and_embedder_in_files(files: dict[str, str], tmp_path: Path) -> None:
    picture = drawn((16, 24), (80, 56))
    # Faces are white; what is around them tells them apart.
    picture[:, 64:][picture[:, 64:] == 0] = 90
    names = ("two", "none")
    Image.fromarray(picture).save(tmp_path / "two.png")
    Image.fromarray(drawn()).save(tmp_path / "none.png")
    batch = {
        "uri": np.array([str(tmp_path / f"{name}.png") for name in names]),
        **{name: np.array([""] * 2) for name in ("error", "message")},
    }
    config = FacesConfig(detector=files["points"], embedder=files["embedder"])
    check_embedder(config)
    found = FrameFaces(config)(batch)
    boxes, vectors = (np.array(found[name][0]) for name in ("boxes", "vectors"))
    assert sorted(boxes.tolist()) == [[16, 24, 32, 40], [80, 56, 96, 72]] and found["boxes"][1] == []
    assert found["confidences"][0] == pytest.approx([0.7, 0.7])
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1) and vectors[0] @ vectors[1] < 0.99
    embedded = FaceEmbedder(config)(batch)
    assert embedded["error"].tolist() == ["", "no_face"] and embedded["vector"].shape == (2, 9)


def test_what_does_not_fit_is_told_before_work(files: dict[str, str]) -> None:
    embedder = files["embedder"]
    with pytest.raises(UserError, match=r"hog finds no eyes.*faces\.align=box"):
        FacesConfig(detector="hog", embedder=embedder)
    with pytest.raises(UserError, match=r"finds no eyes.*faces\.align=box"):
        check_embedder(FacesConfig(detector=files["plain"], embedder=embedder))
    check_embedder(FacesConfig(detector=files["plain"], embedder=embedder, align="box"))
    with pytest.raises(UserError, match="is neither mtcnn nor hog, and there is no such file"):
        check_embedder(FacesConfig(detector="retinaface"))
    for detector in ("mtcnn", files["yunet"]):
        with pytest.raises(UserError, match=r"compute on CPUs only\. Set faces\.num_gpus=0"):
            check_embedder(FacesConfig(detector=detector, num_gpus=1))
    with pytest.raises(UserError, match="num_gpus is above 0"):
        FaceEmbedder(FacesConfig(detector=files["points"], embedder=embedder, num_gpus=1))


def test_a_part_that_stays_on_the_cpu_is_told(files: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    check_embedder(FacesConfig(embedder=files["embedder"], num_gpus=1))
    assert "faces.detector=mtcnn computes on CPUs" in caplog.text


def test_vectors_of_other_files_or_settings_have_other_names(files: dict[str, str]) -> None:
    embedder = files["embedder"]
    configs = [
        FacesConfig(),
        FacesConfig(min_confidence=0.8),
        FacesConfig(detector=files["points"]),
        FacesConfig(detector=files["plain"]),
        FacesConfig(embedder=embedder),
        FacesConfig(embedder=embedder, channels="bgr"),
        FacesConfig(embedder=embedder, mean=0, deviation=255),
        FacesConfig(embedder=embedder, align="box"),
    ]
    assert len({config.model for config in configs}) == len(configs)
    # A higher least confidence takes from what is stored.
    assert FacesConfig(min_confidence=0.95).model == FacesConfig().model == "dlib:mtcnn:1:1024"

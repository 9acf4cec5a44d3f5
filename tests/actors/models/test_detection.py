"""Outputs of detectors of all layouts as the same boxes; letterbox and suppression against their definitions."""

from typing import Any

import numpy as np
import pytest
import torch
from torchvision.ops import nms

from actors.models.detection import (
    GREY,
    Detections,
    LayoutError,
    decoded,
    form_of,
    letterbox,
    on_picture,
    suppressed,
)

SHAPE = (64, 96)
CORNERS = np.array([[10, 20, 30, 60], [40, 4, 56, 20], [0, 0, 9, 9]], float)
SCORES = np.array([0.9, 0.6, 0.1])
LABELS = np.array([1, 0, 1])


def spread(count: int = 2) -> np.ndarray:
    """The scores (3, C), each at its class."""
    found = np.full((3, count), 0.001)
    found[np.arange(3), LABELS] = SCORES
    return found


def centred() -> np.ndarray:
    return np.concatenate([(CORNERS[:, :2] + CORNERS[:, 2:]) / 2, CORNERS[:, 2:] - CORNERS[:, :2]], 1)


def many(rows: np.ndarray) -> np.ndarray:
    """More candidates than columns, as detectors have, those added with no score."""
    return np.concatenate([rows, np.zeros((20, rows.shape[1]))])


def outputs(name: str) -> list[np.ndarray]:
    shares = many(centred()) / np.array([SHAPE[1], SHAPE[0]] * 2)
    scores = many(spread())
    logits = np.log(np.clip(scores, 1e-6, None) / (1 - scores))
    nothing = np.log(np.concatenate([np.clip(scores, 1e-9, None), 1 - scores.sum(1, keepdims=True)], 1))
    flat = many(np.concatenate([centred(), spread()], 1))
    made: dict[str, list[np.ndarray]] = {
        "yolo": [flat.T],
        "objectness": [np.concatenate([flat[:, :4], np.full((23, 1), 0.5), 2 * flat[:, 4:] * 0.5 / 0.5], 1)],
        "end_to_end": [many(np.column_stack([CORNERS, SCORES, LABELS]))],
        "deployed": [many(LABELS[:, None])[:, 0].astype(np.int64), many(CORNERS), many(SCORES[:, None])[:, 0]],
        "sigmoid": [logits, shares],
        "softmax": [shares, nothing],
        "one": [np.concatenate([shares, scores], 1)],
    }
    return [array[None] for array in made[name]]


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("yolo", "yolo"),
        ("objectness", "objectness"),
        ("end_to_end", "end_to_end"),
        ("deployed", "end_to_end"),
        ("sigmoid", "detr"),
        ("softmax", "detr"),
        ("one", "detr"),
    ],
)
def test_every_layout_holds_the_same_boxes(name: str, form: Any) -> None:
    given = outputs(name)
    if name in ("one", "end_to_end"):
        with pytest.raises(LayoutError, match=r"ambiguous: detr or end_to_end"):
            form_of(given, 2)
    else:
        assert form_of(given, 2) == form
    (found,) = decoded(given, form, 2, SHAPE, 0.25, 0.45)
    assert found.classes.tolist() == [1, 0]
    assert np.allclose(found.boxes, CORNERS[:2]) and np.allclose(found.scores, SCORES[:2], atol=0.01)


def test_an_output_that_is_none_and_wrong_classes_are_told() -> None:
    with pytest.raises(LayoutError, match="not understood for 7 classes"):
        form_of(outputs("yolo"), 7)
    with pytest.raises(LayoutError, match="has 2 classes, where 3 are named"):
        decoded(outputs("sigmoid"), "detr", 3, SHAPE, 0.25, 0.45)
    with pytest.raises(LayoutError, match="class 1, where 1 are named"):
        decoded(outputs("end_to_end"), "end_to_end", 1, SHAPE, 0.25, 0.45)


@pytest.mark.parametrize("size", [(200, 100), (30, 300), (64, 96), (7, 5)])
def test_a_box_comes_back_from_the_letterbox_to_where_it_is(size: tuple[int, int]) -> None:
    page = np.zeros((*size, 3), np.uint8)
    top, left, bottom, right = size[0] // 4, size[1] // 4, size[0] // 2 + 1, size[1] // 2 + 1
    page[top:bottom, left:right] = 255
    square = letterbox(page, SHAPE)
    assert square.shape == (*SHAPE, 3) and ((square[0, 0] == GREY).all() or (square[0, 0] == 0).all())
    y, x = np.nonzero(square[..., 0] > 180)
    back = on_picture(np.array([[x.min(), y.min(), x.max() + 1, y.max() + 1]], float), size, SHAPE)
    pixel = max(size[0] / SHAPE[0], size[1] / SHAPE[1], 1)
    assert np.allclose(back, [[left, top, right, bottom]], atol=1.1 * pixel)
    assert on_picture(np.array([[-50.0, -50, 500, 500]]), size, SHAPE).tolist() == [[0, 0, size[1], size[0]]]


def test_suppression_is_that_of_torchvision_for_each_class() -> None:
    random = np.random.default_rng(0)
    corners = random.uniform(0, 60, (200, 2))
    boxes = np.concatenate([corners, corners + random.uniform(5, 40, (200, 2))], 1)
    found = Detections(boxes, np.sort(random.random(200))[::-1].copy(), random.integers(2, size=200))
    expected: set[int] = set()
    for number in (0, 1):
        ours = np.flatnonzero(found.classes == number)
        kept = nms(torch.from_numpy(boxes[ours]), torch.from_numpy(found.scores[ours]), 0.45)
        expected |= set(ours[kept.numpy()].tolist())
    assert set(suppressed(found, 0.45).tolist()) == expected and 2 < len(expected) < 200

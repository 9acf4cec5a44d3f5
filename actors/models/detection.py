"""What surrounds any detector: pictures fitted into its input, its output as boxes, and doubles left out.

Outputs that are understood, for C classes and N candidates:

yolo         (B, 4 + C, N) or (B, N, 4 + C): centre, width and height in pixels of the input, and a score a class, as
             YOLOv8 to v12 and YOLOX-style exports have it; doubles are left out here
objectness   (B, N, 5 + C): the same with an objectness before the scores, as YOLOv5 to v7 have it
end_to_end   (B, N, 6): corners in pixels, score, class, as YOLOv10 and exports with NMS have it; or three outputs:
             labels (B, N), boxes (B, N, 4) and scores (B, N), as RT-DETR and D-FINE are deployed
detr         logits (B, N, C) or, with a class for nothing as the last, (B, N, C + 1), and boxes (B, N, 4): centre,
             width and height as shares of the input; or one output (B, N, 4 + C) of such boxes and scores
"""

import ast
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np

from actors.models.backbones import IMAGENET

GREY = 114
"""Value of the bars around a picture, as YOLO is trained with."""
Form = Literal["yolo", "objectness", "end_to_end", "detr"]


class LayoutError(Exception):
    """Outputs of a detector that are not understood; the message says why, without the name of a setting."""


class Detections(NamedTuple):
    """Boxes of one picture."""

    boxes: np.ndarray
    """float (N, 4): left, top, right, bottom in pixels."""
    scores: np.ndarray
    """float (N,), 0 to 1."""
    classes: np.ndarray
    """int (N,)."""
    points: np.ndarray | None = None
    """float (N, 5, 2): of faces, x and y in pixels of the eye on the left of the picture, the other eye, the tip of the
    nose, and the corners of the mouth on the left and right. None where the detector gives none."""

    def chosen(self, rows: np.ndarray) -> "Detections":
        """Those rows of it."""
        points = None if self.points is None else self.points[rows]
        return Detections(self.boxes[rows], self.scores[rows], self.classes[rows], points)

    def confident(self, threshold: float) -> "Detections":
        """Those with a score from a threshold on, the most confident first."""
        rows = np.flatnonzero(self.scores >= threshold)
        return self.chosen(rows[np.argsort(-self.scores[rows], kind="stable")])

    def on_picture(self, picture: tuple[int, int], shape: tuple[int, int]) -> "Detections":
        """The same in pixels of a picture of that height and width, which `letterbox` has put into an input."""
        boxes = on_picture(self.boxes, picture, shape)
        if self.points is None:
            return self._replace(boxes=boxes)
        bars, scale = _bars(picture, shape)
        return self._replace(boxes=boxes, points=(self.points - bars) / scale)


def class_names(given: Any) -> tuple[str, ...]:
    """Names of classes as ultralytics writes them: a dict by number, or its text."""
    if isinstance(given, str):
        given = ast.literal_eval(given)
    if isinstance(given, dict):
        given = [given[key] for key in sorted(given, key=int)]
    return tuple(map(str, given or ()))


def letterbox(picture: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """A picture uint8 (H, W, 3) as large as it fits into the middle of an input of that height and width."""
    (height, width), scale = picture.shape[:2], _scale(picture.shape[:2], shape)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    square = np.full((*shape, 3), GREY, np.uint8)
    top, left = (shape[0] - size[1]) // 2, (shape[1] - size[0]) // 2
    square[top : top + size[1], left : left + size[0]] = cv2.resize(picture, size, interpolation=how)
    return square


def _scale(picture: tuple[int, ...], shape: tuple[int, int]) -> float:
    return min(shape[0] / picture[0], shape[1] / picture[1])


def _bars(picture: tuple[int, int], shape: tuple[int, int]) -> tuple[np.ndarray, float]:
    """Width of the bar at the left and height of that at the top, and by what the picture was scaled."""
    scale = _scale(picture, shape)
    return np.array([(shape[i] - max(1, round(picture[i] * scale))) // 2 for i in (1, 0)]), scale


def on_picture(boxes: np.ndarray, picture: tuple[int, int], shape: tuple[int, int]) -> np.ndarray:
    """Boxes (N, 4) of the input of `letterbox` in pixels of a picture of that height and width, within it."""
    bars, scale = _bars(picture, shape)
    return np.clip((boxes - np.tile(bars, 2)) / scale, 0, [picture[1], picture[0]] * 2)


def network_input(squares: np.ndarray, normalise: bool) -> np.ndarray:
    """Squares uint8 (N, H, W, 3) RGB as float32 (N, 3, H, W)."""
    pixels = squares.astype(np.float32) / 255
    if normalise:
        pixels = (pixels - np.array(IMAGENET[0], np.float32)) / np.array(IMAGENET[1], np.float32)
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))


def form_of(outputs: Sequence[np.ndarray], count: int) -> Form:
    """The layout of outputs of a detector with so many classes. Raises LayoutError where it is none, or ambiguous."""
    shapes = " and ".join(str(output.shape) for output in outputs)
    if len(outputs) == 3:
        return "end_to_end"
    if len(outputs) == 2 and all(output.ndim == 3 for output in outputs):
        return "detr"
    lengths: dict[Form, int] = {"detr": 4 + count, "objectness": 5 + count, "end_to_end": 6}
    last = 0
    if len(outputs) == 1 and outputs[0].ndim == 3:
        _, first, last = outputs[0].shape
        if first == 4 + count and last != 4 + count:
            return "yolo"
    forms: list[Form] = [form for form, length in lengths.items() if last == length]
    if not forms:
        raise LayoutError(f"outputs of shape {shapes} are not understood for {count} classes")
    if len(forms) > 1:
        raise LayoutError(f"outputs of shape {shapes} are ambiguous: {' or '.join(forms)}")
    return forms[0]


def decoded(
    outputs: Sequence[np.ndarray], form: Form, count: int, shape: tuple[int, int], threshold: float, overlap: float
) -> list[Detections]:
    """The boxes of each picture of a batch, in pixels of the input, the most confident first.

    Args:
        count: how many classes. Raises LayoutError where outputs have others.
        shape: height and width of the input.
        threshold: least score.
        overlap: largest overlap of two boxes of a class, for yolo and objectness.
    """
    found = []
    for boxes, scores, classes in zip(*_candidates(outputs, form, count, shape), strict=True):
        one = Detections(boxes, scores, classes).confident(threshold)
        found.append(one.chosen(suppressed(one, overlap)) if form in ("yolo", "objectness") else one)
    return found


def _candidates(
    outputs: Sequence[np.ndarray], form: Form, count: int, shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Corners (B, N, 4), scores (B, N) and classes (B, N)."""
    first = outputs[0]
    if form == "end_to_end":
        if len(outputs) == 3:
            boxes = next(output for output in outputs if output.ndim == 3)
            labels, scores = sorted((o for o in outputs if o.ndim == 2), key=lambda one: one.dtype.kind == "f")
        else:
            boxes, scores, labels = first[..., :4], first[..., 4], first[..., 5]
        if labels.max(initial=0) >= count:
            raise LayoutError(f"it has a class {labels.max():.0f}, where {count} are named, from 0")
        return boxes, scores, labels.astype(int)
    if form == "detr":
        boxes, scores = (
            (first[..., :4], first[..., 4:]) if len(outputs) == 1 else _shares(outputs[0], outputs[1], count)
        )
        boxes = boxes * np.array([shape[1], shape[0]] * 2)
    else:
        if form == "yolo" and first.shape[1] == 4 + count:
            first = first.transpose(0, 2, 1)
        boxes, scores = first[..., :4], first[..., 4:]
        if form == "objectness":
            scores = scores[..., :1] * scores[..., 1:]
    if scores.shape[-1] != count:
        raise LayoutError(f"it has {scores.shape[-1]} classes, where {count} are named")
    middle, half = boxes[..., :2], boxes[..., 2:] / 2
    return np.concatenate([middle - half, middle + half], -1), scores.max(-1), scores.argmax(-1)


def _shares(one: np.ndarray, other: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes and probabilities of DETR's two outputs, in either order."""
    logits, boxes = (other, one) if one.shape[-1] == 4 != other.shape[-1] else (one, other)
    logits = logits.astype(np.float32)
    if logits.shape[-1] == count + 1:
        # With a class for nothing, of which one is chosen; else each is by itself.
        powers = np.exp(logits - logits.max(-1, keepdims=True))
        return boxes, (powers / powers.sum(-1, keepdims=True))[..., :-1]
    return boxes, 1 / (1 + np.exp(-logits))


def suppressed(found: Detections, overlap: float) -> np.ndarray:
    """Non-maximum suppression: which boxes stay, int (M,), of boxes sorted by their scores, each class by itself."""
    boxes = found.boxes
    area = np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2], 0), axis=1)
    stay = np.ones(len(boxes), bool)
    for number in range(len(boxes)):
        if stay[number]:
            later = slice(number + 1, None)
            corner, other = (
                np.maximum(boxes[number, :2], boxes[later, :2]),
                np.minimum(boxes[number, 2:], boxes[later, 2:]),
            )
            common = np.prod(np.maximum(other - corner, 0), axis=1)
            share = common / np.maximum(area[number] + area[later] - common, 1e-9)
            stay[later] &= (share <= overlap) | (found.classes[later] != found.classes[number])
    return np.flatnonzero(stay)

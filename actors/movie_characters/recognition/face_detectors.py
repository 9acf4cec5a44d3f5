"""Detectors of faces by path. Each gives a box and a confidence a face, and most give five points.

scrfd   ONNX with a score, distances to the sides and five points for every anchor of three or five strides, as
        InsightFace exports it (Guo et al. 2021, "Sample and computation redistribution for efficient face detection");
        also without points
yunet   ONNX of OpenCV's model zoo (Wu et al. 2023, "YuNet: a tiny millisecond-level face detector"), loaded by OpenCV
yolo    any other ONNX or TorchScript, with outputs as `actors.models.detection` lists them, or with points: of YOLOv8
        and later (B, 4 + 1 + 15, N) or (B, 4 + 1 + 10, N), of YOLOv5-face (B, N, 4 + 1 + 10 + 1)
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np

from actors.core import storage
from actors.core.errors import UserError
from actors.models.detection import (
    Detections,
    LayoutError,
    class_names,
    decoded,
    form_of,
    letterbox,
    network_input,
    suppressed,
)
from actors.models.faces import Box
from actors.models.networks import load_network

SETTING = "faces.detector"
LEAST = 0.5
"""Least confidence by default."""
OVERLAP = 0.4
"""Largest overlap of two faces."""
STRIDES = {3: (8, 16, 32), 5: (8, 16, 32, 64, 128)}
"""Of SCRFD, by the number of its levels."""
SIDE = 640
"""Side of the input of TorchScript that does not name one."""
MULTIPLE = 32
"""Sides of an input of any size are multiples of this."""
FindMany = Callable[[Sequence[np.ndarray]], list[list[Box]]]
"""Faces in pictures uint8 (H, W, 3) RGB, each of its own size."""


class PathDetector:
    """A detector of faces, or of people, in a file; raises UserError where it is none.

    Args:
        path: a path or s3://. setting: the name of the setting that holds it.
        least: least confidence.
        kinds: what its classes are called that are wanted, in part; where it names none, it has this one.
    """

    def __init__(
        self,
        path: str,
        least: float,
        threads: int = 1,
        gpu: bool = False,
        setting: str = SETTING,
        kinds: tuple[str, ...] = ("face",),
    ) -> None:
        self._told, self._least = f"{setting}={path}", least
        network = load_network(path, setting, threads, gpu)
        self.by_opencv = {"cls_8", "obj_8", "bbox_8", "kps_8"} <= set(network.outputs)
        """Whether OpenCV computes it, on CPUs."""
        if self.by_opencv:
            with storage.local(path) as file:
                try:
                    self._yunet: Any = cv2.FaceDetectorYN.create(str(file), "", (SIDE, SIDE), least, OVERLAP)
                except cv2.error as error:
                    raise UserError(
                        f"{self._told} cannot be loaded by OpenCV {cv2.__version__}: {error.err}"
                    ) from error
            self.points = True
            return
        self._network = network
        self._names = class_names(network.metadata.get("names")) or kinds[:1]
        self._wanted = [n for n, name in enumerate(self._names) if any(kind in name.lower() for kind in kinds)]
        if not self._wanted:
            raise UserError(f"{self._told} detects {', '.join(self._names)}, and no {' or '.join(kinds)}.")
        sides = network.shape[2:] or network.metadata.get("imgsz") or (() if network.outputs else (SIDE, SIDE))
        known = [int(side) for side in sides if side]
        self._shape = (known[0], known[1]) if len(known) == 2 else None
        self._single = False
        # A grey picture shows what its outputs are.
        shape = self._shape or (SIDE, SIDE)
        outputs = self._outputs(np.full((1, *shape, 3), 128, np.uint8))
        self._single = network.shape[:1] == (1,) or outputs[0].ndim == 2
        self.points = self._decoded(outputs, shape)[0].points is not None

    def __call__(self, images: Sequence[np.ndarray]) -> list[list[Box]]:
        """The faces of each picture."""
        if self.by_opencv:
            return [self._by_opencv(image) for image in images]
        of_shape = defaultdict(list)
        for number, image in enumerate(images):
            of_shape[self._shape or _padded(image.shape[:2])].append(number)
        found: list[list[Box]] = [[] for _ in images]
        for shape, numbers in of_shape.items():
            step = 1 if self._single else len(numbers)
            for first in range(0, len(numbers), step):
                some = numbers[first : first + step]
                squares = np.stack([letterbox(images[number], shape) for number in some])
                for number, one in zip(some, self._decoded(self._outputs(squares), shape), strict=True):
                    height, width = images[number].shape[:2]
                    found[number] = _boxes(one.on_picture((height, width), shape))
        return found

    def _by_opencv(self, image: np.ndarray) -> list[Box]:
        self._yunet.setInputSize((image.shape[1], image.shape[0]))
        rows = self._yunet.detect(np.ascontiguousarray(image[..., ::-1]))[1]
        rows = np.zeros((0, 15)) if rows is None else rows.astype(float)
        boxes = np.concatenate([rows[:, :2], rows[:, :2] + rows[:, 2:4]], 1)
        return _boxes(Detections(boxes, rows[:, 14], np.zeros(len(rows), int), rows[:, 4:14].reshape(-1, 5, 2)))

    @property
    def _is_scrfd(self) -> bool:
        return len(self._network.outputs) in [parts * levels for parts in (2, 3) for levels in STRIDES]

    def _outputs(self, squares: np.ndarray) -> list[np.ndarray]:
        if self._is_scrfd:
            pixels = ((squares.astype(np.float32) - 127.5) / 128).transpose(0, 3, 1, 2)
            return self._network(np.ascontiguousarray(pixels))
        # RT-DETR and D-FINE scale boxes to sizes that they are given, as width and height.
        sizes = np.tile([squares.shape[2:0:-1]], (len(squares), 1))
        outputs = self._network(network_input(squares, False), *[sizes] * (self._network.inputs - 1))
        if any(len(output) != len(squares) for output in outputs):
            raise UserError(f"{self._told} was exported for one batch size only. Export it for any, or for 1.")
        return outputs

    def _decoded(self, outputs: Sequence[np.ndarray], shape: tuple[int, int]) -> list[Detections]:
        """Faces of each picture of a batch, in pixels of the input, without doubles."""
        try:
            if self._is_scrfd:
                found = scrfd(outputs, shape)
            elif len(outputs) == 1 and (with_points := yolo_faces(outputs[0])) is not None:
                found = with_points
            else:
                form = form_of(outputs, len(self._names))
                found = decoded(outputs, form, len(self._names), shape, self._least, OVERLAP)
                return [one.chosen(np.flatnonzero(np.isin(one.classes, self._wanted))) for one in found]
        except LayoutError as error:
            raise UserError(
                f"{self._told}: {error}. docs/movie_characters.md lists the detectors that are supported."
            ) from error
        confident = [one.confident(self._least) for one in found]
        return [one.chosen(suppressed(one, OVERLAP)) for one in confident]


def _padded(size: tuple[int, ...]) -> tuple[int, int]:
    """The input of a picture of that height and width."""
    return -(-size[0] // MULTIPLE) * MULTIPLE, -(-size[1] // MULTIPLE) * MULTIPLE


def _boxes(found: Detections) -> list[Box]:
    """Faces with whole pixels; what lies in the bars of the input is left out."""
    boxes = []
    for number, (box, score) in enumerate(zip(found.boxes, found.scores, strict=True)):
        left, top, right, bottom = np.round(box).astype(int).tolist()
        if right > left and bottom > top:
            points = None if found.points is None else found.points[number]
            boxes.append(Box(left, top, right - 1, bottom - 1, float(score), points))
    return boxes


def scrfd(outputs: Sequence[np.ndarray], shape: tuple[int, int]) -> list[Detections]:
    """All candidates of SCRFD for each picture of a batch, in pixels of an input of that height and width.

    outputs: (A, 1), (A, 4) and perhaps (A, 10) of each stride, or the same with the batch before: a score, and
    distances of the box's sides and of the points from the anchor, in strides. Raises LayoutError.
    """
    whole = [output if output.ndim == 3 else output[None] for output in outputs]
    # The smallest stride has most anchors.
    parts = {
        width: sorted((o for o in whole if o.shape[2] == width), key=lambda o: -o.shape[1]) for width in (1, 4, 10)
    }
    strides = STRIDES.get(len(parts[1]), ())
    if not strides or len(parts[4]) != len(strides) or len(parts[10]) not in (0, len(strides)):
        raise LayoutError(f"outputs of shape {', '.join(str(o.shape) for o in outputs)} are not those of SCRFD")
    boxes, points = [], []
    for level, stride in enumerate(strides):
        rows, columns = -(-shape[0] // stride), -(-shape[1] // stride)
        anchors, rest = divmod(parts[1][level].shape[1], rows * columns)
        if rest or not anchors:
            raise LayoutError(f"{parts[1][level].shape[1]} anchors do not fit an input of {shape} and stride {stride}")
        y, x = np.divmod(np.repeat(np.arange(rows * columns), anchors), columns)
        centres = stride * np.stack([x, y], 1).astype(float)
        sides = stride * parts[4][level]
        boxes.append(np.concatenate([centres - sides[..., :2], centres + sides[..., 2:]], 2))
        if parts[10]:
            moves = stride * parts[10][level]
            points.append(centres[:, None] + moves.reshape(*moves.shape[:2], 5, 2))
    scores = np.concatenate(parts[1], 1)[..., 0]
    corners, marks = np.concatenate(boxes, 1), np.concatenate(points, 1) if points else None
    none = np.zeros(scores.shape[1], int)
    return [
        Detections(corners[number], scores[number], none, None if marks is None else marks[number])
        for number in range(len(scores))
    ]


def yolo_faces(output: np.ndarray) -> list[Detections] | None:
    """All candidates of a YOLO of faces with five points, for each picture of a batch; None where it is none.

    output: (B, 4 + 1 + 10, N) or (B, 4 + 1 + 15, N): box, score, points, each perhaps with its visibility; or
    (B, N, 4 + 1 + 10 + 1): box, objectness, points, score. Centre, width and height in pixels of the input.
    """
    if output.ndim != 3 or not (output.shape[1] in (15, 20) or output.shape[2] == 16):
        return None
    rows = output.transpose(0, 2, 1) if output.shape[1] in (15, 20) else output
    scores = rows[..., 4] * (rows[..., 15] if rows.shape[2] == 16 else 1)
    each = 3 if rows.shape[2] == 20 else 2
    points = rows[..., 5 : 5 + 5 * each].reshape(*rows.shape[:2], 5, each)[..., :2]
    middle, half = rows[..., :2], rows[..., 2:4] / 2
    boxes = np.concatenate([middle - half, middle + half], 2)
    none = np.zeros(rows.shape[1], int)
    parts = zip(boxes, scores, points, strict=True)
    return [Detections(corners, score, none, five) for corners, score, five in parts]

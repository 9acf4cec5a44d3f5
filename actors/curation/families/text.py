"""The family `text`: written words in the key frames of scenes, by rapidocr on CPUs. Needs the extra `text`."""

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from itertools import chain
from typing import Any, ClassVar

import cv2
import numpy as np
import pyarrow as pa

from actors.core.errors import UserError
from actors.core.stage import Batch, Stage
from actors.curation.measuring.family import Reads

EXTRA = 'Text in pictures needs the extra `text`. Install it: pip install -c constraints.txt -e ".[text]"'
CHARACTERS = 2
"""Least letters and digits of a line: wheels and windows are taken for single ones."""


@dataclass(frozen=True)
class TextConfig(Stage):
    """How written words are found and read in key frames."""

    MEMORY_GB: ClassVar[float] = 0.6

    workers: int = 0
    """Workers at once over the whole cluster. 0: as many as CPUs allow."""
    batch_size: int = 8
    """Scenes per call of a worker."""
    side: int = 320
    """Pictures with a shorter short side, in pixels, are enlarged to it before words are searched. 736, the default of
    rapidocr, costs four times as much and takes more patterns for words."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_gpus:
            raise UserError(f"measure.text.num_gpus={self.num_gpus:g}: words are read on CPUs only. Leave it out.")
        if self.side < 32:
            raise UserError(f"measure.text.side={self.side}: set 32 or more, in pixels")


class TextScorer:
    """Find and read the words in the key frames of scenes: titles, subtitles, signs and watermarks with letters.

    text_area         float32, 0 to 1: share of the picture that the boxes of lines cover together, mean over key
                      frames. A box is about 1.5 times as large as its letters.
    text_words        int32: words in the key frame that has most; where recognition misses a space, two count as one
    text_corner       float32, 0 to 1: share of that area in the four corners, each a quarter of the width by a quarter
                      of the height; NaN without text. High for watermarks.
    text_lower_third  float32, 0 to 1: share of that area in the lower third; NaN without text. High for subtitles.
    text              string: the lines, separated by line breaks, each once; "" without text

    The models are PP-OCRv6 small, for detection and for recognition of Chinese, Japanese and languages with Latin
    letters, as rapidocr ships them. A line counts if recognition reads at least two letters or digits with a
    confidence of 0.5 or more. Key frames are cut to what is inside of black bars: subtitles in bars are not seen.
    """

    reads: Reads = "keyframes"
    columns: ClassVar[dict[str, pa.DataType]] = {
        "text_area": pa.float32(),
        "text_words": pa.int32(),
        "text_corner": pa.float32(),
        "text_lower_third": pa.float32(),
        "text": pa.string(),
    }
    settings = TextConfig

    def __init__(self, config: TextConfig) -> None:
        self.check(config)
        from rapidocr import RapidOCR

        # Else each worker would compute with all cores of its node.
        threads = max(1, int(config.num_cpus))
        cv2.setNumThreads(threads)
        self._read = RapidOCR(
            params={
                "Global.log_level": "error",
                # Whether a line is upside down.
                "Global.use_cls": False,
                "Det.limit_side_len": config.side,
                "EngineConfig.onnxruntime.intra_op_num_threads": threads,
                "EngineConfig.onnxruntime.inter_op_num_threads": 1,
            }
        )

    @staticmethod
    def check(config: TextConfig) -> None:
        """Raise UserError where the extra is not installed."""
        if not all(importlib.util.find_spec(name) for name in ("rapidocr", "onnxruntime")):
            raise UserError(EXTRA)

    @staticmethod
    def identity(config: TextConfig) -> str:
        """The version of the package that holds the models."""
        TextScorer.check(config)
        return metadata.version("rapidocr")

    def __call__(self, batch: Batch) -> dict[str, list[Any]]:
        """Measure scenes: `frames`, uint8 (1 to 3, H, W, 3) RGB each."""
        rows = [self._scene(frames) for frames in batch["frames"]]
        return {name: [row[name] for row in rows] for name in self.columns}

    def _scene(self, frames: np.ndarray) -> dict[str, Any]:
        lines = [list(self._lines(frame)) for frame in frames]
        covered = np.stack([_covered(frames.shape[1:3], [box for box, _ in found]) for found in lines])
        height, width = covered.shape[1:]
        y, x = (np.arange(size) + 0.5 for size in (height, width))
        corner = (np.abs(y / height - 0.5) > 0.25)[:, None] & (np.abs(x / width - 0.5) > 0.25)
        area = covered.mean()
        return {
            "text_area": area,
            "text_words": max(sum(len(text.split()) for _, text in found) for found in lines),
            "text_corner": (covered & corner).mean() / area if area else np.nan,
            "text_lower_third": covered[:, y > height * 2 / 3].sum() / covered.sum() if area else np.nan,
            "text": "\n".join(dict.fromkeys(text for _, text in chain.from_iterable(lines))),
        }

    def _lines(self, frame: np.ndarray) -> Iterator[tuple[np.ndarray, str]]:
        """The four corners (4, 2) of each line of text in a picture, x and y in pixels, and what it says."""
        # It takes arrays for OpenCV's, whose channels are in this order.
        found: Any = self._read(np.ascontiguousarray(frame[..., ::-1]))
        if found.txts is None:
            return
        for box, text in zip(found.boxes, found.txts, strict=True):
            if sum(map(str.isalnum, text)) >= CHARACTERS:
                yield np.round(box).astype(np.int32), " ".join(text.split())


def _covered(shape: tuple[int, ...], boxes: list[np.ndarray]) -> np.ndarray:
    """Which pixels of a picture (H, W) lie in any of the boxes: bool (H, W)."""
    mask = np.zeros(shape, np.uint8)
    for box in boxes:
        cv2.fillConvexPoly(mask, box, 1)
    return mask.astype(bool)

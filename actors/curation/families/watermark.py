"""Logos and watermarks: structure that lies at the same place in pictures of all scenes of a film."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import cv2
import numpy as np
import pyarrow as pa

from actors.core.stage import Batch, Stage
from actors.curation.measuring.family import Placed

SIDE = 360
"""Short side in pixels of the canvas on which pictures are compared."""
LEAST_PICTURES = 6
"""Fewer that differ say nothing."""
ALIKE = 0.9
"""Correlation of two pictures, 16 pixels a side, from which on they show the same place."""
GRADIENT = 4.0
"""Median gradient, in grey levels a pixel, below which there is nothing."""
ONE_WAY, COHERENT = 7.0, (0.6, 0.95)
"""Coherence is the length of the mean gradient over the mean length. Chance, which has n pictures go one way, exceeds
the root of ONE_WAY / n at one pixel in a thousand (Rayleigh); least and most that is demanded."""
LEAST_SIDE = 16
"""Pixels of the shorter side below which a picture on the canvas shows nothing."""
JOIN = 0.03
"""Strokes as near as this, in short sides, belong to one mark."""
LEAST_STROKE = 60
"""Pixels of edges that a mark has at least, on the canvas."""
LINE = 0.5
"""Share of a row or column from which on it is the edge of a black bar, or of a frame around the picture."""
LARGEST = 0.25
"""Share of the frame above which it is the picture that stands still, not a mark."""


@dataclass(frozen=True)
class WatermarkConfig(Stage):
    """Marks that are the same in all scenes of a film."""

    MEMORY_GB: ClassVar[float] = 0.3

    workers: int = 0
    """Workers at once over the whole cluster; 0: as many as CPUs allow."""
    batch_size: int = 1024
    """Scenes per call; those of one film in a call are measured once."""


class Watermark:
    """Find logos and watermarks of films, opaque or half-transparent.

    As in Dekel et al. 2017 (On the Effectiveness of Visible Watermarks) the gradient of a mark is the median of the
    gradients of many pictures, of which the scenes' own cancel each other. A mark is a group of pixels where that
    median is large and the direction nearly the same in all pictures. Pictures of the same place count once.

    Columns, the same for all scenes of a film. Null (not measured) where fewer than 6 of its pictures differ, and
    where more than a quarter of the frame stands still:
        watermark        bool: whether there is one
        watermark_area   float32, 0 to 1: share of the frame that marks take, as rectangles; 0 without one
        watermark_place  str: where the clearest one is: top_left, top, top_right, left, center, right, bottom_left,
                         bottom or bottom_right; "" without one
    Marks that move, that are there for less than half of the film, or that are faint (4 grey levels a pixel at their
    edges) are not found. A film of 64 pictures takes 0.5 CPU-s (`python -m tests.benchmarks.families cost`).
    """

    reads = "video"
    columns: ClassVar[Mapping[str, pa.DataType]] = {
        "watermark": pa.bool_(),
        "watermark_area": pa.float32(),
        "watermark_place": pa.string(),
    }
    settings = WatermarkConfig

    def __init__(self, config: WatermarkConfig) -> None:
        self._threads = max(1, int(config.num_cpus))

    def __call__(self, batch: Batch) -> dict[str, list[bool | float | str | None]]:
        cv2.setNumThreads(self._threads)
        films: dict[str, tuple[bool, float, str] | None] = {}
        columns = zip(batch["video_id"], batch["pictures"], batch["width"], batch["height"], strict=True)
        for video_id, pictures, width, height in columns:
            if video_id not in films:
                films[video_id] = marked(pictures, int(width), int(height))
        found = [films[video_id] or (None, None, None) for video_id in batch["video_id"]]
        return {name: [one[i] for one in found] for i, name in enumerate(self.columns)}


def marked(pictures: Sequence[Placed], width: int, height: int) -> tuple[bool, float, str] | None:
    """Whether a film of that size has a mark, its area and its place; None where too few pictures differ."""
    scale = min(1.0, SIDE / max(1, min(width, height)))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    placed = [canvas for canvas in (_placed(one, size) for one in pictures) if canvas is not None]
    placed = _different(placed)
    if len(placed) < LEAST_PICTURES:
        return None
    stroke = _without_bars(_constant(placed))
    boxes = _boxes(stroke)
    if not boxes:
        return False, 0.0, ""
    area = sum(box[2] * box[3] for box in boxes) / stroke.size
    if area > LARGEST:
        return None
    left, top, wide, high, _ = max(boxes, key=lambda box: box[4])
    return True, float(area), _place((left + wide / 2) / size[0], (top + high / 2) / size[1])


def _placed(picture: Placed, size: tuple[int, int]) -> np.ndarray | None:
    """A picture where it lies in the frame, float32 (H, W) luma; NaN around it. None where nothing is left of it."""
    left, top, right, bottom = (round(at * size[i % 2]) for i, at in enumerate(picture.box))
    if min(right - left, bottom - top) < LEAST_SIDE or not picture.image.size:
        return None
    grey = cv2.cvtColor(np.ascontiguousarray(picture.image), cv2.COLOR_RGB2GRAY)
    shrinks = grey.shape[1] > right - left
    way = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    canvas = np.full((size[1], size[0]), np.nan, np.float32)
    canvas[top:bottom, left:right] = cv2.resize(grey, (right - left, bottom - top), interpolation=way)
    return canvas


def _different(placed: list[np.ndarray]) -> list[np.ndarray]:
    """The pictures without those that show the same as one before, or nothing."""
    kept: list[np.ndarray] = []
    seen: list[np.ndarray] = []
    for canvas in placed:
        small = cv2.resize(np.nan_to_num(canvas), (16, 16), interpolation=cv2.INTER_AREA).ravel()
        deviation = small.std()
        if deviation < 2:
            continue
        small = (small - small.mean()) / deviation / math.sqrt(small.size)
        if all(small @ other < ALIKE for other in seen):
            seen.append(small)
            kept.append(canvas)
    return kept


def _constant(placed: list[np.ndarray]) -> np.ndarray:
    """Where the gradient is the same in nearly all pictures: bool (H, W)."""
    across, down = np.empty((2, len(placed), *placed[0].shape), np.float32)
    for i, canvas in enumerate(placed):
        # What has no value spreads: the edges of pictures, and of black bars, are no gradients.
        soft = cv2.GaussianBlur(canvas, (0, 0), 0.8)
        across[i], down[i] = (cv2.Sobel(soft, cv2.CV_32F, x, 1 - x, scale=1 / 8) for x in (1, 0))
    count = np.isfinite(across).sum(0)
    length = np.nansum(np.hypot(across, down), axis=0)
    coherent = np.hypot(np.nansum(across, axis=0), np.nansum(down, axis=0)) / np.maximum(length, 1e-6)
    demanded = np.sqrt(ONE_WAY / np.maximum(count, 1)).clip(*COHERENT)
    median = np.hypot(_median(across, count), _median(down, count))
    return (count >= LEAST_PICTURES) & (median >= GRADIENT) & (coherent >= demanded)


def _without_bars(stroke: np.ndarray) -> np.ndarray:
    """Strokes without lines from side to side, the edges of black bars that were not cut off."""
    lines = [np.convolve(stroke.mean(axis) > LINE, np.ones(5), "same") > 0 for axis in (1, 0)]
    return stroke & ~lines[0][:, None] & ~lines[1]


def _median(values: np.ndarray, count: np.ndarray) -> np.ndarray:
    """The median over pictures of those that have a value, `count` of them; NaN, which sorts last, without any."""
    values.sort(axis=0)
    low, high = (np.maximum(middle, 0)[None] for middle in ((count - 1) // 2, count // 2))
    return (np.take_along_axis(values, low, 0)[0] + np.take_along_axis(values, high, 0)[0]) / 2


def _boxes(stroke: np.ndarray) -> list[tuple[int, ...]]:
    """Left, top, width, height and pixels of the marks that strokes make together."""
    reach = max(3, round(JOIN * min(stroke.shape)))
    joined = cv2.morphologyEx(stroke.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((reach, reach), np.uint8))
    joined = cv2.dilate(joined, np.ones((3, 3), np.uint8))
    count, labels, about, _ = cv2.connectedComponentsWithStats(joined, connectivity=8)
    strokes = np.bincount(labels[stroke], minlength=count)
    marks = [i for i in range(1, count) if strokes[i] >= LEAST_STROKE and min(about[i, 2:4]) > reach]
    return [(*map(int, about[i, :4]), int(strokes[i])) for i in marks]


def _place(x: float, y: float) -> str:
    column = ("left", "", "right")[min(2, int(x * 3))]
    row = ("top", "", "bottom")[min(2, int(y * 3))]
    return "_".join(filter(None, (row, column))) or "center"

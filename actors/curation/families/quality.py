"""How good key frames look: sharpness, exposure, noise, block artefacts, saturation, black and blown-out areas."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import cv2
import numpy as np
import pyarrow as pa

from actors.core.stage import Batch, Stage

SIDE = 256
"""Short side in pixels at which sharpness is measured, so that it is that of the picture and not of its size."""
BLUR = 11
"""Pixels over which the second picture of Crete's measure is blurred; that of the paper is 9 at full size."""
FLAT = 0.1
"""Mean difference between neighbours, in grey levels, below which a picture has nothing that could be sharp."""
NOISE = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)
"""Immerkær's mask: blind to planes and edges, and 6 times the standard deviation of noise."""
TILE = 16
"""Side in pixels of the tiles of which the quietest quarter tells noise."""
UNCLIPPED = 16, 239
"""Mean grey level of tiles in which noise is not cut off by black or white."""
BLACK, WHITE = 25.5, 250.0
"""Luma up to which a pixel is black, a tenth as in FFmpeg's blackdetect, and from which on it is blown out."""
CELL = 8
"""Pixels of a block of MPEG, H.26x and JPEG."""
LEAST_PITCH = 3.0
"""Pixels from one block's edge to the next in the key frame below which they cannot be told from texture."""
EDGE = 16.0
"""Differences of more grey levels count as so many: edges of what is shown, not of blocks."""


@dataclass(frozen=True)
class QualityConfig(Stage):
    """Technical quality of key frames."""

    MEMORY_GB: ClassVar[float] = 0.3

    workers: int = 0
    """Workers at once over the whole cluster; 0: as many as CPUs allow."""


class Quality:
    """Measure the technical quality of the key frames of scenes, each column as the mean over them.

    Columns, all float32:
        sharpness    0 (blurred) to about 0.7: 1 minus the blur metric of Crete et al. 2007 (The Blur Effect), at a
                     short side of 256 pixels, after a Gaussian of 1 pixel. It compares a picture with itself blurred,
                     so that contrast does not matter; at one size after smoothing, film grain and resolution hardly do.
                     NaN for pictures without any structure
        exposure     0 to 1: mean luma (BT.601)
        noise        standard deviation of noise in grey levels, from 0: Immerkær 1996 (Fast Noise Variance Estimation)
                     in the quietest quarter of tiles of 16 pixels, so that texture counts little. It is that of key
                     frames: scaling them down and JPEG take part of the film's. NaN where no tile is free of clipping
        blockiness   from 0 (none): how much gradients rise at the edges of 8×8 blocks, over their mean (after Wang,
                     Sheikh and Bovik 2000, Blind Measurement of Blocking Artifacts in Images). The grid is sought where
                     scaling to the key frame has put it; scaling takes most of it, so that only films of one height
                     compare: blocks that have 1.3 in a film of 480 lines have 0.1 in one of 720. Films that are not
                     scaled down have up to about 0.3 from the JPEG of the key frames. Codecs with a deblocking filter
                     (H.264 and later) leave few blocks. NaN where the pitch is below 3 pixels: films of more than 1365
                     lines for key frames of 512
        saturation   0 to 1: mean of the largest minus the smallest of red, green and blue
        black_share  0 to 1: share of pixels with luma up to 0.1, as FFmpeg's blackdetect counts them
        white_share  0 to 1: share of pixels with luma of 250 of 255 or more, blown out
    A scene of three key frames of 512 lines takes 14 CPU-ms (`python -m tests.benchmarks.families cost`).
    """

    reads = "keyframes"
    columns: ClassVar[Mapping[str, pa.DataType]] = dict.fromkeys(
        ("sharpness", "exposure", "noise", "blockiness", "saturation", "black_share", "white_share"), pa.float32()
    )
    settings = QualityConfig

    def __init__(self, config: QualityConfig) -> None:
        self._threads = max(1, int(config.num_cpus))

    def __call__(self, batch: Batch) -> dict[str, list[float]]:
        cv2.setNumThreads(self._threads)
        scenes = [
            [_measured(image, (width, height)) for image in images]
            for images, width, height in zip(batch["frames"], batch["width"], batch["height"], strict=True)
        ]
        return {name: [_mean([one[name] for one in scene]) for scene in scenes] for name in self.columns}


def _mean(values: list[float]) -> float:
    there = [value for value in values if not math.isnan(value)]
    return sum(there) / len(there) if there else math.nan


def _measured(image: np.ndarray, film: tuple[int, int]) -> dict[str, float]:
    """The columns for one picture, uint8 (H, W, 3) RGB, of a film of that width and height."""
    image = np.ascontiguousarray(image)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    # Black bars are cut off, mostly of one pair of sides: the other tells how much was scaled.
    scale = min(1.0, max(image.shape[1] / max(1, film[0]), image.shape[0] / max(1, film[1])))
    return {
        "sharpness": sharpness(grey),
        "exposure": float(grey.mean()) / 255,
        "noise": noise(grey),
        "blockiness": blockiness(grey, CELL * scale),
        "saturation": _chroma(image),
        "black_share": float((grey <= BLACK).mean()),
        "white_share": float((grey >= WHITE).mean()),
    }


def _chroma(image: np.ndarray) -> float:
    red, green, blue = cv2.split(image)
    return cv2.absdiff(cv2.max(cv2.max(red, green), blue), cv2.min(cv2.min(red, green), blue)).mean() / 255


def sharpness(grey: np.ndarray) -> float:
    """Share of the differences between neighbours that blurring takes away, in the direction where it is less."""
    scale = SIDE / min(grey.shape)
    size = max(1, round(grey.shape[1] * scale)), max(1, round(grey.shape[0] * scale))
    grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    grey = cv2.GaussianBlur(grey, (0, 0), 1)
    shares = []
    for axis, kernel in ((0, (1, BLUR)), (1, (BLUR, 1))):
        before = np.abs(np.diff(grey, axis=axis))
        after = np.abs(np.diff(cv2.blur(grey, kernel), axis=axis))
        if before.mean() < FLAT:
            return math.nan
        shares.append(float(np.maximum(before - after, 0).sum() / before.sum()))
    return min(shares)


def noise(grey: np.ndarray) -> float:
    """Standard deviation of noise, in grey levels, in the quietest quarter of tiles."""
    rows, columns = (side // TILE for side in grey.shape)
    if not rows or not columns:
        return math.nan

    def tiles(values: np.ndarray) -> np.ndarray:
        return values[: rows * TILE, : columns * TILE].reshape(rows, TILE, columns, TILE).mean((1, 3))

    found = tiles(np.abs(cv2.filter2D(grey, cv2.CV_32F, NOISE)))
    level = tiles(grey)
    found = found[(level >= UNCLIPPED[0]) & (level <= UNCLIPPED[1])]
    return float(math.sqrt(math.pi / 2) / 6 * np.quantile(found, 0.25)) if found.size else math.nan


def blockiness(grey: np.ndarray, pitch: float) -> float:
    """How much higher gradients are at a grid of so many pixels, over their mean; the mean of both directions."""
    if pitch < LEAST_PITCH or min(grey.shape) < 8 * CELL:
        return math.nan
    return sum(_grid(values, pitch) for values in (grey, np.ascontiguousarray(grey.T))) / 2


def _grid(grey: np.ndarray, pitch: float) -> float:
    profile = np.minimum(cv2.absdiff(grey[:, 1:], grey[:, :-1]), EDGE).mean(0, dtype=np.float64)
    if profile.mean() < FLAT:
        return 0.0
    count = len(profile)
    window = np.hanning(count)
    # Harmonics of the grid, and beside each what is there without one, a few periods of the picture away.
    harmonics = np.arange(1, int(pitch / 2) + 1) / pitch
    beside = np.array([-7, -6, -5, -4, 0, 4, 5, 6, 7]) / count
    wave = np.exp(-2j * np.pi * np.arange(count) * (harmonics[:, None] + beside)[..., None])
    # Not as a product of matrices, for which BLAS would take all cores.
    found = np.abs((wave * (window * (profile - profile.mean()))).sum(-1)) / window.sum()
    rise = np.maximum(found[:, 4] - np.median(np.delete(found, 4, axis=1), axis=1), 0)
    return float(2 * rise.sum() / profile.mean())

"""How the camera moves in a scene: which way and how fast it pans, tilts and zooms, and how much it shakes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import cv2
import numpy as np
import pyarrow as pa

from actors.core.stage import Batch, Stage

POINTS = 300
"""Corners that are tracked from one frame to the next, at most."""
LEAST_POINTS = 20
"""Fewer that are found again tell no motion: frames without texture, a cut, a flash."""
LEAST_SHARE = 0.4
"""Share of points on which one motion must agree to be the camera's."""
BACK = 1.0
"""Pixels by which a point may miss itself when it is tracked back."""
AGREES = 1.5
"""Pixels by which a point may be off the camera's motion and still follow it."""
STATIC = 0.01
"""Speed below which the camera stands, in frame widths a second: 0.6 pixels of 240 in a quarter of a second."""
SMOOTH = 5
"""Pairs of frames over which motion is averaged to tell what is intended from shake."""
CELLS = 12
"""Cells along a side of the frame; the points in one vote whether it follows the camera's motion."""
ZOOM_SPEED = math.sqrt(1 / 6)
"""Mean (root mean square) distance of a square's points from its centre, in sides: speed there for a zoom rate of 1."""


@dataclass(frozen=True)
class CameraConfig(Stage):
    """Motion of the camera in the sampled frames of scenes."""

    MEMORY_GB: ClassVar[float] = 0.3

    workers: int = 0
    """Workers at once over the whole cluster; 0: as many as CPUs allow."""


class Camera:
    """Measure how the camera moves, on neighbouring sampled frames.

    From one frame to the next corners are tracked (Shi and Tomasi 1994; pyramidal Lucas-Kanade, forwards and backwards)
    and one shift, rotation and scale is fitted to them by RANSAC: the camera's motion. A width is that of the sampled
    frame, a square of the film's short side.

    Columns, NaN or null where no pair of frames can be measured (no texture, cuts, flashes, too fast):
        camera             str: what it mostly does: static, pan, tilt, zoom or shake
        camera_static      float32, 0 to 1: share of the measured time in which it stands (below 0.01 widths a second)
        camera_pan         float32, widths a second: mean speed to the right; to the left it is negative
        camera_tilt        float32, widths a second: mean speed upwards; downwards it is negative
        camera_zoom        float32, natural logarithm of scale a second: mean zoom (or travel) in; out it is negative
        camera_shake       float32, widths: how far frames are off a smooth path, as a standard deviation. From third
                           differences of the path, whose typical value is 4.47 times that for independent offsets;
                           NaN below four frames in a row
        moving_foreground  float32, 0 to 1: share of the frame, in cells of a twelfth of its side, that moves otherwise
                           than the camera makes it; areas without texture count as still. What is near moves otherwise
                           than what is far where a camera travels, and counts too. Where more than half moves alike,
                           that is taken for the camera
    A pair of frames takes 8 CPU-ms (`python -m tests.benchmarks.families cost`).
    """

    reads = "frames"
    columns: ClassVar[Mapping[str, pa.DataType]] = {
        "camera": pa.string(),
        **dict.fromkeys(
            ("camera_static", "camera_pan", "camera_tilt", "camera_zoom", "camera_shake", "moving_foreground"),
            pa.float32(),
        ),
    }
    settings = CameraConfig

    def __init__(self, config: CameraConfig) -> None:
        self._threads = max(1, int(config.num_cpus))

    def __call__(self, batch: Batch) -> dict[str, list[Any]]:
        cv2.setNumThreads(self._threads)
        found = [_measured(*one) for one in zip(batch["frames"], batch["interval_s"], strict=True)]
        return {name: [one[name] for one in found] for name in self.columns}


def _measured(frames: np.ndarray, interval_s: float) -> dict[str, Any]:
    nothing = dict.fromkeys(Camera.columns, math.nan) | {"camera": None}
    if len(frames) < 2:
        return nothing
    greys = [cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY) for frame in frames]
    pairs = np.array([pair_motion(*pair) for pair in pairwise(greys)])
    seen = np.isfinite(pairs[:, 0])
    if not seen.any():
        return nothing
    # In widths, and as the camera moves: what is seen goes the other way. All a second but the shake.
    moved = pairs[:, :4] * (-1, 1, 1, 1)
    speeds = moved / interval_s
    zoom_roll = ZOOM_SPEED * np.hypot(speeds[:, 2], speeds[:, 3])
    static = np.sqrt(speeds[:, 0] ** 2 + speeds[:, 1] ** 2 + zoom_roll**2)[seen] < STATIC
    pan, tilt, zoom = speeds[seen, :3].mean(0)
    return {
        "camera": _kind(speeds, static.mean(), _shake(moved) * math.sqrt(2) / interval_s),
        "camera_static": static.mean(),
        "camera_pan": pan,
        "camera_tilt": tilt,
        "camera_zoom": zoom,
        "camera_shake": _shake(moved),
        "moving_foreground": pairs[seen, 4].mean(),
    }


def _kind(speeds: np.ndarray, static: float, shake: float) -> str:
    """What moves points of the frame fastest; of shake it is the speed from frame to frame, all in widths a second."""
    if static >= 0.5:
        return "static"
    # Pairs without a value are those around cuts and flashes: over them it is as before and after.
    smooth = np.array(
        [np.nanmean(speeds[max(0, i - SMOOTH // 2) : i + SMOOTH // 2 + 1], axis=0) for i in _seen(speeds)]
    )
    pan, tilt, zoom = np.abs(smooth[:, :3]).mean(0)
    kinds = {"pan": pan, "tilt": tilt, "zoom": ZOOM_SPEED * zoom, "shake": 0.0 if math.isnan(shake) else shake}
    return max(kinds, key=lambda kind: kinds[kind])


def _seen(speeds: np.ndarray) -> np.ndarray:
    return np.flatnonzero(np.isfinite(speeds[:, 0]))


def _shake(moved: np.ndarray) -> float:
    """Standard deviation of independent offsets of frames from a smooth path, in widths."""
    third = np.diff(moved[:, :2], n=2, axis=0)
    third = third[np.isfinite(third[:, 0])]
    # The median, so that where a motion begins or ends counts little; of a normal distribution it is 0.6745 deviations.
    return float(np.hypot(*np.median(np.abs(third), axis=0)) / 0.6745 / math.sqrt(20)) if len(third) else math.nan


def pair_motion(before: np.ndarray, after: np.ndarray) -> tuple[float, ...]:
    """How the content of a frame, uint8 (H, W), moves to the next, and the share of it that moves otherwise.

    Returns the shift of the centre to the right and down in widths, the logarithm of scale, the rotation in radians,
    and the share; NaN where it cannot be told.
    """
    nothing = (math.nan,) * 5
    height, width = before.shape
    start = cv2.goodFeaturesToTrack(before, POINTS, 0.01, max(3, width / 40))
    if start is None or len(start) < LEAST_POINTS:
        return nothing
    there, found, _ = cv2.calcOpticalFlowPyrLK(before, after, start, np.empty_like(start), maxLevel=4)
    back, returned, _ = cv2.calcOpticalFlowPyrLK(after, before, there, np.empty_like(start), maxLevel=4)
    kept = np.logical_and(found, returned).ravel() & (np.abs(back - start).max(axis=(1, 2)) < BACK)
    start, there = start[kept, 0], there[kept, 0]
    if len(start) < max(LEAST_POINTS, LEAST_SHARE * len(kept)):
        return nothing
    # From the centre, so that its shift does not depend on rotation and scale.
    centre = np.array([(width - 1) / 2, (height - 1) / 2], np.float32)
    matrix, follows = cv2.estimateAffinePartial2D(
        start - centre, there - centre, method=cv2.RANSAC, ransacReprojThreshold=AGREES, maxIters=500
    )
    if matrix is None or follows.mean() < LEAST_SHARE:
        return nothing
    scale = math.hypot(matrix[0, 0], matrix[1, 0])
    if not 0.5 < scale < 2:
        return nothing
    cell = (start * CELLS / (width, height)).astype(int).clip(0, CELLS - 1) @ (1, CELLS)
    votes, followers = (np.bincount(cell, weights, CELLS**2) for weights in (None, follows.ravel()))
    alone = ((votes > 0) & (followers < votes / 2)).mean()
    shift = matrix[:, 2] / width
    return shift[0], shift[1], math.log(scale), math.atan2(matrix[1, 0], matrix[0, 0]), alone

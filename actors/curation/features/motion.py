"""How much a scene moves: squared colour difference and optical flow between neighbouring frames.

Frames are uint8 (T, H, W, 3) RGB in time order; T frames make T - 1 pairs.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import cv2
import numpy as np

from actors.core.stage import Stage
from actors.models.memory import worker_gb

Frames = np.ndarray


@dataclass(frozen=True)
class MotionConfig(Stage):
    """How optical flow is measured."""

    flow: Literal["farneback", "scaled", "vectors", "raft"] = "farneback"
    """Method of optical flow. farneback: exact, on CPUs. scaled: Farneback at half size, doubled, about five times as
    fast. vectors: the codec's own motion vectors (H.264, MPEG-1, 2 and 4), for a rough first filter of small films: its
    rank correlation with farneback is 0.86 (scaled: 0.98), and from 720p on it costs as much as scaled. Its median is
    1.5 times as large, so thresholds need other values. Scenes without vectors get farneback's; `computed` says so.
    raft: torchvision's network, best on GPUs."""
    weights: str = "C_T_SKHT_V2"
    """RAFT weights: a name of torchvision's Raft_Large_Weights, or the path of a state dict in safetensors. Only
    motion.flow=raft uses them."""
    batch_size: int = 8
    """Scenes per call of a RAFT worker. Lower it where GPU memory is short."""

    @property
    def worker_gb(self) -> float:
        """Memory of one worker of RAFT, in GiB."""
        return worker_gb(call_gb=0.2, num_gpus=self.num_gpus)

    @property
    def by_codec(self) -> bool:
        """Whether decoders are asked for motion vectors."""
        return self.flow == "vectors"


def rgb_differences(frames: Frames) -> np.ndarray:
    """Mean over pixels and channels of the squared difference of each pair, on the 0-255 scale: float64 (T - 1,)."""
    pixels = frames[0].size
    return np.array([cv2.norm(a, b, cv2.NORM_L2SQR) / pixels for a, b in _pairs(frames)])


def farneback_speeds(frames: Frames) -> np.ndarray:
    """Mean length of the Farneback flow of each pair, in pixels per step: float64 (T - 1,).

    Parameters of the reference: pyramid scale .5, 3 levels, window 15, 3 iterations, polynomial 5 with sigma 1.2.
    """
    return _speeds([cv2.cvtColor(f, cv2.COLOR_RGB2GRAY) for f in frames], levels=3, window=15, iterations=3)


def scaled_speeds(frames: Frames) -> np.ndarray:
    """Estimate `farneback_speeds` from frames of half the size, times two: float64 (T - 1,).

    It ranks pairs of frames alike; on real film its median is 1.1 to 1.3 times the exact one's.
    """
    height, width = frames.shape[1] // 2, frames.shape[2] // 2
    half = [
        cv2.resize(cv2.cvtColor(f, cv2.COLOR_RGB2GRAY), (width, height), interpolation=cv2.INTER_AREA) for f in frames
    ]
    return 2 * _speeds(half, levels=2, window=11, iterations=2)


FLOWS = {"farneback": farneback_speeds, "scaled": scaled_speeds}
"""The flows that run on a CPU, in the decode pass."""


BY_VECTORS, BY_FARNEBACK = "motion: vectors", "motion: farneback"
"""What the column computed says of scenes with motion.flow=vectors, of the second kind where they have none."""


def _speeds(greys: list[np.ndarray], levels: int, window: int, iterations: int) -> np.ndarray:
    speeds = []
    for previous, following in _pairs(greys):
        flow = np.empty((*previous.shape, 2), np.float32)
        cv2.calcOpticalFlowFarneback(previous, following, flow, 0.5, levels, window, iterations, 5, 1.2, 0)
        speeds.append(cv2.mean(cv2.magnitude(flow[..., 0], flow[..., 1]))[0])
    return np.array(speeds)


def _pairs(frames: Frames | list[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    return pairwise(frames)

"""Where a film cuts: PySceneDetect's detectors, fed from the decode pass that serves everything else."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import cv2
import numpy as np
from scenedetect import AdaptiveDetector, ContentDetector, FrameTimecode
from scenedetect.detector import FlashFilter


@dataclass(frozen=True)
class ShotsConfig:
    """How a film without metadata is cut into shots."""

    detector: Literal["none", "content", "adaptive"] = "adaptive"
    """none: the whole film is one scene."""
    threshold: float | None = None
    """Score above which a frame starts a shot; PySceneDetect's default (content 27, adaptive 3) where it is not given."""
    min_length_s: float = 0.6
    """A cut sooner than this after the one before is ignored."""
    width: int = 256
    """Frames are compared at about this width."""


class CutFinder:
    """Feed frames one by one; each call answers which earlier frame turned out to start a shot."""

    def __init__(self, config: ShotsConfig, rate: Fraction) -> None:
        self._rate = rate
        length = max(1, round(config.min_length_s * rate))
        if config.detector == "content":
            # Suppressing answers at once; merging would hold half a second of full-size frames back.
            self._detector = ContentDetector(
                threshold=27.0 if config.threshold is None else config.threshold,
                min_scene_len=length,
                filter_mode=FlashFilter.Mode.SUPPRESS,
            )
        else:
            self._detector = AdaptiveDetector(
                adaptive_threshold=3.0 if config.threshold is None else config.threshold, min_scene_len=length
            )
        self.delay = self._detector.event_buffer_length
        """How many frames after a cut it is answered at the latest."""
        self._index = 0

    def feed(self, frame: np.ndarray) -> list[int]:
        """Indices of frames, at most `delay` before this one, that start a shot; frame is uint8 (H, W, 3) RGB."""
        time = FrameTimecode(self._index, self._rate)
        self._index += 1
        return [cut.frame_num for cut in self._detector.process_frame(time, cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))]


@dataclass(frozen=True)
class CutScore:
    """Found cuts against annotated ones."""

    precision: float
    recall: float
    f1: float
    hits: int
    found: int
    annotated: int


def score_cuts(
    found: Sequence[int], annotated: Sequence[int], fades: Sequence[tuple[int, int]] = (), tolerance: int = 1
) -> CutScore:
    """Precision, recall and F1 of cuts, given as first frames of shots.

    A found cut hits an annotated one within ±tolerance frames, each used once; found cuts inside an annotated fade
    (first, last) are ignored. A ratio without a denominator is 1 where nothing was missed, as in information retrieval.
    """
    counted = sorted(f for f in found if not any(first <= f <= last for first, last in fades))
    free = sorted(annotated)
    hits = 0
    for cut in counted:
        i = bisect_left(free, cut - tolerance)
        if i < len(free) and free[i] <= cut + tolerance:
            del free[i]
            hits += 1
    precision = hits / len(counted) if counted else 1.0
    recall = hits / len(annotated) if annotated else 1.0
    f1 = 2 * precision * recall / (precision + recall) if hits else float(not counted and not annotated)
    return CutScore(precision, recall, f1, hits, len(counted), len(annotated))

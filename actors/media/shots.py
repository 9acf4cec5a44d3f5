"""How shots are found: settings, PySceneDetect's detectors fed from the one decode pass, and how finds are scored."""

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import cv2
import numpy as np
from scenedetect import AdaptiveDetector, ContentDetector, FrameTimecode

from actors.media.transnet import check_transnet

Detector = Literal["none", "content", "adaptive", "gradual", "hybrid", "transnetv2"]
NETWORKS = ("hybrid", "transnetv2")
"""Detectors with a network."""
BETWEEN = -1
"""In place of the number of a shot: the picture is of a transition, and belongs to none."""


@dataclass(frozen=True)
class ShotsConfig:
    """Shot detection in films without metadata."""

    detector: Detector | None = None
    """Shot detector. gradual: cuts, dissolves and fades; hybrid: the same, with a network where that is in doubt;
    transnetv2: the network throughout, which also sees wipes; content, adaptive: those of PySceneDetect, cuts only;
    none: the whole film is one scene. hybrid and transnetv2 need the extra `transnetv2`. null: gradual, or the one that
    the output was begun with."""
    threshold: float | None = None
    """From where on a shot starts; null: the detector's default. content: frame score (27); adaptive: frame score
    divided by those about it (3); gradual: change of a frame divided by those about it (1.7); hybrid, transnetv2:
    probability (0.5)."""
    min_length_s: float = 0.6
    """Shortest shot in seconds; a cut sooner after the last one is ignored."""
    width: int = 256
    """Width in pixels at which frames are compared; smaller is faster and less exact."""
    trim_transitions: bool = True
    """Frames of a dissolve, fade or wipe belong to no shot; false: the next shot starts in their middle."""
    check_named: bool = False
    """Also look for cuts inside scenes that metadata names; the column `cuts_inside` tells when, in seconds."""
    weights: str | None = None
    """Weights of the network, as a path on each worker; null: those of the package."""

    def __post_init__(self) -> None:
        if self.detector in NETWORKS:
            check_transnet(self.weights)


class _MeanDifference:
    """The frame score of PySceneDetect's detectors at a tenth of its cost; frames come as RGB, weights are the default.

    The score is the mean over pixels of the mean of the differences in hue, saturation and value, so it is one L1 norm.
    """

    _before: np.ndarray | None = None

    def _calculate_frame_score(self, timecode: FrameTimecode, frame_img: np.ndarray) -> float:
        hsv = cv2.cvtColor(frame_img, cv2.COLOR_RGB2HSV)
        before, self._before = self._before, hsv
        return 0.0 if before is None else cv2.norm(before, hsv, cv2.NORM_L1) / hsv.size


class _Content(_MeanDifference, ContentDetector): ...


class _Adaptive(_MeanDifference, AdaptiveDetector): ...


class CutFinder:
    """Feed frames one by one; each call answers which earlier frame turned out to start a shot."""

    def __init__(self, config: ShotsConfig) -> None:
        # The minimum length is not left to the detector, which would count frames, of whatever duration.
        if config.detector == "content":
            self._detector = _Content(27.0 if config.threshold is None else config.threshold, min_scene_len=0)
        else:
            self._detector = _Adaptive(3.0 if config.threshold is None else config.threshold, min_scene_len=0)
        self.delay = self._detector.event_buffer_length
        """How many frames after a cut it is answered at the latest."""
        self._min_length_s = config.min_length_s
        self._times: deque[float] = deque(maxlen=self.delay + 1)
        self._count = 0
        self._last_cut_s: float | None = None

    def feed(self, frame: np.ndarray, time_s: float) -> list[int]:
        """Indices of frames, at most `delay` before this one, that start a shot; frame is uint8 (H, W, 3) RGB."""
        if self._last_cut_s is None:
            self._last_cut_s = time_s
        self._times.append(time_s)
        # An index does where the detectors take a FrameTimecode, which computes in fractions.
        found = cast(list[int], self._detector.process_frame(cast(Any, self._count), frame))
        self._count += 1
        cuts = []
        for cut in found:
            time = self._times[cut - self._count]
            # Half a millisecond, since times are rounded.
            if time - self._last_cut_s >= self._min_length_s - 0.0005:
                self._last_cut_s = time
                cuts.append(cut)
        return cuts


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

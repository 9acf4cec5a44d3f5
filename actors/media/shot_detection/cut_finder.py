"""Where a film cuts: PySceneDetect's detectors, fed from the decode pass that serves everything else."""

from collections import deque
from typing import Any, cast

import cv2
import numpy as np
from scenedetect import AdaptiveDetector, ContentDetector, FrameTimecode

from actors.media.shot_detection.shots import ShotsConfig


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

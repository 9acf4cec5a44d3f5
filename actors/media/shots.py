"""Settings of shot detection, and how well found cuts fit annotated ones."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ShotsConfig:
    """Shot detection in films without metadata."""

    detector: Literal["none", "content", "adaptive"] = "adaptive"
    """Shot detector, as PySceneDetect names them; none: the whole film is one scene."""
    threshold: float | None = None
    """Frame score above which a shot starts; null: PySceneDetect's default (content 27, adaptive 3)."""
    min_length_s: float = 0.6
    """Shortest shot in seconds; a cut sooner after the last one is ignored."""
    width: int = 256
    """Width in pixels at which frames are compared; smaller is faster and less exact."""


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

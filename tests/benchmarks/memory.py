"""What scoring holds in memory; apart from the rest so that a process imports nothing else."""

from collections.abc import Iterator
from pathlib import Path

from actors.curation.cutting.cut import cut
from actors.curation.cutting.scenes import FramesConfig
from actors.curation.features.motion import MotionConfig
from actors.media.film import VideoConfig
from actors.media.shot_detection.shots import ShotsConfig


def peak_of_scoring(path: str) -> Iterator[float]:
    """Find a film's shots and measure them; the peak resident memory of this process in MB."""
    for _ in cut(path, "film", None, frozenset(), VideoConfig(), FramesConfig(), ShotsConfig(), MotionConfig()):
        pass
    # getrusage would tell the parent's peak where that is higher.
    status = Path("/proc/self/status").read_text()
    yield int(status.split("VmHWM:")[1].split()[0]) / 1024

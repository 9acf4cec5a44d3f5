"""Memory of the decoding process by the size of a film's pictures, and of small files that unfold large."""

import re
import tempfile
import time
from pathlib import Path
from typing import Any

import av
import numpy as np

from actors.core.child import Child, ChildFault
from actors.curation.cutting.cut import cut
from actors.curation.cutting.scenes import FramesConfig
from actors.curation.features.motion import MotionConfig
from actors.media.film import VideoConfig
from actors.media.shot_detection.shots import ShotsConfig
from tests.support import bombs

SIZES = {"1080p": (1920, 1080), "4K": (3840, 2160), "8K": (7680, 4320)}
FRAMES = 72
"""More than wait for their shot."""


def film(path: Path, size: tuple[int, int], pixels: str) -> Path:
    """A film of one shot in H.264, 8 or 10 bits, with a grey picture that becomes brighter."""
    with av.open(path, "w") as container:
        stream: Any = container.add_stream("libx264", rate=24, options={"preset": "ultrafast", "refs": "4"})
        (stream.width, stream.height), stream.pix_fmt = size, pixels
        for number in range(FRAMES):
            picture = np.full((size[1], size[0]), 60 + number % 180, np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="gray").reformat(format=pixels)
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def measured(path: Path, memory_gb: float = 64) -> str:
    """What a child takes for itself to cut a film, in GiB, and what became of the film."""
    child, config = Child(), VideoConfig(memory_gb=memory_gb)
    settings = FramesConfig(), ShotsConfig(), MotionConfig()
    began, told = time.monotonic(), ""
    try:
        for row in child.stream(cut, str(path), "v", None, frozenset(), config, *settings, **config.limits):
            told = row["error"] or told
        assert child._process
        status = Path(f"/proc/{child._process.pid}/status").read_text()
        found = re.search(r"VmHWM:\s+(\d+)", status)
        assert found
        most = int(found[1]) / 2**20
    except ChildFault as fault:
        most, told = child._grown / 2**30, fault.code
    child.kill()
    return f"{most:.2f} GiB, {time.monotonic() - began:.1f} s, {told or 'sound'}"


def main() -> None:
    """Print a line for each film."""
    with tempfile.TemporaryDirectory() as folder:
        for name, size in SIZES.items():
            for pixels in ("yuv420p", "yuv420p10le"):
                path = film(Path(folder, "film.mp4"), size, pixels)
                print(f"{name} {pixels}: {measured(path)}", flush=True)
        for name, make in bombs.TOO_LARGE.items():
            path = make(Path(folder, name))
            print(f"{name}, {path.stat().st_size / 1e6:.2f} MB: {measured(path)}", flush=True)
        path = bombs.large(Path(folder, "film.mov"))
        for memory_gb in (0.5, 2.0, 64.0):
            told = measured(path, memory_gb)
            print(
                f"40 PNGs of 8000x8000, {path.stat().st_size / 1e6:.2f} MB, memory_gb={memory_gb}: {told}", flush=True
            )


if __name__ == "__main__":
    main()

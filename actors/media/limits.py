"""What one film or picture may cost: pixels as stored and as shown, memory, and time; beyond it is `too_large`."""

import math
from dataclasses import dataclass, replace
from typing import Any

from actors.core import machine
from actors.core.errors import UserError
from actors.core.stage import Stage

MAX_PIXELS = 8192 * 8192
"""Pixels of the largest picture of a film that is decoded, unless settings say otherwise."""
MAX_RATIO = 256
"""Most that the long side of a picture, as shown, may be of its short side: models take it at a fixed short side."""
MAX_SIDE = 65_500
"""Longest side of a film's pictures as shown, in pixels: as far as JPEG goes."""
SHARE = 0.5
"""Of a machine's memory, what all processes that decode films on it may take together."""
LEAST_GB, LEAST_WITH_GPU_GB = 2.0, 4.0
"""Memory that a process gets at least by default, in GiB: film of 4K takes up to 1.4, and a GPU's driver some more."""


def beyond(width: int, height: int, max_pixels: int, max_side: float = math.inf) -> str:
    """Why a picture of this size, as shown, is too large; "" where it is not."""
    short, long = sorted((width, height))
    if short * long > max_pixels:
        return f"{width}x{height}, more than max_pixels={max_pixels}"
    if long > max_side:
        return f"{width}x{height}, longer than {max_side}"
    if long > MAX_RATIO * short:
        return f"{width}x{height}, more than {MAX_RATIO} times as long as wide"
    return ""


@dataclass(frozen=True)
class FilmStage(Stage):
    """Resources of a stage that decodes films, and what one film may take of them."""

    max_pixels: int = MAX_PIXELS
    """Pixels of the largest picture that is decoded, as stored and as shown with square pixels, at least 1. Films with
    larger ones get the error code `too_large` before memory is taken for them: a decoder needs about 15 bytes a pixel.
    """
    memory_gb: float = 0.0
    """Memory, in GiB (2^30 bytes), that the process which decodes a film may take; a film that takes more gets the
    error code `too_large`. 0: its share, by CPUs or `workers`, of half of its machine's memory, at least 2, with a GPU
    4. Ray reserves it (`memory`). H.264 of 8 and 10 bits takes 0.3 and 0.4 at 1080p, 0.8 and 1.4 at 4K, 2.7 and 5.2 at
    8K; with `shots.detector=transnetv2`, of 8 bits, 1.6 at 1080p and 3.4 at 4K."""
    stall_s: float = 120
    """Seconds without progress, as one frame may take, after which decoding of a film is given up (error code
    `stalled`)."""
    timeout_s: float = 4 * 3600
    """Seconds in all after which decoding of a film is given up (error code `timeout`)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_pixels < 1 or not 0 <= self.memory_gb < math.inf:
            raise UserError(
                f"max_pixels must be at least 1 and memory_gb 0 or more, not {self.max_pixels} and {self.memory_gb:g}"
            )

    def at_once(self, cpus: float) -> float:
        """Films that a machine with so many CPUs decodes at once, at most."""
        return max(1.0, min(cpus / max(self.num_cpus, 0.01), self.workers or math.inf))

    @property
    def memory_bytes(self) -> int:
        """Memory that a process may take on this machine, in bytes."""
        least = LEAST_WITH_GPU_GB if self.num_gpus else LEAST_GB
        share = SHARE * machine.memory_bytes() / self.at_once(machine.cpus())
        return int(self.memory_gb * 2**30 or max(least * 2**30, share))

    @property
    def limits(self) -> dict[str, Any]:
        """Arguments of `Child.stream`: what a call may take."""
        return {"stall_s": self.stall_s, "timeout_s": self.timeout_s, "memory_bytes": self.memory_bytes}

    def limits_of(self, processes: int) -> dict[str, Any]:
        """The same of each of so many processes that decode one film, on a CPU each."""
        own = self.memory_bytes // processes if self.memory_gb else replace(self, workers=0, num_cpus=1.0).memory_bytes
        return self.limits | {"memory_bytes": own}

    def resources(self) -> dict[str, Any]:
        """Arguments that Ray takes for one worker of this stage."""
        return super().resources() | ({"memory": int(self.memory_gb * 2**30)} if self.memory_gb else {})

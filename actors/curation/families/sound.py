"""Sound: whether there is any, how loud it is, and how much of it is silent, clipped or speech."""

import importlib
import importlib.metadata
import importlib.util
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from actors.core.errors import UserError
from actors.core.stage import Batch, Stage

BLOCK_S = 0.02
"""Seconds over which the level of sound is taken to tell silence."""
LOUDNESS_BLOCK_S = 0.4
"""Seconds of a block of ITU-R BS.1770: what is shorter has no loudness."""
FULL_SCALE = 0.999
"""From this on a sample is at full scale: 16 bits end at 0.99997, and decoders round."""
RUN = 3
"""Samples in a row at full scale that are clipping; a peak may touch it with fewer."""
LFE = 3
"""The channel of 5.1 that loudness leaves out (BS.1770-4, table 3)."""
SPEECH_RATE = 16_000
"""Samples a second that a detector of speech gets."""


@dataclass(frozen=True)
class SoundConfig(Stage):
    """Loudness, silence, clipping and speech of the sound of scenes."""

    MEMORY_GB: ClassVar[float] = 0.4

    workers: int = 0
    """Workers at once over the whole cluster; 0: as many as CPUs allow."""
    silence_db: float = -60.0
    """Level below which sound is silence, in dB of full scale (RMS over 20 ms of all channels). Raise it for films
    with hiss or hum."""
    detector: str | None = None
    """Your detector of speech, as package.module:function on PYTHONPATH, also on the workers. It takes float32
    (samples,) mono at 16 kHz, -1 to 1, and gives the share of time with speech, 0 to 1. null: `speech` is NaN."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.silence_db < 0:
            raise UserError(f"silence_db is below 0 (full scale), not {self.silence_db:g}")


class Sound:
    """Measure the sound of scenes.

    Columns, of all channels together:
        has_sound  bool: whether the film has a sound track, also where it is silent
        loudness   float32, LUFS, -70 to about 0: integrated loudness by ITU-R BS.1770-4 as pyloudnorm computes it; LFE
                   is left out. NaN where a scene is shorter than 0.4 s, or below -70 LUFS all the time
        silence    float32, 0 to 1: share of time below `silence_db`
        clipping   float32, 0 to 1: share of samples in runs of 3 or more at full scale. Codecs with loss round off what
                   was clipped before them, so that less of it is found
        speech     float32, 0 to 1: share of time with speech by `detector`; NaN without one
    Without sound all but has_sound are NaN. A second of stereo at 48 kHz takes 3 CPU-ms, without a detector
    (`python -m tests.benchmarks.families cost`).
    """

    reads = "sound"
    columns: ClassVar[Mapping[str, pa.DataType]] = {
        "has_sound": pa.bool_(),
        "loudness": pa.float32(),
        "silence": pa.float32(),
        "clipping": pa.float32(),
        "speech": pa.float32(),
    }
    settings = SoundConfig

    def __init__(self, config: SoundConfig) -> None:
        import pyloudnorm

        self._meter = pyloudnorm.Meter
        self._silence = 10 ** (config.silence_db / 20)
        self._detector: Callable[[np.ndarray], float] | None = None
        if config.detector:
            module, _, name = config.detector.partition(":")
            self._detector = getattr(importlib.import_module(module), name)

    @staticmethod
    def check(config: SoundConfig) -> None:
        """Raise UserError where pyloudnorm or the detector is missing."""
        if importlib.util.find_spec("pyloudnorm") is None:
            raise UserError("scores=sound needs the extra `sound`: pip install 'filmray[sound]'")
        if config.detector and not _is_there(config.detector):
            raise UserError(
                f"measure.sound.detector={config.detector} is not found: give package.module:function, with the "
                "package on PYTHONPATH"
            )

    @staticmethod
    def identity(config: SoundConfig) -> str:
        """The version of pyloudnorm."""
        return importlib.metadata.version("pyloudnorm")

    def __call__(self, batch: Batch) -> dict[str, list[Any]]:
        found = [self._measure(*one) for one in zip(batch["sound"], batch["sample_rate"], strict=True)]
        return {name: [one[name] for one in found] for name in self.columns}

    def _measure(self, sound: np.ndarray, rate: float) -> dict[str, Any]:
        if not sound.size:
            return dict.fromkeys(self.columns, math.nan) | {"has_sound": bool(sound.shape[0])}
        speech = math.nan
        if self._detector is not None:
            speech = float(self._detector(mono(sound, round(rate))))
        return {
            "has_sound": True,
            "loudness": self._loudness(sound, round(rate)),
            "silence": silent_share(sound, round(rate), self._silence),
            "clipping": clipped_share(sound),
            "speech": speech,
        }

    def _loudness(self, sound: np.ndarray, rate: int) -> float:
        if sound.shape[1] < math.ceil(LOUDNESS_BLOCK_S * rate):
            return math.nan
        heard = np.delete(sound, LFE, axis=0) if len(sound) == 6 else sound
        loudness = float(self._meter(rate).integrated_loudness(heard.T.astype(np.float64)))
        return loudness if math.isfinite(loudness) else math.nan


def silent_share(sound: np.ndarray, rate: int, below: float) -> float:
    """Share of time, in blocks of BLOCK_S, in which the RMS of sound, (channels, samples), is below a level."""
    size = max(1, round(BLOCK_S * rate))
    power = np.square(sound, dtype=np.float64).mean(0)
    starts = np.arange(0, len(power), size)
    lengths = np.diff(np.append(starts, len(power)))
    quiet = np.add.reduceat(power, starts) / lengths < below**2
    return float(lengths[quiet].sum() / len(power))


def clipped_share(sound: np.ndarray) -> float:
    """Share of samples, (channels, samples), in runs of RUN or more of one channel at one end of full scale."""
    clipped = 0
    for channel in sound:
        for end in (channel >= FULL_SCALE, channel <= -FULL_SCALE):
            edges = np.flatnonzero(np.diff(np.concatenate([[False], end, [False]]).astype(np.int8)))
            lengths = edges[1::2] - edges[::2]
            clipped += int(lengths[lengths >= RUN].sum())
    return clipped / sound.size


def mono(sound: np.ndarray, rate: int) -> np.ndarray:
    """The mean of all channels at SPEECH_RATE: float32 (samples,)."""
    from scipy.signal import resample_poly

    shared = math.gcd(SPEECH_RATE, rate)
    return resample_poly(sound.mean(0, dtype=np.float64), SPEECH_RATE // shared, rate // shared).astype(np.float32)


def _is_there(function: str) -> bool:
    """Whether a module is found by `module:function`; it is not imported."""
    module, _, name = function.partition(":")
    try:
        return bool(name) and importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False

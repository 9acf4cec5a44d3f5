"""HDR film (PQ, HLG) as an SDR screen shows it.

The signal becomes display light (ITU-R BT.2100-2, tables 4 and 5; HLG on a screen of 1,000 cd/m2), then light of BT.709
primaries (BT.2087), then its highlights are compressed: the EETF of BT.2390-8, 5.4.1, on the brightest of red, green
and blue, which keeps hues, from 1,000 cd/m2 to 203, the HDR reference white of BT.2408. Then it becomes the signal of
an SDR screen (BT.1886 with black at 0). One curve for all films, whatever their metadata say: what is measured of them
can be compared. Light above 1,000 cd/m2 is white.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np

TRANSFERS = {16: "smpte2084", 18: "arib-std-b67"}
"""FFmpeg's numbers and names of PQ and HLG."""
PEAK, WHITE = 1000.0, 203.0
"""Light, in cd/m2, that becomes white, and that white stands for on an SDR screen."""
GRID = 65
"""Points of the table along each side: with 33 dark components of pure colours are wrong by 16 of 255."""
_TO_709 = np.array([[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]])
"""Light of BT.2020 primaries to that of BT.709."""
_LUMA_2020 = np.array([0.2627, 0.6780, 0.0593])


def pq_light(signal: np.ndarray) -> np.ndarray:
    """Display light, cd/m2, of a PQ signal from 0 to 1."""
    root = signal ** (1 / 78.84375)
    return 10000 * (np.maximum(root - 0.8359375, 0) / (18.8515625 - 18.6875 * root)) ** (1 / 0.1593017578125)


def pq_signal(light: np.ndarray) -> np.ndarray:
    """The PQ signal, 0 to 1, of display light in cd/m2."""
    root = (light / 10000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * root) / (1 + 18.6875 * root)) ** 78.84375


def hlg_light(signal: np.ndarray) -> np.ndarray:
    """Display light, cd/m2 on a screen of 1,000, of an HLG signal (..., 3) from 0 to 1, BT.2020 RGB."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
    return PEAK * (scene @ _LUMA_2020)[..., None] ** 0.2 * scene


def compressed(light: np.ndarray) -> np.ndarray:
    """Light from 0 to PEAK, cd/m2, with its highlights compressed to WHITE: the EETF of BT.2390."""
    peak = pq_signal(np.array(PEAK))
    signal, most = pq_signal(np.minimum(light, PEAK)) / peak, pq_signal(np.array(WHITE)) / peak
    knee = 1.5 * most - 0.5
    t = np.maximum(signal - knee, 0) / (1 - knee)
    shoulder = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (3 * t**2 - 2 * t**3) * most
    return pq_light(np.where(signal < knee, signal, shoulder) * peak)


def shown(signal: np.ndarray, transfer: str) -> np.ndarray:
    """What an SDR screen gets for an HDR signal, (..., 3) BT.2020 RGB from 0 to 1: BT.709 RGB from 0 to 1."""
    light = pq_light(signal) if transfer == "smpte2084" else hlg_light(signal)
    light = np.maximum(light @ _TO_709.T, 0)
    brightest = np.maximum(light.max(-1, keepdims=True), 1e-6)
    return np.clip(light * compressed(brightest) / brightest / WHITE, 0, 1) ** (1 / 2.4)


@cache
def _table(transfer: str) -> str:
    """`shown` as a table in Adobe's cube format; red changes fastest."""
    steps = np.linspace(0, 1, GRID)
    blue, green, red = np.meshgrid(steps, steps, steps, indexing="ij")
    values = shown(np.stack([red, green, blue], -1).reshape(-1, 3), transfer)
    lines = "\n".join(f"{r:.5f} {g:.5f} {b:.5f}" for r, g, b in values.tolist())
    return f"LUT_3D_SIZE {GRID}\n{lines}\n"


@contextmanager
def tone_mapping(transfer: int) -> Iterator[tuple[tuple[str, str | dict[str, str]], ...]]:
    """FFmpeg's filters that make HDR frames, of RGB in 10 bits or more, SDR of BT.709; they are to be set up inside."""
    with tempfile.NamedTemporaryFile("w", suffix=".cube") as file:
        file.write(_table(TRANSFERS[transfer]))
        file.flush()
        yield (
            ("lut3d", {"file": file.name, "interp": "tetrahedral"}),
            ("setparams", "color_primaries=bt709:color_trc=bt709"),
        )

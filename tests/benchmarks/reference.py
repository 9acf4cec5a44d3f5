"""The procedure of the reference system, for comparison only: every scene goes through a video file and JPEG files.

Its mistakes are left out, so that it measures the same frames and the same pairs as the decode pass does. Where it is
not known how it worked, this does the cheaper thing: one pass cuts all scenes of a film, one thread decodes.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np
from PIL import Image

ONE_THREAD = [cv2.CAP_PROP_N_THREADS, 1]


def score(
    path: Path, scenes: Sequence[tuple[int, int]], interval_ms: int, size: int
) -> Iterator[tuple[np.ndarray, np.ndarray, Any]]:
    """Squared differences and Farneback speeds of each scene's pairs, and its frames: float tensor (T, 3, size, size).

    scenes: first frame and the one after the last, in order, without overlap; interval_ms: between sampled frames.
    The frames are RGB in [0, 1]; the differences are on the 0-255 scale.
    """
    with TemporaryDirectory() as folder:
        films, rate = _cut(path, scenes, Path(folder))
        for number, film in enumerate(films):
            stills = Path(folder) / str(number)
            stills.mkdir()
            _sample(film, stills, rate, interval_ms)
            yield _measure(sorted(stills.iterdir()), size)


def _cut(path: Path, scenes: Sequence[tuple[int, int]], folder: Path) -> tuple[list[Path], float]:
    film = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, ONE_THREAD)
    rate = film.get(cv2.CAP_PROP_FPS)
    sides = int(film.get(cv2.CAP_PROP_FRAME_WIDTH)), int(film.get(cv2.CAP_PROP_FRAME_HEIGHT))
    paths, at = [], 0
    for number, (first, end) in enumerate(scenes):
        while at < first and film.grab():
            at += 1
        paths.append(folder / f"{number}.mp4")
        scene = cv2.VideoWriter(str(paths[-1]), cv2.VideoWriter.fourcc(*"mp4v"), rate, sides)
        while at < end:
            there, frame = film.read()
            if not there:
                break
            scene.write(frame)
            at += 1
        scene.release()
    film.release()
    return paths, rate


def _sample(scene: Path, folder: Path, rate: float, interval_ms: int) -> None:
    film = cv2.VideoCapture(str(scene), cv2.CAP_FFMPEG, ONE_THREAD)
    at = due = 0
    while True:
        there, frame = film.read()
        if not there:
            break
        if at / rate * 1000 + 1 >= due * interval_ms:
            cv2.imwrite(str(folder / f"{due:04}.jpg"), frame)
            due += 1
        at += 1
    film.release()


def _measure(stills: Sequence[Path], size: int) -> tuple[np.ndarray, np.ndarray, Any]:
    import torch

    frames, greys = [], []
    for still in stills:
        with Image.open(still) as file:
            image = file.convert("RGB")
        share = size / min(image.size)
        image = image.resize((round(image.width * share), round(image.height * share)), Image.Resampling.BILINEAR)
        left, top = (image.width - size) // 2, (image.height - size) // 2
        pixels = np.array(image.crop((left, top, left + size, top + size)))
        frames.append(torch.from_numpy(pixels).permute(2, 0, 1).float().div(255))
        greys.append(cv2.cvtColor(frames[-1].permute(1, 2, 0).mul(255).round().byte().numpy(), cv2.COLOR_RGB2GRAY))
    differences = [float((255 * (b - a)).square().mean()) for a, b in pairwise(frames)]
    speeds = []
    for a, b in pairwise(greys):
        flow = cv2.calcOpticalFlowFarneback(a, b, np.empty((*a.shape, 2), np.float32), 0.5, 3, 15, 3, 5, 1.2, 0)
        speeds.append(float(cv2.cartToPolar(flow[..., 0], flow[..., 1])[0].mean()))
    return np.array(differences), np.array(speeds), torch.stack(frames)


def latent_distances(vae: Any, frames: Any) -> tuple[np.ndarray, np.ndarray]:
    """Mean squared difference and cosine similarity of neighbouring frames' encoder output, one frame at a time."""
    from torch.nn.functional import cosine_similarity, mse_loss

    latents = [vae.encoder(frame[None]).flatten() for frame in frames]
    pairs = list(pairwise(latents))
    return (
        np.array([float(mse_loss(a, b)) for a, b in pairs]),
        np.array([float(cosine_similarity(a, b, dim=0)) for a, b in pairs]),
    )

"""What it costs to show interlaced and HDR film as a viewer sees it, and how surely fields of two times are found."""

from collections.abc import Iterator
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path
from time import process_time
from typing import Any

import av
import numpy as np

from actors.media.fields import combed
from actors.media.film import open_film
from actors.media.hdr import pq_signal
from actors.media.shown import AS_STORED, Look
from tests.support.films import bikes_mp4, demo_mp4, tagged

SHOWN = Look(deinterlace=True, tone_map=True, hd_matrix=True)
FILMS = {
    "bikes.mp4": bikes_mp4,
    "bigbuckbunny.mp4": lambda: bikes_mp4().with_name("bigbuckbunny.mp4"),
    "demo.mp4": demo_mp4,
}


def _frames(path: Path, pixels: str, size: tuple[int | None, int | None] = (None, None)) -> Iterator[np.ndarray]:
    with av.open(path) as film:
        for frame in film.decode(video=0):
            yield frame.reformat(*size, pixels).to_ndarray()


def _large(count: int) -> Iterator[np.ndarray]:
    return islice(_frames(FILMS["bigbuckbunny.mp4"](), "rgb24", (1920, 1080)), count)


def _woven(frames: list[np.ndarray]) -> list[np.ndarray]:
    made = []
    for one, other in zip(frames[::2], frames[1::2], strict=False):
        made.append(one.copy())
        made[-1][1::2] = other[1::2]
    return made


def interlaced(path: Path) -> Path:
    """Real film in 1080 lines, two frames woven into each, flagged."""
    woven = _woven(list(_large(100)))
    woven = 3 * (woven + woven[::-1])
    with av.open(path, "w") as container:
        stream: Any = container.add_stream("libx264", 25, {"preset": "veryfast", "crf": "20", "flags": "+ildct+ilme"})
        stream.width, stream.height, stream.pix_fmt = 1920, 1080, "yuv420p"
        for number, picture in enumerate(woven):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def high_range(path: Path) -> Path:
    """Real film in 1080 lines as 10-bit PQ, with white at 600 cd/m2."""
    code = np.round(pq_signal(600 * (np.arange(256) / 255) ** 2.4) * 65535).astype(np.uint16)
    pictures = (code[picture] for picture in 4 * list(_large(50)))
    tags = {"colorspace": 9, "color_range": 1, "color_primaries": 9, "color_trc": 16}
    return tagged(path, pictures, pixels="yuv420p10le", matrix=9, tags=tags)


def showing(path: Path, look: Look) -> tuple[float, float]:
    """CPU-seconds of decoding a film, and of making pictures of 427x240 of 4 frames a second."""
    spent = [0.0, 0.0]
    due, at = 0.0, process_time()
    for picture in open_film(str(path), look=look).pictures:
        spent[0] += process_time() - at
        at = process_time()
        if picture.time >= due:
            due += 0.25
            picture.scaled(427, 240)
            spent[1] += process_time() - at
            at = process_time()
    return spent[0], spent[1]


def costs(path: Path) -> tuple[float, float]:
    """What showing a film adds, as shares of decoding it: of sampled frames, and of every frame in full size."""
    whole = []
    for look in (SHOWN, AS_STORED):
        at = process_time()
        for picture in open_film(str(path), look=look).pictures:
            picture.scaled(1920, 1080)
        whole.append(process_time() - at)
    # The table for HDR, which a process makes once, is there by now.
    sampled = showing(path, SHOWN), showing(path, AS_STORED)
    decode = sampled[1][0]
    return (sampled[0][1] - sampled[1][1]) / decode, (whole[0] - whole[1]) / decode


def found() -> Iterator[tuple[str, float, float]]:
    """Of real films the shares of frames that are taken as of two times: as they are, and woven."""
    for name, path in FILMS.items():
        frames = list(_frames(path(), "gray"))
        frames = [frame[: len(frame) // 2 * 2] for frame in frames]
        shares = []
        for pictures in (frames, _woven(frames)):
            stored = [av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="gray") for picture in pictures]
            near = zip(chain([None], stored), stored, chain(stored[1:], [None]), strict=False)
            shares.append(float(np.mean([combed(frame, before, after) for before, frame, after in near])))
        yield name, shares[0], shares[1]

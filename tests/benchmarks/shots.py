"""How well shot detectors find drawn transitions between real shots, and cuts of annotated films, and what they cost:
`python -m tests.benchmarks.shots [detector ...] [--transitions N] [--film PATH]`.

Shots of real films (samples from PyPI, and a file named with --film, whose first frames of shots follow it) are joined
by drawn transitions: a film for each kind, encoded with H.264. A transition is found where what is told touches it
within a frame; all else that is told is false. CPU: of the process, decoding included, ÷ decoding alone, and more of it
a frame. Last, what cutting a film into measured scenes costs ÷ what it costs with the first detector. Nothing fails for
being slow or wrong.
"""

import argparse
from itertools import pairwise
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import process_time
from typing import Any, cast, get_args

import av
import cv2
import numpy as np

from actors.curation.cutting.cut import cut
from actors.curation.cutting.scenes import FramesConfig
from actors.curation.features.motion import MotionConfig
from actors.media.film import VideoConfig, open_film
from actors.media.shot_detection.in_shots import in_shots
from actors.media.shot_detection.shots import BETWEEN, Detector, ShotsConfig
from tests.support.films import BIKES_CUTS, bikes_mp4, demo_mp4

SIZE = (320, 180)
RATE = 25
DEMO_CUTS = (183, 243, 365, 395, 485, 552, 706, 741, 864, 923, 959, 1024, 1119, 1162, 1188, 1300, 1369, 1432)
"""First frames of the shots of the sample, by eye; a fade before them."""
DEMO_FADES = ((0, 12), (104, 130))
KINDS = {
    "cut": 0,
    "dissolve of 12 frames": 12,
    "dissolve of 24 frames": 24,
    "dissolve of 48 frames": 48,
    "fade through black": 12,
    "fade through white": 12,
    "wipe of 12 frames": 12,
}
Span = tuple[int, int]
"""First and last frame of a transition; of a cut twice the first of the shot after it."""


def read(path: Path) -> list[np.ndarray]:
    """Frames filling SIZE: uint8 (180, 320, 3)."""
    frames = []
    with av.open(str(path)) as film:
        for frame in film.decode(video=0):
            rgb = frame.to_ndarray(format="rgb24")
            scale = max(SIZE[0] / rgb.shape[1], SIZE[1] / rgb.shape[0])
            rgb = cv2.resize(rgb, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            top, left = (rgb.shape[0] - SIZE[1]) // 2, (rgb.shape[1] - SIZE[0]) // 2
            frames.append(rgb[top : top + SIZE[1], left : left + SIZE[0]].copy())
    return frames


def real_shots(annotated: dict[Path, tuple[int, ...]]) -> list[list[np.ndarray]]:
    """The shots of films, without the two frames at either end, where they are long enough to be mixed."""
    shots = []
    for path, firsts in annotated.items():
        frames = read(path)
        shots += [frames[a + 2 : b - 2] for a, b in pairwise((*firsts, len(frames))) if b - a >= 40]
    return shots


def drawn(kind: str, length: int, shots: list[Any], count: int, seed: int) -> tuple[list[np.ndarray], list[Span]]:
    """Frames of a film with that many transitions of a kind, and where they are."""
    random = np.random.default_rng(seed)
    last = -1

    def piece() -> list[np.ndarray]:
        nonlocal last
        last = random.choice([i for i in range(len(shots)) if i != last])
        size = min(len(shots[last]), int(random.integers(40, 90)) + 2 * length)
        start = int(random.integers(0, len(shots[last]) - size + 1))
        return [frame.astype(np.float32) for frame in shots[last][start : start + size]]

    frames: list[np.ndarray] = []
    spans: list[Span] = []
    before = piece()
    for _ in range(count):
        after = piece()
        n = min(length, (len(before) - 8) // 2, (len(after) - 8) // 2)
        frames += before[: len(before) - n]
        first = len(frames)
        frames += mixed(kind, before[len(before) - n :], after[:n], random)
        spans.append((first, max(first, len(frames) - 1)))
        before = after[n:]
    return frames + before, spans


def mixed(kind: str, out: list[np.ndarray], into: list[np.ndarray], random: np.random.Generator) -> list[np.ndarray]:
    """The frames of one transition."""
    weights = [(k + 1) / (len(out) + 1) for k in range(len(out))]
    if kind.startswith("dissolve"):
        return [a * (1 - w) + b * w for a, b, w in zip(out, into, weights, strict=True)]
    if kind.startswith("fade"):
        colour = np.full((SIZE[1], SIZE[0], 3), 255 if kind.endswith("white") else 0, np.float32)
        held = [colour] * int(random.integers(1, 6))
        down = [a * (1 - w) + colour * w for a, w in zip(out, weights, strict=True)]
        return down + held + [colour * (1 - w) + b * w for b, w in zip(into, weights, strict=True)]
    frames, way = [], int(random.integers(4))
    for a, b, w in zip(out, into, weights, strict=True):
        mask = np.zeros((SIZE[1], SIZE[0], 1), bool)
        mask[: round(SIZE[1] * w)] = way < 2
        mask[:, : round(SIZE[0] * w)] |= way >= 2
        mask = mask[::-1, ::-1] if way % 2 else mask
        frames.append(np.where(mask, b, a))
    return frames


def write(path: Path, frames: list[np.ndarray]) -> None:
    with av.open(str(path), "w") as film:
        stream = film.add_stream("libx264", rate=RATE, options={"crf": "23", "preset": "fast"})
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        for frame in frames:
            image = av.VideoFrame.from_ndarray(cast(Any, np.clip(np.rint(frame), 0, 255).astype(np.uint8)))
            film.mux(stream.encode(image))
        film.mux(stream.encode())


def told(path: Path, detector: Detector) -> tuple[list[Span], int, float]:
    """The transitions that a detector tells, the frames of the film, and CPU-seconds."""
    started = process_time()
    numbers = [number for number, _ in in_shots(open_film(str(path)), ShotsConfig(detector))]
    seconds = process_time() - started
    spans: list[Span] = []
    for i, (before, now) in enumerate(pairwise([0, *numbers])):
        if now == BETWEEN and before == BETWEEN and spans:
            spans[-1] = spans[-1][0], i
        elif now == BETWEEN or before not in (now, BETWEEN):
            spans.append((i, i))
    return spans, len(numbers), seconds


def score(found: list[Span], wanted: list[Span], ignored: tuple[Span, ...] = ()) -> tuple[int, int]:
    """How many transitions were found, and how many are false."""

    def touch(a: Span, b: Span) -> bool:
        return a[0] <= b[1] + 1 and a[1] >= b[0] - 1

    hits = sum(any(touch(one, span) for one in found) for span in wanted)
    return hits, sum(not any(touch(one, span) for span in (*wanted, *ignored)) for one in found)


def cutting(path: Path, detector: Detector) -> float:
    """CPU-seconds for the rows of a film without metadata, their features included."""
    settings = VideoConfig(), FramesConfig(), ShotsConfig(detector), MotionConfig()
    started = process_time()
    for _ in cut(str(path), "film", None, frozenset(), *settings):
        pass
    return process_time() - started


def main() -> None:
    """Print a table for the detectors that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("detectors", nargs="*", default=["adaptive", "content", "gradual", "hybrid", "transnetv2"])
    parser.add_argument("--transitions", type=int, default=40, help="of each kind")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--film", nargs="+", help="a film and the first frames of its shots, without the first")
    options = parser.parse_args()
    if unknown := set(options.detectors) - set(get_args(Detector)):
        parser.error(f"there is no detector {', '.join(sorted(unknown))}")
    annotated: dict[Path, tuple[int, ...]] = {
        demo_mp4(): (130, *DEMO_CUTS),
        bikes_mp4(): tuple(last + 1 for last in (-1, *BIKES_CUTS)),
        bikes_mp4().with_name("bigbuckbunny.mp4"): (0,),
    }
    fades: dict[Path, tuple[Span, ...]] = {demo_mp4(): DEMO_FADES}
    if options.film:
        own = Path(options.film[0])
        annotated[own], fades[own] = (64, *map(int, options.film[1:])), ((0, 64),)
    shots = real_shots(annotated)
    with TemporaryDirectory() as folder:
        films: dict[str, tuple[Path, list[Span], tuple[Span, ...]]] = {}
        for number, (kind, length) in enumerate(KINDS.items() if options.transitions else ()):
            frames, spans = drawn(kind, length, shots, options.transitions, 100 * options.seed + number)
            path = Path(folder) / f"{number}.mp4"
            write(path, frames)
            films[kind] = path, spans, ()
        for path, firsts in annotated.items():
            films[path.name] = path, [(first, first) for first in firsts[1:]], fades.get(path, ())
        for name, (path, spans, ignored) in films.items():
            decoding = told(path, "none")[2]
            line = [f"{name:24}"]
            for detector in options.detectors:
                found, frames, seconds = told(path, detector)
                hits, false = score(found, spans, ignored)
                times = f"{seconds / decoding:.2f}x {1000 * (seconds - decoding) / frames:.2f} ms"
                line.append(f"{detector} {hits}/{len(spans)} +{false} ({times})")
            print(" | ".join(line), flush=True)
    for path in annotated:
        seconds = {
            detector: median(cutting(path, detector) for _ in range(3))
            for detector in options.detectors
            if detector != "transnetv2"
        }
        first = next(iter(seconds.values()))
        ratios = (f"{detector} {value / first:.2f}x" for detector, value in seconds.items())
        print(f"cutting {path.name:16} | {' | '.join(ratios)}", flush=True)


if __name__ == "__main__":
    main()

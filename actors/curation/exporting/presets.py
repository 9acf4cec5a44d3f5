"""What a video model takes: clips at one rate, of one of a few lengths and sizes; and how a clip is brought to it."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import av
import numpy as np
import yaml
from av.filter import Graph
from av.logging import set_level
from pydantic import TypeAdapter, ValidationError

from actors.core import storage
from actors.core.errors import UserError
from actors.media.planes import filters

CRF, EFFORT = 16, "medium"
"""Quality and effort of x264: little is lost beside what the clip has lost already."""
_VIDEO_RANGE = 1
_MODELS = Path(__file__).parent / "model_presets"
RESERVED = frozenset(
    ("captions", "clips", "evaluation", "frames", "labels", "places", "plan", "rejected", "runs", "scenes", "scores")
) | {"keyframes", "shards", "tables", "thumbnails", "videos"}
"""Folders of an output."""


@dataclass(frozen=True)
class Preset:
    """The clips that a model is trained with."""

    fps: float
    """Frames per second, the same all along."""
    frames: tuple[int, ...]
    """Numbers of frames that a clip may have; each of a scene's clips gets the largest that is left in it."""
    sizes: tuple[tuple[int, int], ...]
    """Widths and heights that a clip may have, even numbers. The nearest shape is taken, of these the largest."""
    upscale: bool = False
    """Whether pictures may be enlarged to a size; else scenes that are smaller than every size are dropped."""
    sound: bool = False
    """Whether clips have the sound of their scenes, as AAC, where these have any."""

    def __post_init__(self) -> None:
        sides = [side for size in self.sizes for side in size]
        if not (self.fps > 0 and self.frames and sides and min(*self.frames, *sides) > 0):
            raise UserError(f"a preset needs fps, frames and sizes above 0: {self}")
        if any(side % 2 for side in sides):
            raise UserError(f"a preset needs even sizes, since video stores colours for two pixels each way: {self}")


def load_preset(name: str) -> Preset:
    """A preset by its name, or from a YAML file with the same settings; raises UserError."""
    uri = name if name.endswith((".yaml", ".yml")) else str(_MODELS / f"{name}.yaml")
    if PurePosixPath(name).stem in RESERVED:
        raise UserError(f"export.preset={name}: an output holds something else by that name; rename the file")
    try:
        return TypeAdapter(Preset).validate_python(yaml.safe_load(storage.read_bytes(uri)), extra="forbid")
    except (FileNotFoundError, IsADirectoryError):
        known = ", ".join(sorted(path.stem for path in _MODELS.glob("*.yaml")))
        raise UserError(f"export.preset={name}: there are {known}; or name a .yaml file like theirs") from None
    except (ValidationError, yaml.YAMLError) as error:
        raise UserError(f"{uri} is no preset: {error}") from error


@dataclass(frozen=True)
class Bucket:
    """What the clips of one batch have in common."""

    width: int
    height: int
    frames: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}x{self.frames}"


def buckets_of(preset: Preset, width: int, height: int, length_s: float) -> list[Bucket] | str:
    """The clips that a scene becomes, one behind the other, or why it becomes none: too_short or too_small.

    width, height: as shown, in square pixels. What remains behind the last clip is shorter than the shortest.
    """
    fitting = [(w, h) for w, h in preset.sizes if preset.upscale or (w <= width and h <= height)]
    if not fitting:
        return "too_small"
    shape = math.log(width / height)
    size = min(fitting, key=lambda size: (round(abs(math.log(size[0] / size[1]) - shape), 3), -size[0] * size[1]))
    # A moment of the scene for each frame, the first at its start.
    left = math.ceil(length_s * preset.fps - 1e-6)
    found = []
    while lengths := [frames for frames in preset.frames if frames <= left]:
        found.append(Bucket(*size, max(lengths)))
        left -= found[-1].frames
    return found or "too_short"


def write_fitted(
    source: str, paths: list[str], buckets: list[Bucket], fps: float, sound: bool = False
) -> Iterator[str]:
    """Write the clips that a scene becomes: H.264 at a constant rate, as large as their buckets, with AAC on request.

    source: the scene's clip, whose pictures are upright. A frame is the picture that is shown at its moment, scaled to
    cover the bucket, then cropped about the centre; colours keep their matrix, in the range of video (16 to 235).
    Yields each path when it is whole. Raises FFmpegError or OSError.
    """
    set_level(None)
    rate = Fraction(fps).limit_denominator(1001)
    heard = _heard(source) if sound else None
    done = 0
    with av.open(source) as film:
        stream = film.streams.video[0]
        stream.thread_count = 1
        shape = stream.sample_aspect_ratio or Fraction(1)
        shown = _at_moments(film.decode(stream), rate)
        for path, bucket in zip(paths, buckets, strict=True):
            with _File(path, bucket, rate, shape, heard) as file:
                for frame in islice(shown, bucket.frames):
                    file.add(frame)
                if heard:
                    file.play(heard.between(done / rate, (done + bucket.frames) / rate))
            done += bucket.frames
            yield path


@dataclass(frozen=True)
class _Heard:
    """A clip's sound."""

    samples: np.ndarray
    """float32 (channels, N)."""
    rate: int
    layout: str

    def between(self, start_s: Fraction, end_s: Fraction) -> np.ndarray:
        """The sound between two times, silent behind its end."""
        first, last = round(start_s * self.rate), round(end_s * self.rate)
        missing = max(0, last - max(first, self.samples.shape[1]))
        return np.pad(self.samples[:, first:last], ((0, 0), (0, missing)))


def _heard(source: str) -> _Heard | None:
    """All the sound of a clip, which is short; None where it has none."""
    with av.open(source) as film:
        if not film.streams.audio:
            return None
        stream = film.streams.audio[0]
        blocks = [block.to_ndarray() for block in film.decode(stream)]
        rate, layout = stream.codec_context.sample_rate, stream.codec_context.layout.name
        return _Heard(np.concatenate(blocks, axis=1), rate, layout) if blocks else None


def _at_moments(frames: Iterable[av.VideoFrame], rate: Fraction) -> Iterator[av.VideoFrame]:
    """The picture that is shown at each moment k / rate; the last one goes on."""
    moment = 0
    before = None
    for frame in frames:
        # Times are rounded to the ticks of a file.
        while before is not None and moment / rate < (frame.time or 0.0) - 1e-4:
            yield before
            moment += 1
        before = frame
    while before is not None:
        yield before


class _File:
    """A clip of one bucket."""

    def __init__(self, path: str, bucket: Bucket, rate: Fraction, shape: Fraction, heard: _Heard | None) -> None:
        self._bucket, self._rate, self._shape = bucket, rate, shape
        self._source: tuple[Any, ...] = ()
        self._graph = Graph()
        self._count = 0
        self._file = av.open(path, "w", format="mp4", options={"movflags": "+faststart"})
        # With B-frames x264's look ahead reads memory that nobody has written: files differ from process to process.
        self._stream = self._file.add_stream("libx264", rate, {"crf": str(CRF), "preset": EFFORT, "bf": "0"})
        self._stream.width, self._stream.height, self._stream.pix_fmt = bucket.width, bucket.height, "yuv420p"
        self._stream.codec_context.time_base = 1 / rate
        self._stream.codec_context.thread_count = 1
        self._sound = self._file.add_stream("aac", heard.rate, layout=heard.layout) if heard else None

    def __enter__(self) -> "_File":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._file:
            if kind is None:
                for stream in filter(None, (self._stream, self._sound)):
                    self._file.mux(stream.encode(None))

    def add(self, frame: av.VideoFrame) -> None:
        """Write a picture as the next frame."""
        source = (frame.format.name, frame.width, frame.height, frame.colorspace, frame.color_range)
        if source != self._source:
            self._source, self._graph = source, self._filters(frame)
        if not self._count:
            context = self._stream.codec_context
            context.colorspace, context.color_range = frame.colorspace, _VIDEO_RANGE
            context.color_primaries, context.color_trc = frame.color_primaries, frame.color_trc
        self._graph.vpush(frame)
        fitted: Any = self._graph.vpull()
        fitted.pts, fitted.time_base, fitted.pict_type = self._count, 1 / self._rate, 0
        self._count += 1
        self._file.mux(self._stream.encode(fitted))

    def play(self, samples: np.ndarray) -> None:
        """Write the clip's sound, float32 (channels, N)."""
        assert self._sound
        context = self._sound.codec_context
        block = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), "fltp", context.layout)
        block.sample_rate, block.pts, block.time_base = context.sample_rate, 0, Fraction(1, context.sample_rate)
        self._file.mux(self._sound.encode(block))

    def _filters(self, frame: av.VideoFrame) -> Graph:
        width, height = self._bucket.width, self._bucket.height
        shown = float(frame.width * self._shape)
        scale = max(width / shown, height / frame.height)
        # Never smaller than the bucket, whatever is lost in rounding.
        across, down = max(width, round(shown * scale)), max(height, round(frame.height * scale))
        return filters(
            frame,
            ("scale", f"{across}:{down}:flags=lanczos:out_range=tv"),
            ("crop", f"{width}:{height}"),
            ("setsar", "1"),
            ("format", "yuv420p"),
        )

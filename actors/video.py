"""One sequential decode of a film: its shots or listed scenes, their sampled frames, and all that is measured on pixels.

Times are presentation times in seconds since the start of the file; frame numbers are only ever counted, never divided
by a rate, so that films with a variable rate are cut where they cut.
"""

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import chain
from pathlib import Path
from time import monotonic
from typing import Any, Literal, Protocol

import av
import cv2
import numpy as np
from av.video.reformatter import VideoReformatter

from actors.motion import FLOWS, MotionConfig, rgb_differences
from actors.shots import CutFinder, ShotsConfig
from actors.stage import Stage

Row = dict[str, Any]

FEATURES = ("max_rgb_diff", "mean_rgb_diff", "max_velocity", "mean_velocity", "mse", "cos_sim", "no_frames")
"""The seven features, in the order that a classifier expects."""

ROUNDING_S = 0.001
"""Containers and metadata round times to milliseconds: a frame this much early still counts as on time."""
TORCHCODEC_CHUNK = 16
"""Full-size frames that torchcodec holds at once."""
SPARE_FRAMES = 2
"""A listed scene may end this many frames after its span: times and rates in metadata are rounded."""


@dataclass(frozen=True)
class VideoConfig(Stage):
    """How films are decoded."""

    workers: int = 0
    """Films decoded at once; 0: as many as there are CPUs for."""
    decoder: Literal["pyav", "torchcodec"] = "pyav"
    """torchcodec needs the extra of that name; with num_gpus above 0 it decodes there (NVDEC)."""
    stall_s: float = 120
    """A film whose decoding shows no progress for this long is given up."""
    timeout_s: float = 4 * 3600
    """A film whose decoding takes longer than this in all is given up."""


@dataclass(frozen=True)
class FramesConfig:
    """Which frames of a scene are looked at."""

    interval_ms: int = 250
    """Time between sampled frames, counted from the scene's own start."""
    size: int = 240
    """Frames are scaled to this short side and cropped to a square about the centre."""
    min: int = 4
    """Scenes with fewer sampled frames are dropped as too short."""
    max: int = 60
    """Scenes with more are dropped as too long, and not measured: a row's frames stay under 10 MB."""

    def __post_init__(self) -> None:
        if self.interval_ms < 1 or self.size < 16 or not 2 <= self.min <= self.max:
            raise ValueError(f"frames: interval_ms from 1, size from 16, 2 <= min <= max: {self}")


class FilmError(ValueError):
    """A film that cannot be read at all; `code` is the error code of its scenes."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Picture(Protocol):
    """One decoded frame, not yet converted."""

    time: float
    corrupt: bool

    def scaled(self, width: int, height: int) -> np.ndarray:
        """The upright frame at that size: uint8 (height, width, 3) RGB."""
        ...


@dataclass
class Film:
    """A film that is being read: what its container says, and its frames in order of presentation, once."""

    rate: Fraction
    """Average frames per second."""
    duration_s: float | None
    frames: int
    """Frames that the container declares; 0 where it does not say."""
    codec: str
    width: int = 0
    """As shown: upright, with square pixels."""
    height: int = 0
    pictures: Iterator[Picture] = field(default_factory=lambda: iter(()))
    decoded: int = 0
    """Frames decoded so far."""

    @property
    def step_s(self) -> float:
        """Time between two frames on average."""
        return float(1 / self.rate)

    def truncated_at(self, end: float) -> bool:
        """Whether the film, read to its end, is shorter than its container declares."""
        if self.frames:
            return self.decoded < self.frames - max(2, self.frames // 200)
        return self.duration_s is not None and end < self.duration_s - max(1.0, 3 * self.step_s)


class _PyAVPicture:
    __slots__ = ("_frame", "_scalers", "_turns", "corrupt", "time")

    def __init__(
        self, frame: av.VideoFrame, time: float, corrupt: bool, scalers: dict[tuple[int, int], VideoReformatter]
    ) -> None:
        self._frame, self.time, self.corrupt, self._scalers = frame, time, corrupt, scalers
        self._turns = frame.rotation // 90 % 4

    def scaled(self, width: int, height: int) -> np.ndarray:
        size = (height, width) if self._turns % 2 else (width, height)
        scaler = self._scalers.setdefault(size, VideoReformatter())
        rgb = scaler.reformat(self._frame, *size, "rgb24", threads=1).to_ndarray()
        return np.ascontiguousarray(np.rot90(rgb, self._turns)) if self._turns else rgb


def _unreadable(path: str, error: Exception) -> FilmError:
    with Path(path).open("rb") as file:
        head = file.read(8)
    if not head:
        return FilmError("empty_file", "the file has no bytes")
    if head[4:8] == b"ftyp" and not _has_index(path):
        return FilmError("no_index", "an mp4 without its index (moov): its recording or transfer was cut off")
    return FilmError("not_a_video", f"no container that can be read: {error}")


def _has_index(path: str) -> bool:
    with Path(path).open("rb") as file:
        while len(head := file.read(8)) == 8:
            size = int.from_bytes(head[:4], "big")
            if head[4:] == b"moov":
                return True
            if size == 1:
                size = int.from_bytes(file.read(8), "big") - 8
            if size < 8:
                return False
            file.seek(size - 8, 1)
    return False


def open_film(path: str, decoder: str = "pyav", device: str = "cpu") -> Film:
    """Open a film for one pass; raises FilmError with the code that its rows get."""
    if decoder == "torchcodec":
        return _open_torchcodec(path, device)
    try:
        container = av.open(path, metadata_errors="replace")
    except (av.error.FFmpegError, ValueError) as error:
        raise _unreadable(path, error) from error
    if not container.streams.video:
        kinds = ", ".join(sorted({s.type for s in container.streams})) or "nothing"
        raise FilmError("no_video_stream", f"the file holds {kinds}, no pictures")
    stream = container.streams.video[0]
    if stream.codec_context is None:
        raise FilmError("unknown_codec", "no decoder knows this codec")
    stream.thread_count = 1
    film = Film(
        rate=Fraction(stream.average_rate or stream.guessed_rate or 25),
        duration_s=container.duration / av.time_base if container.duration else None,
        frames=stream.frames,
        codec=stream.codec_context.name,
    )
    start = (container.start_time or 0) / av.time_base

    def frames() -> Iterator[tuple[av.VideoFrame, bool]]:
        with container:
            hole = False
            for packet in container.demux(stream):
                try:
                    for frame in packet.decode():
                        yield frame, hole or frame.is_corrupt
                        hole = False
                except av.error.InvalidDataError:
                    hole = True

    def pictures(first: tuple[av.VideoFrame, bool], rest: Iterator[tuple[av.VideoFrame, bool]]) -> Iterator[Picture]:
        scalers: dict[tuple[int, int], VideoReformatter] = {}
        time = -film.step_s
        for frame, corrupt in chain([first], rest):
            stamp = None if frame.time is None else frame.time - start
            # Some containers leave a frame without a time, or with that of the frame before.
            time = time + film.step_s if stamp is None or stamp <= time else stamp
            film.decoded += 1
            yield _PyAVPicture(frame, time, corrupt, scalers)

    decoded = frames()
    try:
        first = next(decoded, None)
    except av.error.FFmpegError as error:
        raise FilmError("not_a_video", f"no frame can be decoded: {error}") from error
    if first is None:
        raise FilmError("no_frames", "the file declares pictures but holds none that can be decoded")
    width = round(first[0].width * (stream.sample_aspect_ratio or 1))
    sides = (width, first[0].height)
    film.width, film.height = sides[::-1] if first[0].rotation // 90 % 2 else sides
    film.pictures = pictures(first, decoded)
    return film


class _TorchPicture:
    __slots__ = ("_frame", "corrupt", "time")

    def __init__(self, frame: Any, time: float) -> None:
        self._frame, self.time, self.corrupt = frame, time, False

    def scaled(self, width: int, height: int) -> np.ndarray:
        from torchvision.transforms.v2.functional import resize

        return resize(self._frame, [height, width], antialias=True).permute(1, 2, 0).cpu().numpy()


def _open_torchcodec(path: str, device: str) -> Film:
    try:
        from torchcodec.decoders import VideoDecoder
    except (ImportError, RuntimeError) as error:
        raise RuntimeError(
            f"video.decoder=torchcodec needs the extra `torchcodec` and FFmpeg's shared libraries "
            f"(Debian: apt-get install ffmpeg): {error}"
        ) from error
    try:
        decoder = VideoDecoder(path, device=device, num_ffmpeg_threads=1)
        width, height = decoder[0].shape[2], decoder[0].shape[1]
    except (RuntimeError, ValueError, IndexError) as error:
        # PyAV tells apart what is wrong with it; where it finds nothing wrong, the codec is not known here.
        open_film(path)
        raise FilmError("unknown_codec", f"torchcodec cannot decode it: {error}") from error
    about = decoder.metadata
    rate = about.average_fps or 25
    film = Film(
        width=round(width * float(about.pixel_aspect_ratio or 1)),
        height=height,
        rate=Fraction(rate).limit_denominator(1001),
        duration_s=about.duration_seconds_from_header,
        frames=about.num_frames_from_header or 0,
        codec=about.codec or "",
    )

    def pictures() -> Iterator[Picture]:
        total = len(decoder)
        for start in range(0, total, TORCHCODEC_CHUNK):
            chunk = decoder.get_frames_in_range(start, min(start + TORCHCODEC_CHUNK, total))
            for frame, time in zip(chunk.data, chunk.pts_seconds.tolist(), strict=True):
                film.decoded += 1
                yield _TorchPicture(frame, time)

    film.pictures = pictures()
    return film


class _Scene:
    """A scene while its frames pass: samples them, and becomes a row at its end."""

    def __init__(self, film: Film, config: FramesConfig, motion: MotionConfig, about: Row) -> None:
        self._film, self._config, self._motion, self._about = film, config, motion, about
        short = min(film.width, film.height)
        self._width, self._height = (round(side * config.size / short) for side in (film.width, film.height))
        self._start = math.nan
        self._due = 0
        self._count = 0
        self._corrupt = 0
        self._frames: list[np.ndarray] = []

    def add(self, picture: Picture) -> None:
        if math.isnan(self._start):
            self._start = picture.time
        self._corrupt += picture.corrupt
        passed = (picture.time - self._start + ROUNDING_S) * 1000 / self._config.interval_ms
        if passed < self._due:
            return
        self._due = math.floor(passed) + 1
        self._count += 1
        # Of a scene that is too long anyway one frame is enough, for its thumbnail.
        if self._count > self._config.max:
            del self._frames[1:]
            return
        image = picture.scaled(self._width, self._height)
        top, left = (self._height - self._config.size) // 2, (self._width - self._config.size) // 2
        self._frames.append(image[top : top + self._config.size, left : left + self._config.size])

    def row(self, end_s: float, error: str = "", message: str = "") -> Row:
        """The scene's row; with an error code where it could not be had whole."""
        if not error and self._corrupt:
            error, message = "decode_error", f"{self._corrupt} of its frames are damaged"
        row = scene_row(self._about, error, message)
        row |= {"start_s": self._start, "end_s": end_s, "width": self._film.width, "height": self._film.height}
        if self._frames:
            row["thumbnail"] = _thumbnail(self._frames[len(self._frames) // 2])
        if error:
            return row
        row["no_frames"] = self._count
        if 2 <= self._count <= self._config.max:
            frames = np.stack(self._frames)
            differences = rgb_differences(frames)
            row |= {"max_rgb_diff": differences.max(), "mean_rgb_diff": differences.mean(), "frames": frames}
            if self._motion.flow in FLOWS:
                speeds = FLOWS[self._motion.flow](frames)
                row |= {"max_velocity": speeds.max(), "mean_velocity": speeds.mean()}
        return row


def scene_row(about: Row, error: str = "", message: str = "") -> Row:
    """A scene's row before anything is measured: `about` names it, every number is missing."""
    return {
        **about,
        **dict.fromkeys(("start_s", "end_s", *FEATURES[:-1]), math.nan),
        "width": 0,
        "height": 0,
        "no_frames": 0,
        "frames": None,
        "thumbnail": b"",
        "error": error,
        "message": message,
    }


def _thumbnail(frame: np.ndarray) -> bytes:
    small = cv2.resize(frame, (120, 120), interpolation=cv2.INTER_AREA)
    return cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes()


class _Span:
    """A span of the metadata while its frames pass; frames are counted from its first."""

    def __init__(self, film: Film, frames: FramesConfig, motion: MotionConfig, span: Row) -> None:
        self._film, self._frames, self._motion = film, frames, motion
        self.start_s, self._end_s = span["start_s"], span["end_s"]
        self._count = 0
        self._waiting = deque(sorted(span["scenes"], key=lambda scene: scene["first"]))
        self._open: list[tuple[Row, _Scene]] = []

    @property
    def done(self) -> bool:
        return not self._waiting and not self._open

    def feed(self, picture: Picture) -> Iterator[Row]:
        if self._end_s is not None and picture.time >= self._end_s - ROUNDING_S:
            yield from self._end(picture.time, "scene_beyond_span", SPARE_FRAMES)
            return
        while self._waiting and self._waiting[0]["first"] == self._count:
            scene = self._waiting.popleft()
            about = {name: scene[name] for name in ("clip_id", "scene_id", "ordinal", "caption")}
            self._open.append((scene, _Scene(self._film, self._frames, self._motion, about)))
        still = []
        for scene, open_scene in self._open:
            if scene["end"] == self._count:
                yield open_scene.row(picture.time)
            else:
                open_scene.add(picture)
                still.append((scene, open_scene))
        self._open = still
        self._count += 1

    def end_of_film(self, end_s: float, truncated: bool) -> Iterator[Row]:
        """Rows of the scenes that the film ended on."""
        if truncated:
            yield from self._end(end_s, "truncated", 0, whole=False)
        else:
            whole = self._end_s is None or self._end_s <= end_s + max(0.1, SPARE_FRAMES * self._film.step_s)
            yield from self._end(
                end_s, "scene_beyond_span" if whole else "span_beyond_end", SPARE_FRAMES * whole, whole
            )

    def _end(self, end_s: float, code: str, spare: int, whole: bool = True) -> Iterator[Row]:
        messages = {
            "truncated": f"the film breaks off at {end_s:.3f} s, before its declared end",
            "span_beyond_end": f"the span ends at {self._end_s or 0:.3f} s, the film at {end_s:.3f} s",
            "scene_beyond_span": f"the span holds {self._count} frames",
        }
        for scene, open_scene in self._open:
            complete = whole if scene["end"] == -1 else scene["end"] <= self._count + spare
            yield open_scene.row(end_s) if complete else open_scene.row(end_s, code, messages[code])
        for scene in self._waiting:
            yield scene_row({k: scene[k] for k in ("clip_id", "scene_id", "ordinal", "caption")}, code, messages[code])
        self._open, self._waiting = [], deque()


def cut(
    path: str,
    video_id: str,
    spans: list[Row] | None,
    skip: frozenset[str],
    video: VideoConfig,
    frames: FramesConfig,
    shots: ShotsConfig,
    motion: MotionConfig,
) -> Iterator[Row | None]:
    """Decode a film once; yield a row for each scene as soon as it has passed, then one for the film; None: still alive.

    path: a local file. spans: what to cut, each {start_s, end_s or None, scenes: [{clip_id, scene_id, ordinal, caption,
    first, end}]}, or None where shots are to be detected. skip: scene ids that need no row.
    A scene's row: what names it, start_s, end_s, width, height, the features measured on pixels (NaN where not measured),
    no_frames, frames uint8 (T, size, size, 3) RGB or None, thumbnail (JPEG), error, message.
    The film's row has scene_id "" and tells decoded and source frames, how many scenes there are, and what was wrong.
    """
    cv2.setNumThreads(1)
    av.logging.set_level(None)
    try:
        film = open_film(path, video.decoder, "cuda" if video.num_gpus > 0 else "cpu")
    except FilmError as error:
        for span in spans or []:
            for scene in span["scenes"]:
                about = {name: scene[name] for name in ("clip_id", "scene_id", "ordinal", "caption")}
                yield scene_row(about, error.code, str(error))
        yield film_row(0, 0, _count(spans), error.code if spans is None else "", str(error) if spans is None else "")
        return
    if spans is None:
        yield from _cut_shots(film, video_id, skip, frames, shots, motion)
    else:
        yield from _cut_spans(film, spans, frames, motion)


def film_row(decoded: int, source: int, scenes: int, error: str = "", message: str = "") -> Row:
    """The row that closes a film: it tells how many scene rows belong to it."""
    about = {"clip_id": "", "scene_id": "", "ordinal": -1, "caption": ""}
    return {**scene_row(about, error, message), "decoded": decoded, "source": source, "scenes": scenes}


def _count(spans: list[Row] | None) -> int:
    return sum(len(span["scenes"]) for span in spans or [])


def _cut_spans(film: Film, spans: list[Row], frames: FramesConfig, motion: MotionConfig) -> Iterator[Row | None]:
    waiting = deque(sorted((_Span(film, frames, motion, span) for span in spans), key=lambda span: span.start_s))
    live: list[_Span] = []
    beat = Beat()
    end = 0.0
    for picture in film.pictures:
        while waiting and picture.time >= waiting[0].start_s - ROUNDING_S:
            live.append(waiting.popleft())
        for span in live:
            yield from span.feed(picture)
        live = [span for span in live if not span.done]
        end = picture.time + film.step_s
        if not waiting and not live:
            break
        yield from beat
    truncated = film.truncated_at(end)
    for span in (*live, *waiting):
        yield from span.end_of_film(end, truncated)
    yield film_row(film.decoded, film.frames or film.decoded, _count(spans))


def _cut_shots(
    film: Film, video_id: str, skip: frozenset[str], frames: FramesConfig, shots: ShotsConfig, motion: MotionConfig
) -> Iterator[Row | None]:
    finder = None if shots.detector == "none" else CutFinder(shots, film.rate)
    shrink = min(1.0, shots.width / film.width)
    small = round(film.width * shrink), round(film.height * shrink)
    cuts: set[int] = set()
    held: deque[tuple[int, Picture]] = deque()
    count = 0

    def begin() -> _Scene:
        about = {
            "clip_id": f"{video_id}.{count}",
            "scene_id": f"{video_id}.{count}_0",
            "ordinal": count,
            "caption": "",
        }
        return _Scene(film, frames, motion, about)

    def wanted() -> bool:
        return f"{video_id}.{count}_0" not in skip

    scene = begin()
    beat = Beat()
    end = 0.0
    pictures = enumerate(film.pictures)
    more = True
    while more or held:
        step = next(pictures, None) if more else None
        if step is None:
            more = False
        else:
            held.append(step)
            end = step[1].time + film.step_s
            if finder:
                cuts.update(finder.feed(step[1].scaled(*small)))
            if len(held) <= (finder.delay if finder else 0):
                continue
            yield from beat
        if held:
            index, picture = held.popleft()
            if index in cuts and index:
                if wanted():
                    yield scene.row(picture.time)
                count += 1
                scene = begin()
            if wanted():
                scene.add(picture)
    truncated = film.truncated_at(end)
    code, message = (
        ("truncated", f"the film breaks off at {end:.3f} s, before its declared end") if truncated else ("", "")
    )
    if wanted():
        yield scene.row(end, code, message)
    yield film_row(film.decoded, film.frames or film.decoded, count + 1, code, message)


class Beat:
    """Yields None once a second: a sign of life to whoever waits for the next row."""

    def __init__(self) -> None:
        self._last = monotonic()

    def __iter__(self) -> Iterator[None]:
        if monotonic() - self._last >= 1:
            self._last = monotonic()
            yield None

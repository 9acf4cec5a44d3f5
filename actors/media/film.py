"""One sequential decode of a film: its shots or listed scenes, their sampled frames, and what is measured on pixels.

Times are presentation times in seconds since the start of the file; frame numbers are only ever counted, never divided
by a rate, so that films with a variable rate are cut where they cut.
"""

import logging
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from heapq import heappop, heappush
from itertools import chain, islice
from operator import attrgetter
from time import monotonic
from typing import Any, BinaryIO, Literal, Protocol

import av
import av.logging
import cv2
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Disposition
from av.video.reformatter import Interpolation, VideoReformatter

from actors.core import storage
from actors.core.child import BrokenRunError
from actors.core.stage import Stage
from actors.curation.motion import FLOWS, MotionConfig, rgb_differences
from actors.curation.perceptual_hash import scene_hash
from actors.media.shots import CutFinder, ShotsConfig

logger = logging.getLogger(__name__)
Row = dict[str, Any]

FEATURES = ("max_rgb_diff", "mean_rgb_diff", "max_velocity", "mean_velocity", "mse", "cos_sim", "no_frames")
"""The seven features, in the order that a classifier expects."""

ROUNDING_S = 0.001
"""Containers and metadata round times to milliseconds: a frame this much early still counts as on time."""
TORCHCODEC_BYTES = 64 << 20
"""About as much of full-size frames, at most 16, is fetched from torchcodec at once."""
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
            raise ValueError(f"interval_ms from 1, size from 16, 2 <= min <= max: {self}")


class FilmError(ValueError):
    """A film that cannot be read at all; `code` is the error code of its scenes."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Picture(Protocol):
    """One decoded frame, not yet converted."""

    time: float
    """When it is shown, in seconds since the start of the file."""
    duration: float
    """For how long, in seconds; 0 where the container does not say."""
    damaged: bool
    """Lost, marked by the decoder as faulty, or predicted from such a frame."""

    def scaled(self, width: int, height: int, smooth: bool = True) -> np.ndarray:
        """The upright frame at that size: uint8 (height, width, 3) RGB; without `smooth` pixels are left out: fast."""
        ...


@dataclass
class Film:
    """A film that is being read: what its container says, and its frames in order of presentation, once."""

    rate: Fraction
    """Average frames per second."""
    duration_s: float | None
    frames: int
    """Frames that the container declares; 0 where it does not say."""
    container: str
    """FFmpeg's name of the container."""
    codec: str
    width: int = 0
    """As shown: upright, with square pixels."""
    height: int = 0
    decoder: str = "pyav"
    """What decodes the pictures; torchcodec+pyav where the one could not go on."""
    pictures: Iterator[Picture] = field(default_factory=lambda: iter(()))
    decoded: int = 0
    """Frames decoded so far."""
    truncated: bool = False
    """Whether pictures that the container declares are not there; certain once `pictures` has run out."""
    seek: Callable[[float], Iterator[Picture]] | None = None
    """Pictures from a key frame at or before a time on, in seconds, where the container has an index for that; it ends
    `pictures`, and the iterator of the call before. Raises FFmpegError."""

    @property
    def step_s(self) -> float:
        """Time between two frames on average."""
        return float(1 / self.rate)

    def falls_short(self, end: float) -> bool:
        """Whether a file that ends at this time, in seconds, is shorter than its container declares."""
        declares = self.container in (_MOV, _MATROSKA, "flv")  # elsewhere it is a guess from the rate of bits
        return declares and self.duration_s is not None and end < self.duration_s - max(1.0, 3 * self.step_s)


class _PyAVPicture:
    __slots__ = ("_frame", "_scalers", "_turns", "damaged", "duration", "time")

    def __init__(
        self, frame: av.VideoFrame, time: float, duration: float, damaged: bool, scalers: dict[Any, VideoReformatter]
    ) -> None:
        self._frame, self.time, self.duration, self.damaged, self._scalers = frame, time, duration, damaged, scalers
        self._turns = round(frame.rotation / 90) % 4

    def scaled(self, width: int, height: int, smooth: bool = True) -> np.ndarray:
        size = (height, width) if self._turns % 2 else (width, height)
        scaler = self._scalers.setdefault((size, smooth), VideoReformatter())
        how = Interpolation.BILINEAR if smooth else Interpolation.FAST_BILINEAR
        rgb = scaler.reformat(self._frame, *size, "rgb24", interpolation=how, threads=1).to_ndarray()
        return np.ascontiguousarray(np.rot90(rgb, self._turns)) if self._turns else rgb


def open_film(path: str, decoder: str = "pyav", device: str = "cpu") -> Film:
    """Open a film for one pass; raises FilmError with the code that its rows get.

    path: a local path; for PyAV also s3://, of which is read what is decoded.
    """
    source = storage.stream(path) if path.startswith("s3://") else path
    try:
        # A playlist under a film's name must not make the decoder fetch what it lists.
        container = av.open(source, "r", metadata_errors="replace", options={"protocol_whitelist": "file"})
    except (FFmpegError, ValueError) as error:
        raise _unreadable(path, error) from error
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        kinds = ", ".join(sorted({s.type for s in container.streams if s.type != "video"})) or "nothing"
        raise FilmError("no_video_stream", f"the file holds {kinds}, no moving pictures")
    stream = streams[0]
    if stream.codec_context is None:
        raise FilmError("unknown_codec", "no decoder knows this codec")
    stream.thread_count = 1
    film = Film(
        rate=Fraction(stream.average_rate or stream.guessed_rate or 25),
        duration_s=container.duration / av.time_base if container.duration else None,
        frames=stream.frames,
        container=container.format.name,
        codec=stream.codec_context.name,
        truncated=_lacks_samples(container, stream),
    )
    start = (container.start_time or 0) / av.time_base
    frames = _decoded(container, stream, film, start)
    first = next(frames, None)
    if first is None:
        code = "truncated" if film.truncated else "no_frames"
        raise FilmError(code, "the file declares pictures but holds none that can be decoded")
    frame = first[0]
    try:
        frame.reformat(16, 16, "rgb24", threads=1)
    except FFmpegError as error:
        raise FilmError("unknown_codec", f"pixels in the format {frame.format.name} cannot be converted") from error
    sides = (round(frame.width * (stream.sample_aspect_ratio or 1)), frame.height)
    film.width, film.height = sides[::-1] if round(frame.rotation / 90) % 2 else sides
    if container.format.name == _AVI:
        start += first[1] or 0.0
    film.pictures = _pictures(film, chain([first], frames), start, float(stream.time_base or 0))
    if container.format.name in (_MOV, _MATROSKA):
        film.seek = partial(_sought, container, stream, start)
    if decoder == "torchcodec":
        film.pictures = _with_torchcodec(film, path, device, start)
    return film


_MOV, _MATROSKA, _AVI = "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi"


def _unreadable(path: str, error: Exception) -> FilmError:
    with storage.stream(path) as file:
        head = file.read(8)
        if not head:
            return FilmError("empty_file", "the file has no bytes")
        if head[4:] in (b"ftyp", b"wide", b"mdat", b"moov", b"free", b"skip") and not _has_index(file):
            return FilmError("no_index", "an mp4 without its whole index (moov): its recording or transfer was cut off")
    return FilmError("not_a_video", f"no container that can be read: {error}")


def _has_index(file: BinaryIO) -> bool:
    end = file.seek(0, 2)
    file.seek(0)
    while len(head := file.read(8)) == 8:
        size, used = int.from_bytes(head[:4], "big"), 8
        if size == 1:
            size, used = int.from_bytes(file.read(8), "big"), 16
        after = file.tell() + size - used
        if head[4:] == b"moov":
            return after <= end
        if size < used or after > end:
            return False
        file.seek(after)
    return False


def _lacks_samples(container: InputContainer, stream: av.VideoStream) -> bool:
    """Whether the index of an mp4 points behind the end of the file."""
    if container.format.name != _MOV or not len(stream.index_entries) or container.size <= 0:
        return False
    last = stream.index_entries[-1]
    return last.pos + last.size > container.size


def _decoded(
    container: InputContainer, stream: av.VideoStream, film: Film, start: float
) -> Iterator[tuple[av.VideoFrame, float | None, bool]]:
    """Frames in order of presentation, each with its time and whether it is damaged, whatever the file holds.

    Damage lasts until the next key frame; so long each frame that was to come is there, so that frames can be counted,
    but not its own picture. Of what decoders conceal without a word (HEVC, VP9, MPEG-2, MJPEG) nothing is known.
    """
    base = stream.time_base or Fraction(1)
    # AVI stores no times, only the order of decoding, and a frame leaves the decoder when its turn has come.
    clock = attrgetter("dts" if film.container == _AVI else "pts")
    awaited: list[int] = []  # a heap: stamps of packets whose frames have not come out
    latest, harm = -math.inf, math.inf  # the last stamp of all packets, the first that is damaged
    end, partial = 0.0, False
    picture: av.VideoFrame | None = None

    def given_up(before: float = math.inf, keep: int = 0) -> Iterator[tuple[av.VideoFrame, float | None, bool]]:
        while picture is not None and len(awaited) > keep and awaited[0] < before:
            yield picture, _seconds(heappop(awaited), base), True

    with container:
        demuxed = container.demux()
        last = False
        # Not until the packets run out, since PyAV fails there if a stream has turned up on the way.
        while not last:
            try:
                packet = next(demuxed)
            except FFmpegError as error:
                logger.info("cannot be read on: %s", error)
                film.truncated = True
                return
            ours = packet.stream.index == stream.index
            last = ours and packet.dts is None and packet.pts is None and not packet.size
            if not (film.frames or last) and (stamp := packet.dts if packet.pts is None else packet.pts) is not None:
                end = max(end, float((stamp + (packet.duration or 0)) * packet.time_base) - start)
            # An empty packet says that the frame before stays.
            if not ours or not (packet.size or last):
                continue
            if last:
                if film.frames and film.container == _AVI:
                    film.truncated = latest + 1 < film.frames - max(2, film.frames // 200)
                elif not film.frames:
                    film.truncated = film.falls_short(end)
                film.truncated |= partial
                # What the decoder still holds has gaps where frames of the lost part belong.
                if film.truncated:
                    return
            partial = packet.is_corrupt
            stamp = clock(packet)
            try:
                frames = stream.decode(packet)
            except FFmpegError:
                frames = []
                harm = min(harm, latest + 1, math.inf if stamp is None else stamp)
            if stamp is not None and not packet.is_discard:
                heappush(awaited, stamp)
                latest = max(latest, stamp)
            for frame in frames:
                shown = clock(frame)
                picture = picture or frame
                if frame.is_corrupt:
                    harm = min(harm, latest if shown is None else shown)
                elif frame.key_frame and harm < math.inf and (shown is None or shown > harm):
                    yield from given_up(math.inf if shown is None else shown)
                    harm = math.inf
                picture = frame
                if shown is None:
                    yield frame, None, harm < math.inf
                elif shown < harm:
                    while awaited and awaited[0] <= shown:
                        heappop(awaited)
                    yield frame, _seconds(shown, base), False
            if harm < math.inf:
                yield from given_up(keep=_REORDERED)
    if harm < math.inf:
        yield from given_up()


_REORDERED = 32
"""More frames than any codec holds back to bring them in order."""


def _seconds(stamp: int, base: Fraction) -> float:
    return stamp * base.numerator / base.denominator


def _pictures(
    film: Film, frames: Iterable[tuple[av.VideoFrame, float | None, bool]], start: float, tick_s: float
) -> Iterator[Picture]:
    scalers: dict[Any, VideoReformatter] = {}
    time = -film.step_s
    for frame, stamp, damaged in frames:
        following = time + film.step_s
        if stamp is not None and stamp - start < time - 1:
            # Recordings that were joined start their clock again; time goes on.
            start = stamp - following
        # Some containers leave a frame without a time, or with that of the frame before.
        time = following if stamp is None else max(stamp - start, time + tick_s)
        film.decoded += 1
        yield _PyAVPicture(frame, time, frame.duration * tick_s, damaged, scalers)


def _sought(container: InputContainer, stream: av.VideoStream, start: float, time_s: float) -> Iterator[Picture]:
    base = stream.time_base or Fraction(1)
    back = 0.0
    while True:
        at = max(0.0, time_s - back)
        container.seek(math.floor((at + start) / base), stream=stream)
        pictures = _from_here(container, stream, base, start)
        first = next(pictures, None)
        if first is None or first.time <= time_s or at == 0:
            yield from chain([first] if first else [], pictures)
            return
        # The pictures after some key frames need what lies before them.
        back = max(1.0, 2 * back)


def _from_here(
    container: InputContainer, stream: av.VideoStream, base: Fraction, start: float
) -> Iterator[_PyAVPicture]:
    """Pictures to the end of the file; what follows damage is damaged until the next key frame."""
    scalers: dict[Any, VideoReformatter] = {}
    harm = False
    for packet in container.demux(stream):
        try:
            frames = stream.decode(packet)
        except FFmpegError:
            harm = True
            continue
        for frame in frames:
            harm = frame.is_corrupt or (harm and not frame.key_frame)
            yield _PyAVPicture(
                frame, float((frame.pts or 0) * base) - start, float(frame.duration * base), harm, scalers
            )


class _TorchPicture:
    __slots__ = ("_frame", "time")
    duration = 0.0  # what torchcodec says of it is wrong where the rate varies
    damaged = False

    def __init__(self, frame: Any, time: float) -> None:
        self._frame, self.time = frame, time

    def scaled(self, width: int, height: int, smooth: bool = True) -> np.ndarray:
        from torchvision.transforms.v2.functional import resize

        return resize(self._frame, [height, width], antialias=smooth).permute(1, 2, 0).contiguous().cpu().numpy()


def _with_torchcodec(film: Film, path: str, device: str, start: float) -> Iterator[Picture]:
    """The pictures of a film as torchcodec decodes them, and from where it cannot go on, as PyAV does.

    torchcodec is exact only where an index tells the frames, and stops at the first damage.
    """
    try:
        from torchcodec.decoders import VideoDecoder  # pyright: ignore[reportPrivateImportUsage]
    except (ImportError, RuntimeError, OSError) as error:
        raise BrokenRunError(
            f"video.decoder=torchcodec needs the extra `torchcodec` and FFmpeg's shared libraries "
            f"(Debian: apt-get install ffmpeg): {error}"
        ) from error
    pyav = film.pictures

    def pictures() -> Iterator[Picture]:
        done = 0
        if not film.truncated and film.container in (_MOV, _MATROSKA):
            try:
                decoder = VideoDecoder(path, device=device, num_ffmpeg_threads=1)
                end = decoder.metadata.end_stream_seconds
                whole = end is not None and not film.falls_short(end - start)
                chunk = max(1, min(16, TORCHCODEC_BYTES // (3 * film.width * film.height)))
                while whole and done < len(decoder):
                    batch = decoder.get_frames_in_range(done, min(done + chunk, len(decoder)))
                    for frame, time in zip(batch.data, (batch.pts_seconds - start).tolist(), strict=True):
                        film.decoder = "torchcodec"
                        done += 1
                        film.decoded += 1
                        yield _TorchPicture(frame, time)
                if whole:
                    return
            except (RuntimeError, ValueError, IndexError) as error:
                logger.warning("%s: from frame %d on decoded by PyAV: %s", path, done, error)
                film.decoder = "torchcodec+pyav" if done else "pyav"
        yield from islice(pyav, done, None)

    return pictures()


class _Scene:
    """A scene while its frames pass: samples them, and becomes a row at its end."""

    def __init__(self, film: Film, config: FramesConfig, motion: MotionConfig, about: Row) -> None:
        self._film, self._config, self._motion, self._about = film, config, motion, about
        short = min(film.width, film.height)
        self._width, self._height = (round(side * config.size / short) for side in (film.width, film.height))
        self._start = math.nan
        self._due = 0
        self._count = 0
        self._damaged = 0
        self._frames: list[np.ndarray] = []

    def add(self, picture: Picture) -> None:
        if math.isnan(self._start):
            self._start = picture.time
        self._damaged += picture.damaged
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
        # A copy, since a view would keep what is cropped.
        self._frames.append(image[top : top + self._config.size, left : left + self._config.size].copy())

    def row(self, end_s: float, error: str = "", message: str = "") -> Row:
        """The scene's row; with an error code where it could not be had whole."""
        if not error and self._damaged:
            error, message = "decode_error", f"{self._damaged} of its frames are damaged"
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
            row["phash"] = scene_hash(frames)
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
        "phash": None,
        "frames": None,
        "thumbnail": b"",
        "error": error,
        "message": message,
    }


def _about(scene: Row) -> Row:
    return {name: scene[name] for name in ("clip_id", "scene_id", "ordinal", "caption")}


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
            self._open.append((scene, _Scene(self._film, self._frames, self._motion, _about(scene))))
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
        seen = self._end_s is not None and self._end_s <= end_s + ROUNDING_S
        if truncated and not seen:
            yield from self._end(end_s, "truncated", 0, whole=False)
        elif self._end_s is None or self._end_s <= end_s + max(0.1, SPARE_FRAMES * self._film.step_s):
            yield from self._end(end_s, "scene_beyond_span", SPARE_FRAMES)
        else:
            yield from self._end(end_s, "span_beyond_end", 0, whole=False)

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
            yield scene_row(_about(scene), code, messages[code])
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
    """Decode a film once; yield a row for each scene as soon as it has passed, then one for the film; None: alive.

    path: a local file. spans: what to cut, each {start_s, end_s or None, scenes: [{clip_id, scene_id, ordinal, caption,
    first, end}]} with 0 <= first < end or end -1; None: shots are to be detected. skip: scenes that need no row.
    A scene's row: what names it, start_s, end_s, width, height, the features measured on pixels (NaN where not
    measured), no_frames, phash (bytes or None), frames uint8 (T, size, size, 3) RGB or None, thumbnail (JPEG), error,
    message.
    The film's row has scene_id "" and tells decoded and source frames, how many scenes there are, and what was wrong.
    """
    cv2.setNumThreads(1)
    av.logging.set_level(None)
    try:
        film = open_film(path, video.decoder, "cuda" if video.num_gpus > 0 else "cpu")
    except FilmError as error:
        for span in spans or []:
            for scene in span["scenes"]:
                if scene["scene_id"] not in skip:
                    yield scene_row(_about(scene), error.code, str(error))
        yield film_row(None, _count(spans), error.code if spans is None else "", str(error) if spans is None else "")
        return
    if spans is None:
        yield from _cut_shots(film, video_id, skip, frames, shots, motion)
    else:
        yield from _cut_spans(film, spans, skip, frames, motion)


def film_row(film: Film | None, scenes: int, error: str = "", message: str = "") -> Row:
    """The row that closes a film, None where it was not decoded: it tells how many scene rows belong to it."""
    about = {"clip_id": "", "scene_id": "", "ordinal": -1, "caption": ""}
    decoded, source, decoder = (film.decoded, film.frames or film.decoded, film.decoder) if film else (0, 0, "")
    counts = {"decoded": decoded, "source": source, "decoder": decoder, "scenes": scenes}
    return {**scene_row(about, error, message), **counts}


def _count(spans: list[Row] | None) -> int:
    return sum(len(span["scenes"]) for span in spans or [])


def _cut_spans(
    film: Film, spans: list[Row], skip: frozenset[str], frames: FramesConfig, motion: MotionConfig
) -> Iterator[Row | None]:
    count = _count(spans)
    spans = [{**span, "scenes": [s for s in span["scenes"] if s["scene_id"] not in skip]} for span in spans]
    spans = [span for span in spans if span["scenes"]]
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
        end = picture.time + (picture.duration or film.step_s)
        if not waiting and not live:
            break
        yield from beat
    for span in (*live, *waiting):
        yield from span.end_of_film(end, film.truncated)
    yield film_row(film, count)


def _cut_shots(
    film: Film, video_id: str, skip: frozenset[str], frames: FramesConfig, shots: ShotsConfig, motion: MotionConfig
) -> Iterator[Row | None]:
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
    for shot, picture in in_shots(film, shots):
        if shot != count:
            if wanted():
                yield scene.row(picture.time)
            count = shot
            scene = begin()
        if wanted():
            scene.add(picture)
        end = picture.time + (picture.duration or film.step_s)
        yield from beat
    code, message = "", ""
    if film.truncated:
        code, message = "truncated", f"the film breaks off at {end:.3f} s, before its declared end"
    if wanted():
        yield scene.row(end, code, message)
    yield film_row(film, count + 1, code, message)


def in_shots(film: Film, shots: ShotsConfig) -> Iterator[tuple[int, Picture]]:
    """The pictures of a film in order, each with the number of its shot from 0, as soon as that is known."""
    finder = None if shots.detector == "none" else CutFinder(shots)
    shrink = min(1.0, shots.width / film.width)
    small = round(film.width * shrink), round(film.height * shrink)
    cuts: set[int] = set()
    held: deque[tuple[int, Picture]] = deque()
    shot = 0
    for index, picture in enumerate(film.pictures):
        held.append((index, picture))
        if finder:
            cuts.update(finder.feed(picture.scaled(*small, smooth=False), picture.time))
        if len(held) > (finder.delay if finder else 0):
            index, picture = held.popleft()
            shot += index in cuts and index > 0
            yield shot, picture
    for index, picture in held:
        shot += index in cuts and index > 0
        yield shot, picture


class Beat:
    """Yields None once a second: a sign of life to whoever waits for the next row."""

    def __init__(self) -> None:
        self._last = monotonic()

    def __iter__(self) -> Iterator[None]:
        if monotonic() - self._last >= 1:
            self._last = monotonic()
            yield None

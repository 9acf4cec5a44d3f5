"""One sequential decode of a film: its shots or listed scenes, their sampled frames, and what is measured on pixels.

Times are presentation times in seconds since the start of the file; frame numbers are only ever counted, never divided
by a rate, so that films with a variable rate are cut where they cut.
"""

import logging
import math
import os
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
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Disposition
from av.video.reformatter import Interpolation, VideoReformatter

from actors.core import storage
from actors.core.addresses import local_path
from actors.core.errors import BrokenRunError
from actors.core.stage import Stage
from actors.media.formats import listing_kind, open_container
from actors.media.shots import CutFinder, ShotsConfig

logger = logging.getLogger(__name__)

ROUNDING_S = 0.001
"""Containers and metadata round times to milliseconds: a frame this much early still counts as on time."""
TORCHCODEC_BYTES = 64 << 20
"""About as much of full-size frames, at most 16, is fetched from torchcodec at once."""


@dataclass(frozen=True)
class VideoConfig(Stage):
    """Decoding of films."""

    workers: int = 0
    """Films decoded at once over the whole cluster; 0: as many as CPUs allow."""
    decoder: Literal["pyav", "torchcodec"] = "pyav"
    """Decoder library. torchcodec needs the extra `torchcodec`; with num_gpus above 0 it decodes on the GPU (NVDEC)."""
    stall_s: float = 120
    """Seconds without progress after which decoding of a film is given up (error code `stalled`)."""
    timeout_s: float = 4 * 3600
    """Seconds in all after which decoding of a film is given up (error code `timeout`)."""


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
    source = storage.stream(path) if path.startswith("s3://") else os.path.abspath(local_path(path))
    try:
        container = open_container(source)
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
        if (kind := listing_kind(file)) is not None:
            return FilmError("playlist", f"{kind}: a list of other files, which are not opened; name each film itself")
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


_Timed = tuple[av.VideoFrame, float | None, bool]
"""A frame, its time in seconds, and whether it is damaged."""


def _decoded(container: InputContainer, stream: av.VideoStream, film: Film, start: float) -> Iterator[_Timed]:
    """Frames in order of presentation, each with its time and whether it is damaged, whatever the file holds.

    Damage lasts until the next key frame; so long each frame that was to come is there, so that frames can be counted,
    but not its own picture. Of what decoders conceal without a word (HEVC, VP9, MPEG-2, MJPEG) nothing is known.
    """
    return _Decoding(container, stream, film, start).frames()


class _Decoding:
    """One pass over a film's packets, with what is known of frames that have not come out yet."""

    def __init__(self, container: InputContainer, stream: av.VideoStream, film: Film, start: float) -> None:
        self._container, self._stream, self._film, self._start = container, stream, film, start
        self._base = stream.time_base or Fraction(1)
        # AVI stores no times, only the order of decoding, and a frame leaves the decoder when its turn has come.
        self._clock = attrgetter("dts" if film.container == _AVI else "pts")
        self._awaited: list[int] = []  # a heap: stamps of packets whose frames have not come out
        self._latest, self._harm = -math.inf, math.inf  # the last stamp of all packets, the first that is damaged
        self._picture: av.VideoFrame | None = None
        self._broken = False

    def frames(self) -> Iterator[_Timed]:
        """As `_decoded`."""
        with self._container:
            for packet in self._packets():
                for frame in self._frames_of(packet):
                    yield from self._dealt(frame)
                if self._harm < math.inf:
                    yield from self._given_up(keep=_REORDERED)
        if self._harm < math.inf and not self._broken:
            yield from self._given_up()

    def _packets(self) -> Iterator[av.Packet]:
        """The stream's packets up to the empty one that is the last; fewer where the file breaks off."""
        demuxed = self._container.demux()
        last = partial = False
        end = 0.0
        # Not until the packets run out, since PyAV fails there if a stream has turned up on the way.
        while not last:
            try:
                packet = next(demuxed)
            except FFmpegError as error:
                logger.info("cannot be read on: %s", error)
                self._film.truncated = self._broken = True
                return
            ours = packet.stream.index == self._stream.index
            last = ours and packet.dts is None and packet.pts is None and not packet.size
            stamp = packet.dts if packet.pts is None else packet.pts
            if not (self._film.frames or last) and stamp is not None:
                end = max(end, float((stamp + (packet.duration or 0)) * packet.time_base) - self._start)
            # An empty packet says that the frame before stays.
            if not ours or not (packet.size or last):
                continue
            if last and self._breaks_off(end, partial):
                self._broken = True
                return
            partial = packet.is_corrupt
            yield packet

    def _breaks_off(self, end: float, partial: bool) -> bool:
        """Whether packets that the container declares are not there: what the decoder still holds has gaps then."""
        film = self._film
        if film.frames and film.container == _AVI:
            film.truncated = self._latest + 1 < film.frames - max(2, film.frames // 200)
        elif not film.frames:
            film.truncated = film.falls_short(end)
        film.truncated |= partial
        return film.truncated

    def _frames_of(self, packet: av.Packet) -> list[av.VideoFrame]:
        stamp = self._clock(packet)
        try:
            frames = self._stream.decode(packet)
        except FFmpegError:
            frames = []
            self._harm = min(self._harm, self._latest + 1, math.inf if stamp is None else stamp)
        if stamp is not None and not packet.is_discard:
            heappush(self._awaited, stamp)
            self._latest = max(self._latest, stamp)
        return frames

    def _dealt(self, frame: av.VideoFrame) -> Iterator[_Timed]:
        """A frame that came out, after those that it shows to be lost."""
        shown = self._clock(frame)
        self._picture = self._picture or frame
        if frame.is_corrupt:
            self._harm = min(self._harm, self._latest if shown is None else shown)
        elif frame.key_frame and self._harm < math.inf and (shown is None or shown > self._harm):
            yield from self._given_up(math.inf if shown is None else shown)
            self._harm = math.inf
        self._picture = frame
        if shown is None:
            yield frame, None, self._harm < math.inf
        elif shown < self._harm:
            while self._awaited and self._awaited[0] <= shown:
                heappop(self._awaited)
            yield frame, _seconds(shown, self._base), False

    def _given_up(self, before: float = math.inf, keep: int = 0) -> Iterator[_Timed]:
        """Frames that were to come before a time, each with the picture that there is."""
        while self._picture is not None and len(self._awaited) > keep and self._awaited[0] < before:
            yield self._picture, _seconds(heappop(self._awaited), self._base), True


_REORDERED = 32
"""More frames than any codec holds back to bring them in order."""


def _seconds(stamp: int, base: Fraction) -> float:
    return stamp * base.numerator / base.denominator


def _pictures(film: Film, frames: Iterable[_Timed], start: float, tick_s: float) -> Iterator[Picture]:
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


VIDEO_SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("3g2", "3gp", "asf", "avi", "f4v", "flv", "m2ts", "m2v", "m4v", "mkv", "mov", "mp4", "mpeg"),
        *("mpg", "mpv", "mts", "mxf", "ogg", "ogv", "rm", "ts", "vob", "webm", "wmv"),
    )
)
"""How names of films end, in either case."""

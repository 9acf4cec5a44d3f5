"""One sequential decode of a film: its shots or listed scenes, their sampled frames, and what is measured on pixels.

Times are presentation times in seconds since the start of the file; frame numbers are only ever counted, never divided
by a rate, so that films with a variable rate are cut where they cut.
"""

import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property, partial
from itertools import chain
from time import monotonic
from typing import BinaryIO, Literal, Protocol

import av
import av.logging
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError

from actors.core import storage
from actors.core.addresses import local_path
from actors.core.errors import UserError
from actors.core.meters import FILM, Gathered
from actors.media.bars import NO_BARS, Bars, Lines
from actors.media.clock import AVI, MATROSKA, MOV, Clock, Heard
from actors.media.decoding import Decoding, pictures, sought
from actors.media.formats import decoder_options, listing_kind, open_container, refusal
from actors.media.limits import MAX_PIXELS, MAX_SIDE, FilmStage, beyond
from actors.media.shown import AS_STORED, NOT_KNOWN, Look, Stored, Viewer, converted, stored, turn_of
from actors.media.streams import film_stream, sound_stream
from actors.media.torch_decoding import check_nvdec, with_torchcodec
from actors.media.vectors import EXPORT, Vectors
from actors.media.whole import has_index, is_whole, lacks_samples

ROUNDING_S = 0.001
"""Containers and metadata round times to milliseconds: a frame this much early still counts as on time."""
HOLE_S = 1.0
"""Where no picture is shown for longer than this, and for three frames, pictures are missing."""
JUMP_S = 10.0
"""Less than this is decoded rather than jumped over: a jump costs the pictures since the key frame before its end."""


@dataclass(frozen=True)
class VideoConfig(FilmStage):
    """Decoding of films."""

    workers: int = 0
    """Films decoded at once over the whole cluster; 0: as many as CPUs allow."""
    num_cpus: float = 1.0
    """CPUs that one worker reserves. In `curation`, from 2 on, as many processes cut one film at once, where it is an
    mp4 or mov of a minute or more without metadata, and its shots are found without a network."""
    num_gpus: float = 0.0
    """GPUs that one worker reserves, a fraction to share one. With torchcodec, GPUs decode then (NVDEC), and 1 GPU has
    room for 1/num_gpus films at once; a film takes about 1.5 GiB of its memory, of 4K twice that. With PyAV only a
    network that finds shots uses it."""
    decoder: Literal["pyav", "torchcodec"] = "pyav"
    """Decoder library. torchcodec needs the extra `torchcodec`; with num_gpus above 0 it decodes on the GPU (NVDEC)."""

    @property
    def device(self) -> Literal["cuda", "cpu"]:
        """Where films are decoded, and where networks that find shots run."""
        return "cuda" if self.num_gpus > 0 else "cpu"

    @property
    def by_nvdec(self) -> bool:
        """Whether a GPU decodes."""
        return self.decoder == "torchcodec" and self.num_gpus > 0

    def check_gpus(self, network: bool) -> None:
        """Raise UserError for GPUs that nothing would use; network: one finds shots."""
        if self.decoder == "pyav" and self.num_gpus > 0 and not network:
            raise UserError(
                "video.decoder=pyav runs on CPUs: with video.num_gpus use video.decoder=torchcodec, or a network for "
                "shots.detector"
            )


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
    until: float
    """When the next one takes its place, or where the film or its pictures end; in seconds."""
    after_hole: bool
    """Whether pictures are missing before it."""
    interlaced: bool
    """Whether it is flagged as two fields, of two times."""
    deinterlaced: bool
    """Whether it was made of two fields that are of two times; known once it was `scaled`."""
    damaged: bool
    """Lost, marked by the decoder as faulty, or predicted from such a frame."""

    @property
    def nbytes(self) -> int:
        """Memory that it takes while it is held, in bytes."""
        ...

    def scaled(self, width: int, height: int, smooth: bool = True, bars: Bars = NO_BARS) -> np.ndarray:
        """The upright frame inside of bars, in pixels of `lines`, at that size: uint8 (height, width, 3) RGB.

        Without `smooth` pixels are left out: fast.
        """
        ...

    def lines(self) -> Lines:
        """What may be black bars in the upright frame, in pixels as they are stored."""
        ...

    def vectors(self) -> Vectors | None:
        """The codec's motion vectors of the frame as it is stored; None where they are not told."""
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
    path: str
    stream: int = 0
    """Index of the stream of its pictures."""
    start_s: float = 0.0
    """What the container's clock shows at the start of the file."""
    clock: Clock | None = None
    width: int = 0
    """As shown: upright, with square pixels."""
    height: int = 0
    interlaced: bool = False
    """Whether its first picture is flagged as two fields."""
    look: Look = AS_STORED
    """What is done to its pictures."""
    stored: Stored = NOT_KNOWN
    """How its first picture is stored."""
    converted: tuple[str, ...] = ()
    """What is done to all of its pictures, in words."""
    outgrown: bool = False
    """Whether its pictures have become larger than may be decoded, so far; those are damaged."""
    decoder: str = "pyav"
    """What decodes the pictures: pyav, nvdec, torchcodec-cpu; nvdec+pyav where PyAV had to go on."""
    fallback: str = ""
    """Why that is not what was asked for; "" where it is."""
    pictures: Iterator[Picture] = field(default_factory=lambda: iter(()))
    decoded: int = 0
    """Frames decoded so far."""
    seconds: Gathered = field(default_factory=lambda: Gathered(FILM))
    truncated: bool = False
    """Whether pictures that the container declares are not there; certain once `pictures` has run out."""
    seek: Callable[..., Iterator[Picture]] | None = None
    """Pictures from a key frame at or before a time on, in seconds, where the container has an index for that; it ends
    `pictures`, and the iterator of the call before. Raises FFmpegError; with strict=True also where it is damaged."""

    @cached_property
    def step_s(self) -> float:
        """Time between two frames on average."""
        return float(1 / self.rate)

    def falls_short(self, end: float) -> bool:
        """Whether a file that ends at this time, in seconds, is shorter than its container declares."""
        declares = self.container in (MOV, MATROSKA, "flv")  # elsewhere it is a guess from the rate of bits
        # Some containers count from 0 where the clock starts late.
        end += max(0.0, self.start_s)
        return declares and self.duration_s is not None and end < self.duration_s - max(1.0, 3 * self.step_s)

    def is_whole(self) -> bool:
        """Whether the structure of the file shows that nothing of it is missing; False where it does not tell."""
        with storage.stream(self.path) as file:
            return is_whole(file, self.container)

    def count(self, picture: Picture) -> None:
        """Count a picture that was decoded."""
        self.decoded += 1
        self.seconds.add(picture.until - picture.time)

    def jumps_before(self, time: float) -> int:
        """How often the film's clock had jumped, and was mended, before a time in seconds."""
        return sum(jump - self.start_s < time - ROUNDING_S for jump in self.clock.jumps) if self.clock else 0

    def lasts(self, picture: Picture) -> float:
        """For how long a picture is shown of which the next is not known, in seconds."""
        length = picture.duration or self.step_s
        if length <= HOLE_S:
            return length
        # An average over held pictures says nothing of the last one, nor does a distance between times of decoding.
        left = (self.duration_s or math.inf) - max(0.0, self.start_s) - picture.time
        return min(length, left) if left > 0 else HOLE_S


def open_film(
    path: str,
    decoder: str = "pyav",
    device: str = "cpu",
    max_pixels: int = MAX_PIXELS,
    look: Look = AS_STORED,
    vectors: bool = False,
) -> Film:
    """Open a film for one pass; raises FilmError with the code that its rows get.

    path: a local path; for PyAV also s3://, of which is read what is decoded. max_pixels: of the largest picture.
    look: how it is shown; torchcodec has a matrix of its own where a film names none. vectors: whether pictures are
    asked for their motion vectors, which PyAV's have where the codec has them.
    """
    look = replace(look, hd_matrix=look.hd_matrix and decoder == "pyav")
    try:
        container = open_container(_source(path), max_pixels)
    except (FFmpegError, ValueError) as error:
        raise _unreadable(path, error, refusal(_source(path), max_pixels)) from error
    stream = _decodable(container, max_pixels)
    if vectors:
        stream.codec_context.flags2 |= EXPORT
    sound = sound_stream(container)
    start = (container.start_time or 0) / av.time_base
    clock = Clock(container, stream, sound)
    film = Film(
        rate=Fraction(stream.average_rate or stream.guessed_rate or 25),
        duration_s=container.duration / av.time_base if container.duration else None,
        frames=stream.frames,
        container=container.format.name,
        codec=stream.codec_context.name,
        path=path,
        stream=stream.index,
        start_s=start,
        clock=clock,
        truncated=lacks_samples(container, stream),
    )
    decoding = Decoding(container, stream, film, start, clock, sound.index if sound else -1)
    frames = decoding.frames()
    first = next(frames, None)
    if first is None:
        if why := refusal(_source(path), max_pixels, film.stream):
            raise FilmError("too_large", why)
        code = "truncated" if film.truncated else "no_frames"
        raise FilmError(code, "the file declares pictures but holds none that can be decoded")
    _tell_of(film, first[0], stream, look, max_pixels)
    viewer = Viewer(look)
    if container.format.name == AVI:
        start += first[1] or 0.0
    film.pictures = pictures(film, chain([first], frames), start, float(stream.time_base or 0), viewer)
    if container.format.name in (MOV, MATROSKA):
        film.seek = partial(sought, container, stream, start, viewer)
    if decoder == "torchcodec":
        film.pictures = with_torchcodec(film, path, device, start)
    film.pictures = with_ends(film, film.pictures, decoding.heard)
    return film


def _source(path: str) -> str | AbstractContextManager[BinaryIO]:
    """What FFmpeg reads of a local file or of one in S3, from its start."""
    return storage.stream(path) if path.startswith("s3://") else os.path.abspath(local_path(path))


def _decodable(container: InputContainer, max_pixels: int) -> av.VideoStream:
    """The stream of a container that is its film, ready to be decoded; raises FilmError where there is none."""
    stream = film_stream(container)
    if stream is None:
        kinds = ", ".join(sorted({s.type for s in container.streams if s.type != "video"})) or "nothing"
        raise FilmError("no_video_stream", f"the file holds {kinds}, no moving pictures")
    if stream.codec_context is None:
        raise FilmError("unknown_codec", "no decoder knows this codec")
    context = stream.codec_context
    # Where the container tells the size, nothing is allocated for it.
    if why := _too_large(context.width, context.height, stream, max_pixels):
        raise FilmError("too_large", why)
    # Also where the size changes on the way.
    context.options = decoder_options(max_pixels)
    stream.thread_count = 1
    return stream


def _tell_of(film: Film, frame: av.VideoFrame, stream: av.VideoStream, look: Look, max_pixels: int) -> None:
    """Write down what the first picture tells of a film; raises FilmError where its pixels cannot be had, or are too
    many."""
    if why := _too_large(frame.width, frame.height, stream, max_pixels):
        raise FilmError("too_large", why)
    try:
        frame.reformat(16, 16, "rgb24", threads=1)
    except FFmpegError as error:
        raise FilmError("unknown_codec", f"pixels in the format {frame.format.name} cannot be converted") from error
    sides = _shown(frame.width, frame.height, stream)
    film.interlaced = bool(frame.interlaced_frame)
    film.width, film.height = sides[::-1] if turn_of(frame).quarters % 2 else sides
    film.look, film.stored = look, stored(frame, stream.sample_aspect_ratio)
    film.converted = converted(frame, look)


def opened(path: str, video: VideoConfig, look: Look = AS_STORED, vectors: bool = False) -> Film:
    """Open a film for one pass by the settings, as `open_film`; raises BrokenRunError where a GPU is to and cannot."""
    if video.by_nvdec:
        check_nvdec(video.num_gpus)
    return open_film(path, video.decoder, video.device, video.max_pixels, look, vectors)


def with_ends(film: Film, found: Iterator[Picture], heard: Heard | None) -> Iterator[Picture]:
    """The same pictures, each when the next is known: when it ends, and whether pictures are missing after it."""
    try:
        before = None
        for picture in found:
            if before:
                end = before.time + film.lasts(before)
                gap = picture.time - end
                # An index that names every picture holds them; elsewhere sound that goes on tells a hold from a hole.
                missing = gap > max(HOLE_S, 3 * film.step_s) and not (film.clock and film.clock.steady)
                missing = missing and (heard is None or heard.between(end, picture.time) < gap / 2)
                before.until, picture.after_hole = end if missing else picture.time, missing
                film.count(before)
                yield before
            before = picture
        if before:
            before.until = before.time + film.lasts(before)
            film.count(before)
            yield before
    finally:
        film.seconds.hand_on()


def _shown(width: int, height: int, stream: av.VideoStream) -> tuple[int, int]:
    """Width and height with square pixels of a picture as it is stored, before it is turned."""
    return round(width * (stream.sample_aspect_ratio or 1)), height


def _too_large(width: int, height: int, stream: av.VideoStream, max_pixels: int) -> str:
    """Why pictures that are stored with this size are too large; "" where they are not, or the size is not known."""
    if not width * height:
        return ""
    if width * height > max_pixels:
        return f"pictures of {width}x{height} pixels, more than max_pixels={max_pixels}"
    why = beyond(*_shown(width, height, stream), max_pixels, MAX_SIDE)
    return why and f"pictures that are stored as {width}x{height} pixels are shown as {why}"


def _unreadable(path: str, error: Exception, refused: str) -> FilmError:
    if refused:
        return FilmError("too_large", refused)
    with storage.stream(path) as file:
        head = file.read(8)
        if not head:
            return FilmError("empty_file", "the file has no bytes")
        if head[4:] in (b"ftyp", b"wide", b"mdat", b"moov", b"free", b"skip") and not has_index(file):
            return FilmError("no_index", "an mp4 without its whole index (moov): its recording or transfer was cut off")
        if (kind := listing_kind(file)) is not None:
            return FilmError("playlist", f"{kind}: a list of other files, which are not opened; name each film itself")
    return FilmError("not_a_video", f"no container that can be read: {error}")


class SeekError(Exception):
    """What was sought is not there as it was measured: the film is to be decoded from its start."""


def visited(film: Film, spans: Sequence[tuple[float, float]], steady: bool) -> Iterator[Picture | None]:
    """The pictures of spans of a film in order, and some about them; None where what lies between was jumped over.

    spans: start and end in seconds, by their starts; each starts with a picture. steady: the film's clock is known
    not to jump. Raises SeekError where a span is not found, or not whole.
    """
    if film.seek is None or not (steady or (film.clock and film.clock.steady)):
        yield from film.pictures
        return
    sought = False
    for begin, end, starts in _near(spans):
        found = film.pictures
        if sought or begin > JUMP_S:
            yield None
            found, sought = with_ends(film, film.seek(begin, strict=True), None), True
        try:
            for picture in found:
                inside = picture.time >= begin - ROUNDING_S
                if sought and inside and (picture.damaged or not _begun(starts, picture.time)):
                    raise SeekError
                yield picture
                if picture.time >= end:
                    break
            if sought and starts:
                raise SeekError
        except FFmpegError as error:
            raise SeekError from error
        sought = True


def _begun(starts: deque[float], time: float) -> bool:
    """Take away the starts that a picture at that time is for; whether none was passed over."""
    while starts and starts[0] <= time + ROUNDING_S:
        if starts.popleft() < time - ROUNDING_S:
            return False
    return True


def _near(spans: Sequence[tuple[float, float]]) -> Iterator[tuple[float, float, deque[float]]]:
    """Spans together where no more than JUMP_S lies between them: where they begin and end, and all their starts."""
    begin = end = -math.inf
    starts: deque[float] = deque()
    for start_s, end_s in spans:
        if start_s > end + JUMP_S and starts:
            yield begin, end, starts
            begin, end, starts = start_s, end_s, deque()
        begin = begin if starts else start_s
        starts.append(start_s)
        end = max(end, end_s)
    if starts:
        yield begin, end, starts


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

"""PyAV's side of decoding: a film's packets become pictures in order of presentation, whatever the file holds."""

import logging
import math
from collections.abc import Iterable, Iterator
from fractions import Fraction
from heapq import heappop, heappush
from itertools import chain
from operator import attrgetter
from typing import TYPE_CHECKING

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError

from actors.media.bars import NO_BARS, Bars, Lines, look
from actors.media.clock import AVI, Clock, Heard
from actors.media.planes import planes
from actors.media.shown import Viewer, name_colours
from actors.media.vectors import Vectors, vectors_of

if TYPE_CHECKING:
    from actors.media.film import Film

logger = logging.getLogger(__name__)


class PyAVPicture:
    """A `Picture` that PyAV has decoded."""

    __slots__ = (
        *("_after", "_before", "_shown", "_turn", "_viewer", "after_hole", "damaged", "deinterlaced", "duration"),
        *("interlaced", "stored", "time", "until"),
    )

    def __init__(
        self,
        frame: av.VideoFrame,
        time: float,
        duration: float,
        damaged: bool,
        viewer: Viewer,
        before: "PyAVPicture | None" = None,
    ) -> None:
        self.stored, self.time, self.duration, self.damaged = frame, time, duration, damaged
        self.until, self.after_hole = time, False
        self.interlaced, self.deinterlaced = bool(frame.interlaced_frame), False
        self._viewer, self._turn = viewer, viewer.turn(frame)
        name_colours(frame, viewer.look)
        # Only where they are needed: a film's pictures would hold each other.
        self._shown = None if viewer.look.deinterlace and self.interlaced else frame
        self._before = self._after = None
        if before:
            self._before = None if self._shown else before.stored
            before._after = None if before._shown else frame

    @property
    def frame(self) -> av.VideoFrame:
        """The frame, deinterlaced where that is wanted; not upright yet. Only once the next picture has come."""
        if self._shown is None:
            self._shown, self.deinterlaced = self._viewer.progressive(self.stored, self._before, self._after)
            self._before = self._after = None
        return self._shown

    @property
    def nbytes(self) -> int:
        """Memory that it takes while it is held, in bytes."""
        return sum(plane.buffer_size for plane in self.stored.planes)

    def scaled(self, width: int, height: int, smooth: bool = True, bars: Bars = NO_BARS) -> np.ndarray:
        """The upright frame inside of bars at that size: uint8 (height, width, 3) RGB."""
        size = (height, width) if self._turn.quarters % 2 else (width, height)
        # What is fast is for finding shots, and every frame is looked at: there fields stay as they are.
        rgb = self._viewer.rgb(self.frame if smooth else self.stored, size, smooth, self._turn.bars(bars))
        return np.ascontiguousarray(self._turn(rgb))

    def lines(self) -> Lines:
        """What may be black bars in the upright frame, in pixels as they are stored."""
        return look(planes(self.stored, self._turn))

    def vectors(self) -> Vectors | None:
        """The motion vectors of the frame as it is stored."""
        return vectors_of(self.stored)


Timed = tuple[av.VideoFrame, float | None, bool]
"""A frame, its time in seconds, and whether it is damaged."""


class Decoding:
    """One pass over a film's packets, with what is known of frames that have not come out yet.

    Damage lasts until the next key frame; so long each frame that was to come is there, so that frames can be counted,
    but not its own picture. Of what decoders conceal without a word (HEVC, VP9, MPEG-2, MJPEG) nothing is known.
    """

    def __init__(
        self, container: InputContainer, stream: av.VideoStream, film: "Film", start: float, clock: Clock, sound: int
    ) -> None:
        self._container, self._stream, self._film, self._start = container, stream, film, start
        self._mended, self._sound, self.heard = clock, sound, Heard()
        self._base = stream.time_base or Fraction(1)
        # AVI stores no times, only the order of decoding, and a frame leaves the decoder when its turn has come.
        self._clock = attrgetter("dts" if film.container == AVI else "pts")
        self._awaited: list[int] = []  # a heap: stamps of packets whose frames have not come out
        self._latest, self._harm = -math.inf, math.inf  # the last stamp of all packets, the first that is damaged
        self._picture: av.VideoFrame | None = None
        self._broken = False

    def frames(self) -> Iterator[Timed]:
        """Frames in order of presentation, each with its time and whether it is damaged."""
        with self._container:
            for packet in self._packets():
                for frame in self._frames_of(packet):
                    yield from self._dealt(frame)
                if self._harm < math.inf:
                    yield from self._given_up(keep=REORDERED)
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
            self._mended.mend(packet)
            ours = packet.stream.index == self._stream.index
            last = ours and packet.dts is None and packet.pts is None and not packet.size
            if not last:
                end = max(end, self._noted(packet))
            # An empty packet says that the frame before stays.
            if not ours or not (packet.size or last):
                continue
            if last and self._breaks_off(end, partial):
                self._broken = True
                return
            partial = packet.is_corrupt
            yield packet

    def _noted(self, packet: av.Packet) -> float:
        """When a packet of pictures or sound ends, in seconds; 0 for others."""
        stamp = packet.dts if packet.pts is None else packet.pts
        index = packet.stream.index
        if stamp is None or index not in (self._stream.index, self._sound):
            return 0.0
        start = float(stamp * packet.time_base) - self._start
        end = start + float((packet.duration or 0) * packet.time_base)
        if index == self._sound:
            shift = self._mended.shift_s
            self.heard.add(start + shift, end + shift)
            return end + shift
        return end

    def _breaks_off(self, end: float, partial: bool) -> bool:
        """Whether packets that the container declares are not there: what the decoder still holds has gaps then."""
        film = self._film
        if film.frames and film.container == AVI:
            film.truncated = self._latest + 1 < film.frames - max(2, film.frames // 200)
        elif not film.frames:
            film.truncated = film.falls_short(end) and not self._is_whole(end)
        film.truncated |= partial
        return film.truncated

    def _is_whole(self, end: float) -> bool:
        whole = self._film.is_whole()
        if whole:
            declared = f"its header declares {self._film.duration_s:.1f} s, the file holds {end:.1f} s and is whole"
            logger.warning("%s: %s: it is taken as it is", self._film.path, declared, extra={"film": self._film.path})
        return whole

    def _frames_of(self, packet: av.Packet) -> list[av.VideoFrame]:
        stamp = self._clock(packet)
        try:
            frames = self._stream.decode(packet)
        except FFmpegError:
            frames = []
            # A decoder that refuses a size forgets the one it had.
            self._film.outgrown |= not self._stream.codec_context.width
            self._harm = min(self._harm, self._latest + 1, math.inf if stamp is None else stamp)
        if stamp is not None and not packet.is_discard:
            heappush(self._awaited, stamp)
            self._latest = max(self._latest, stamp)
        return frames

    def _dealt(self, frame: av.VideoFrame) -> Iterator[Timed]:
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

    def _given_up(self, before: float = math.inf, keep: int = 0) -> Iterator[Timed]:
        """Frames that were to come before a time, each with the picture that there is."""
        while self._picture is not None and len(self._awaited) > keep and self._awaited[0] < before:
            yield self._picture, _seconds(heappop(self._awaited), self._base), True


REORDERED = 32
"""More frames than any codec holds back to bring them in order."""


def _seconds(stamp: int, base: Fraction) -> float:
    return stamp * base.numerator / base.denominator


def pictures(
    film: "Film", frames: Iterable[Timed], start: float, tick_s: float, viewer: Viewer
) -> Iterator[PyAVPicture]:
    """Frames as pictures, at times that only go forwards; start: that of the file, in seconds."""
    picture = None
    time = -film.step_s
    for frame, stamp, damaged in frames:
        following = time + film.step_s
        # Some containers leave a frame without a time, or with that of the frame before.
        time = following if stamp is None else max(stamp - start, time + tick_s)
        picture = PyAVPicture(frame, time, frame.duration * tick_s, damaged, viewer, picture)
        yield picture


def sought(
    container: InputContainer,
    stream: av.VideoStream,
    start: float,
    viewer: Viewer,
    time_s: float,
    strict: bool = False,
) -> Iterator[PyAVPicture]:
    """Pictures from a key frame at or before a time on, in seconds; strict: damage raises FFmpegError."""
    base = stream.time_base or Fraction(1)
    back = 0.0
    while True:
        at = max(0.0, time_s - back)
        container.seek(math.floor((at + start) / base), stream=stream)
        pictures = _from_here(container, stream, base, start, viewer, strict)
        first = next(pictures, None)
        if first is None or first.time <= time_s or at == 0:
            yield from chain([first] if first else [], pictures)
            return
        # The pictures after some key frames need what lies before them.
        back = max(1.0, 2 * back)


def _from_here(
    container: InputContainer, stream: av.VideoStream, base: Fraction, start: float, viewer: Viewer, strict: bool
) -> Iterator[PyAVPicture]:
    """Pictures to the end of the file; what follows damage is damaged until the next key frame."""
    picture = None
    harm = False
    for packet in container.demux(stream):
        try:
            frames = stream.decode(packet)
        except FFmpegError:
            if strict:
                raise
            harm = True
            continue
        for frame in frames:
            harm = frame.is_corrupt or (harm and not frame.key_frame)
            time, duration = float((frame.pts or 0) * base) - start, float(frame.duration * base)
            picture = PyAVPicture(frame, time, duration, harm, viewer, picture)
            yield picture

"""A film's sound as one line of samples from the start of the file, read as the pictures go by, or by itself."""

import ctypes
import math
from collections import deque
from collections.abc import Iterator
from typing import Any, cast

import av
import numpy as np
from av.container import InputContainer
from av.error import InvalidDataError

from actors.media.clock import Clock, SoundClock
from actors.media.film import FilmError

AAC_RATES = (96_000, 88_200, 64_000, 48_000, 44_100, 32_000, 24_000, 22_050, 16_000, 12_000, 11_025, 8_000)
"""Samples per second that AAC knows; sound of another rate is resampled to 48,000."""
SOUND_SLACK_S = 0.01
"""Sound is placed by counting samples, since containers round its times; where these differ by more, they are right."""
WARM_UP_S = 1.0
"""Sound is decoded from this long before where it is wanted."""
MASK = (
    *("FL", "FR", "FC", "LFE", "BL", "BR", "FLC", "FRC", "BC", "SL", "SR", "TC", "TFL", "TFC", "TFR", "TBL", "TBC"),
    *("TBR", "DL", "DR", "WL", "WR", "SDL", "SDR", "LFE2", "TSL", "TSR", "BFC", "BFL", "BFR"),
)
"""FFmpeg's names of channels in the order of its masks."""
RATES = 1_000, 768_000
"""Fewest and most samples a second of sound that is read: converting others takes memory without bound."""
MOST_CHANNELS = 64
"""Most channels of sound that is read."""
USUAL = {1: "mono", 2: "stereo", 3: "2.1", 4: "quad", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1"}
"""What so many channels are where a file does not say."""


class Sound:
    """The sound of a film, mono, stereo or 5.1; other layouts are mixed down to the next of these.

    Where packets are missing or damaged there is silence. The time line is that of the pictures, also where the film's
    clock jumps.
    """

    def __init__(
        self,
        container: InputContainer,
        stream: av.AudioStream,
        video: av.VideoStream,
        start_s: float = 0.0,
        rate: int | None = None,
    ) -> None:
        """start_s: what the container's clock shows at the start. rate: in Hz; None: the film's own if AAC knows it.

        Raises FilmError for sound beyond RATES or MOST_CHANNELS.
        """
        channels = _Channels(stream)
        own = stream.codec_context.sample_rate
        if channels.count > MOST_CHANNELS or not RATES[0] <= own <= RATES[1]:
            bounds = f"up to {MOST_CHANNELS} channels and {RATES[0]} to {RATES[1]} Hz are read"
            raise FilmError("too_large", f"its sound has {channels.count} channels of {own} Hz: {bounds}")
        self.rate = rate or (own if own in AAC_RATES else 48_000)
        self.channels = 6 if channels.count >= 6 else 1 if channels.count == 1 else 2
        self.layout = {1: "mono", 2: "stereo", 6: "5.1"}[self.channels]
        self._origin = start_s
        self._from = container, stream, video, channels
        self._decoded = self._decode(*self._from)
        self._blocks: deque[tuple[int, av.AudioFrame]] = deque()
        self._damage: deque[tuple[int, int]] = deque()
        self._at: int | None = None

    def sample(self, time: float) -> int:
        """Number of the sample that is heard at that time."""
        return round(time * self.rate)

    def pieces(self, start_s: float, end_s: float) -> Iterator[tuple[int, np.ndarray, int]]:
        """The sound between two times, a second at most at once; starts never go back.

        Yields the number of the first sample, float32 (channels, N), and how many of its samples are silent because of
        damage.
        """
        at, end = self.sample(start_s), self.sample(end_s)
        while at < end:
            until = min(at + self.rate, end)
            self._read(at, until)
            taken = np.zeros((self.channels, until - at), np.float32)
            for start, block in self._blocks:
                first, last = max(start, at), min(start + block.samples, until)
                if first < last:
                    taken[:, first - at : last - at] = block.to_ndarray()[:, first - start : last - start]
            lost = sum(max(0, min(last, until) - max(first, at)) for first, last in self._damage)
            yield at, taken, lost
            at = until

    def skip(self, end_s: float) -> None:
        """Pass over the sound before that time."""
        end = self.sample(end_s)
        self._read(end, end)

    def jump(self, time: float) -> None:
        """Go on at a time, in seconds, without what comes before; its clock does not jump in between."""
        container, stream, *_ = self._from
        # A decoder needs what comes before the first sound that is to be right.
        at = max(0.0, time - WARM_UP_S) + self._origin
        container.seek(math.floor(at / stream.time_base) if stream.time_base else 0, stream=stream)
        self._decoded, self._at = self._decode(*self._from), None
        self._blocks.clear()
        self._damage.clear()

    def _read(self, start: int, end: int) -> None:
        """Read on to the sample `end`, and forget what comes before `start`."""
        while (self._at is None or self._at < end) and (block := next(self._decoded, None)) is not None:
            self._place(block)
            while self._blocks and self._blocks[0][0] + self._blocks[0][1].samples <= start:
                self._blocks.popleft()
        while self._damage and self._damage[0][1] <= start:
            self._damage.popleft()

    def _place(self, block: av.AudioFrame) -> None:
        at = self._at
        if block.time is not None:
            stamp = self.sample(block.time - self._origin)
            if at is None or abs(stamp - at) > SOUND_SLACK_S * self.rate:
                at = stamp
        at = at or 0
        self._blocks.append((at, block))
        self._at = at + block.samples

    def _lost(self, packet: av.Packet) -> None:
        """Note that a packet is damaged: where it lies, as far as its stamps tell."""
        first = self._at or 0
        if packet.pts is not None:
            first = self.sample(float(packet.pts * packet.time_base) - self._origin)
        length = max(1, self.sample(float((packet.duration or 0) * packet.time_base)))
        self._damage.append((first, first + length))

    def _decode(
        self, container: InputContainer, stream: av.AudioStream, video: av.VideoStream, channels: "_Channels"
    ) -> Iterator[av.AudioFrame]:
        clock = Clock(container, video, stream)
        # Where the clock may jump, the pictures' packets say when.
        packets = container.demux(stream) if clock.steady else container.demux(stream, video)
        resampler, source = None, None
        for packet in SoundClock(clock, stream).mended(packets):
            try:
                frames = packet.decode()
            except InvalidDataError:
                self._lost(packet)
                continue
            for frame in frames:
                if frame.is_corrupt or not RATES[0] <= frame.sample_rate <= RATES[1]:
                    self._lost(packet)
                    continue
                frame = channels.ordered(frame)
                found = (frame.format.name, frame.layout.name, frame.sample_rate)
                if resampler is None or found != source:
                    yield from _rest(resampler)
                    source, resampler = found, av.AudioResampler("fltp", self.layout, self.rate)
                yield from resampler.resample(frame)
        yield from _rest(resampler)


def _rest(resampler: av.AudioResampler | None) -> Iterator[av.AudioFrame]:
    if resampler is not None:
        # One that has nothing to convert hands its None back.
        yield from filter(None, resampler.resample(None))


class _Channels:
    """The channels of a stream in the order of FFmpeg's masks, whatever the order in the file.

    A layout in an order of its own owns memory that PyAV 18.1 frees twice, with every copy of it: as it decodes, too.
    It is therefore read once, never freed, and the decoder is given an ordinary layout of as many channels instead.
    """

    def __init__(self, stream: av.AudioStream) -> None:
        context = stream.codec_context
        layout = context.layout
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(layout))
        names = [channel.name for channel in layout.channels]
        self.count = layout.nb_channels
        self._order: list[int] | None = None
        self._name = USUAL.get(self.count, "")
        if len(set(names)) == len(names) and set(names) <= set(MASK):
            order = sorted(range(self.count), key=lambda i: MASK.index(names[i]))
            if order == list(range(self.count)):
                return
            self._order, self._name = order, "+".join(names[i] for i in order)
            context.layout = self._name
        elif self._name:
            context.layout = self._name

    def ordered(self, frame: av.AudioFrame) -> av.AudioFrame:
        """A decoded frame with its channels in order."""
        if self._order is None or frame.layout.nb_channels != self.count:
            return frame
        samples = frame.to_ndarray()
        if frame.format.is_planar:
            sorted_samples = samples[self._order]
        else:
            sorted_samples = samples.reshape(-1, self.count)[:, self._order].reshape(1, -1)
        made = av.AudioFrame.from_ndarray(
            cast(Any, np.ascontiguousarray(sorted_samples)), frame.format.name, self._name
        )
        made.sample_rate, made.pts, made.time_base = frame.sample_rate, frame.pts, frame.time_base
        return made

"""The time line of a film whose clock jumps, as players make it: where the clock jumps, time goes on.

Joined recordings and encoders that restart set the clock anew, forwards or backwards. The pictures decide: the first
one after a jump follows the last one before it, and sound keeps its distance to the pictures that it was stored with.
"""

import math
from collections import deque
from collections.abc import Iterable, Iterator
from fractions import Fraction

import av
from av.container import InputContainer
from av.format import Flags

AHEAD_S = 10
"""A clock that runs ahead by more than this has jumped, in formats that allow it. FFmpeg uses the same threshold."""
BACK_S = 0.1
"""A clock that goes back by more than this has jumped, in formats that allow it. FFmpeg uses the same threshold."""
RESET_S = 1.0
"""A clock that goes back by more than this has jumped in any format."""
FOLLOWS_S = 0.02
"""Sound that follows within this of the sound before it belongs to the same recording."""
RUNS = 1000
"""Stretches of sound that are remembered."""
HELD_PACKETS = 128
"""Packets of sound that wait for the pictures they belong to."""
MOV, MATROSKA, AVI = "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi"
"""FFmpeg's names of containers."""


class Heard:
    """When a film's sound is there, as far as it has been read."""

    def __init__(self) -> None:
        self._runs: deque[list[float]] = deque(maxlen=RUNS)

    def add(self, start_s: float, end_s: float) -> None:
        """Take note of sound between two times, which follows what came before or nearly so."""
        if self._runs and self._runs[-1][0] <= start_s <= self._runs[-1][1] + BACK_S:
            self._runs[-1][1] = max(end_s, self._runs[-1][1])
        else:
            self._runs.append([start_s, end_s])

    def between(self, start_s: float, end_s: float) -> float:
        """Seconds of sound between two times; the first never goes back."""
        while len(self._runs) > 1 and self._runs[0][1] < start_s:
            self._runs.popleft()
        return sum(max(0.0, min(end, end_s) - max(start, start_s)) for start, end in self._runs)


class Clock:
    """Mends the stamps of a film's packets, in the order in which they lie in the file."""

    def __init__(self, container: InputContainer, video: av.VideoStream, sound: av.AudioStream | None) -> None:
        self._video, self._sound = video.index, sound.index if sound else -1
        self._base = video.time_base or Fraction(1)
        self._step = max(1, round(1 / (Fraction(video.average_rate or 25) * self._base)))
        self.steady = container.format.name == AVI or (container.format.name == MOV and video.frames > 0)
        """Whether an index gives the times, which then never jump."""
        self.jumps_ahead = bool(container.format.flags & Flags.ts_discont.value)
        """Whether the format allows a clock to jump ahead; elsewhere a picture is held, or pictures are missing."""
        self.back_s = BACK_S if self.jumps_ahead else RESET_S
        self.jumps: list[float] = []
        """When it jumped, in seconds of the mended time line, not yet from the start of the file."""
        self.raw_s = self.before_s = math.nan
        """The latest stamp of a picture before it was mended, and the last one before the latest jump."""
        self._shift = 0
        self._last = self._next = self._end = self._delay = 0
        self._heard: Heard | None = None

    @property
    def shift_s(self) -> float:
        """What is added to stamps now, in seconds."""
        return float(self._shift * self._base)

    def mend(self, packet: av.Packet) -> None:
        """Put a packet of the pictures on the time line; of other streams take note."""
        stamp = packet.pts if packet.dts is None else packet.dts
        if self.steady or stamp is None:
            return
        raw_s = float(stamp * packet.time_base)
        if packet.stream.index == self._sound and self._heard is not None:
            self._heard.add(raw_s, raw_s + float((packet.duration or 0) * packet.time_base))
        if packet.stream.index != self._video:
            return
        self._settle(packet)
        if self._heard is None:
            self._heard = Heard()
        elif (self._last - stamp) * self._base > self.back_s or self._runs_ahead(raw_s):
            self._join(packet, stamp)
            self._heard = Heard()
        self._last, self._next = stamp, stamp + (packet.duration or self._step)
        self.raw_s = raw_s
        if packet.pts is not None:
            packet.pts += self._shift
        if packet.dts is not None:
            packet.dts += self._shift
        shown = stamp + self._shift if packet.pts is None else packet.pts
        self._end = max(self._end, shown + (packet.duration or self._step))

    def _settle(self, packet: av.Packet) -> None:
        """Before a jump FFmpeg may guess when a picture is shown from the clock after it."""
        if packet.pts is None or packet.dts is None:
            return
        if self.jumps_ahead and abs(packet.pts - packet.dts) * self._base > AHEAD_S:
            packet.pts = packet.dts + self._delay
        self._delay = packet.pts - packet.dts

    def _runs_ahead(self, raw_s: float) -> bool:
        expected_s = float(self._next * self._base)
        if not self.jumps_ahead or self._heard is None or raw_s - expected_s <= AHEAD_S:
            return False
        # Where sound goes on meanwhile, a picture is held.
        return raw_s - expected_s - self._heard.between(expected_s, raw_s) > AHEAD_S

    def _join(self, packet: av.Packet, stamp: int) -> None:
        self.before_s = self.raw_s
        self._shift += self._next - stamp
        if packet.is_keyframe and packet.pts is not None:
            # Encoders differ in how far decoding runs ahead: the picture is not shown before the last one's end.
            self._shift = max(self._shift, self._end - packet.pts)
        shown = stamp if packet.pts is None else packet.pts
        self.jumps.append(float((shown + self._shift) * self._base))


class SoundClock:
    """Puts sound on the time line of the pictures that it was stored with."""

    def __init__(self, clock: Clock, sound: av.AudioStream) -> None:
        self._clock, self._index = clock, sound.index
        self._piece = 0
        self._shift_s = 0.0
        self._next_s: float | None = None

    def mended(self, packets: Iterable[av.Packet]) -> Iterator[av.Packet]:
        """The packets of sound, mended, out of those of sound and pictures in the order in which they lie in the file.

        Sound that jumps before its pictures waits for them.
        """
        held: deque[av.Packet] = deque()
        for packet in packets:
            jumps = len(self._clock.jumps)
            self._clock.mend(packet)
            ours = packet.stream.index == self._index
            if ours and (held or not self._placed(packet, wait=True)):
                held.append(packet)
            elif ours:
                yield packet
            if held and (len(self._clock.jumps) > jumps or len(held) > HELD_PACKETS or (ours and packet.dts is None)):
                yield from self._released(held)
        yield from self._released(held)

    def _released(self, held: deque[av.Packet]) -> Iterator[av.Packet]:
        while held:
            self._placed(held[0], wait=False)
            yield held.popleft()

    def _placed(self, packet: av.Packet, wait: bool) -> bool:
        """Mend a packet; False where it is to wait for a jump of the pictures."""
        stamp = packet.pts if packet.dts is None else packet.dts
        if stamp is None or self._clock.steady:
            return True
        raw_s = float(stamp * packet.time_base)
        clock = self._clock
        strays = 0.0 if self._next_s is None else raw_s - self._next_s
        newer = len(clock.jumps) > self._piece
        if self._next_s is None or (
            newer and abs(strays) > FOLLOWS_S and abs(raw_s - clock.raw_s) < abs(raw_s - clock.before_s)
        ):
            self._piece, self._shift_s = len(clock.jumps), clock.shift_s
        elif strays < -clock.back_s or (clock.jumps_ahead and strays > AHEAD_S):
            if wait:
                return False
            # No picture jumped with it: sound goes on by itself.
            self._shift_s -= strays
        self._next_s = raw_s + float((packet.duration or 0) * packet.time_base)
        shift = round(Fraction(self._shift_s) / packet.time_base)
        packet.dts = None if packet.dts is None else packet.dts + shift
        packet.pts = None if packet.pts is None else packet.pts + shift
        return True

"""Cuts, dissolves and fades found on frames of 48×27 pixels, as they pass.

A cut is where a frame differs from the one before by much more than any about it; or by a little more, where it is
calm on one side and nothing of the other comes back, as where a shot begins with fast motion. A dissolve or fade is a
linear mix of what lies before and after it (Hampapur, Jain, Weymouth, "Production model based digital video
segmentation", 1995): a frame in its middle is nearly on the line between two that lie as far before as after it. Motion
leaves that line.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice

import cv2
import numpy as np

SIZE = (48, 27)
"""Width and height at which frames are compared."""
ABOUT = 3
"""Frames on each side whose changes a cut must exceed."""
DISTANCES = (4, 6, 8, 12)
"""How far before and after a frame lie those that it may be a mix of, in frames."""
REACH = 24
"""Frames that a transition may last before and after its middle."""
MOST_RATE = 45
"""Of films with more frames a second only a part is looked at for mixes, about 30 a second."""


@dataclass(frozen=True, order=True)
class Transition:
    """Frames from `first` to before `end` belong to no shot, and a shot starts at `end`; at a cut there are none."""

    first: int
    end: int


Judge = Callable[[np.ndarray], np.ndarray]
"""Says of frames uint8 (N, 27, 48, 3) RGB how likely each is in a transition: float (N,)."""


@dataclass(frozen=True)
class Limits:
    """From where on something is a transition."""

    difference: float
    """Root mean square difference of two frames, of 255."""
    ratio: float
    """Of a cut: difference divided by the largest about it."""
    residual: float
    """Of a mix: how far it lies from the line, divided by the distance of the two frames."""


TOLD = Limits(20, 1.7, 0.3)
"""What counts without a judge."""
CLEAR = Limits(24, 1.9, 0.25)
"""What is beyond doubt."""
DOUBTFUL = Limits(16, 1.45, 0.34)
"""What a judge is asked about."""
CALM, CLOSE, APART = 4.0, 0.8, 0.8
"""Of a cut that is calm on one side: its difference divided by the largest on that side; the part of `ratio` that it
has by the largest about it; and the least by which frames of the two sides differ, divided by its difference."""
MOVING = 0.42
"""Residual up to which it is asked where frames differ as much as in a clear mix: what moves fast leaves the line."""
CHANGED = 12
"""A pixel has changed where a channel differs by more, of 255. Most of them have, or it is a title that comes."""
ENOUGH = 8
"""Frames before and after one that a judge needs to see."""
FLAT = 6
"""Standard deviation over the pixels of a frame, of 255, below which there is nothing on it."""
SLOW = 0.4
"""A mix ends where it goes on more slowly than this part of its speed in the middle."""


def shrunk(frame: np.ndarray) -> np.ndarray:
    """A frame uint8 (H, W, 3) at the size that is looked at: uint8 (27, 48, 3)."""
    return cv2.resize(frame, SIZE, interpolation=cv2.INTER_AREA)


def flat(small: np.ndarray) -> bool:
    """Whether there is nothing on a frame, whatever its colour."""
    return float(cv2.meanStdDev(small)[1].max()) < FLAT


def step_of(rate: float) -> int:
    """1 where every frame is looked at for mixes, 2 where every second is, and so on; rate: frames a second."""
    return 1 if rate <= MOST_RATE else round(rate / 30)


@dataclass(frozen=True)
class _Mix:
    """A frame that may be the middle of a dissolve or fade; numbers are of frames that are kept."""

    at: int
    distance: int
    residual: float
    difference: float

    def yields_to(self, other: "_Mix") -> bool:
        """Whether another one nearby is the better one."""
        near = abs(self.at - other.at) <= max(self.distance, other.distance)
        return near and other.residual / other.difference < self.residual / self.difference


class TransitionFinder:
    """Feed frames one by one; each call answers which transitions have become known.

    rate: frames a second. ratio: of a cut without a judge. judge: is asked where it is in doubt, and believed from
    `certain` on; without one a middle way is taken. one_sided: without one, also find cuts that are calm on one side.
    """

    def __init__(
        self,
        rate: float,
        ratio: float | None = None,
        judge: Judge | None = None,
        certain: float = 0.5,
        one_sided: bool = True,
    ) -> None:
        self._judge, self._certain, self._one_sided = judge, certain, one_sided and judge is None
        self._least = DOUBTFUL if judge else replace(TOLD, ratio=ratio or TOLD.ratio)
        self._step = step_of(rate)
        self.delay = self._step * (2 * REACH + 2)
        """How many frames after the first of a transition it is answered at the latest."""
        self._count = self._kept = 0
        self._changes: deque[float] = deque(maxlen=2 * ABOUT + 1)
        self._latest: deque[np.ndarray] = deque(maxlen=2 * ABOUT + 2)
        self._frames: deque[np.ndarray] = deque(maxlen=4 * REACH)
        self._values: deque[np.ndarray] = deque(maxlen=4 * REACH)
        self._mixes: list[_Mix] = []
        self._doubtful: deque[int] = deque()
        self._decided = -1
        self._seen = 0, np.zeros(0)

    def feed(self, small: np.ndarray) -> list[Transition]:
        """Take the next frame, uint8 (27, 48, 3) RGB; answers transitions that begin at most `delay` before it."""
        values = small.reshape(-1).astype(np.float32)
        self._changes.append(_rms(values - self._latest[-1]) if self._latest else 0.0)
        self._latest.append(values)
        if self._count % self._step == 0:
            self._frames.append(small)
            self._values.append(values)
            self._kept += 1
            self._look()
        self._count += 1
        return self._cut(self._count - 1 - ABOUT) + self._decide(self._kept - 1 - REACH)

    def rest(self) -> list[Transition]:
        """Transitions that are left when no more frames come."""
        found = []
        # Frames that do not come are no calm.
        self._one_sided = False
        for index in range(self._count - ABOUT, self._count):
            self._changes.append(0.0)
            found += self._cut(index)
        return found + self._decide(self._kept - 1)

    def _cut(self, index: int) -> list[Transition]:
        """The cut at a frame, of which what follows is known; one that is in doubt is kept for the judge."""
        changes = list(self._changes)
        if index < 1 or len(changes) <= ABOUT:
            return []
        *before, change = changes[:-ABOUT]
        after = changes[-ABOUT:]
        ratio = change / (max(*before, *after) + 1)
        if change < self._least.difference:
            return []
        if ratio < self._least.ratio and not (self._one_sided and self._is_apart(before, change, after)):
            return []
        if self._judge and (change < CLEAR.difference or ratio < CLEAR.ratio):
            self._doubtful.append(index)
            return []
        return [Transition(index, index)]

    def _is_apart(self, before: list[float], change: float, after: list[float]) -> bool:
        """Whether a frame that differs from the one before starts a shot, where it is calm on one side of it only."""
        low, high = sorted(change / (max(side, default=0.0) + 1) for side in (after, before))
        if low < CLOSE * self._least.ratio or high < CALM or len(before) < ABOUT or len(self._latest) < 2 * ABOUT + 2:
            return False
        frames = list(self._latest)
        old, new = frames[: ABOUT + 1], frames[ABOUT + 1 :]
        pairs = [*((old[-1], frame) for frame in new), *((frame, new[0]) for frame in old)]
        return min(_rms(frame - other) for frame, other in pairs) >= APART * change

    def _look(self) -> None:
        """Note frames that may be the middle of a mix, as the latest frame shows."""
        last = len(self._values) - 1
        for distance in DISTANCES:
            if last < 2 * distance:
                break
            before, middle, after = (self._values[last - back] for back in (2 * distance, distance, 0))
            way, here = after - before, middle - before
            difference = _rms(way)
            if difference < self._least.difference - 8 + 2 * distance:
                continue
            length = float(way @ way)
            share = float(here @ way) / length
            residual = max(0.0, float(here @ here) / length - share**2) ** 0.5
            differs = self._judge is not None and difference >= CLEAR.difference + 2 * distance
            if not 0.35 < share < 0.65 or residual > (MOVING if differs else self._least.residual):
                continue
            if (np.abs(way).reshape(-1, 3).max(1) > CHANGED).mean() > 0.5:
                self._mixes.append(_Mix(self._kept - 1 - distance, distance, residual, difference))

    def _decide(self, until: int) -> list[Transition]:
        """Transitions about the kept frames up to one, of which enough is known."""
        found = []
        while self._doubtful and self._doubtful[0] // self._step <= until:
            index = self._doubtful.popleft()
            if self._judged(index // self._step, 2):
                found.append(Transition(index, index))
        for mix in self._mixes:
            if self._decided < mix.at <= until and not any(map(mix.yields_to, self._mixes)):
                clear = mix.residual <= CLEAR.residual and mix.difference >= CLEAR.difference + 2 * mix.distance
                if not self._judge or clear or self._judged(mix.at, mix.distance):
                    found.append(self._extent(mix))
        self._decided = until
        self._mixes = [mix for mix in self._mixes if mix.at > until - DISTANCES[-1]]
        return found

    def _judged(self, at: int, around: int) -> bool:
        """Whether the judge sees a transition about a kept frame."""
        assert self._judge
        first, likely = self._seen
        if not first + ENOUGH <= at - around <= at + around < first + len(likely) - ENOUGH:
            start = self._kept - len(self._frames)
            first = max(start, at - REACH)
            likely = self._judge(np.stack(list(islice(self._frames, first - start, at + REACH + 1 - start))))
            self._seen = first, likely
        return bool(likely[max(0, at - around - first) : at + around + 1 - first].max() >= self._certain)

    def _extent(self, mix: _Mix) -> Transition:
        """From where to where frames go on along the line that a mix lies on."""
        start = self._kept - len(self._values)
        first, last = max(start, mix.at - REACH), min(self._kept - 1, mix.at + REACH)
        values = np.stack(list(islice(self._values, first - start, last + 1 - start)))
        at, before, after = (mix.at + away - first for away in (0, -mix.distance, mix.distance))
        way = values[after] - values[before]
        share = (values - values[before]) @ way / float(way @ way)
        near = mix.distance // 2
        slow = SLOW * (share[at + near] - share[at - near]) / (2 * near)
        low, high = at - near, at + near
        while low > 1 and share[low + 1] - share[low - 1] > 2 * slow:
            low -= 1
        while high < len(share) - 2 and share[high + 1] - share[high - 1] > 2 * slow:
            high += 1
        return Transition((first + low) * self._step, (first + high + 1) * self._step)


def _rms(difference: np.ndarray) -> float:
    return float(difference @ difference / difference.size) ** 0.5

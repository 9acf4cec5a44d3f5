"""The pictures of a film by their shots, as soon as it is known to which they belong."""

from bisect import insort
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

import numpy as np

from actors.media.film import Film, Picture
from actors.media.shot_detection.shots import BETWEEN, NETWORKS, ShotsConfig, width_of
from actors.media.shot_detection.transitions import ABOUT, Transition, TransitionFinder, flat, shrunk
from actors.media.shot_detection.transnet import NetworkFinder, transnet

if TYPE_CHECKING:
    from actors.media.shot_detection.cut_finder import CutFinder


class _Finder(Protocol):
    delay: int

    def feed(self, small: np.ndarray) -> list[Transition]: ...
    def rest(self) -> list[Transition]: ...


def in_shots(film: Film, shots: ShotsConfig, device: str = "cpu") -> Iterator[tuple[int, Picture]]:
    """The pictures of a film in order, each with the number of its shot from 0, as soon as that is known.

    A picture of a transition has the number BETWEEN. Where pictures are missing a shot ends, whatever the detector.
    device: where a network runs. Until its shot is known a picture is held: 3 with PySceneDetect,
    50 with gradual and hybrid, 200 with transnetv2.
    """
    stream = _Stream(film, shots, device)
    for picture in film.pictures:
        if picture.after_hole:
            yield from stream.ended()
        yield from stream.add(picture)
    yield from stream.ended()


class _Stream:
    """Pictures whose shots are not known yet."""

    def __init__(self, film: Film, shots: ShotsConfig, device: str) -> None:
        self._config, self._device, self._rate = shots, device, float(film.rate)
        shrink = min(1.0, (shots.width or width_of(shots.detector)) / film.width)
        self._size = round(film.width * shrink), round(film.height * shrink)
        self._shot, self._begun, self._between = 0, False, False
        self._begin_s = 0.0
        self._restart()

    def _restart(self) -> None:
        """What follows is a run of pictures of its own."""
        self._cuts, self._finder = _finders(self._config, self._rate, self._device)
        self._held: deque[tuple[Picture, bool]] = deque()
        self._found: list[Transition] = []
        self._index = 0

    def add(self, picture: Picture) -> Iterator[tuple[int, Picture]]:
        """Take the next picture; yields those of which the shot is known now."""
        empty = False
        if self._cuts:
            cuts = self._cuts.feed(self._small(picture), picture.time)
            self._note([Transition(cut, cut) for cut in cuts])
        if self._finder:
            small = shrunk(self._small(picture))
            empty = self._config.trim_transitions and flat(small)
            self._note(self._finder.feed(small))
        self._held.append((picture, empty))
        finder = self._finder or self._cuts
        yield from self._told(finder.delay if finder else 0)

    def _small(self, picture: Picture) -> np.ndarray:
        return picture.scaled(*self._size, smooth=False)

    def ended(self) -> Iterator[tuple[int, Picture]]:
        """The pictures that are left, after which others may follow that belong to another shot."""
        if self._finder:
            self._note(self._finder.rest())
        yield from self._told(0)
        self._restart()

    def _note(self, found: list[Transition]) -> None:
        for transition in found:
            if not self._config.trim_transitions:
                middle = (transition.first + transition.end) // 2
                transition = Transition(middle, middle)
            insort(self._found, transition)

    def _told(self, keep: int) -> Iterator[tuple[int, Picture]]:
        while len(self._held) > keep:
            picture, empty = self._held.popleft()
            starts = self._starts(picture) or self._between
            self._between = self._is_between(starts, empty)
            self._index += 1
            if self._between:
                yield BETWEEN, picture
                continue
            if starts or not self._begun:
                self._shot += self._begun
                self._begun, self._begin_s = True, picture.time
            yield self._shot, picture

    def _starts(self, picture: Picture) -> bool:
        """Whether a shot starts with the next picture, if that is of no transition."""
        cut = False
        while self._found and self._found[0].end <= self._index:
            found = self._found.pop(0)
            cut |= found.first == self._index
        near = any(found.first < found.end and found.first <= self._index + ABOUT for found in self._found)
        # Half a millisecond, since times are rounded.
        long = picture.time - self._begin_s >= self._config.min_length_s - 0.0005
        return self._index == 0 or (cut and long and not near)

    def _is_between(self, starts: bool, empty: bool) -> bool:
        """Whether the next picture is of a transition; of a fade are also pictures with nothing on them."""
        upcoming = next((found for found in self._found if found.first < found.end), None)
        # Two that nearly touch are one.
        if upcoming and upcoming.first <= self._index + (2 * ABOUT if self._between else 0):
            return True
        if not empty or not starts:
            return False
        if self._between:
            return True
        ahead = upcoming.first - self._index - 1 if upcoming else len(self._held) + 1
        return ahead <= len(self._held) and all(empty for _, empty in list(self._held)[:ahead])


def _finders(config: ShotsConfig, rate: float, device: str) -> tuple["CutFinder | None", _Finder | None]:
    """What finds cuts in frames, or transitions in small ones."""
    if config.detector == "none":
        return None, None
    if config.detector in ("content", "adaptive"):
        # Importing scenedetect takes a tenth of a second, which others need not wait for.
        from actors.media.shot_detection.cut_finder import CutFinder

        return CutFinder(config), None
    network = transnet(config.weights, device) if config.detector in NETWORKS else None
    certain = 0.5 if config.threshold is None else config.threshold
    if network and config.detector == "transnetv2":
        return None, NetworkFinder(network, certain)
    return None, TransitionFinder(rate, config.threshold, network, certain, config.one_sided is not False)

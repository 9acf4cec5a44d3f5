"""Sampled frames of a scene while it passes, and what lies inside of its black bars when it has ended.

Which bars a scene has is known at its end, and a frame is scaled when it comes. So each is kept as if there were none,
and where it shows bars also as what is inside of those that the scene has shown until then. Where other bars are found
in the end, it is scaled again from what was kept, black where that had bars.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from actors.media.bars import NO_BARS, Bars, Lines, judged, merged
from actors.media.film import Film, Picture


@dataclass(slots=True)
class Still:
    """A sampled frame."""

    lines: Lines
    """What may be bars in it."""
    image: np.ndarray | None = None
    """Its central square, uint8 (size, size, 3) RGB; None where it is not measured."""
    bars: Bars = NO_BARS
    """Those that were cut off for `inside`."""
    inside: np.ndarray | None = None
    """What is inside of them, about the centre as far as a square of the whole frame goes; None where it shows none."""


class Stills:
    """Makes the stills of a scene, and from these what is measured."""

    def __init__(self, film: Film, size: int, crop: bool) -> None:
        self._film, self._size, self._crop = film, size, crop
        self._seen: Lines | None = None
        self._square = self._scaled_sides((0, 0), NO_BARS)

    def take(self, picture: Picture) -> Still:
        """The still of a picture."""
        lines = picture.lines()
        self._seen = merged((self._seen, lines)) if self._seen else lines
        image = picture.scaled(*self._square)
        still = Still(lines, _central(image, self._size, self._size))
        shown = NO_BARS
        if self._crop and (len(lines.top) or len(lines.left)):
            shown = judged(self._seen)
            shown = judged(lines) if shown == NO_BARS else shown
        if shown != NO_BARS:
            width, height = self._scaled_sides(lines.size, shown)
            reach = self._reach(lines.size, shown)
            still.bars, still.inside = shown, _central(picture.scaled(width, height, bars=shown), reach, reach)
        return still

    def forget(self, left: Sequence[Still]) -> None:
        """Begin anew, with these stills: the others are of a window that has ended."""
        self._seen = merged([still.lines for still in left]) if left else None

    def measured(self, stills: Sequence[Still]) -> tuple[Bars, list[np.ndarray]]:
        """The bars of a scene in pixels of the film as shown, and its frames inside of them, those that were kept."""
        lines = merged([still.lines for still in stills])
        bars = judged(lines)
        images = [self._inside(still, bars) for still in stills if still.image is not None]
        return bars.scaled(*self._pixel(lines.size)), images

    def _inside(self, still: Still, bars: Bars) -> np.ndarray:
        """What of a still is measured in a scene with these bars: uint8 (size, size, 3) RGB."""
        assert still.image is not None
        if bars == NO_BARS or not self._crop:
            return still.image
        if still.inside is None:
            return self._cut_again(still.image, still.lines.size, NO_BARS, bars)
        if still.bars == bars:
            return _central(still.inside, self._size, self._size)
        return self._cut_again(still.inside, still.lines.size, still.bars, bars)

    def _pixel(self, size: tuple[int, int]) -> tuple[float, float]:
        """Width and height of a stored pixel in pixels of the film."""
        return (self._film.width / size[0], self._film.height / size[1]) if all(size) else (1.0, 1.0)

    def _sides(self, size: tuple[int, int], bars: Bars) -> tuple[float, float]:
        """Width and height inside of bars, in pixels of the film."""
        across, down = self._pixel(size)
        width = self._film.width - (bars.left + bars.right) * across
        return width, self._film.height - (bars.top + bars.bottom) * down

    def _scaled_sides(self, size: tuple[int, int], bars: Bars) -> tuple[int, int]:
        """The same, scaled so that the shorter is `size` long."""
        width, height = self._sides(size, bars)
        short = min(width, height)
        return round(width * self._size / short), round(height * self._size / short)

    def _reach(self, size: tuple[int, int], bars: Bars) -> int:
        """Side of the square that is kept of what is inside of bars."""
        return round(min(self._film.width, self._film.height) * self._size / min(self._sides(size, bars)))

    def _cut_again(self, image: np.ndarray, size: tuple[int, int], before: Bars, bars: Bars) -> np.ndarray:
        """The central square inside of bars, of an image of what is inside of others."""
        (across, down), short = self._pixel(size), min(self._sides(size, bars))
        scale = self._size / min(self._sides(size, before))
        # From the centre of the one to that of the other.
        right = (bars.left - bars.right - before.left + before.right) * across / 2
        lower = (bars.top - bars.bottom - before.top + before.bottom) * down / 2
        side = max(1, round(short * scale))
        height, width = image.shape[:2]
        left, top = round(width / 2 + right * scale - side / 2), round(height / 2 + lower * scale - side / 2)
        pad = max(0, -left, -top, left + side - width, top + side - height)
        image = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))
        square = np.ascontiguousarray(image[top + pad : top + pad + side, left + pad : left + pad + side])
        how = cv2.INTER_AREA if side > self._size else cv2.INTER_LINEAR
        return cv2.resize(square, (self._size, self._size), interpolation=how)


def _central(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """The middle of an image, as far as it goes; a copy, since a view would keep what is cropped."""
    down, across = image.shape[:2]
    top, left = max(0, (down - height) // 2), max(0, (across - width) // 2)
    return image[top : top + height, left : left + width].copy()

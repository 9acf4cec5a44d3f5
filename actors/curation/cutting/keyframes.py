"""Key frames of a scene: its first, middle and last sampled frame as whole pictures, held while the scene passes.

Which frame is the middle one is known at the scene's end. Until then every frame that may become it is held: as it was
decoded, since most are let go of, and beyond HELD_BYTES as a JPEG file.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, cast

import cv2
import numpy as np

from actors.media.bars import NO_BARS, Bars
from actors.media.film import Film, Picture
from actors.media.images import encode_jpeg

if TYPE_CHECKING:
    from actors.curation.cutting.scenes import Windows

KEY_FRAMES = ("first_jpeg", "middle_jpeg", "last_jpeg")
"""Columns of the key frames. A scene of two sampled frames has no middle one, a scene of one has the first alone."""
HELD_BYTES = 64 << 20
"""Decoded pictures of one scene that are held at most, in bytes: 20 of 1080p."""
QUALITY = 85
"""Quality of JPEG, 1 to 100."""


class Held(NamedTuple):
    """A sampled frame that is held."""

    picture: Picture | bytes
    """As it was decoded, or as a JPEG file."""
    decoded_bytes: int
    """What it takes as it was decoded; 0 for a file."""


class KeyFrames:
    """Holds the sampled frames of a scene that may become key frames of it, or of one of its windows."""

    def __init__(self, film: Film, side: int, longest: int, windows: "Windows") -> None:
        """side: short side in pixels, 0: none are made. longest: sampled frames beyond which a scene has none."""
        scale = min(1.0, side / max(1, min(film.width, film.height)))
        self._size = max(1, round(film.width * scale)), max(1, round(film.height * scale))
        self._film, self._side, self._longest, self._windows = film, side, longest, windows
        self._held: list[Held | None] = []

    def add(self, picture: Picture) -> None:
        """Take the next sampled frame."""
        if not self._side:
            return
        size = picture.nbytes
        if size + sum(held.decoded_bytes for held in self._held if held) <= HELD_BYTES:
            self._held.append(Held(picture, size))
        else:
            self._held.append(Held(encode_jpeg(picture.scaled(*self._size), QUALITY), 0))
        count = len(self._held)
        self._held = [held if held and self._may_be_one(i, count) else None for i, held in enumerate(self._held)]

    def _may_be_one(self, i: int, count: int) -> bool:
        """Whether sample i of those so far may be a key frame, however the scene goes on."""
        windows = self._windows
        if windows.named:
            # Their windows are cut when it is certain that the scene is too long.
            return True
        if not windows.samples:
            return count <= self._longest and (i in (0, count - 1) or count // 2 <= i <= self._longest // 2)
        # A window is cut `rest` samples after its end, or in halves where the shot ends before.
        halves = range((count + windows.overlap + 1) // 4, (windows.samples + windows.rest + windows.overlap) // 4 + 1)
        return i == 0 or i in halves or i >= (count - windows.rest - windows.overlap) // 2

    def of(self, count: int) -> list[Held]:
        """The key frames of the first so many samples: first, middle, last; of fewer than three each one once."""
        if not self._side or not 0 < count <= self._longest:
            return []
        return [cast(Held, self._held[i]) for i in sorted({0, count // 2, count - 1})]

    def forget(self, count: int) -> None:
        """Let go of the first so many samples."""
        del self._held[:count]

    def files(self, held: Sequence[Held], bars: Bars) -> dict[str, bytes]:
        """The JPEG files inside of bars, in pixels of the film as shown, by KEY_FRAMES; b"" for those that are not."""
        files = [self._file(one, bars) for one in held]
        names = {0: (), 1: KEY_FRAMES[:1], 2: KEY_FRAMES[::2], 3: KEY_FRAMES}[len(files)]
        return dict.fromkeys(KEY_FRAMES, b"") | dict(zip(names, files, strict=True))

    def _file(self, held: Held, bars: Bars) -> bytes:
        picture = held.picture
        if isinstance(picture, bytes):
            if bars == NO_BARS:
                return picture
            image = decode_jpeg(picture)
        else:
            image = picture.scaled(*self._size)
        height, width = image.shape[:2]
        across, down = width / max(1, self._film.width), height / max(1, self._film.height)
        top, bottom, left, right = bars.scaled(across, down)
        return encode_jpeg(np.ascontiguousarray(image[top : height - bottom, left : width - right]), QUALITY)


def decode_jpeg(data: bytes) -> np.ndarray:
    """A JPEG file as an image uint8 (H, W, 3) RGB."""
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError(f"{len(data)} bytes are no JPEG file")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)

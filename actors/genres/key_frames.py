"""Key frames of a film: the middle frame of each shot, in one decode."""

from collections.abc import Iterator
from typing import Any

import av.logging
import cv2
import numpy as np

from actors.core.stage import Row
from actors.media.film import Beat, FilmError, VideoConfig, opened
from actors.media.images import Shape, square
from actors.media.shot_detection.in_shots import in_shots
from actors.media.shot_detection.shots import BETWEEN, ShotsConfig

INTERVAL_S = 0.25
"""The middle of a shot is looked for among pictures that are this far apart, or an eighth of the shot."""


def key_frames(path: str, shape: Shape, video: VideoConfig, shots: ShotsConfig) -> Iterator[Row | None]:
    """Decode a film once; yield the middle picture of each shot, in order, then the film's own row; None: alive.

    A shot's row: number from 0, name (shot_0000_img_0), start_s, end_s, image uint8 (size, size, 3) RGB. The film's
    has number -1, how many images there were, what has decoded it, error and message.
    """
    cv2.setNumThreads(1)
    av.logging.set_level(None)
    try:
        film = opened(path, video)
    except FilmError as error:
        yield {"number": -1, "images": 0, "decoder": "", "error": error.code, "message": str(error)}
        return
    size = shape.scaled(film.width, film.height)
    shot, start, end = 0, 0.0, 0.0
    middle = _Middle()
    beat = Beat()

    def row() -> Row:
        name = f"shot_{shot:04d}_img_0"
        image = square(middle.of(start, end), shape)
        return {"number": shot, "name": name, "start_s": start, "end_s": end, "image": image}

    for number, picture in in_shots(film, shots, video.device):
        yield from beat
        if number == BETWEEN:
            continue
        if number != shot:
            yield row()
            shot, start, middle = number, picture.time, _Middle()
        middle.add(picture.time, lambda picture=picture: picture.scaled(*size))
        end = picture.until
    error, message = "", ""
    if middle.begun:
        yield row()
        shot += 1
    else:
        error, message = "no_shot", "all of the film is a transition"
    if film.truncated:
        error, message = "truncated", f"the film breaks off at {end:.3f} s, before its declared end"
    about = {"number": -1, "images": shot, "decoder": film.decoder}
    yield about | {"error": error, "message": message or film.fallback}


class _Middle:
    """The picture nearest the middle of a shot whose end is not known yet, from at most 16 that are kept."""

    def __init__(self) -> None:
        self._kept: list[tuple[float, np.ndarray]] = []
        self._interval_s = INTERVAL_S

    @property
    def begun(self) -> bool:
        return bool(self._kept)

    def add(self, time_s: float, picture: Any) -> None:
        if self._kept and time_s < self._kept[-1][0] + self._interval_s:
            return
        self._kept.append((time_s, picture()))
        if len(self._kept) == 16:
            self._kept = self._kept[::2]
            self._interval_s *= 2

    def of(self, start_s: float, end_s: float) -> np.ndarray:
        return min(self._kept, key=lambda kept: abs(kept[0] - (start_s + end_s) / 2))[1]

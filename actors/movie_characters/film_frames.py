"""Frames of a film as JPEG, from one decode: all that lie in listed intervals, or some of each shot."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import av.logging
import cv2

from actors.core.stage import Row
from actors.media.film import ROUNDING_S, Beat, FilmError, in_shots, open_film
from actors.media.images import encode_jpeg
from actors.media.shots import ShotsConfig

QUALITY = 95
"""Of the JPEG files."""


@dataclass(frozen=True)
class Interval:
    """A stretch of a film that belongs to a category; both ends belong to it."""

    category: str
    """As it stands in file names."""
    start_s: float
    end_s: float


def frame_name(category: str, number: int) -> str:
    """Where a frame lies below the output."""
    return f"{category}/{category}_frame_{number:04d}.jpg"


def frames_in(
    path: str, intervals: Sequence[Interval], by_index: bool, there: frozenset[str], decoder: str = "pyav"
) -> Iterator[Row | None]:
    """Decode a film once; yield {name, jpeg} for each frame that is not `there`, then a row for the film; None: alive.

    Frames are numbered within each category in the order of presentation, from 1, each once where intervals overlap,
    or, `by_index`, as they are in the film, from 0. What a decoder marks as damaged gets a number and no file.

    The film's row has no name. It has frames (of each interval, whole ones), files (by category), damaged, error,
    message.
    """
    cv2.setNumThreads(1)
    av.logging.set_level(None)
    frames = [0] * len(intervals)
    about: Row = {"name": "", "frames": frames, "files": {}, "damaged": 0, "error": "", "message": ""}
    try:
        film = open_film(path, decoder)
    except FilmError as error:
        yield {**about, "error": error.code, "message": str(error)}
        return
    numbers: Counter[str] = Counter()
    files: Counter[str] = Counter()
    last = max((interval.end_s for interval in intervals), default=-math.inf)
    beat = Beat()
    end = 0.0
    for index, picture in enumerate(film.pictures):
        yield from beat
        if picture.time > last + ROUNDING_S:
            break
        end = picture.time
        hit = [i for i, one in enumerate(intervals) if one.start_s - ROUNDING_S <= end <= one.end_s + ROUNDING_S]
        jpeg = b""
        for category in dict.fromkeys(intervals[i].category for i in hit):
            numbers[category] += 1
            if picture.damaged:
                continue
            files[category] += 1
            name = frame_name(category, index if by_index else numbers[category])
            if name not in there:
                jpeg = jpeg or encode_jpeg(picture.scaled(film.width, film.height), QUALITY)
                yield {"name": name, "jpeg": jpeg}
        about["damaged"] += bool(hit and picture.damaged)
        for i in hit:
            frames[i] += not picture.damaged
    else:
        if film.truncated:
            about |= {"error": "truncated", "message": f"the film breaks off at {end:.3f} s, before its declared end"}
    yield {**about, "files": dict(files), "end_s": end}


def frames_of_shots(
    path: str, shots: ShotsConfig, every_s: float, max_side: int, decoder: str = "pyav"
) -> Iterator[Row | None]:
    """Decode a film once; yield {shot, start_s, end_s, times, jpegs} for each shot, then a row for it; None: alive.

    times, jpegs: of the shot's first frame and then one every `every_s`, upright, of at most that side; a damaged frame
    is left out. The film's row has shot -1, and in shots how many there are, error and message.
    """
    cv2.setNumThreads(1)
    av.logging.set_level(None)
    try:
        film = open_film(path, decoder)
    except FilmError as error:
        yield {"shot": -1, "shots": 0, "error": error.code, "message": str(error)}
        return
    scale = min(1.0, max_side / max(film.width, film.height))
    size = max(1, round(film.width * scale)), max(1, round(film.height * scale))
    shot: Row = {"shot": 0, "start_s": 0.0, "end_s": 0.0, "times": [], "jpegs": []}
    beat = Beat()
    for number, picture in in_shots(film, shots):
        if number != shot["shot"]:
            yield shot
            shot = {"shot": number, "start_s": picture.time, "end_s": 0.0, "times": [], "jpegs": []}
        due = shot["times"][-1] + every_s if shot["times"] else shot["start_s"]
        if picture.time >= due - ROUNDING_S and not picture.damaged:
            shot["times"].append(picture.time)
            shot["jpegs"].append(encode_jpeg(picture.scaled(*size), QUALITY))
        shot["end_s"] = picture.time + (picture.duration or film.step_s)
        yield from beat
    yield shot
    code, message = "", ""
    if film.truncated:
        code, message = "truncated", f"the film breaks off at {shot['end_s']:.3f} s, before its declared end"
    yield {"shot": -1, "shots": shot["shot"] + 1, "error": code, "message": message}

"""Frames of a film as JPEG, from one decode: all that lie in listed intervals, or some of each shot."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import av.logging
import cv2
import numpy as np

from actors.core import storage
from actors.core.addresses import AddressError
from actors.core.child import CHILD, DECODE_ATTEMPTS, ChildFault
from actors.core.stage import Batch, Row
from actors.core.store import Store
from actors.media.film import ROUNDING_S, Beat, Film, FilmError, VideoConfig, opened
from actors.media.images import encode_jpeg
from actors.media.shot_detection.in_shots import in_shots
from actors.media.shot_detection.shots import BETWEEN, ShotsConfig
from actors.movie_characters.names import film_frame_name, frame_name

DEFAULT = VideoConfig()
QUALITY = 95
"""Quality of the JPEG files, 0..100."""


@dataclass(frozen=True)
class Interval:
    """A stretch of a film that belongs to a category; both ends belong to it."""

    category: str
    """The category, as in file names."""
    start_s: float
    end_s: float

    def holds(self, time_s: float) -> bool:
        """Whether a time lies in it; times are rounded."""
        return self.start_s - ROUNDING_S <= time_s <= self.end_s + ROUNDING_S


def _opened(path: str, video: VideoConfig) -> Film:
    """Open a film in a decoding process, with one thread and no log of its decoder; raises FilmError."""
    cv2.setNumThreads(1)
    av.logging.set_level(None)
    return opened(path, video)


def frames_in(
    path: str,
    intervals: Sequence[Interval],
    by_index: bool,
    there: frozenset[str],
    video: VideoConfig = DEFAULT,
) -> Iterator[Row | None]:
    """Decode a film once; yield {name, jpeg} for each frame that is not `there`, then a row for the film; None: alive.

    Frames are numbered within each category in the order of presentation, from 1, each once where intervals overlap,
    or, `by_index`, as they are in the film, from 0. What a decoder marks as damaged gets a number and no file.

    The film's row has no name. It has frames (of each interval, whole ones), files (by category), damaged, decoder,
    error, message.
    """
    frames = [0] * len(intervals)
    about: Row = {"name": "", "frames": frames, "files": {}, "damaged": 0, "decoder": "", "error": "", "message": ""}
    try:
        film = _opened(path, video)
    except FilmError as error:
        yield {**about, "error": error.code, "message": str(error)}
        return
    numbers, files = Counter[str](), Counter[str]()
    last = max((interval.end_s for interval in intervals), default=-math.inf)
    beat = Beat()
    end = 0.0
    for index, picture in enumerate(film.pictures):
        yield from beat
        if picture.time > last + ROUNDING_S:
            break
        end = picture.time
        hit = [number for number, one in enumerate(intervals) if one.holds(end)]
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
    about["message"] = about["message"] or film.fallback
    yield {**about, "files": dict(files), "end_s": end, "decoder": film.decoder}


def frames_of_shots(
    path: str,
    shots: ShotsConfig,
    every_s: float,
    max_side: int,
    video: VideoConfig = DEFAULT,
) -> Iterator[Row | None]:
    """Decode a film once; yield {shot, start_s, end_s, times, jpegs} for each shot, then a row for it; None: alive.

    times, jpegs: of the shot's first frame and then one every `every_s`, upright, of at most that side; a damaged frame
    is left out. The film's row has shot -1, and in shots how many there are, what has decoded it, error and message; of
    a film that could be opened also its rate (frames a second, a fraction as text) and begin_s, when its first frame is
    shown.
    """
    try:
        film = _opened(path, video)
    except FilmError as error:
        yield {"shot": -1, "shots": 0, "decoder": "", "error": error.code, "message": str(error)}
        return
    scale = min(1.0, max_side / max(film.width, film.height))
    size = max(1, round(film.width * scale)), max(1, round(film.height * scale))
    shot: Row = {"shot": 0, "start_s": 0.0, "end_s": 0.0, "times": [], "jpegs": []}
    begin: float | None = None
    beat = Beat()
    for number, picture in in_shots(film, shots, video.device):
        yield from beat
        begin = picture.time if begin is None else begin
        if number == BETWEEN:
            continue
        if number != shot["shot"] or not shot["end_s"]:
            if shot["end_s"]:
                yield shot
            shot = {"shot": number, "start_s": picture.time, "end_s": 0.0, "times": [], "jpegs": []}
        due = shot["times"][-1] + every_s if shot["times"] else shot["start_s"]
        if picture.time >= due - ROUNDING_S and not picture.damaged:
            shot["times"].append(picture.time)
            shot["jpegs"].append(encode_jpeg(picture.scaled(*size), QUALITY))
        shot["end_s"] = picture.until
    code, message = "", ""
    if shot["end_s"]:
        yield shot
    else:
        code, message = "no_shot", "all of the film is a transition"
    if film.truncated:
        code, message = "truncated", f"the film breaks off at {shot['end_s']:.3f} s, before its declared end"
    about = {"shot": -1, "shots": shot["shot"] + bool(shot["end_s"]), "decoder": film.decoder}
    about |= {"rate": str(film.rate), "begin_s": begin or 0.0}
    yield about | {"error": code, "message": message or film.fallback}


def write_frames(
    batch: Batch, shots: ShotsConfig, video: VideoConfig, every_s: float, max_side: int, store: Store
) -> Batch:
    """Write frames/FILM/FILM_NUMBER.jpg, and last shots/FILM.json, by which a film counts as cut.

    Reads:   film, uri  str (N,)
    Returns: film; shots  int (N,), how many each film has. A film without any leaves failed/FILM.json instead.
    """
    counts = []
    for film, uri in zip(map(str, batch["film"]), map(str, batch["uri"]), strict=True):
        found, about = [], {"decoder": "", "error": "", "message": "", "rate": "", "begin_s": 0.0}
        for row in _shots(uri, shots, video, every_s, max_side):
            if row["shot"] < 0:
                about |= {name: row[name] for name in about if name in row}
                continue
            first = sum(len(shot["times"]) for shot in found)
            names = [film_frame_name(film, first + number) for number in range(len(row["jpegs"]))]
            for name, jpeg in zip(names, row["jpegs"], strict=True):
                storage.write_bytes(store.uri("frames", film, name), jpeg)
            found.append({name: row[name] for name in ("shot", "start_s", "end_s", "times")} | {"images": names})
        # A film that failed is tried again by the next run.
        folder = "failed" if about["error"] and not found else "shots"
        store.write_json({"film": film, "uri": uri, "shots": found, **about}, folder, f"{film}.json")
        counts.append(len(found))
    return {"film": batch["film"], "shots": np.array(counts)}


def _shots(uri: str, shots: ShotsConfig, video: VideoConfig, every_s: float, max_side: int) -> Iterator[Row]:
    """Rows of `frames_of_shots`; a decoding process that crashes or stalls becomes a row with a code."""
    again: dict[str, Any] = {"attempts": DECODE_ATTEMPTS, "key": itemgetter("shot")}
    try:
        with storage.local(uri) as path:
            arguments = (str(path), shots, every_s, max_side, video)
            yield from CHILD.stream(frames_of_shots, *arguments, **video.limits, **again)
    except ChildFault as fault:
        yield {"shot": -1, "error": fault.code, "message": str(fault)}
    except FileNotFoundError as error:
        yield {"shot": -1, "error": "not_found", "message": str(error)}
    except PermissionError as error:
        yield {"shot": -1, "error": "forbidden", "message": str(error)}
    except AddressError as error:
        yield {"shot": -1, "error": "bad_url", "message": str(error)}

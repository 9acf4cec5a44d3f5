"""One film cut by several processes at once: each finds the shots that begin between two times.

A process begins some pictures earlier, so that its detector knows what one that came all the way would know, and goes
on to the end of the last shot that is its own. That the next one begins with the shot that follows is checked: where it
does not, or anything is odd about the film, one process goes on alone. Parts come in the order of the film, so that its
scenes are numbered as ever; so many parts as there are processes, and one more, wait in memory.
"""

import logging
import math
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice, pairwise
from queue import SimpleQueue
from typing import Any

import av.logging
import cv2
from av.error import FFmpegError

from actors.core.child import Child, ChildFault
from actors.core.stage import Row
from actors.curation.cutting.cut import CutConfig, cut_shots, film_row
from actors.media.clock import MOV
from actors.media.film import Film, FilmError, Picture, open_film, with_ends
from actors.media.shot_detection.in_shots import in_shots
from actors.media.shot_detection.transitions import REACH, step_of

log = logging.getLogger(__name__)

LEAST_S, MOST_S = 30.0, 180.0
"""Seconds of a part: shorter ones cost more of what two of them both decode, longer ones more memory."""
EACH = 4
"""Parts for each process, where they are not too long or too short then, so that all end at about the same time."""
BEFORE = 3 * REACH
"""Pictures that a detector sees before the first one that counts."""
DIVIDED = (None, "content", "adaptive", "gradual")
"""Detectors that know of a picture by those about it alone."""


class UndividedError(Exception):
    """The film is not, or no longer, cut in parts; `cpu_s` is what was spent on it."""

    def __init__(self, cpu_s: float) -> None:
        super().__init__()
        self.cpu_s = cpu_s


def cut_in_parts(path: str, video_id: str, config: CutConfig, skip: Collection[str]) -> Generator[Row, None, float]:
    """The rows of `cut` for a film of unknown shots, by `config.processes`; returns the CPU seconds of all.

    Raises UndividedError where one process is to cut what is left, maybe all.
    """
    crew = _Crew(path, video_id, config)
    spent, shots, scenes, decoded = 0.0, 0, 0, 0
    expected = math.nan
    film: Row = {}
    try:
        for (begin_s, end_s), rows, cpu_s in crew.parts():
            *rows, film = rows
            spent += cpu_s
            if why := film["message"] or _gap(begin_s, end_s, film["first_s"], expected):
                log.warning("%s: from %.0f s on cut by one process: %s", path, begin_s, why)
                raise UndividedError(spent)
            for row in rows:
                _renumber(row, video_id, shots, scenes)
                if row["scene_id"] not in skip:
                    yield row
            shots, scenes, decoded = shots + film["shots"], scenes + film["scenes"], decoded + film["decoded"]
            expected = expected if math.isnan(film["first_s"]) else film["next_s"]
    except ChildFault as fault:
        log.warning("%s: from here on cut by one process: %s", path, fault)
        raise UndividedError(spent) from fault
    finally:
        crew.close()
    if not film:
        raise UndividedError(spent)
    yield film | {"shots": shots, "scenes": scenes, "decoded": decoded}
    return spent


def _gap(begin_s: float, end_s: float, first_s: float, expected: float) -> str:
    """Why the shots of a part do not follow those before it; "" where they do."""
    if begin_s <= 0:
        return ""
    if math.isnan(first_s):
        return f"no shot begins at {expected:.3f} s" if expected < end_s else ""
    return "" if first_s == expected else f"the shot that follows begins at {expected:.3f} s, not at {first_s:.3f} s"


def _renumber(row: Row, video_id: str, shots: int, scenes: int) -> None:
    """Number the shot of a scene after those of the parts before."""
    for name in ("clip_id", "scene_id"):
        number, mark, rest = row[name][len(video_id) + 1 :].partition("_")
        row[name] = f"{video_id}.{int(number) + shots}{mark}{rest}"
    row["ordinal"] += scenes


class _Crew:
    """Processes that cut the parts of one film."""

    def __init__(self, path: str, video_id: str, config: CutConfig) -> None:
        self._path, self._video_id, self._config = path, video_id, config
        self._children = [Child() for _ in range(config.processes)]
        self._free: SimpleQueue[Child] = SimpleQueue()
        for child in self._children:
            self._free.put(child)
        self._threads = ThreadPoolExecutor(config.processes)

    def parts(self) -> Iterator[tuple[tuple[float, float], list[Row], float]]:
        """Bounds, rows and CPU seconds of each part, in order; none where the film is not divided."""
        (bounds,), _ = self._call(part_bounds, self._path, self._config)
        left = pairwise(bounds)
        begun = deque((part, self._begin(part)) for part in islice(left, len(self._children) + 1))
        while begun:
            part, future = begun.popleft()
            rows, cpu_s = future.result()
            begun.extend((one, self._begin(one)) for one in islice(left, 1))
            yield part, rows, cpu_s

    def close(self) -> None:
        """End all processes."""
        # First, so that what waits is not begun when what runs ends.
        self._threads.shutdown(wait=False, cancel_futures=True)
        for child in self._children:
            child.interrupt()
        self._threads.shutdown()
        for child in self._children:
            child.kill()

    def _begin(self, part: tuple[float, float]) -> Future[tuple[list[Row], float]]:
        return self._threads.submit(self._call, cut_part, self._path, self._video_id, self._config, *part)

    def _call(self, function: Callable[..., Iterable[Any]], *args: Any) -> tuple[list[Any], float]:
        """What a function yields in a process that is free, and its CPU seconds."""
        child, found = self._free.get(), []
        rows = child.stream(function, *args, **self._config.video.limits_of(self._config.processes))
        try:
            while True:
                found.append(next(rows))
        except StopIteration as end:
            return found, end.value
        finally:
            self._free.put(child)


def part_bounds(path: str, config: CutConfig) -> Iterator[list[float]]:
    """Yield the times between which the parts of a film lie, the last one open; none where it is not divided."""
    av.logging.set_level(None)
    try:
        film = open_film(path, max_pixels=config.video.max_pixels, look=config.frames.look)
    except FilmError:
        yield []
        return
    # An index that names all pictures leads to any of them, at the same times as on the way from the start.
    known = config.shots.detector in DIVIDED and config.video.decoder == "pyav"
    known = known and film.container == MOV and film.clock is not None and film.clock.steady and not film.truncated
    length_s = film.duration_s or 0.0
    each_s = min(max(length_s / (EACH * config.processes), LEAST_S), MOST_S)
    count = int(length_s / each_s) if known else 0
    yield [*(number * each_s for number in range(count)), math.inf] if count > 1 else []


def cut_part(path: str, video_id: str, config: CutConfig, begin_s: float, end_s: float) -> Iterator[Row | None]:
    """Rows of the shots of a film that begin between two times, and one for the part, as `cut_shots`; None: alive.

    The latter has an error where the part may differ from what one process would find.
    """
    cv2.setNumThreads(1)
    av.logging.set_level(None)
    film = open_film(path, max_pixels=config.video.max_pixels, look=config.frames.look, vectors=config.motion.by_codec)
    whole = film.pictures  # held, since its end would close the file
    try:
        if begin_s > 0:
            film.pictures = _from(film, begin_s, config.shots.min_length_s)
        found = _up_to(in_shots(film, config.shots), end_s + MOST_S)
        about = config.frames, config.motion, config.windows
        yield from cut_shots(film, found, video_id, frozenset(), *about, begin_s, end_s)
    except (_OddError, FFmpegError) as error:
        yield film_row(film, 0, "odd", str(error))
    del whole


class _OddError(Exception):
    """Something about the pictures of a part because of which it may differ from what one process would find."""


def _up_to(found: Iterator[tuple[int, Picture]], last_s: float) -> Iterator[tuple[int, Picture]]:
    """Pictures by their shots. Raises _OddError where they go on beyond a time: all rows of a part are in memory."""
    for number, picture in found:
        if picture.time > last_s:
            raise _OddError(f"a shot goes on for more than {MOST_S:.0f} s")
        yield number, picture


def _from(film: Film, begin_s: float, min_length_s: float) -> Iterator[Picture]:
    """The pictures of a film from some before a time on. Raises _OddError."""
    assert film.seek
    step = step_of(float(film.rate))
    before = BEFORE * step
    found = with_ends(film, film.seek(max(0.0, begin_s - before * film.step_s - min_length_s), strict=True), None)
    first = next(found, None)
    if first is None:
        raise _OddError("no picture is there")
    # Of many pictures a second a detector looks at each step-th, counted from the first of the film.
    number = first.time / film.step_s
    if step > 1 and abs(number - round(number)) > 0.1:
        raise _OddError("its rate varies")
    for count, picture in enumerate(chain([first], found)):
        if picture.damaged:
            raise _OddError(f"a picture is damaged at {picture.time:.3f} s")
        if count < before and picture.time >= begin_s:
            raise _OddError(f"there are {count} pictures before {begin_s:.3f} s that are near")
        if count >= -round(number) % step:
            yield picture

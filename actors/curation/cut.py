"""One decode of a film becomes a row for each scene: frames, motion, hash, thumbnail."""

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import av
import av.logging
import cv2
import numpy as np

from actors.core.errors import UserError
from actors.core.stage import Row
from actors.curation.motion import FLOWS, MotionConfig, rgb_differences
from actors.curation.perceptual_hash import scene_hash
from actors.media.film import (
    HOLE_S,
    ROUNDING_S,
    Beat,
    Film,
    FilmError,
    Picture,
    SeekError,
    VideoConfig,
    in_shots,
    open_film,
    visited,
)
from actors.media.images import encode_jpeg
from actors.media.shots import ShotsConfig

FEATURES = ("max_rgb_diff", "mean_rgb_diff", "max_velocity", "mean_velocity", "mse", "cos_sim", "no_frames")
"""The seven features, in the order that a classifier expects."""
SPARE_FRAMES = 2
"""A listed scene may end this many frames after its span: times and rates in metadata are rounded."""


@dataclass(frozen=True)
class FramesConfig:
    """Which frames of a scene are sampled."""

    interval_ms: int = 250
    """Milliseconds between sampled frames, counted from the scene's own start; at least 1. Features depend on it."""
    size: int = 240
    """Side of sampled frames in pixels, at least 16: scaled to this short side, then cropped to a square about the
    centre. Features depend on it; smaller is faster."""
    min: int = 4
    """Fewest sampled frames of a scene that may be kept, at least 2; shorter scenes are dropped as too_short."""
    max: int = 60
    """Most sampled frames of a scene that may be kept. Longer scenes are dropped as too_long and not measured, so that
    the frames of a row stay below 10 MB."""

    def __post_init__(self) -> None:
        if self.interval_ms < 1 or self.size < 16 or not 2 <= self.min <= self.max:
            raise UserError(f"frames: interval_ms must be at least 1, size at least 16, and 2 <= min <= max: {self}")


@dataclass(frozen=True)
class WindowsConfig:
    """How shots that are too long to be one scene are divided, in films without metadata."""

    length_s: float | None = None
    """Seconds of a window, at most frames.max samples; null: frames.max samples, or what the output was begun with.
    0: shots are not divided, and dropped as too_long."""
    overlap_s: float = 0
    """Seconds that a window shares with the one before it, less than its length."""

    def __post_init__(self) -> None:
        if self.overlap_s < 0 or (self.length_s or 0) < 0 or (self.length_s and self.overlap_s >= self.length_s):
            raise UserError(f"windows: length_s must be 0 or more, and overlap_s from 0 to below it: {self}")


@dataclass(frozen=True)
class Windows:
    """How shots are divided, in sampled frames."""

    samples: int
    """Most of a window; 0: shots are not divided."""
    overlap: int
    """Shared with the window before."""
    rest: int
    """A rest of fewer joins the window before it: the two are made equal."""


UNDIVIDED = Windows(0, 0, 0)
"""Each shot is one scene."""


@dataclass(slots=True)
class _Sample:
    """A sampled frame, and what is known of the pictures from it to before the next one."""

    time: float
    image: np.ndarray | None
    shown: float
    """When the latest of its pictures came."""
    longest_hold: float = 0.0
    pictures: int = 0
    damaged: int = 0
    interlaced: int = 0


class _Scene:
    """A scene while its frames pass: samples them, and becomes a row at its end, or one for each of its windows."""

    def __init__(
        self, film: Film, config: FramesConfig, motion: MotionConfig, about: Row, windows: Windows = UNDIVIDED
    ) -> None:
        self._film, self._config, self._motion, self._about = film, config, motion, about
        self._windows = windows
        short = min(film.width, film.height)
        self._width, self._height = (round(side * config.size / short) for side in (film.width, film.height))
        self._start = math.nan
        self._due = 0
        self._samples: list[_Sample] = []
        self.count = 0
        """How many scenes it has become so far."""

    def add(self, picture: Picture, from_s: float = -math.inf) -> None:
        """Take a picture; from_s: when the scene begins, where it begins while the picture is held."""
        time = max(picture.time, from_s)
        if self._samples:
            self._samples[-1].longest_hold = max(self._samples[-1].longest_hold, time - self._samples[-1].shown)
        else:
            self._start = time
        passed = (time - self._start + ROUNDING_S) * 1000 / self._config.interval_ms
        if passed >= self._due:
            self._due = math.floor(passed) + 1
            self._samples.append(_Sample(time, self._image(picture), time))
        sample = self._samples[-1]
        sample.shown = time
        sample.pictures += 1
        sample.damaged += picture.damaged
        sample.interlaced += picture.interlaced

    def _image(self, picture: Picture) -> np.ndarray | None:
        # Of a scene that is too long anyway one frame is enough, for its thumbnail.
        if not self._windows.samples and len(self._samples) >= self._config.max:
            if len(self._samples) == self._config.max:
                for sample in self._samples[1:]:
                    sample.image = None
            return None
        image = picture.scaled(self._width, self._height)
        top, left = (self._height - self._config.size) // 2, (self._width - self._config.size) // 2
        # A copy, since a view would keep what is cropped.
        return image[top : top + self._config.size, left : left + self._config.size].copy()

    def passed(self, skip: Collection[str]) -> Iterator[Row]:
        """Rows of the windows that have ended, whatever comes; skip: scenes that need no row."""
        while self._windows.samples:
            count = self._fitting()
            if len(self._samples) < count + max(1, self._windows.rest):
                return
            yield from self._window(count, self._samples[count].time, skip)

    def ended(self, end_s: float, skip: Collection[str], error: str = "", message: str = "") -> Iterator[Row]:
        """Rows of the windows that are left, or of the scene where it is not divided; an error is that of the last."""
        if self._windows.samples:
            yield from self.passed(skip)
            count, left = self._fitting(), len(self._samples)
            if count < left:
                overlap = self._windows.overlap
                half = (left + overlap + 1) // 2
                if not error and left - count < self._windows.rest <= left + overlap - half:
                    count = half
                yield from self._window(count, self._samples[count].time, skip)
        yield from self._window(len(self._samples), end_s, skip, error, message)

    def _fitting(self) -> int:
        """How many of the samples make up the next window."""
        most = self._windows.samples
        # Pictures that are held may make it long with few samples.
        end_s = self._samples[0].time + (most + 1) * self._config.interval_ms / 1000 - ROUNDING_S
        times = [sample.time for sample in self._samples[1 : most + 1]]
        before = bisect_left(times, end_s)
        return before + 1 if before == len(times) < most else max(1, before)

    def _window(
        self, count: int, end_s: float, skip: Collection[str], error: str = "", message: str = ""
    ) -> Iterator[Row]:
        """The row of the first samples, which are let go of."""
        samples, last = self._samples[:count], count == len(self._samples)
        about = dict(self._about)
        if self.count or not last:
            about |= {name: f"{about[name]}_w{self.count}" for name in ("clip_id", "scene_id")}
            about |= {"ordinal": about["ordinal"] + self.count, "window": self.count}
        self._samples = self._samples[max(1, count - self._windows.overlap) :] if not last else []
        self.count += 1
        if about["scene_id"] not in skip:
            yield self._row(about, samples, end_s, error, message)

    def row(self, end_s: float, error: str = "", message: str = "") -> Row:
        """The scene's row; with an error code where it could not be had whole."""
        return self._row(self._about, self._samples, end_s, error, message)

    def _row(self, about: Row, samples: list[_Sample], end_s: float, error: str, message: str) -> Row:
        damaged = sum(sample.damaged for sample in samples)
        if not error and damaged:
            error, message = "decode_error", f"{damaged} of its frames are damaged"
        row = {**scene_row(about, error, message), "window": about.get("window", -1)}
        row |= {"start_s": samples[0].time, "end_s": end_s, "width": self._film.width, "height": self._film.height}
        row["longest_hold_s"] = max(end_s - samples[-1].shown, *(sample.longest_hold for sample in samples))
        row["clock_jumps"] = self._film.jumps_before(end_s)
        row["interlaced"] = 2 * sum(sample.interlaced for sample in samples) > sum(
            sample.pictures for sample in samples
        )
        images = [sample.image for sample in samples if sample.image is not None]
        row["thumbnail"] = _thumbnail(images[len(images) // 2])
        if error:
            return row
        row["no_frames"] = len(samples)
        if 2 <= len(samples) <= self._config.max:
            frames = np.stack(images)
            differences = rgb_differences(frames)
            row |= {"max_rgb_diff": differences.max(), "mean_rgb_diff": differences.mean(), "frames": frames}
            row["phash"] = scene_hash(frames)
            if self._motion.flow in FLOWS:
                speeds = FLOWS[self._motion.flow](frames)
                row |= {"max_velocity": speeds.max(), "mean_velocity": speeds.mean()}
        return row


def scene_row(about: Row, error: str = "", message: str = "") -> Row:
    """A scene's row before anything is measured: `about` names it, every number is missing."""
    return {
        **about,
        **dict.fromkeys(("start_s", "end_s", *FEATURES[:-1]), math.nan),
        "width": 0,
        "height": 0,
        "no_frames": 0,
        "longest_hold_s": math.nan,
        "clock_jumps": 0,
        "interlaced": False,
        "window": -1,
        "phash": None,
        "frames": None,
        "thumbnail": b"",
        "error": error,
        "message": message,
    }


def _about(scene: Row) -> Row:
    return {name: scene[name] for name in ("clip_id", "scene_id", "ordinal", "caption")}


def _thumbnail(frame: np.ndarray) -> bytes:
    small = cv2.resize(frame, (120, 120), interpolation=cv2.INTER_AREA)
    return encode_jpeg(small, quality=80)


class _Span:
    """A span of the metadata while its frames pass; frames are counted from its first."""

    def __init__(self, film: Film, frames: FramesConfig, motion: MotionConfig, span: Row) -> None:
        self._film, self._frames, self._motion = film, frames, motion
        self.start_s, self.end_s = span["start_s"], span["end_s"]
        self._count = 0
        self._waiting = deque(sorted(span["scenes"], key=lambda scene: scene["first"]))
        self._open: list[tuple[Row, _Scene]] = []

    @property
    def done(self) -> bool:
        return not self._waiting and not self._open

    def feed(self, picture: Picture, before: Picture | None) -> Iterator[Row]:
        """Take the next picture of the film and the one before it; yields rows of scenes that have ended."""
        if self.end_s is not None and picture.time >= self.end_s - ROUNDING_S:
            self._hold(before)
            yield from self._end(before.until if before else picture.time, "scene_beyond_span", SPARE_FRAMES)
            return
        self._begin()
        still = []
        for scene, open_scene in self._open:
            if scene["end"] == self._count:
                yield open_scene.row(before.until if before else picture.time)
            else:
                open_scene.add(picture)
                still.append((scene, open_scene))
        self._open = still
        self._count += 1

    def _begin(self) -> None:
        while self._waiting and self._waiting[0]["first"] == self._count:
            scene = self._waiting.popleft()
            self._open.append((scene, _Scene(self._film, self._frames, self._motion, _about(scene))))

    def _hold(self, picture: Picture | None) -> None:
        """Take a picture that is held over the whole span, in which no other appears."""
        if self._count or picture is None:
            return
        if picture.until > self.start_s and picture.until - picture.time > max(HOLE_S, 3 * self._film.step_s):
            self._begin()
            for _, scene in self._open:
                scene.add(picture, self.start_s)
            self._count += 1

    def end_of_film(self, last: Picture | None) -> Iterator[Row]:
        """Rows of the scenes that the film ended on, with its last picture."""
        end_s, truncated = last.until if last else 0.0, self._film.truncated
        seen = self.end_s is not None and self.end_s <= end_s + ROUNDING_S
        if truncated and not seen:
            yield from self._end(end_s, "truncated", 0, whole=False)
        elif self.end_s is None or self.end_s <= end_s + max(0.1, SPARE_FRAMES * self._film.step_s):
            self._hold(last)
            yield from self._end(end_s, "scene_beyond_span", SPARE_FRAMES)
        else:
            yield from self._end(end_s, "span_beyond_end", 0, whole=False)

    def _end(self, end_s: float, code: str, spare: int, whole: bool = True) -> Iterator[Row]:
        """Rows of all scenes that are left; end_s: where the pictures that were taken end."""
        messages = {
            "truncated": f"the film breaks off at {end_s:.3f} s, before its declared end",
            "span_beyond_end": f"the span ends at {self.end_s or 0:.3f} s, the film at {end_s:.3f} s",
            "scene_beyond_span": f"the span holds {self._count} frames",
        }
        end_s = end_s if self.end_s is None else min(end_s, self.end_s)
        for scene, open_scene in self._open:
            complete = whole if scene["end"] == -1 else scene["end"] <= self._count + spare
            yield open_scene.row(end_s) if complete else open_scene.row(end_s, code, messages[code])
        for scene in self._waiting:
            yield scene_row(_about(scene), code, messages[code])
        self._open, self._waiting = [], deque()


def cut(
    path: str,
    video_id: str,
    spans: list[Row] | None,
    skip: frozenset[str],
    video: VideoConfig,
    frames: FramesConfig,
    shots: ShotsConfig,
    motion: MotionConfig,
    windows: Windows = UNDIVIDED,
    seek: bool = False,
) -> Iterator[Row | None]:
    """Decode a film once; yield a row for each scene as soon as it has passed, then one for the film; None: alive.

    path: a local file. spans: what to cut, each {start_s, end_s or None, scenes: [{clip_id, scene_id, ordinal, caption,
    first, end}]} with 0 <= first < end or end -1; None: shots are to be detected, and divided into windows where they
    are longer than that: scenes with `_w<k>` behind both ids. skip: scenes that need no row. seek: spans are sound rows
    that PyAV measured, and what lies between them may be jumped over; `steady` in each: the clock is known not to jump.
    A scene's row: what names it, start_s, end_s, width, height, the features measured on pixels (NaN where not
    measured), no_frames, longest_hold_s (of one picture), clock_jumps (mended before its end), interlaced, window (its
    number in its shot, -1: that is not divided), phash (bytes or None), frames uint8 (T, size, size, 3) RGB or None,
    thumbnail (JPEG), error, message.
    The film's row has scene_id "" and tells decoded and source frames, how many scenes there are, and what was wrong.
    """
    cv2.setNumThreads(1)
    av.logging.set_level(None)
    try:
        film = open_film(path, video.decoder, "cuda" if video.num_gpus > 0 else "cpu", video.max_pixels)
    except FilmError as error:
        for span in spans or []:
            for scene in span["scenes"]:
                if scene["scene_id"] not in skip:
                    yield scene_row(_about(scene), error.code, str(error))
        yield film_row(None, _count(spans), error.code if spans is None else "", str(error) if spans is None else "")
        return
    if spans is None:
        yield from _cut_shots(film, video_id, skip, frames, shots, motion, windows)
        return
    if seek and video.decoder == "pyav":
        done = set(skip)
        try:
            for row in _cut_spans(film, spans, skip, frames, motion, seek):
                done.add(row["scene_id"] if row else "")
                yield row
            return
        except SeekError:
            film, skip = open_film(path, "pyav", max_pixels=video.max_pixels), frozenset(done)
    yield from _cut_spans(film, spans, skip, frames, motion)


def film_row(film: Film | None, scenes: int, error: str = "", message: str = "") -> Row:
    """The row that closes a film, None where it was not decoded: it tells how many scene rows belong to it."""
    about = {"clip_id": "", "scene_id": "", "ordinal": -1, "caption": ""}
    decoded, source, decoder = (film.decoded, film.frames or film.decoded, film.decoder) if film else (0, 0, "")
    counts: Row = {"decoded": decoded, "source": source, "decoder": decoder, "scenes": scenes}
    counts["clock_jumps"] = film.jumps_before(math.inf) if film else 0
    return {**scene_row(about, error, message), **counts}


def _count(spans: list[Row] | None) -> int:
    return sum(len(span["scenes"]) for span in spans or [])


def _cut_spans(
    film: Film, spans: list[Row], skip: frozenset[str], frames: FramesConfig, motion: MotionConfig, seek: bool = False
) -> Iterator[Row | None]:
    count = _count(spans)
    spans = [{**span, "scenes": [s for s in span["scenes"] if s["scene_id"] not in skip]} for span in spans]
    spans = [span for span in spans if span["scenes"]]
    waiting = deque(sorted((_Span(film, frames, motion, span) for span in spans), key=lambda span: span.start_s))
    live: list[_Span] = []
    beat = Beat()
    before = None
    times = [(span.start_s, span.end_s) for span in waiting]
    steady = all(span.get("steady", False) for span in spans)
    for picture in visited(film, times, steady) if seek else film.pictures:
        if picture is None:
            before = None
            continue
        while waiting and picture.time >= waiting[0].start_s - ROUNDING_S:
            live.append(waiting.popleft())
        for span in live:
            yield from span.feed(picture, before)
        live = [span for span in live if not span.done]
        before = picture
        if not waiting and not live:
            break
        yield from beat
    if seek and (live or waiting):
        raise SeekError
    for span in (*live, *waiting):
        yield from span.end_of_film(before)
    yield film_row(film, count)


def _cut_shots(
    film: Film,
    video_id: str,
    skip: frozenset[str],
    frames: FramesConfig,
    shots: ShotsConfig,
    motion: MotionConfig,
    windows: Windows,
) -> Iterator[Row | None]:
    number = scenes = 0

    def begin() -> _Scene:
        names = {"clip_id": f"{video_id}.{number}", "scene_id": f"{video_id}.{number}_0"}
        return _Scene(film, frames, motion, {**names, "ordinal": scenes, "caption": ""}, windows)

    scene = begin()
    beat = Beat()
    end = 0.0
    for shot, picture in in_shots(film, shots):
        if shot != number:
            yield from scene.ended(end, skip)
            number, scenes = shot, scenes + scene.count
            scene = begin()
        scene.add(picture)
        yield from scene.passed(skip)
        end = picture.until
        yield from beat
    code, message = "", ""
    if film.truncated:
        code, message = "truncated", f"the film breaks off at {end:.3f} s, before its declared end"
    yield from scene.ended(end, skip, code, message)
    yield film_row(film, scenes + scene.count, code, message)

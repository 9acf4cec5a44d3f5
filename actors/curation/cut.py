"""One decode of a film becomes a row for each scene: frames, motion, hash, thumbnail."""

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import av
import av.logging
import cv2
import numpy as np

from actors.core.errors import UserError
from actors.core.stage import Row
from actors.curation.motion import FLOWS, MotionConfig, rgb_differences
from actors.curation.perceptual_hash import scene_hash
from actors.media.film import HOLE_S, ROUNDING_S, Beat, Film, FilmError, Picture, VideoConfig, in_shots, open_film
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


class _Scene:
    """A scene while its frames pass: samples them, and becomes a row at its end."""

    def __init__(self, film: Film, config: FramesConfig, motion: MotionConfig, about: Row) -> None:
        self._film, self._config, self._motion, self._about = film, config, motion, about
        short = min(film.width, film.height)
        self._width, self._height = (round(side * config.size / short) for side in (film.width, film.height))
        self._start = self._shown = math.nan
        self._longest_hold = 0.0
        self._due = 0
        self._count = 0
        self._damaged = self._pictures = self._interlaced = 0
        self._frames: list[np.ndarray] = []

    def add(self, picture: Picture, from_s: float = -math.inf) -> None:
        """Take a picture; from_s: when the scene begins, where it begins while the picture is held."""
        time = max(picture.time, from_s)
        if math.isnan(self._start):
            self._start = self._shown = time
        self._longest_hold = max(self._longest_hold, time - self._shown)
        self._shown = time
        self._damaged += picture.damaged
        self._pictures += 1
        self._interlaced += picture.interlaced
        passed = (time - self._start + ROUNDING_S) * 1000 / self._config.interval_ms
        if passed < self._due:
            return
        self._due = math.floor(passed) + 1
        self._count += 1
        # Of a scene that is too long anyway one frame is enough, for its thumbnail.
        if self._count > self._config.max:
            del self._frames[1:]
            return
        image = picture.scaled(self._width, self._height)
        top, left = (self._height - self._config.size) // 2, (self._width - self._config.size) // 2
        # A copy, since a view would keep what is cropped.
        self._frames.append(image[top : top + self._config.size, left : left + self._config.size].copy())

    def row(self, end_s: float, error: str = "", message: str = "") -> Row:
        """The scene's row; with an error code where it could not be had whole."""
        if not error and self._damaged:
            error, message = "decode_error", f"{self._damaged} of its frames are damaged"
        row = scene_row(self._about, error, message)
        row |= {"start_s": self._start, "end_s": end_s, "width": self._film.width, "height": self._film.height}
        row["longest_hold_s"] = max(self._longest_hold, end_s - self._shown)
        row["clock_jumps"] = self._film.jumps_before(end_s)
        row["interlaced"] = 2 * self._interlaced > self._pictures
        if self._frames:
            row["thumbnail"] = _thumbnail(self._frames[len(self._frames) // 2])
        if error:
            return row
        row["no_frames"] = self._count
        if 2 <= self._count <= self._config.max:
            frames = np.stack(self._frames)
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
        self.start_s, self._end_s = span["start_s"], span["end_s"]
        self._count = 0
        self._waiting = deque(sorted(span["scenes"], key=lambda scene: scene["first"]))
        self._open: list[tuple[Row, _Scene]] = []

    @property
    def done(self) -> bool:
        return not self._waiting and not self._open

    def feed(self, picture: Picture, before: Picture | None) -> Iterator[Row]:
        """Take the next picture of the film and the one before it; yields rows of scenes that have ended."""
        if self._end_s is not None and picture.time >= self._end_s - ROUNDING_S:
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
        seen = self._end_s is not None and self._end_s <= end_s + ROUNDING_S
        if truncated and not seen:
            yield from self._end(end_s, "truncated", 0, whole=False)
        elif self._end_s is None or self._end_s <= end_s + max(0.1, SPARE_FRAMES * self._film.step_s):
            self._hold(last)
            yield from self._end(end_s, "scene_beyond_span", SPARE_FRAMES)
        else:
            yield from self._end(end_s, "span_beyond_end", 0, whole=False)

    def _end(self, end_s: float, code: str, spare: int, whole: bool = True) -> Iterator[Row]:
        """Rows of all scenes that are left; end_s: where the pictures that were taken end."""
        messages = {
            "truncated": f"the film breaks off at {end_s:.3f} s, before its declared end",
            "span_beyond_end": f"the span ends at {self._end_s or 0:.3f} s, the film at {end_s:.3f} s",
            "scene_beyond_span": f"the span holds {self._count} frames",
        }
        end_s = end_s if self._end_s is None else min(end_s, self._end_s)
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
) -> Iterator[Row | None]:
    """Decode a film once; yield a row for each scene as soon as it has passed, then one for the film; None: alive.

    path: a local file. spans: what to cut, each {start_s, end_s or None, scenes: [{clip_id, scene_id, ordinal, caption,
    first, end}]} with 0 <= first < end or end -1; None: shots are to be detected. skip: scenes that need no row.
    A scene's row: what names it, start_s, end_s, width, height, the features measured on pixels (NaN where not
    measured), no_frames, longest_hold_s (of one picture), clock_jumps (mended before its end), interlaced, phash (bytes
    or None), frames uint8 (T, size, size, 3) RGB or None, thumbnail (JPEG), error, message.
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
        yield from _cut_shots(film, video_id, skip, frames, shots, motion)
    else:
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
    film: Film, spans: list[Row], skip: frozenset[str], frames: FramesConfig, motion: MotionConfig
) -> Iterator[Row | None]:
    count = _count(spans)
    spans = [{**span, "scenes": [s for s in span["scenes"] if s["scene_id"] not in skip]} for span in spans]
    spans = [span for span in spans if span["scenes"]]
    waiting = deque(sorted((_Span(film, frames, motion, span) for span in spans), key=lambda span: span.start_s))
    live: list[_Span] = []
    beat = Beat()
    before = None
    for picture in film.pictures:
        while waiting and picture.time >= waiting[0].start_s - ROUNDING_S:
            live.append(waiting.popleft())
        for span in live:
            yield from span.feed(picture, before)
        live = [span for span in live if not span.done]
        before = picture
        if not waiting and not live:
            break
        yield from beat
    for span in (*live, *waiting):
        yield from span.end_of_film(before)
    yield film_row(film, count)


def _cut_shots(
    film: Film, video_id: str, skip: frozenset[str], frames: FramesConfig, shots: ShotsConfig, motion: MotionConfig
) -> Iterator[Row | None]:
    count = 0

    def begin() -> _Scene:
        about = {
            "clip_id": f"{video_id}.{count}",
            "scene_id": f"{video_id}.{count}_0",
            "ordinal": count,
            "caption": "",
        }
        return _Scene(film, frames, motion, about)

    def wanted() -> bool:
        return f"{video_id}.{count}_0" not in skip

    scene = begin()
    beat = Beat()
    end = 0.0
    for shot, picture in in_shots(film, shots):
        if shot != count:
            if wanted():
                yield scene.row(end)
            count = shot
            scene = begin()
        if wanted():
            scene.add(picture)
        end = picture.until
        yield from beat
    code, message = "", ""
    if film.truncated:
        code, message = "truncated", f"the film breaks off at {end:.3f} s, before its declared end"
    if wanted():
        yield scene.row(end, code, message)
    yield film_row(film, count + 1, code, message)

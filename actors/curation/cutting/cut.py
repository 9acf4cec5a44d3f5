"""One decode of a film becomes a row for each scene: frames, motion, hash, thumbnail."""

import math
from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import partial

import av
import av.logging
import cv2

from actors.core.stage import Row
from actors.curation.cutting.scenes import UNDIVIDED, FramesConfig, Scene, Windows, named_by, scene_row
from actors.curation.features.motion import MotionConfig
from actors.media.film import (
    HOLE_S,
    ROUNDING_S,
    Beat,
    Film,
    FilmError,
    Picture,
    SeekError,
    VideoConfig,
    open_film,
    opened,
    visited,
)
from actors.media.shot_detection.in_shots import in_shots
from actors.media.shot_detection.shots import BETWEEN, ShotsConfig

SPARE_FRAMES = 2
"""A listed scene may end this many frames after its span: times and rates in metadata are rounded."""


@dataclass(frozen=True)
class CutConfig:
    """The settings of one decode."""

    video: VideoConfig
    """How films are decoded."""
    frames: FramesConfig
    """Which frames of a scene are sampled."""
    shots: ShotsConfig
    """How films without metadata are cut into shots."""
    motion: MotionConfig
    """How optical flow is measured."""
    windows: Windows
    """How long shots of films without metadata are divided."""
    seek: bool = False
    """Whether what lies between the spans may be jumped over: they are sound rows."""
    processes: int = 1
    """How many cut one long film at once."""


class _Named:
    """A scene that metadata names while its frames pass: a row at its end, those of its windows before."""

    def __init__(
        self,
        film: Film,
        frames: FramesConfig,
        motion: MotionConfig,
        scene: Row,
        windows: Windows,
        skip: Collection[str],
    ) -> None:
        self.end: int = scene["end"]
        self._about, self._skip = named_by(scene), skip
        self._whole = Scene(film, frames, motion, self._about)
        # Windows are spans of their own: of a span only one scene is kept.
        about = self._about | {"clip_id": scene["scene_id"]}
        self._parts = Scene(film, frames, motion, about, windows) if windows.named else None

    def add(self, picture: Picture, from_s: float = -math.inf, cut: bool = False) -> Iterator[Row]:
        """Take a picture, maybe the first after a cut; yields rows of windows that have ended."""
        self._whole.add(picture, from_s, cut)
        if self._parts:
            self._parts.add(picture, from_s, cut)
            if self._whole.too_long:
                yield from map(self._window, self._parts.passed(self._skip))

    def ended(self, end_s: float, error: str = "", message: str = "") -> Iterator[Row]:
        """The rows that are left, with an error code where the scene could not be had whole."""
        row = self._whole.row(end_s, error, message)
        if self._parts and self._whole.too_long:
            yield from map(self._window, self._parts.ended(end_s, self._skip, error, message))
            row["scenes"] = self._parts.count
        yield row

    def _window(self, row: Row) -> Row:
        return row | {"ordinal": self._about["ordinal"], "of": self._about["scene_id"]}


class _Span:
    """A span of the metadata while its frames pass; frames are counted from its first."""

    def __init__(
        self, film: Film, frames: FramesConfig, motion: MotionConfig, span: Row, windows: Windows, skip: Collection[str]
    ) -> None:
        self._film = film
        self._named = partial(_Named, film, frames, motion, windows=windows, skip=skip)
        self.start_s, self.end_s = span["start_s"], span["end_s"]
        self._count = 0
        self._waiting = deque(sorted(span["scenes"], key=lambda scene: scene["first"]))
        self._open: list[_Named] = []

    @property
    def done(self) -> bool:
        return not self._waiting and not self._open

    def feed(self, picture: Picture, before: Picture | None, cut: bool = False) -> Iterator[Row]:
        """Take the next picture of the film and the one before it; yields rows of scenes that have ended.

        cut: a shot ends before the picture.
        """
        if self.end_s is not None and picture.time >= self.end_s - ROUNDING_S:
            yield from self._hold(before)
            yield from self._end(before.until if before else picture.time, "scene_beyond_span", SPARE_FRAMES)
            return
        self._begin()
        still = []
        for scene in self._open:
            if scene.end == self._count:
                yield from scene.ended(before.until if before else picture.time)
            else:
                yield from scene.add(picture, cut=cut)
                still.append(scene)
        self._open = still
        self._count += 1

    def _begin(self) -> None:
        while self._waiting and self._waiting[0]["first"] == self._count:
            self._open.append(self._named(scene=self._waiting.popleft()))

    def _hold(self, picture: Picture | None) -> Iterator[Row]:
        """Take a picture that is held over the whole span, in which no other appears."""
        if self._count or picture is None:
            return
        if picture.until > self.start_s and picture.until - picture.time > max(HOLE_S, 3 * self._film.step_s):
            self._begin()
            for scene in self._open:
                yield from scene.add(picture, self.start_s)
            self._count += 1

    def end_of_film(self, last: Picture | None) -> Iterator[Row]:
        """Rows of the scenes that the film ended on, with its last picture."""
        end_s, truncated = last.until if last else 0.0, self._film.truncated
        seen = self.end_s is not None and self.end_s <= end_s + ROUNDING_S
        if truncated and not seen:
            yield from self._end(end_s, "truncated", 0, whole=False)
        elif self.end_s is None or self.end_s <= end_s + max(0.1, SPARE_FRAMES * self._film.step_s):
            yield from self._hold(last)
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
        for scene in self._open:
            complete = whole if scene.end == -1 else scene.end <= self._count + spare
            yield from scene.ended(end_s, *(() if complete else (code, messages[code])))
        for scene in self._waiting:
            yield scene_row(named_by(scene), code, messages[code])
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
    are longer than that: scenes with `_w<k>` behind both ids (of named scenes: behind the scene's). skip: scenes that
    need no row. seek: spans are sound rows that PyAV measured, and what lies between them may be jumped over; `steady`
    in each: the clock is known not to jump.
    A scene's row: what names it, start_s, end_s, width, height, the features measured on pixels (NaN where not
    measured), no_frames, longest_hold_s (of one picture), clock_jumps (mended before its end), interlaced, window (its
    number in its shot, -1: that is not divided), trimmed_before_s and trimmed_after_s (of a transition beside it),
    cuts_inside (when, in seconds, with shots.check_named), bar_top to bar_right (pixels), color_range to rotation (how
    it is stored), converted, scenes (windows of a named one that is divided), phash (bytes or None), frames uint8 (T,
    size, size, 3) RGB or None, thumbnail and KEY_FRAMES (JPEG), error, message.
    The film's row has scene_id "" and tells decoded and source frames, how many scenes there are, and what was wrong.
    """
    cv2.setNumThreads(1)
    av.logging.set_level(None)
    try:
        film = opened(path, video, frames.look, motion.by_codec)
    except FilmError as error:
        for span in spans or []:
            for scene in span["scenes"]:
                if scene["scene_id"] not in skip:
                    yield scene_row(named_by(scene), error.code, str(error))
        yield film_row(None, _count(spans), error.code if spans is None else "", str(error) if spans is None else "")
        return
    if spans is None:
        found = in_shots(film, shots, video.device)
        yield from cut_shots(film, found, video_id, skip, frames, motion, windows)
        return
    cut_spans = partial(_cut_spans, spans=spans, frames=frames, motion=motion, windows=UNDIVIDED if seek else windows)
    if seek and video.decoder == "pyav":
        done = set(skip)
        try:
            for row in cut_spans(film, skip=skip, seek=True):
                done.add(row["scene_id"] if row else "")
                yield row
            return
        except SeekError:
            film = open_film(path, "pyav", max_pixels=video.max_pixels, look=frames.look, vectors=motion.by_codec)
            skip = frozenset(done)
    numbered = in_shots(film, shots, video.device) if shots.check_named and not seek else None
    yield from cut_spans(film, skip=skip, seek=False, numbered=numbered)


def film_row(film: Film | None, scenes: int, error: str = "", message: str = "") -> Row:
    """The row that closes a film, None where it was not decoded: it tells how many scene rows belong to it."""
    about = {"clip_id": "", "scene_id": "", "ordinal": -1, "caption": ""}
    decoded, source, decoder = (film.decoded, film.frames or film.decoded, film.decoder) if film else (0, 0, "")
    counts: Row = {"decoded": decoded, "source": source, "decoder": decoder, "scenes": scenes}
    counts["clock_jumps"] = film.jumps_before(math.inf) if film else 0
    return {**scene_row(about, error, message or (film.fallback if film else "")), **counts}


def _count(spans: list[Row] | None) -> int:
    return sum(len(span["scenes"]) for span in spans or [])


def _cut_spans(
    film: Film,
    spans: list[Row],
    skip: frozenset[str],
    frames: FramesConfig,
    motion: MotionConfig,
    windows: Windows,
    seek: bool,
    numbered: Iterator[tuple[int, Picture]] | None = None,
) -> Iterator[Row | None]:
    """Rows of scenes that metadata names; numbered: the pictures by their shots, where cuts inside are to be told."""
    count = _count(spans)
    spans = [{**span, "scenes": [s for s in span["scenes"] if s["scene_id"] not in skip]} for span in spans]
    spans = [span for span in spans if span["scenes"]]
    opened = (_Span(film, frames, motion, span, windows, skip) for span in spans)
    waiting = deque(sorted(opened, key=lambda span: span.start_s))
    live: list[_Span] = []
    beat = Beat()
    before = None
    times = [(span.start_s, span.end_s) for span in waiting]
    steady = all(span.get("steady", False) for span in spans)
    shot = -2
    for number, picture in numbered or ((0, one) for one in (visited(film, times, steady) if seek else film.pictures)):
        if picture is None:
            before = None
            continue
        ends, shot = number != shot and shot >= 0, number
        while waiting and picture.time >= waiting[0].start_s - ROUNDING_S:
            live.append(waiting.popleft())
        for span in live:
            yield from span.feed(picture, before, ends)
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


def cut_shots(
    film: Film,
    found: Iterator[tuple[int, Picture]],
    video_id: str,
    skip: frozenset[str],
    frames: FramesConfig,
    motion: MotionConfig,
    windows: Windows,
    begin_s: float = -math.inf,
    end_s: float = math.inf,
) -> Iterator[Row | None]:
    """Rows of the shots that begin between two times, numbered from 0, and one for the film; None: alive.

    found: the film's pictures by their shots. The film's row also tells how many `shots` there were, when the first of
    them began (`first_s`), and when the first one after them (`next_s`); NaN where there is none.
    """
    number, shots, scenes = -1, 0, 0
    first_s = next_s = math.nan
    scene: Scene | None = None
    beat = Beat()
    end = until = between_s = 0.0
    for shot, picture in found:
        yield from beat
        until = picture.until
        if shot == BETWEEN:
            between_s += until - picture.time
            continue
        if shot != number:
            if scene:
                scene.trimmed_after_s = between_s
                yield from scene.ended(end, skip)
                shots, scenes, scene = shots + 1, scenes + scene.count, None
            if picture.time >= end_s:
                next_s = picture.time
                break
            number = shot
            if picture.time >= begin_s:
                first_s = picture.time if math.isnan(first_s) else first_s
                names = {"clip_id": f"{video_id}.{shots}", "scene_id": f"{video_id}.{shots}_0"}
                scene = Scene(film, frames, motion, {**names, "ordinal": scenes, "caption": ""}, windows)
                scene.trimmed_before_s = between_s
        if scene:
            scene.add(picture)
            yield from scene.passed(skip)
        end, between_s = until, 0.0
    code, message = "", ""
    if film.truncated:
        code, message = "truncated", f"the film breaks off at {until:.3f} s, before its declared end"
    if scene:
        scene.trimmed_after_s = between_s
        yield from scene.ended(end, skip, code, message)
        shots, scenes = shots + 1, scenes + scene.count
    elif not code and number < 0:
        code, message = "no_shot", f"all {until:.3f} s of the film are a transition"
    row = film_row(film, scenes, code, message)
    yield row | {"shots": shots, "first_s": first_s, "next_s": next_s}

"""Kept scenes as files: frame-exact mp4 with sound, JPEG frames, and WebDataset shards.

A film is decoded once, in order, for all its scenes; what lies far from them is jumped over. Nothing is copied from key
frame to key frame: a clip holds the frames from its start to before its end, each at its own presentation time, and the
samples of sound that go with them.
"""

import math
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast, get_args

import av
import cv2
import numpy as np
from av.codec.context import Flags
from av.container import InputContainer
from av.error import FFmpegError
from av.filter import Graph
from av.logging import set_level

from actors.core.errors import BrokenRunError, UserError, machine_fault
from actors.core.stage import Row, Stage
from actors.curation.tables import BARS
from actors.media.bars import NO_BARS, Bars
from actors.media.film import ROUNDING_S, Beat, Film, FilmError, Picture, SeekError, open_film, visited
from actors.media.formats import open_container
from actors.media.hdr import tone_mapping
from actors.media.images import encode_jpeg
from actors.media.limits import MAX_PIXELS
from actors.media.planes import FULL_RANGE, Cropper, filters
from actors.media.shown import AS_STORED, Look, Turn, is_hdr, turn_of
from actors.media.sound import Sound
from actors.media.streams import film_stream, sound_stream

Effort = Literal["ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow"]
EFFORTS = get_args(Effort)
AAC_BITS = 80_000
"""Bits per second for each channel."""
FINE_TICK_S = Fraction(1, 10_000)
"""Clips count time in the ticks of their source, halved until they are at most this long."""

_FAULTS = (FFmpegError, OSError)


@dataclass(frozen=True)
class ClipsConfig(Stage):
    """How kept scenes are written."""

    workers: int = 0
    """Films exported at once over the whole cluster; 0: as many as the CPUs allow."""
    crf: int = 18
    """Quality of H.264, 0 to 51: 0 is lossless, 18 looks like the source, 51 is the worst. Higher makes files smaller.
    """
    x264_preset: Effort = "veryfast"
    """Effort of x264: slower presets make smaller files and take more CPU time."""
    crop_bars: bool = False
    """Cut off the black bars that were found in a scene (columns bar_top to bar_right), in its clip and frames."""
    jpeg_quality: int = 92
    """Quality of JPEG frames, 1 to 100, where frames are written."""

    max_s: float = 3600
    """Seconds of the longest clip that is written; longer scenes get the error code `clip_too_long`."""
    max_mb: float = 4096
    """Megabytes (2^20 bytes) of the largest clip that is written; larger ones get the error code `clip_too_large`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.max_s > 0 and self.max_mb > 0):
            raise UserError(f"export.max_s and export.max_mb must be above 0: {self}")
        if not 0 <= self.crf <= 51 or not 1 <= self.jpeg_quality <= 100:
            raise UserError(f"export.crf must be from 0 to 51, export.jpeg_quality from 1 to 100: {self}")


def write_clips(
    source: str,
    wanted: list[Row],
    folder: str,
    config: ClipsConfig,
    frames_interval_ms: int | None,
    max_pixels: int = MAX_PIXELS,
    look: Look = AS_STORED,
) -> Iterator[Row | None]:
    """Write scenes of a film as `<folder>/<scene_id>.mp4`; yield a row for each once it is whole; None: still alive.

    source: a local film. wanted: {scene_id, start_s, end_s}, the times of the scene's first frame and of the first one
    after it, as `cut` measured them, and with config.crop_bars also BARS. frames_interval_ms: also write sampled frames
    as JPEG, as shown (upright, square pixels), to `<folder>/frames/<scene_id>/<NNNN>.jpg`, numbered from 0000; None: no
    JPEGs. look: what is done to frames.

    A clip is H.264 and, where the film has sound, AAC of the same length: mono, stereo or 5.1 (other layouts are mixed
    down to the next of these), silent where the film is. Pixels are upright; their shape and colour tags are kept, but
    RGB and tone-mapped HDR become BT.709. An odd last row or column of pixels is left out: 4:2:0 has even sides.

    A row: scene_id, path, frames (how many), frame_paths, silenced_s (sound that is damaged, and silent), error,
    message. A scene that cannot be had whole has an error code and leaves no file: `truncated`, `decode_error`,
    `clip_too_long`, `clip_too_large`, one of `open_film`, or `export_failed`. Raises BrokenRunError where the folder
    cannot be written to.
    """
    cv2.setNumThreads(1)
    set_level(None)
    lasting = []
    for scene in wanted:
        times = f"it is to last from {scene['start_s']} to {scene['end_s']} s"
        if not scene["start_s"] < scene["end_s"]:
            yield _row(scene, error="export_failed", message=times)
        elif scene["end_s"] - scene["start_s"] > config.max_s:
            yield _row(scene, error="clip_too_long", message=f"{times}, longer than export.max_s={config.max_s:g}")
        else:
            lasting.append(scene)
    waiting = deque(sorted(lasting, key=lambda scene: scene["start_s"]))
    live: list[_Clip] = []
    if not waiting:
        return
    opened = partial(open_film, source, max_pixels=max_pixels, look=look)
    cut = partial(_cut, opened, waiting, live, Path(folder), config, frames_interval_ms, max_pixels)
    try:
        try:
            yield from cut(steady=all(scene.get("clock_jumps") == 0 for scene in wanted))
        except SeekError:
            waiting.extendleft(clip.again() for clip in reversed(live))
            live.clear()
            yield from cut(steady=None)
        return
    except FilmError as error:
        fault = error.code, str(error)
    except _FAULTS as error:
        fault = "export_failed", f"the film cannot be read: {error}"
    for clip in live:
        yield clip.failed(*fault)
    for scene in waiting:
        yield _row(scene, error=fault[0], message=fault[1])


def _cut(
    opened: Callable[[], Film],
    waiting: deque[Row],
    live: "list[_Clip]",
    folder: Path,
    config: ClipsConfig,
    frames_interval_ms: int | None,
    max_pixels: int,
    steady: bool | None,
) -> Iterator[Row | None]:
    """Move scenes from `waiting` to `live` to written; where it raises, those that are left cannot be had whole.

    steady: whether the film's clock is known not to jump; None: the film is decoded from its start. Raises SeekError
    where that has to be done.
    """
    film = opened()
    spans = [(scene["start_s"], scene["end_s"]) for scene in waiting]
    beat = Beat()
    # Sound is read through a second door, in step with the pictures however far apart the two lie in the file.
    with open_container(film.path, max_pixels) as container:
        stream = film_stream(container)
        assert stream
        upright = _Upright(stream.sample_aspect_ratio or Fraction(1), film.look)
        sound = _sound(container, stream, film)
        job = _Job(folder, config, frames_interval_ms, film, upright, sound)
        until = 0.0
        for picture, until in _with_ends(film.pictures if steady is None else visited(film, spans, steady)):
            if picture is None:
                if sound:
                    sound.jump(waiting[0]["start_s"])
                continue
            while waiting and picture.time >= waiting[0]["start_s"] - ROUNDING_S:
                live.append(_Clip(waiting.popleft(), job))
            yield from beat
            if not live:
                if sound:
                    sound.skip(until)
                continue
            frame = upright(cast(Any, picture).frame)
            yield from _each(live, folder, _Clip.show, picture, frame, until)
            heard = min(until, max((clip.end_s for clip in live), default=until))
            for piece in sound.pieces(picture.time, heard) if sound else ():
                yield from beat
                yield from _each(live, folder, _Clip.play, *piece)
            yield from _each(live, folder, _Clip.ended, until)
            if not waiting and not live:
                return
    if steady is not None:
        raise SeekError
    code = "truncated" if film.truncated else "export_failed"
    raise FilmError(code, f"the film ends at {until:.3f} s, before the scene does")


def _each(live: "list[_Clip]", folder: Path, step: Callable[..., Row | None], *of: Any) -> Iterator[Row]:
    """Do a step of each clip, with these arguments; yield the rows of those that end or fail, and let go of them."""
    for clip in tuple(live):
        try:
            row = step(clip, *of)
        except FilmError as error:
            row = clip.failed(error.code, str(error))
        except _FAULTS as error:
            row = clip.failed("export_failed", f"the clip cannot be written: {error}")
            if machine := machine_fault(error, writing=True):
                raise BrokenRunError(f"clips cannot be written in {folder}: {machine}") from error
        if row:
            live.remove(clip)
            yield row


def _sound(container: InputContainer, pictures: av.VideoStream, film: Film) -> Sound | None:
    """A film's sound; None where it has none."""
    stream = sound_stream(container)
    if stream is None and container.streams.audio:
        raise FilmError("unknown_codec", "no decoder knows the codec of its sound")
    return None if stream is None else Sound(container, stream, pictures, film.start_s)


def _with_ends(pictures: Iterable[Picture | None]) -> Iterator[tuple[Picture | None, float]]:
    """Pictures, each with the time at which the next takes its place; None where some were jumped over."""
    before = None
    for picture in pictures:
        if before:
            yield before, picture.time if picture else before.until
        if picture is None:
            yield None, 0.0
        before = picture
    if before:
        yield before, before.until


def _row(
    scene: Row,
    path: str = "",
    frames: int = 0,
    frame_paths: Iterable[str] = (),
    error: str = "",
    message: str = "",
    silenced_s: float = 0.0,
) -> Row:
    return {
        "scene_id": scene["scene_id"],
        "path": path,
        "frames": frames,
        "frame_paths": list(frame_paths),
        "error": error,
        "message": message,
        "silenced_s": silenced_s,
    }


class _Upright:
    """Makes frames as H.264 takes them: upright, 4:2:0 in 8 bits, with even sides."""

    def __init__(self, stored_shape: Fraction, look: Look) -> None:
        self._stored_shape, self._look = stored_shape, look
        self.pixel_shape = stored_shape
        """Width of a pixel divided by its height in the latest frame."""
        self._source: tuple[Any, ...] = ()
        self._graph: Graph | None = None

    def __call__(self, frame: av.VideoFrame) -> av.VideoFrame:
        source = (frame.format.name, frame.width, frame.height, frame.rotation, frame.colorspace, frame.color_range)
        source = (*source, frame.color_trc)
        if source != self._source:
            self._source, self._graph = source, self._filters(frame)
        if self._graph is None:
            return frame
        self._graph.vpush(frame)
        return self._graph.vpull()

    def _filters(self, frame: av.VideoFrame) -> Graph | None:
        """The filters for frames like this one, or None where they are right as they are."""
        turn = turn_of(frame)
        sideways = turn.quarters % 2 == 1
        width, height = (frame.height, frame.width) if sideways else (frame.width, frame.height)
        even = width // 2 * 2, height // 2 * 2
        self.pixel_shape = 1 / self._stored_shape if sideways else self._stored_shape
        hdr = self._look.tone_map and is_hdr(frame)
        plain = frame.format.name in ("yuv420p", "yuvj420p") and turn == Turn() and even == (width, height)
        if plain and not hdr:
            return None
        steps = [*turn.steps, ("crop", f"{even[0]}:{even[1]}:0:0")]
        sdr = ("format", "yuv420p:color_spaces=bt709:color_ranges=tv")
        if hdr:
            with tone_mapping(frame.color_trc) as toned:
                return filters(frame, *steps, ("format", "rgb48le"), *toned, sdr)
        full = frame.color_range == FULL_RANGE or frame.format.name.startswith("yuvj")
        return filters(frame, *steps, sdr if frame.format.is_rgb else ("format", "yuvj420p" if full else "yuv420p"))


@dataclass(frozen=True)
class _Job:
    """What the clips of one film share."""

    folder: Path
    config: ClipsConfig
    interval_ms: int | None
    film: Film
    upright: _Upright
    sound: Sound | None


class _Clip:
    """A scene while its frames pass: they go into its files, which are whole or gone at its end."""

    def __init__(self, scene: Row, job: _Job) -> None:
        self._scene, self._job = scene, job
        self.end_s: float = scene["end_s"]
        self._path = job.folder / f"{scene['scene_id']}.mp4"
        self._stills = job.folder / "frames" / scene["scene_id"]
        self._still_paths: list[str] = []
        self._due = 0
        self._start = math.nan
        self._bars = Bars(*(scene[name] for name in BARS)) if job.config.crop_bars else NO_BARS
        self._crop = Cropper()
        self._frames = 0
        self._silenced = 0
        self._file: _Mp4 | None = None

    def show(self, picture: Picture, frame: av.VideoFrame, until: float) -> None:
        """Write a picture, whose upright frame is shown until that time."""
        if picture.damaged:
            raise FilmError("decode_error", f"the frame at {picture.time:.3f} s is damaged")
        frame = self._inside(frame)
        if self._file is None:
            if abs(picture.time - self._scene["start_s"]) > ROUNDING_S:
                found = f"the frame nearest to {self._scene['start_s']:.3f} s is at {picture.time:.3f} s"
                raise FilmError("export_failed", f"{found}: this is not the film that was measured")
            self._start = picture.time
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = _Mp4(self._path, frame, self._job)
        self._file.show(frame, picture.time - self._start, min(until, self.end_s) - self._start)
        self._frames += 1
        # The muxer makes the file with its first packet.
        if self._path.exists() and self._path.stat().st_size > self._job.config.max_mb * 2**20:
            raise FilmError("clip_too_large", f"it is larger than export.max_mb={self._job.config.max_mb:g}")
        if self._job.interval_ms:
            self._sample(picture, self._job.interval_ms)

    def _inside(self, frame: av.VideoFrame) -> av.VideoFrame:
        """What of an upright frame is inside of the scene's bars, with even sides."""
        if self._bars == NO_BARS:
            return frame
        across, down = frame.width / self._job.film.width, frame.height / self._job.film.height
        return self._crop(frame, self._bars.scaled(across, down, step=2))

    def play(self, first: int, samples: np.ndarray, silenced: int) -> None:
        """Write sound, float32 (channels, N), of which so many samples are silent because of damage."""
        assert self._file and self._job.sound
        left = self._job.sound.sample(self.end_s) - first
        if left > 0:
            self._file.play(samples[:, :left])
            self._silenced += min(left, silenced)

    def _sample(self, picture: Picture, interval_ms: int) -> None:
        passed = (picture.time - self._start + ROUNDING_S) * 1000 / interval_ms
        if passed < self._due:
            return
        self._due = math.floor(passed) + 1
        width, height, bars = self._job.film.width, self._job.film.height, self._bars
        shown = picture.scaled(width, height)[bars.top : height - bars.bottom, bars.left : width - bars.right]
        path = self._stills / f"{len(self._still_paths):04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_jpeg(shown, self._job.config.jpeg_quality))
        self._still_paths.append(str(path))

    def ended(self, time: float) -> Row | None:
        """Close the files where the last picture is shown until then; the scene's row."""
        if time < self.end_s - ROUNDING_S:
            return None
        assert self._file
        self._file.close()
        silenced_s = self._silenced / self._job.sound.rate if self._job.sound else 0.0
        return _row(self._scene, str(self._path), self._frames, self._still_paths, silenced_s=silenced_s)

    def again(self) -> Row:
        """Remove the files; the scene, which is to be written anew."""
        self.failed("", "")
        return self._scene

    def failed(self, error: str, message: str) -> Row:
        """Remove the files; the scene's row with that error."""
        if self._file:
            self._file.abandon()
            self._path.unlink(missing_ok=True)
        shutil.rmtree(self._stills, ignore_errors=True)
        return _row(self._scene, error=error, message=message)


class _Mp4:
    """A clip's file: H.264 and AAC side by side, times from 0."""

    def __init__(self, path: Path, like: av.VideoFrame, job: _Job) -> None:
        assert like.time_base
        self._tick_s = like.time_base
        while self._tick_s > FINE_TICK_S:
            self._tick_s /= 2
        self._file = av.open(path, "w", format="mp4", options={"movflags": "+faststart"})
        # Without B-frames the container holds each frame's own duration, whatever the rate does.
        options = {"crf": str(job.config.crf), "preset": job.config.x264_preset, "bf": "0"}
        self._video = self._file.add_stream("libx264", job.film.rate, options)
        context = self._video.codec_context
        context.width, context.height, context.pix_fmt = like.width, like.height, like.format.name
        context.sample_aspect_ratio = job.upright.pixel_shape
        context.colorspace, context.color_range = like.colorspace, like.color_range
        context.color_primaries, context.color_trc = like.color_primaries, like.color_trc
        context.time_base = self._tick_s
        context.flags |= Flags.frame_duration
        context.thread_count = 1
        self._audio: av.AudioStream | None = None
        self._played = 0
        if job.sound:
            self._audio = self._file.add_stream("aac", job.sound.rate, layout=job.sound.layout)
            self._audio.codec_context.bit_rate = AAC_BITS * job.sound.channels
            self._audio.codec_context.thread_count = 1

    def show(self, frame: av.VideoFrame, from_s: float, until_s: float) -> None:
        """Write a frame that is shown between two times; one of another size than the first is scaled to it."""
        frame.pts, frame.time_base = round(from_s / self._tick_s), self._tick_s
        frame.duration = round(until_s / self._tick_s) - frame.pts
        # Its type in the source would be an order to x264.
        frame.pict_type = 0
        self._file.mux(self._video.encode(frame))

    def play(self, samples: np.ndarray) -> None:
        """Write the next samples: float32 (channels, N)."""
        if self._audio is None or not samples.size:
            return
        context = self._audio.codec_context
        block = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), "fltp", context.layout)
        block.sample_rate, block.time_base = context.sample_rate, Fraction(1, context.sample_rate)
        block.pts = self._played
        self._played += samples.shape[1]
        self._file.mux(self._audio.encode(block))

    def close(self) -> None:
        """Write what the encoders still hold, and the index."""
        with self._file:
            for stream in filter(None, (self._video, self._audio)):
                self._file.mux(stream.encode(None))

    def abandon(self) -> None:
        """Let go of a file that is to be removed."""
        with suppress(*_FAULTS):  # why it is abandoned is known already
            self._file.close()

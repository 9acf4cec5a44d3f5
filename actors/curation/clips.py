"""Kept scenes as files: frame-exact mp4 with sound, JPEG frames, and WebDataset shards.

A film is decoded once, in order, for all its scenes. Nothing is copied from key frame to key frame: a clip holds the
frames from its start to before its end, each at its own presentation time, and the samples of sound that go with them.
"""

import math
import shutil
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, cast

import av
import cv2
import numpy as np
from av.codec.context import Flags
from av.container import InputContainer
from av.error import FFmpegError, InvalidDataError
from av.filter import Graph
from av.logging import set_level
from av.stream import Disposition

from actors.core.errors import BrokenRunError, UserError, machine_fault
from actors.core.stage import Row, Stage
from actors.media.film import ROUNDING_S, Beat, Film, FilmError, Picture, open_film
from actors.media.formats import open_container
from actors.media.images import encode_jpeg

AAC_RATES = (96_000, 88_200, 64_000, 48_000, 44_100, 32_000, 24_000, 22_050, 16_000, 12_000, 11_025, 8_000)
"""Samples per second that AAC knows; sound of another rate is resampled to 48,000."""
AAC_BITS = 80_000
"""Bits per second for each channel."""
SOUND_SLACK_S = 0.01
"""Sound is placed by counting samples, since containers round its times; where these differ by more, they are right."""
CLOCK_RESET_S = 1
"""Sound whose times go back this far has a clock that was set anew: like pictures, it goes on from where it was."""
FINE_TICK_S = Fraction(1, 10_000)
"""Clips count time in the ticks of their source, halved until they are at most this long."""

_FAULTS = (FFmpegError, OSError)
_FULL_RANGE = 2
_TURNS: tuple[tuple[tuple[str, str | None], ...], ...] = (
    (),
    (("transpose", "cclock"),),
    (("hflip", None), ("vflip", None)),
    (("transpose", "clock"),),
)


@dataclass(frozen=True)
class ClipsConfig(Stage):
    """How kept scenes are written."""

    workers: int = 0
    """Films exported at once over the whole cluster; 0: as many as the CPUs allow."""
    crf: int = 18
    """Quality of H.264, 0 to 51: 0 is lossless, 18 looks like the source, 51 is the worst. Higher makes files smaller.
    """
    preset: Literal["ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow"] = (
        "veryfast"
    )
    """Effort of x264: slower presets make smaller files and take more CPU time."""
    jpeg_quality: int = 92
    """Quality of JPEG frames, 1 to 100, where frames are written."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.crf <= 51 or not 1 <= self.jpeg_quality <= 100:
            raise UserError(f"export.crf must be from 0 to 51, export.jpeg_quality from 1 to 100: {self}")


def write_clips(
    source: str, wanted: list[Row], folder: str, config: ClipsConfig, frames_interval_ms: int | None
) -> Iterator[Row | None]:
    """Write scenes of a film as `<folder>/<scene_id>.mp4`; yield a row for each once it is whole; None: still alive.

    source: a local film. wanted: {scene_id, start_s, end_s}, the times of the scene's first frame and of the first one
    after it, as `cut` measured them. frames_interval_ms: also write sampled frames as JPEG, as shown (upright, square
    pixels), to `<folder>/frames/<scene_id>/<NNNN>.jpg`, numbered from 0000; None: no JPEGs.

    A clip is H.264 and, where the film has sound, AAC of the same length: mono, stereo or 5.1 (other layouts are mixed
    down to the next of these), silent where the film is. Pixels are upright; their shape and colour tags are kept, but
    RGB becomes BT.709. An odd last row or column of pixels is left out: 4:2:0 has even sides.

    A row: scene_id, path, frames (how many), frame_paths, error, message. A scene that cannot be had whole has an error
    code and leaves no file: `truncated`, `decode_error`, one of `open_film`, or `export_failed`. Raises BrokenRunError
    where the folder cannot be written to.
    """
    cv2.setNumThreads(1)
    set_level(None)
    lasting = [scene for scene in wanted if scene["start_s"] < scene["end_s"]]
    for scene in wanted:
        if not scene["start_s"] < scene["end_s"]:
            times = f"it is to last from {scene['start_s']} to {scene['end_s']} s"
            yield _row(scene, error="export_failed", message=times)
    waiting = deque(sorted(lasting, key=lambda scene: scene["start_s"]))
    live: list[_Clip] = []
    if not waiting:
        return
    try:
        yield from _cut(source, waiting, live, Path(folder), config, frames_interval_ms)
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
    source: str,
    waiting: deque[Row],
    live: "list[_Clip]",
    folder: Path,
    config: ClipsConfig,
    frames_interval_ms: int | None,
) -> Iterator[Row | None]:
    """Move scenes from `waiting` to `live` to written; where it raises, those that are left cannot be had whole."""
    film = open_film(source)
    beat = Beat()
    # Sound is read through a second door, in step with the pictures however far apart the two lie in the file.
    with open_container(source) as container:
        stream = next(s for s in container.streams.video if not s.disposition & Disposition.attached_pic)
        upright = _Upright(stream.sample_aspect_ratio or Fraction(1))
        sound = _Sound.of(container)
        job = _Job(folder, config, frames_interval_ms, film, upright, sound)
        until = 0.0
        for picture, until in _with_ends(film):
            while waiting and picture.time >= waiting[0]["start_s"] - ROUNDING_S:
                live.append(_Clip(waiting.popleft(), job))
            yield from beat
            if not live:
                if sound:
                    sound.skip(until)
                continue
            frame = upright(cast(Any, picture)._frame)
            samples = sound.take(picture.time, until) if sound else None
            for clip in tuple(live):
                try:
                    clip.add(picture, frame, until, samples)
                    row = clip.finished() if until >= clip.end_s - ROUNDING_S else None
                except FilmError as error:
                    row = clip.failed(error.code, str(error))
                except _FAULTS as error:
                    row = clip.failed("export_failed", f"the clip cannot be written: {error}")
                    if machine := machine_fault(error, writing=True):
                        raise BrokenRunError(f"clips cannot be written in {folder}: {machine}") from error
                if row:
                    live.remove(clip)
                    yield row
            if not waiting and not live:
                return
    code = "truncated" if film.truncated else "export_failed"
    raise FilmError(code, f"the film ends at {until:.3f} s, before the scene does")


def _with_ends(film: Film) -> Iterator[tuple[Picture, float]]:
    """The film's pictures, each with the time at which the next takes its place."""
    before = None
    for picture in film.pictures:
        if before:
            yield before, picture.time
        before = picture
    if before:
        yield before, before.time + (before.duration or film.step_s)


def _row(
    scene: Row, path: str = "", frames: int = 0, frame_paths: Iterable[str] = (), error: str = "", message: str = ""
) -> Row:
    return {
        "scene_id": scene["scene_id"],
        "path": path,
        "frames": frames,
        "frame_paths": list(frame_paths),
        "error": error,
        "message": message,
    }


class _Upright:
    """Makes frames as H.264 takes them: upright, 4:2:0 in 8 bits, with even sides."""

    def __init__(self, stored_shape: Fraction) -> None:
        self._stored_shape = stored_shape
        self.pixel_shape = stored_shape
        """Width of a pixel divided by its height in the latest frame."""
        self._source: tuple[Any, ...] = ()
        self._graph: Graph | None = None

    def __call__(self, frame: av.VideoFrame) -> av.VideoFrame:
        source = (frame.format.name, frame.width, frame.height, frame.rotation, frame.colorspace, frame.color_range)
        if source != self._source:
            self._source, self._graph = source, self._filters(frame)
        if self._graph is None:
            return frame
        self._graph.vpush(frame)
        return self._graph.vpull()

    def _filters(self, frame: av.VideoFrame) -> Graph | None:
        """The filters for frames like this one, or None where they are right as they are."""
        turns = round(frame.rotation / 90) % 4
        width, height = (frame.height, frame.width) if turns % 2 else (frame.width, frame.height)
        even = width // 2 * 2, height // 2 * 2
        self.pixel_shape = 1 / self._stored_shape if turns % 2 else self._stored_shape
        if frame.format.name in ("yuv420p", "yuvj420p") and not turns and even == (width, height):
            return None
        steps = [*_TURNS[turns], ("crop", f"{even[0]}:{even[1]}:0:0")]
        if frame.format.is_rgb:
            steps.append(("format", "yuv420p:color_spaces=bt709:color_ranges=tv"))
        else:
            full = frame.color_range == _FULL_RANGE or frame.format.name.startswith("yuvj")
            steps.append(("format", "yuvj420p" if full else "yuv420p"))
        graph = Graph()
        graph.threads = 1
        begin = graph.add(
            "buffer",
            video_size=f"{frame.width}x{frame.height}",
            pix_fmt=frame.format.name,
            time_base=str(frame.time_base),
            colorspace=str(frame.colorspace),
            range=str(frame.color_range),
        )
        graph.link_nodes(begin, *(graph.add(name, args) for name, args in steps), graph.add("buffersink"))
        graph.configure()
        return graph


class _Sound:
    """A film's sound as one line of samples from the start of the file, read as the pictures go by."""

    def __init__(self, container: InputContainer, stream: av.AudioStream) -> None:
        rate, channels = stream.codec_context.sample_rate, stream.codec_context.channels
        self.rate = rate if rate in AAC_RATES else 48_000
        self.channels = 6 if channels >= 6 else 1 if channels == 1 else 2
        self.layout = {1: "mono", 2: "stereo", 6: "5.1"}[self.channels]
        self._origin = (container.start_time or 0) / av.time_base
        self._decoded = self._decode(container, stream)
        self._blocks: deque[tuple[int, av.AudioFrame]] = deque()
        self._damage: deque[int] = deque()
        self._at: int | None = None

    @classmethod
    def of(cls, container: InputContainer) -> "_Sound | None":
        """The first sound of a film that a decoder knows; None where the film has none."""
        streams = container.streams.audio
        for stream in streams:
            if stream.codec_context is not None:
                return cls(container, stream)
        if streams:
            raise FilmError("unknown_codec", "no decoder knows the codec of its sound")
        return None

    def sample(self, time: float) -> int:
        """Number of the sample that is heard at that time."""
        return round(time * self.rate)

    def take(self, start_s: float, end_s: float) -> np.ndarray | None:
        """The sound between two times, float32 (channels, N), or None where it is damaged; starts never go back."""
        start, end = self.sample(start_s), self.sample(end_s)
        self._read(start, end)
        taken = np.zeros((self.channels, end - start), np.float32)
        for at, block in self._blocks:
            first, last = max(at, start), min(at + block.samples, end)
            if first < last:
                taken[:, first - start : last - start] = block.to_ndarray()[:, first - at : last - at]
        return None if self._damage and self._damage[0] < end else taken

    def skip(self, end_s: float) -> None:
        """Pass over the sound before that time."""
        end = self.sample(end_s)
        self._read(end, end)

    def _read(self, start: int, end: int) -> None:
        """Read on to the sample `end`, and forget what comes before `start`."""
        while (self._at is None or self._at < end) and (block := next(self._decoded, None)) is not None:
            self._place(block)
            while self._blocks and self._blocks[0][0] + self._blocks[0][1].samples <= start:
                self._blocks.popleft()
        while self._damage and self._damage[0] < start:
            self._damage.popleft()

    def _place(self, block: av.AudioFrame) -> None:
        at = self._at
        if block.time is not None:
            stamp = self.sample(block.time - self._origin)
            strays = at is not None and abs(stamp - at) > SOUND_SLACK_S * self.rate
            if at is None or (strays and stamp > at - CLOCK_RESET_S * self.rate):
                at = stamp
        at = at or 0
        self._blocks.append((at, block))
        self._at = at + block.samples

    def _decode(self, container: InputContainer, stream: av.AudioStream) -> Iterator[av.AudioFrame]:
        resampler, source = None, None
        for packet in container.demux(stream):
            try:
                frames = packet.decode()
            except InvalidDataError:
                self._damage.append(self._at or 0)
                continue
            for frame in frames:
                if frame.is_corrupt:
                    self._damage.append(self._at or 0)
                found = (frame.format.name, frame.layout.name, frame.sample_rate)
                if resampler is None or found != source:
                    yield from _rest(resampler)
                    source, resampler = found, av.AudioResampler("fltp", self.layout, self.rate)
                yield from resampler.resample(frame)
        yield from _rest(resampler)


def _rest(resampler: av.AudioResampler | None) -> Iterator[av.AudioFrame]:
    if resampler is not None:
        # One that has nothing to convert hands its None back.
        yield from filter(None, resampler.resample(None))


@dataclass(frozen=True)
class _Job:
    """What the clips of one film share."""

    folder: Path
    config: ClipsConfig
    interval_ms: int | None
    film: Film
    upright: _Upright
    sound: _Sound | None


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
        self._frames = 0
        self._file: _Mp4 | None = None

    def add(self, picture: Picture, frame: av.VideoFrame, until: float, samples: np.ndarray | None) -> None:
        """Write a picture, whose upright frame is shown until that time, with its sound, float32 (channels, N)."""
        sound = self._job.sound
        if picture.damaged:
            raise FilmError("decode_error", f"the frame at {picture.time:.3f} s is damaged")
        if sound and samples is None:
            raise FilmError("decode_error", f"the sound at {picture.time:.3f} s is damaged")
        if self._file is None:
            if abs(picture.time - self._scene["start_s"]) > ROUNDING_S:
                found = f"the frame nearest to {self._scene['start_s']:.3f} s is at {picture.time:.3f} s"
                raise FilmError("export_failed", f"{found}: this is not the film that was measured")
            self._start = picture.time
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = _Mp4(self._path, frame, self._job)
        until = min(until, self.end_s)
        self._file.show(frame, picture.time - self._start, until - self._start)
        if sound and samples is not None:
            self._file.play(samples[:, : sound.sample(until) - sound.sample(picture.time)])
        self._frames += 1
        if self._job.interval_ms:
            self._sample(picture, self._job.interval_ms)

    def _sample(self, picture: Picture, interval_ms: int) -> None:
        passed = (picture.time - self._start + ROUNDING_S) * 1000 / interval_ms
        if passed < self._due:
            return
        self._due = math.floor(passed) + 1
        shown = picture.scaled(self._job.film.width, self._job.film.height)
        path = self._stills / f"{len(self._still_paths):04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_jpeg(shown, self._job.config.jpeg_quality))
        self._still_paths.append(str(path))

    def finished(self) -> Row:
        """Close the files; the scene's row."""
        assert self._file
        self._file.close()
        return _row(self._scene, str(self._path), self._frames, self._still_paths)

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
        options = {"crf": str(job.config.crf), "preset": job.config.preset, "bf": "0"}
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

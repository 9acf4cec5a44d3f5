"""A scene while the frames of its film pass: sampled, divided where it is too long, and measured on its pixels."""

import math
from bisect import bisect_left
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

import cv2
import numpy as np

from actors.core.computed import COMPUTED
from actors.core.errors import UserError
from actors.core.stage import Row
from actors.curation.cutting.keyframes import KEY_FRAMES, Held, KeyFrames
from actors.curation.cutting.stills import Still, Stills
from actors.curation.features.codec_motion import CodecMotion, Moved, codec_speeds
from actors.curation.features.motion import BY_FARNEBACK, BY_VECTORS, FLOWS, MotionConfig, rgb_differences
from actors.curation.features.perceptual_hash import scene_hash
from actors.media.bars import NO_BARS, Bars
from actors.media.film import ROUNDING_S, Film, Picture
from actors.media.images import encode_jpeg
from actors.media.shown import NOT_KNOWN, Look

FEATURES = ("max_rgb_diff", "mean_rgb_diff", "max_velocity", "mean_velocity", "mse", "cos_sim", "no_frames")
"""The seven features, in the order that a classifier expects."""


@dataclass(frozen=True)
class FramesConfig:
    """Which frames of a scene are sampled."""

    interval_ms: int = 250
    """Milliseconds between sampled frames, counted from the scene's own start; at least 1. Features depend on it."""
    size: int = 240
    """Side of sampled frames in pixels, at least 16: scaled to this short side, then cropped to a square about the
    centre. Features depend on it; smaller is faster."""
    crop_bars: bool | None = None
    """Cut off black bars (letterbox, pillarbox) before frames are scaled: features, hash and thumbnail are of what is
    inside. null: true, or what the output was begun with (false in those of earlier versions)."""
    deinterlace: bool | None = None
    """Deinterlace frames whose two fields are of two times (FFmpeg's bwdif, one frame for each), for features and
    clips. null: true, or what the output was begun with (false in those of earlier versions)."""
    color_managed: bool | None = None
    """Take colours as an SDR screen shows them, for features and clips: HDR (PQ, HLG) is tone-mapped to BT.709, and
    film that names no matrix is BT.709 from 1280 pixels of width or 577 lines on. null: true, or what the output was
    begun with (false in those of earlier versions)."""
    keyframes: int = 512
    """Key frames (first, middle and last sampled frame of each scene) are stored in keyframes/ with a short side of at
    most so many pixels, at least 16, never enlarged, so that captions and their evaluation open no film; black bars are
    cut off by `crop_bars`. 0: none are stored."""
    min: int = 4
    """Fewest sampled frames of a scene that may be kept, at least 2; shorter scenes are dropped as too_short."""
    max: int = 60
    """Most sampled frames of a scene that may be kept. Longer scenes are dropped as too_long and not measured, so that
    the frames of a row stay below 10 MB."""

    def __post_init__(self) -> None:
        if self.interval_ms < 1 or self.size < 16 or not 2 <= self.min <= self.max:
            raise UserError(f"frames: interval_ms must be at least 1, size at least 16, and 2 <= min <= max: {self}")
        if self.keyframes and self.keyframes < 16:
            raise UserError(f"frames.keyframes={self.keyframes}: set at least 16, or 0 for none")

    @property
    def look(self) -> Look:
        """What is done to frames."""
        managed = self.color_managed is not False
        return Look(self.deinterlace is not False, tone_map=managed, hd_matrix=managed)


@dataclass(frozen=True)
class WindowsConfig:
    """How shots that are too long to be one scene are divided."""

    length_s: float | None = None
    """Seconds of a window, at most frames.max samples; null: frames.max samples, or what the output was begun with.
    0: shots are not divided, and dropped as too_long."""
    overlap_s: float = 0
    """Seconds that a window shares with the one before it, less than its length."""
    named: bool = False
    """Also divide scenes that metadata names, where they have more than frames.max samples. They keep a row of their
    own, which is too_long."""

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
    named: bool = False
    """Whether scenes that metadata names are divided, too."""


UNDIVIDED = Windows(0, 0, 0)
"""Each shot is one scene."""


@dataclass(slots=True)
class _Sample:
    """A sampled frame, and what is known of the pictures from it to before the next one."""

    time: float
    still: Still
    shown: float
    """When the latest of its pictures came."""
    longest_hold: float = 0.0
    pictures: int = 0
    damaged: int = 0
    interlaced: int = 0
    deinterlaced: bool = False
    cuts: list[float] = field(default_factory=list)
    """When shots end, in seconds."""
    moved: Moved = field(default_factory=Moved)
    """What motion vectors say of the time to the next one."""


class Scene:
    """A scene while its frames pass: samples them, and becomes a row at its end, or one for each of its windows."""

    def __init__(
        self, film: Film, config: FramesConfig, motion: MotionConfig, about: Row, windows: Windows = UNDIVIDED
    ) -> None:
        self._film, self._config, self._motion, self._about = film, config, motion, about
        self._windows = windows
        self._stills = Stills(film, config.size, crop=config.crop_bars is not False)
        self._keys = KeyFrames(film, config.keyframes, config.max, windows)
        self._vectors = CodecMotion() if motion.by_codec else None
        self._start = math.nan
        self._due = 0
        self._samples: list[_Sample] = []
        self.count = 0
        """How many scenes it has become so far."""
        self.trimmed_before_s = self.trimmed_after_s = 0.0
        """Seconds of a transition that are left out before and after it."""

    @property
    def begun(self) -> bool:
        """Whether it has a picture."""
        return bool(self._samples)

    def add(self, picture: Picture, from_s: float = -math.inf, cut: bool = False) -> None:
        """Take a picture; from_s: when the scene begins, where it begins while the picture is held.

        cut: the picture is the first after a cut, inside the scene unless it is its own first.
        """
        cut &= self.begun
        time = max(picture.time, from_s)
        if self._samples:
            self._samples[-1].longest_hold = max(self._samples[-1].longest_hold, time - self._samples[-1].shown)
        else:
            self._start = time
        passed = (time - self._start + ROUNDING_S) * 1000 / self._config.interval_ms
        if passed >= self._due:
            self._due = math.floor(passed) + 1
            self._samples.append(_Sample(time, self._still(picture), time))
            self._keys.add(picture)
            self._samples[-1].deinterlaced = picture.deinterlaced
        # Of a scene that is too long nothing is measured.
        if self._vectors and (self._windows.samples or not self.too_long):
            self._vectors.add(picture, time, self._samples)
        sample = self._samples[-1]
        sample.shown = time
        sample.pictures += 1
        if cut:
            sample.cuts.append(time)
        sample.damaged += picture.damaged
        sample.interlaced += picture.interlaced

    def _still(self, picture: Picture) -> Still:
        # Of a scene that is too long anyway one frame is enough, for its thumbnail.
        if not self._windows.samples and len(self._samples) >= self._config.max:
            if len(self._samples) == self._config.max:
                for sample in self._samples[1:]:
                    sample.still = Still(sample.still.lines)
            return Still(picture.lines())
        return self._stills.take(picture)

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
                # Where a hold ends a window, the overlap may be longer than what is left.
                if not error and half < left and left - count < self._windows.rest <= left + overlap - half:
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
        keys = self._keys.of(count)
        about = dict(self._about)
        if self.count or not last:
            about |= {name: f"{about[name]}_w{self.count}" for name in ("clip_id", "scene_id")}
            about |= {"ordinal": about["ordinal"] + self.count, "window": self.count}
        about["trimmed_before_s"] = 0.0 if self.count else self.trimmed_before_s
        about["trimmed_after_s"] = self.trimmed_after_s if last else 0.0
        passed = count if last else max(1, count - self._windows.overlap)
        self._samples = self._samples[passed:]
        self._keys.forget(passed)
        self._stills.forget([sample.still for sample in self._samples])
        self.count += 1
        if about["scene_id"] not in skip:
            yield self._row(about, samples, keys, end_s, error, message)

    @property
    def too_long(self) -> bool:
        """Whether it has more samples than may be kept, so far."""
        return len(self._samples) > self._config.max

    def row(self, end_s: float, error: str = "", message: str = "") -> Row:
        """The scene's row; with an error code where it could not be had whole."""
        return self._row(self._about, self._samples, self._keys.of(len(self._samples)), end_s, error, message)

    def _row(self, about: Row, samples: list[_Sample], keys: list[Held], end_s: float, error: str, message: str) -> Row:
        damaged = sum(sample.damaged for sample in samples)
        if not error and damaged:
            error, message = "decode_error", f"{damaged} of its frames are damaged"
            if self._film.outgrown:
                error, message = "too_large", f"{damaged} of its frames are larger than max_pixels, or damaged"
        row = scene_row(about, error, message)
        row |= {name: about[name] for name in ("window", "trimmed_before_s", "trimmed_after_s") if name in about}
        row["cuts_inside"] = ",".join(f"{time:.3f}" for sample in samples for time in sample.cuts)
        row |= {"start_s": samples[0].time, "end_s": end_s, "width": self._film.width, "height": self._film.height}
        row["longest_hold_s"] = max(end_s - samples[-1].shown, *(sample.longest_hold for sample in samples))
        row["clock_jumps"] = self._film.jumps_before(end_s)
        row["interlaced"] = 2 * sum(sample.interlaced for sample in samples) > sum(
            sample.pictures for sample in samples
        )
        done = ("deinterlaced",) if any(sample.deinterlaced for sample in samples) else ()
        row |= {**self._film.stored._asdict(), "converted": ",".join((*self._film.converted, *done))}
        stills = [sample.still for sample in samples]
        bars, images = self._stills.measured(stills)
        row |= {f"bar_{side}": lines for side, lines in bars._asdict().items()}
        row["thumbnail"] = _thumbnail(images[len(images) // 2])
        if error:
            return row
        row["no_frames"] = len(samples)
        row |= self._keys.files(keys, bars if self._config.crop_bars is not False else NO_BARS)
        if 2 <= len(samples) <= self._config.max:
            frames = np.stack(images)
            differences = rgb_differences(frames)
            row |= {"max_rgb_diff": differences.max(), "mean_rgb_diff": differences.mean(), "frames": frames}
            row["phash"] = scene_hash(frames)
            row |= self._velocities(samples, frames, bars)
        return row

    def _velocities(self, samples: list[_Sample], frames: np.ndarray, bars: Bars) -> Row:
        """What optical flow adds to a row where it is measured on a CPU."""
        flow, row = self._motion.flow, {}
        if self._motion.by_codec:
            cut_off = bars if self._config.crop_bars is not False else NO_BARS
            speeds = codec_speeds(samples, self._film, cut_off, self._config.size)
            known = speeds[np.isfinite(speeds)]
            if 2 * len(known) >= len(speeds):
                return {"max_velocity": known.max(), "mean_velocity": known.mean(), COMPUTED: BY_VECTORS}
            flow, row = "farneback", {COMPUTED: BY_FARNEBACK}
        if flow in FLOWS:
            speeds = FLOWS[flow](frames)
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
        "trimmed_before_s": 0.0,
        "trimmed_after_s": 0.0,
        "cuts_inside": "",
        **{f"bar_{side}": 0 for side in NO_BARS._fields},
        **NOT_KNOWN._asdict(),
        "converted": "",
        COMPUTED: "",
        "phash": None,
        "frames": None,
        "thumbnail": b"",
        **dict.fromkeys(KEY_FRAMES, b""),
        "error": error,
        "message": message,
    }


def named_by(scene: Row) -> Row:
    """What names a scene of the metadata."""
    return {name: scene[name] for name in ("clip_id", "scene_id", "ordinal", "caption")}


def _thumbnail(frame: np.ndarray) -> bytes:
    small = cv2.resize(frame, (120, 120), interpolation=cv2.INTER_AREA)
    return encode_jpeg(small, quality=80)

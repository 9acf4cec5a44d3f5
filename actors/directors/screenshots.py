"""Screenshots of a film: different frames at random times, by seeking where the container has an index for that."""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import av.logging
import cv2
import numpy as np
from av.error import FFmpegError

from actors.core.errors import UserError
from actors.core.stage import Row, Stage
from actors.media.film import Beat, Film, FilmError, Picture, in_shots, open_film
from actors.media.images import encode_jpeg
from actors.media.shots import ShotsConfig

AHEAD_S = 2.0
"""What lies so close ahead is decoded rather than sought."""
ROUNDS = 6
"""How often times are drawn for those at which there was no new or no sound frame."""


@dataclass(frozen=True)
class ScreenshotsConfig(Stage):
    """Which frames of a film, and how they are stored."""

    workers: int = 0
    """Films decoded at once; 0: as many as there are CPUs for."""
    per_film: int = 30
    """Frames of each film; all that there are where it has fewer."""
    begin: float = 0.15
    """Share of the film's length before which none is taken."""
    end: float = 0.85
    """Share of the film's length after which none is taken."""
    side: int = 480
    """A frame whose short side is longer, in pixels, is scaled down to it; its shape stays."""
    quality: int = 92
    """Of the JPEG, to 100."""
    shots: bool = False
    """Decode all of each film to tell how long the shot of each frame lasts."""
    seed: int = 0
    """Of the times; each film has its own."""
    stall_s: float = 120
    """A film whose decoding shows no progress for this long is given up."""
    timeout_s: float = 4 * 3600
    """A film whose decoding takes longer than this in all is given up."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.per_film < 1 or self.side < 16 or not 1 <= self.quality <= 100 or self.seed < 0:
            raise UserError(f"per_film from 1, side from 16, quality 1 to 100, seed from 0: {self}")
        if not 0 <= self.begin < self.end <= 1:
            raise UserError(f"0 <= begin < end <= 1, not {self.begin} and {self.end}")


def screenshots(uri: str, name: str, config: ScreenshotsConfig) -> Iterator[Row | None]:
    """Yield a row for each screenshot of a film, or one with an error and no picture; None: alive.

    A row has time_s, frame (its number from 0, counted where all of the film is decoded, else from its time and the
    average rate), shot_s (NaN where not asked for), jpeg, error, message. The same file, name and settings give the
    same rows.

    uri: a path or s3://, of which is read what is decoded. name: the film's, from which its times are drawn.
    """
    cv2.setNumThreads(1)
    av.logging.set_level(None)
    digest = hashlib.blake2b(name.encode(), digest_size=8, key=str(config.seed).encode()).digest()
    random = np.random.default_rng(int.from_bytes(digest))
    try:
        film = open_film(uri)
        rows: list[Row] | None = None
        if film.seek and film.duration_s and not config.shots:
            rows = yield from _sought(film, config, random)
        if rows is None:
            rows = yield from _counted(uri, config, random)
        if not rows:
            raise FilmError("decode_error", "all of the frames that were looked at are damaged")
        yield from sorted(rows, key=lambda row: row["time_s"])
    except FilmError as error:
        yield _failed(error.code, str(error))
    except FileNotFoundError:
        yield _failed("not_found", f"there is no {uri}")
    except PermissionError as error:
        yield _failed("forbidden", str(error))


def _failed(code: str, message: str) -> Row:
    return {"time_s": math.nan, "frame": -1, "shot_s": math.nan, "jpeg": b"", "error": code, "message": message}


def _sought(film: Film, config: ScreenshotsConfig, random: np.random.Generator) -> Any:
    """Rows of frames that were sought; None where a time was not found, so that all has to be decoded."""
    if film.truncated:
        raise FilmError("truncated", "the film breaks off before its declared end")
    assert film.seek and film.duration_s
    step, beat = film.step_s, Beat()
    low, high = config.begin * film.duration_s, config.end * film.duration_s
    # Each place holds about one frame, so that few are drawn twice.
    places = random.permutation(max(1, math.floor((high - low) / step)))
    rows: dict[float, Row] = {}
    for _ in range(ROUNDS):
        drawn, places = np.split(places, [config.per_film - len(rows)])
        pictures: Iterator[Picture] = iter(())
        now = -math.inf
        for time in low + (np.sort(drawn) + 0.5) * min(step, high - low):
            if now > time - step:
                continue
            try:
                if time - now > AHEAD_S:
                    pictures = film.seek(time)
                for picture in pictures:
                    now = picture.time
                    yield from beat
                    if now > time - step:
                        break
                else:
                    return None
            except FFmpegError:
                return None
            if not picture.damaged and now not in rows:
                rows[now] = _row(film, picture, round(now / step), math.nan, config)
        if len(rows) == config.per_film or not len(places):
            break
    return list(rows.values())


def _counted(uri: str, config: ScreenshotsConfig, random: np.random.Generator) -> Any:
    """Rows of frames of a film that is decoded twice: first to know when its frames are shown, then for their sake."""
    film, beat = open_film(uri), Beat()
    times: list[float] = []
    shots: list[int] = []
    sound: list[bool] = []
    end = 0.0
    for shot, picture in in_shots(film, ShotsConfig() if config.shots else ShotsConfig("none")):
        times.append(picture.time)
        shots.append(shot)
        sound.append(not picture.damaged)
        end = picture.time + (picture.duration or film.step_s)
        yield from beat
    if film.truncated:
        raise FilmError("truncated", f"the film breaks off at {end:.3f} s, before its declared end")
    ends = np.array([*times[1:], end])
    there = (ends > config.begin * end) & (np.array(times) < config.end * end)
    found = np.flatnonzero(there & np.array(sound))
    chosen = set(random.choice(found, min(config.per_film, len(found)), replace=False).tolist())
    edges = [times[shots.index(shot)] for shot in range(shots[-1] + 1)] + [end]
    film = open_film(uri)
    rows = []
    for number, picture in enumerate(film.pictures):
        yield from beat
        if number in chosen:
            length = edges[shots[number] + 1] - edges[shots[number]] if config.shots else math.nan
            rows.append(_row(film, picture, number, length, config))
            if len(rows) == len(chosen):
                break
    return rows


def _row(film: Film, picture: Picture, number: int, shot_s: float, config: ScreenshotsConfig) -> Row:
    shrink = min(1.0, config.side / min(film.width, film.height))
    image = picture.scaled(max(1, round(film.width * shrink)), max(1, round(film.height * shrink)))
    about = {"time_s": picture.time, "frame": number, "shot_s": shot_s}
    return {**about, "jpeg": encode_jpeg(image, config.quality), "error": "", "message": ""}

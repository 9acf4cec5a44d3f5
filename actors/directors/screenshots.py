"""Screenshots of a film: different frames at random times, by seeking where the container has an index for that."""

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import av.logging
import cv2
import numpy as np
import pyarrow as pa
from av.error import FFmpegError

from actors.core import storage
from actors.core.addresses import AddressError
from actors.core.child import CHILD, DECODE_ATTEMPTS, ChildFault
from actors.core.errors import UserError
from actors.core.stage import Batch, Row
from actors.core.store import Store
from actors.media.film import Beat, Film, FilmError, Picture, open_film
from actors.media.images import encode_jpeg
from actors.media.limits import FilmStage
from actors.media.shot_detection.in_shots import in_shots
from actors.media.shot_detection.shots import BETWEEN, ShotsConfig

AHEAD_S = 2.0
"""A time at most this many seconds ahead is reached by decoding, not by seeking."""
ROUNDS = 6
"""How often times are drawn again for those without a new, sound frame."""
SCREENSHOTS = pa.schema(
    [
        ("director", pa.string()),
        ("film", pa.string()),
        ("uri", pa.string()),
        ("time_s", pa.float64()),
        ("frame", pa.int64()),
        ("shot_s", pa.float64()),
        ("path", pa.string()),
        ("error", pa.string()),
        ("message", pa.string()),
        ("settings", pa.string()),
    ]
)
"""One row per screenshot; a film without any has one row, with an error."""


@dataclass(frozen=True)
class ScreenshotsConfig(FilmStage):
    """Which frames of a film are taken, and how they are stored."""

    workers: int = 0
    """Films decoded at once over the whole cluster; 0: as many as there are CPUs for."""
    per_film: int = 30
    """Screenshots of each film, from 1; a film with fewer frames gives all of them."""
    begin: float = 0.15
    """Start of the part of each film that is sampled, as a share of its length; 0.15 skips opening credits."""
    end: float = 0.85
    """End of the part of each film that is sampled, as a share of its length; 0.85 skips end credits."""
    side: int = 480
    """Longest short side of a screenshot in pixels, from 16; larger frames are scaled down, in their own shape."""
    quality: int = 92
    """JPEG quality, 1 to 100; lower values make smaller files and lose fine texture."""
    shots: bool = False
    """Also measure how long the shot of each screenshot lasts (shot_s). Decodes each film whole, which takes longer."""
    seed: int = 0
    """Seed of the random times. Together with a film's name it decides which of its frames are taken."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.per_film < 1 or self.side < 16 or not 1 <= self.quality <= 100 or self.seed < 0:
            raise UserError(
                f"screenshots: per_film from 1, side from 16, quality 1 to 100, seed from 0, not {self.per_film}, "
                f"{self.side}, {self.quality}, {self.seed}"
            )
        if self.num_gpus:
            raise UserError(f"screenshots.num_gpus={self.num_gpus:g}: films are decoded on CPUs here; set 0")
        if not 0 <= self.begin < self.end <= 1:
            raise UserError(f"screenshots: 0 <= begin < end <= 1 must hold, not begin {self.begin} and end {self.end}")


def settings_key(config: ScreenshotsConfig) -> str:
    """The settings that decide which frames a film's screenshots are, as JSON."""
    names = ("per_film", "begin", "end", "side", "quality", "shots", "seed")
    return json.dumps({name: getattr(config, name) for name in names})


def sample_films(batch: Batch, config: ScreenshotsConfig, output: str) -> Batch:
    """Take the screenshots of the films of a batch and write them below the output.

    Reads:    director, film, uri  str (N,)
    Returns:  screenshots  int (N,), how many were written of each film

    A film is done when its part of screenshots/ exists, which is written after its pictures.
    """
    store = Store(output)
    counts = []
    for director, film, uri in zip(batch["director"], batch["film"], batch["uri"], strict=True):
        about = {"director": str(director), "film": str(film), "uri": str(uri), "settings": settings_key(config)}
        rows = _screenshots(about, config)
        for row in rows:
            row |= about
            row["path"] = ""
            if not row["error"]:
                row["path"] = f"{director}/{film}.{round(row['time_s'] * 1000):08d}.jpg"
                storage.write_bytes(store.uri(row["path"]), row["jpeg"])
        table = pa.Table.from_pylist([{name: row[name] for name in SCREENSHOTS.names} for row in rows], SCREENSHOTS)
        store.write_part("screenshots", table, [about["director"], about["film"], about["uri"]])
        counts.append(sum(not row["error"] for row in rows))
    return {"screenshots": np.array(counts)}


def _screenshots(about: Row, config: ScreenshotsConfig) -> list[Row]:
    name = f"{about['director']}/{about['film']}"
    again: dict[str, Any] = {"attempts": DECODE_ATTEMPTS, "key": itemgetter("time_s")}
    try:
        return list(CHILD.stream(screenshots, about["uri"], name, config, **config.limits, **again))
    except ChildFault as fault:
        nothing = {"time_s": math.nan, "frame": -1, "shot_s": math.nan}
        return [{**nothing, "error": fault.code, "message": str(fault)}]


def screenshots(uri: str, name: str, config: ScreenshotsConfig) -> Iterator[Row | None]:
    """Yield a row for each screenshot of a film, or one with an error and no picture; None: alive.

    A row has time_s, frame (its number from 0, counted where all of the film is decoded, else from its time and the
    average rate), shot_s (NaN where not asked for), jpeg, error, message. The same file, name and settings give the
    same rows.

    uri: a path or s3://; only what is decoded is read. name: of the film; seeds the random times.
    """
    cv2.setNumThreads(1)
    av.logging.set_level(None)
    digest = hashlib.blake2b(name.encode(), digest_size=8, key=str(config.seed).encode()).digest()
    random = np.random.default_rng(int.from_bytes(digest))
    try:
        film = open_film(uri, max_pixels=config.max_pixels)
        rows: list[Row] | None = None
        if film.seek and film.duration_s and not config.shots:
            rows = yield from _sought(film, config, random)
        if rows is None:
            rows = yield from _counted(uri, config, random)
        if not rows:
            raise FilmError("decode_error", "every frame that was decoded is damaged")
        yield from sorted(rows, key=lambda row: row["time_s"])
    except FilmError as error:
        yield _failed(error.code, str(error))
    except FileNotFoundError:
        yield _failed("not_found", f"{uri} does not exist")
    except PermissionError as error:
        yield _failed("forbidden", str(error))
    except AddressError as error:
        yield _failed("bad_url", str(error))


def _failed(code: str, message: str) -> Row:
    return {"time_s": math.nan, "frame": -1, "shot_s": math.nan, "jpeg": b"", "error": code, "message": message}


def _sought(film: Film, config: ScreenshotsConfig, random: np.random.Generator) -> Any:
    """Rows of frames reached by seeking; None where a seek failed, so that the whole film has to be decoded."""
    if film.truncated:
        raise FilmError("truncated", "the film ends before its declared end")
    assert film.seek and film.duration_s
    step, beat = film.step_s, Beat()
    low, high = config.begin * film.duration_s, config.end * film.duration_s
    # One place per frame, so that few frames are drawn twice.
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
    """Rows of frames of a film that is decoded twice: once for the times of its frames, once for the chosen ones."""
    film, beat = open_film(uri, max_pixels=config.max_pixels), Beat()
    times: list[float] = []
    shots: list[int] = []
    sound: list[bool] = []
    end = 0.0
    for shot, picture in in_shots(film, ShotsConfig() if config.shots else ShotsConfig("none")):
        times.append(picture.time)
        shots.append(shot)
        sound.append(not picture.damaged)
        end = picture.until
        yield from beat
    if film.truncated:
        raise FilmError("truncated", f"the film ends at {end:.3f} s, before its declared end")
    ends = np.array([*times[1:], end])
    there = (ends > config.begin * end) & (np.array(times) < config.end * end)
    found = np.flatnonzero(there & np.array(sound) & (np.array(shots) != BETWEEN))
    chosen = set(random.choice(found, min(config.per_film, len(found)), replace=False).tolist())
    edges = [times[shots.index(shot)] for shot in range(max(shots) + 1)] + [end]
    film = open_film(uri, max_pixels=config.max_pixels)
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

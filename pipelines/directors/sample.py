"""Take screenshots of films by director, and read a folder of screenshots.

A folder of screenshots holds <director>/<film>.<milliseconds>.jpg; manifest.csv with film, director, time and frame of
each; rejected/ with the films without screenshots and the reason; and screenshots/, which resume reads.
A folder without a manifest is read as <director>/<film>/<image>, or as <director>/<image>, whose films are unknown
unless a separator ends the film's name in the names of pictures.
"""

import csv
import io
import logging
import math
import posixpath
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from actors.core import storage
from actors.core.csv_tables import read_csv_rows
from actors.core.errors import UserError
from actors.core.stage import Row, Stage
from actors.core.storage import Entry
from actors.core.store import Store
from actors.directors.screenshots import SCREENSHOTS, ScreenshotsConfig, sample_films, settings_key
from actors.media.archives import unpacked
from actors.media.film import VIDEO_SUFFIXES
from actors.media.images import images_among, natural
from pipelines.core.progress import Progress, tracked
from pipelines.core.ray_data import batches, fitted, ray_task, set_context

log = logging.getLogger(__name__)

MANIFEST = "manifest.csv"
COLUMNS = ("film", "director", "time_s", "frame", "path")
"""Columns of the manifest; `shot_s` follows where it was measured. path: relative to the manifest."""
CAMERA = (
    "shot_scale",
    *("camera_static", "camera_push", "camera_pull"),
    *("camera_pan", "camera_tilt", "camera_zoom", "camera_shake"),
)
"""What may be known of a picture's shot beside its length.

shot_scale: 0 extreme close-up to 4 long shot; camera_static, _push, _pull: 0 to 1, share of time (of annotations 0 or
1); camera_pan, _tilt, _zoom, _shake: as `camera` of curation measures them.
"""
RESERVED = frozenset(("explore", "features", "rejected", "runs", "screenshots"))
"""Names that a director's folder cannot have, because other outputs use them."""
REJECTED = pa.schema([(name, pa.string()) for name in ("director", "film", "uri", "error", "message")])


@dataclass(frozen=True)
class SampleConfig:
    """Settings of `sample`."""

    input: str = ""
    """Films: a folder or prefix with one folder of films per director; or a table (.csv, .parquet) with columns path,
    director and, optionally, film. A relative path starts at the table's folder."""
    output: str = ""
    """Where the screenshots go: a path or s3://bucket/prefix."""
    screenshots: ScreenshotsConfig = field(default_factory=ScreenshotsConfig)
    """Which frames of each film are taken, how many, and how they are stored."""
    autoscaling: bool = False
    """Request as many workers as set, for a cluster that grows on demand; false: scale them to what the cluster has."""

    def __post_init__(self) -> None:
        if not self.input or not self.output:
            raise UserError("input and output are required: set input=FILMS output=SCREENSHOTS")


@dataclass(frozen=True)
class SamplePlan:
    """Films of the input, and those still to do."""

    films: list[Row]
    """All films: director, film, uri, and error and message, both "" where the film can be tried."""
    todo: list[Row]
    """Films without screenshots that can be tried."""

    @property
    def bad(self) -> int:
        """How many films cannot be tried."""
        return sum(bool(film["error"]) for film in self.films)

    @property
    def directors(self) -> int:
        """How many directors the other films have."""
        return len({film["director"] for film in self.films if not film["error"]})

    def tasks(self, config: SampleConfig) -> dict[str, Stage]:
        """Task stages by name."""
        return {"screenshots": config.screenshots}


def read_film_list(input: str) -> Iterator[Row]:
    """Films with their directors in the order of the input, each director, film, uri, error, message.

    A film without a usable director or name has an error code: no_path, no_director, bad_name, duplicate_id.
    """
    seen: dict[tuple[str, str], str] = {}
    for director, film, uri in _listed(input):
        about = {"director": director, "film": film, "uri": uri}
        code, message = _named(director, film) if uri else ("no_path", "the row has no path")
        if not code and (first := seen.setdefault((director, film), uri)) != uri:
            code, message = "duplicate_id", f"{first} has the same director and name: rename one"
        yield {**about, "error": code, "message": message}


def _listed(input: str) -> Iterator[tuple[str, str, str]]:
    input = storage.absolute(input)
    if input.lower().endswith((".csv", ".parquet")):
        folder = input.rpartition("/")[0]
        for row in _table(input):
            path = row["path"] or ""
            absolute = "://" in path or path.startswith("/")
            uri = path if absolute or not path else f"{folder}/{path}"
            yield row["director"] or "", row.get("film") or posixpath.splitext(posixpath.basename(path))[0], uri
        return
    for entry in storage.listing(input, tuple(VIDEO_SUFFIXES), as_input=True):
        director, slash, name = entry.name.partition("/")
        yield director if slash else "", posixpath.splitext(name if slash else director)[0], entry.uri


def _table(uri: str) -> Iterable[Row]:
    if not uri.lower().endswith(".parquet"):
        return [row for _, row in read_csv_rows(uri, ("path", "director"))]
    try:
        rows = pq.read_table(io.BytesIO(storage.read_bytes(uri))).to_pylist()
    except pa.ArrowInvalid as error:
        raise UserError(f"{uri} cannot be read: {error}") from error
    if missing := {"path", "director"} - set(rows[0] if rows else ()):
        raise UserError(f"{uri} has no column {', '.join(sorted(missing))}, or no row. It must list path and director.")
    return rows


def _named(director: str, film: str) -> tuple[str, str]:
    """Error code and message for names that cannot become a folder and a file; two empty strings for usable ones."""
    if not director:
        return "no_director", "the film is in no director's folder, or its row has no director"
    if "/" in director or director in {".", "..", *RESERVED}:
        return "bad_name", f"{director!r} cannot name a folder of screenshots: use another name"
    parts = film.split("/")
    if not all(parts) or {".", ".."} & set(parts) or "\0" in director + film:
        return "bad_name", f"{film[:80]!r} cannot name a file: it has empty or dotted parts, or a NUL"
    if max(len(part.encode()) for part in (director, *parts)) > 200:
        return "bad_name", f"{film[:80]!r} cannot name a file: it, or its folder, has more than 200 bytes. Shorten it."
    return "", ""


def plan_sample(config: SampleConfig) -> SamplePlan:
    """Films to do; raises UserError where there are none, or where the output was made with other settings."""
    films = list(read_film_list(config.input))
    if not films:
        suffixes = " ".join(sorted(VIDEO_SUFFIXES))
        raise UserError(f"{config.input} has no films. It must hold one folder of films ({suffixes}) per director.")
    settings = settings_key(config.screenshots)
    done = set()
    for row in Store(config.output).read_table("screenshots", SCREENSHOTS).to_pylist():
        if row["settings"] != settings:
            raise UserError(
                f"{config.output} has screenshots taken with {row['settings']}, not {settings}. Use another output."
            )
        # Failed films are tried again: the file may have been repaired.
        if not row["error"]:
            done.add((row["director"], row["film"], row["uri"]))
    todo = [film for film in films if not film["error"] and (film["director"], film["film"], film["uri"]) not in done]
    return SamplePlan(films, todo)


def sample(config: SampleConfig, plan: SamplePlan) -> dict[str, Any]:
    """Take the missing screenshots and write the manifest; returns rows, stages and screenshots for the run record."""
    store, started = Store(config.output), time.monotonic()
    taken = take(config, plan.todo) if plan.todo else 0
    seconds = time.monotonic() - started
    ours = {(film["director"], film["film"], film["uri"]) for film in plan.films if not film["error"]}
    rows = [
        row
        for row in store.read_table("screenshots", SCREENSHOTS).to_pylist()
        if (row["director"], row["film"], row["uri"]) in ours
    ]
    sound = [row for row in rows if not row["error"]]
    bad = [film for film in plan.films if film["error"]] + [row for row in rows if row["error"]]
    table = [{name: row[name] for name in REJECTED.names} for row in bad]
    store.replace_table("rejected", [pa.Table.from_pylist(table, REJECTED)])
    storage.write_bytes(store.uri(MANIFEST), _manifest(sound))
    return {
        "rows": {
            "in": len(plan.films),
            "out": len({(row["director"], row["film"]) for row in sound}),
            "rejected": dict(Counter(row["error"] for row in bad)),
        },
        "stages": {"sample": {"rows": taken, "seconds": round(seconds, 1)}},
        "screenshots": len(sound),
    }


def _manifest(rows: list[Row]) -> bytes:
    shots = any(not math.isnan(row["shot_s"]) for row in rows)
    names = [*COLUMNS, *(["shot_s"] if shots else [])]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in sorted(rows, key=lambda row: (row["director"], row["film"], row["time_s"])):
        writer.writerow({**row, "time_s": f"{row['time_s']:.3f}", "shot_s": f"{row['shot_s']:.3f}"})
    return text.getvalue().encode()


def take(config: SampleConfig, todo: list[Row]) -> int:
    """Take the screenshots of films, each director, film, uri, on Ray; returns how many."""
    import ray

    set_context()
    stages = fitted({}, {"screenshots": config.screenshots}, config.autoscaling)
    films = ray.data.from_items(todo, override_num_blocks=len(todo))
    take: Any = partial(sample_films, config=config.screenshots, output=storage.absolute(config.output))
    rows = films.map_batches(take, batch_size=1, **ray_task(stages["screenshots"]))
    taken = 0
    done = batches(rows)
    for counts in tracked(done, Progress("sample", len(todo), "films"), lambda counts: len(counts["screenshots"])):
        taken += int(counts["screenshots"].sum())
    return taken


# ---------------------------------------------------------------------------------------------------- read screenshots


@dataclass(frozen=True)
class Screenshot:
    """One picture of a folder of screenshots."""

    director: str
    film: str
    """Name of the film, unique for its director; "" where unknown, and then for every screenshot of the folder."""
    path: str
    """Path relative to the folder of screenshots."""
    uri: str
    size: int
    """Bytes of the file; -1 where the manifest lists it and it does not exist."""
    time_s: float
    """Seconds from the start of the film; NaN where unknown."""
    shot_s: float
    """Length of its shot in seconds; NaN where unknown."""
    camera: Mapping[str, float] = field(default_factory=dict)
    """Those of CAMERA that are known."""


def read_screenshots(data: str, film_separator: str = "") -> list[Screenshot]:
    """The screenshots of a folder, by its manifest or else by folders, in the order of their paths.

    film_separator: the film of <director>/<image> is the image's name up to the last of these; "": it is unknown.

    Raises UserError where there are none, where an image is in no director's folder, where the films of only some are
    known, and where the manifest lacks a column.
    """
    root = storage.absolute(data)
    entries = storage.listing(root, as_input=True)
    own = (one for one in entries if one.name != MANIFEST and one.name.partition("/")[0] not in RESERVED)
    images = {entry.name: entry for entry in images_among(unpacked(own), root)}
    if storage.exists(storage.join(root, MANIFEST)):
        found = list(_by_manifest(root, images))
    else:
        found = list(_by_folder(root, images, film_separator))
    if not found:
        raise UserError(f"{data} has no screenshots. Run `sample`, or use folders <director>/ or <director>/<film>/.")
    homeless = [shot.path for shot in found if not shot.film]
    if homeless and len(homeless) < len(found):
        raise UserError(
            f"{data}: the films of {len(homeless)} of {len(found)} pictures are unknown, for example of {homeless[0]}. "
            "Move these pictures to folders <director>/<film>/, or name their films in the manifest."
        )
    return sorted(found, key=lambda shot: natural(shot.path))


def _by_folder(root: str, images: dict[str, Entry], separator: str) -> Iterator[Screenshot]:
    for name, entry in images.items():
        director, slash, rest = name.partition("/")
        if not slash:
            raise UserError(
                f"{root}: the director of {name} is unknown. Use folders <director>/ or <director>/<film>/, or add "
                f"{MANIFEST} with director and path."
            )
        film, folder, _ = rest.partition("/")
        if not folder:
            film = posixpath.splitext(rest)[0].rpartition(separator)[0] if separator else ""
            if separator and not film:
                raise UserError(
                    f"film_separator={separator}: the name of {name} has none after a film's name. Rename the picture, "
                    "or remove the setting."
                )
        yield Screenshot(director, film, name, entry.uri, entry.size, math.nan, math.nan)


def _by_manifest(root: str, images: dict[str, Entry]) -> Iterator[Screenshot]:
    uri = storage.join(root, MANIFEST)
    listed: dict[str, tuple[str, str]] = {}
    for line, row in read_csv_rows(uri, ("director", "path")):
        where, path, about = f"{uri}, line {line}", row["path"], (row["director"], row.get("film", ""))
        if not path or not row["director"]:
            raise UserError(f"{where}: {'path' if not path else 'director'} is empty. Fill it, or remove the row.")
        if path in listed:
            if listed[path] != about:
                raise UserError(f"{where}: {path} is of {'/'.join(about)} here, and of {'/'.join(listed[path])} above")
            continue
        listed[path] = about
        times = [_seconds(row.get(name, ""), f"{where}: {name}") for name in ("time_s", "shot_s")]
        entry = images.get(path) or Entry(path, storage.join(root, path), -1)
        camera = {name: _seconds(row[name], f"{where}: {name}") for name in CAMERA if row.get(name)}
        time_s, shot_s = times
        yield Screenshot(*about, path, entry.uri, entry.size, time_s, shot_s, camera)
    if beside := [name for name in images if name not in listed]:
        log.warning(
            "%s: %d pictures have no row in %s and are left out, such as %s",
            *(root, len(beside), MANIFEST, ", ".join(beside[:3])),
        )


def _seconds(text: str, what: str) -> float:
    """A number of a table, NaN where it is empty."""
    try:
        return float(text or math.nan)
    except ValueError as error:
        raise UserError(f"{what} is no number: {text!r}") from error

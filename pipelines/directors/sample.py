"""Screenshots of films by their director: how they are taken, and how a folder of them is read.

A folder of screenshots holds <director>/<film>.<milliseconds>.jpg, manifest.csv, which names the film, director, time
and frame of each, rejected/ with the films of which there are none and why, and screenshots/, which resume reads.
A folder from elsewhere, without a manifest, is read as <director>/<film>/<image>.
"""

import csv
import io
import json
import logging
import math
import posixpath
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from actors.core import storage
from actors.core.child import CHILD, DECODE_ATTEMPTS, ChildFault
from actors.core.errors import UserError
from actors.core.stage import Batch, Row
from actors.core.store import Store
from actors.directors.screenshots import ScreenshotsConfig, screenshots
from actors.media.film import VIDEO_SUFFIXES
from actors.media.images import IMAGE_SUFFIXES, natural
from pipelines.core.progress import Progress, tracked
from pipelines.core.ray_data import fitted, ray_task, set_context

log = logging.getLogger(__name__)

MANIFEST = "manifest.csv"
COLUMNS = ("film", "director", "time_s", "frame", "path")
"""Of the manifest; `shot_s` follows where it is known. path: relative to the manifest."""
RESERVED = frozenset(("explore", "features", "rejected", "runs", "screenshots"))
"""Names that a director's folder cannot have, since other things lie there."""
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
"""One row a screenshot; a film of which there is none has one with an error."""
REJECTED = pa.schema([(name, pa.string()) for name in ("director", "film", "uri", "error", "message")])


@dataclass(frozen=True)
class SampleConfig:
    """Settings of `sample`."""

    input: str = ""
    """A folder or prefix with a folder of films for each director, or a table (.csv, .parquet) with the columns path,
    director and, if there is one, film; a relative path starts at the table's folder."""
    output: str = ""
    """A path or s3:// for the screenshots."""
    screenshots: ScreenshotsConfig = field(default_factory=ScreenshotsConfig)
    """Which frames, and how many."""
    autoscaling: bool = False
    """The cluster grows by what is asked for: take as many workers as asked, not as many as fit."""

    def __post_init__(self) -> None:
        if not self.input or not self.output:
            raise UserError("input and output are needed: input=FILMS output=SCREENSHOTS")


@dataclass(frozen=True)
class SamplePlan:
    """What there is to take screenshots of."""

    films: list[Row]
    """All films: director, film, uri, and error and message, "" where it can be tried."""
    todo: list[Row]
    """Those of them that are not done."""


def read_film_list(input: str) -> Iterator[Row]:
    """Films with their directors in the order of the input, each director, film, uri, error, message.

    A film of which it is not clear whose it is, or what to call it, has an error code: no_director, bad_name,
    duplicate_id.
    """
    seen: dict[tuple[str, str], str] = {}
    for director, film, uri in _listed(input):
        about = {"director": director, "film": film, "uri": uri}
        code, message = _named(director, film)
        if not code and (first := seen.setdefault((director, film), uri)) != uri:
            code, message = "duplicate_id", f"{first} has the same director and name"
        yield {**about, "error": code, "message": message}


def _listed(input: str) -> Iterator[tuple[str, str, str]]:
    input = storage.absolute(input)
    if input.lower().endswith((".csv", ".parquet")):
        folder = input.rpartition("/")[0]
        for row in _table(input):
            path = row["path"] or ""
            absolute = "://" in path or path.startswith("/")
            uri = path if absolute else f"{folder}/{path}"
            yield row["director"] or "", row.get("film") or posixpath.splitext(posixpath.basename(path))[0], uri
        return
    for entry in storage.listing(input, tuple(VIDEO_SUFFIXES)):
        director, slash, name = entry.name.partition("/")
        yield director if slash else "", posixpath.splitext(name if slash else director)[0], entry.uri


def _table(uri: str) -> Iterable[Row]:
    data = storage.read_bytes(uri)
    try:
        if uri.lower().endswith(".parquet"):
            rows = pq.read_table(io.BytesIO(data)).to_pylist()
        else:
            rows = list(csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline="")))
    except (pa.ArrowInvalid, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{uri} cannot be read: {error}") from error
    if missing := {"path", "director"} - set(rows[0] if rows else ()):
        raise UserError(f"{uri} has no column {', '.join(sorted(missing))}, or no row: it lists path and director")
    return rows


def _named(director: str, film: str) -> tuple[str, str]:
    """What is wrong with the names, since they become folders and files; two empty strings where nothing is."""
    if not director:
        return "no_director", "it lies in no director's folder, or the table names none"
    if "/" in director or director in {".", "..", *RESERVED}:
        return "bad_name", f"{director!r} cannot be the name of a folder of screenshots: give another"
    parts = film.split("/")
    if not all(parts) or {".", ".."} & set(parts) or max(len(part.encode()) for part in (director, *parts)) > 200:
        return "bad_name", f"{film[:80]!r} cannot be the name of a file: it has empty, dotted or too long parts"
    return "", ""


def plan_sample(config: SampleConfig) -> SamplePlan:
    """What is to be done; raises UserError where there are no films, or screenshots taken with other settings."""
    films = list(read_film_list(config.input))
    if not films:
        suffixes = " ".join(sorted(VIDEO_SUFFIXES))
        raise UserError(f"{config.input}: no films there; give a folder of films ({suffixes}) for each director")
    settings = _settings(config)
    done = set()
    for row in Store(config.output).read_table("screenshots", SCREENSHOTS).to_pylist():
        if row["settings"] != settings:
            raise UserError(
                f"{config.output} holds screenshots that were taken with {row['settings']}, not {settings}: "
                "use another output"
            )
        # What failed is tried again, since it may have been mended.
        if not row["error"]:
            done.add((row["director"], row["film"], row["uri"]))
    todo = [film for film in films if not film["error"] and (film["director"], film["film"], film["uri"]) not in done]
    return SamplePlan(films, todo)


def _settings(config: SampleConfig) -> str:
    """What a film's screenshots depend on."""
    names = ("per_film", "begin", "end", "side", "quality", "shots", "seed")
    return json.dumps({name: asdict(config.screenshots)[name] for name in names})


def sample(config: SampleConfig, plan: SamplePlan) -> dict[str, Any]:
    """Take the screenshots that are missing and write the manifest; returns what the record of the run tells."""
    store, started = Store(config.output), time.monotonic()
    taken = _take(config, plan.todo) if plan.todo else 0
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


def _take(config: SampleConfig, todo: list[Row]) -> int:
    set_context()
    stages = fitted({}, {"screenshots": config.screenshots}, config.autoscaling)
    films = ray.data.from_items(todo, override_num_blocks=len(todo))
    take: Any = partial(sample_films, config=replace(config, output=storage.absolute(config.output)))
    rows = films.map_batches(take, batch_size=1, **ray_task(stages["screenshots"]))
    taken = 0
    batches = rows.iter_batches(batch_size=None, prefetch_batches=0)
    for counts in tracked(batches, Progress("sample", len(todo), "films"), lambda counts: len(counts["screenshots"])):
        taken += int(counts["screenshots"].sum())
    return taken


def sample_films(batch: Batch, config: SampleConfig) -> Batch:
    """Take and write the screenshots of the films of a batch; returns how many of each.

    A film is done when its part of screenshots/ is there, which is written after its pictures.
    """
    store = Store(config.output)
    counts = []
    for director, film, uri in zip(batch["director"], batch["film"], batch["uri"], strict=True):
        about = {"director": str(director), "film": str(film), "uri": str(uri), "settings": _settings(config)}
        rows = _screenshots(about, config.screenshots)
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
    limits: dict[str, Any] = {"stall_s": config.stall_s, "timeout_s": config.timeout_s}
    again: dict[str, Any] = {"attempts": DECODE_ATTEMPTS, "key": itemgetter("time_s")}
    try:
        return list(CHILD.stream(screenshots, about["uri"], name, config, **limits, **again))
    except ChildFault as fault:
        nothing = {"time_s": math.nan, "frame": -1, "shot_s": math.nan}
        return [{**nothing, "error": fault.code, "message": str(fault)}]


# ----------------------------------------------------------------------------------------------------------- read again


@dataclass(frozen=True)
class Screenshot:
    """One picture of a folder of screenshots."""

    director: str
    film: str
    """Its name among the director's."""
    path: str
    """Below the folder."""
    uri: str
    size: int
    """Bytes; -1 where the manifest names it and it is not there."""
    time_s: float
    """In the film; NaN where that is not known."""
    shot_s: float
    """How long its shot lasts; NaN where that is not known."""


def read_screenshots(data: str) -> list[Screenshot]:
    """The screenshots of a folder, by its manifest or else as <director>/<film>/<image>, in the order of their paths.

    Raises ValueError where there are none, where images lie beside films, and where the manifest lacks a column.
    """
    root = storage.absolute(data)
    sizes = {
        entry.name: entry.size
        for entry in storage.listing(root, IMAGE_SUFFIXES)
        if entry.name.partition("/")[0] not in RESERVED
    }
    if storage.exists(storage.join(root, MANIFEST)):
        found = list(_by_manifest(root, sizes))
    else:
        found = []
        for name, size in sizes.items():
            director, film, *rest = name.split("/")
            if not rest:
                raise UserError(
                    f"{data}: whose film {name} is of is not known; give {MANIFEST} with {', '.join(COLUMNS)}, or "
                    "folders <director>/<film>/"
                )
            found.append(Screenshot(director, film, name, storage.join(root, name), size, math.nan, math.nan))
    if not found:
        raise UserError(f"{data} holds no screenshots: `sample` makes them, or give folders <director>/<film>/")
    return sorted(found, key=lambda shot: natural(shot.path))


def _by_manifest(root: str, sizes: dict[str, int]) -> Iterator[Screenshot]:
    uri = storage.join(root, MANIFEST)
    rows = list(csv.DictReader(io.StringIO(storage.read_bytes(uri).decode("utf-8-sig"), newline="")))
    if rows and (missing := {"film", "director", "path"} - set(rows[0])):
        raise UserError(f"{uri} has no column {', '.join(sorted(missing))}; it lists {', '.join(COLUMNS)}")
    for row in rows:
        times = [float(row.get(name) or math.nan) for name in ("time_s", "shot_s")]
        at = storage.join(root, row["path"])
        yield Screenshot(row["director"], row["film"], row["path"], at, sizes.get(row["path"], -1), *times)

"""Images of films as rows: listed in folders, streamed from tars, or the key frames of video files."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from operator import itemgetter
from typing import Any

import numpy as np

from actors.core import storage
from actors.core.addresses import AddressError
from actors.core.child import CHILD, DECODE_ATTEMPTS, ChildFault
from actors.core.stage import Batch, Row, Stage
from actors.genres.key_frames import key_frames
from actors.media import archives
from actors.media.film import VideoConfig
from actors.media.images import IMAGE_SUFFIXES, Shape, images_among, natural, read_images
from actors.media.shot_detection.shots import ShotsConfig

SHOTS_AT_ONCE = 16
"""Key frames that leave the decode together."""


@dataclass(frozen=True)
class ImagesConfig:
    """Reading images, and finding key frames in video files."""

    read: Stage = field(default_factory=lambda: Stage(workers=0, batch_size=64))
    """Tasks that read and decode image files, and stream tars."""
    video: VideoConfig = field(default_factory=VideoConfig)
    """Decoding of video files, and the tasks that do it."""
    shots: ShotsConfig = field(default_factory=ShotsConfig)
    """Shot detection in video files; the middle frame of each shot is its key frame."""


def list_images(film: Row) -> list[Row]:
    """The images below a film's folder as rows; of a folder without any, one row that says so.

    Other files beside the images are named in a warning.
    """
    about = {"film": film["film"], "start_s": 0.0, "decoder": "", "error": "", "message": ""}
    try:
        entries = images_among(storage.listing(film["uri"], as_input=True), film["uri"])
    except PermissionError as error:
        message = f"{film['uri']} cannot be read: {error.strerror or error}"
        nothing = {"number": -1, "images": 0, "name": "", "uri": film["uri"]}
        return [about | nothing | {"error": "forbidden", "message": message}]
    found = sorted(entries, key=lambda entry: natural(entry.name))
    about["images"] = len(found)
    if not found:
        message = f"{film['uri']} holds no image; their names end in {', '.join(IMAGE_SUFFIXES)}"
        return [about | {"number": -1, "name": "", "uri": film["uri"], "error": "no_images", "message": message}]
    return [about | {"number": i, "name": entry.name, "uri": entry.uri} for i, entry in enumerate(found)]


def cut_films(films: Batch, shape: Shape, images: ImagesConfig) -> Iterator[Batch]:
    """The key frames of video files as batches of rows, each film with a row of its own at its end."""
    for film, uri in zip(map(str, films["film"]), map(str, films["uri"]), strict=True):
        blank = {"film": film, "images": -1, "name": "", "uri": uri, "start_s": 0.0, "decoder": "", "error": ""}
        rows: list[Row] = []
        for row in _key_frames(uri, shape, images):
            rows.append({**blank, "message": "", "image": np.zeros((shape.size, shape.size, 3), np.uint8), **row})
            if len(rows) == SHOTS_AT_ONCE:
                yield _columns(rows)
                rows = []
        if rows:
            yield _columns(rows)


def stream_tars(films: Batch, shape: Shape, images: ImagesConfig) -> Iterator[Batch]:
    """The images in tars as batches of rows, in one pass over each, each film with a row of its own at its end."""
    blank = {"start_s": math.nan, "decoder": "", "error": "", "message": ""}
    for film, uri in zip(map(str, films["film"]), map(str, films["uri"]), strict=True):
        about, count = {**blank, "film": film, "images": -1, "uri": uri}, 0
        end: Row = {"error": "", "message": ""}
        try:
            found = ((name, data) for name, data in archives.contents(uri) if name.lower().endswith(IMAGE_SUFFIXES))
            while some := list(islice(found, images.read.batch_size)):
                rows = [{**about, "number": count + i, "name": name} for i, (name, _) in enumerate(some)]
                count += len(rows)
                batch = {name: np.array([row[name] for row in rows]) for name in rows[0]}
                yield read_images(batch, shape, [data for _, data in some])
            if not count:
                end = {"error": "no_images", "message": f"{uri} holds no image"}
        except archives.ArchiveError as error:
            end = {"error": "broken_archive", "message": str(error)}
        except FileNotFoundError as error:
            end = {"error": "not_found", "message": str(error)}
        except PermissionError as error:
            end = {"error": "forbidden", "message": str(error)}
        image = np.zeros((shape.size, shape.size, 3), np.uint8)
        yield _columns([{**about, "number": -1, "name": "", "images": count, "image": image, **end}])


def _columns(rows: list[Row]) -> Batch:
    names = ("film", "number", "images", "name", "uri", "start_s", "image", "decoder", "error", "message")
    return {name: np.array([row[name] for row in rows]) for name in names}


def _key_frames(uri: str, shape: Shape, images: ImagesConfig) -> Iterator[Row]:
    """Rows of `key_frames`, with an error row where the decoding process fails."""
    done = 0
    limits = images.video.limits
    again: dict[str, Any] = {"attempts": DECODE_ATTEMPTS, "key": itemgetter("number")}
    try:
        with storage.local(uri) as path:
            arguments = (str(path), shape, images.video, images.shots)
            for row in CHILD.stream(key_frames, *arguments, **limits, **again):
                done += row["number"] >= 0
                yield {name: value for name, value in row.items() if name != "end_s"}
    except ChildFault as fault:
        yield {"number": -1, "images": done, "error": fault.code, "message": str(fault)}
    except FileNotFoundError as error:
        yield {"number": -1, "images": done, "error": "not_found", "message": str(error)}
    except PermissionError as error:
        yield {"number": -1, "images": done, "error": "forbidden", "message": str(error)}
    except AddressError as error:
        yield {"number": -1, "images": done, "error": "bad_url", "message": str(error)}

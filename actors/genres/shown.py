"""The pictures of a film that a vision-language model is shown: key frames at equal steps."""

import json
from collections.abc import Iterator
from functools import partial
from operator import itemgetter
from typing import Any

import numpy as np

from actors.core import storage
from actors.core.addresses import AddressError
from actors.core.child import CHILD, DECODE_ATTEMPTS, ChildFault
from actors.core.stage import Row
from actors.genres.film_images import ImagesConfig
from actors.genres.key_frames import key_frames
from actors.media import archives
from actors.media.images import IMAGE_SUFFIXES, Shape, natural, read_images

FAULTS = {FileNotFoundError: "not_found", PermissionError: "forbidden", AddressError: "bad_url"}
"""Codes of films that cannot be opened."""


def shown(film: Row, shape: Shape, count: int, images: ImagesConfig) -> Row:
    """A film with frames uint8 (T, size, size, 3) RGB, at most `count`, in order of time.

    film: film, uri, kind (folder, tar or video). Adds error and message where there is no frame, and `rejected`, JSON
    of the images that could not be read: name, code, message.
    """
    about = {"film": film["film"], "uri": film["uri"], "error": "", "message": ""}
    rejected: list[dict[str, str]] = []
    try:
        read: Any = _of_video if film["kind"] == "video" else partial(_of_images, kind=film["kind"])
        frames = list(read(film["uri"], shape, count, images, rejected))
    except (*FAULTS, archives.ArchiveError, ChildFault) as error:
        code = error.code if isinstance(error, ChildFault) else FAULTS.get(type(error), "broken_archive")
        frames, about = [], {**about, "error": code, "message": str(error)}
    if not frames and not about["error"]:
        about |= {"error": "no_images", "message": f"{film['uri']} has no image that can be read"}
    empty = np.zeros((0, shape.size, shape.size, 3), np.uint8)
    return {**about, "frames": np.stack(frames) if frames else empty, "rejected": json.dumps(rejected)}


def spread(total: int, count: int) -> list[int]:
    """The middles of `count` equal steps through `total` items, or all where there are fewer."""
    count = min(total, count)
    return [(2 * step + 1) * total // (2 * count) for step in range(count)]


def _of_images(
    uri: str, shape: Shape, count: int, images: ImagesConfig, rejected: list[dict[str, str]], kind: str
) -> Iterator[np.ndarray]:
    entries = archives.members(uri) if kind == "tar" else storage.listing(uri, as_input=True)
    named = (entry for entry in entries if entry.name.lower().endswith(IMAGE_SUFFIXES))
    found = sorted(named, key=lambda entry: natural(entry.name))
    chosen = [found[at] for at in spread(len(found), count)]
    nothing = np.full(len(chosen), "", object)
    batch = {"uri": np.array([entry.uri for entry in chosen], object), "error": nothing, "message": nothing}
    read = read_images(batch, shape)
    for entry, image, code, message in zip(chosen, read["image"], read["error"], read["message"], strict=True):
        if code:
            rejected.append({"name": entry.name, "code": str(code), "message": str(message)})
        else:
            yield image


def _of_video(
    uri: str, shape: Shape, count: int, images: ImagesConfig, rejected: list[dict[str, str]]
) -> Iterator[np.ndarray]:
    limits: dict[str, Any] = {"stall_s": images.video.stall_s, "timeout_s": images.video.timeout_s}
    again: dict[str, Any] = {"attempts": DECODE_ATTEMPTS, "key": itemgetter("number")}
    kept: list[np.ndarray] = []
    step, end = 1, {"error": "", "message": ""}
    with storage.local(uri) as path:
        for row in CHILD.stream(key_frames, str(path), shape, images.video, images.shots, **limits, **again):
            if row["number"] < 0:
                end = row
            elif row["number"] % step == 0:
                kept.append(row["image"])
                # How many shots there are is known at the end only.
                if len(kept) == 4 * count:
                    kept, step = kept[::2], 2 * step
    if end["error"]:
        rejected.append({"name": "", "code": end["error"], "message": end["message"]})
    yield from (kept[at] for at in spread(len(kept), count))

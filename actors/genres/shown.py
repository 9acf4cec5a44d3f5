"""The pictures of a film, and of its scenes, that a vision-language model is shown: key frames at equal steps."""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

import numpy as np

from actors.core import storage
from actors.core.addresses import AddressError
from actors.core.child import CHILD, DECODE_ATTEMPTS, ChildFault
from actors.core.stage import Row
from actors.genres.film_images import ImagesConfig
from actors.genres.key_frames import key_frames
from actors.genres.scenes import Division, NoScenesError, Scene, none_inside
from actors.media import archives
from actors.media.images import IMAGE_SUFFIXES, Shape, natural, read_images

FAULTS = {FileNotFoundError: "not_found", PermissionError: "forbidden", AddressError: "bad_url"}
"""Codes of films that cannot be opened."""
NO_SCENE = "none"
"""Stands for the scene of a film that has none."""


@dataclass
class Shown:
    """Key frames of a film, or of a scene."""

    scene: str = ""
    """The scene's name; "" for the film."""
    place: str = ""
    shots: list[int] = field(default_factory=list)
    start_s: float | None = None
    """When a scene of a video file starts."""
    frames: list[np.ndarray] = field(default_factory=list)
    """Each uint8 (size, size, 3) RGB, in order of time."""
    rejected: list[dict[str, str]] = field(default_factory=list)
    """Images that could not be read: name, code, message."""
    error: str = ""
    message: str = ""


def shown(film: Row, shape: Shape, count: int, images: ImagesConfig, scenes: str | int = 0) -> Iterator[Row]:
    """A film with frames uint8 (T, size, size, 3) RGB, at most `count`, in order of time; and each of its scenes.

    film: film, uri, kind (folder, tar or video), done: JSON of names of scenes that are left out, "" for the film. Adds
    to each row scene ("" for the film), first_shot, last_shot, start_s, place; scenes: of the last scene, how many
    there are, else 0; error and message where there is no frame; and `rejected`, JSON of the images that could not be
    read: name, code, message. A film without scenes has one row, NO_SCENE, that says why.

    scenes: as of `Division`; 0: none.
    """
    read: Any = _of_video if film["kind"] == "video" else _of_images
    done = set(json.loads(film["done"]))
    last: Shown | None = None
    number = 0
    try:
        for one in read(film, shape, count, images, scenes, done.__contains__):
            if not one.scene:
                yield _row(film, one, shape, 0)
                continue
            if last is not None and last.scene not in done:
                yield _row(film, last, shape, 0)
            last, number = one, number + 1
    except (*FAULTS, archives.ArchiveError, ChildFault) as error:
        code = error.code if isinstance(error, ChildFault) else FAULTS.get(type(error), "broken_archive")
        about = Shown(NO_SCENE if "" in done else "", error=code, message=str(error))
        yield _row(film, about, shape, int("" in done))
        last = None
    if last is not None and last.scene not in done:
        yield _row(film, last, shape, number)


def _row(film: Row, one: Shown, shape: Shape, scenes: int) -> Row:
    if not one.frames and not one.error:
        one.error, one.message = "no_images", f"{film['uri']} has no image that can be read"
    empty = np.zeros((0, shape.size, shape.size, 3), np.uint8)
    return {
        **{"film": film["film"], "uri": film["uri"], "scene": one.scene, "place": one.place, "scenes": scenes},
        "first_shot": min(one.shots, default=-1),
        "last_shot": max(one.shots, default=-1),
        "start_s": math.nan if one.start_s is None else one.start_s,
        **{"error": one.error, "message": one.message, "rejected": json.dumps(one.rejected)},
        "frames": np.stack(one.frames) if one.frames else empty,
    }


def spread(total: int, count: int) -> list[int]:
    """The middles of `count` equal steps through `total` items, or all where there are fewer."""
    count = min(total, count)
    return [(2 * step + 1) * total // (2 * count) for step in range(count)]


Skipped = Callable[[str], bool]
"""Whether a scene is left out by its name, "" for the film."""


def _of_images(
    film: Row, shape: Shape, count: int, images: ImagesConfig, scenes: str | int, skipped: Skipped
) -> Iterator[Shown]:
    uri = film["uri"]
    entries = archives.members(uri) if film["kind"] == "tar" else storage.listing(uri, as_input=True)
    named = (entry for entry in entries if entry.name.lower().endswith(IMAGE_SUFFIXES))
    found = sorted(named, key=lambda entry: natural(entry.name))

    def filled(one: Shown, inside: list[int]) -> Shown:
        chosen = [] if skipped(one.scene) else [found[inside[at]] for at in spread(len(inside), count)]
        nothing = np.full(len(chosen), "", object)
        batch = {"uri": np.array([entry.uri for entry in chosen], object), "error": nothing, "message": nothing}
        read = read_images(batch, shape)
        for entry, image, code, message in zip(chosen, read["image"], read["error"], read["message"], strict=True):
            if code:
                one.rejected.append({"name": entry.name, "code": str(code), "message": str(message)})
            else:
                one.frames.append(image)
        return one

    if not skipped(""):
        yield filled(Shown(), list(range(len(found))))
    if not scenes or not found:
        return
    names = [entry.name for entry in found]
    try:
        division = Division(film["film"], scenes)
        shots, divided = division.shots_of(names), division.divided(names)
    except NoScenesError as error:
        yield Shown(NO_SCENE, error=error.code, message=str(error))
        return
    for scene, inside in divided.items():
        yield filled(Shown(scene.name, scene.place, [shots[at] for at in inside]), inside)


class _Thinned:
    """Of ever more pictures at most so many, at equal steps."""

    def __init__(self, about: Shown, count: int) -> None:
        self._about, self._count = about, count
        self._kept: list[np.ndarray] = []
        self._step, self._seen = 1, 0

    def add(self, row: Row) -> None:
        about = self._about
        about.shots.append(row["number"])
        about.start_s = row["start_s"] if about.start_s is None else about.start_s
        if self._seen % self._step == 0:
            self._kept.append(row["image"])
            # How many there are is known at the end only.
            if len(self._kept) == 4 * self._count:
                self._kept, self._step = self._kept[::2], 2 * self._step
        self._seen += 1

    def ended(self) -> Shown:
        self._about.frames = [self._kept[at] for at in spread(len(self._kept), self._count)]
        return self._about


def _of_video(
    film: Row, shape: Shape, count: int, images: ImagesConfig, scenes: str | int, skipped: Skipped
) -> Iterator[Shown]:
    limits: dict[str, Any] = {"stall_s": images.video.stall_s, "timeout_s": images.video.timeout_s}
    again: dict[str, Any] = {"attempts": DECODE_ATTEMPTS, "key": itemgetter("number")}
    division, missing = None, none_inside()
    try:
        division = Division(film["film"], scenes) if scenes else None
    except NoScenesError as error:
        missing = error
    whole, of_film = Shown(), 0
    kept = _Thinned(whole, count)
    open_scenes: dict[Scene, _Thinned] = {}
    end = {"error": "", "message": ""}
    with storage.local(film["uri"]) as path:
        for row in CHILD.stream(key_frames, str(path), shape, images.video, images.shots, **limits, **again):
            if row["number"] < 0:
                end = row
                continue
            kept.add(row)
            for scene in division.of(row["number"]) if division else ():
                if scene not in open_scenes:
                    open_scenes[scene] = _Thinned(Shown(scene.name, scene.place), count)
                    of_film += 1
                open_scenes[scene].add(row)
            for scene in [scene for scene in open_scenes if scene.end <= row["number"]]:
                yield open_scenes.pop(scene).ended()
    yield from (one.ended() for one in open_scenes.values())
    if scenes and not of_film and whole.shots:
        yield Shown(NO_SCENE, error=missing.code, message=str(missing))
    if end["error"]:
        whole.rejected.append({"name": "", "code": end["error"], "message": end["message"]})
    if not skipped(""):
        yield kept.ended()

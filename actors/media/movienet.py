"""MovieNet's files as they are downloaded: meta, annotations, shots and splits (Huang et al., "MovieNet", 2020).

A key frame is `<film>/shot_<NNNN>_img_<k>.jpg`, k from 0 to 2; each of the other files is of one film, and its name is
the film's id. What a file does not say is None, "" or empty; a file of another form raises FormError.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from actors.core import storage
from actors.core.errors import UserError

SCALES = ("ECS", "CS", "MS", "FS", "LS")
"""Shot scales from extreme close-up to long shot."""
MOVEMENTS = ("static", "motion", "push", "pull")
"""How the camera moves."""
FRAME_RATE = 24.0
"""Frames per second of films whose annotation has no story with times."""
NOBODY = "others"
"""How annotations name people who are not in the credits."""
Box = tuple[float, float, float, float]
"""x0, y0, x1, y1 as shares of the picture's width and height."""
_KEY_FRAME = re.compile(r"(?:.*/)?shot_(\d+)_img_(\d+)(?:\.\w+)?")


class FormError(ValueError):
    """A file that is not there or has another form; `code` is its error code: no_meta, broken_meta and so on."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Meta:
    """What is known of a film as a whole."""

    genres: tuple[str, ...]
    directors: tuple[str, ...]


@dataclass(frozen=True)
class Appearance:
    """A person in a key frame."""

    id: str
    shot: int
    image: int
    """Number of the key frame in its shot, from 0."""
    body: Box | None
    face: Box | None
    person: str
    """Id of a credited person; "" for somebody who is not in the credits."""


@dataclass(frozen=True)
class Scene:
    """Consecutive shots that belong together."""

    id: str
    shots: tuple[int, int]
    """First shot, and the first of the next scene."""
    place: str
    action: str


@dataclass(frozen=True)
class Annotation:
    """What people have marked in a film; whatever has not been marked is empty."""

    cast: tuple[Appearance, ...]
    scenes: tuple[Scene, ...]
    style: Mapping[int, tuple[str, str]]
    """Scale, of SCALES, and movement, of MOVEMENTS, by number of the shot; "" where unknown."""
    frame_rate: float | None
    """Frames per second, from the frames and times of its story."""


def shot_of(name: str) -> int | None:
    """The number of a key frame's shot by its name, as `embed` names those of video files, too; None for others."""
    found = key_frame_of(name)
    return found[0] if found else None


def key_frame_of(name: str) -> tuple[int, int] | None:
    """The numbers of a key frame's shot, and of the frame in it; None for other names."""
    found = _KEY_FRAME.fullmatch(name)
    return (int(found[1]), int(found[2])) if found else None


def read_meta(uri: str) -> Meta:
    """Genres and directors of a film; a file that is a list holds its genres."""
    found = _json(uri, "meta")
    about = found if isinstance(found, dict) else {"genres": found}
    genres = _names(about.get("genres"), uri, "genres")
    return Meta(genres, _names(about.get("director", about.get("directors")), uri, "director"))


def _names(value: Any, uri: str, key: str) -> tuple[str, ...]:
    value = [] if value is None else value
    if key == "director" and isinstance(value, (str, dict)):
        value = [value]
    found = [one.get("name") if isinstance(one, dict) else one for one in value] if isinstance(value, list) else [None]
    names = [name.strip() for name in found if isinstance(name, str)]
    if len(names) < len(found):
        raise FormError("broken_meta", f'{uri}: "{key}" is no list of names')
    return tuple(dict.fromkeys(filter(None, names)))


def read_annotation(uri: str) -> Annotation:
    """Cast, scenes, shot scales and movements of a film."""
    found = _json(uri, "annotation")
    if not isinstance(found, dict):
        raise FormError("broken_annotation", f"{uri} is no object of cast, scene, story and cinematic_style")
    try:
        return Annotation(
            tuple(map(_appearance, found.get("cast") or ())),
            tuple(map(_scene, found.get("scene") or ())),
            dict(map(_style, found.get("cinematic_style") or ())),
            _frame_rate(found.get("story") or ()),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FormError("broken_annotation", f"{uri} has another form: {type(error).__name__}: {error}") from error


def _appearance(row: dict[str, Any]) -> Appearance:
    width, height = row["resolution"]
    person = row.get("pid")

    def box(key: str) -> Box | None:
        if not row.get(key):
            return None
        x0, y0, x1, y1 = row[key]["bbox"]
        return x0 / width, y0 / height, x1 / width, y1 / height

    known = person if person and person != NOBODY else ""
    return Appearance(row["id"], int(row["shot_idx"]), int(row["img_idx"]), box("body"), box("face"), known)


def _scene(row: dict[str, Any]) -> Scene:
    first, end = row["shot"]
    return Scene(row["id"], (int(first), int(end)), row.get("place_tag") or "", row.get("action_tag") or "")


def _style(row: dict[str, Any]) -> tuple[int, tuple[str, str]]:
    return int(row["shot_idx"]), (row.get("scale") or "", row.get("movement") or "")


def _frame_rate(story: Any) -> float | None:
    frames = seconds = 0.0
    for row in story:
        if row.get("frame") and row.get("duration"):
            frames += row["frame"][1] - row["frame"][0]
            seconds += row["duration"][1] - row["duration"][0]
    return frames / seconds if frames > 0 and seconds > 0 else None


def read_shots(uri: str) -> list[tuple[int, int]]:
    """First and last frame of each shot, both included."""
    try:
        lines = storage.read_bytes(uri).decode("utf-8-sig").splitlines()
    except FileNotFoundError as error:
        raise FormError("no_shots", f"there is no {uri}") from error
    except UnicodeDecodeError as error:
        raise FormError("broken_shots", f"{uri} is no text") from error
    found = []
    for number, line in enumerate(filter(str.strip, lines), 1):
        try:
            first, last = map(int, line.split()[:2])
        except ValueError as error:
            raise FormError("broken_shots", f"{uri}, line {number}: no first and last frame: {line[:40]!r}") from error
        found.append((first, last))
    return found


def read_split(uri: str) -> dict[str, str]:
    """The part (train, valid or test) of each film of a split: JSON with lists of ids, as movie1K.split.v1.json.

    Lists of other names, as `full`, are left out. Raises UserError where there is no such file, or a film is in two.
    """
    try:
        found = _json(uri, "split")
    except FormError as error:
        raise UserError(str(error)) from error
    lists: dict[str, Any] = {_PARTS[name]: ids for name, ids in _items(found) if name in _PARTS}
    if not {"train", "test"} <= lists.keys() or not all(isinstance(ids, list) for ids in lists.values()):
        raise UserError(
            f"{uri} has no lists `train` and `test` of films. A split is JSON: {{train, val, test}} of ids."
        )
    parts: dict[str, str] = {}
    for part, ids in lists.items():
        for film in map(str, ids):
            if parts.setdefault(film, part) != part:
                raise UserError(f"{uri}: {film} is in {parts[film]} and in {part}")
    return parts


_PARTS = {"train": "train", "val": "valid", "valid": "valid", "validation": "valid", "test": "test"}


def _items(found: Any) -> Iterator[tuple[str, Any]]:
    yield from found.items() if isinstance(found, dict) else ()


def _json(uri: str, what: str) -> Any:
    try:
        return json.loads(storage.read_bytes(uri))
    except FileNotFoundError as error:
        raise FormError(f"no_{what}", f"there is no {uri}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise FormError(f"broken_{what}", f"{uri} is not JSON: {error}") from error

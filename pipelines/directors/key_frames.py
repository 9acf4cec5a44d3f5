"""Key frames of MovieNet as screenshots: a folder or tar a film, whose directors, shots and camera other files say."""

import logging
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from actors.core import storage
from actors.core.errors import UserError
from actors.media.archives import unpacked
from actors.media.images import images_among, natural
from actors.media.movienet import (
    FRAME_RATE,
    SCALES,
    Annotation,
    FormError,
    read_annotation,
    read_meta,
    read_shots,
    shot_of,
)
from pipelines.core.film_vectors import SEVERAL
from pipelines.directors.sample import RESERVED, Screenshot

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class FilmFiles:
    """Where MovieNet's files about films are: folders or prefixes; "" where there are none."""

    meta: str
    annotations: str
    shots: str


def read_key_frames(data: str, files: FilmFiles) -> list[Screenshot]:
    """The key frames <film>/<image> below a folder or prefix, of films whose meta names a director.

    Films without one are named in a warning. Raises UserError where no film is left.
    """
    root = storage.absolute(data)
    entries = (one for one in storage.listing(root, as_input=True) if one.name.partition("/")[0] not in RESERVED)
    found: list[Screenshot] = []
    films: dict[str, _Film | None] = {}
    left: Counter[str] = Counter()
    for entry in images_among(unpacked(entries), root):
        name, slash, _ = entry.name.partition("/")
        if not slash:
            raise UserError(f"{data}: {name} is in no film's folder or tar. With meta, pictures lie as <film>/<image>.")
        if name not in films:
            try:
                films[name] = _film(name, files)
            except FormError as error:
                films[name] = None
                left[error.code] += 1
        if film := films[name]:
            shot = shot_of(entry.name)
            length = film.lengths[shot] if shot is not None and shot < len(film.lengths) else math.nan
            found.append(
                Screenshot(film.director, name, entry.name, entry.uri, entry.size, math.nan, length, film.camera(shot))
            )
    why = ", ".join(f"{code} {count}" for code, count in left.items())
    if not found:
        raise UserError(f"{data}: no key frames of a film whose director is known ({why or 'there are no images'})")
    if left:
        log.warning("%s: %d of %d films are left out: %s", data, left.total(), len(films), why)
    return sorted(found, key=lambda one: natural(one.path))


@dataclass(frozen=True)
class _Film:
    director: str
    lengths: list[float]
    """Seconds of each shot; empty where unknown."""
    annotation: Annotation | None

    def camera(self, shot: int | None) -> dict[str, float]:
        """Those of CAMERA that are annotated for a shot."""
        if self.annotation is None or shot is None or shot not in self.annotation.style:
            return {}
        scale, movement = self.annotation.style[shot]
        found = {"shot_scale": float(SCALES.index(scale))} if scale in SCALES else {}
        moves = {f"camera_{name}": float(movement == name) for name in ("static", "push", "pull")}
        return found | (moves if movement else {})


def _film(name: str, files: FilmFiles) -> _Film:
    """What is known of a film; raises FormError where no director is, or a file is broken."""
    directors = read_meta(storage.join(files.meta, f"{name}.json")).directors
    if not directors:
        raise FormError("no_director", f"the meta of {name} names no director")
    annotation = _if_there(read_annotation, files.annotations, f"{name}.json")
    shots = _if_there(read_shots, files.shots, f"shot_{name}.txt") or []
    rate = (annotation and annotation.frame_rate) or FRAME_RATE
    return _Film(SEVERAL.join(directors), [(last - first + 1) / rate for first, last in shots], annotation)


def _if_there(read: Callable[[str], T], folder: str, name: str) -> T | None:
    """What a film's file says; None where there is none: its pictures are as good without. A broken one raises."""
    try:
        return read(storage.join(folder, name)) if folder else None
    except FormError as error:
        if error.code.startswith("no_"):
            return None
        raise

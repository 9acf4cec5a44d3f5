"""Names of images, classes and identities: all are made and read here.

A manifest beside images (`actors/movie_characters/manifest.py`) says more than their names, and wins over them.
"""

import re
import zlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from actors.core.errors import UserError
from actors.media.movienet import shot_of

_IMAGE_NAME = re.compile(r"\.(jpe?g|png|webp|bmp|tiff?|gif)$", re.IGNORECASE)


_DRAWN = re.compile(r"_seed-?[\d.e+-]+_alpha[\dpe+-]+_guidance[\dpe+-]+$")


def drawn_name(identity: str, seed: int, alpha: float, guidance: float) -> str:
    """The name of a drawn image, of letters, digits, _ and -, and a dot before the ending: legal in every file system.

    `class_of` reads it: the image is of the identity's class.
    """
    safe = "".join(letter if letter.isalnum() or letter in "_-" else "-" for letter in identity)
    numbers = (f"{value:g}".replace(".", "p") for value in (seed, alpha, guidance))
    return "{}_seed{}_alpha{}_guidance{}.png".format(safe, *numbers)


def frame_name(category: str, number: int) -> str:
    """Where a frame of a category lies below the output of `extract`."""
    return f"{category}/{category}_frame_{number:04d}.jpg"


def film_frame_name(film: str, number: int) -> str:
    """The name of a film's frame, as `timeline` writes it; its class is the film."""
    return f"{film}_{number:06d}.jpg"


def image_identity(name: str, cls: str) -> str:
    """The name of the identity that is trained from one image: the image's, or CLASS_NUMBER where that has no class."""
    own = stem(name)
    return own if class_or_unlabelled(own) == cls else f"{cls}_{zlib.crc32(own.encode())}"


def class_identity(cls: str) -> str:
    """The name of the one identity that stands for all of a class."""
    return f"{cls}_0"


@lru_cache(1 << 16)
def stem(name: str) -> str:
    """The name of an image or identity without folder and suffix of an image."""
    return unsuffixed(name.rpartition("/")[2])


def unsuffixed(name: str) -> str:
    """The name of an image with its folder, if it has one, without its suffix."""
    return _IMAGE_NAME.sub("", name.strip())


UNLABELLED = "unlabelled"
"""Stands for the class of an image whose name has none."""


@lru_cache(1 << 16)
def class_of(name: str) -> str:
    """The class of an image: what its name has before the last underscore.

    Frames of `extract` are CLASS_frame_NUMBER and are of CLASS; images of `generate` are of their identity's class.
    Raises ValueError where there is no underscore.
    """
    cls = class_or_unlabelled(name)
    if cls == UNLABELLED:
        raise UserError(f"{name}: the name has no class; images are named CLASS_NUMBER, as in Ann_001.jpg")
    return cls


@lru_cache(1 << 16)
def class_or_unlabelled(name: str) -> str:
    """The class of an image as `class_of` reads it, or UNLABELLED, which key frames of MovieNet are by their names.

    Raises UserError for a class of that name.
    """
    if shot_of(stem(name)) is not None:
        return UNLABELLED
    cls, _, _ = _DRAWN.sub("", stem(name)).rpartition("_")
    return checked_class(cls.removesuffix("_frame") or cls, name) if cls else UNLABELLED


def checked_class(cls: str, what: str) -> str:
    """A class; raises UserError for the one that stands for images without a class; what: that is of it."""
    if key(cls) == UNLABELLED:
        raise UserError(f"{what}: the class {cls} stands for images without a class; call it something else")
    return cls


@lru_cache(1 << 16)
def identity_class(name: str) -> str:
    """The class of an identity CLASS_NUMBER, of a drawn image, or of what stands for all of a class by its name.

    It is for results that do not say the classes of their identities: a name with another ending is taken for a class,
    as of `Harry_Potter`. Where it is known to be an identity or an image, `class_of` reads it.
    """
    cls, _, number = stem(name).rpartition("_")
    return class_of(name) if cls and (number.isdigit() or _DRAWN.search(stem(name))) else stem(name)


def key(cls: str) -> str:
    """What two spellings of a class have in common."""
    return cls.strip().replace(" ", "_").casefold()


def group_by_class(names: Sequence[str]) -> dict[str, list[str]]:
    """Names of images or identities by the class that they say; those without one are UNLABELLED."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[class_or_unlabelled(name)].append(name)
    return dict(groups)


@dataclass(frozen=True)
class Picture:
    """An image of a character."""

    name: str
    """Name of its file, after that of its folder or film where files of several have one name."""
    uri: str
    size: int
    """Bytes; -1 where there is no such file."""
    label: str = ""
    """Its class as a manifest beside it says; empty: the name says it."""

    @property
    def cls(self) -> str:
        """Its class, or UNLABELLED."""
        return self.label or class_or_unlabelled(self.name)

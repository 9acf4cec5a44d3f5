"""Names of images, classes and identities."""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from actors.core.errors import UserError

_IMAGE_NAME = re.compile(r"\.(jpe?g|png|webp|bmp|tiff?|gif)$", re.IGNORECASE)


_DRAWN = re.compile(r"_seed-?[\d.e+-]+_alpha[\dpe+-]+_guidance[\dpe+-]+$")


def drawn_name(identity: str, seed: int, alpha: float, guidance: float) -> str:
    """The name of a drawn image, of letters, digits, _ and -, and a dot before the ending: legal in every file system.

    `class_of` reads it: the image is of the identity's class.
    """
    safe = "".join(letter if letter.isalnum() or letter in "_-" else "-" for letter in identity)
    numbers = (f"{value:g}".replace(".", "p") for value in (seed, alpha, guidance))
    return "{}_seed{}_alpha{}_guidance{}.png".format(safe, *numbers)


@lru_cache(1 << 16)
def stem(name: str) -> str:
    """The name of an image or identity without folder and suffix of an image."""
    return _IMAGE_NAME.sub("", name.strip().rpartition("/")[2])


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
    """The class of an image as `class_of` reads it, or UNLABELLED."""
    cls, _, _ = _DRAWN.sub("", stem(name)).rpartition("_")
    return cls.removesuffix("_frame") or cls or UNLABELLED


@lru_cache(1 << 16)
def identity_class(name: str) -> str:
    """The class of an identity CLASS_NUMBER, or of one that stands for all of a class and bears its name."""
    cls, _, number = stem(name).rpartition("_")
    return class_of(name) if cls and number.isdigit() else stem(name)


def key(cls: str) -> str:
    """What two spellings of a class have in common."""
    return cls.strip().replace(" ", "_").casefold()


def group_by_class(names: Sequence[str]) -> dict[str, list[str]]:
    """Names of pictures or identities by their class; those without one are UNLABELLED."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[class_or_unlabelled(name)].append(name)
    return dict(groups)


@dataclass(frozen=True)
class Picture:
    """An image of a character."""

    name: str
    """Name of its file."""
    uri: str
    size: int
    """Bytes; -1 where there is no such file."""

"""Drawn characters: an identity is one choice of layers, an instance is one pose; identities share layers.

Two casts: the sheets of a character generator, which are not part of the project, and sketches that are drawn here.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.support.data import FOLDER

SIZE = 64
"""Width and height of an instance."""
FACE = (16, 8, 48, 40)
"""About where the face is: left, top, right, bottom."""
Identity = tuple[int, ...]
"""Of each layer, which of its choices."""


class Cast(Protocol):
    """Characters that can be drawn."""

    choices: tuple[int, ...]
    """How many there are of each layer."""
    poses: int

    def draw(self, identity: Identity, pose: int) -> np.ndarray:
        """uint8 (SIZE, SIZE, 4), RGB and alpha."""
        ...


class Sheets:
    """The sheets below FILMRAY_DATA/lpc: 4 bodies, 3 legs, 2 feet, 5 torsos, 5 haircuts in 4 colours."""

    # Steps of cast, thrust, walk, slash and shoot; each of them faces north, west, south, east.
    STEPS = (7, 8, 9, 6, 13)

    def __init__(self) -> None:
        root = FOLDER / "lpc"
        if not root.is_dir():
            pytest.skip(f"no {root}: set FILMRAY_DATA to the folder that holds it")
        names = ("body", "legs", "feet", "torso")
        layers = [sorted(str(path) for path in (root / name).rglob("*.png")) for name in names]
        hair = sorted(str(path) for path in (root / "hair").rglob("*.png"))
        self._layers = layers
        self._hair = [[path for path in hair if Path(path).parent.name == cut] for cut in _parents(hair)]
        self.choices = (*(len(layer) for layer in layers), len(self._hair), len(self._hair[0]))
        # Not from behind, where no face is seen.
        seen = ((action, way) for action in range(len(self.STEPS)) for way in (1, 2, 3))
        self._places = [(4 * action + way, step) for action, way in seen for step in range(self.STEPS[action])]
        self.poses = len(self._places)

    def draw(self, identity: Identity, pose: int) -> np.ndarray:
        """One frame of the sheets, seen from the front or from a side."""
        row, column = self._places[pose]
        *layers, cut, colour = identity
        paths = [*(layer[i] for layer, i in zip(self._layers, layers, strict=True)), self._hair[cut][colour]]
        place = slice(row * SIZE, (row + 1) * SIZE), slice(column * SIZE, (column + 1) * SIZE)
        drawn = np.zeros((SIZE, SIZE, 4), np.uint8)
        for path in paths:
            piece = _sheet(path)[place]
            drawn[piece[..., 3] > 127] = piece[piece[..., 3] > 127]
        return drawn


def _parents(paths: Sequence[str]) -> list[str]:
    return sorted({Path(path).parent.name for path in paths})


@cache
def _sheet(path: str) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGBA"))


class Sketches:
    """Figures of a few strokes: 4 skins, 3 trousers, 2 shoes, 5 shirts, 5 haircuts in 4 colours."""

    choices: tuple[int, ...] = (4, 3, 2, 5, 5, 4)
    poses = 96
    SKINS = ((255, 219, 172), (198, 134, 66), (120, 72, 40), (150, 160, 200))
    TROUSERS = ((40, 60, 150), (200, 200, 200), (150, 30, 110))
    SHOES = ((20, 20, 20), (130, 70, 20))
    SHIRTS = ((220, 40, 40), (40, 150, 60), (230, 190, 40))
    HAIR = ((30, 25, 20), (235, 200, 90), (170, 60, 20), (60, 90, 220))

    def draw(self, identity: Identity, pose: int) -> np.ndarray:
        """A figure whose limbs and place are those of the pose."""
        skin, trousers, shoes, shirt, cut, colour = identity
        random = np.random.default_rng(pose)
        swing, lift = random.uniform(-9, 9, 2).tolist(), random.uniform(-14, 10, 2).tolist()
        x, y = 32 + int(random.integers(-3, 4)), 20 + int(random.integers(-2, 3))
        turn = int(random.integers(-4, 5))
        drawn = np.zeros((SIZE, SIZE, 4), np.uint8)

        def line(start: tuple[float, float], end: tuple[float, float], rgb: tuple[int, ...], width: int) -> None:
            cv2.line(drawn, _point(start), _point(end), (*rgb, 255), width)

        def disc(centre: tuple[float, float], radii: tuple[int, int], rgb: tuple[int, ...]) -> None:
            cv2.ellipse(drawn, _point(centre), radii, 0, 0, 360, (*rgb, 255), -1)

        for side, way in ((-4, swing[0]), (4, swing[1])):
            foot = x + side + way / 2, y + 40
            line((x + side, y + 26), foot, self.TROUSERS[trousers], 5)
            disc(foot, (4, 2), self.SHOES[shoes])
        for side, up in ((-10, lift[0]), (10, lift[1])):
            line((x + side * 0.7, y + 13), (x + side * 1.4, y + 24 + up), self.SKINS[skin], 4)
        cv2.rectangle(drawn, _point((x - 8, y + 10)), _point((x + 8, y + 27)), (*self.SHIRTS[shirt % 3], 255), -1)
        if shirt >= 3:
            for row in range(y + 12, y + 27, 4):
                line((x - 8, row), (x + 8, row), (250, 250, 250), 1)
        disc((x, y), (8, 9), self.SKINS[skin])
        for eye in (-3, 3):
            disc((x + eye + turn / 2, y), (1, 1), (10, 10, 10))
        hair = self.HAIR[colour]
        if cut == 0:
            disc((x, y - 6), (8, 4), hair)
        elif cut == 1:
            for side in (-8, 8):
                line((x + side, y - 5), (x + side, y + 12), hair, 4)
            disc((x, y - 7), (9, 4), hair)
        elif cut == 2:
            line((x, y - 7), (x, y - 15), hair, 4)
        elif cut == 3:
            for end in range(-9, 10, 3):
                line((x, y - 6), (x + end, y - 13), hair, 2)
        else:
            line((x - 8, y - 5), (x + 8, y - 3), hair, 4)
            line((x + 8, y - 3), (x + 13, y + 6), hair, 3)
        return drawn


def _point(place: tuple[float, float]) -> tuple[int, int]:
    return round(place[0]), round(place[1])


def identities(cast: Cast, count: int, seed: int, other_than: Sequence[Identity] = ()) -> list[Identity]:
    """So many identities, none twice; every choice of a layer is shared by about as many of them."""
    random = np.random.default_rng(seed)
    taken = set(other_than)
    found: list[Identity] = []
    while len(found) < count:
        # Each layer's choices are dealt out evenly, so that none of them gives an identity away.
        deals = [random.permutation(np.arange(count) % n) for n in cast.choices]
        for identity in zip(*(deal.tolist() for deal in deals), strict=True):
            if identity not in taken and len(found) < count:
                taken.add(identity)
                found.append(identity)
    return found


def background(random: np.random.Generator, size: int = SIZE) -> np.ndarray:
    """A blurred landscape of random colours, uint8 (size, size, 3) RGB."""
    coarse = random.integers(40, 216, (random.integers(2, 6), random.integers(2, 6), 3)).astype(np.uint8)
    smooth: np.ndarray = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
    for _ in range(random.integers(0, 4)):
        corner, other = random.integers(0, size, 2), random.integers(0, size, 2)
        cv2.rectangle(smooth, corner.tolist(), other.tolist(), random.integers(0, 256, 3).tolist(), -1)
    noise = random.normal(0, 6, smooth.shape)
    return np.clip(smooth + noise, 0, 255).astype(np.uint8)


def picture(cast: Cast, identity: Identity, pose: int, random: np.random.Generator, shift: int = 4) -> np.ndarray:
    """An instance over a background, moved by at most so many pixels: uint8 (SIZE, SIZE, 3) RGB."""
    down, right = random.integers(0, 2 * shift + 1, 2)
    padded = np.pad(cast.draw(identity, pose), ((shift, shift), (shift, shift), (0, 0)))
    moved = padded[down : down + SIZE, right : right + SIZE]
    return np.where(moved[..., 3:] > 127, moved[..., :3], background(random))

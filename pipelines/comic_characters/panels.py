"""Panels of a comic side by side, with a box in a colour of its own around everybody."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageDraw

from actors.media.images import picture_bytes
from pipelines.core.drawing import letters

Colour = tuple[int, int, int]
"""RGB."""
HEIGHT, WIDEST, ACROSS, GAP = 360, 300, 4, 12
"""Pixels of a panel at most; how many stand beside one another, and how far apart."""
TITLE, LONGEST = 22, 180
"""Pixels of the line above a panel, and of a name."""
FIRST: tuple[Colour, ...] = ((31, 111, 235), (196, 71, 43), (47, 158, 110), (156, 95, 208))
"""Colours of the first identities; others are as far from all before them as can be."""


@dataclass(frozen=True)
class Person:
    """Somebody in a panel."""

    boxes: list[tuple[float, float, float, float]]
    """left, top, right, bottom of face, body or both, in pixels of the panel."""
    name: str
    """What stands at the box."""
    identity: int
    """From 0; each has a colour."""


@dataclass(frozen=True)
class Panel:
    """A panel and who is in it."""

    title: str
    picture: Image.Image | None
    """None where it cannot be read."""
    people: list[Person]


def distinct(count: int) -> list[Colour]:
    """So many colours that can be told apart, on white and on each other; the first ones are always the same."""
    steps = np.linspace(0, 255, 18).astype(np.uint8)
    grid = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(1, -1, 3)
    grid = np.concatenate([np.array([FIRST], np.uint8), grid], axis=1)
    # Distances in this space are about those that are seen.
    lab: np.ndarray = cv2.cvtColor(grid.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[0]
    usable = (lab[:, 0] > 30) & (lab[:, 0] < 82) & (np.hypot(lab[:, 1], lab[:, 2]) > 30)
    chosen = list(range(min(count, len(FIRST))))
    nearest = np.where(usable, np.inf, -1.0)
    while chosen:
        nearest = np.minimum(nearest, np.linalg.norm(lab - lab[chosen[-1]], axis=1))
        if len(chosen) >= count:
            break
        chosen.append(int(nearest.argmax()))
    return [(int(r), int(g), int(b)) for r, g, b in grid[0, chosen].tolist()]


def draw_panels(panels: Sequence[Panel]) -> bytes:
    """A JPEG of the panels in rows, each with its title above it and the boxes and names of who is in it."""
    identities = max((person.identity for panel in panels for person in panel.people), default=-1) + 1
    colours = distinct(identities)
    drawn = [_panel(panel, colours) for panel in panels]
    rows = [drawn[first : first + ACROSS] for first in range(0, len(drawn), ACROSS)]
    width = max(sum(one.width + GAP for one in row) - GAP for row in rows)
    heights = [max(one.height for one in row) for row in rows]
    sheet = Image.new("RGB", (width, sum(height + GAP for height in heights) - GAP), "white")
    top = 0
    for row, height in zip(rows, heights, strict=True):
        left = 0
        for one in row:
            sheet.paste(one, (left, top))
            left += one.width + GAP
        top += height + GAP
    return picture_bytes(sheet, quality=90, subsampling=0)


def _panel(panel: Panel, colours: Sequence[Colour]) -> Image.Image:
    title, label = letters(14), letters(15)
    picture = panel.picture
    if picture is None:
        right, bottom = np.max([box[2:] for person in panel.people for box in person.boxes], axis=0).tolist()
        picture = Image.new("RGB", (math.ceil(right), math.ceil(bottom)), (225, 225, 225))
    scale = min(HEIGHT / picture.height, WIDEST / picture.width)
    # Pixel art stays sharp where it is enlarged.
    how = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    sheet = Image.new("RGB", (size[0], size[1] + TITLE), "white")
    sheet.paste(picture.convert("RGB").resize(size, how), (0, TITLE))
    pen = ImageDraw.Draw(sheet)
    pen.text((0, 2), panel.title, fill=(90, 90, 90), font=title)
    for person in panel.people:
        for box in person.boxes:
            x_0, y_0, x_1, y_1 = _within([side * scale for side in box], size)
            outline = (x_0, y_0 + TITLE, x_1, y_1 + TITLE)
            # A light edge, so that a box is seen on a ground of its own colour, too.
            pen.rectangle((outline[0] - 1, outline[1] - 1, outline[2] + 1, outline[3] + 1), outline="white", width=5)
            pen.rectangle(outline, outline=colours[person.identity], width=3)
    taken: list[tuple[float, float, float, float]] = []
    for person in panel.people:
        taken.append(_tag(pen, person, colours[person.identity], label, scale, size, taken))
    return sheet


def _within(box: Sequence[float] | np.ndarray, size: tuple[int, int]) -> list[float]:
    limits = (size[0] - 2, size[1] - 2) * 2
    return [min(max(side, 1), limit) for side, limit in zip(box, limits, strict=True)]


def _tag(
    pen: ImageDraw.ImageDraw,
    person: Person,
    colour: Colour,
    font: Any,
    scale: float,
    size: tuple[int, int],
    taken: Sequence[tuple[float, float, float, float]],
) -> tuple[float, float, float, float]:
    """Write a name on its colour above the boxes, or below what stands there already; returns where."""
    text = person.name
    while font.getlength(text) > min(size[0] - 12, LONGEST) and len(text) > 2:
        text = text[:-2] + "…"
    width, height = font.getlength(text) + 8, 19
    left, top, _, _ = _within(np.min(person.boxes, axis=0) * scale, size)
    left, top = max(0, min(left - 2, size[0] - width)), max(TITLE, min(top - height - 2, size[1] - height) + TITLE)
    place = left, top, left + width, top + height
    for other in sorted(taken, key=lambda one: one[1]):
        if place[0] < other[2] and other[0] < place[2] and place[1] < other[3] and other[1] < place[3]:
            place = left, other[3] + 1, left + width, other[3] + 1 + height
    pen.rectangle(place, fill=colour)
    light = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 150
    pen.text((place[0] + 4, place[1]), text, fill="black" if light else "white", font=font)
    return place

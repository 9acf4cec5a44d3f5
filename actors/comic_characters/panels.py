"""Panels of a comic's page in reading order, without weights: from the gutters between them and from closed frames.

1. The colour of gutters is the most frequent one at the page's border; gutters are what is connected to the border.
2. What gutters leave is cut along straight gutters that something crosses, as a balloon does.
3. What has no frame is joined: figures on bare paper are one panel.
4. Thin closed frames within a panel are insets.
"""

from collections.abc import Sequence
from itertools import combinations
from typing import Literal, NamedTuple

import cv2
import numpy as np

Reading = Literal["left_to_right", "right_to_left"]
SIDE = 900
"""Pixels of a page's longer side while panels are looked for."""
SMALLEST = 16
"""Pixels of the shorter side, then, below which a page is one panel."""
TOLERANCE = 26
"""Largest difference of a gutter's pixel from the gutter's colour, of 255."""
LEAST_AREA, LEAST_SIDE = 0.005, 0.05
"""Least share of the page's area, and of its shorter side, of a panel."""
CROSSED, SOLID = 0.5, 0.7
"""Least share of a straight gutter that is seen, since balloons may cover the rest, and of a panel's rows."""


class Panel(NamedTuple):
    """A box in pixels of the page; right and bottom are exclusive."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def area(self) -> float:
        """Its area in pixels."""
        return max(0.0, self.right - self.left) * max(0.0, self.bottom - self.top)

    def common(self, other: "Panel") -> float:
        """Area that it shares with another."""
        return Panel(*np.maximum(self[:2], other[:2]), *np.minimum(self[2:], other[2:])).area


def find_panels(page: np.ndarray, reading: Reading = "left_to_right") -> list[Panel]:
    """Panels of a page uint8 (H, W, 3) RGB in reading order; the whole page where there are none."""
    height, width = page.shape[:2]
    scale = min(1.0, SIDE / max(height, width))
    small = cv2.resize(page, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else page
    if min(small.shape[:2]) < SMALLEST:
        return [Panel(0, 0, width, height)]
    # The colour that leaves most panels with straight sides, at a draw the more frequent one.
    framed, loose = max((_pieces(_gutters(small, colour)) for colour in _colours(small)), key=lambda one: len(one[0]))
    found = [panel for panel in [*framed, *_joined(loose, framed, small.shape)] if _is_large(panel, small.shape)]
    found += _insets(small, found)
    # Sides are rounded when a page is scaled: each is stretched back by its own factor.
    across, down = small.shape[1], small.shape[0]
    scaled = [
        Panel(x_0 * width / across, y_0 * height / down, x_1 * width / across, y_1 * height / down)
        for x_0, y_0, x_1, y_1 in found
    ]
    scaled = scaled or [Panel(0, 0, width, height)]
    return in_order(scaled, reading)


def _colours(page: np.ndarray) -> list[np.ndarray]:
    """Colours that gutters may have, each int (3,): the most frequent ones at the page's border, white and black."""
    edges = np.concatenate([page[:2].reshape(-1, 3), page[-2:].reshape(-1, 3), *(page[:, x] for x in (0, 1, -2, -1))])
    kinds, counts = np.unique(edges // 16, axis=0, return_counts=True)
    frequent = kinds[np.argsort(-counts, kind="stable")[:2]]
    found = [np.median(edges[(edges // 16 == kind).all(1)], axis=0).astype(int) for kind in frequent]
    return [*found, np.array([255, 255, 255]), np.array([0, 0, 0])]


def _gutters(page: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """Where a page has a colour and is connected to its border by it, bool (H, W)."""
    paper = np.abs(page.astype(int) - colour).max(-1) <= TOLERANCE
    # A rim outside of the page connects gutters that end at its edge.
    padded = np.pad(paper, 1, constant_values=True).astype(np.uint8)
    _, labels = cv2.connectedComponents(padded, connectivity=4)
    return (labels == labels[0, 0])[1:-1, 1:-1]


def _pieces(gutters: np.ndarray) -> tuple[list[Panel], list[Panel]]:
    """What gutters leave, without specks: boxes with four straight sides, and others."""
    rest = cv2.morphologyEx((~gutters).astype(np.uint8), cv2.MORPH_OPEN, np.ones((2, 2), np.uint8))
    _, labels, stats, _ = cv2.connectedComponentsWithStats(rest, connectivity=8)
    framed: list[Panel] = []
    loose: list[Panel] = []
    for number, (x, y, width, height, size) in enumerate(stats[1:].tolist(), start=1):
        if min(width, height) >= 4:
            cut = _cut(Panel(x, y, x + width, y + height), labels == number)
            # Straight parts of a figure are no panels.
            whole = sum(panel.area for panel in cut) > 0.85 * size
            framed += cut if whole else ()
            loose += () if whole else (Panel(x, y, x + width, y + height),)
    return framed, loose


def _cut(piece: Panel, drawn: np.ndarray, depth: int = 3) -> list[Panel]:
    """The framed boxes of a piece, which is cut along straight gutters that something crosses; none where it has none.

    drawn: where the piece is, bool (H, W).
    """
    whole = [piece] if _is_framed(piece, drawn) else []
    left, top, right, bottom = map(int, piece)
    inside = ~drawn[top:bottom, left:right]
    least = LEAST_SIDE * min(drawn.shape)
    best, most = whole, 0.9 * piece.area if whole else 0.0
    for axis in (0, 1) if depth else ():
        share = inside.mean(1 - axis)
        # Two pixels at least, since a row beside a frame may have many by chance.
        lines = np.flatnonzero((share[:-1] >= CROSSED) & (share[1:] >= CROSSED))
        for place in lines[[0, len(lines) // 2, -1]].tolist() if len(lines) else ():
            first, second = (
                (Panel(left, top, right, top + place), Panel(left, top + place, right, bottom))
                if axis == 0
                else (Panel(left, top, left + place, bottom), Panel(left + place, top, right, bottom))
            )
            if min(first.area, second.area) < least * least:
                # A balloon that sticks out, of which nothing else is to be kept.
                first, second = max(first, second, key=lambda one: one.area), None
            parts = [_fitted(part, drawn) for part in (first, second) if part]
            found = [one for part in parts if part for one in _cut(part, drawn, depth - 1)]
            # Of cuts that leave about as much, the one into fewer parts.
            if (area := sum(panel.area for panel in found) * (1 - 0.02 * len(found))) > most:
                best, most = found, area
    return best


def _fitted(piece: Panel, drawn: np.ndarray) -> Panel | None:
    """A box without the gutter at its sides; what sticks out of a side, as a balloon does, is no part of it."""
    left, top, right, bottom = map(int, piece)
    # A part may be narrower than what it was cut from: roughly first, then exactly.
    for axis, share in ((0, 0.3), (1, SOLID), (0, SOLID)):
        if bottom <= top or right <= left:
            return None
        solid: list[int] = np.flatnonzero(drawn[top:bottom, left:right].mean(axis) > share).tolist()
        if not solid:
            return None
        if axis == 0:
            left, right = left + solid[0], left + solid[-1] + 1
        else:
            top, bottom = top + solid[0], top + solid[-1] + 1
    return Panel(left, top, right, bottom)


def _is_framed(piece: Panel, drawn: np.ndarray) -> bool:
    """Whether a box is large, and drawn along most of each side that is not at the page's edge."""
    left, top, right, bottom = map(int, piece)
    height, width = drawn.shape
    if not _is_large(piece, drawn.shape) or min(right - left, bottom - top) < 1.8 * LEAST_SIDE * min(height, width):
        return False
    rest, depth = drawn[top:bottom, left:right], max(3, round(0.005 * max(drawn.shape)))
    sides = (
        (top > 1, rest[:depth].any(0)),
        (bottom < height - 1, rest[-depth:].any(0)),
        (left > 1, rest[:, :depth].any(1)),
        (right < width - 1, rest[:, -depth:].any(1)),
    )
    inner = [side.mean() for is_inner, side in sides if is_inner]
    return min(inner, default=1.0) > 0.85 and rest.mean() > 0.3


def _joined(loose: Sequence[Panel], framed: Sequence[Panel], shape: tuple[int, ...]) -> list[Panel]:
    """Pieces without a frame, joined with those near by; what lies in a framed one or between two is none."""
    loose = [one for one in loose if not any(one.common(other) > 0.3 * one.area for other in framed)]
    while pair := _next_pair(loose, framed, shape):
        loose = [one for one in loose if one not in pair] + [_around(*pair)]
    return list(loose)


def _next_pair(loose: Sequence[Panel], framed: Sequence[Panel], shape: tuple[int, ...]) -> tuple[Panel, Panel] | None:
    """Two pieces that belong together, with no framed one between them."""
    for one, other in combinations(loose, 2):
        both = _around(one, other)
        between = any(both.common(panel) > 0.02 * min(both.area, panel.area) for panel in framed)
        if _belong_together(one, other, shape) and not between:
            return one, other
    return None


def _belong_together(one: Panel, other: Panel, shape: tuple[int, ...]) -> bool:
    """Whether two pieces without a frame stand beside one another, or one just above the other."""
    across = min(one.right, other.right) - max(one.left, other.left)
    down = min(one.bottom, other.bottom) - max(one.top, other.top)
    if across > 0 and down > 0:
        return True
    if down > 0:
        return -across < 0.35 * shape[1]
    return across > 0 and -down < 0.012 * shape[0]


def _around(one: Panel, other: Panel) -> Panel:
    return Panel(*np.minimum(one[:2], other[:2]).tolist(), *np.maximum(one[2:], other[2:]).tolist())


def _is_large(panel: Panel, shape: tuple[int, ...]) -> bool:
    height, width = shape[:2]
    sides = panel.right - panel.left, panel.bottom - panel.top
    return panel.area >= LEAST_AREA * height * width and min(sides) >= LEAST_SIDE * min(height, width)


def _insets(page: np.ndarray, panels: Sequence[Panel]) -> list[Panel]:
    """Panels within panels: what thin rectangular frames enclose, dark ones or such of light paper."""
    grey = cv2.cvtColor(page, cv2.COLOR_RGB2GRAY)
    found: list[Panel] = []
    for mask in (grey < 70, grey > 235):
        # Of a frame that a balloon covers in part, or that dark art touches, the straight lines.
        for lines in (mask, _straight(mask)):
            contours, tree = cv2.findContours(lines.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
            for contour, place in zip(contours, tree[0] if tree is not None else (), strict=True):
                x, y, width, height = cv2.boundingRect(contour)
                # The contour of a hole runs over the pixels around it.
                hole = int(place[3] >= 0)
                box = Panel(x + hole, y + hole, x + width - hole, y + height - hole)
                # Whatever stands on paper is a hole of it.
                if hole and cv2.contourArea(contour) < 0.88 * (width - 1) * (height - 1):
                    continue
                if _is_large(box, page.shape) and (outer := _frame(mask, box, outwards=bool(hole))):
                    found.append(outer)
    kept: list[Panel] = []
    # Of the two sides of a rim of paper, the inner one is the panel.
    for one in sorted(found, key=lambda panel: panel.area):
        if not any(_same(one, other) for other in [*panels, *kept]):
            kept.append(one)
    return [one for one in kept if any(one.common(panel) > 0.9 * one.area for panel in panels)]


def _straight(mask: np.ndarray) -> np.ndarray:
    """The horizontal and vertical lines of a mask that are long enough for a side of a panel."""
    length = max(3, round(0.5 * LEAST_SIDE * min(mask.shape)))
    kernels = (np.ones(shape, np.uint8) for shape in ((1, length), (length, 1)))
    opened = [cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, kernel) for kernel in kernels]
    return np.any(opened, axis=0)


def _frame(mask: np.ndarray, box: Panel, outwards: bool) -> Panel | None:
    """The outer side of a frame around a box, or of the one at its rim; None where that is not closed and thin."""
    left, top, right, bottom = map(int, box)
    thickest = max(3, round(0.012 * max(mask.shape)))
    for step in range(thickest + 2):
        grow = step + 1 if outwards else -step
        x_0, y_0, x_1, y_1 = left - grow, top - grow, right + grow - 1, bottom + grow - 1
        if min(x_0, y_0) < 0 or x_1 >= mask.shape[1] or y_1 >= mask.shape[0] or x_0 > x_1 or y_0 > y_1:
            return None
        sides = mask[y_0, x_0 : x_1 + 1], mask[y_1, x_0 : x_1 + 1], mask[y_0 : y_1 + 1, x_0], mask[y_0 : y_1 + 1, x_1]
        shares = sorted(side.mean() for side in sides)
        if step == 0 and (shares[1] < 0.85 or shares[0] < 0.4):
            return None
        if shares[1] < 0.7:
            return Panel(left - step, top - step, right + step, bottom + step) if outwards else box
    return None


def _same(one: Panel, other: Panel) -> bool:
    common = one.common(other)
    return common > 0.75 * (one.area + other.area - common)


def in_order(panels: Sequence[Panel], reading: Reading = "left_to_right") -> list[Panel]:
    """Panels in reading order: rows from the top, each along the reading direction; an inset follows its panel."""
    insets: dict[int, list[Panel]] = {}
    outer: list[Panel] = []
    for one in sorted(panels, key=lambda panel: -panel.area):
        owner = [i for i, other in enumerate(outer) if one.common(other) > 0.7 * one.area]
        if owner:
            insets.setdefault(min(owner, key=lambda i: outer[i].area), []).append(one)
        else:
            outer.append(one)
    found = []
    for number in _sorted(outer, list(range(len(outer))), reading):
        found += [outer[number], *in_order(insets.get(number, []), reading)]
    return found


def _sorted(panels: Sequence[Panel], numbers: list[int], reading: Reading) -> list[int]:
    """Numbers of panels in order: cut between rows where a line goes through, else between columns."""
    if len(numbers) < 2:
        return numbers
    for low, high, backwards in ((1, 3, False), (0, 2, reading == "right_to_left")):
        groups = _apart(panels, numbers, low, high)
        if len(groups) > 1:
            return [one for group in (groups[::-1] if backwards else groups) for one in _sorted(panels, group, reading)]
    # Panels that are interlocked: the one whose corner is first.
    way = -1 if reading == "right_to_left" else 1
    return sorted(numbers, key=lambda i: panels[i].top + 0.5 * way * (panels[i].left if way > 0 else panels[i].right))


def _apart(panels: Sequence[Panel], numbers: list[int], low: int, high: int) -> list[list[int]]:
    """Groups of panels along an axis between which a line goes through, up to a tenth of the smaller one."""
    groups: list[list[int]] = []
    end = -np.inf
    for number in sorted(numbers, key=lambda i: panels[i][low]):
        slack = 0.1 * min(panels[i][high] - panels[i][low] for i in (number, *(groups[-1] if groups else ())))
        if not groups or panels[number][low] >= end - slack:
            groups.append([])
        groups[-1].append(number)
        end = max(end, panels[number][high])
    return groups

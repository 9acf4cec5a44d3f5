"""Pages of drawn comics: panels with bleeds, insets and without borders, balloons, gutters of several colours."""

from dataclasses import dataclass, field

import cv2
import numpy as np

from actors.comic_characters.panels import Panel
from tests.support.drawn import FACE, SIZE, Cast, Identity, background

WIDTH, HEIGHT = 640, 920
KINDS = ("framed", "bare", "figures", "bleed", "inset")
"""Panels: with a frame; art without one; figures on bare paper; art up to the page's edge; one within another."""


@dataclass
class Page:
    """A drawn page, and what is on it."""

    pixels: np.ndarray
    """uint8 (H, W, 3) RGB."""
    panels: list[Panel] = field(default_factory=list)
    """In reading order from left to right."""
    kinds: list[str] = field(default_factory=list)
    """Of each panel one of KINDS."""
    people: list[tuple[int, int, np.ndarray, np.ndarray]] = field(default_factory=list)
    """Panel, identity, and the boxes float (4,) of face and body."""


def draw_page(cast: Cast, everybody: list[Identity], random: np.random.Generator, crossing: bool = True) -> Page:
    """A page of two to four rows; crossing: some balloons reach over a gutter."""
    gutter = random.choice(np.array([[255, 255, 255], [250, 246, 232], [12, 12, 12]]), p=[0.6, 0.25, 0.15])
    page = Page(np.full((HEIGHT, WIDTH, 3), gutter, np.uint8))
    dark = gutter.mean() < 99
    margin, gap = int(random.integers(14, 36)), int(random.integers(8, 18))
    alone = -1
    for number, cell in enumerate(_cells(random, margin, gap)):
        kind = str(random.choice(["framed", "bare", "figures"], p=[0.7, 0.15, 0.15]))
        if kind == "figures" and (dark or cell[1] < alone):
            # Their hair would not be seen, or whose figures are whose could not be said.
            kind = "framed"
        alone = cell[3] if kind == "figures" else alone
        box, bleeds = _bled(cell, margin) if kind == "framed" and random.random() < 0.4 else (cell, False)
        _draw_panel(page, box, "bleed" if bleeds else kind, cast, everybody, random, dark)
        if page.kinds[-1] in ("framed", "bleed") and _roomy(box) and random.random() < 0.3:
            _draw_inset(page, box, cast, everybody, random)
        if crossing and number and random.random() < 0.15:
            _balloon(page.pixels, (cell[0] + 0.5 * (cell[2] - cell[0]), cell[1]), random)
    return page


def mirrored(page: Page) -> Page:
    """The page as it is read from right to left; the order of its panels stays."""
    turned = [Panel(WIDTH - one.right, one.top, WIDTH - one.left, one.bottom) for one in page.panels]
    return Page(np.ascontiguousarray(page.pixels[:, ::-1]), turned, page.kinds)


Cell = tuple[int, int, int, int]


def _cells(random: np.random.Generator, margin: int, gap: int) -> list[Cell]:
    """Boxes of panels in reading order: rows, of which one column may be two panels high."""
    cells: list[Cell] = []
    rows = _shares(random, int(random.integers(2, 5)), margin, HEIGHT - margin, gap)
    for top, bottom in rows:
        columns = _shares(random, int(random.integers(1, 4)), margin, WIDTH - margin, gap)
        stacked = int(random.integers(len(columns))) if len(columns) > 1 and bottom - top > 250 else -1
        for number, (left, right) in enumerate(columns):
            if number == stacked and random.random() < 0.6:
                middle = int(random.integers(top + 100, bottom - 100))
                cells += [(left, top, right, middle - gap // 2), (left, middle + gap - gap // 2, right, bottom)]
            else:
                cells.append((left, top, right, bottom))
    return cells


def _shares(random: np.random.Generator, count: int, first: int, last: int, gap: int) -> list[tuple[int, int]]:
    shares = random.uniform(1, 2, count)
    ends = np.round(first + np.cumsum(shares) / shares.sum() * (last - first + gap)).astype(int).tolist()
    return [(first if not i else ends[i - 1], ends[i] - gap) for i in range(count)]


def _bled(cell: Cell, margin: int) -> tuple[Cell, bool]:
    """A cell at the edge of the page grown over its margin."""
    left, top, right, bottom = cell
    grown = (
        0 if left <= margin else left,
        0 if top <= margin else top,
        WIDTH if right >= WIDTH - margin - 1 else right,
        HEIGHT if bottom >= HEIGHT - margin - 1 else bottom,
    )
    return grown, grown != cell


def _roomy(box: Cell) -> bool:
    return box[2] - box[0] > 220 and box[3] - box[1] > 170


def _draw_panel(
    page: Page, box: Cell, kind: str, cast: Cast, everybody: list[Identity], random: np.random.Generator, dark: bool
) -> None:
    left, top, right, bottom = box
    view = page.pixels[top:bottom, left:right]
    if kind != "figures":
        art = background(random, max(view.shape[:2]))[: view.shape[0], : view.shape[1]]
        # Pale as paper where there is a frame that says where it ends.
        pale = float(random.uniform(0, 0.85)) if kind in ("framed", "inset", "bleed") else 0.2
        view[:] = ((1 - pale) * art + pale * 255).astype(np.uint8)
        if kind == "framed" and random.random() < 0.2:
            view[:] = 0 if dark else 255
    people = _people(page, box, cast, everybody, random, large=kind == "figures")
    if kind == "figures":
        drawn = np.array([one[3] for one in people])
        panel = Panel(*drawn[:, :2].min(0).tolist(), *drawn[:, 2:].max(0).tolist())
    else:
        panel = Panel(*map(float, box))
        if random.random() < 0.5:
            _balloon(view, (0.3 * view.shape[1], 0.15 * view.shape[0]), random)
    if kind in ("framed", "bleed", "inset"):
        # Of a panel that bleeds, the sides at the page's edge are not seen.
        left, right = left - 5 * (left == 0), right + 5 * (right == WIDTH)
        top, bottom = top - 5 * (top == 0), bottom + 5 * (bottom == HEIGHT)
        ink = (235, 235, 235) if dark and kind != "inset" else (15, 15, 15)
        cv2.rectangle(page.pixels, (left, top), (right - 1, bottom - 1), ink, int(random.integers(2, 4)))
    page.panels.append(panel)
    page.kinds.append(kind)
    page.people += people


def _draw_inset(page: Page, box: Cell, cast: Cast, everybody: list[Identity], random: np.random.Generator) -> None:
    """A panel in a corner of another one, with a rim of paper around it or only a frame."""
    width, height = (int(0.42 * (box[2 + i] - box[i])) for i in (0, 1))
    left = box[0] + 12 if random.random() < 0.5 else box[2] - 12 - width
    top = box[1] + 12 if random.random() < 0.5 else box[3] - 12 - height
    if random.random() < 0.6:
        page.pixels[top - 5 : top + height + 5, left - 5 : left + width + 5] = 255
    # Whoever stood there is hidden.
    owner = len(page.panels) - 1
    page.people = [
        one
        for one in page.people
        if one[0] != owner
        or Panel(*one[3].tolist()).common(Panel(left - 5, top - 5, left + width + 5, top + height + 5)) == 0
    ]
    _draw_panel(page, (left, top, left + width, top + height), "inset", cast, everybody, random, dark=False)


def _people(
    page: Page, box: Cell, cast: Cast, everybody: list[Identity], random: np.random.Generator, large: bool
) -> list[tuple[int, int, np.ndarray, np.ndarray]]:
    """One to three people side by side; returns who is where."""
    left, top, right, bottom = box
    width, height = right - left - 8, bottom - top - 8
    count = int(random.integers(1, max(1, min(3, width // (110 if large else 75))) + 1))
    found = []
    for place in range(count):
        most = min(width // count, height)
        size = int(random.integers(int((0.9 if large else 0.7) * most), most)) if most > 40 else most
        size = min(size, 190)
        x_0 = left + 4 + place * (width // count) + int(random.integers(width // count - size + 1))
        y_0 = top + 4 + int(random.integers(height - size + 1))
        who = int(random.integers(len(everybody)))
        figure = cv2.resize(
            cast.draw(everybody[who], int(random.integers(cast.poses))), (size, size), interpolation=cv2.INTER_NEAREST
        )
        seen = figure[..., 3] > 127
        page.pixels[y_0 : y_0 + size, x_0 : x_0 + size][seen] = figure[seen][:, :3]
        y, x = np.nonzero(seen)
        corner = np.array([x_0, y_0, x_0, y_0], float)
        face = np.array(FACE) * (size / SIZE) + corner
        body = np.array([x.min(), y.min(), x.max() + 1, y.max() + 1]) + corner
        found.append((len(page.panels), who, face, body))
    return found


def _balloon(view: np.ndarray, centre: tuple[float, float], random: np.random.Generator) -> None:
    """An ellipse with lines of text."""
    x, y = int(centre[0]), int(centre[1])
    radii = int(random.integers(25, 42)), int(random.integers(13, 20))
    cv2.ellipse(view, (x, y), radii, 0, 0, 360, (255, 255, 255), -1)
    cv2.ellipse(view, (x, y), radii, 0, 0, 360, (0, 0, 0), 2)
    for row in (-5, 3):
        cv2.line(view, (x - radii[0] // 2, y + row), (x + radii[0] // 2, y + row), (30, 30, 30), 2)

"""Marked faces and bodies of a page as rows of boxes: in which panel each is, its number there, and whose it is."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

from actors.comic_characters.crops import BOX, Kind
from actors.comic_characters.panels import Panel

KINDS: dict[str, Kind | None] = {
    **dict.fromkeys(("face", "faces"), "face"),
    **dict.fromkeys(("body", "bodies", "character", "characters", "person", "figure"), "body"),
}
"""Names that datasets and detectors have for what is cut out."""
PANEL_NAMES = ("panel", "panels", "frame", "frames")
"""Names that they have for panels."""
WITHIN = 0.5
"""Least share of a face's area within the body that it belongs to."""


class Mark(NamedTuple):
    """A face or a body on a page."""

    kind: Kind
    box: Panel
    character: str = ""
    """Who it is, by any name; empty where that is not known."""
    score: float | None = None
    """Confidence of a detector, 0 to 1."""


def rows_of_page(
    series: str, page: str, marks: Sequence[Mark], panels: Sequence[Panel], characters: Iterable[str] = ()
) -> list[dict[str, Any]]:
    """Rows with the columns of boxes, and score, of the marks of a page whose panels are in reading order.

    characters: the known ones of the series; a char_index is a place among them. A face and a body of unknown
    characters that belong together have a larger one.
    """
    numbers = {name: number for number, name in enumerate(dict.fromkeys(characters))}
    rows = []
    where = [panel_of(mark.box, panels) for mark in marks]
    for place in range(len(panels)):
        ours = sorted((mark for mark, at in zip(marks, where, strict=True) if at == place), key=lambda one: one.box)
        whose: list[int | None] = [numbers.get(mark.character) for mark in ours]
        unknown = [i for i, number in enumerate(whose) if number is None]
        for pair, (face, body) in enumerate(pairs([ours[i] for i in unknown])):
            whose[unknown[face]] = whose[unknown[body]] = len(numbers) + pair
        counts = {"face": 0, "body": 0}
        for mark, number in zip(ours, whose, strict=True):
            box = dict(zip(BOX, mark.box, strict=True))
            name = {"series_id": series, "page_id": f"{page}_{place}", "type": mark.kind, "index": counts[mark.kind]}
            rows.append({**name, "char_index": number, **box, "score": mark.score})
            counts[mark.kind] += 1
    return rows


def panel_of(box: Panel, panels: Sequence[Panel]) -> int:
    """The panel with most of a box, the smallest of several that have as much; the nearest where none has any."""
    shares = [box.common(panel) / max(box.area, 1e-9) for panel in panels]
    best = max(shares)
    if best > 0:
        return min((i for i, share in enumerate(shares) if share >= best - 0.05), key=lambda i: panels[i].area)
    middle = np.array([box.left + box.right, box.top + box.bottom]) / 2
    away = [np.maximum(np.maximum(panel[:2] - middle, middle - panel[2:]), 0) for panel in panels]
    return int(np.argmin([np.hypot(*one) for one in away]))


def pairs(marks: Sequence[Mark]) -> list[tuple[int, int]]:
    """Faces and bodies that belong together, as places in marks: most of the face lies in the body, near its top."""
    faces, bodies = ([i for i, mark in enumerate(marks) if mark.kind == kind] for kind in ("face", "body"))
    fit = np.zeros((len(faces), len(bodies)))
    for row, face in enumerate(faces):
        for column, body in enumerate(bodies):
            inner, outer = marks[face].box, marks[body].box
            share = inner.common(outer) / max(inner.area, 1e-9)
            # Of two bodies that overlap, the head is at the top and in the middle of its own.
            across = abs(inner.left + inner.right - outer.left - outer.right) / 2 / max(outer.right - outer.left, 1e-9)
            down = abs(inner.top - outer.top) / max(outer.bottom - outer.top, 1e-9)
            fit[row, column] = share + max(0.0, 1 - across - down) if share >= WITHIN else 0
    chosen = zip(*linear_sum_assignment(-fit), strict=True)
    return sorted((faces[row], bodies[column]) for row, column in chosen if fit[row, column] > 0)


def page_name(stem: str) -> str:
    """The name of a page in instances, which `_` separates from that of its panel."""
    return stem.replace("_", "-")

"""Pages and figures that jobs leave behind: one style, one file each, nothing that is fetched from elsewhere."""

import base64
import colorsys
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from actors.core import storage
from actors.core.store import Store

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#1f6feb", "#c4472b", "#2f9e6e", "#9c5fd0", "#d29a1f", "#4a5560", "#3fa7b8", "#b3bcc6")
"""Of the series of a figure, in this order."""

ROOM = 4_800_000
"""Characters of a page at most, about: more takes a browser long to open."""
LARGE = 1_000_000
"""Bytes from which on a page shows a picture as a smaller JPEG."""
SIDE = 2400
"""Pixels of the longer side of that."""


@dataclass(frozen=True)
class Picture:
    """A figure or photograph on a page."""

    png: bytes
    """Or JPEG."""
    caption: str = ""
    colour: str = ""
    """CSS colour of a mark before the caption; empty: no mark."""


@dataclass(frozen=True)
class Table:
    """A table on a page: numbers stand on the right, floats with three digits, None and NaN as –."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str = ""


@dataclass(frozen=True)
class Section:
    """A part of a page under a heading."""

    title: str
    text: str = ""
    content: Sequence[Picture | Table] = ()
    grid: bool = False
    """Pictures stand beside each other, as many as fit; false: one below the other."""


def figure(width: float, height: float) -> "Figure":
    """A figure in inches; it needs no display."""
    # It takes longer to import than most commands that have a page.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def legend_above(drawing: "Figure", columns: int = 6) -> None:
    """A legend above all axes, where it covers nothing that is drawn."""
    labels = {label for axes in drawing.axes for label in axes.get_legend_handles_labels()[1]}
    drawing.legend(loc="outside upper center", ncols=max(1, min(len(labels), columns)), frameon=False)


def colours_of(names: Sequence[str]) -> dict[str, str]:
    """A colour for each name, by its place among all in their order: the same wherever the same names are given."""
    found = {}
    for number, name in enumerate(sorted(set(names))):
        # The golden ratio leads to a hue far from all before it.
        red, green, blue = colorsys.hsv_to_rgb(number * 0.618034 % 1, 0.6, 0.72)
        made = f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}"
        found[name] = COLOURS[number] if number < len(COLOURS) - 1 else made
    return found


def thumbnail(data: bytes, side: int = 240) -> bytes:
    """An image file as a JPEG of at most that side in pixels."""
    from actors.media.images import decoded, picture_bytes

    image = decoded(data, lambda image: image.convert("RGB"))
    image.thumbnail((side, side))
    return picture_bytes(image, quality=85)


def png(drawing: "Figure") -> bytes:
    """A figure as it is stored."""
    image = io.BytesIO()
    drawing.savefig(image, format="png", dpi=110)
    return image.getvalue()


def draw(store: Store, name: str, drawing: "Figure", caption: str = "") -> Picture:
    """Write a figure as NAME.png below the store's root; returns it for a page."""
    image = png(drawing)
    storage.write_bytes(store.uri(f"{name}.png"), image)
    return Picture(image, caption)


def write_page(uri: str, title: str, totals: str, facts: Mapping[str, str], sections: Iterable[Section]) -> str:
    """Write one self-contained HTML page of about ROOM characters at most; returns its URI.

    totals: the result in a line; facts: what it was made from, by name; sections: what there is no room for is left
    out, and the page says so.
    """
    fitted = list(_fitted(sections))
    page = render("core/page.html.j2", title=title, totals=totals, facts=facts, sections=fitted)
    storage.write_bytes(uri, page.encode())
    return uri


def _fitted(sections: Iterable[Section]) -> Iterator[Section]:
    """Sections as far as there is room, with tables cut short, and at the end what is left out."""
    room, left = ROOM, 0
    for section in sections:
        content = []
        # What a section costs without what is in it.
        room -= 200 + len(section.title) + len(section.text)
        for item in section.content:
            shown, size = _shown(item, room)
            if shown is not None:
                room -= size
                content.append(shown)
        if room > 0 and (content or not section.content):
            yield replace(section, content=content)
        else:
            left += 1
    if left:
        yield Section("Left out", f"{left:,} more sections, so that this page stays below 5 MB.")


def _shown(item: Picture | Table, room: int) -> tuple[Picture | Table | None, int]:
    """What is shown of something, and its size in characters; None where there is no room for any of it."""
    if isinstance(item, Picture):
        if len(item.png) > LARGE:
            item = replace(item, png=thumbnail(item.png, SIDE))
        size = 200 + 2 * len(item.caption) + 4 * len(item.png) // 3
        return (item, size) if size <= room else (None, 0)
    used = 200 + len(item.caption)
    for number, row in enumerate(item.rows):
        size = 12 + sum(22 + len(cell(value)) for value in row)
        if used + size > room:
            told = f"The first {number:,} of {len(item.rows):,} rows, so that this page stays below 5 MB."
            shown = replace(item, rows=item.rows[:number], caption=f"{item.caption} {told}".strip())
            return (shown, used) if number else (None, 0)
        used += size
    return item, used


def render(template: str, **values: Any) -> str:
    """A template by its path below jobs/, with the words that pages have for numbers and times as filters."""
    return _environment().get_template(template).render(**values)


@cache
def _environment() -> Environment:
    """Keeps the templates that it has compiled."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parents[1]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "count": "{:,}".format,
        "percent": percent,
        "number": number,
        "clock": clock,
        "duration": duration,
        "cut": shortened,
        "cell": cell,
        "base64": lambda data: base64.b64encode(data).decode(),
        "kind": lambda data: "jpeg" if data.startswith(b"\xff\xd8") else "png",
    }
    return environment


def cell(value: Any) -> str:
    """What stands in a table for a value."""
    if value is None or isinstance(value, float):
        return number(value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def percent(part: float, whole: float) -> str:
    """A share in words; what is little is not called nothing, and what is almost all is not called all."""
    if not whole:
        return "–"
    share = 100 * part / whole
    if 0 < share < 0.1:
        return "< 0.1 %"
    return "> 99.9 %" if 99.9 < share < 100 else f"{share:.1f} %"


def number(value: float | None) -> str:
    """A measurement with about three digits; – where there is none."""
    if value is None or math.isnan(value):
        return "–"
    return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:.3g}"


def clock(seconds: float) -> str:
    """A time in a film, as 1:02:03.45."""
    if seconds is None or math.isnan(seconds):
        return "–"
    hundredths = round(seconds * 100)
    minutes, rest = divmod(hundredths, 6000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest / 100:05.2f}" if hours else f"{minutes}:{rest / 100:05.2f}"


def duration(seconds: float) -> str:
    """A length of time, as 2 h 05 min."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def shortened(text: str, length: int) -> str:
    """A text of at most about that many characters; what was left out is told."""
    return text if len(text) <= length else f"{text[:length]} … ({len(text) - length:,} more characters)"

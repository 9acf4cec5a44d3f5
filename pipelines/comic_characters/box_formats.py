"""Boxes of faces and bodies as datasets have them: CSV, Manga109 XML, COCO JSON, CoMix JSON; and written as COCO JSON.

Manga109 XML  a file a book, as of v2021.12.30 and v2023.12.07 (manga109.org, "Annotations"; read 2026-11): book title,
              page index, face, body and frame with xmin, ymin, xmax, ymax, the first two with a character's id
COCO JSON     cocodataset.org, "Data format", object detection (read 2026-11): images, annotations with bbox
              [x, y, width, height], categories, which name what is marked
CoMix JSON    a file a page, as of comix-v0_1-pages (2025; read 2026-11): a detector's panels, characters and faces with
              bbox [x_0, y_0, x_1, y_1]. CoMix's evaluation files are COCO JSON.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from actors.comic_characters.crops import BOX, NAME
from actors.comic_characters.marks import KINDS, PANEL_NAMES, Mark, page_name, rows_of_page
from actors.comic_characters.panels import Panel, Reading, in_order
from actors.core import storage
from actors.core.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = [*NAME, "char_index", *BOX, "picture"]
"""Columns of boxes. picture: the file below the input; empty where it follows from series and page."""
CATEGORIES = {"panel": 1, "body": 2, "face": 3}
"""Numbers of what is marked, in COCO JSON that is written here."""


@dataclass
class Boxes:
    """What is marked on pages."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    """Faces and bodies, with the columns of COLUMNS."""
    panels: list[dict[str, Any]] = field(default_factory=list)
    """Panels: series_id, page_id, x_0, y_0, x_1, y_1 and picture."""
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Width and height in pixels by picture, where they are known."""

    def add_page(
        self,
        name: tuple[str, str],
        picture: str,
        marks: list[Mark],
        panels: list[Panel],
        characters: Iterable[str] = (),
        size: tuple[int, int] | None = None,
    ) -> None:
        """Add the marks of a page, by its series and name; without panels the page is one."""
        whole = Panel(0, 0, *(size or (1 << 20, 1 << 20)))
        for row in rows_of_page(*name, marks, panels or [whole], characters):
            self.rows.append({**row, "picture": picture})
        for number, panel in enumerate(panels):
            box = dict(zip(BOX, panel, strict=True))
            self.panels.append({"series_id": name[0], "page_id": f"{name[1]}_{number}", **box, "picture": picture})
        if size:
            self.sizes[picture] = size


def read_dataset(uri: str, reading: Reading | None) -> Boxes | None:
    """The boxes of an XML or JSON file, or of all such files below a folder; None where it is neither.

    reading: in which direction panels are read; None: as their format's comics are. Raises UserError.
    """
    single = uri.lower().endswith((".xml", ".json"))
    files = [uri] if single else [entry.uri for entry in storage.listing(uri, (".xml", ".json"), as_input=True)]
    if not files:
        return None
    found = Boxes()
    for file in files:
        try:
            data = storage.read_bytes(file)
            if file.lower().endswith(".xml"):
                _add_manga109(found, ElementTree.fromstring(data), reading or "right_to_left")
            else:
                _add_json(found, json.loads(data), reading or "left_to_right")
        except FileNotFoundError as error:
            raise UserError(f"boxes={uri}: there is no such file") from error
        except (ElementTree.ParseError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"boxes={file}: neither {FORMATS}: {type(error).__name__} {error}") from error
    return found


FORMATS = "Manga109 XML nor COCO or CoMix JSON"


def _add_manga109(found: Boxes, book: ElementTree.Element, reading: Reading) -> None:
    if book.tag != "book":
        raise ValueError(f"its root is {book.tag}, not book")
    series = book.attrib["title"]
    # Whoever has no name of their own shares one.
    names = [one.attrib["id"] for one in book.iter("character") if one.get("name") != "_Other"]
    for page in book.iter("page"):
        number, size = int(page.attrib["index"]), (int(page.attrib["width"]), int(page.attrib["height"]))
        panels = in_order([_xml_box(one) for one in page.iter("frame")], reading)
        marks = [
            Mark(kind, _xml_box(one), one.get("character", ""))
            for one in page
            if (kind := KINDS.get(one.tag)) is not None
        ]
        found.add_page((series, f"{number:03d}"), f"{series}/{number:03d}.jpg", marks, panels, names, size)


def _xml_box(element: ElementTree.Element) -> Panel:
    return Panel(*(float(element.attrib[name]) for name in ("xmin", "ymin", "xmax", "ymax")))


def _add_json(found: Boxes, tree: Any, reading: Reading) -> None:
    if isinstance(tree, dict) and {"images", "annotations", "categories"} <= tree.keys():
        _add_coco(found, tree, reading)
    elif isinstance(tree, dict) and "detections" in tree:
        _add_comix(found, tree, reading)
    else:
        raise ValueError(
            "it has neither images, annotations and categories (of detections alone, add those of their dataset) nor "
            "detections"
        )


def _add_comix(found: Boxes, tree: Mapping[str, Any], reading: Reading) -> None:
    series, image = str(tree["book_id"]), tree["image"]
    page = page_name(str(tree["page_id"]).removeprefix(f"{series}_"))
    detectors = tree["detections"]
    if not detectors:
        found.add_page((series, page), image["file"], [], [], size=_size(image))
        return
    # Their own detector counts, where several have looked.
    marked = detectors.get("fasterrcnn") or next(iter(detectors.values()))
    marks = [
        Mark(kind, Panel(*map(float, one["bbox"])), score=one.get("score"))
        for name, kind in KINDS.items()
        if kind
        for one in marked.get(name, ())
    ]
    panels = in_order([Panel(*map(float, one["bbox"])) for one in marked.get("panels", ())], reading)
    found.add_page((series, page), image["file"], marks, panels, size=_size(image))


def _size(image: Mapping[str, Any]) -> tuple[int, int] | None:
    return (int(image["width"]), int(image["height"])) if image.get("width") and image.get("height") else None


def _add_coco(found: Boxes, tree: Mapping[str, Any], reading: Reading) -> None:
    categories = {one["id"]: str(one["name"]).lower() for one in tree["categories"]}
    if not any(name in KINDS for name in categories.values()):
        raise ValueError(f"no category is one of {', '.join(KINDS)}: {', '.join(categories.values())}")
    marked: defaultdict[Any, list[Mapping[str, Any]]] = defaultdict(list)
    for one in tree["annotations"]:
        marked[one["image_id"]].append(one)
    with_panels = any(categories[one["category_id"]] in PANEL_NAMES for one in tree["annotations"])
    who = {_character(one): None for one in tree["annotations"] if _character(one)}
    for image in tree["images"]:
        ours = marked[image["id"]]
        if _add_own(found, image, ours, categories):
            continue
        name = PurePosixPath(image["file_name"])
        series = "-".join(part for part in name.parent.parts if part not in ("/", ".."))
        if not series:
            raise ValueError(f"file_name {name} has no folder, which would be its series")
        panels = [_coco_box(one) for one in ours if categories[one["category_id"]] in PANEL_NAMES]
        marks = [
            Mark(kind, _coco_box(one), _character(one), one.get("score"))
            for one in ours
            if (kind := KINDS.get(categories[one["category_id"]])) is not None
        ]
        first = len(found.rows)
        found.add_page((series, page_name(name.stem)), str(name), marks, in_order(panels, reading), who, _size(image))
        if not with_panels and re.fullmatch(r"[^_]+_[^_]+", name.stem):
            # The picture of a panel, as the names of crops' inputs are.
            for row in found.rows[first:]:
                row["page_id"] = name.stem


def _coco_box(annotation: Mapping[str, Any]) -> Panel:
    left, top, width, height = map(float, annotation["bbox"])
    return Panel(left, top, left + width, top + height)


def _character(annotation: Mapping[str, Any]) -> str:
    """Who an annotation marks, in the keys that tools for annotation write; empty where it does not say."""
    places = (annotation, annotation.get("attributes") or {})
    keys = ("character_id", "character", "track_id")
    return next((str(place[key]) for place in places for key in keys if place.get(key) not in (None, "")), "")


def _add_own(
    found: Boxes, image: Mapping[str, Any], marked: Iterable[Mapping[str, Any]], categories: Mapping[Any, str]
) -> bool:
    """Add the annotations of an image that `coco` wrote, as they were; returns whether it did."""
    marked = list(marked)
    if not marked or not all("page_id" in (one.get("attributes") or {}) for one in marked):
        return False
    for one in marked:
        row = {**one["attributes"], **dict(zip(BOX, _coco_box(one), strict=True)), "picture": image["file_name"]}
        kind = categories[one["category_id"]]
        if kind == "panel":
            found.panels.append(row)
        else:
            found.rows.append({**row, "type": kind})
    if size := _size(image):
        found.sizes[image["file_name"]] = size
    return True


def coco(boxes: Boxes) -> dict[str, Any]:
    """Boxes as COCO JSON. attributes: series_id, page_id, index and char_index, so that nothing is lost."""
    pictures: dict[str, int] = {}
    annotations: list[dict[str, Any]] = []
    marked = [*((row, "panel") for row in boxes.panels), *((row, row["type"]) for row in boxes.rows)]
    for row, kind in marked:
        name = row["picture"] or f"{row['series_id']}/{row['page_id']}.jpg"
        x_0, y_0, x_1, y_1 = (float(row[side]) for side in BOX)
        keys = ("series_id", "page_id", *(() if kind == "panel" else ("index", "char_index")))
        one = {
            "id": len(annotations) + 1,
            "image_id": pictures.setdefault(name, len(pictures) + 1),
            "category_id": CATEGORIES[kind],
            "bbox": [x_0, y_0, x_1 - x_0, y_1 - y_0],
            "area": (x_1 - x_0) * (y_1 - y_0),
            "iscrowd": 0,
            "attributes": {key: row[key] for key in keys},
        }
        score = row.get("score")
        annotations.append(one if score is None else {**one, "score": score})
    images = [
        {"id": number, "file_name": name, **dict(zip(("width", "height"), boxes.sizes.get(name, ()), strict=False))}
        for name, number in pictures.items()
    ]
    named = [{"id": number, "name": name} for name, number in CATEGORIES.items()]
    return {"images": images, "annotations": annotations, "categories": named}


def as_text(rows: Iterable[Mapping[str, Any]], columns: list[str] = COLUMNS) -> pd.DataFrame:
    """Rows as a table of text, as a CSV holds them: what is unknown is empty."""
    import pandas as pd

    def text(value: Any) -> str:
        return "" if value is None else f"{value:.8g}" if isinstance(value, float) else str(value)

    return pd.DataFrame([{name: text(row.get(name)) for name in columns} for row in rows], columns=columns)

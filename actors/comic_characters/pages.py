"""Pages on their way through detection: decoded with their panels found, then written with what was detected."""

import json
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa

from actors.comic_characters.crops import BOX, code_of, decode
from actors.comic_characters.marks import KINDS, PANEL_NAMES, Mark, rows_of_page
from actors.comic_characters.panels import Panel, Reading, find_panels, in_order
from actors.core.addresses import AddressError
from actors.core.computed import COMPUTED
from actors.core.stage import Batch, codes_of
from actors.core.store import Store
from actors.media import archives
from actors.media.images import ImageError, size_of, turn
from actors.models.detection import letterbox

READERS = 8
"""Files that one worker reads at once: a store answers late."""
DETECTIONS = pa.schema(
    [
        *((name, pa.string()) for name in ("picture", "series_id", "page_id", "type")),
        ("index", pa.int64()),
        ("char_index", pa.int64()),
        *((name, pa.float64()) for name in BOX),
        ("score", pa.float32()),
        *((name, pa.string()) for name in ("error", "message", COMPUTED)),
    ]
)
"""Per page a row of type page, with its size as x_1 and y_1, or its error; and a row per panel, face and body.
picture: its file below the input; score: confidence of the detector, null of panels that were found without one."""


def read_pages(
    batch: Batch, panels: Callable[[np.ndarray], list[Panel]] | None, shape: tuple[int, int] | None
) -> Batch:
    """Decode pages.

    Reads:  uri  str (N,)
    Adds:   height, width  int (N,), pixels; panels  str (N,): JSON, a list of corners in pixels in reading order
            square  uint8 (N, H, W, 3): the page in the detector's input; not without a shape
            error, message  str (N,): missing_page, broken_page, too_large

    panels: finds them; None: each picture is one.
    """
    count = len(batch["uri"])
    sizes, found = np.zeros((count, 2), int), np.full(count, "[]", object)
    error, message = np.full(count, "", object), np.full(count, "", object)
    squares = np.zeros((count, *(shape or (0, 0)), 3), np.uint8)

    def read(row: int) -> None:
        try:
            data = archives.read_bytes(batch["uri"][row])
            # What is large is also looked at one after the other.
            with turn(*size_of(data)):
                look(row, np.asarray(decode(data)))
        except (FileNotFoundError, PermissionError, AddressError, ImageError) as problem:
            error[row] = code_of(problem, "page")
            message[row] = str(problem)

    def look(row: int, page: np.ndarray) -> None:
        sizes[row] = page.shape[:2]
        if shape:
            squares[row] = letterbox(page, shape)
        if panels:
            found[row] = json.dumps(panels(page))

    with ThreadPoolExecutor(READERS) as threads:
        list(threads.map(read, range(count)))
    added = {"height": sizes[:, 0], "width": sizes[:, 1], "panels": found, "error": error, "message": message}
    return {**batch, **added, **({"square": squares} if shape else {})}


def gutters(reading: Reading) -> Callable[[np.ndarray], list[Panel]]:
    """Finds panels by gutters and frames."""
    return lambda page: find_panels(page, reading)


def page_rows(page: dict[str, Any], reading: Reading) -> list[dict[str, Any]]:
    """Rows of DETECTIONS of a page, with the columns of `read_pages` and `Detector`, found of the latter or none.

    Panels that the detector marks count where `read_pages` found none.
    """
    name = {"picture": page["picture"], "series_id": page["series_id"]}
    base = {**name, "page_id": page["page"], "type": "page", "error": page["error"], "message": page["message"]}
    if page["error"]:
        return [base]
    marks, marked = [], []
    for label, score, *corners in json.loads(page.get("found", "[]")):
        if label in PANEL_NAMES:
            marked.append(Panel(*corners))
        elif kind := KINDS.get(label):
            marks.append(Mark(kind, Panel(*corners), score=score))
    whole = Panel(0.0, 0.0, float(page["width"]), float(page["height"]))
    panels = [Panel(*corners) for corners in json.loads(page["panels"])] or in_order(marked, reading) or [whole]
    rows = [base | dict(zip(BOX, whole, strict=True))]
    for number, panel in enumerate(panels):
        box = dict(zip(BOX, panel, strict=True))
        rows.append({**name, **box, "page_id": f"{page['page']}_{number}", "type": "panel", "error": "", "message": ""})
    found = rows_of_page(page["series_id"], page["page"], marks, panels)
    rows += [{**name, **row, "error": "", "message": ""} for row in found]
    for row in rows[1:] if page["panel"] else ():
        row["page_id"] = f"{page['page']}_{page['panel']}"
    return rows


def write_pages(batch: Batch, store: Store, folder: str, reading: Reading, computed: str) -> Batch:
    """Write what was found on pages as a part of detections; returns the number of pages in column `pages`."""
    count = len(batch["uri"])
    pages = [{name: column[row] for name, column in batch.items()} for row in range(count)]
    rows = [row | {COMPUTED: computed} for page in pages for row in page_rows(page, reading)]
    store.write_part(folder, pa.Table.from_pylist(rows, DETECTIONS), (str(page["picture"]) for page in pages))
    return {"pages": np.array([count]), "codes": codes_of(batch["error"])}


def by_type(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Rows of DETECTIONS by their type."""
    found: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        found[row["type"]].append(row)
    return found

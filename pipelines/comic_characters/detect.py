"""Faces, bodies and panels of pages, by a detector that the user gives; panels also without one.

plan     driver  the pages, and those that no part has
read     task    decoded pages: their panels by gutters and frames, and the square that the detector takes
detect   actors  1 -> 1: the network; not for panels alone
write    task    a whole part per batch of pages
collect  driver  boxes.csv, panels.csv and boxes.json of all pages, and the rejected ones
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from actors.comic_characters.crops import BOX
from actors.comic_characters.detectors import Detector, Weights, inspect
from actors.comic_characters.marks import page_name
from actors.comic_characters.pages import DETECTIONS, by_type, gutters, read_pages, write_pages
from actors.comic_characters.panels import Reading
from actors.core import storage
from actors.core.computed import COMPUTED, mixed
from actors.core.errors import UserError
from actors.core.stage import Stage
from actors.core.store import Store
from actors.media.images import images_below, natural
from pipelines.comic_characters.box_formats import COLUMNS, Boxes, as_text, coco, read_dataset
from pipelines.comic_characters.crop import BOXES, boxes_of, checked
from pipelines.comic_characters.crop import REJECTED as BAD_BOXES
from pipelines.comic_characters.features import WRITES, beside
from pipelines.comic_characters.settings import ComicsConfig
from pipelines.core.progress import Progress
from pipelines.core.ray_data import finish, fitted, ray_actors, ray_task, set_context

PANELS, COCO = "panels.csv", "boxes.json"
PANEL_COLUMNS = ["series_id", "page_id", *BOX, "picture"]
REJECTED = pa.schema([(name, pa.string()) for name in ("picture", "error", "message")])
_PAGES = pa.schema([(name, pa.string()) for name in ("uri", "picture", "series_id", "page", "panel")])


@dataclass(frozen=True)
class DetectPlan:
    """The pages, and which of them are to be looked at."""

    weights: Weights | None
    """None: only panels are looked for."""
    folder: str
    """Folder of the parts, below the output."""
    pages: list[dict[str, str]]
    """Columns of _PAGES, in the order of series and pages."""
    todo: list[dict[str, str]]


def plan_detection(config: ComicsConfig, panels_only: bool = False) -> DetectPlan:
    """Find the pages and what is missing. Raises UserError without a detector, or where another one was used here."""
    if not config.input:
        raise UserError("input: this setting is required")
    weights = None if panels_only else inspect(config.detect)
    folder = "panels" if panels_only else "detections"
    store, way = Store(config.output), _way(config, weights)
    made = store.read_json(f"{folder}.json")
    if made not in (None, way):
        differs = ", ".join(f"{name}={made.get(name)}" for name in way if made.get(name) != way[name])
        raise UserError(f"{store.uri(folder)} was made with {differs}. Use another output, or these settings.")
    pages = find_pages(config.input, weights is not None and config.detect.panels == "none")
    rows = store.read_table(folder, DETECTIONS, (COMPUTED,)).to_pylist()
    done = {row["picture"] for row in rows if row["type"] == "page" and not row["error"]}
    return DetectPlan(weights, folder, pages, [page for page in pages if page["picture"] not in done])


def _way(config: ComicsConfig, weights: Weights | None) -> dict[str, Any]:
    """The settings that results depend on."""
    reading = _reading(config)
    if weights is None:
        return {"reading": reading}
    stage = Stage.__dataclass_fields__
    about = {name: value for name, value in asdict(config.detect).items() if name not in stage}
    with storage.local(config.detect.weights) as file:
        about["weights"] = _digest(str(file))
    return json.loads(json.dumps({"reading": reading, **about}))


def _digest(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _reading(config: ComicsConfig) -> Reading:
    return config.reading or "left_to_right"


def find_pages(folder: str, are_panels: bool = False) -> list[dict[str, str]]:
    """The pictures below a folder as rows of _PAGES. Raises UserError where there are none, or two of one name.

    are_panels: names <page>_<panel> are those of a panel.
    """
    pages: dict[tuple[str, ...], dict[str, str]] = {}
    for entry in sorted(images_below(folder), key=lambda one: natural(one.name)):
        path = PurePosixPath(entry.name)
        # Pictures right in the folder are one series, which has its name.
        series = "-".join(path.parent.parts) or PurePosixPath(storage.absolute(folder)).name
        page, _, panel = path.stem.partition("_") if are_panels else (path.stem, "", "")
        if "_" in panel:
            page, panel = path.stem, ""
        names = {"series_id": series, "page": page_name(page), "panel": panel}
        row = {"uri": entry.uri, "picture": entry.name, **names}
        other = pages.setdefault(tuple(names.values()), row)
        if other is not row:
            raise UserError(
                f"input={folder}: {other['picture']} and {entry.name} are one page of one series. Rename one of them."
            )
    if not pages:
        raise UserError(f"input={folder} has no pictures")
    return list(pages.values())


def detect(config: ComicsConfig, plan: DetectPlan) -> dict[str, Any]:
    """Look at the missing pages; returns rows, stages and notes of the run record."""
    Store(config.output).write_json(_way(config, plan.weights), f"{plan.folder}.json")
    started = time.monotonic()
    if plan.todo:
        _detect(config, plan)
    stage = {"rows": len(plan.todo), "seconds": round(time.monotonic() - started, 1)}
    return collect(config, plan) | {"stages": {plan.folder: stage}}


def _detect(config: ComicsConfig, plan: DetectPlan) -> None:
    import ray

    pools, tasks = stages_of(config, panels_only=plan.weights is None)
    stages = fitted(pools, tasks, config.autoscaling)
    set_context()
    size, reading = config.detect.batch_size, _reading(config)
    table = pa.Table.from_pylist(plan.todo, _PAGES)
    blocks = [table.slice(first, size) for first in range(0, len(table), size)]
    looks = plan.weights is None or config.detect.panels == "find"
    read: Any = partial(
        read_pages, panels=gutters(reading) if looks else None, shape=plan.weights.shape if plan.weights else None
    )
    write: Any = partial(
        write_pages, store=Store(config.output), folder=plan.folder, reading=reading, computed=_computed(config, plan)
    )
    rows = ray.data.from_arrow(blocks).map_batches(read, batch_size=size, **ray_task(stages["read"]))
    if plan.weights:
        stage: Any = stages["detect"]
        rows = rows.map_batches(
            Detector,
            fn_constructor_args=[stage, plan.weights],
            batch_size=size,
            **ray_actors(stage, inputs=len(blocks)),
        )
    rows = rows.map_batches(write, batch_size=size, **ray_task(stages["write"]))
    finish(rows, "pages", Progress(plan.folder, len(plan.todo), "pages"))


def _computed(config: ComicsConfig, plan: DetectPlan) -> str:
    return f"{'cuda' if config.detect.num_gpus else 'cpu'} float32" if plan.weights else ""


def stages_of(config: ComicsConfig, panels_only: bool = False) -> tuple[dict[str, Stage], dict[str, Stage]]:
    """Actor pools and task stages by name."""
    read, write = Stage(0, 1.0), beside(config.detect, WRITES)
    return {} if panels_only else {"detect": config.detect}, {"read": read, "write": write}


def collect(config: ComicsConfig, plan: DetectPlan) -> dict[str, Any]:
    """Write the tables of all pages and rejected/; returns rows and notes of the run record."""
    store = Store(config.output)
    rows = store.read_table(plan.folder, DETECTIONS, (COMPUTED,)).to_pylist()
    sound = {row["picture"] for row in rows if row["type"] == "page" and not row["error"]}
    order = {page["picture"]: number for number, page in enumerate(plan.pages)}
    found = by_type(sorted((row for row in rows if row["picture"] in order), key=lambda row: order[row["picture"]]))
    bad = {row["picture"]: row for row in found["page"] if row["picture"] not in sound}
    rejected = pa.Table.from_pylist([{name: row[name] for name in REJECTED.names} for row in bad.values()], REJECTED)
    store.replace_table(f"rejected/{plan.folder}", [rejected])
    boxes = Boxes(
        [row for row in rows if row["type"] in ("face", "body") and row["picture"] in order],
        found["panel"],
        {row["picture"]: (int(row["x_1"]), int(row["y_1"])) for row in found["page"] if not row["error"]},
    )
    boxes.rows.sort(key=lambda row: order[row["picture"]])
    write_boxes(store, boxes, with_rows=plan.weights is not None)
    if (missing := len(plan.pages) - len(sound & order.keys()) - len(bad)) > 0:
        raise RuntimeError(f"{store.uri(plan.folder)} lacks {missing} pages. Rerun the same command.")
    counts = Counter(row[COMPUTED] for row in found["page"] if not row["error"])
    return {
        "rows": {
            "in": len(plan.pages),
            "out": len(plan.pages) - len(bad),
            "rejected": dict(Counter(row["error"] for row in bad.values())),
        },
        "found": {kind: len(found[kind]) for kind in ("panel", "face", "body")},
        "notes": mixed(counts, "boxes", "pages", f"To compute all on one device, delete {plan.folder}."),
    }


def check_boxes(config: ComicsConfig) -> None:
    """Raise UserError where there are no boxes to convert."""
    if not config.boxes:
        raise UserError("boxes: this setting is required")
    if not storage.exists(config.boxes) and next(storage.listing(config.boxes), None) is None:
        raise UserError(f"boxes={config.boxes}: there is no such file or folder")


def convert(config: ComicsConfig) -> dict[str, Any]:
    """Write boxes of any format as a CSV and as COCO JSON; returns rows of the run record. Raises UserError."""
    store, dataset = Store(config.output), read_dataset(config.boxes, config.reading)
    given = boxes_of(config.boxes, dataset)
    rows = checked(given)
    bad = rows.error != ""
    rejected = given[bad].assign(error=rows.error[bad], message=rows.message[bad])[BAD_BOXES.names]
    store.replace_table("rejected/convert", [pa.Table.from_pandas(rejected, BAD_BOXES, preserve_index=False)])
    sound = rows[~bad].astype({"char_index": object})
    sound = sound.where(sound.notna(), None).to_dict("records")
    boxes = [{name: row[name] for name in COLUMNS} | {"index": int(row["index"])} for row in sound]
    write_boxes(store, Boxes(boxes, dataset.panels, dataset.sizes) if dataset else Boxes(boxes))
    return {"rows": {"in": len(rows), "out": len(boxes), "rejected": dict(Counter(rows.error[bad]))}}


def write_boxes(store: Store, boxes: Boxes, with_rows: bool = True) -> None:
    """Write panels.csv, and with rows also boxes.csv, and boxes.json with both."""
    panels = as_text(boxes.panels, PANEL_COLUMNS)
    storage.write_bytes(store.uri(PANELS), panels.to_csv(index=False).encode())
    if with_rows:
        # The reference writes x1 where it means x_1.
        table = as_text(boxes.rows, [*COLUMNS, "score"]).rename(columns={"x_1": "x1"})
        storage.write_bytes(store.uri(BOXES), table.to_csv(index=False).encode())
        store.write_json(coco(boxes), COCO)

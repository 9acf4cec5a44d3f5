"""Cut faces and bodies out of the pictures of comics.

plan   driver   the boxes, without invalid ones and those already cut; one block per few pictures
cut    task     N -> 1: each picture is decoded once; files first, then a whole part of crops/ that lists them
collect driver  crops/ and rejected/crop/ in the order of the boxes, and the lists of files
"""

from __future__ import annotations

import math
import re
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from actors.comic_characters.crops import BOX, CROPS, CUT, NAME, CropConfig, cut_pictures
from actors.comic_characters.panels import Reading
from actors.core import storage
from actors.core.csv_tables import read_csv_table
from actors.core.errors import UserError
from actors.core.stage import Stage
from actors.core.store import Store
from actors.media.archives import TAR, unpacked
from actors.media.images import IMAGE_SUFFIXES
from pipelines.comic_characters.box_formats import COLUMNS, Boxes, as_text, read_dataset
from pipelines.core.progress import Progress
from pipelines.core.ray_data import finish, fitted, ray_task, set_context

if TYPE_CHECKING:
    import pandas as pd

    # Workers that cut pay for no import of torch.
    from pipelines.comic_characters.settings import ComicsConfig

REJECTED = pa.schema([("line", pa.int64()), *((name, pa.string()) for name in (*NAME, *BOX, "error", "message"))])
"""One row per box without a crop, with its values in the CSV. line: in the CSV, whose first row is line 2; in another
format, the number of the box plus 1."""
BOXES = "boxes.csv"
"""What `detect` and `convert` write, below the output."""
LISTS = {"face": "filtered_all_face.csv", "body": "filtered_all_body.csv"}


@dataclass(frozen=True)
class CropPlan:
    """The boxes, and which of them have to be cut."""

    given: pd.DataFrame
    """The CSV as text, with the columns of REJECTED before error."""
    boxes: pd.DataFrame
    """These rows with the columns of CROPS; error is the code of what is wrong with a box or its picture."""
    todo: np.ndarray
    """bool (N,): boxes that are sound and not yet cut."""


def plan_crops(config: ComicsConfig) -> CropPlan:
    """Read the boxes, find their pictures and the existing crops.

    Raises UserError where the CSV cannot be read, or where the output has crops made with other settings.
    """
    if not config.input:
        raise UserError("input: this setting is required")
    store = Store(config.output)
    uri = config.boxes or store.uri(BOXES)
    if not config.boxes and not storage.exists(uri):
        raise UserError("boxes: this setting is required, unless `detect` has written some into this output")
    made = store.read_json("crops.json")
    if made not in (None, _way(config.crop)):
        raise UserError(f"{config.output} has crops made with {made}. Use another output, or these settings.")
    given = read_boxes(uri, config.reading)
    boxes = located(checked(given), config.input)
    cut = _with_cuts(boxes, store).img_path != ""
    return CropPlan(given, boxes, ((boxes.error == "") & ~cut).to_numpy())


def read_boxes(uri: str, reading: Reading | None = None) -> pd.DataFrame:
    """Boxes of a CSV, or of a dataset in another format, as text: line, NAME, char_index, BOX and picture.

    reading: direction in which a dataset's panels are numbered. Raises UserError.
    """
    return boxes_of(uri, read_dataset(uri, reading))


def boxes_of(uri: str, dataset: Boxes | None) -> pd.DataFrame:
    """Boxes of a dataset that was read, or of the CSV, as `read_boxes` returns them."""
    if dataset:
        rows = as_text(dataset.rows)
        rows.index += 2
    else:
        try:
            rows = read_csv_table(uri, [*NAME, "char_index", *BOX[:2]])
        except FileNotFoundError as error:
            raise UserError(f"boxes={uri}: there is no such file") from error
    # The reference writes x1 where it means x_1.
    rows = rows.rename(columns={"x1": "x_1"})
    if missing := [name for name in BOX if name not in rows.columns]:
        raise UserError(f"boxes={uri} has no column {', '.join(missing)}; it has {', '.join(rows.columns)}")
    if rows.empty:
        raise UserError(f"boxes={uri} has no rows, so there is nothing to cut out")
    rows["picture"] = rows["picture"] if "picture" in rows.columns else ""
    return rows.rename_axis("line").reset_index()[["line", *COLUMNS]]


def checked(given: pd.DataFrame) -> pd.DataFrame:
    """The rows of `read_boxes` with the columns of CROPS, and an error code for invalid boxes.

    bad_name: series, page or index is missing or cannot be part of a path; bad_type: neither face nor body; bad_box:
    not numbers; empty_box: no width or height; duplicate: an earlier box has the same name.
    """
    import pandas as pd

    boxes = given[NAME[:3]].copy()
    numbers = given[["index", "char_index", *BOX]].apply(pd.to_numeric, errors="coerce")
    index = numbers["index"].where((numbers["index"] >= 0) & (numbers["index"] % 1 == 0))
    boxes["index"] = index.astype("Int64")
    whole = numbers.char_index.where((numbers.char_index >= 0) & (numbers.char_index % 1 == 0))
    boxes["char_index"] = whole.astype("Int64")
    boxes[BOX] = numbers[BOX].astype(float)
    boxes[["left", "top", "right", "bottom"]] = math.nan
    boxes["picture"] = given.picture
    boxes["img_path"] = ""
    named = index.notna() & given.series_id.map(_part_of_path) & given.page_id.map(_part_of_path)
    finite = np.isfinite(boxes[BOX].to_numpy()).all(1)
    sized = (boxes.x_0 < boxes.x_1) & (boxes.y_0 < boxes.y_1)
    problems = {
        "bad_name": ~named,
        "bad_type": ~given.type.isin(["face", "body"]),
        "bad_box": ~finite,
        "empty_box": ~sized,
        "duplicate": boxes.duplicated(NAME),
    }
    boxes["error"] = np.select(list(problems.values()), list(problems), "")
    boxes["message"] = ""
    return boxes


def _part_of_path(name: str) -> bool:
    return bool(re.fullmatch(r"[^/\\\0]+", name)) and name not in (".", "..")


def located(boxes: pd.DataFrame, pictures: str) -> pd.DataFrame:
    """Boxes with the picture that they name, else that of their panel, else of their page; else missing_page."""
    found: dict[str, str] = {}
    for entry in unpacked(storage.listing(pictures, (*IMAGE_SUFFIXES, TAR), as_input=True)):
        if entry.name.lower().endswith(IMAGE_SUFFIXES):
            found.setdefault(entry.name.rpartition(".")[0], entry.uri)
    panel = boxes.series_id + "/" + boxes.page_id
    page = panel.str.replace(r"_[^_]*$", "", regex=True)
    named = boxes.picture.str.replace(r"\.[^./]*$", "", regex=True)
    uris = named.map(found).fillna(panel.map(found)).fillna(page.map(found)).astype(object).fillna("")
    lost = (uris == "") & (boxes.error == "")
    message = "neither " + storage.join(pictures) + "/" + panel + ".jpg nor " + page + ".jpg exists"
    message = message.where(named == "", storage.join(pictures) + "/" + boxes.picture + " does not exist")
    return boxes.assign(
        picture=uris,
        error=boxes.error.where(~lost, "missing_page"),
        message=boxes.message.where(~lost, message),
    )


def _way(config: CropConfig) -> dict[str, Any]:
    """The settings that crops depend on."""
    return {"face_scale": config.face_scale, "quality": config.quality}


def _with_cuts(boxes: pd.DataFrame, store: Store) -> pd.DataFrame:
    """Boxes, the sound ones with their row of crops/; without one, img_path and error are empty."""
    key = [*NAME, *BOX]
    # A box that was tried again has several rows; the sound one counts.
    found = store.read_table("crops", CROPS).to_pandas().sort_values("error", kind="stable").drop_duplicates(key)
    sound = boxes[boxes.error == ""].drop(columns=CUT).reset_index(names="row")
    known = sound.merge(found[[*key, *CUT]], "inner", on=key).set_index("row")
    boxes = boxes.copy()
    boxes.loc[known.index, CUT] = known[CUT]
    return boxes


def crop(config: ComicsConfig, plan: CropPlan) -> dict[str, Any]:
    """Cut the missing boxes; returns rows and stages for the run record."""
    Store(config.output).write_json(_way(config.crop), "crops.json")
    started = time.monotonic()
    if plan.todo.any():
        _cut(config, plan)
    stage = {"rows": int(plan.todo.sum()), "seconds": round(time.monotonic() - started, 1)}
    return {"rows": collect(config, plan), "stages": {"crop": stage}}


def collect(config: ComicsConfig, plan: CropPlan) -> dict[str, Any]:
    """Rewrite crops/, rejected/crop/ and the lists of files from all crops; returns the rows of the run record."""
    store = Store(config.output)
    rows = _with_cuts(plan.boxes, store)
    bad = (rows.error != "").to_numpy()
    rejected = plan.given[bad].assign(error=rows.error[bad], message=rows.message[bad])[REJECTED.names]
    store.replace_table("crops", [pa.Table.from_pandas(rows, CROPS, preserve_index=False)])
    store.replace_table("rejected/crop", [pa.Table.from_pandas(rejected, REJECTED, preserve_index=False)])
    for kind, name in LISTS.items():
        paths = rows[~bad & (rows.type == kind)][["img_path"]]
        storage.write_bytes(store.uri(name), paths.to_csv(index=False).encode())
    return {"in": len(rows), "out": int((~bad).sum()), "rejected": dict(Counter(rows.error[bad]))}


def _cut(config: ComicsConfig, plan: CropPlan) -> None:
    import ray

    stage = fitted({}, tasks_of(config), config.autoscaling)["crop"]
    set_context()
    cut: Any = partial(cut_pictures, store=Store(config.output), config=config.crop)
    tables = list(blocks(plan, config.crop.batch_size))
    rows = ray.data.from_arrow(tables).map_batches(cut, batch_size=None, batch_format="pyarrow", **ray_task(stage))
    finish(rows, "boxes", Progress("crop", int(plan.todo.sum()), "boxes"))


def tasks_of(config: ComicsConfig) -> dict[str, Stage]:
    """Task stages of `crop` by name."""
    return {"crop": config.crop}


def blocks(plan: CropPlan, pictures: int) -> Iterator[pa.Table]:
    """Boxes to cut, as tables of the boxes of so many pictures, those of one picture together."""
    ordered = plan.boxes[plan.todo].sort_values("picture", kind="stable")
    number = (ordered.picture != ordered.picture.shift()).cumsum().to_numpy() - 1
    table = pa.Table.from_pandas(ordered, CROPS, preserve_index=False)
    ends = np.flatnonzero(np.diff(number // pictures, append=-1)) + 1
    for first, end in zip([0, *ends[:-1]], ends, strict=True):
        yield table.slice(first, end - first)

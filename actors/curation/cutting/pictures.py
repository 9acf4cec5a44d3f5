"""Key frames of chosen scenes: from keyframes/, and where they are not there from the film, which is sought through."""

import json
import logging
from collections.abc import Collection, Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from actors.core import storage
from actors.core.stage import Batch, Row
from actors.core.store import Store
from actors.curation.cutting.keyframes import KEY_FRAMES, decode_jpeg
from actors.curation.cutting.videos import CutConfig, cut_frames

log = logging.getLogger(__name__)

FOLDER = "keyframes"
Key = tuple[str, str]
"""A scene: its video_id and scene_id."""


def read_pictures(batch: Batch, store: Store, config: CutConfig) -> Iterator[Batch]:
    """Read the key frames of the scenes of a batch: yields a batch for each scene.

    Reads:  part    str (N,), the part of keyframes/ that has them; "" where there is none
            scenes  str (N,), JSON: a list of sound rows of scores/
    Yields: video_id, scene_id, caption, error, message; frames, an object array, each uint8 (up to 3, H, W, 3) RGB,
            none where there is an error
    """
    for part, scenes in zip(map(str, batch["part"]), map(json.loads, batch["scenes"]), strict=True):
        found = stored(store, part, {_key(row) for row in scenes}) if part else {}
        for row in scenes:
            if files := found.get(_key(row)):
                about = {name: row[name] for name in ("video_id", "scene_id", "caption")} | {"error": "", "message": ""}
                yield _one(about, files)
        left = [row for row in scenes if _key(row) not in found]
        if part and left:
            log.warning("%d scenes are not in %s: their films are opened", len(left), store.uri(FOLDER, part))
        yield from _from_films(left, config)


def stored(store: Store, part: str, wanted: Collection[Key]) -> dict[Key, list[bytes]]:
    """The JPEG files of scenes in a part of keyframes/, those that are there; of the rest of it little is read."""
    found: dict[Key, list[bytes]] = {}
    try:
        with storage.stream(store.uri(FOLDER, part)) as data, pq.ParquetFile(data) as file:
            for number in range(file.num_row_groups):
                if _may_hold(file.metadata.row_group(number), wanted):
                    for row in file.read_row_group(number, use_threads=False).to_pylist():
                        if _key(row) in wanted:
                            found[_key(row)] = [row[name] for name in KEY_FRAMES if row[name]]
    except FileNotFoundError:
        return {}
    except ConnectionError:
        raise
    except (pa.ArrowInvalid, OSError) as error:
        log.warning("%s is torn and ignored: %s", store.uri(FOLDER, part), error)
        return {}
    return found


def _may_hold(group: Any, wanted: Collection[Key]) -> bool:
    """Whether a row group, of which the footer tells the least and greatest ids, may hold one of the scenes."""
    names = {group.column(i).path_in_schema: group.column(i).statistics for i in range(group.num_columns)}
    bounds = [names["video_id"], names["scene_id"]]
    if not all(bound is not None and bound.has_min_max for bound in bounds):
        return True
    return any(all(bound.min <= name <= bound.max for bound, name in zip(bounds, key, strict=True)) for key in wanted)


def film_task(video_id: str, uri: str, scenes: Sequence[Row]) -> Row:
    """A row of plan/todo where each scene is a span of its own, from its first picture to the one after its last."""
    whole = {"ordinal": 0, "first": 0, "end": -1}
    spans = [
        {
            **{name: scene[name] for name in ("start_s", "end_s")},
            "steady": bool(scene.get("clock_jumps") == 0),
            "scenes": [{name: scene[name] for name in ("clip_id", "scene_id", "caption")} | whole],
        }
        for scene in scenes
    ]
    return {"video_index": 0, "video_id": video_id, "url": uri, "uri": uri, "spans": json.dumps(spans), "skip": "[]"}


def film_of(row: Row) -> Key:
    """The film of a row of scores/: its video_id and where it lies."""
    return row["video_id"], row["uri"]


def _from_films(scenes: list[Row], config: CutConfig) -> Iterator[Batch]:
    for film, rows in groupby(sorted(scenes, key=film_of), film_of):
        task = {name: np.array([value], object) for name, value in film_task(*film, list(rows)).items()}
        for batch in cut_frames(task, config):
            for i in range(len(batch["scene_id"])):
                row = {name: column[i] for name, column in batch.items()}
                yield _one(row, [row[name] for name in KEY_FRAMES if row[name]])


def _one(row: Row, files: Sequence[bytes]) -> Batch:
    """A batch of one row, with its pictures."""
    frames = np.empty(1, object)
    frames[0] = np.stack([decode_jpeg(data) for data in files]) if files else np.zeros((0, 16, 16, 3), np.uint8)
    names = ("video_id", "scene_id", "caption", "error", "message")
    return {name: np.array([row[name]], object) for name in names} | {"frames": frames}


def _key(row: Row) -> Key:
    return row["video_id"], row["scene_id"]

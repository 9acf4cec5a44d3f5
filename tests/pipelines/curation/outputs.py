"""An output as a run leaves it, made without running one: rows of scores/ and of the plan."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from actors.core.store import Store
from actors.curation.cutting.scenes import FEATURES, FramesConfig
from actors.curation.features.latents import LatentsConfig
from actors.curation.measuring.measured import TOLD, Family, write_family
from actors.curation.tables import BARS, ORIGIN, SCORES, VIDEOS
from actors.media.shown import NOT_KNOWN
from pipelines.curation.selecting.fit_filter import Labelled
from pipelines.curation.settings import CurationConfig

Row = dict[str, Any]


def config(output: object, **groups: Any) -> CurationConfig:
    """Settings for an output; the input is never read where only scores/ is."""
    return CurationConfig(**{"input": "corpus.json", "output": str(output), **groups})


def scene(scene_id: str, /, **about: Any) -> Row:
    """A row of scores/ for a sound scene that passes every rule; `video.0_1` is the second of span `video.0`."""
    span = scene_id.rpartition("_")[0]
    row: Row = {
        "video_index": 0,
        "video_id": span.rpartition(".")[0],
        "uri": "film.mp4",
        "clip_id": f"{span}.mp4",
        "scene_id": scene_id,
        "ordinal": 0,
        "caption": "",
        "first": 0,
        "end": -1,
        "start_s": 0.0,
        "end_s": 2.0,
        "width": 640,
        "height": 360,
        **dict.fromkeys(FEATURES[:-1], 1.0),
        "no_frames": 8,
        "longest_hold_s": 0.04,
        "clock_jumps": 0,
        "interlaced": False,
        "window": -1,
        "trimmed_before_s": 0.0,
        "trimmed_after_s": 0.0,
        "cuts_inside": "",
        **dict.fromkeys(BARS, 0),
        **NOT_KNOWN._asdict(),
        "converted": "",
        "computed": "latents: cpu float32",
        "phash": None,
        "step": "",
        "error": "",
        "message": "",
        "attempts": 1,
        "written": 1.0,
        **dict.fromkeys(("decoded", "source", "scenes"), 0),
        "decoder": "",
        **dict.fromkeys(("fetch_s", "cut_s", "latents_s"), 0.0),
        **dict.fromkeys(ORIGIN),
    }
    if "error" in about:
        row |= dict.fromkeys(("start_s", "end_s", *FEATURES[:-1]), math.nan) | {"no_frames": 0, "step": "cut"}
    return row | about


def film(video_id: str, scenes: int, **about: Any) -> Row:
    """The row that closes a film."""
    bare = dict.fromkeys(("start_s", "end_s", *FEATURES[:-1]), math.nan) | {"no_frames": 0, "clip_id": ""}
    row = scene(f"{video_id}.0_0", scene_id="", ordinal=-1, scenes=scenes) | bare
    return row | ({"step": "cut"} if "error" in about else {}) | about


def fast_is_good(videos: int = 12, scenes: int = 10, noise: float = 0.0) -> Labelled:
    """Labels by a person for whom every scene with a mean_velocity above 3 is good, but for a share of mistakes."""
    random = np.random.default_rng(0)
    count = videos * scenes
    columns: dict[str, Any] = {name: random.lognormal(0, 0.5, count) for name in FEATURES[:-1]}
    columns["mean_velocity"] = random.uniform(0.2, 6, count)
    columns["no_frames"] = random.integers(4, 60, count)
    good = (columns["mean_velocity"] > 3) ^ (random.random(count) < noise)
    ids = [(f"v{i // scenes}", f"v{i // scenes}.{i % scenes}_0") for i in range(count)]
    keys = pd.DataFrame(ids, columns=["video_id", "scene_id"])
    return Labelled(keys.assign(**columns, label=good.astype(int)), {"motion.flow": "farneback"}, ["me"])


def write_scores(store: Store, *rows: Row) -> str:
    """Write one part of scores/."""
    keys = [f"{row['video_id']}/{row['scene_id']}/{row['error']}" for row in rows]
    return store.write_part("scores", pa.Table.from_pylist(list(rows), SCORES), keys)


def write_embeddings(store: Store, part: str, rows: Sequence[Row], vectors: Sequence[Any], **settings: Any) -> None:
    """Write the embeddings of the rows of a part of scores/, as `embed` does; None where a scene has none."""
    width = next(len(vector) for vector in vectors if vector is not None)
    kind = pa.list_(pa.float16(), width)
    values = [None if vector is None else np.asarray(vector, np.float16) for vector in vectors]
    columns = {
        "row": pa.array(range(len(rows)), pa.int32()),
        **{name: pa.array([row[name] for row in rows], pa.string()) for name in ("video_id", "scene_id")},
        "embedding": pa.array(values, kind),
        **dict.fromkeys(dict(TOLD), pa.array([""] * len(rows), pa.string())),
    }
    family = Family("embedding", "0123456789ab", {"embedding": kind})
    store.write_table(pa.table(columns), family.folder, part)
    write_family(store, family, {"settings": settings})


def write_plan(store: Store, videos: dict[str, int], rejected: Iterable[Row] = ()) -> None:
    """Write plan/: how many scenes each video has, -1 where it is a film, and what cannot be cut."""
    rows = [{"video_index": i, "video_id": name, "scenes": n} for i, (name, n) in enumerate(videos.items())]
    store.replace_table("plan/videos", [pa.Table.from_pylist(rows, VIDEOS)])
    store.replace_table("plan/rejected", [pa.Table.from_pylist(list(rejected), SCORES)])


def write_settings(config: CurationConfig) -> None:
    """Write the settings that an output was made with, as a run does."""
    Store(config.output).write_json({"settings": asdict(config)}, "plan", "settings.json")


def quick(source: object, output: object, **groups: Any) -> CurationConfig:
    """Settings that measure films fast, without a model to load."""
    frames = FramesConfig(size=64)
    latents = LatentsConfig(model="tiny")
    return CurationConfig(input=str(source), output=str(output), frames=frames, latents=latents, **groups)


def write_measured(store: Store, name: str, columns: dict[str, pa.DataType], part: str, rows: Iterable[Row]) -> None:
    """Write what a family measured of the rows of a part of scores/, as `measure` does; each has `row` and columns."""
    family = Family(name, "f" * 12, columns)
    whole = [{"video_id": "", "scene_id": "", "error": "", "message": "", "computed": "", **row} for row in rows]
    table = pa.Table.from_pylist([{key: row.get(key) for key in family.schema.names} for row in whole], family.schema)
    store.write_table(table, family.folder, part)
    write_family(store, family, {})

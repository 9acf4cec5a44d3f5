"""Schemas of the tables of a curated corpus, and how rows of scores/ are read."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from actors.core import storage
from actors.core.catalog import Part
from actors.core.computed import COMPUTED
from actors.core.errors import UserError
from actors.core.store import Store
from actors.curation.cutting.keyframes import KEY_FRAMES
from actors.curation.cutting.scenes import FEATURES
from actors.curation.features.perceptual_hash import HASH_BYTES
from actors.curation.measuring.measured import ROW, Family, with_families

if TYPE_CHECKING:
    # Settings import this file, and importing pandas takes time that a refused one need not cost.
    import pandas as pd

ORIGIN = ("film", "version")
"""Columns that say which film and which times a row comes from; rows of earlier versions lack them."""
BARS = ("bar_top", "bar_bottom", "bar_left", "bar_right")
"""Columns of a scene's black bars, in pixels of the film as shown; rows of earlier versions lack them."""
SEEN = (
    ("longest_hold_s", pa.float32()),
    ("clock_jumps", pa.int32()),
    ("interlaced", pa.bool_()),
    ("window", pa.int32()),
    ("trimmed_before_s", pa.float32()),
    ("trimmed_after_s", pa.float32()),
    ("cuts_inside", pa.string()),
    *((name, pa.int32()) for name in BARS),
    *((name, pa.string()) for name in ("color_range", "color_space", "color_primaries", "color_transfer")),
    ("sample_aspect_ratio", pa.string()),
    ("rotation", pa.int32()),
    ("converted", pa.string()),
    (COMPUTED, pa.string()),
)
"""Columns that say what is odd about a scene; rows of earlier versions lack them."""
LATER = (*ORIGIN, *(name for name, _ in SEEN), "concept")
"""Columns that rows of earlier versions lack."""
SCORES = pa.schema(
    [
        ("video_index", pa.int64()),
        ("video_id", pa.string()),
        ("uri", pa.string()),
        ("clip_id", pa.string()),
        ("scene_id", pa.string()),
        ("ordinal", pa.int64()),
        ("caption", pa.string()),
        ("first", pa.int64()),
        ("end", pa.int64()),
        ("start_s", pa.float64()),
        ("end_s", pa.float64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        *((name, pa.float32()) for name in FEATURES[:-1]),
        ("no_frames", pa.int32()),
        *SEEN,
        ("phash", pa.binary(HASH_BYTES)),
        ("step", pa.string()),
        ("error", pa.string()),
        ("message", pa.string()),
        ("attempts", pa.int32()),
        ("decoded", pa.int64()),
        ("source", pa.int64()),
        ("decoder", pa.string()),
        ("scenes", pa.int64()),
        ("fetch_s", pa.float32()),
        ("cut_s", pa.float32()),
        ("latents_s", pa.float32()),
        ("written", pa.float64()),
        *((name, pa.int64()) for name in ORIGIN),
    ]
)
"""What is measured: one row a scene, and one a film with scene_id "", written when its last scene has passed."""
VIDEOS = pa.schema([("video_index", pa.int64()), ("video_id", pa.string()), ("scenes", pa.int64())])
"""The input: how many scenes of each video are to be cut; -1: known when the film has been decoded."""
URLS = pa.schema([*VIDEOS, ("url", pa.string())])
"""The same with where each film lies now; plans of earlier versions do not tell."""
PLANNED = pa.schema([*URLS, *((name, pa.int64()) for name in ORIGIN)])
"""The same with which film that is, as it lay there when it was planned."""
DIGEST = "digest"
INPUT = pa.schema([*PLANNED, (DIGEST, pa.binary(16))])
"""The same with what tells a video from others of its input, all of which can be cut; null for others, and in plans of
earlier versions."""
STALE = pa.schema(
    [
        ("video_id", pa.string()),
        ("scene_id", pa.string()),
        *((name, pa.int64()) for name in ORIGIN),
    ]
)
"""Rows of scores/ that are of another film or other times than the input has now: they do not count."""
NEW_CAPTIONS = pa.schema([("video_id", pa.string()), ("scene_id", pa.string()), ("caption", pa.string())])
"""Captions of the input that are others than those in scores/."""
THUMBNAILS = pa.schema([("video_id", pa.string()), ("scene_id", pa.string()), ("thumbnail", pa.binary())])
KEYFRAMES = pa.schema(
    [("video_id", pa.string()), ("scene_id", pa.string()), *((name, pa.binary()) for name in KEY_FRAMES)]
)
"""Key frames of the sound scenes in the part of scores/ of the same name, null where a scene has too few frames."""

CAPTIONS = pa.schema(
    [
        ("video_id", pa.string()),
        ("scene_id", pa.string()),
        ("caption", pa.string()),
        ("recaption", pa.string()),
        ("code", pa.string()),
        ("message", pa.string()),
        ("attempts", pa.int32()),
        ("requests", pa.int32()),
        ("tokens_in", pa.int64()),
        ("tokens_out", pa.int64()),
        ("by", pa.string()),
        ("model", pa.string()),
        ("prompt", pa.string()),
        ("written", pa.float64()),
        *((name, pa.int64()) for name in ORIGIN),
        ("style", pa.string()),
    ]
)
"""One row an answer: the caption that was sent, and what was made of it, or the code caption_failed. style: null in
rows of earlier versions, which are of the style improved."""
SCENES = pa.schema(
    [
        ("video_id", pa.string()),
        ("clip_id", pa.string()),
        ("scene_id", pa.string()),
        ("caption", pa.string()),
        ("recaption", pa.string()),
        ("start_s", pa.float64()),
        ("end_s", pa.float64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        *((name, pa.float32()) for name in FEATURES[:-1]),
        ("no_frames", pa.int32()),
        *SEEN,
        ("probability", pa.float32()),
        ("kept", pa.bool_()),
        ("reason", pa.string()),
        ("error", pa.string()),
        ("duplicate_group", pa.int64()),
        ("concept", pa.int32()),
    ]
)
"""One row for every scene of the input: kept, dropped with a reason, or failed with an error.

duplicate_group: its group of near-duplicates, null where it is alone, or select.dedupe and select.semantic_dedupe are.
concept: its concept, 0 for the one with most scenes, null where it has no embedding or select.balance.concepts is 0.
"""
PICTURES = "pictures_part"
"""Column of compacted parts of scores/: which part of thumbnails/ and keyframes/ has a row's pictures, "" for none.
Those of other parts of scores/ lie in parts of the same name."""
PLACES = pa.schema(
    [("video_id", pa.string()), ("scene_id", pa.string()), ("part", pa.string()), (PICTURES, pa.string())]
)
"""Which part of scores/ holds a scene, and which of thumbnails/ and keyframes/; by itself: it depends on the way a run
went. Tables of earlier versions do not tell the latter: those lie in parts of the same name."""
REJECTED = pa.schema(
    [
        ("video_id", pa.string()),
        ("clip_id", pa.string()),
        ("scene_id", pa.string()),
        ("step", pa.string()),
        ("code", pa.string()),
        ("message", pa.string()),
        ("attempts", pa.int32()),
    ]
)
"""What failed, at which step; scene_id "" where it is a video whose scenes could not be known."""
EVALUATION = pa.schema(
    [
        ("video_id", pa.string()),
        ("scene_id", pa.string()),
        ("kept", pa.bool_()),
        ("random", pa.bool_()),
        ("caption", pa.string()),
        ("recaption", pa.string()),
        ("caption_code", pa.string()),
        ("frames", pa.int32()),
        ("score_caption", pa.float32()),
        ("score_recaption", pa.float32()),
        ("error", pa.string()),
        ("message", pa.string()),
        ("model", pa.string()),
        *((name, pa.int64()) for name in ORIGIN),
        ("pictures", pa.string()),
        (COMPUTED, pa.string()),
    ]
)
"""One row a scene. frames: how many were scored; a score is null where there is no such text or no frame;
caption_code: why there is no recaption; error: why there are no frames; pictures: which of the scene were scored, as
evaluate.pictures names them, null in rows of earlier versions, which are of sampled ones; computed: device and
precision of the model."""
PLAN_AGAIN = "Run `score` or `run` with the same settings: the plan is made again, and nothing is measured twice."
"""What makes plan/ again."""
SELECT_AGAIN = "Run `select` to make it again from scores/."
"""What makes scenes/, places/ and rejected/ again."""
CAPTIONS_AGAIN = "Restore it from a copy, or delete it: `recaption` then requests its scenes again (billed)."
"""What makes captions/ again."""
SELECTION = ("scenes", "places", "rejected")
"""Tables that are replaced together, by each selection."""
NARROW = (
    *("video_index", "video_id", "clip_id", "scene_id", "ordinal", "step", "error", "written"),
    *("decoder", "decoded", "source", "scenes", "window", "fetch_s", "cut_s", "latents_s", COMPUTED),
)
"""What is always read of a row: whether it counts, what it cost, and on what it was computed."""
UNMEASURED = "unmeasured"
"""Column that says which families have yet to measure a row."""
Look = Callable[["pd.DataFrame"], "pd.DataFrame"]
"""What is made of the rows of a part; it returns a row for each that it is given."""


def check_planned(store: Store) -> None:
    """Raise UserError where no run has planned this output. Reads one part at most, and imports no pandas."""
    for folder in ("plan/videos", "plan/rejected"):
        if any(len(part) for part in store.read_parts(folder, ["video_id"], again=PLAN_AGAIN)):
            return
    raise UserError(f"{store.root} has no plan, so it is not the output of a run. Check the path.")


def check_columns(name: str, columns: Collection[str]) -> None:
    """Raise UserError where a family has columns of names that are taken."""
    if taken := set(columns) & {*SCORES.names, *SCENES.names, *ROW, PICTURES}:
        raise UserError(f"scores={name}: rename its columns {', '.join(sorted(taken))}: scores/ or scenes/ has these")


def read_rows(
    store: Store,
    parts: Sequence[Part],
    columns: Sequence[str],
    look: Look | None,
    stale: pa.Table,
    families: Sequence[Family] = (),
) -> tuple[pa.Table, list[str]]:
    """Rows of parts of scores/ or plan/rejected: NARROW, part, row, PICTURES, and `columns` or what `look` makes of
    them.

    With `families`, which have those of the columns that scores/ has not, also UNMEASURED: which of them, by bits of a
    number, have yet to measure a row. Rows that are `stale` are left out. Also returns the paths of parts of scores/
    that are torn and left out. A part of the plan that is not whole raises DamagedError.
    """
    origin = ORIGIN if len(stale) else ()
    needed = ("mean_rgb_diff",) if families else ()
    names = [*dict.fromkeys([*NARROW, *needed, *(name for name in columns if name in SCORES.names)])]
    schema = pa.schema([SCORES.field(name) for name in names])
    # A few texts, millions of times.
    schema = schema.set(names.index(COMPUTED), pa.field(COMPUTED, pa.dictionary(pa.int32(), pa.string())))
    # Tables of no part have columns, too.
    added = partial(_looked, store=store, look=look, families=families, columns=columns)
    nothing = added(schema.empty_table(), Part("", ""))
    tables, torn = [nothing.append_column(PICTURES, pa.array([], pa.string()).dictionary_encode())], []
    for part in parts:
        if part.folder == "scores":
            table = store.read_part(part.folder, part.name, [*names, *origin, PICTURES], (*LATER, PICTURES))
        else:
            table = store.read_whole(part, names, LATER, again=PLAN_AGAIN)
        if table is None:
            torn.append(part.path)
            continue
        rows = added(table.select(names).cast(schema), part)
        rows = rows.append_column(PICTURES, pictures_of(table, part.name).dictionary_encode())
        tables.append(rows.filter(current(table, stale)) if part.folder == "scores" and origin else rows)
    return pa.concat_tables(tables, promote_options="permissive").unify_dictionaries(), torn


def read_at(store: Store, places: pd.DataFrame, schema: pa.Schema, families: Sequence[Family] = ()) -> pa.Table:
    """Columns of rows, in their order: of SCORES, PICTURES, and those of families.

    places: part and row of each, as `read_rows` tells them. Raises RuntimeError where a part is torn since.
    """
    names = [name for name in schema.names if name in SCORES.names]
    others = [name for name in schema.names if name not in SCORES.names and name != PICTURES]
    needed = [name for name in ("scene_id", "error", "mean_rgb_diff") if families]
    read, order = [pa.Table.from_batches([], schema)], []
    rows = places.row.to_numpy()
    for part, at in places.groupby("part", observed=True).indices.items():
        folder, _, name = str(part).rpartition("/")
        table = store.read_part(folder, name, [*dict.fromkeys([*names, *needed]), PICTURES], (*LATER, PICTURES))
        if table is None:
            raise RuntimeError(f"{store.uri(str(part))} is torn since it was judged: run the same command again")
        pictures = pictures_of(table, name)
        table = table.drop_columns([PICTURES]).append_column(PICTURES, pictures)
        if families:
            table, _ = with_families(store, name if folder == "scores" else "", table, families, others)
        read.append(table.take(pa.array(rows[at])).select(schema.names).cast(schema))
        order.append(at)
    return pa.concat_tables(read).take(pa.array(np.argsort(np.concatenate([*order, []]))))


def pictures_of(rows: pa.Table, part: str) -> pa.Array:
    """Which part of thumbnails/ and keyframes/ has the pictures of each row of a part of scores/."""
    if PICTURES not in rows.column_names:
        return pa.array([part] * len(rows), pa.string())
    return pc.fill_null(rows[PICTURES].cast(pa.string()), part).combine_chunks()


def read_scenes(store: Store, part: Part) -> pa.Table:
    """A part of scenes/ as `whole_scenes`."""
    return whole_scenes(store.read_whole(part, again=SELECT_AGAIN), store.uri(part.path))


def whole_scenes(table: pa.Table, uri: str) -> pa.Table:
    """All that a part of scenes/ holds: the columns of SCENES in their order, then those of families."""
    lacking = [name for name in SCENES.names if name not in table.column_names]
    if earlier := set(lacking) - set(LATER):
        raise UserError(f"{uri} has no column {', '.join(sorted(earlier))}. {SELECT_AGAIN}")
    for name in lacking:
        table = table.append_column(name, pa.nulls(len(table)))
    more = [field for field in table.schema if field.name not in SCENES.names]
    schema = pa.schema([*SCENES, *more])
    return table.select(schema.names).cast(schema)


def more_columns(store: Store) -> dict[str, pa.DataType]:
    """The columns of families that scenes/ holds; all of its parts hold the same."""
    for part in store.listed("scenes")[:1]:
        try:
            schema = pq.read_schema(pa.BufferReader(storage.read_bytes(store.uri(part.path))))
        except (pa.ArrowInvalid, FileNotFoundError):
            # Who reads its rows says what is wrong.
            break
        return {field.name: field.type for field in schema if field.name not in SCENES.names}
    return {}


def current(rows: pa.Table, stale: pa.Table) -> pa.Array:
    """Which rows (of ids and ORIGIN) are of the films and times that the input has: all but those in plan/stale."""
    import pandas as pd

    keys = ["video_id", "scene_id", *ORIGIN]
    if not len(stale):
        return pa.array(np.ones(len(rows), bool))
    near = stale.filter(pa.array(stale["video_id"].to_pandas().isin(rows["video_id"].unique().to_pandas())))
    here, there = (pd.MultiIndex.from_frame(with_origin(table).select(keys).to_pandas()) for table in (rows, near))
    return pa.array(~here.isin(there))


def with_origin(rows: pa.Table) -> pa.Table:
    """Rows with 0 for an ORIGIN that is not known; pandas would make them floats, which are too short."""
    for name in ORIGIN:
        filled = pc.fill_null(rows[name].cast(pa.int64()), 0)
        rows = rows.set_column(rows.column_names.index(name), name, filled)
    return rows


def with_new_captions(store: Store, rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with the captions that the input has now; they have video_id, scene_id and caption."""
    import pandas as pd

    new = store.read_table("plan/captions", NEW_CAPTIONS, again=PLAN_AGAIN).to_pandas(types_mapper=strings)
    if new.empty:
        return rows
    keys = pd.MultiIndex.from_frame(rows[["video_id", "scene_id"]])
    found = new.set_index(["video_id", "scene_id"]).caption.reindex(keys).to_numpy(object)
    return rows.assign(caption=np.where(pd.isna(found), rows.caption.to_numpy(object), found))


def plan_places(store: Store) -> pa.Table | None:
    """Where the film of each video of the plan lies now; None where the plan is of a version that did not tell."""
    if "plan/videos" not in store.catalog().tables:
        return None
    return store.read_table("plan/videos", URLS).select(["video_id", "url"])


def with_places(store: Store, rows: pd.DataFrame, plan: pa.Table | None) -> pd.DataFrame:
    """Rows with the `uri` where their films lie now: the input or the output may have moved since.

    plan: as `plan_places` tells it.
    """
    if plan is None:
        return rows
    here = pa.array(rows.video_id.unique(), pa.string())
    is_in: Any = pc.is_in  # type: ignore[attr-defined]
    now = plan.filter(is_in(plan["video_id"], value_set=here)).to_pandas().set_index("video_id").url
    urls = rows.video_id.map(now).fillna("").to_numpy(object)
    local = np.array([url.startswith(("/", "file://", "s3://")) for url in urls], bool)
    fetched = [store.uri("videos", PurePosixPath(uri).name) if uri else uri for uri in rows.uri]
    return rows.assign(uri=np.where(local, urls, fetched))


def _looked(
    table: pa.Table, part: Part, store: Store, look: Look | None, families: Sequence[Family], columns: Sequence[str]
) -> pa.Table:
    name = part.name if part.folder == "scores" else ""
    table, left = with_families(store, name, table, families, columns)
    if look is not None:
        seen = look(table.to_pandas(types_mapper=strings))
        table = pa.Table.from_arrays(
            [*(table[name] for name in NARROW), *(pa.Array.from_pandas(seen[name]) for name in seen)],
            [*NARROW, *seen],
        )
    if families:
        table = table.append_column(UNMEASURED, pa.array(left))
    path = pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(table), np.int32)), pa.array([part.path]))
    row = pa.array(np.arange(len(table), dtype=np.int32))
    return table.append_column("part", path).append_column("row", row)


def strings(kind: pa.DataType) -> Any:
    """Types for `Table.to_pandas`: strings stay Arrow's, at a fraction of the memory."""
    import pandas as pd

    return pd.StringDtype("pyarrow", na_value=np.nan) if pa.types.is_string(kind) else None

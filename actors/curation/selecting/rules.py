"""The rules that drop a scene by itself, and the tables that hold what became of each."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pyarrow as pa

from actors.core.catalog import Part, PartWriter
from actors.core.store import Store
from actors.curation.cutting.scenes import FEATURES, FramesConfig
from actors.curation.features.perceptual_hash import HASH_BYTES
from actors.curation.measuring.measured import Family
from actors.curation.selecting.column_rules import scalars
from actors.curation.selecting.filter import Filter
from actors.curation.selecting.select_settings import SelectConfig
from actors.curation.tables import (
    PICTURES,
    PLACES,
    REJECTED,
    SCENES,
    SCORES,
    read_at,
    strings,
    with_new_captions,
)

JUDGED = ("start_s", "end_s", "longest_hold_s")
"""Columns that rules need beside the features."""
ROUNDING = 0.004
"""Of an interval: times are rounded to milliseconds."""
HASH = ("hash_0", "hash_1", "hash_2")


def needed(select: SelectConfig, model: Filter | None = None) -> list[str]:
    """The columns that `judge` reads of scenes."""
    columns = [*FEATURES, *JUDGED, *(rule.column for rule in select.column_rules), *(model.features if model else ())]
    return [*dict.fromkeys(columns), *(["phash"] if select.dedupe is not None else [])]


def judge(rows: pd.DataFrame, frames: FramesConfig, select: SelectConfig, model: Filter | None = None) -> pd.DataFrame:
    """What can be said of each scene by itself: reason (of select.reasons), rank (the best is highest), probability.

    rows: error, `needed` columns of scenes; longest_hold_s may be missing. What failed has the reason "" and no
    probability. With a model the probability is the rank. With select.dedupe also the words of phash, uint64, 0
    where there is none: hash_0, hash_1, hash_2.
    """
    rules = [
        ("frozen", rows.longest_hold_s > select.max_hold_s),
        ("too_short", rows.no_frames < frames.min),
        ("too_long", spaces(rows, frames.interval_ms) > frames.max),
        ("unmeasured", rows[list(FEATURES)].isna().any(axis=1)),
        ("static", rows.mean_velocity < select.min_velocity),
        ("cut_inside", rows.max_rgb_diff > select.max_rgb_diff),
    ]
    for rule in select.column_rules:
        rules += [("unmeasured", rows[rule.column].isna()), (rule.name, rule.broken(rows[rule.column]))]
    if model is not None and set(model.features) - set(FEATURES):
        rules.append(("unmeasured", rows[list(model.features)].isna().any(axis=1)))
    sound, names = (rows.error == "").to_numpy(), select.reasons
    codes = [names.index(name) for name, _ in rules]
    broken = np.where(sound, np.select([holds for _, holds in rules], codes, 0), 0)
    chance = np.full(len(rows), np.nan, np.float32)
    if model is None:
        rank = steadiness(rows).to_numpy(np.float32)
    else:
        if sound.any():
            chance[sound] = model.probability(rows[sound])
        rank = chance
    reason = pd.Categorical.from_codes(broken.astype(np.int8), dtype=pd.CategoricalDtype(list(names)))
    judged = pd.DataFrame({"reason": reason, "rank": rank, "probability": chance})
    if select.dedupe is not None:
        hashes = b"".join(value or bytes(HASH_BYTES) for value in rows.phash)
        judged[list(HASH)] = np.frombuffer(hashes, np.uint64).reshape(-1, len(HASH))
    return judged


def spaces(rows: pd.DataFrame, interval_ms: int) -> pd.Series:
    """How long scenes are, in samples: those that were taken, or whole intervals where fewer pictures than that appear.

    rows: no_frames, start_s, end_s; interval_ms: milliseconds between two samples.
    """
    intervals = np.floor((rows.end_s - rows.start_s) * 1000 / interval_ms + ROUNDING)
    return pd.Series(np.maximum(rows.no_frames, intervals.fillna(0)))


def steadiness(rows: pd.DataFrame) -> pd.Series:
    """By rule, the rank of scenes: 0 to 1."""
    return (rows.mean_velocity / rows.max_velocity).fillna(0)


def write_decisions(
    store: Store,
    writer: PartWriter,
    number: int,
    decided: pd.DataFrame,
    model: Filter | None,
    families: Sequence[Family] = (),
) -> tuple[list[Part], np.ndarray]:
    """Write one part of scenes/, of places/ and of rejected/; with a model, also returns `spread_counts` of its scenes.

    decided: part and row of rows of scores/, in the order in which they are written; their probability, reason,
    duplicate_group and concept, and whether it is a scene, or a film that failed. families: whose scalars scenes/
    carries.
    """
    places = decided.reset_index(drop=True)
    whole, extra = _measured(store, places, families)
    about = with_new_captions(store, whole.to_pandas(types_mapper=strings))
    kept = places.scene & (places.reason == "") & (about.error == "")
    groups = places.duplicate_group.where(places.duplicate_group >= 0)
    parts = places.part.astype(str).str.rpartition("/")[2]
    reason = places.reason.astype(object)
    decision = {"recaption": "", "probability": places.probability, "kept": kept, "reason": reason}
    rows = about.assign(**decision, duplicate_group=groups, concept=places.concept.where(places.concept >= 0))
    where = about[["video_id", "scene_id"]].assign(part=parts, **{PICTURES: whole[PICTURES].to_pandas()})
    scenes = pa.Table.from_pandas(rows[places.scene], SCENES, preserve_index=False)
    for field in extra:
        scenes = scenes.append_column(field, whole[field.name].filter(pa.array(places.scene)))
    tables = {
        "places": pa.Table.from_pandas(where[places.scene], PLACES, preserve_index=False),
        "scenes": scenes,
        "rejected": rejections(rows[rows.error != ""]),
    }
    written = [writer.write(folder, number, table) for folder, table in tables.items()]
    return written, np.zeros(0) if model is None else model.spread_counts(rows[rows.error == ""])


def _measured(store: Store, places: pd.DataFrame, families: Sequence[Family]) -> tuple[pa.Table, pa.Schema]:
    """What was measured of rows, in their order, and which of its columns are of families."""
    names = [name for name in dict.fromkeys([*SCENES.names, *REJECTED.names]) if name in SCORES.names]
    extra = pa.schema([*scalars({name: kind for one in families for name, kind in one.columns.items()}).items()])
    schema = pa.schema([*(SCORES.field(name) for name in names), (PICTURES, pa.string()), *extra])
    whole = read_at(store, places, schema, families)
    for number, field in enumerate(schema):
        if field in extra and pa.types.is_floating(field.type):
            # Null is no number for any reader of Parquet; NaN is above all numbers for some.
            values = whole[field.name].to_numpy()
            whole = whole.set_column(number, field, pa.array(values, field.type, from_pandas=True))
    return whole, extra


def rejections(rows: pd.DataFrame) -> pa.Table:
    """Rows that have an error, as rejected/ holds them."""
    return pa.Table.from_pandas(rows.rename(columns={"error": "code"}), REJECTED, preserve_index=False)

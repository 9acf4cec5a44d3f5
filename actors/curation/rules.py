"""The rules that drop a scene by itself, and the tables that hold what became of each."""

import numpy as np
import pandas as pd
import pyarrow as pa

from actors.core.catalog import Part, PartWriter
from actors.core.store import Store
from actors.curation.filter import Filter
from actors.curation.perceptual_hash import HASH_BYTES
from actors.curation.scenes import FEATURES, FramesConfig
from actors.curation.select_settings import SelectConfig
from actors.curation.tables import LATER, PLACES, REJECTED, SCENES, SCORES, strings, with_new_captions

REASONS = (
    *("", "frozen", "too_short", "too_long", "unmeasured", "static", "cut_inside"),
    *("near_duplicate", "same_span", "concept_full", "not_selected"),
)
"""Why a scene is not kept, in the order in which it is looked for; the last ones are known of the whole corpus only."""
JUDGED = ("start_s", "end_s", "longest_hold_s")
"""Columns that rules need beside the features."""
ROUNDING = 0.004
"""Of an interval: times are rounded to milliseconds."""
COMPARED = ("", "near_duplicate", "same_span", "concept_full", "not_selected")
"""Reasons of scenes that pass every rule of their own and are compared with others."""
HASH = ("hash_0", "hash_1", "hash_2")


def judge(rows: pd.DataFrame, frames: FramesConfig, select: SelectConfig, model: Filter | None = None) -> pd.DataFrame:
    """What can be said of each scene by itself: reason (of REASONS), rank (the best is highest) and probability.

    rows: error, JUDGED and FEATURES of scenes; longest_hold_s may be missing. What failed has the reason "" and no
    probability. With a model the probability is the rank. With select.dedupe also the words of phash, uint64, 0
    where there is none: hash_0, hash_1, hash_2.
    """
    rules = {
        "frozen": rows.longest_hold_s > select.max_hold_s,
        "too_short": rows.no_frames < frames.min,
        "too_long": spaces(rows, frames.interval_ms) > frames.max,
        "unmeasured": rows[list(FEATURES)].isna().any(axis=1),
        "static": rows.mean_velocity < select.min_velocity,
        "cut_inside": rows.max_rgb_diff > select.max_rgb_diff,
    }
    sound = (rows.error == "").to_numpy()
    codes = [REASONS.index(name) for name in rules]
    broken = np.where(sound, np.select(list(rules.values()), codes, 0), 0)
    chance = np.full(len(rows), np.nan, np.float32)
    if model is None:
        rank = steadiness(rows).to_numpy(np.float32)
    else:
        if sound.any():
            chance[sound] = model.probability(rows[sound])
        rank = chance
    reason = pd.Categorical.from_codes(broken.astype(np.int8), dtype=pd.CategoricalDtype(list(REASONS)))
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
    store: Store, writer: PartWriter, number: int, decided: pd.DataFrame, model: Filter | None
) -> tuple[list[Part], np.ndarray]:
    """Write one part of scenes/, of places/ and of rejected/; with a model, also returns `spread_counts` of its scenes.

    decided: part and row of rows of scores/, in the order in which they are written; their probability, reason,
    duplicate_group and concept, and whether it is a scene, or a film that failed.
    """
    added = {"recaption", "probability", "kept", "reason", "code", "duplicate_group", "concept"}
    names = [*dict.fromkeys([*SCENES.names, *REJECTED.names])]
    names = [name for name in names if name not in added]
    places = decided.reset_index(drop=True)
    read, order = [pa.schema([SCORES.field(name) for name in names]).empty_table()], []
    for part, rows in places.groupby("part", observed=True).row:
        folder, _, name = str(part).rpartition("/")
        table = store.read_part(folder, name, names, LATER)
        if table is None:
            raise RuntimeError(f"{store.uri(str(part))} is torn since it was judged: run the same command again")
        read.append(table.select(names).take(pa.array(rows)).cast(read[0].schema))
        order.append(rows.index)
    about = pa.concat_tables(read).to_pandas(types_mapper=strings)
    about = with_new_captions(store, about.iloc[np.argsort(np.concatenate([*order, []]))].reset_index(drop=True))
    kept = places.scene & (places.reason == 0) & (about.error == "")
    reason = np.array(REASONS, object)[places.reason]
    groups = places.duplicate_group.where(places.duplicate_group >= 0)
    parts = places.part.astype(str).str.rpartition("/")[2]
    decision = {"recaption": "", "probability": places.probability, "kept": kept, "reason": reason}
    rows = about.assign(**decision, duplicate_group=groups, concept=places.concept.where(places.concept >= 0))
    tables = {
        "places": pa.Table.from_pandas(about.assign(part=parts)[places.scene], PLACES, preserve_index=False),
        "scenes": pa.Table.from_pandas(rows[places.scene], SCENES, preserve_index=False),
        "rejected": rejections(rows[rows.error != ""]),
    }
    written = [writer.write(folder, number, table) for folder, table in tables.items()]
    return written, np.zeros(0) if model is None else model.spread_counts(rows[rows.error == ""])


def rejections(rows: pd.DataFrame) -> pa.Table:
    """Rows that have an error, as rejected/ holds them."""
    return pa.Table.from_pandas(rows.rename(columns={"error": "code"}), REJECTED, preserve_index=False)

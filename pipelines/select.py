"""Decide which scenes are kept, from what was measured: a cheap step that can be repeated with other thresholds.

A scene passes the rules where, in this order, none of these holds:
    too_short   no_frames < frames.min
    too_long    no_frames > frames.max
    unmeasured  a feature is missing: the scene was too long when it was scored; `score` measures it
    static      mean_velocity < select.min_velocity
    cut_inside  max_rgb_diff > select.max_rgb_diff
Those that pass are ranked: by rule, the steadiest motion first (mean_velocity / max_velocity, 1 where every step is the
same, 0 where nothing moves); by classifier, the highest probability first (`no_probability` where there is none); ties
by scene id. The best of each span stays (`same_span`), and of these the best select.count, or as many as
select.fraction of those that pass, rounded down (`not_selected`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from actors.video import FEATURES, Row
from pipelines.curation import CurationConfig
from pipelines.rows import IncompleteError, expected_scenes, rows_now, strings
from pipelines.store import Store

PART_ROWS = 100_000
"""Rows in one part of scenes/ and rejected/."""
SCENES = pa.schema(
    [
        ("video_id", pa.string()),
        ("clip_id", pa.string()),
        ("scene_id", pa.string()),
        ("caption", pa.string()),
        ("start_s", pa.float64()),
        ("end_s", pa.float64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        *((name, pa.float32()) for name in FEATURES[:-1]),
        ("no_frames", pa.int32()),
        ("probability", pa.float32()),
        ("kept", pa.bool_()),
        ("reason", pa.string()),
        ("error", pa.string()),
    ]
)
"""One row for every scene of the input: kept, dropped with a reason, or failed with an error."""
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
PROBABILITIES = pa.schema([("video_id", pa.string()), ("scene_id", pa.string()), ("probability", pa.float32())])


@dataclass(frozen=True)
class Tally:
    """How the rows of the input add up: rows = kept + dropped + failed."""

    rows: int
    kept: int
    dropped: dict[str, int]
    """Scenes by reason."""
    failed: dict[str, int]
    """Scenes by error code."""
    lost_videos: dict[str, int]
    """Videos whose scenes could not be known, or not all of them, by error code."""


def select(config: CurationConfig) -> int:
    """Write scenes/ and rejected/ anew from scores/; returns how many scenes the input has.

    Raises IncompleteError where one of them has no row.
    """
    store = Store(config.output)
    scenes, films, videos = rows_now(store)
    expected = expected_scenes(scenes, films, videos)
    scenes = decide(scenes, config, probabilities(store) if config.select.by == "classifier" else None)
    store.replace_table("scenes", _tables(scenes, SCENES))
    bad = pd.concat([scenes[scenes.error != ""], films[films.error != ""]]).sort_values(["video_index", "ordinal"])
    store.replace_table("rejected", _tables(bad.rename(columns={"error": "code"}), REJECTED))
    return expected


def fail_scenes(store: Store, rows: Sequence[Row]) -> None:
    """Mark kept scenes that could not be written as failed, in scenes/ and rejected/.

    rows: video_id, scene_id, error, message of each.
    """
    if not rows:
        return
    failed = pd.DataFrame(rows)
    keys = ["video_id", "scene_id"]
    scenes = store.read_table("scenes", SCENES).to_pandas(types_mapper=strings)
    codes = failed.set_index(keys).error.reindex(pd.MultiIndex.from_frame(scenes[keys])).to_numpy()
    # A duplicate of a kept scene has its own error already.
    hit = scenes.kept.to_numpy() & ~pd.isna(codes)
    scenes = scenes.assign(kept=scenes.kept & ~hit, error=np.where(hit, codes, scenes.error))
    store.replace_table("scenes", _tables(scenes, SCENES))
    rejected = store.read_table("rejected", REJECTED).to_pandas(types_mapper=strings)
    more = failed.merge(scenes.loc[hit, [*keys, "clip_id"]], on=keys).rename(columns={"error": "code"})
    store.replace_table("rejected", _tables(pd.concat([rejected, more.assign(step="export", attempts=1)]), REJECTED))


def tally(store: Store, expected: int | None = None) -> Tally:
    """Count what scenes/ and rejected/ say; raises IncompleteError where it is not what the input has."""
    scenes = store.read_table("scenes", pa.schema([SCENES.field(n) for n in ("kept", "reason", "error")])).to_pandas()
    lost = store.read_table("rejected", pa.schema([REJECTED.field(n) for n in ("scene_id", "code")])).to_pandas()
    lost_videos = _counts(lost.code[lost.scene_id == ""])
    counted = Tally(len(scenes), int(scenes.kept.sum()), _counts(scenes.reason), _counts(scenes.error), lost_videos)
    states = scenes.kept.astype(int) + (scenes.reason != "") + (scenes.error != "")
    if (states != 1).any() or counted.rows != (counted.rows if expected is None else expected):
        raise IncompleteError(f"rows do not add up: the input has {expected}, the output {counted}")
    return counted


def decide(scenes: pd.DataFrame, config: CurationConfig, probability: pd.Series | None) -> pd.DataFrame:
    """Add probability, kept and reason to measured scenes, without changing the argument.

    probability: by (video_id, scene_id), where a filter made one.
    """
    rules: dict[str, Any] = {
        "too_short": scenes.no_frames < config.frames.min,
        "too_long": scenes.no_frames > config.frames.max,
        "unmeasured": scenes[list(FEATURES)].isna().any(axis=1),
        "static": scenes.mean_velocity < config.select.min_velocity,
        "cut_inside": scenes.max_rgb_diff > config.select.max_rgb_diff,
    }
    keys = pd.MultiIndex.from_frame(scenes[["video_id", "scene_id"]])
    chance = np.full(len(scenes), np.nan) if probability is None else probability.reindex(keys).to_numpy()
    if probability is None:
        rank = (scenes.mean_velocity / scenes.max_velocity).fillna(0).to_numpy()
    else:
        rules["no_probability"] = np.isnan(chance)
        rank = np.nan_to_num(chance)
    sound = (scenes.error == "").to_numpy()
    reason = np.where(sound, np.select(list(rules.values()), list(rules), ""), "").astype(object)
    passed = scenes[["video_id", "clip_id", "scene_id"]].assign(rank=-rank)[sound & (reason == "")]
    best_first = passed.sort_values(["rank", "scene_id", "video_id"], kind="stable")
    spans = best_first.drop_duplicates(["video_id", "clip_id"])
    limit = config.select.count
    if config.select.fraction is not None:
        # 0.29 of 100 is 29, whatever a binary fraction makes of it.
        limit = int(config.select.fraction * len(passed) + 1e-9)
    chosen = spans.index[:limit]
    reason[passed.index.difference(spans.index)] = "same_span"
    reason[spans.index.difference(chosen)] = "not_selected"
    kept = scenes.index.isin(chosen)
    return scenes.assign(probability=chance.astype(np.float32), kept=kept, reason=reason)


def probabilities(store: Store) -> pd.Series:
    """What a filter learnt from labels gave each scene, by (video_id, scene_id)."""
    table = store.read_table("probabilities", PROBABILITIES).to_pandas()
    if table.empty:
        raise ValueError(
            f"select.by=classifier needs probabilities, and {store.uri('probabilities')} has none: "
            f"a table of {', '.join(PROBABILITIES.names)}; without a filter use select.by=rule"
        )
    return table.drop_duplicates(["video_id", "scene_id"]).set_index(["video_id", "scene_id"]).probability


def _counts(codes: pd.Series) -> dict[str, int]:
    return {str(code): int(n) for code, n in codes[codes != ""].value_counts().sort_index().items()}


def _tables(rows: pd.DataFrame, schema: pa.Schema) -> Iterator[pa.Table]:
    for start in range(0, max(len(rows), 1), PART_ROWS):
        yield pa.Table.from_pandas(rows.iloc[start : start + PART_ROWS], schema=schema, preserve_index=False)

"""Decide which scenes are kept, from what was measured: a cheap step that can be repeated with other thresholds.

A scene passes the rules where, in this order, none of these holds:
    frozen      longest_hold_s > select.max_hold_s
    too_short   no_frames < frames.min
    too_long    no_frames > frames.max, or end_s - start_s is longer than so many intervals and another
    unmeasured  a feature is missing: the scene was too long when it was scored; `score` measures it
    static      mean_velocity < select.min_velocity
    cut_inside  max_rgb_diff > select.max_rgb_diff
    NAME        what the rule of this name in select.rules drops; unmeasured where its column has no value
    unmeasured  by classifier, where another column that the filter reads has no value
Those that pass are ranked: by rule, the steadiest motion first (mean_velocity / max_velocity, 1 where every step is the
same, 0 where nothing moves); by classifier, what the filter calls most probably good first; ties by scene id. With
select.dedupe or select.semantic_dedupe the best of each group of near-duplicates stays (`near_duplicate`); then the
best of each span (`same_span`); with select.balance the best of each concept (`concept_full`); and of these the best
select.count, or as many as select.fraction of those that pass the rules, rounded down (`not_selected`). Groups and
concepts are of all scenes, whether they pass or not, so that no rule changes them.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from actors.core.catalog import Replacement, replaced
from actors.core.stage import Row
from actors.core.store import Store
from actors.curation.measuring.measured import families_now
from actors.curation.selecting.duplicates import united
from actors.curation.selecting.filter import Filter, load_filter, place
from actors.curation.selecting.rules import HASH, judge, needed, rejections, write_decisions
from actors.curation.tables import SCENES, SELECT_AGAIN, SELECTION, read_scenes, strings
from pipelines.curation.gathered import Divided
from pipelines.curation.rows import IncompleteError, Inventory, Ranges, Rows, captions, in_tasks
from pipelines.curation.selecting.choose import IDS, Judged, alike, choose
from pipelines.curation.selecting.columns import check_rules_of
from pipelines.curation.selecting.vectors import compare_embeddings
from pipelines.curation.settings import CurationConfig

PART_ROWS = 100_000
"""Scenes in one part of scenes/."""
PARTS = 10
"""Parts of scenes/ whose rows are held together; more than those are written by Ray's tasks, where it runs."""
_JUDGED = ("index", "part", "row", *IDS, "video", "span", "error", "reason", "rank", "probability", *HASH)
"""Columns of rows that are compared or written, or say where the others are."""


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
    """Videos whose scenes could not be known, by error code."""
    incomplete_videos: dict[str, int]
    """Videos of which some scenes were measured, and the others could not be known, by error code."""


@dataclass(frozen=True)
class Selected:
    """What one decision was made from."""

    expected: int
    """How many scenes the input has."""
    costs: dict[str, Any]
    """The `measurements` of its rows."""
    drift: dict[str, float]
    """Population stability index of the features that have left the distribution of the filter's labels."""
    selection: str
    """Names this selection in the catalog."""


def select(config: CurationConfig) -> Selected:
    """Write scenes/ and rejected/ anew. Raises IncompleteError where a scene of the input has no row.

    Raises ReplacedError, and leaves what is there, where another command has written them meanwhile.

    Parts of scores/ are judged, and those of scenes/ written, in Ray's tasks where they are many and Ray runs; only
    what is compared over the corpus meets here, on disk.
    """
    store = Store(config.output)
    check_rules_of(config)
    families = families_now(store)
    model = load_filter_of(config) if config.select.by == "classifier" else None
    look = partial(judge, frames=config.frames, select=config.select, model=model)
    with Replacement(store.root, SELECTION, SELECT_AGAIN) as new:
        ranges = Ranges(store, needed(config.select, model), look)
        found = Inventory(ranges.videos)
        with Judged(len(ranges)) as judged:
            for rows in ranges:
                found.add(rows)
                judged.add(_to_write(rows, config.select.reasons))
                # Before the next range is there.
                del rows
            expected, notes = found.expected(), [*ranges.notes]
            spread: list[np.ndarray] = []
            with _decided(store, judged, config, notes) as decided:
                chunks = ((store, new.writer, *chunk, model, families) for chunk in _chunks(decided, config))
                for parts, counts in in_tasks(write_decisions, chunks, len(decided) > 1):
                    new.add(*parts)
                    spread.append(counts)
        _tell_captions(store, new)
        new.commit({"selection": new.writer.generation})
    drift = model.drift(np.sum(spread, axis=0)) if model else {}
    return Selected(expected, {**found.measurements(), "notes": notes}, drift, new.writer.generation)


def _to_write(rows: Rows, reasons: Sequence[str]) -> pd.DataFrame:
    """Scenes, and films that failed, in the order of the plan."""
    both = pd.concat([rows.scenes, rows.films[rows.films.error != ""]])
    both = both.iloc[np.argsort(both.place.to_numpy())]
    # Where there is nothing of the one or the other, they have not the same categories.
    both = both.assign(part=both.part.astype("category"), reason=pd.Categorical(both.reason, list(reasons)))
    return both[[name for name in both if name in _JUDGED]]


def _decided(store: Store, judged: Judged, config: CurationConfig, notes: list[str]) -> Divided:
    """What `write_decisions` takes, by its place in the order of the plan; adds to the notes."""
    select = config.select
    groups = alike(judged, select.dedupe) if select.dedupe is not None else None
    similar, concepts, more = compare_embeddings(store, judged, select)
    notes += more
    if similar is not None:
        groups = united(np.full(len(judged), -1) if groups is None else groups, similar).astype(np.int32)
    reason = choose(judged, select, groups, concepts)
    rows = PARTS * PART_ROWS
    decided = Divided(max(1, -(-len(judged) // rows)))
    for some, places, numbers in judged.ranges():
        told = {"place": places, "code": reason[numbers]}
        for name, known in (("duplicate_group", groups), ("concept", concepts)):
            told[name] = np.full(len(some), -1, np.int32) if known is None else known[places]
        table = pa.Table.from_pandas(some[["part", "row", "probability", "scene"]].assign(**told), preserve_index=False)
        decided.add(table, places // rows)
    return decided


def _chunks(decided: Divided, config: CurationConfig) -> Iterator[tuple[int, pd.DataFrame]]:
    """The rows of each part, and its number."""
    number = 0
    for some in range(len(decided)):
        rows = decided.of(some).sort_by("place").to_pandas()
        reason = pd.Categorical.from_codes(
            rows.pop("code").to_numpy(), dtype=pd.CategoricalDtype(list(config.select.reasons))
        )
        rows = rows.assign(reason=reason)
        for start in range(0, max(len(rows), 1), PART_ROWS):
            yield number, rows.iloc[start : start + PART_ROWS]
            number += 1


def selection_now(store: Store) -> str:
    """Which selection scenes/ holds; "" where it is of a version that did not name it, or there is none."""
    table = store.catalog().tables.get("scenes")
    return table.about["selection"] if table else ""


def check_selection(store: Store, selection: str) -> None:
    """Raise ReplacedError where scenes/ holds another selection."""
    if selection_now(store) != selection:
        raise replaced(store.root, "scenes")


def load_filter_of(config: CurationConfig) -> Filter:
    """The filter that ranks scenes. Raises UserError where the output lacks a column that it reads."""
    made = Store(config.output).read_json("plan", "settings.json") or {}
    return load_filter(place(config.output, config.filter), made.get("measured_by"), Store(config.output))


def tell_captions(store: Store) -> None:
    """Bring scenes/ and rejected/ in line with captions/."""
    with Replacement(store.root, SELECTION, SELECT_AGAIN) as new:
        _keep(store, new)
        if _tell_captions(store, new):
            new.commit({"selection": selection_now(store)})


def fail_scenes(store: Store, rows: Sequence[Row], step: str = "export") -> None:
    """Mark kept scenes that failed at a step after the choice, in scenes/ and rejected/.

    rows: video_id, scene_id, error, message of each, and attempts where it was not one.
    """
    with Replacement(store.root, SELECTION, SELECT_AGAIN) as new:
        _keep(store, new)
        if _fail_scenes(store, new, rows, step):
            new.commit({"selection": selection_now(store)})


def _keep(store: Store, new: Replacement) -> None:
    """Begin with what is there."""
    for folder in SELECTION:
        table = new.before.tables.get(folder)
        new.add(*(table.parts if table else store.listed(folder)))


def _tell_captions(store: Store, new: Replacement) -> bool:
    """Tell in scenes/ and rejected/ what was recaptioned, and what of the kept scenes failed; whether they changed."""
    answers = captions(store, "message", "attempts")
    if answers.empty:
        return False
    keys = ["video_id", "scene_id"]
    sound = answers[answers.code == ""].set_index(keys).recaption
    changed = False
    for part in new.parts("scenes"):
        table = read_scenes(store, part)
        about = table.select([*keys, "error", "recaption"]).to_pandas()
        found = sound.reindex(pd.MultiIndex.from_frame(about[keys])).fillna("").to_numpy(object)
        told = np.where(about.error == "", found, "")
        if (told != about.recaption).any():
            new.swap(part, _changed(table, recaption=told))
            changed = True
    failed: list[Any] = answers[answers.code != ""].rename(columns={"code": "error"}).to_dict("records")
    return _fail_scenes(store, new, failed, "caption") or changed


def _fail_scenes(store: Store, new: Replacement, rows: Sequence[Row], step: str) -> bool:
    columns = ["video_id", "scene_id", "error", "message", "attempts"]
    failed = pd.DataFrame([{"attempts": 1, **row} for row in rows], columns=columns)
    keys = ["video_id", "scene_id"]
    more = []
    for part in new.parts("scenes") if rows else ():
        table = read_scenes(store, part)
        scenes = table.select([*keys, "clip_id", "kept", "error"]).to_pandas(types_mapper=strings)
        codes = failed.set_index(keys).error.reindex(pd.MultiIndex.from_frame(scenes[keys])).to_numpy()
        # A duplicate of a kept scene has its own error already.
        hit = scenes.kept.to_numpy() & ~pd.isna(codes)
        if hit.any():
            more.append(failed.merge(scenes.loc[hit, [*keys, "clip_id"]], on=keys))
            now = {"kept": scenes.kept.to_numpy() & ~hit, "error": np.where(hit, codes, scenes.error)}
            new.swap(part, _changed(table, **now))
    if more:
        number = len(new.parts("rejected"))
        new.add(new.writer.write("rejected", number, rejections(pd.concat(more).assign(step=step))))
    return bool(more)


def _changed(scenes: pa.Table, **columns: np.ndarray) -> pa.Table:
    """Rows of scenes/ with other values in some columns."""
    for name, values in columns.items():
        field = SCENES.field(name)
        scenes = scenes.set_column(scenes.schema.get_field_index(name), field, pa.array(values, field.type))
    return scenes


def tally(store: Store, expected: int | None = None) -> Tally:
    """Count what scenes/ and rejected/ say; raises IncompleteError where it is not what the input has."""
    rows = kept = 0
    clear = True
    reasons, errors = Counter[str](), Counter[str]()
    lost = lost_videos(store)
    incomplete: dict[str, list[str]] = {}
    for part in store.read_parts("scenes", ["video_id", "kept", "reason", "error"], again=SELECT_AGAIN):
        scenes = part.to_pandas()
        rows += len(scenes)
        kept += int(scenes.kept.sum())
        reasons.update(scenes.reason[scenes.reason != ""])
        errors.update(scenes.error[scenes.error != ""])
        incomplete |= _measured(scenes, lost)
        states = scenes.kept.astype(int) + (scenes.reason != "") + (scenes.error != "")
        clear = clear and bool((states == 1).all())
    by_code = (
        Counter(code for video, codes in lost.items() if (video in incomplete) is inside for code in codes)
        for inside in (False, True)
    )
    counted = Tally(rows, kept, *(dict(sorted(codes.items())) for codes in (reasons, errors, *by_code)))
    if not clear or counted.rows != (counted.rows if expected is None else expected):
        raise IncompleteError(f"rows do not add up: the input has {expected}, the output {counted}")
    return counted


def lost_videos(store: Store) -> dict[str, list[str]]:
    """Error codes by the video_id of videos whose scenes could not be known, or not all of them."""
    lost: dict[str, list[str]] = {}
    for part in store.read_parts("rejected", ["video_id", "scene_id", "code"], again=SELECT_AGAIN):
        bad = part.to_pandas()
        for video_id, code in bad.loc[bad.scene_id == "", ["video_id", "code"]].itertuples(index=False, name=None):
            lost.setdefault(video_id, []).append(code)
    return lost


def _measured(scenes: pd.DataFrame, lost: dict[str, list[str]]) -> dict[str, list[str]]:
    """Those of the lost videos of which a scene was measured."""
    sound = scenes.video_id[scenes.error == ""].unique() if lost else ()
    return {video: lost[video] for video in sound if video in lost}


def alarms(counted: Tally, drift: dict[str, float]) -> list[str]:
    """What a person should look at before they trust a decision."""
    told = []
    measured = counted.kept + sum(counted.dropped.values())
    if measured and not counted.kept:
        which = ", ".join(f"{reason} {n}" for reason, n in counted.dropped.items())
        told.append(f"nothing is kept: all {measured} measured scenes are dropped ({which})")
    if drift:
        which = ", ".join(f"{name} {index:g}" for name, index in drift.items())
        told.append(f"features have left the filter's labels, by population stability index ({which}): label more")
    return told

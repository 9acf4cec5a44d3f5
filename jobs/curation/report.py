"""report.html: what became of the input, drawn from the tables and the run record that a run leaves.

scenes/ is read twice, part by part: to count, and to draw. What is held of a scene is its place in an index of 9 bytes;
axes come from a seeded sample, bars count every scene. The page needs no other file, though it links to the clips, and
asks nobody for anything; the one script that may run in it is known to it by its hash.
"""

import base64
import hashlib
import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd
import yaml
from markupsafe import Markup

from actors.core import storage
from actors.core.store import Store
from actors.curation.export import clip_name
from actors.curation.scenes import FEATURES
from actors.curation.tables import BARS, LATER, PLACES, REJECTED, SCENES
from jobs.core.pages import number, render
from jobs.curation.concepts import alike_words, concept_findings
from jobs.curation.findings import caption_pairs, evaluation_findings, filter_findings
from jobs.curation.histogram import Histogram, Mark, axis_of, scaled
from jobs.curation.whatif import COLUMNS, WhatIf
from pipelines.curation.settings import RETRYABLE

SAMPLE = 20_000
"""Scenes from which the axes of the histograms are chosen."""
THUMBNAILS = 48
"""Thumbnails of kept scenes, and of dropped ones, at most."""
THUMBNAIL_PARTS = 256
"""Parts of thumbnails/ that are read at most."""
GROUPS, LARGEST, MEMBERS = 12, 4, 6
"""Groups of near-duplicates that are shown at most, how many of them are the largest, and scenes of each."""
REJECTED_ROWS = 200
"""Rows of rejected/ that are shown in full."""

Row = dict[str, Any]
Key = tuple[str, str]
"""A scene: its video_id and scene_id."""

KEPT, NEAR_DUPLICATE = "kept", "near_duplicate"
UNITS = {
    "max_rgb_diff": "squared, of 0–255",
    "mean_rgb_diff": "squared, of 0–255",
    "max_velocity": "pixels per step",
    "mean_velocity": "pixels per step",
    "mse": "of latents",
    "cos_sim": "of latents",
    "no_frames": "sampled",
    "probability": "of good, says the filter",
}
FLOOR = {"max_rgb_diff": 0.01, "mean_rgb_diff": 0.01, "max_velocity": 1e-3, "mean_velocity": 1e-3, "mse": 1e-6}
"""Where the axes of these begin at the lowest: below is no more than rounding, as in a scene of one black picture."""
LINEAR = {"cos_sim", "no_frames", "probability"}
"""Features drawn on a linear axis; the others have long tails."""


def write_report(store: Store, record: dict[str, Any]) -> str:
    """Write report.html from scenes/, rejected/, thumbnails/ and a run record; returns its URI."""
    settings = record["settings"]
    made = store.read_json("plan", "settings.json") or {}
    census = _count(store)
    pictures = _thumbnails(store, census)
    histograms = [_histogram(name, census, settings) for name in FEATURES]
    if settings["select"]["by"] == "classifier":
        histograms.append(Histogram("probability", 0, 1, 40, log=False, marks=[Mark("probability", 0, 0, -1)]))
    pairs = caption_pairs(store)
    groups = _chosen_groups(census)
    shown, others = _draw(store, histograms, pictures, set(pairs), groups)
    concepts = concept_findings(store, settings)
    examples = [row for concept in concepts for row in concept.examples]
    pictures |= _fetched(store, [row for row in (*others, *examples) if _key(row) not in pictures])
    script = (Path(__file__).parent / "whatif.js").read_text()
    failures = _failures(store)
    rules = _rules(settings)
    dropped = {reason: census.groups[reason] for reason in _ordered(census.groups, rules)}
    page = render(
        "curation/report.html.j2",
        record=record,
        # Of the output: the settings may leave it open.
        detector=(made.get("measured_by") or {}).get("shots.detector") or settings["shots"]["detector"],
        settings=yaml.safe_dump(settings, sort_keys=False, allow_unicode=True),
        started=datetime.fromisoformat(record["started"]).strftime("%Y-%m-%d %H:%M %Z").strip(),
        scenes=census.scenes,
        kept=census.groups[KEPT],
        dropped=dropped,
        failed=dict(census.failed.most_common()),
        funnel=_funnel(record["rows"]["in"], census, dropped, rules),
        failures=failures,
        retryable=RETRYABLE,
        histograms=histograms,
        units=UNITS,
        rules=rules,
        cards={group: [_card(row, pictures, settings, store) for row in shown[group]] for group in shown},
        whatif=Markup(census.whatif.page(settings)),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        groups=_groups(groups, others, census, pictures, settings, store),
        n_groups=len(census.duplicates),
        n_duplicates=census.duplicates.total(),
        filter=filter_findings(store, settings),
        evaluation=evaluation_findings(store),
        pairs=_pairs(pairs, others, pictures),
        alike=alike_words(settings["select"]),
        concepts=[(one, [pictures.get(_key(row), b"") for row in one.examples]) for one in concepts],
    )
    uri = store.uri("report.html")
    storage.write_bytes(uri, page.encode())
    return uri


NOTED = ["window", "trimmed_before_s", "trimmed_after_s", "cuts_inside", *BARS]
"""Columns of the census that rows of earlier versions lack."""

# ------------------------------------------------------------------------------------------------------- the first pass


@dataclass
class _Census:
    """How many scenes there are of each kind, and where each of them belongs."""

    groups: Counter[str] = field(default_factory=Counter)
    """Measured scenes by "kept" or the reason why they were dropped."""
    failed: Counter[str] = field(default_factory=Counter)
    """Scenes by error code."""
    duplicates: Counter[int] = field(default_factory=Counter)
    """Scenes by group of near-duplicates."""
    windows: int = 0
    """Scenes that are windows of a shot that is too long to be one."""
    trimmed: int = 0
    """Scenes beside a dissolve or fade, which is left out."""
    with_cuts: int = 0
    """Scenes of the metadata in which a cut was found."""
    barred: int = 0
    """Scenes with black bars."""
    whatif: WhatIf = field(default_factory=WhatIf)
    sample: np.ndarray = field(default_factory=lambda: np.empty((0, len(FEATURES))))
    """Features of at most SAMPLE measured scenes, float64 (n, 7)."""
    names: list[str] = field(default_factory=list)
    keys: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    """Hashes of the ids of the measured scenes, sorted."""
    places: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint8))
    """Of each key, the index in `names` of its scene's group."""

    @property
    def measured(self) -> int:
        return self.groups.total()

    @property
    def scenes(self) -> int:
        return self.measured + self.failed.total()


def _count(store: Store) -> _Census:
    census = _Census()
    keys, places, draws = [census.keys], [census.places], np.empty(0)
    rng = np.random.default_rng(0)
    for part in store.read_parts("scenes", [*COLUMNS, "kept", "reason", *NOTED], [*NOTED, "concept"]):
        rows = part.to_pandas()
        census.windows += int((rows.window >= 0).sum()) if "window" in rows else 0
        census.barred += int((rows[list(BARS)] > 0).any(axis=1).sum()) if set(BARS) <= set(rows) else 0
        if "trimmed_before_s" in rows:
            census.trimmed += int(((rows.trimmed_before_s > 0) | (rows.trimmed_after_s > 0)).sum())
            census.with_cuts += int((rows.cuts_inside.fillna("") != "").sum())
        census.whatif.add(rows[list(COLUMNS)])
        census.duplicates.update(rows.duplicate_group.dropna().astype(int))
        census.failed.update(rows.error[rows.error != ""])
        rows = rows[rows.error == ""]
        groups = rows.reason.where(~rows.kept, KEPT)
        census.groups.update(groups)
        census.names.extend(name for name in groups.unique() if name not in census.names)
        keys.append(_keys(rows))
        places.append(groups.map({name: i for i, name in enumerate(census.names)}).to_numpy(np.uint8))
        draws = np.concatenate([draws, rng.random(len(rows))])
        sample = np.concatenate([census.sample, rows[list(FEATURES)].to_numpy(np.float64)])
        drawn = np.argsort(draws)[:SAMPLE]
        draws, census.sample = draws[drawn], sample[drawn]
    census.keys, census.places = np.concatenate(keys), np.concatenate(places)
    order = np.argsort(census.keys)
    census.keys, census.places = census.keys[order], census.places[order]
    return census


def _keys(rows: pd.DataFrame) -> np.ndarray:
    return np.array([hash(key) for key in zip(rows.video_id.tolist(), rows.scene_id.tolist(), strict=True)], np.int64)


def _thumbnails(store: Store, census: _Census) -> dict[Key, bytes]:
    """JPEGs of a seeded sample of scenes, by (video_id, scene_id), from as few parts as give a choice."""
    wanted = {KEPT: min(THUMBNAILS, census.groups[KEPT])}
    reasons = sorted((n, reason) for reason, n in census.groups.items() if reason != KEPT)
    left = THUMBNAILS
    for i, (n, reason) in enumerate(reasons):
        wanted[reason] = min(n, left // (len(reasons) - i))
        left -= wanted[reason]
    found: dict[str, dict[Key, bytes]] = {group: {} for group in wanted}
    names = store.parts("thumbnails")
    random.Random(0).shuffle(names)
    for name in names[:THUMBNAIL_PARTS]:
        # More than are needed, so that they do not all come from the same few films.
        if all(len(found[group]) >= min(census.groups[group], 4 * n) for group, n in wanted.items()):
            break
        part = store.read_part("thumbnails", name)
        if part is None:
            continue
        rows = part.to_pandas()
        keys = _keys(rows)
        at = np.searchsorted(census.keys, keys).clip(max=len(census.keys) - 1)
        for i in np.flatnonzero(census.keys[at] == keys):
            row, group = rows.iloc[i], census.names[census.places[at[i]]]
            if len(found[group]) < 4 * wanted[group]:
                found[group][row.video_id, row.scene_id] = row.thumbnail
    chosen = {}
    for group, n in wanted.items():
        for key in random.Random(0).sample(sorted(found[group]), min(n, len(found[group]))):
            chosen[key] = found[group][key]
    return chosen


# ------------------------------------------------------------------------------------------------------ the second pass


def _histogram(feature: str, census: _Census, settings: dict[str, Any]) -> Histogram:
    """An empty histogram whose axis suits the sample and, where they are near, the thresholds."""
    frames, select = settings["frames"], settings["select"]
    # A number of frames that is still kept lies inside.
    marks = {
        "max_rgb_diff": [Mark("select.max_rgb_diff", select["max_rgb_diff"], select["max_rgb_diff"], 1)],
        "mean_velocity": [Mark("select.min_velocity", select["min_velocity"], select["min_velocity"], -1)],
        "no_frames": [
            Mark("frames.min", frames["min"], frames["min"] - 0.5, -1),
            Mark("frames.max", frames["max"], frames["max"] + 0.5, 1),
        ],
    }.get(feature, [])
    log = feature not in LINEAR
    values = scaled(np.maximum(census.sample[:, FEATURES.index(feature)], FLOOR.get(feature, -np.inf)), log)
    edges = scaled(np.array([mark.edge for mark in marks], np.float64), log)
    bins = int(np.clip(2 * math.sqrt(census.measured), 10, 48))
    axis = axis_of(values[np.isfinite(values)], edges[np.isfinite(edges)], bins, whole=feature == "no_frames")
    return Histogram(feature, *axis, log, marks)


def _draw(
    store: Store,
    histograms: list[Histogram],
    pictures: dict[Key, bytes],
    captioned: set[Key],
    groups: Sequence[int],
) -> tuple[dict[str, list[Row]], list[Row]]:
    """Fill the histograms; returns the rows of the scenes that have pictures, by kept or reason, and of others to show:
    those in `captioned`, and some of each of the given groups of near-duplicates.
    """
    shown: dict[str, list[Row]] = {}
    others: list[Row] = []
    held: Counter[Any] = Counter()
    wanted = [scene_id for _, scene_id in {*pictures, *captioned}]
    for part in store.read_parts("scenes", SCENES.names, LATER):
        sound = part.filter((part["error"].to_pandas() == "").to_numpy())
        kept = sound["kept"].to_numpy()
        for histogram in histograms:
            histogram.add(sound[histogram.feature].to_numpy(), kept)
        grouped = sound["duplicate_group"].to_pandas().isin(groups)
        some = grouped | sound["scene_id"].to_pandas().isin(wanted)
        for row, member in zip(sound.filter(some.to_numpy()).to_pylist(), grouped[some], strict=True):
            if _key(row) in pictures:
                shown.setdefault(KEPT if row["kept"] else row["reason"], []).append(row)
            place = row["duplicate_group"], row["reason"] == NEAR_DUPLICATE
            held[place] += member
            if (member and held[place] <= MEMBERS) or _key(row) in captioned:
                others.append(row)
    return shown, others


def _fetched(store: Store, rows: list[Row]) -> dict[Key, bytes]:
    """The thumbnails of these scenes, as far as they are there."""
    wanted = {_key(row) for row in rows}
    parts: set[str] = set()
    for places in store.read_parts("places", PLACES.names) if wanted else ():
        near = places.filter(places["scene_id"].to_pandas().isin([scene_id for _, scene_id in wanted]).to_numpy())
        parts |= {place["part"] for place in near.to_pylist() if _key(place) in wanted}
    found = {}
    for name in sorted(parts & set(store.parts("thumbnails"))):
        part = store.read_part("thumbnails", name)
        found |= {_key(row): row["thumbnail"] for row in (part.to_pylist() if part else []) if _key(row) in wanted}
    return found


def _key(row: Row) -> Key:
    return row["video_id"], row["scene_id"]


# -------------------------------------------------------------------------------------------------------- what is shown


def _rules(settings: dict[str, Any]) -> dict[str, str]:
    """What each reason means under these settings, in the order in which the reasons are looked for."""
    frames, select = settings["frames"], settings["select"]
    best = f"the best {select['count']:,}" if select["count"] is not None else "the best"
    if select["fraction"] is not None:
        best = f"the best {select['fraction']:.4g} of those that pass"
    cap = (select.get("balance") or {"cap": 1})["cap"]
    return {
        "frozen": f"longest_hold_s > {select['max_hold_s']:g}",
        "too_short": f"no_frames < {frames['min']}",
        "too_long": f"no_frames > {frames['max']}, or as many intervals of frames.interval_ms",
        "unmeasured": "a feature is missing: `score` measures it",
        "static": f"mean_velocity < {select['min_velocity']:g}",
        "cut_inside": f"max_rgb_diff > {select['max_rgb_diff']:g}",
        "near_duplicate": f"another ranks higher that is like it: {alike_words(select)}",
        "same_span": "another of its span ranks higher",
        "concept_full": f"as many of its concept rank higher as select.balance.cap={cap:g} allows",
        "not_selected": f"not among {best}",
    }


def _ordered(groups: Counter[str], rules: dict[str, str]) -> list[str]:
    others = sorted(set(groups) - set(rules) - {KEPT})
    return [reason for reason in [*rules, *others] if groups[reason]]


def _funnel(rows_in: int, census: _Census, dropped: dict[str, int], rules: dict[str, str]) -> list[dict[str, Any]]:
    """Steps from the rows of the input down to those that are kept; each bar begins where what is left ends."""
    notes = (
        (census.windows, "windows of long shots"),
        (census.trimmed, "beside a dissolve or fade, which is left out"),
        (census.with_cuts, "with a cut inside"),
        (census.barred, "with black bars"),
    )
    note = ", ".join(f"{count} of them {what}" for count, what in notes if count)
    steps = [("in", "rows in", note, rows_in)]
    steps += [("failed", code, "", n) for code, n in census.failed.most_common()]
    steps += [("dropped", reason, rules.get(reason, ""), n) for reason, n in dropped.items()]
    steps += [(KEPT, "kept", "", census.groups[KEPT])]
    left = rows_in
    funnel = []
    for kind, name, note, n in steps:
        left -= n if kind in ("failed", "dropped") else 0
        start = left if kind in ("failed", "dropped") else 0
        places = [100 * value / max(rows_in, 1) for value in (start, n)]
        # What is not nothing can be seen.
        width = max(places[1], 0.25) if n else 0.0
        about = {"kind": kind, "name": name, "note": note, "rows": n}
        funnel.append({**about, "x": round(min(places[0], 100 - width), 3), "width": round(width, 3)})
    return funnel


def _failures(store: Store) -> dict[str, Any]:
    """Rows of rejected/ by step and code, each with its first example, and the first rows in full."""
    kinds: dict[tuple[str, str], dict[str, Any]] = {}
    first: list[dict[str, Any]] = []
    for part in store.read_parts("rejected", REJECTED.names):
        rows = part.to_pandas()
        first += rows.head(REJECTED_ROWS - len(first)).to_dict("records")
        for (step, code), group in rows.groupby(["step", "code"], sort=False):
            kind = kinds.setdefault((step, code), {"step": step, "code": code, "rows": 0, **_example(group)})
            kind["rows"] += len(group)
    ordered = sorted(kinds.values(), key=lambda kind: (-kind["rows"], kind["step"], kind["code"]))
    return {"kinds": ordered, "rows": sum(k["rows"] for k in ordered), "first": first}


def _example(rows: pd.DataFrame) -> dict[str, str]:
    row = rows.iloc[0]
    return {"example": row.scene_id or row.video_id, "message": row.message}


def _card(row: Row, pictures: dict[Key, bytes], settings: dict[str, Any], store: Store) -> dict[str, Any]:
    """What is shown of a scene: its picture, its clip where there is one, and what decided it."""
    frames, select = settings["frames"], settings["select"]
    if select["by"] == "classifier":
        rank = f"probability {number(row['probability'])}"
    else:
        rank = f"steadiness {number(row['mean_velocity'] / row['max_velocity'] if row['max_velocity'] else 0)}"
    decided = {
        "frozen": f"a picture is held for {number(row['longest_hold_s'] or 0)} s > {select['max_hold_s']:g} s",
        "too_short": f"{row['no_frames']} frames < {frames['min']}",
        "too_long": f"{row['no_frames']} frames > {frames['max']}, or as long as that",
        "unmeasured": "not measured: " + ", ".join(name for name in FEATURES if row[name] is None),
        "static": f"velocity {number(row['mean_velocity'])} < {select['min_velocity']:g}",
        "cut_inside": f"diff {number(row['max_rgb_diff'])} > {select['max_rgb_diff']:g}",
    }.get(row["reason"], rank)
    numbers = [("v", row["mean_velocity"]), ("d", row["max_rgb_diff"]), ("f", row["no_frames"])]
    measured = " · ".join(f"{letter} {number(value)}" for letter, value in numbers if value is not None)
    name = clip_name(*_key(row)) if row["kept"] else ""
    clip = f"clips/{quote(name)}" if name and storage.exists(store.uri("clips", name)) else ""
    return {**row, "jpeg": pictures.get(_key(row), b""), "clip": clip, "decided": decided, "measured": measured}


def _chosen_groups(census: _Census) -> list[int]:
    """The largest groups of near-duplicates, then some of the others, drawn with a fixed seed."""
    ordered = [group for group, _ in sorted(census.duplicates.items(), key=lambda item: (-item[1], item[0]))]
    largest, others = ordered[:LARGEST], ordered[LARGEST:]
    return largest + random.Random(0).sample(others, min(GROUPS - len(largest), len(others)))


def _groups(
    chosen: Sequence[int],
    rows: list[Row],
    census: _Census,
    pictures: dict[Key, bytes],
    settings: dict[str, Any],
    store: Store,
) -> list[dict[str, Any]]:
    """What is shown of groups: how many scenes each has, and the first of them, that which stayed before the others."""
    members = {group: [row for row in rows if row["duplicate_group"] == group] for group in chosen}
    groups = []
    for group, scenes in members.items():
        first = sorted(scenes, key=lambda row: (row["reason"] == NEAR_DUPLICATE, not row["kept"], _key(row)))[:MEMBERS]
        cards = [_card(row, pictures, settings, store) | {"reason": row["reason"] or KEPT} for row in first]
        groups.append({"scenes": census.duplicates[group], "cards": cards})
    return groups


def _pairs(pairs: dict[Key, tuple[str, str]], rows: list[Row], pictures: dict[Key, bytes]) -> list[dict[str, Any]]:
    """Captions beside recaptions, with pictures where there are some."""
    return [
        {**row, "caption": pairs[_key(row)][0], "recaption": pairs[_key(row)][1], "jpeg": pictures.get(_key(row), b"")}
        for row in {_key(row): row for row in rows}.values()
        if _key(row) in pairs
    ]

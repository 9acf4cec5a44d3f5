"""report.html: what became of the input, drawn from the tables and the run record that a run leaves.

scenes/ is read twice, part by part: to count, and to draw. What is held of a scene is its place in an index of 9 bytes;
axes come from a seeded sample, bars count every scene. The page needs no other file, though it links to the clips, and
asks nobody for anything; the one script that may run in it is known to it by its hash.
"""

import base64
import hashlib
import random
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from markupsafe import Markup

from actors.core import storage
from actors.core.errors import UserError
from actors.core.store import Store
from actors.curation.cutting.scenes import FEATURES
from actors.curation.selecting.column_rules import COLUMNS, ColumnRule
from actors.curation.selecting.filter import load_filter, place
from actors.curation.tables import PICTURES, PLACES, REJECTED, more_columns, whole_scenes
from jobs.core.pages import render
from jobs.curation.cards import (
    MEMBERS,
    NEAR_DUPLICATE,
    Key,
    Row,
    Shown,
    card,
    chosen_groups,
    groups_of,
    key_of,
    pairs_of,
)
from jobs.curation.census import KEPT, Census, count, keys_of
from jobs.curation.charts import UNITS, charts, rules_of
from jobs.curation.concepts import alike_words, concept_findings
from jobs.curation.findings import caption_pairs, evaluation_findings, filter_findings
from jobs.curation.histogram import Histogram
from jobs.curation.whatif import ROOM, WhatIf
from pipelines.curation.selecting.columns import numeric
from pipelines.curation.settings import RETRYABLE

THUMBNAILS = 48
"""Thumbnails of kept scenes, and of dropped ones, at most."""
PICTURE_BYTES = 1_500_000
"""Bytes of pictures at most, so that the page stays below 5 MB: three times what they mostly have."""
THUMBNAIL_PARTS = 256
"""Parts of thumbnails/ that are read at most."""
REJECTED_ROWS = 200
"""Rows of rejected/ that are shown in full."""


def write_report(store: Store, record: dict[str, Any]) -> str:
    """Write report.html from scenes/, rejected/, thumbnails/ and a run record; returns its URI."""
    settings = record["settings"]
    column_rules = rules_of(settings)
    columns = numeric(more_columns(store), column_rules)
    reads = _reads(store, settings)
    whatif = WhatIf(column_rules, columns, reads)
    census = count(store, whatif, columns)
    pictures = _thumbnails(store, census)
    drawn = charts(census.sample, census.varies, census.measured, settings, column_rules)
    histograms = drawn.histograms
    pairs = caption_pairs(store)
    groups = chosen_groups(census)
    shown, others = _draw(store, histograms, pictures, set(pairs), groups)
    concepts = concept_findings(store, settings)
    examples = [row for concept in concepts for row in concept.examples]
    pictures |= _fetched(store, [row for row in (*others, *examples) if key_of(row) not in pictures])
    there = len(pictures)
    pictures, used = _within(pictures, PICTURE_BYTES)
    about = Shown(store, settings, column_rules, reads, pictures)
    failures = _failures(store)
    rules = _rules(settings, column_rules, reads)
    dropped = {reason: census.groups[reason] for reason in _ordered(census.groups, rules)}
    page = render(
        "curation/report.html.j2",
        **_of_run(store, record),
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
        bounds={one.feature: whatif.bounds(one.feature) for one in histograms},
        left_out=drawn.left_out,
        cards={group: [card(row, about) for row in shown[group]] for group in shown},
        without=there - len(pictures),
        whatif=Markup(whatif.page(settings, [one.feature for one in histograms], ROOM - 4 * used // 3)),
        groups=groups_of(groups, others, census, about),
        n_groups=np.count_nonzero(census.duplicates),
        n_duplicates=int(census.duplicates.sum()),
        filter=filter_findings(store, settings),
        evaluation=evaluation_findings(store),
        pairs=pairs_of(pairs, others, pictures),
        alike=alike_words(settings["select"]),
        concepts=[(one, [pictures.get(key_of(row), b"") for row in one.examples]) for one in concepts],
    )
    uri = store.uri("report.html")
    storage.write_bytes(uri, page.encode())
    return uri


def _of_run(store: Store, record: dict[str, Any]) -> dict[str, Any]:
    """What the page says of the run as a whole, and its script."""
    settings = record["settings"]
    made = store.read_json("plan", "settings.json") or {}
    script = (Path(__file__).parent / "whatif.js").read_text()
    return {
        "record": record,
        # Of the output: the settings may leave it open.
        "detector": (made.get("measured_by") or {}).get("shots.detector") or settings["shots"]["detector"],
        "settings": yaml.safe_dump(settings, sort_keys=False, allow_unicode=True),
        "started": datetime.fromisoformat(record["started"]).strftime("%Y-%m-%d %H:%M %Z").strip(),
        "script": Markup(script),
        "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    }


# --------------------------------------------------------------------------------------------------------- the pictures


def _thumbnails(store: Store, census: Census) -> dict[Key, bytes]:
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
        keys = keys_of(rows)
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


def _within(pictures: dict[Key, bytes], most: int) -> tuple[dict[Key, bytes], int]:
    """Pictures of at most so many bytes together, the first ones, and their bytes."""
    used, there = 0, {}
    for key, jpeg in pictures.items():
        if used + len(jpeg) <= most:
            there[key], used = jpeg, used + len(jpeg)
    return there, used


# ------------------------------------------------------------------------------------------------------ the second pass


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
    for part in (whole_scenes(part, store.uri("scenes")) for part in store.read_parts("scenes")):
        sound = part.filter((part["error"].to_pandas() == "").to_numpy())
        kept = sound["kept"].to_numpy()
        for histogram in histograms:
            histogram.add(sound[histogram.feature].to_numpy().astype(np.float64), kept)
        grouped = sound["duplicate_group"].to_pandas().isin(groups)
        some = grouped | sound["scene_id"].to_pandas().isin(wanted)
        for row, member in zip(sound.filter(some.to_numpy()).to_pylist(), grouped[some], strict=True):
            if key_of(row) in pictures:
                shown.setdefault(KEPT if row["kept"] else row["reason"], []).append(row)
            place = row["duplicate_group"], row["reason"] == NEAR_DUPLICATE
            held[place] += member
            if (member and held[place] <= MEMBERS) or key_of(row) in captioned:
                others.append(row)
    return shown, others


def _fetched(store: Store, rows: list[Row]) -> dict[Key, bytes]:
    """The thumbnails of these scenes, as far as they are there."""
    wanted = {key_of(row) for row in rows}
    parts: set[str] = set()
    for places in store.read_parts("places", PLACES.names, (PICTURES,)) if wanted else ():
        near = places.filter(places["scene_id"].to_pandas().isin([scene_id for _, scene_id in wanted]).to_numpy())
        parts |= {place[PICTURES] or place["part"] for place in near.to_pylist() if key_of(place) in wanted}
    found = {}
    for name in sorted(parts & set(store.parts("thumbnails"))):
        part = store.read_part("thumbnails", name)
        found |= {key_of(row): row["thumbnail"] for row in (part.to_pylist() if part else []) if key_of(row) in wanted}
    return found


# -------------------------------------------------------------------------------------------------------- what is shown


def _reads(store: Store, settings: dict[str, Any]) -> list[str]:
    """The columns beside the seven features that the filter in use reads, as far as scenes/ holds them."""
    if settings["select"]["by"] != "classifier":
        return []
    try:
        features = load_filter(place(store.root, settings["filter"])).features
    except UserError:
        # What is wrong with it is told in the section on the filter.
        return []
    there = {*COLUMNS, *more_columns(store)}
    return [name for name in features if name not in FEATURES and name in there]


def _rules(settings: dict[str, Any], column_rules: Sequence[ColumnRule], reads: Sequence[str]) -> dict[str, str]:
    """What each reason means under these settings, in the order in which the reasons are looked for."""
    frames, select = settings["frames"], settings["select"]
    others = dict.fromkeys([*(rule.column for rule in column_rules), *reads])
    best = f"the best {select['count']:,}" if select["count"] is not None else "the best"
    if select["fraction"] is not None:
        best = f"the best {select['fraction']:.4g} of those that pass"
    cap = (select.get("balance") or {"cap": 1})["cap"]
    return {
        "frozen": f"longest_hold_s > {select['max_hold_s']:g}",
        "too_short": f"no_frames < {frames['min']}",
        "too_long": f"no_frames > {frames['max']}, or as many intervals of frames.interval_ms",
        "unmeasured": "a feature is missing: `score` measures it" + (f", or {' or '.join(others)}" if others else ""),
        "static": f"mean_velocity < {select['min_velocity']:g}",
        "cut_inside": f"max_rgb_diff > {select['max_rgb_diff']:g}",
        **{rule.name: rule.meaning for rule in column_rules},
        "near_duplicate": f"another ranks higher that is like it: {alike_words(select)}",
        "same_span": "another of its span ranks higher",
        "concept_full": f"as many of its concept rank higher as select.balance.cap={cap:g} allows",
        "not_selected": f"not among {best}",
    }


def _ordered(groups: Counter[str], rules: dict[str, str]) -> list[str]:
    others = sorted(set(groups) - set(rules) - {KEPT})
    return [reason for reason in [*rules, *others] if groups[reason]]


def _funnel(rows_in: int, census: Census, dropped: dict[str, int], rules: dict[str, str]) -> list[dict[str, Any]]:
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

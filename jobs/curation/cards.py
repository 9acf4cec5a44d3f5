"""What the report shows of single scenes: cards with pictures, groups of near-duplicates, captions."""

import random
from collections.abc import Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np

from actors.core import storage
from actors.core.store import Store
from actors.curation.cutting.scenes import FEATURES
from actors.curation.exporting.export import clip_name
from actors.curation.selecting.column_rules import ColumnRule
from jobs.core.pages import number
from jobs.curation.census import KEPT, Census

GROUPS, LARGEST, MEMBERS = 12, 4, 6
"""Groups of near-duplicates that are shown at most, how many of them are the largest, and scenes of each."""
NEAR_DUPLICATE = "near_duplicate"
Row = dict[str, Any]
Key = tuple[str, str]
"""A scene: its video_id and scene_id."""


def key_of(row: Row) -> Key:
    return row["video_id"], row["scene_id"]


class Shown(NamedTuple):
    """What cards are made from."""

    store: Store
    settings: dict[str, Any]
    rules: Sequence[ColumnRule]
    reads: Sequence[str]
    """Columns beside the seven features that the filter reads."""
    pictures: dict[Key, bytes]


def card(row: Row, shown: Shown) -> dict[str, Any]:
    """What is shown of a scene: its picture, its clip where there is one, and what decided it."""
    frames, select = shown.settings["frames"], shown.settings["select"]
    needed = dict.fromkeys([*FEATURES, *(rule.column for rule in shown.rules), *shown.reads])
    if select["by"] == "classifier":
        rank = f"probability {number(row['probability'])}"
    else:
        rank = f"steadiness {number(row['mean_velocity'] / row['max_velocity'] if row['max_velocity'] else 0)}"
    decided = {
        "frozen": f"a picture is held for {number(row['longest_hold_s'] or 0)} s > {select['max_hold_s']:g} s",
        "too_short": f"{row['no_frames']} frames < {frames['min']}",
        "too_long": f"{row['no_frames']} frames > {frames['max']}, or as long as that",
        "unmeasured": "not measured: " + ", ".join(name for name in needed if row.get(name) is None),
        "static": f"velocity {number(row['mean_velocity'])} < {select['min_velocity']:g}",
        "cut_inside": f"diff {number(row['max_rgb_diff'])} > {select['max_rgb_diff']:g}",
        **{rule.name: f"{rule.column} {_said(row[rule.column])}: {rule.meaning}" for rule in shown.rules},
    }.get(row["reason"], rank)
    numbers = [("v", row["mean_velocity"]), ("d", row["max_rgb_diff"]), ("f", row["no_frames"])]
    measured = " · ".join(f"{letter} {number(value)}" for letter, value in numbers if value is not None)
    name = clip_name(*key_of(row)) if row["kept"] else ""
    clip = f"clips/{quote(name)}" if name and storage.exists(shown.store.uri("clips", name)) else ""
    return {**row, "jpeg": shown.pictures.get(key_of(row), b""), "clip": clip, "decided": decided, "measured": measured}


def chosen_groups(census: Census) -> list[int]:
    """The largest groups of near-duplicates, then some of the others, drawn with a fixed seed."""
    ordered = np.argsort(-census.duplicates, kind="stable")[: np.count_nonzero(census.duplicates)]
    largest, others = ordered[:LARGEST], ordered[LARGEST:]
    drawn = random.Random(0).sample(range(len(others)), min(GROUPS - len(largest), len(others)))
    return [*largest.tolist(), *others[drawn].tolist()]


def groups_of(chosen: Sequence[int], rows: list[Row], census: Census, shown: Shown) -> list[dict[str, Any]]:
    """What is shown of groups: how many scenes each has, and the first of them, that which stayed before the others."""
    members = {group: [row for row in rows if row["duplicate_group"] == group] for group in chosen}
    groups = []
    for group, scenes in members.items():
        first = sorted(scenes, key=lambda row: (row["reason"] == NEAR_DUPLICATE, not row["kept"], key_of(row)))[
            :MEMBERS
        ]
        cards = [card(row, shown) | {"reason": row["reason"] or KEPT} for row in first]
        groups.append({"scenes": int(census.duplicates[group]), "cards": cards})
    return groups


def pairs_of(pairs: dict[Key, tuple[str, str]], rows: list[Row], pictures: dict[Key, bytes]) -> list[dict[str, Any]]:
    """Captions beside recaptions, with pictures where there are some."""
    return [
        {
            **row,
            "caption": pairs[key_of(row)][0],
            "recaption": pairs[key_of(row)][1],
            "jpeg": pictures.get(key_of(row), b""),
        }
        for row in {key_of(row): row for row in rows}.values()
        if key_of(row) in pairs
    ]


def _said(value: Any) -> str:
    return value if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else number(value or 0)

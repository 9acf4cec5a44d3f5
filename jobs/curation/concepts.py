"""Concepts in the report: how many scenes of each there were and are, and some of their pictures."""

from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from actors.core.store import Store

SHOWN = 40
"""Concepts that are shown, those with most scenes."""
EXAMPLES = 4
"""Pictures of a concept."""


@dataclass
class Concept:
    """One concept, or all that are not shown."""

    name: str
    scenes: int = 0
    """Measured scenes."""
    before: int = 0
    """Those that pass the rules and are like no better one."""
    kept: int = 0
    examples: list[dict[str, Any]] = field(default_factory=list)
    """Keys of some of its scenes."""


def concept_findings(store: Store, settings: dict[str, Any]) -> list[Concept]:
    """The concepts of a selection, the largest first; none where it has none, as one of an earlier version."""
    if not (settings["select"].get("balance") or {}).get("concepts"):
        return []
    found: dict[int, Concept] = {}
    best = pd.DataFrame()
    for part in store.read_parts("scenes", ["video_id", "scene_id", "kept", "reason", "error", "concept"]):
        rows = part.to_pandas()
        rows = rows[(rows.error == "") & rows.concept.notna()].astype({"concept": int})
        for number, some in rows.groupby("concept"):
            concept = found.setdefault(int(str(number)), Concept(str(number)))
            concept.scenes += len(some)
            concept.before += int((some.kept | some.reason.isin(["concept_full", "not_selected"])).sum())
            concept.kept += int(some.kept.sum())
        drawn = pd.util.hash_pandas_object(rows.video_id + "\0" + rows.scene_id, index=False)
        rows = rows[rows.concept < SHOWN].assign(drawn=drawn)
        best = pd.concat([best, rows]).sort_values(["kept", "drawn"], ascending=[False, True], kind="stable")
        best = best[best.groupby("concept").cumcount() < EXAMPLES]
    for row in best.to_dict("records"):
        found[row["concept"]].examples.append({name: row[name] for name in ("video_id", "scene_id")})
    shown = [found[number] for number in sorted(found)]
    others = shown[SHOWN:]
    if others:
        rest = Concept(f"{len(others)} others")
        for one in others:
            rest.scenes, rest.before, rest.kept = (
                rest.scenes + one.scenes,
                rest.before + one.before,
                rest.kept + one.kept,
            )
        shown[SHOWN:] = [rest]
    return shown


def alike_words(select: dict[str, Any]) -> str:
    """When two scenes are near-duplicates, under these settings."""
    ways = []
    if select["dedupe"] is not None:
        ways.append(f"at most {select['dedupe']} of 192 bits of their hashes differ")
    if (cosine := select.get("semantic_dedupe")) is not None:
        ways.append(f"their embeddings have a cosine of at least {cosine:g}")
    return " or ".join(ways)

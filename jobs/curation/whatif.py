"""What `select` would keep at other thresholds: the rows that the report's page counts by itself.

The page gets of each measured scene what the rules ask for, the best first, and repeats the rules in their order
(whatif.js). It counts every scene of a corpus of up to about ROWS; of a larger one a sample of whole spans, the same
each time, and says so.
"""

import base64
import json
import shlex
from typing import Any

import numpy as np
import pandas as pd

from actors.curation.rules import JUDGED, spaces, steadiness
from actors.curation.scenes import FEATURES

ROWS = 200_000
"""Scenes that the page holds at most; 2 to 5 MB."""
COLUMNS = ("video_id", "clip_id", "scene_id", *JUDGED, *FEATURES, "probability", "duplicate_group", "concept", "error")
"""What is read of scenes/."""
SETTINGS = ("frames.min", "frames.max", "select.min_velocity", "select.max_rgb_diff")
"""The thresholds that can be moved."""


class WhatIf:
    """Scenes as the page needs them, gathered part by part."""

    def __init__(self) -> None:
        self._parts: list[pd.DataFrame] = []
        self._limit = np.uint64(2**64 - 1)
        self._held = 0
        self._of = 0

    def add(self, rows: pd.DataFrame) -> None:
        """Take rows of scenes/ with COLUMNS."""
        # What failed at export was sound when it was selected, and would be selected again.
        rows = rows[(rows.error == "") | (rows.no_frames > 0)]
        self._of += len(rows)
        place = pd.util.hash_pandas_object(rows.video_id + "\0" + rows.clip_id, index=False).to_numpy(np.uint64)
        rows = rows.assign(place=place)
        rows = rows[(rows.place < self._limit).to_numpy()]
        self._parts.append(rows)
        self._held += len(rows)
        if self._held > 2 * ROWS:
            self._shrink()

    def _shrink(self) -> None:
        rows = pd.concat(self._parts)
        if len(rows) > ROWS:
            self._limit = np.partition(rows.place.to_numpy(), ROWS)[ROWS]
            rows = rows[(rows.place < self._limit).to_numpy()]
        self._parts, self._held = [rows], len(rows)

    def page(self, settings: dict[str, Any]) -> str:
        """JSON for the page, safe inside a <script>, "" where nothing was measured; settings: those of the run."""
        if not self._of:
            return ""
        self._shrink()
        [rows] = self._parts
        select = settings["select"]
        by_filter = select["by"] == "classifier"
        rank = rows.probability if by_filter else steadiness(rows)
        rows = rows.assign(rank=rank.to_numpy(np.float32))
        rows = rows.sort_values(["rank", "scene_id", "video_id"], ascending=[False, True, True], kind="stable")
        measured = rows[list(FEATURES)].notna().all(axis=1)
        frozen = (rows.longest_hold_s > select["max_hold_s"]).to_numpy(np.uint8)
        columns = {
            "frames": rows.no_frames.clip(upper=2**16 - 1).to_numpy(np.uint16),
            "length": spaces(rows, settings["frames"]["interval_ms"]).clip(upper=2**16 - 1).to_numpy(np.uint16),
            # Its threshold does not move; empty where no scene is.
            "frozen": frozen if frozen.any() else frozen[:0],
            "velocity": rows.mean_velocity.where(measured).to_numpy(np.float32),
            "difference": rows.max_rgb_diff.where(measured).to_numpy(np.float32),
            "span": _shared(rows.place),
            "group": _shared(rows.duplicate_group),
            "concept": _shared(rows.concept),
            "probability": rows.probability.to_numpy(np.float32) if by_filter else np.zeros(0, np.float32),
        }
        names = ("by", "fraction", "dedupe", "semantic_dedupe", "max_hold_s")
        # Those of an earlier version lack some.
        balance = select.get("balance") or {"concepts": 0, "cap": 1}
        fixed = {f"select.{name}": select.get(name) for name in names} | {"filter": settings["filter"]}
        fixed |= {f"select.balance.{name}": value for name, value in balance.items() if balance["concepts"]}
        page = {
            "rows": len(rows),
            "of": self._of,
            "columns": {name: base64.b64encode(values.tobytes()).decode() for name, values in columns.items()},
            "settings": {name: _setting(settings, name) for name in (*SETTINGS, "select.count")},
            "fraction": select["fraction"],
            "cap": balance["cap"],
            "command": f"python -m jobs.curation select {shlex.quote(settings['output'])}",
            "fixed": " ".join(shlex.quote(f"{name}={_yaml(value)}") for name, value in fixed.items()),
        }
        return json.dumps(page).replace("<", "\\u003c")


def _setting(settings: dict[str, Any], dotted: str) -> Any:
    group, _, name = dotted.partition(".")
    return settings[group][name]


def _yaml(value: Any) -> str:
    return json.dumps(value) if value is None else str(value)


def _shared(values: pd.Series) -> np.ndarray:
    """uint32 (N,): from 1 a number for each value that rows share, 0 for others; empty where no two share one."""
    shared = values.notna() & values.duplicated(keep=False)
    numbers = (pd.factorize(values.where(shared))[0] + 1).astype(np.uint32)
    return numbers if numbers.any() else numbers[:0]

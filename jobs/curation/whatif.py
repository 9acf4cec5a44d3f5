"""What `select` would keep at other thresholds: the rows that the report's page counts by itself.

The page gets of each measured scene what the rules ask for, the best first, and repeats the rules in their order
(whatif.js). It counts every scene of a corpus of which that fits into the page, some 100,000; of a larger one a sample
of whole spans, the same each time, and says so. Columns without a rule, on which one can be tried, are there for a
smaller sample: of TRIALS values in all.
"""

import base64
import json
import re
import shlex
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from actors.curation.cutting.scenes import FEATURES
from actors.curation.selecting.column_rules import ColumnRule
from actors.curation.selecting.filter import numbers
from actors.curation.selecting.rules import JUDGED, spaces, steadiness
from actors.curation.selecting.select_settings import REASONS

ROWS = 200_000
"""Scenes that are gathered for the page at most."""
ROOM = 4_000_000
"""Bytes of the page for them, less those of its pictures."""
TRIALS = 100_000
"""Values of columns without a rule that the page holds at most; 0.5 MB."""
COLUMNS = ("video_id", "clip_id", "scene_id", *JUDGED, *FEATURES, "probability", "duplicate_group", "concept", "error")
"""What is read of scenes/ in any case."""
SETTINGS = ("frames.min", "frames.max", "select.min_velocity", "select.max_rgb_diff")
"""The thresholds that can be moved in any case."""


class _Sample:
    """Rows of whole spans, gathered part by part: at most about `rows` of them."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.limit = np.uint64(2**64 - 1)
        self._parts: list[pd.DataFrame] = []
        self._held = 0

    def add(self, rows: pd.DataFrame) -> None:
        """Take rows; `place` is a hash of their span."""
        rows = rows[(rows.place < self.limit).to_numpy()]
        self._parts.append(rows)
        self._held += len(rows)
        if self._held > 2 * self.rows:
            self.taken()

    def shrink(self, share: float) -> None:
        """Keep this share of what is there."""
        self.rows = int(share * len(self.taken()))

    def taken(self) -> pd.DataFrame:
        """The rows, in the order in which they came."""
        rows = pd.concat(self._parts)
        if len(rows) > self.rows:
            self.limit = np.partition(rows.place.to_numpy(), self.rows)[self.rows]
            rows = rows[(rows.place < self.limit).to_numpy()]
        self._parts, self._held = [rows], len(rows)
        return rows


class WhatIf:
    """Scenes as the page needs them, gathered part by part."""

    def __init__(self, rules: Sequence[ColumnRule] = (), others: Sequence[str] = (), reads: Sequence[str] = ()) -> None:
        """rules: those on columns; others: numeric columns that rules may be tried on; reads: what a filter reads."""
        self._rules, self._reads = rules, reads
        ruled = {rule.column for rule in rules}
        self.columns = [*dict.fromkeys([*ruled, *reads])]
        """Columns that are read beside COLUMNS and `others`."""
        taken = {*REASONS, *(rule.name for rule in rules)}
        self.trials = [n for n in others if n not in ruled | taken and re.fullmatch(r"[A-Za-z_]\w*", n)]
        """Columns that a rule can be tried on."""
        self._all = _Sample(ROWS)
        self._tried = _Sample(min(self._all.rows, TRIALS // max(1, len(self.trials))))
        self._of = 0

    def add(self, rows: pd.DataFrame) -> None:
        """Take rows of scenes/ with COLUMNS, `columns` and `trials`."""
        # What failed at export was sound when it was selected, and would be selected again.
        rows = rows[(rows.error == "") | (rows.no_frames > 0)]
        self._of += len(rows)
        place = pd.util.hash_pandas_object(rows.video_id + "\0" + rows.clip_id, index=False).to_numpy(np.uint64)
        self._all.add(rows[[*dict.fromkeys([*COLUMNS, *self.columns])]].assign(place=place))
        # Names of columns may be those of others here.
        values = {number: numbers(rows[name], np.float32) for number, name in enumerate(self.trials)}
        self._tried.add(pd.DataFrame({"place": place, **values}))

    def bounds(self, column: str) -> list[str]:
        """The thresholds of a column that can be set, and have no slider."""
        names = [rule.name for rule in self._rules if rule.column == column and "number" in rule.kinds]
        set_now = {f"{rule.name}.{bound}" for rule in self._rules for bound, *_ in rule.bounds}
        names = names or ([column] if column in self.trials else [])
        free = [f"{name}.{bound}" for name in names for bound in ("min", "max")]
        return [f"select.rules.{name}" for name in free if name not in set_now]

    def page(self, settings: dict[str, Any], drawn: Sequence[str] = (), room: int = ROOM) -> str:
        """JSON for the page, safe inside a <script>, "" where nothing was measured.

        settings: those of the run; drawn: the columns that have a histogram; room: bytes that scenes may take.
        """
        if not self._of:
            return ""
        columns, rules, rows = self._columns(settings, drawn)
        size = sum(4 * values.nbytes // 3 for values in columns.values())
        if size > room:
            self._all.shrink(room / size)
            self._tried.shrink(room / size)
            columns, rules, rows = self._columns(settings, drawn)
        select = settings["select"]
        kept = select.get("rules") or {}
        names = ("by", "fraction", "dedupe", "semantic_dedupe", "max_hold_s")
        # Those of an earlier version lack some.
        balance = select.get("balance") or {"concepts": 0, "cap": 1}
        fixed = {f"select.{name}": select.get(name) for name in names} | {"filter": settings["filter"]}
        fixed |= {f"select.balance.{name}": value for name, value in balance.items() if balance["concepts"]}
        bounds = {f"select.rules.{rule.name}.{bound}": value for rule in self._rules for bound, value, _ in rule.bounds}
        page = {
            "rows": rows,
            "of": self._of,
            "columns": {name: base64.b64encode(values.tobytes()).decode() for name, values in columns.items()},
            "settings": {name: _setting(settings, name) for name in (*SETTINGS, "select.count")} | bounds,
            "rules": rules,
            "fraction": select["fraction"],
            "cap": balance["cap"],
            "command": f"python -m jobs.curation select {shlex.quote(settings['output'])}",
            "ruled": shlex.quote(f"select.rules={json.dumps(kept)}") if kept else "",
            "fixed": " ".join(shlex.quote(f"{name}={_yaml(value)}") for name, value in fixed.items()),
        }
        return json.dumps(page).replace("<", "\\u003c")

    def _columns(
        self, settings: dict[str, Any], drawn: Sequence[str]
    ) -> tuple[dict[str, np.ndarray], list[dict[str, Any]], int]:
        """What the page holds of scenes, the rules that it can move, and how many scenes that are."""
        rows, tried = self._all.taken().reset_index(drop=True), self._tried.taken()
        limit = min(self._all.limit, self._tried.limit)
        tried = tried[(tried.place < limit).to_numpy()]
        by_filter = settings["select"]["by"] == "classifier"
        rank = rows.probability if by_filter else steadiness(rows)
        rows["rank"] = rank.to_numpy(np.float32)
        rows = rows.sort_values(["rank", "scene_id", "video_id"], ascending=[False, True, True], kind="stable")
        columns = {**_measured(rows, settings), **self._ruled(rows, by_filter)}
        rules = [self._rule(rule, number) for number, rule in enumerate(self._rules)]
        # The rows of the smaller sample are among those of the larger one, and came in the same order.
        inside = (rows.place < limit).to_numpy()
        at = np.cumsum((rows.place.sort_index() < limit).to_numpy())[rows.index[inside]] - 1
        for number, name in enumerate(self.trials):
            if name in drawn:
                columns[f"trial{number}"] = tried[number].to_numpy()[at]
                rules.append({"name": name, "key": f"trial{number}", "kind": "trial"})
        columns["tried"] = inside.astype(np.uint8) if not inside.all() else np.zeros(0, np.uint8)
        return columns, rules, len(rows)

    def _ruled(self, rows: pd.DataFrame, by_filter: bool) -> dict[str, np.ndarray]:
        """What the rules on columns ask for: numbers, or for text and bools 1 where it is dropped, 2 where missing."""
        columns = {}
        for number, rule in enumerate(self._rules):
            values = rows[rule.column]
            if "number" in rule.kinds:
                columns[f"rule{number}"] = numbers(values, np.float32)
            else:
                columns[f"rule{number}"] = np.where(values.isna(), 2, rule.broken(values)).astype(np.uint8)
        gaps = rows[list(self._reads)].isna().any(axis=1).to_numpy(np.uint8) if by_filter and self._reads else ()
        return {**columns, "gaps": np.array(gaps if np.any(gaps) else (), np.uint8)}

    def _rule(self, rule: ColumnRule, number: int) -> dict[str, Any]:
        return {"name": rule.name, "key": f"rule{number}", "kind": "number" if rule.bounds else "flag"}


def _measured(rows: pd.DataFrame, settings: dict[str, Any]) -> dict[str, np.ndarray]:
    """What the fixed rules ask for."""
    measured = rows[list(FEATURES)].notna().all(axis=1)
    frozen = (rows.longest_hold_s > settings["select"]["max_hold_s"]).to_numpy(np.uint8)
    by_filter = settings["select"]["by"] == "classifier"
    return {
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

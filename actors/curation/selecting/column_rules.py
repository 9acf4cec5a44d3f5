"""Rules on any column of a scene: which scenes they drop, and which columns there are for them.

    select.rules: {text_area: {max: 0.05}, sharp: {column: sharpness, min: 0.2}, camera: {not: [shake]}}

Bounds are included. A rule's name is the reason of the scenes that it drops, and its column where it names no other.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from typing_extensions import TypedDict  # pydantic takes that of `typing` from Python 3.12 on

from actors.core.errors import UserError
from actors.curation.measuring.family import FAMILIES, scorer_class
from actors.curation.tables import SCENES, SCORES

if TYPE_CHECKING:
    import pandas as pd

Value = str | bool
Rule = TypedDict(
    "Rule",
    {
        "column": str | None,
        "min": float | None,
        "max": float | None,
        "is": list[Value] | Value | None,
        "not": list[Value] | Value | None,
    },
    total=False,
)
"""A rule as it is set."""
NUMBER, BOOL, TEXT = "number", "bool", "text"
MOST = 100
"""Rules of a selection: the reason of a scene is stored in one byte."""
COLUMNS: dict[str, pa.DataType] = {
    field.name: field.type
    for field in SCORES
    if field.name in SCENES.names and field.name not in ("video_id", "clip_id", "scene_id", "caption", "error")
}
"""Columns of scores/ that say something of a scene."""


@dataclass(frozen=True)
class ColumnRule:
    """A rule by which scenes are dropped."""

    name: str
    """The reason of the scenes that it drops."""
    column: str
    min: float | None = None
    max: float | None = None
    only: tuple[Value, ...] | None = None
    """All other values are dropped."""
    without: tuple[Value, ...] = ()
    """These values are dropped."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of columns that it can be of."""
        return (NUMBER,) if self.min is not None or self.max is not None else (TEXT, BOOL)

    @property
    def bounds(self) -> list[tuple[str, float, int]]:
        """Name and value of each bound, and the side of what it drops: -1 below, 1 above."""
        found = (("min", self.min, -1), ("max", self.max, 1))
        return [(name, value, side) for name, value, side in found if value is not None]

    @property
    def meaning(self) -> str:
        """What it drops, in words."""
        told = [f"{self.column} {'<' if side < 0 else '>'} {value:g}" for _, value, side in self.bounds]
        told += [f"{self.column} is not {_listed(self.only)}"] if self.only is not None else []
        told += [f"{self.column} is {_listed(self.without)}"] if self.without else []
        return " or ".join(told)

    def broken(self, values: pd.Series) -> pd.Series:
        """Which values it drops; what is missing is not dropped by it."""
        dropped = values.isna() & False
        if self.min is not None:
            dropped |= values < self.min
        if self.max is not None:
            dropped |= values > self.max
        if self.only is not None:
            dropped |= ~values.isin(self.only) & values.notna()
        if self.without:
            dropped |= values.isin(self.without)
        return dropped


def _listed(values: tuple[Value, ...]) -> str:
    return " or ".join(str(value).lower() if isinstance(value, bool) else value for value in values) or "anything"


def column_rules(rules: Mapping[str, Any], taken: tuple[str, ...]) -> tuple[ColumnRule, ...]:
    """The rules that are set, in their order; those that are null, or whose bounds all are, are off.

    taken: reasons that rules cannot be named by. Raises UserError.
    """
    found = [_rule(name, rule, taken) for name, rule in rules.items() if rule is not None]
    if len(found) > MOST:
        raise UserError(f"select.rules has {len(found)} rules: set at most {MOST}")
    return tuple(rule for rule in found if rule is not None)


def _rule(name: str, rule: Mapping[str, Any], taken: tuple[str, ...]) -> ColumnRule | None:
    at = f"select.rules.{name}"
    if name in (*taken, "kept") or not re.fullmatch(r"[A-Za-z_]\w*", name):
        what = "is the name of another reason" if re.fullmatch(r"\w+", name) else "is no name of letters and digits"
        raise UserError(f"{at}: {name!r} {what}. Name the rule otherwise, as in {{small: {{column: {name}, max: 1}}}}.")
    told = [key for key in ("min", "max", "is", "not") if key in rule]
    low, high = rule.get("min"), rule.get("max")
    only, without = _values(rule.get("is")), _values(rule.get("not"))
    numbers, values = low is not None or high is not None, only is not None or without is not None
    if not told or (numbers and values):
        raise UserError(f"{at}: set either min or max, for numbers, or is or not, for text, true and false")
    if not all(value is None or math.isfinite(value) for value in (low, high)):
        raise UserError(f"{at}: min and max are numbers, or null for no bound")
    if low is not None and high is not None and low > high:
        raise UserError(f"{at}: min={low:g} is above max={high:g}")
    if not numbers and not values:
        return None
    return ColumnRule(name, rule.get("column") or name, low, high, only, without or ())


def _values(value: Any) -> tuple[Value, ...] | None:
    return value if value is None else tuple(value) if isinstance(value, list | tuple) else (value,)


# -------------------------------------------------------------------------------------------------------------- columns


def kind_of(kind: pa.DataType) -> str:
    """What a rule can say of a column of this type: NUMBER, BOOL, TEXT, or "" for nothing."""
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return NUMBER
    return BOOL if pa.types.is_boolean(kind) else TEXT if pa.types.is_string(kind) else ""


def scalars(columns: Mapping[str, pa.DataType]) -> dict[str, pa.DataType]:
    """Those of a family's columns that scenes/ carries: numbers, bools and text."""
    return {name: kind for name, kind in columns.items() if kind_of(kind) and name not in SCENES.names}


def check_rules(rules: tuple[ColumnRule, ...], there: Mapping[str, pa.DataType], root: str) -> None:
    """Raise UserError for a rule on a column that is not there, or that it cannot be on."""
    for rule in rules:
        at = f"select.rules.{rule.name}"
        if rule.column not in there:
            raise UserError(f"{at}: {missing([rule.column], there, root)}")
        kind = kind_of(there[rule.column])
        if kind not in rule.kinds:
            need = {NUMBER: "min or max", BOOL: "is: true or is: false", TEXT: "is or not, with a list of texts"}[kind]
            raise UserError(f"{at}: {rule.column} is {there[rule.column]}, so set {need}")
        given = (*(rule.only or ()), *rule.without)
        if kind in (BOOL, TEXT) and any(isinstance(value, bool) != (kind == BOOL) for value in given):
            quoted = "without quotes" if kind == BOOL else "in quotes where YAML takes it for true or false"
            raise UserError(f"{at}: {rule.column} is {there[rule.column]}: write its values {quoted}")


def missing(columns: list[str], there: Mapping[str, pa.DataType], root: str) -> str:
    """What is said of columns that are not there, and how they are measured."""
    names = ", ".join(columns)
    families = list(dict.fromkeys(family for name in columns if (family := family_with(name))))
    asked = f"scores=[{','.join(families)}]" if families else f"scores=[…] (of {', '.join(sorted(FAMILIES))})"
    which = f"there is no column {names}" if len(columns) == 1 else f"there are no columns {names}"
    return (
        f"{which}. There are {', '.join(there)}. Families of scores add columns: "
        f"python -m jobs.curation measure {root} {asked}"
    )


def family_with(column: str) -> str:
    """Which of our own families has a column; "" where none is known to."""
    for name in FAMILIES:
        try:
            columns = getattr(scorer_class(name), "columns", {})
        except UserError:
            # It needs a package that is not installed.
            continue
        if isinstance(columns, Mapping) and column in columns:
            return name
    return ""

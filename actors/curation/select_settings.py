"""Settings of the rules that drop a scene; imports no pandas."""

from dataclasses import dataclass, field
from typing import Literal

from actors.core.errors import UserError
from actors.curation.column_rules import ColumnRule, Rule, column_rules
from actors.curation.duplicates import FARTHEST

REASONS = (
    *("", "frozen", "too_short", "too_long", "unmeasured", "static", "cut_inside"),
    *("near_duplicate", "same_span", "not_selected"),
)
"""Why a scene is not kept, in the order in which it is looked for; the last ones are known of the whole corpus only."""
COMPARED = ("", "near_duplicate", "same_span", "not_selected")
"""Reasons of scenes that pass every rule of their own and are compared with others."""


@dataclass(frozen=True)
class SelectConfig:
    """Which scenes are kept. Changing it needs no new measurement."""

    by: Literal["rule", "classifier"] = "rule"
    """How scenes that pass the rules are ranked. rule: steadiest motion first; classifier: by the probability of "good"
    that the filter predicts (train one with `fit-filter`)."""
    count: int | None = None
    """Keep at most this many scenes, the best over all videos; null: no limit. Excludes select.fraction."""
    fraction: float | None = None
    """Keep this share of the scenes that pass the rules, 0 to 1; null: all. Excludes select.count."""
    min_velocity: float = 0.1
    """Drop scenes whose mean_velocity is below this, in pixels per step, as static. 0 keeps still scenes."""
    max_rgb_diff: float = 4000
    """Drop scenes whose max_rgb_diff is above this, on the squared 0-255 scale, since a cut is inside."""
    max_hold_s: float = 3
    """Drop scenes that show one picture for longer than this many seconds, as frozen. Raise it to keep slide shows."""
    dedupe: int | None = None
    """Of scenes whose hashes differ in at most this many of 192 bits, 0 to 17, keep the best; null: keep all. 8 finds
    copies in another size or codec; 16 also slightly cropped or darkened ones, and parts of a still shot."""
    rules: dict[str, Rule | None] = field(default_factory=dict)
    """Rules on columns of scores/ and of families of scores, after the others and in this order. {text_area: {max:
    0.05}} drops scenes whose text_area is above 0.05, for the reason text_area. min and max are for numbers, and are
    included; is and not, a value or a list, for text, true and false: {camera: {not: [shake]}}. A rule of another name
    says its column: {subtitles: {column: text_area, max: 0.05}}. A scene without a value is dropped as unmeasured.
    null turns a rule off."""

    def __post_init__(self) -> None:
        if self.count is not None and self.fraction is not None:
            raise UserError("select.count and select.fraction exclude each other: set one to null")
        if (self.count is not None and self.count < 0) or not 0 <= (self.fraction or 0) <= 1:
            raise UserError(f"select.count must be 0 or more, select.fraction from 0 to 1: {self}")
        if not self.max_hold_s > 0:
            raise UserError(f"select.max_hold_s={self.max_hold_s}: set seconds above 0")
        if self.dedupe is not None and not 0 <= self.dedupe <= FARTHEST:
            raise UserError(f"select.dedupe={self.dedupe}: set 0 to {FARTHEST} bits, or null")
        _ = self.column_rules

    @property
    def column_rules(self) -> tuple[ColumnRule, ...]:
        """The rules on columns that are on. Raises UserError."""
        return column_rules(self.rules, REASONS)

    @property
    def reasons(self) -> tuple[str, ...]:
        """REASONS with those of the rules on columns behind the other rules."""
        first, last = REASONS[: -len(COMPARED) + 1], REASONS[-len(COMPARED) + 1 :]
        return (*first, *(rule.name for rule in self.column_rules), *last)

"""Settings of the rules that drop a scene; imports no pandas."""

from dataclasses import dataclass, field
from typing import Literal

from actors.core.errors import UserError
from actors.curation.selecting.column_rules import ColumnRule, Rule, column_rules
from actors.curation.selecting.duplicates import FARTHEST

REASONS = (
    *("", "frozen", "too_short", "too_long", "unmeasured", "static", "cut_inside"),
    *("near_duplicate", "same_span", "concept_full", "not_selected"),
)
"""Why a scene is not kept, in the order in which it is looked for; the last ones are known of the whole corpus only."""
COMPARED = ("", "near_duplicate", "same_span", "concept_full", "not_selected")
"""Reasons of scenes that pass every rule of their own and are compared with others."""


@dataclass(frozen=True)
class BalanceConfig:
    """How many scenes of one concept are kept; a concept is a cluster of embeddings."""

    concepts: int = 0
    """How many concepts k-means divides the scenes into, 2 to 10,000; 0: scenes are not divided. Needs `embed`. Scenes
    of one concept look alike, or with CLIP mean alike: 100 are landscapes, faces, text and the like."""
    cap: float = 0.05
    """Keep at most so many scenes of a concept, the best. Below 1: this share of the scenes that are left after
    select.dedupe, at least one; from 1: this number."""

    def __post_init__(self) -> None:
        if self.concepts not in (0, *range(2, 10_001)) or not (0 < self.cap < 1 or self.cap % 1 == 0 < self.cap):
            raise UserError(
                f"select.balance: concepts must be 0 or 2 to 10,000, and cap a share below 1 or a whole number: {self}"
            )

    def limit(self, left: int) -> int:
        """Most scenes of one concept, where so many scenes are left."""
        return max(1, int(self.cap * left + 1e-9)) if self.cap < 1 else int(self.cap)


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
    semantic_dedupe: float | None = None
    """Of scenes whose embeddings have at least this cosine, above 0 to 1, keep the best; null: keep all. Needs `embed`.
    It finds mirrored, cropped and re-graded copies, too; lower values find other takes of the same. Groups are joined
    with those of select.dedupe."""
    balance: BalanceConfig = field(default_factory=BalanceConfig)
    """How many scenes of one concept are kept."""

    def __post_init__(self) -> None:
        if self.count is not None and self.fraction is not None:
            raise UserError("select.count and select.fraction exclude each other: set one to null")
        if (self.count is not None and self.count < 0) or not 0 <= (self.fraction or 0) <= 1:
            raise UserError(f"select.count must be 0 or more, select.fraction from 0 to 1: {self}")
        if not self.max_hold_s > 0:
            raise UserError(f"select.max_hold_s={self.max_hold_s}: set seconds above 0")
        if self.dedupe is not None and not 0 <= self.dedupe <= FARTHEST:
            raise UserError(f"select.dedupe={self.dedupe}: set 0 to {FARTHEST} bits, or null")
        if self.semantic_dedupe is not None and not 0 < self.semantic_dedupe <= 1:
            raise UserError(f"select.semantic_dedupe={self.semantic_dedupe}: set a cosine above 0 to 1, or null")
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

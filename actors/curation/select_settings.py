"""Settings of the rules that drop a scene; imports no pandas."""

from dataclasses import dataclass
from typing import Literal

from actors.core.errors import UserError
from actors.curation.duplicates import FARTHEST


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

    def __post_init__(self) -> None:
        if self.count is not None and self.fraction is not None:
            raise UserError("select.count and select.fraction exclude each other: set one to null")
        if (self.count is not None and self.count < 0) or not 0 <= (self.fraction or 0) <= 1:
            raise UserError(f"select.count must be 0 or more, select.fraction from 0 to 1: {self}")
        if not self.max_hold_s > 0:
            raise UserError(f"select.max_hold_s={self.max_hold_s}: set seconds above 0")
        if self.dedupe is not None and not 0 <= self.dedupe <= FARTHEST:
            raise UserError(f"select.dedupe={self.dedupe}: set 0 to {FARTHEST} bits, or null")

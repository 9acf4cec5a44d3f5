"""The first pass over scenes/ for the report: how many there are of each kind, and a sample of their values."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from actors.core.store import Store
from actors.curation.selecting.filter import numbers
from actors.curation.tables import BARS, LATER
from jobs.curation.whatif import COLUMNS, WhatIf

SAMPLE = 20_000
"""Scenes from which the axes of the histograms are chosen."""
KEPT = "kept"
NOTED = ("window", "trimmed_before_s", "trimmed_after_s", "cuts_inside", *BARS)
"""Columns of the census that rows of earlier versions lack."""


@dataclass
class Census:
    """How many scenes there are of each kind, and where each of them belongs."""

    whatif: WhatIf
    columns: Sequence[str]
    """The columns that may be drawn."""
    groups: Counter[str] = field(default_factory=Counter)
    """Measured scenes by "kept" or the reason why they were dropped."""
    failed: Counter[str] = field(default_factory=Counter)
    """Scenes by error code."""
    duplicates: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """Scenes of each group of near-duplicates."""
    windows: int = 0
    """Scenes that are windows of a shot that is too long to be one."""
    trimmed: int = 0
    """Scenes beside a dissolve or fade, which is left out."""
    with_cuts: int = 0
    """Scenes of the metadata in which a cut was found."""
    barred: int = 0
    """Scenes with black bars."""
    names: list[str] = field(default_factory=list)
    keys: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    """Hashes of the ids of the measured scenes, sorted."""
    places: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint8))
    """Of each key, the index in `names` of its scene's group."""

    def __post_init__(self) -> None:
        self._sample = np.empty((0, len(self.columns)))
        self._draws, self._rng = np.empty(0), np.random.default_rng(0)
        self._low, self._high = np.full(len(self.columns), np.inf), np.full(len(self.columns), -np.inf)

    @property
    def measured(self) -> int:
        return self.groups.total()

    @property
    def scenes(self) -> int:
        return self.measured + self.failed.total()

    @property
    def sample(self) -> dict[str, np.ndarray]:
        """Values of at most SAMPLE measured scenes by column, float64 (n,)."""
        return dict(zip(self.columns, self._sample.T, strict=True))

    @property
    def varies(self) -> dict[str, bool]:
        """Whether the scenes have more than one value of a column."""
        return dict(zip(self.columns, self._low < self._high, strict=True))

    def draw(self, rows: pd.DataFrame) -> None:
        """Take measured scenes into the sample."""
        values = np.stack([numbers(rows[name]) for name in self.columns], axis=1)
        with np.errstate(invalid="ignore"):
            finite = np.isfinite(values)
            self._low = np.minimum(self._low, np.where(finite, values, np.inf).min(axis=0, initial=np.inf))
            self._high = np.maximum(self._high, np.where(finite, values, -np.inf).max(axis=0, initial=-np.inf))
        self._draws = np.concatenate([self._draws, self._rng.random(len(rows))])
        drawn = np.argsort(self._draws)[:SAMPLE]
        self._draws, self._sample = self._draws[drawn], np.concatenate([self._sample, values])[drawn]


def count(store: Store, whatif: WhatIf, columns: Sequence[str]) -> Census:
    """Count the scenes of an output.

    columns: what may be drawn of them.
    """
    census = Census(whatif, columns)
    keys, places = [census.keys], [census.places]
    names = dict.fromkeys([*COLUMNS, "kept", "reason", *NOTED, *columns, *whatif.columns])
    for part in store.read_parts("scenes", [*names], LATER):
        rows = part.to_pandas()
        census.windows += int((rows.window >= 0).sum())
        census.barred += int((rows[list(BARS)] > 0).any(axis=1).sum())
        census.trimmed += int(((rows.trimmed_before_s > 0) | (rows.trimmed_after_s > 0)).sum())
        census.with_cuts += int((rows.cuts_inside.fillna("") != "").sum())
        whatif.add(rows)
        grouped = np.bincount(rows.duplicate_group.dropna().to_numpy(np.int64), minlength=len(census.duplicates))
        grouped[: len(census.duplicates)] += census.duplicates
        census.duplicates = grouped
        census.failed.update(rows.error[rows.error != ""])
        rows = rows[rows.error == ""]
        groups = rows.reason.where(~rows.kept, KEPT)
        census.groups.update(groups)
        census.names.extend(name for name in groups.unique() if name not in census.names)
        keys.append(keys_of(rows))
        places.append(groups.map({name: i for i, name in enumerate(census.names)}).to_numpy(np.uint8))
        census.draw(rows)
    census.keys, census.places = np.concatenate(keys), np.concatenate(places)
    order = np.argsort(census.keys)
    census.keys, census.places = census.keys[order], census.places[order]
    return census


def keys_of(rows: pd.DataFrame) -> np.ndarray:
    """A hash of the ids of each scene, int64 (N,)."""
    return np.array([hash(key) for key in zip(rows.video_id.tolist(), rows.scene_id.tolist(), strict=True)], np.int64)

"""Learn from labels which scenes are good: XGBoost on columns of scenes, judged by videos that it has not seen.

Folds are of whole videos, since the scenes of one resemble each other: a model of each outer fold never saw its videos,
and when to stop was decided on another, inner, fold. What those models say of their own folds is what is reported.
The filter itself is fitted on all labels, for as many rounds as the models of the folds needed (their median).
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import pandas as pd

from actors.core import storage
from actors.core.errors import UserError
from actors.core.store import Store
from actors.curation.cutting.scenes import FEATURES
from actors.curation.measuring.measured import Family, families_now
from actors.curation.selecting.column_rules import COLUMNS, missing, scalars

if TYPE_CHECKING:
    import xgboost

ATTRIBUTE = "filmray"
"""Where a filter's JSON holds what XGBoost does not know of it."""
PARAMETERS: dict[str, Any] = {
    "objective": "binary:logistic",
    "eval_metric": "logloss",
    "tree_method": "hist",
    "max_depth": 3,
    "eta": 0.1,
    # Sums in one order, so that the same labels give the same filter.
    "nthread": 1,
}
BINS = 10
"""Of the labels' distribution of a feature and of the calibration curve, at most."""
DRIFT = 0.25
"""A population stability index above this is a shift (Siddiqi 2006, Credit Risk Scorecards, chapter 10)."""
DRIFT_CHANCE = 0.001
"""How often chance alone may go beyond the bound for what few labels make of the index."""
ADDED = ("label", "fold", "order")
"""Columns of the table of labels that are no features."""
ROUNDS, PATIENCE = 1000, 10
"""Trees at most, and how many in a row may be of no use on the inner fold."""


@dataclass(frozen=True)
class Filter:
    """A model that gives the probability of "good", and what is known of how it was made."""

    raw: bytes
    """XGBoost's own JSON."""
    about: dict[str, Any]
    """measured_by: settings of the features; versions; report; spread: each feature's distribution over the labels;
    families, where it reads their columns: the fingerprint of each."""
    features: tuple[str, ...] = FEATURES
    """The columns that it reads, in XGBoost's order."""

    @cached_property
    def _booster(self) -> "xgboost.Booster":
        import xgboost

        return xgboost.Booster(model_file=bytearray(self.raw))

    def __getstate__(self) -> dict[str, Any]:
        return {"raw": self.raw, "about": self.about, "features": self.features}

    def probability(self, rows: pd.DataFrame) -> np.ndarray:
        """float32 (N,): probability of "good" for rows with `features`, of which any may be missing."""
        return self._booster.predict(feature_matrix(rows, self.features))

    def contributions(self, rows: pd.DataFrame) -> np.ndarray:
        """float32 (N, F + 1): what each feature adds to the log-odds of "good", and last what holds for every scene.

        Shapley values over the trees (Lundberg et al. 2018, Consistent Individualized Feature Attribution for Tree
        Ensembles), as XGBoost computes them; a row adds up to its log-odds.
        """
        return self._booster.predict(feature_matrix(rows, self.features), pred_contribs=True)

    def drift(self, counts: np.ndarray) -> dict[str, float]:
        """Population stability index of each feature that has left the distribution of the labels.

        counts: int (F, BINS), as `spread_counts` makes them. Index Σ (a - e) ln(a / e) over bins, a and e the shares of
        corpus and labels. Between two samples of one distribution it is about χ² · (1/n + 1/m) with bins - 1 degrees of
        freedom (Yurdakul and Naranjo 2020, Statistical properties of the population stability index), so that with few
        labels a higher value than DRIFT may be chance.
        """
        left = {}
        for row, name in zip(counts, self.features, strict=True):
            labels = np.array(self.about["spread"][name]["counts"], np.float64)
            found = row[: len(labels)].astype(np.float64)
            if len(labels) < 2 or not found.sum():
                continue
            # Half a scene in every bin, since an empty one would make the index infinite.
            shares = [(n + 0.5) / (n + 0.5).sum() for n in (found, labels)]
            index = float(np.sum((shares[0] - shares[1]) * np.log(shares[0] / shares[1])))
            free = len(labels) - 1
            chance = _chi_squared(free) * (1 / found.sum() + 1 / labels.sum())
            if index > max(DRIFT, chance):
                left[name] = round(index, 3)
        return left

    def spread_counts(self, rows: pd.DataFrame) -> np.ndarray:
        """int64 (F, BINS): scenes in each bin of the labels' distribution of each feature; missing ones are in none."""
        return np.stack([binned(numbers(rows[name]), self.about["spread"][name]["edges"]) for name in self.features])


def _chi_squared(free: int) -> float:
    """The quantile that χ² exceeds with DRIFT_CHANCE (Wilson and Hilferty 1931)."""
    part = 2 / (9 * free)
    return free * (1 - part + NormalDist().inv_cdf(1 - DRIFT_CHANCE) * math.sqrt(part)) ** 3


def numbers(values: pd.Series, kind: type[Any] = np.float64) -> np.ndarray:
    """Numbers or bools as floats, NaN where they are missing."""
    if values.dtype == object:
        # Bools of which some are missing.
        return values.map({True: 1.0, False: 0.0}).to_numpy(kind)
    return values.to_numpy(kind)


def binned(there: np.ndarray, edges: Sequence[float]) -> np.ndarray:
    return np.bincount(np.searchsorted(edges, there[np.isfinite(there)], side="right"), minlength=BINS)


def features_of(table: pd.DataFrame) -> list[str]:
    """The features in a table of labels."""
    return [str(name) for name in table if name not in ADDED]


def feature_matrix(rows: pd.DataFrame, features: Sequence[str], labels: pd.Series | None = None) -> "xgboost.DMatrix":
    import xgboost

    values = np.empty((len(rows), len(features)), np.float32)
    for number, name in enumerate(features):
        values[:, number] = numbers(rows[name], np.float32)
    return xgboost.DMatrix(values, labels, feature_names=list(features), nthread=PARAMETERS["nthread"])


def inner_fold(fold: int, count: int) -> int:
    """The fold by which the model of an outer fold knows when to stop."""
    return (fold + 1) % count


def train_models(table: pd.DataFrame, plan: Sequence[tuple[float, int]], count: int) -> list[bytes]:
    """XGBoost's JSON of the models of every share and outer fold of the plan, and last of the one fitted to all.

    table: features, label, fold and order of all labels; in workers of Ray Train of those that each of them has.
    """
    import xgboost

    features = features_of(table)

    def matrix(rows: pd.Series) -> xgboost.DMatrix:
        return feature_matrix(table[rows], features, table.label[rows])

    models, rounds = [], []
    for share, fold in plan:
        within, inner = table.order < share, inner_fold(fold, count)
        least = xgboost.train(
            PARAMETERS,
            matrix(within & ~table.fold.isin([fold, inner])),
            ROUNDS,
            evals=[(matrix(within & (table.fold == inner)), "inner")],
            early_stopping_rounds=PATIENCE,
            verbose_eval=False,
        )
        model = xgboost.train(PARAMETERS, matrix(within & (table.fold != fold)), least.best_iteration + 1)
        models.append(model)
        if share == 1:
            rounds.append(least.best_iteration + 1)
    models.append(xgboost.train(PARAMETERS, matrix(table.fold >= 0), int(np.median(rounds))))
    return [bytes(model.save_raw("json")) for model in models]


# ------------------------------------------------------------------------------------------------------------- the file


def place(output: str, filter: str | None) -> str:
    """Where the filter of an output lies."""
    return filter or Store(output).uri("filter.json")


def save_filter(fitted: Filter, uri: str) -> None:
    """Write a filter as XGBoost's own JSON."""
    storage.write_bytes(uri, fitted.raw)


def load_filter(uri: str, measured_by: dict[str, Any] | None = None, store: Store | None = None) -> Filter:
    """Read a filter.

    measured_by: the settings that the features to be judged were measured with; store: the output that holds them.

    Raises:
        UserError: there is none, it is no filter that `fit-filter` wrote, or its features are not there or were
            measured otherwise.
    """
    try:
        raw = storage.read_bytes(uri)
    except FileNotFoundError as error:
        raise UserError(f"{uri} does not exist. Label scenes with `annotate`, then run `fit-filter`.") from error
    model = _parsed(uri, raw)
    names = tuple(str(name) for name in model["learner"].get("feature_names") or ())
    about = json.loads(model["learner"]["attributes"][ATTRIBUTE])
    if sorted(names) == sorted(FEATURES) and list(names) != list(FEATURES):
        raise UserError(
            f"{uri} expects the features {[*names]}, but scenes have {[*FEATURES]}, in this order. Run `fit-filter`."
        )
    theirs = about["measured_by"]
    if measured_by is not None and feature_settings(measured_by) != theirs:
        _refuse(uri, theirs, feature_settings(measured_by))
    if store is not None:
        families = families_now(store)
        there = {**COLUMNS, **scalars({name: kind for one in families for name, kind in one.columns.items()})}
        if lacking := [name for name in names if name not in there]:
            raise UserError(f"{uri} reads columns that {store.root} lacks: {missing(lacking, there, store.root)}")
        ours, theirs = fingerprints(families, names), about.get("families", {})
        if ours != theirs:
            _refuse(uri, theirs, ours)
    return Filter(raw, about, names)


def _refuse(uri: str, theirs: dict[str, Any], ours: dict[str, Any]) -> NoReturn:
    changed = [name for name in {**theirs, **ours} if theirs.get(name) != ours.get(name)]
    told = ", ".join(f"{name}={theirs.get(name)} there, {ours.get(name)} here" for name in changed)
    raise UserError(f"{uri} was fitted to features measured with other settings ({told}). Run `fit-filter`.")


def fingerprints(families: Sequence[Family], features: Sequence[str]) -> dict[str, str]:
    """Of the families that features come from, by which settings they were measured, in a few digits."""
    return {one.name: one.fingerprint for one in families if not {*features}.isdisjoint(one.columns)}


def _parsed(uri: str, raw: bytes) -> dict[str, Any]:
    """What is not JSON with our attribute never reaches XGBoost, which would also read other forms."""
    try:
        model = json.loads(raw)
        json.loads(model["learner"]["attributes"][ATTRIBUTE])["measured_by"]
    except (ValueError, KeyError, TypeError) as error:
        what = "a pickle" if raw[:1] == b"\x80" else "not JSON" if raw[:1] != b"{" else "another model or damaged"
        raise UserError(f"{uri} is no filter that `fit-filter` wrote, but {what}. Run `fit-filter`.") from error
    return model


def feature_settings(measured_by: dict[str, Any]) -> dict[str, Any]:
    """Settings of how a scene is measured, not of where it begins and ends."""
    # Filters and outputs of earlier versions have no word of what is done to pictures, which was nothing.
    later = ("frames.crop_bars", "frames.deinterlace", "frames.color_managed")
    said = {name: value for name, value in measured_by.items() if value or name not in later}
    return {name: value for name, value in said.items() if not name.startswith(("shots.", "windows."))}

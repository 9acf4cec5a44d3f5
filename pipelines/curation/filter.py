"""Learn from labels which scenes are good: XGBoost on the seven features, judged by videos that it has not seen.

Folds are of whole videos, since the scenes of one resemble each other: a model of each outer fold never saw its videos,
and when to stop was decided on another, inner, fold. What those models say of their own folds is what is reported.
The filter itself is fitted on all labels, for as many rounds as the models of the folds needed (their median).
"""

import json
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from actors.core import storage
from actors.core.store import Store
from actors.media.film import FEATURES
from pipelines.curation.labels import majority, read_labels
from pipelines.curation.rows import rows_now

if TYPE_CHECKING:
    import xgboost

ATTRIBUTE = "filmray"
"""Where a filter's JSON holds what XGBoost does not know of it."""
LEAST_FOLDS = 3
"""One to judge, one to stop by, one to learn from."""
ROUNDS, PATIENCE = 1000, 10
"""Trees at most, and how many in a row may be of no use on the inner fold."""
PARAMETERS: dict[str, Any] = {
    "objective": "binary:logistic",
    "eval_metric": "logloss",
    "tree_method": "hist",
    "max_depth": 3,
    "eta": 0.1,
    # Sums in one order, so that the same labels give the same filter.
    "nthread": 1,
}
SHARES = (0.25, 0.5, 0.75, 1.0)
"""Shares of the videos from which the learning curve is drawn."""
WORKER_BYTES = 1 << 30
"""Labels of more than that, as numbers, are split over workers of Ray Train: XGBoost holds several copies of them."""
DRAWS = 1000
"""Of the bootstrap."""
BINS = 10
"""Of the labels' distribution of a feature and of the calibration curve, at most."""
DRIFT = 0.25
"""A population stability index above this is a shift (Siddiqi 2006, Credit Risk Scorecards, chapter 10)."""
DRIFT_CHANCE = 0.001
"""How often chance alone may go beyond the bound for what few labels make of the index."""


@dataclass(frozen=True)
class FitConfig:
    """What is learnt, from what."""

    output: str
    """The output of a run: its scores/ hold the features."""
    labels: str | None = None
    """A .json file of labels or a folder of them; null: OUTPUT/labels."""
    filter: str | None = None
    """Where the filter goes; null: OUTPUT/filter.json."""
    folds: int = 5
    """Outer folds; fewer where too few videos have good, or bad, scenes."""
    seed: int = 0
    """Of folds and bootstrap."""
    worker_bytes: int = WORKER_BYTES
    """Labels of more bytes are split over as many workers as it takes."""

    def __post_init__(self) -> None:
        if self.folds < LEAST_FOLDS:
            raise ValueError(f"folds={self.folds}: at least {LEAST_FOLDS}: to judge, to stop by and to learn from")


@dataclass(frozen=True)
class Filter:
    """A model that gives the probability of "good", and what is known of how it was made."""

    raw: bytes
    """XGBoost's own JSON."""
    about: dict[str, Any]
    """measured_by: settings of the features; versions; report; spread: each feature's distribution over the labels."""

    @cached_property
    def _booster(self) -> "xgboost.Booster":
        import xgboost

        return xgboost.Booster(model_file=bytearray(self.raw))

    def __getstate__(self) -> dict[str, Any]:
        return {"raw": self.raw, "about": self.about}

    def probability(self, rows: pd.DataFrame) -> np.ndarray:
        """float32 (N,): probability of "good" for rows with FEATURES, of which any may be NaN."""
        return self._booster.predict(_matrix(rows))

    def contributions(self, rows: pd.DataFrame) -> np.ndarray:
        """float32 (N, 8): what each of FEATURES adds to the log-odds of "good", and last what holds for every scene.

        Shapley values over the trees (Lundberg et al. 2018, Consistent Individualized Feature Attribution for Tree
        Ensembles), as XGBoost computes them; a row adds up to its log-odds.
        """
        return self._booster.predict(_matrix(rows), pred_contribs=True)

    def drift(self, counts: np.ndarray) -> dict[str, float]:
        """Population stability index of each feature that has left the distribution of the labels.

        counts: int (7, BINS), as `spread_counts` makes them. Index Σ (a - e) ln(a / e) over bins, a and e the shares of
        corpus and labels. Between two samples of one distribution it is about χ² · (1/n + 1/m) with bins - 1 degrees of
        freedom (Yurdakul and Naranjo 2020, Statistical properties of the population stability index), so that with few
        labels a higher value than DRIFT may be chance.
        """
        left = {}
        for row, name in zip(counts, FEATURES, strict=True):
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
        """int64 (7, BINS): scenes in each bin of the labels' distribution of each of FEATURES; NaN is in none."""
        return np.stack([_binned(rows[name], self.about["spread"][name]["edges"]) for name in FEATURES])


def _chi_squared(free: int) -> float:
    """The quantile that χ² exceeds with DRIFT_CHANCE (Wilson and Hilferty 1931)."""
    part = 2 / (9 * free)
    return free * (1 - part + NormalDist().inv_cdf(1 - DRIFT_CHANCE) * math.sqrt(part)) ** 3


def _binned(values: pd.Series, edges: Sequence[float]) -> np.ndarray:
    there = values.to_numpy(np.float64)
    return np.bincount(np.searchsorted(edges, there[np.isfinite(there)], side="right"), minlength=BINS)


def _matrix(rows: pd.DataFrame, labels: pd.Series | None = None) -> "xgboost.DMatrix":
    import xgboost

    values = rows[list(FEATURES)].to_numpy(np.float32)
    return xgboost.DMatrix(values, labels, feature_names=list(FEATURES), nthread=PARAMETERS["nthread"])


# ------------------------------------------------------------------------------------------------------------- the file


def place(output: str, filter: str | None) -> str:
    """Where the filter of an output lies."""
    return filter or Store(output).uri("filter.json")


def save_filter(fitted: Filter, uri: str) -> None:
    """Write a filter as XGBoost's own JSON."""
    storage.write_bytes(uri, fitted.raw)


def load_filter(uri: str, measured_by: dict[str, Any] | None = None) -> Filter:
    """Read a filter.

    measured_by: the settings that the features to be judged were measured with.

    Raises:
        ValueError: there is none, it is no filter that `fit-filter` wrote, or it knows other features.
    """
    try:
        raw = storage.read_bytes(uri)
    except FileNotFoundError as error:
        raise ValueError(f"there is no filter {uri}: label scenes, then `fit-filter` makes it") from error
    model = _parsed(uri, raw)
    names = model["learner"].get("feature_names")
    if names != list(FEATURES):
        raise ValueError(f"{uri} expects the features {names}, and scenes have {list(FEATURES)}, in this order")
    about = json.loads(model["learner"]["attributes"][ATTRIBUTE])
    theirs = about["measured_by"]
    if measured_by is not None and feature_settings(measured_by) != theirs:
        ours = feature_settings(measured_by)
        changed = [name for name in {**theirs, **ours} if theirs.get(name) != ours.get(name)]
        told = ", ".join(f"{name}={theirs.get(name)} there, {ours.get(name)} here" for name in changed)
        raise ValueError(f"{uri} was fitted to features measured with other settings ({told}): fit one to these")
    return Filter(raw, about)


def _parsed(uri: str, raw: bytes) -> dict[str, Any]:
    """What is not JSON with our attribute never reaches XGBoost, which would also read other forms."""
    try:
        model = json.loads(raw)
        json.loads(model["learner"]["attributes"][ATTRIBUTE])["measured_by"]
    except (ValueError, KeyError, TypeError) as error:
        what = "a pickle" if raw[:1] == b"\x80" else "not JSON" if raw[:1] != b"{" else "another model or damaged"
        raise ValueError(f"{uri} is no filter that `fit-filter` wrote, but {what}: fit one") from error
    return model


def feature_settings(measured_by: dict[str, Any]) -> dict[str, Any]:
    """Settings of how a scene is measured, not of where it begins and ends."""
    return {name: value for name, value in measured_by.items() if not name.startswith("shots.")}


# -------------------------------------------------------------------------------------------------------------- fitting


@dataclass(frozen=True)
class Labelled:
    """Scenes that people labelled, with what was measured of them."""

    scenes: pd.DataFrame
    """video_id, scene_id, FEATURES (some may be NaN) and label (0 bad, 1 good), in order of the ids."""
    measured_by: dict[str, Any]
    """The settings of the features."""
    people: list[str]
    """Who labelled."""
    lost: int = 0
    """Labels of scenes that are not in scores/, or failed."""

    def workers(self, config: FitConfig) -> int:
        """Over how many processes the fit is split."""
        return math.ceil(len(self.scenes) * 4 * (len(FEATURES) + 4) / config.worker_bytes)


def read_labelled(config: FitConfig) -> Labelled:
    """The labelled scenes of an output. Raises ValueError where there are none."""
    store = Store(config.output)
    settings = store.read_json("plan", "settings.json")
    if settings is None:
        raise ValueError(f"{config.output} has no plan: it is not the output of a run, or none has begun")
    path = config.labels or store.uri("labels")
    people = read_labels(path)
    labels = majority(people.values())
    if not labels:
        raise ValueError(
            f"{path} holds no labels: `annotate {config.output}` makes them, or labels= names another place"
        )
    scenes = rows_now(store, FEATURES)[0]
    keys = ["video_id", "scene_id"]
    known = pd.Series(list(labels.values()), pd.MultiIndex.from_tuples(list(labels), names=keys), name="label")
    sound = scenes.loc[scenes.error == "", [*keys, *FEATURES]]
    found = sound.join(known, on=keys, how="inner").sort_values(keys).reset_index(drop=True)
    if found.empty:
        raise ValueError(f"none of the {len(labels)} labels of {path} is of a scene that {config.output} has measured")
    return Labelled(found, feature_settings(settings["measured_by"]), sorted(people), len(labels) - len(found))


def fit(labelled: Labelled, config: FitConfig) -> Filter:
    """Fit a filter to labelled scenes; its report is in `about`. Needs Ray where the labels want several workers.

    Raises:
        ValueError: labels are of one kind only, or of too few videos.
    """
    import xgboost

    table = labelled.scenes
    folds, notes = _folds(table, config)
    random = np.random.default_rng(config.seed)
    videos, video = np.unique(table.video_id.to_numpy(str), return_inverse=True)
    order = (random.permutation(len(videos)) / len(videos))[video]
    narrow = table[[*FEATURES, "label"]].astype(np.float32).assign(fold=folds.astype(np.int32), order=order)
    count = int(folds.max()) + 1
    shares = [share for share in SHARES if _can_learn(narrow, count, share)]
    if 1.0 not in shares:
        raise ValueError("good and bad scenes are of so few videos that a fold would learn from one kind: label others")
    plan = [(share, fold) for share in shares for fold in range(count)]
    workers = labelled.workers(config)
    parts = (narrow, plan, count)
    models = _models(*parts) if workers == 1 else _models_on_ray(*parts, workers, config.output)
    said = _said(narrow, plan, models)
    labels, chance = table.label.to_numpy(int), said[1.0]
    final = xgboost.Booster(model_file=bytearray(models[-1]))
    gain: dict[str, Any] = final.get_score(importance_type="total_gain")
    whole = sum(gain.values()) or 1.0
    report = {
        "scenes": len(table),
        "good": int(labels.sum()),
        "bad": int((1 - labels).sum()),
        "videos": len(videos),
        "people": labelled.people,
        "lost": labelled.lost,
        "folds": count,
        "seed": config.seed,
        "rounds": final.num_boosted_rounds(),
        "metrics": judged(labels, chance, video, config.seed),
        "calibration": calibration(labels, chance),
        "importance": {name: round(gain.get(name, 0.0) / whole, 4) for name in FEATURES},
        "learning_curve": [
            {
                "videos": len(np.unique(video[order < share])),
                "scenes": int((order < share).sum()),
                "metrics": judged(labels, said[share], video, config.seed),
            }
            for share in said
        ],
        "notes": notes,
    }
    spread = {}
    for name in FEATURES:
        values = table[name].to_numpy(np.float64)
        there = values[np.isfinite(values)]
        edges = np.unique(np.quantile(there, np.arange(1, BINS) / BINS)).tolist() if len(there) else []
        spread[name] = {"edges": edges, "counts": _binned(table[name], edges)[: len(edges) + 1].tolist()}
    known = {
        "measured_by": labelled.measured_by,
        "versions": {name: version(name) for name in ("xgboost", "scikit-learn", "numpy")},
        "report": report,
        "spread": spread,
    }
    final.set_attr(**{ATTRIBUTE: json.dumps(known)})
    return Filter(bytes(final.save_raw("json")), known)


def _folds(table: pd.DataFrame, config: FitConfig) -> tuple[np.ndarray, list[str]]:
    """Which outer fold each scene is in, and what there is to say of it."""
    from sklearn.model_selection import StratifiedGroupKFold

    names = {1: "good", 0: "bad"}
    videos = {label: table.video_id[table.label == label].nunique() for label in names}
    for label, name in names.items():
        if not videos[label]:
            raise ValueError(f"all {len(table)} labels are {names[1 - label]}: a filter needs {name} scenes, too")
    most = min(videos.values())
    if most < LEAST_FOLDS:
        told = ", ".join(f"{videos[label]} with {name} ones" for label, name in names.items())
        raise ValueError(
            f"labels are of too few videos ({told}): folds are of whole videos, and need {LEAST_FOLDS} with scenes of "
            "either kind; label scenes of others"
        )
    count = min(config.folds, most)
    few = names[min(videos, key=lambda label: videos[label])]
    notes = [f"{count} folds, not {config.folds}: {most} videos have {few} scenes"] if count < config.folds else []
    splitter = StratifiedGroupKFold(count, shuffle=True, random_state=config.seed)
    folds = np.zeros(len(table), int)
    for fold, (_, held) in enumerate(splitter.split(table, table.label, table.video_id)):
        folds[held] = fold
    return folds, notes


def _inner(fold: int, count: int) -> int:
    """The fold by which the model of an outer fold knows when to stop."""
    return (fold + 1) % count


def _can_learn(table: pd.DataFrame, count: int, share: float) -> bool:
    """Whether every fold has both kinds to learn from, and some to stop by, in that share of the videos."""
    within = table[table.order < share]
    for fold in range(count):
        inner = _inner(fold, count)
        if within.label[~within.fold.isin([fold, inner])].nunique() < 2 or not (within.fold == inner).any():
            return False
    return True


def _models(table: pd.DataFrame, plan: Sequence[tuple[float, int]], count: int) -> list[bytes]:
    """XGBoost's JSON of the models of every share and outer fold of the plan, and last of the one fitted to all.

    table: FEATURES, label, fold and order of all labels; in workers of Ray Train of those that each of them has.
    """
    import xgboost

    def matrix(rows: pd.Series) -> xgboost.DMatrix:
        return _matrix(table[rows], table.label[rows])

    models, rounds = [], []
    for share, fold in plan:
        within, inner = table.order < share, _inner(fold, count)
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


def _models_on_ray(
    table: pd.DataFrame, plan: Sequence[tuple[float, int]], count: int, workers: int, output: str
) -> list[bytes]:
    """The same on workers of Ray Train, each with a share of the labels; XGBoost adds up what they see."""
    import ray
    from ray import train
    from ray.train.xgboost import XGBoostTrainer

    from pipelines.core.training import check_room

    def loop() -> None:
        shard: Any = train.get_dataset_shard("labels")
        models = _models(shard.materialize().to_pandas(), plan, count)
        with tempfile.TemporaryDirectory(prefix="filmray-") as folder:
            for number, raw in enumerate(models):
                Path(folder, f"{number}.json").write_bytes(raw)
            first = train.get_context().get_world_rank() == 0
            train.report({}, checkpoint=train.Checkpoint.from_directory(folder) if first else None)

    check_room("CPU", workers)
    rows = -(-len(table) // workers)
    blocks = [table.iloc[start : start + rows] for start in range(0, len(table), rows)]
    store = Store(output if "://" in output else str(Path(output).absolute()))
    trainer = XGBoostTrainer(
        loop,
        scaling_config=train.ScalingConfig(num_workers=workers),
        run_config=train.RunConfig(name="run", storage_path=store.uri("fit")),
        datasets={"labels": ray.data.from_pandas(blocks)},
    )
    # What a fit that was killed has left would be taken for this one's.
    _clear(store)
    checkpoint = trainer.fit().checkpoint
    assert checkpoint is not None
    with checkpoint.as_directory() as folder:
        models = [Path(folder, f"{number}.json").read_bytes() for number in range(len(plan) + 1)]
    _clear(store)
    return models


def _clear(store: Store) -> None:
    for entry in list(storage.listing(store.uri("fit"))):
        storage.delete(entry.uri)


def _said(table: pd.DataFrame, plan: Sequence[tuple[float, int]], models: Sequence[bytes]) -> dict[float, np.ndarray]:
    """By share, float32 (N,): the probability of each scene, from the model that did not see its video."""
    import xgboost

    said = {share: np.full(len(table), np.nan, np.float32) for share, _ in plan}
    for (share, fold), raw in zip(plan, models[:-1], strict=True):
        held = (table.fold == fold).to_numpy()
        said[share][held] = xgboost.Booster(model_file=bytearray(raw)).predict(_matrix(table[held]))
    return said


# ------------------------------------------------------------------------------------------------------------- judging


def judged(labels: np.ndarray, chance: np.ndarray, videos: np.ndarray, seed: int = 0) -> dict[str, dict[str, float]]:
    """How good predictions are, each measure with a 95 % interval and beside what always answering the majority gives.

    Measures: accuracy (at 0.5), roc_auc, pr_auc (average precision of "good"), brier, and gain, by how much accuracy is
    above always answering the majority. Intervals are percentiles of a bootstrap that draws whole videos, since the
    scenes of one are not independent of each other (Field and Welsh 2007, Bootstrapping clustered data).

    Args:
        labels: (N,) 0 or 1
        chance: (N,) probability of 1
        videos: int (N,) the video of each, from 0 without gaps
    """
    values = {name: float(value[0]) for name, value in _measures(labels, chance, np.ones((1, len(labels)))).items()}
    random, count = np.random.default_rng(seed), int(videos.max()) + 1
    at_once = max(1, 4_000_000 // len(labels))
    drawn: dict[str, list[np.ndarray]] = {name: [] for name in values}
    for start in range(0, DRAWS, at_once):
        weights = random.multinomial(count, [1 / count] * count, min(at_once, DRAWS - start))[:, videos]
        for name, value in _measures(labels, chance, weights.astype(np.float64)).items():
            drawn[name].append(value)
    good = float(labels.mean())
    share = max(good, 1 - good)
    always = {"accuracy": share, "roc_auc": 0.5, "pr_auc": good, "brier": 1 - share, "gain": 0.0}
    report = {}
    for name, value in values.items():
        low, high = np.nanpercentile(np.concatenate(drawn[name]), [2.5, 97.5])
        numbers = {"value": value, "low": float(low), "high": float(high), "always": always[name]}
        report[name] = {key: round(number, 4) for key, number in numbers.items()}
    return report


def _measures(labels: np.ndarray, chance: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Each measure for every row of weights (D, N); NaN where a draw has scenes of one kind only."""
    order = np.argsort(-chance, kind="stable")
    y, p, w = labels[order].astype(np.float64), chance[order].astype(np.float64), weights[:, order]
    # What is equally likely stands on one side of a threshold.
    ends = np.flatnonzero(np.append(np.diff(p) != 0, True))
    total, positive = w.sum(axis=1), (w * y).sum(axis=1)
    hits = np.cumsum(w * y, axis=1)[:, ends]
    alarms = np.cumsum(w * (1 - y), axis=1)[:, ends]
    steps = np.diff(hits, prepend=0.0, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        under = (np.diff(alarms, prepend=0.0, axis=1) * (hits - steps / 2)).sum(axis=1)
        roc_auc = under / (positive * (total - positive))
        precision = np.nan_to_num(hits / (hits + alarms))
        pr_auc = (steps * precision).sum(axis=1) / positive
    accuracy = (w * ((p >= 0.5) == y)).sum(axis=1) / total
    share = positive / total
    return {
        "accuracy": accuracy,
        "roc_auc": roc_auc,
        "pr_auc": pr_auc,
        "brier": (w * (p - y) ** 2).sum(axis=1) / total,
        "gain": accuracy - (share if y.mean() >= 0.5 else 1 - share),
    }


def calibration(labels: np.ndarray, chance: np.ndarray) -> list[dict[str, float]]:
    """What share of scenes is good where the model says how likely it is, in bins of as many scenes each."""
    parts = np.array_split(np.argsort(chance, kind="stable"), int(np.clip(len(labels) // BINS, 1, BINS)))
    return [
        {
            "predicted": round(float(chance[part].mean()), 4),
            "good": round(float(labels[part].mean()), 4),
            "scenes": len(part),
        }
        for part in parts
    ]

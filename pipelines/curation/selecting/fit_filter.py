"""Train the filter from labels, with grouped cross-validation."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa

from actors.core import storage
from actors.core.errors import UserError
from actors.core.store import Store
from actors.core.temporary import TemporaryFolder
from actors.curation.cutting.scenes import FEATURES
from actors.curation.measuring.measured import families_now
from actors.curation.selecting.column_rules import BOOL, NUMBER, kind_of, missing
from actors.curation.selecting.filter import (
    ADDED,
    ATTRIBUTE,
    BINS,
    Filter,
    binned,
    feature_matrix,
    feature_settings,
    features_of,
    fingerprints,
    inner_fold,
    numbers,
    train_models,
)
from actors.curation.tables import read_at, strings
from pipelines.curation.measuring.families import families_with
from pipelines.curation.rows import Ranges
from pipelines.curation.selecting.columns import columns_of
from pipelines.curation.selecting.filter_metrics import calibration, judged
from pipelines.curation.selecting.label_settings import LEAST_FOLDS, FitConfig
from pipelines.curation.selecting.labels import Labels, labels_for

if TYPE_CHECKING:
    import xgboost

SHARES = (0.25, 0.5, 0.75, 1.0)
"""Shares of the videos from which the learning curve is drawn."""


# -------------------------------------------------------------------------------------------------------------- fitting


@dataclass(frozen=True)
class Labelled:
    """Scenes that people labelled, with what was measured of them."""

    scenes: pd.DataFrame
    """video_id, scene_id, features (some may be missing) and label (0 bad, 1 good), in order of the ids."""
    measured_by: dict[str, Any]
    """The settings of the features."""
    people: list[str]
    """Who labelled."""
    lost: int = 0
    """Labels of scenes that are not in scores/, or failed."""
    features: tuple[str, ...] = FEATURES
    """The columns of scenes that the filter learns from."""
    families: dict[str, str] = field(default_factory=dict)
    """The fingerprint of each family that features come from."""

    def workers(self, config: FitConfig) -> int:
        """Over how many processes the fit is split."""
        return math.ceil(len(self.scenes) * 4 * (len(self.features) + 4) / config.worker_bytes)


def read_labelled(config: FitConfig) -> Labelled:
    """The labelled scenes of an output. Raises ValueError where there are none, or no such feature."""
    store, features = Store(config.output), tuple(dict.fromkeys(config.features or FEATURES))
    path, people, labels = labels_for(config.output, config.labels)
    _check_features(features, store)
    look = partial(_known, labels=labels)
    settings = store.read_json("plan", "settings.json")
    assert settings is not None
    keys = ["video_id", "scene_id"]
    scenes = pd.concat(
        [
            scenes.loc[(scenes.error == "") & scenes.label.notna(), ["part", "row", "label"]]
            for scenes, *_ in Ranges(store, features, look)
        ]
    )
    kinds = {**columns_of(store), **dict.fromkeys(keys, pa.string())}
    schema = pa.schema([(name, kinds[name]) for name in (*keys, *features)])
    found = read_at(store, scenes, schema, families_with(store, list(features))).to_pandas(types_mapper=strings)
    found = found.assign(label=scenes.label.to_numpy(np.int64)).sort_values(keys).reset_index(drop=True)
    if found.empty:
        raise UserError(
            f"None of the {len(labels)} labels of {path} is of a scene that {config.output} has measured. "
            "Set labels=PATH."
        )
    if empty := [name for name in features if name not in FEATURES and found[name].isna().all()]:
        raise UserError(f"features: none of the {len(found)} labelled scenes has a value of {', '.join(empty)}")
    told = feature_settings(settings["measured_by"]), people, len(labels) - len(found)
    return Labelled(found, *told, features, fingerprints(families_now(store), features))


def _known(rows: pd.DataFrame, labels: Labels) -> pd.DataFrame:
    """The label of each row, NaN where it has none."""
    near = rows.video_id.isin({video_id for video_id, _ in labels}).to_numpy()
    keys = zip(rows.video_id[near], rows.scene_id[near], strict=True)
    label = np.full(len(rows), np.nan, np.float32)
    label[near] = [labels.get(key, np.nan) for key in keys]
    return pd.DataFrame({"label": label})


def _check_features(features: Sequence[str], store: Store) -> None:
    there = columns_of(store)
    if lacking := [name for name in features if name not in there]:
        raise UserError(f"features: {missing(lacking, there, store.root)}")
    if taken := [name for name in features if name in ADDED]:
        raise UserError(f"features: {', '.join(taken)} cannot be learnt from: a label has a column of this name")
    if texts := [name for name in features if kind_of(there[name]) not in (NUMBER, BOOL)]:
        raise UserError(f"features: {', '.join(texts)} is text. A filter learns from numbers and bools.")


def fit(labelled: Labelled, config: FitConfig) -> Filter:
    """Fit a filter to labelled scenes; its report is in `about`. Needs Ray where the labels want several workers.

    Raises:
        UserError: labels are of one kind only, or of too few videos.
    """
    import xgboost

    table = labelled.scenes
    folds, notes = _folds(table, config)
    random = np.random.default_rng(config.seed)
    videos, video = np.unique(table.video_id.to_numpy(str), return_inverse=True)
    order = (random.permutation(len(videos)) / len(videos))[video]
    narrow = pd.DataFrame({name: numbers(table[name], np.float32) for name in (*labelled.features, "label")})
    narrow = narrow.assign(fold=folds.astype(np.int32), order=order)
    count = int(folds.max()) + 1
    shares = [share for share in SHARES if _can_learn(narrow, count, share)]
    if 1.0 not in shares:
        raise UserError(
            "Good and bad scenes are of so few videos that a fold would train on one kind. Label scenes of others."
        )
    plan = [(share, fold) for share in shares for fold in range(count)]
    workers = labelled.workers(config)
    parts = (narrow, plan, count)
    models = train_models(*parts) if workers == 1 else _models_on_ray(*parts, workers, config.output)
    final = xgboost.Booster(model_file=bytearray(models[-1]))
    report = _report(labelled, config, _said(narrow, plan, models), order, final)
    known = {
        "measured_by": labelled.measured_by,
        "versions": {"xgboost": xgboost.__version__, **{name: version(name) for name in ("scikit-learn", "numpy")}},
        "report": report | {"folds": count, "notes": notes},
        "spread": _spread(table, labelled.features),
        **({"families": labelled.families} if labelled.families else {}),
    }
    final.set_attr(**{ATTRIBUTE: json.dumps(known)})
    return Filter(bytes(final.save_raw("json")), known, labelled.features)


def _report(
    labelled: Labelled, config: FitConfig, said: dict[float, np.ndarray], order: np.ndarray, final: "xgboost.Booster"
) -> dict[str, Any]:
    """How well the filter does on videos that it was not trained on, by the share of videos that it was trained on.

    said: probabilities by share; order: the place of each scene's video among them, 0 to 1.
    """
    table = labelled.scenes
    video = np.unique(table.video_id.to_numpy(str), return_inverse=True)[1]
    labels, chance = table.label.to_numpy(int), said[1.0]
    gain: dict[str, Any] = final.get_score(importance_type="total_gain")
    whole = sum(gain.values()) or 1.0
    return {
        "scenes": len(table),
        "good": int(labels.sum()),
        "bad": int((1 - labels).sum()),
        "videos": table.video_id.nunique(),
        "people": labelled.people,
        "lost": labelled.lost,
        "seed": config.seed,
        "rounds": final.num_boosted_rounds(),
        "metrics": judged(labels, chance, video, config.seed),
        "calibration": calibration(labels, chance),
        "importance": {name: round(gain.get(name, 0.0) / whole, 4) for name in labelled.features},
        "learning_curve": [
            {
                "videos": len(np.unique(video[order < share])),
                "scenes": int((order < share).sum()),
                "metrics": judged(labels, said[share], video, config.seed),
            }
            for share in said
        ],
    }


def _spread(table: pd.DataFrame, features: Sequence[str]) -> dict[str, dict[str, list[Any]]]:
    """Each feature's distribution over the labels: edges of bins of equal counts, and the counts."""
    spread = {}
    for name in features:
        values = numbers(table[name])
        there = values[np.isfinite(values)]
        edges = np.unique(np.quantile(there, np.arange(1, BINS) / BINS)).tolist() if len(there) else []
        spread[name] = {"edges": edges, "counts": binned(values, edges)[: len(edges) + 1].tolist()}
    return spread


def _folds(table: pd.DataFrame, config: FitConfig) -> tuple[np.ndarray, list[str]]:
    """Which outer fold each scene is in, and what there is to say of it."""
    from sklearn.model_selection import StratifiedGroupKFold

    names = {1: "good", 0: "bad"}
    videos = {label: table.video_id[table.label == label].nunique() for label in names}
    for label, name in names.items():
        if not videos[label]:
            raise UserError(f"all {len(table)} labels are {names[1 - label]}. Label {name} scenes, too.")
    most = min(videos.values())
    if most < LEAST_FOLDS:
        told = ", ".join(f"{videos[label]} with {name} ones" for label, name in names.items())
        raise UserError(
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


def _can_learn(table: pd.DataFrame, count: int, share: float) -> bool:
    """Whether every fold has both kinds to learn from, and some to stop by, in that share of the videos."""
    within = table[table.order < share]
    for fold in range(count):
        inner = inner_fold(fold, count)
        if within.label[~within.fold.isin([fold, inner])].nunique() < 2 or not (within.fold == inner).any():
            return False
    return True


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
        models = train_models(shard.materialize().to_pandas(), plan, count)
        with TemporaryFolder() as folder:
            for number, raw in enumerate(models):
                (folder / f"{number}.json").write_bytes(raw)
            first = train.get_context().get_world_rank() == 0
            train.report({}, checkpoint=train.Checkpoint.from_directory(str(folder)) if first else None)

    check_room("CPU", workers)
    rows = -(-len(table) // workers)
    blocks = [table.iloc[start : start + rows] for start in range(0, len(table), rows)]
    store = Store(storage.absolute(output))
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

    features = features_of(table)
    said = {share: np.full(len(table), np.nan, np.float32) for share, _ in plan}
    for (share, fold), raw in zip(plan, models[:-1], strict=True):
        held = (table.fold == fold).to_numpy()
        said[share][held] = xgboost.Booster(model_file=bytearray(raw)).predict(feature_matrix(table[held], features))
    return said

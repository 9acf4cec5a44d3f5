"""Ablations: trainings with other settings, whose vectors are scored beside those of `embed`."""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from actors.comic_characters.instances import FEATURES, KEY, Instance, as_instance
from actors.comic_characters.network_settings import feature_size
from actors.core import storage
from actors.core.errors import UserError
from actors.core.store import Store
from pipelines.comic_characters.embed import head_weights
from pipelines.comic_characters.features import extract_by, read_features, source_of, without_features
from pipelines.comic_characters.learning.fine_tune import fine_tune, plan_fine_tuning
from pipelines.comic_characters.learning.pairs import plan_pretraining
from pipelines.comic_characters.model import backbone_uri
from pipelines.comic_characters.settings import ComicsConfig

log = logging.getLogger(__name__)

VECTORS = pa.schema([*(FEATURES.field(name) for name in KEY), ("vector", pa.list_(pa.float32()))])
"""The stored vectors of an ablation: one row per instance."""


def variant(config: ComicsConfig, name: str, other: ComicsConfig) -> ComicsConfig:
    """Settings of an ablation, whose trainings have folders of their own; an equal stage is not trained again.

    Raises UserError where it differs in settings that are not of a training.
    """
    folder = f"{config.score.folder}/ablations/{name}"
    groups = {group: getattr(config, group) for group in ("pretrain", "fine_tune", "features", "score")}
    if replace(other, **groups, backbone=replace(other.backbone, name=config.backbone.name)) != config:
        raise UserError(f"score.ablations.{name}: only pretrain, fine_tune, features and backbone.name can differ")
    if other.pretrain != config.pretrain or other.backbone != config.backbone:
        if other.features.weights and other.features.weights == config.features.weights:
            raise UserError(
                f"score.ablations.{name}: with features.weights={other.features.weights} another pretraining changes "
                "nothing: add features.weights=null, or set its own weights"
            )
        other = replace(other, pretrain=replace(other.pretrain, folder=f"{folder}/pretrain"))
    elif other.model:
        other = replace(other, features=replace(other.features, weights=backbone_uri(other)))
    # It trains a head of its own, here.
    other = replace(other, model="")
    return replace(other, fine_tune=replace(other.fine_tune, folder=f"{folder}/fine-tune"))


def trained_anew(config: ComicsConfig, other: ComicsConfig) -> bool:
    """Whether an ablation has a stage 1 of its own."""
    return other.pretrain.folder != config.pretrain.folder and not other.features.weights


def ablate(config: ComicsConfig, other: ComicsConfig, instances: list[Instance]) -> str:
    """Train an ablation and store its vectors of these instances, unless they are stored already; returns where."""
    from actors.comic_characters.network import embed, load_head
    from pipelines.comic_characters.learning.pretrain import pretrain

    store = Store(config.output)
    if trained_anew(config, other):
        pretrain(other, plan_pretraining(other))
    plan = plan_fine_tuning(other)
    labels = [asdict(one) for one in (*plan.train, *plan.valid)]
    about = json.dumps([plan.backbone.folder, asdict(other.fine_tune), labels, instances], default=str)
    name = f"{hashlib.sha256(about.encode()).hexdigest()[:16]}.parquet"
    folder = other.fine_tune.folder.rpartition("/")[0]
    if name in store.parts(folder):
        return store.uri(folder, name)
    fine_tune(other, plan)
    extract_by(other, source_of(other, plan.backbone), without_features(store, plan.backbone.folder, instances))
    features = read_features(store, plan.backbone.folder, instances)
    sound = [one for one in instances if not features[one].error]
    head = load_head(other.fine_tune.head, feature_size(other.backbone.name), head_weights(other))
    vectors = embed(head, [(features[one].face, features[one].body) for one in sound])
    rows = [{**dict(zip(KEY, one, strict=True)), "vector": vector} for one, vector in zip(sound, vectors, strict=True)]
    store.write_table(pa.Table.from_pylist(rows, VECTORS), folder, name)
    return store.uri(folder, name)


def cpus_of(other: ComicsConfig) -> float:
    """CPUs that an ablation holds at once: those of its training, and one to read."""
    return 1 + max(one.workers * one.num_cpus for one in (other.pretrain.training, other.fine_tune.training))


def run_ablations(
    config: ComicsConfig, variants: Mapping[str, ComicsConfig], instances: list[Instance]
) -> dict[str, str]:
    """Train all ablations, as many at once as the cluster has CPUs for; returns where the vectors of each are."""
    import ray

    from pipelines.core.attempts import repeated

    there = ray.cluster_resources().get("CPU", 0)
    growing = config.autoscaling or not there
    work = repeated(ablate, num_cpus=0)
    running: dict[Any, str] = {}
    found: dict[str, str] = {}
    waiting = list(variants)
    while waiting or running:
        while waiting:
            asked = sum(cpus_of(variants[name]) for name in (*running.values(), waiting[0]))
            if running and not growing and asked > there:
                break
            name = waiting.pop(0)
            log.info("ablation %s: training", name)
            running[work(config, variants[name], instances)] = name
        (done,), _ = ray.wait(list(running), num_returns=1)
        name = running.pop(done)
        found[name] = ray.get(done)
        log.info("ablation %s: done", name)
    return {name: found[name] for name in variants}


def read_vectors(uri: str) -> dict[Instance, np.ndarray]:
    """The vectors that `ablate` has stored."""
    rows = pq.read_table(io.BytesIO(storage.read_bytes(uri))).to_pylist()
    return {as_instance(row): np.array(row["vector"], np.float32) for row in rows}

"""Vectors of all cropped instances, and of those in the labels, by the head of stage 2.

plan   driver  the instances in parts, the same for the same instances, and the missing parts
       actors  missing features, see `features`
read   task    the features of one part's instances
embed  actors  1 -> 1: the head
write  task    a whole part of embeddings/, which has vectors of one head and one backbone only
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
from pyarrow import compute

from actors.comic_characters.checkpoints import read_head
from actors.comic_characters.crops import CROPS
from actors.comic_characters.instances import (
    EMBEDDINGS,
    FEATURES,
    KEY,
    MISSING_PART,
    REJECTED_INSTANCES,
    Instance,
    as_instance,
    part_name,
    read_rows,
    write_vectors,
)
from actors.comic_characters.network_settings import feature_size
from actors.comic_characters.weights import check_head_weights
from actors.core import storage
from actors.core.computed import COMPUTED
from actors.core.errors import UserError
from actors.core.stage import Stage
from actors.core.store import Store
from pipelines.comic_characters.features import (
    WRITES,
    Backbone,
    beside,
    extract,
    find_backbone,
    located,
    mixed_features,
    ordered,
    without_features,
)
from pipelines.comic_characters.learning.pairs import find_pairs
from pipelines.comic_characters.model import head_uri
from pipelines.comic_characters.sequences import SPLITS, Sequence, read_sequences
from pipelines.comic_characters.settings import ComicsConfig
from pipelines.core.progress import Progress
from pipelines.core.ray_data import finish, fitted, ray_actors, ray_task, set_context

if TYPE_CHECKING:
    import pandas as pd

READS = 0.25
"""CPUs of a task that reads features."""


@dataclass(frozen=True)
class EmbedPlan:
    """The instances, and the missing features and vectors."""

    backbone: Backbone
    weights: bytes
    """Weights of the head."""
    parts: list[list[Instance]]
    """All instances in the order of `ordered`."""
    todo: list[list[Instance]]
    """Parts without vectors of this head."""
    features: list[Instance]
    """Instances of these parts without features."""


class Embeddings(NamedTuple):
    """Sound instances with their vectors."""

    instances: list[Instance]
    vectors: np.ndarray
    """float32 (N, D), each of length 1."""


def crop_instances(crops: pd.DataFrame) -> list[Instance]:
    """Instances of crops (rows of CROPS): a face and body of one char_index are one instance; others are one each."""
    pairs, _ = find_pairs(crops)
    found = [as_instance(row) for row in pairs.to_dict("records")]
    paired = {(series, page, "face", face) for series, page, face, _ in found}
    paired |= {(series, page, "body", body) for series, page, _, body in found}
    for row in crops[crops.error == ""].to_dict("records"):
        name = row["series_id"], row["page_id"], row["type"], row["index"]
        if name not in paired:
            alone = {"face": None, "body": None} | {row["type"]: row["index"]}
            found.append((row["series_id"], row["page_id"], alone["face"], alone["body"]))
    return ordered(found)


def plan_embedding(config: ComicsConfig) -> EmbedPlan:
    """Find the instances and what is missing. Raises UserError where there are no instances, no backbone or no head."""
    store = Store(config.output)
    backbone = find_backbone(config)
    weights = head_weights(config)
    wanted = set(crop_instances(store.read_table("crops", CROPS).to_pandas()))
    for split in SPLITS:
        uri = Store(config.labels).uri(f"{split}_sequences.json")
        if config.labels and storage.exists(uri):
            wanted.update(instance for one in read_sequences(uri) for instance in one.instances)
    if not wanted:
        raise UserError(f"{config.output} has no faces or bodies in crops/. Run `crop` first.")
    instances, size = ordered(wanted), config.embed.batch_size
    parts = [instances[first : first + size] for first in range(0, len(instances), size)]
    done = _sound_parts(store) if store.read_json("embeddings.json") == _made_by(config, backbone, weights) else set()
    todo = [part for part in parts if part_name(part) not in done]
    missing = without_features(store, backbone.folder, [one for part in todo for one in part])
    return EmbedPlan(backbone, weights, parts, todo, missing)


def head_weights(config: ComicsConfig) -> bytes:
    """Weights of the head that `fine-tune` wrote. Raises UserError where there are none, or of another head."""
    uri = head_uri(config)
    try:
        weights = read_head(uri)
    except FileNotFoundError as error:
        raise UserError(f"{uri} does not exist. Run `fine-tune` first, or set model to the output of one.") from error
    check_head_weights(config.fine_tune.head, feature_size(config.backbone.name), weights, uri)
    return weights


def _made_by(config: ComicsConfig, backbone: Backbone, weights: bytes) -> dict[str, Any]:
    """The settings and weights that vectors depend on."""
    return {"features": backbone.folder, "head": _about_head(config, weights)}


def _about_head(config: ComicsConfig, weights: bytes) -> dict[str, Any]:
    return {"weights": hashlib.sha256(weights).hexdigest()[:16], **asdict(config.fine_tune.head)}


def check_head(config: ComicsConfig) -> None:
    """Raise UserError where embeddings/ was computed by another head than the one that `fine-tune` wrote last."""
    store, uri = Store(config.output), head_uri(config)
    made = store.read_json("embeddings.json")
    if made and storage.exists(uri) and made["head"] != _about_head(config, read_head(uri)):
        raise UserError(f"{store.uri('embeddings')} is of another head than {uri}. Run `embed` again.")


def _sound_parts(store: Store) -> set[str]:
    """Names of the readable parts without errors."""
    found = set()
    for name in store.parts("embeddings"):
        part = store.read_part("embeddings", name, ["error"])
        if part is not None and set(part["error"].to_pylist()) <= {"", MISSING_PART}:
            found.add(name)
    return found


def begin(config: ComicsConfig, plan: EmbedPlan) -> None:
    """Remove vectors of another head from embeddings/."""
    store, made = Store(config.output), _made_by(config, plan.backbone, plan.weights)
    if store.read_json("embeddings.json") != made:
        # Parts of another head go before the first part of this one is written.
        store.replace_table("embeddings", [])
        store.write_json(made, "embeddings.json")


def embed(config: ComicsConfig, plan: EmbedPlan) -> dict[str, Any]:
    """Compute missing features and vectors; returns rows and stages for the run record."""
    begin(config, plan)
    stages = {"features": extract(config, plan.backbone, plan.features)}
    started = time.monotonic()
    if plan.todo:
        _embed(config, plan)
    number = sum(map(len, plan.todo))
    stages["embed"] = {"rows": number, "seconds": round(time.monotonic() - started, 1)}
    return collect(config, plan) | {"stages": stages}


def _embed(config: ComicsConfig, plan: EmbedPlan) -> None:
    import ray

    from actors.comic_characters.network import InstanceEmbedder

    stages = fitted(*stages_of(config), config.autoscaling)
    set_context()
    stage: Any = stages["embed"]
    store = Store(config.output)
    where = located(store, plan.backbone.folder)
    tables = [
        pa.Table.from_pylist([{**dict(zip(KEY, one, strict=True)), "part": where[one][0]} for one in part], _READ)
        for part in plan.todo
    ]
    read: Any = partial(read_rows, store=store, folder=plan.backbone.folder)
    write: Any = partial(write_vectors, store=store)
    arguments = [stage, config.fine_tune.head, feature_size(config.backbone.name), plan.weights]
    rows = ray.data.from_arrow(tables).map_batches(
        read, batch_size=None, batch_format="pyarrow", **ray_task(stages["read"])
    )
    actors = ray_actors(stage, inputs=len(tables))
    rows = rows.map_batches(InstanceEmbedder, fn_constructor_args=arguments, batch_size=None, **actors)
    rows = rows.map_batches(write, batch_size=None, **ray_task(stages["write"]))
    finish(rows, "instances", Progress("embed", sum(map(len, plan.todo)), "instances"))


_READ = pa.schema([*(FEATURES.field(name) for name in KEY), ("part", pa.string())])


def stages_of(config: ComicsConfig) -> tuple[dict[str, Stage], dict[str, Stage]]:
    """Actor pools and task stages by name."""
    return {"embed": config.embed}, {"read": beside(config.embed, READS), "write": beside(config.embed, WRITES)}


def collect(config: ComicsConfig, plan: EmbedPlan) -> dict[str, Any]:
    """Remove parts of other instances and write rejected/embed/; returns rows and notes of the run record."""
    store = Store(config.output)
    for name in set(store.parts("embeddings")) - {part_name(part) for part in plan.parts}:
        storage.delete(store.uri("embeddings", name))
    rows, computed = 0, Counter[str]()
    bad: list[dict[str, Any]] = []
    for part in store.read_parts("embeddings", [*REJECTED_INSTANCES.names, COMPUTED], (COMPUTED,)):
        rows += len(part)
        computed.update(part[COMPUTED].to_pylist())
        bad += [row for row in part.to_pylist() if row["error"]]
    if rows != (wanted := sum(map(len, plan.parts))):
        raise RuntimeError(f"embeddings/ has {rows} of {wanted} instances. Rerun the same command.")
    store.replace_table("rejected/embed", [pa.Table.from_pylist(bad, REJECTED_INSTANCES)])
    codes = dict(Counter(row["error"] for row in bad))
    notes = mixed_features(computed, f"{plan.backbone.folder} and embeddings")
    return {"rows": {"in": rows, "out": rows - len(bad), "rejected": codes}, "notes": notes}


def read_embeddings(store: Store) -> Embeddings:
    """The sound vectors of embeddings/, in the order of `ordered`. Raises UserError where there are none."""
    found: dict[Instance, np.ndarray] = {}
    for part in store.read_parts("embeddings", EMBEDDINGS.names, (COMPUTED,)):
        sound = part.filter(compute.field("error") == "").combine_chunks()
        vectors = sound["vector"].combine_chunks()
        flat = vectors.flatten().to_numpy(zero_copy_only=False).reshape(len(sound), -1)
        found.update(zip(map(as_instance, sound.select(KEY).to_pylist()), flat, strict=True))
    if not found:
        raise UserError(f"{store.uri('embeddings')} has no vectors. Run `embed` first.")
    instances = ordered(found)
    return Embeddings(instances, np.stack([found[one] for one in instances]))


def read_rejected(store: Store) -> dict[Instance, tuple[str, str]]:
    """Code and message of the instances without a vector, from rejected/embed."""
    rows = store.read_table("rejected/embed", REJECTED_INSTANCES).to_pylist()
    return {as_instance(row): (row["error"], row["message"]) for row in rows}


def check_known(sequences: Iterable[Sequence], known: Collection[Instance], where: str) -> None:
    """Raise UserError where sequences have instances that `embed` has not seen; where: the file of the sequences."""
    unknown = [i for one in sequences for i in one.instances if i not in known]
    if unknown:
        series, page, face, body = unknown[0]
        raise UserError(
            f"{where} has {len(unknown)} instances that are not in embeddings/, such as face {face} and body {body} of "
            f"{series}_{page}. Run `embed` with the same labels."
        )

"""Stage 2: train a head on labelled sequences, so that vectors of one character are close.

The backbone stays frozen; its features are computed once. The head fuses a face and a body into one vector. Pairs that
are not known to differ are no negatives, unless fine_tune.uncertain is set.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from actors.comic_characters.instances import MISSING_PART, REJECTED_INSTANCES, Instance
from actors.comic_characters.network_settings import ONE_PART, HeadConfig, changed, feature_size
from actors.core.checkpoints import Tensors
from actors.core.errors import UserError
from actors.core.store import Store
from pipelines.comic_characters.features import (
    Backbone,
    Features,
    extract,
    extract_by,
    find_backbone,
    mixed_features,
    read_features,
    source_of,
    views_folder,
    without_features,
)
from pipelines.comic_characters.labels import read_labels, without_lone
from pipelines.comic_characters.learning.metric_losses import metric_loss, relations
from pipelines.comic_characters.sequences import Sequence
from pipelines.comic_characters.settings import ComicsConfig, FineTuneConfig

if TYPE_CHECKING:
    from ray.data import Dataset
    from torch import Tensor, nn

    from pipelines.core.training import Trained


@dataclass(frozen=True)
class FineTunePlan:
    """The sequences of training and validation, and the missing features."""

    train: list[Sequence]
    valid: list[Sequence]
    backbone: Backbone
    todo: list[Instance]
    views: list[Instance]
    """Training instances whose features of views are missing."""

    @property
    def instances(self) -> list[Instance]:
        """The instances of all sequences, repeated where they are in several."""
        return [instance for one in (*self.train, *self.valid) for instance in one.instances]


def plan_fine_tuning(config: ComicsConfig) -> FineTunePlan:
    """Read the sequences and find missing features. Raises UserError where there are no sequences, or no backbone."""
    if not config.labels:
        raise UserError("labels: this setting is required")
    train, valid = (read_labels(config.labels, split, config.identities) for split in ("train", "validation"))
    if not config.fine_tune.lone:
        train = without_lone(train)
    for name, sequences in (("train", train), ("validation", valid)):
        if not any(one.instances for one in sequences):
            raise UserError(f"{config.labels}/{name}_sequences.json has no instance to use")
    store, backbone = Store(config.output), find_backbone(config)
    plan = FineTunePlan(train, valid, backbone, [], [])
    views: list[Instance] = []
    if copies := config.fine_tune.augment:
        instances = [one for sequence in train for one in sequence.instances]
        views = without_features(store, views_folder(config, backbone, copies), instances)
    return replace(plan, todo=without_features(store, backbone.folder, plan.instances), views=views)


def sequence_rows(
    sequences: list[Sequence], features: dict[Instance, Features], width: int, longest: int
) -> list[dict[str, np.ndarray]]:
    """One row per sequence, its instances padded to `longest`; those without features are left out.

    faces, bodies float32 (M, F); there uint8 (M, 2); character, sequence, series int64 (M,), numbers that stand for
    names in all rows of one call, and -1 where a place is empty; uncertain uint8 (M,).
    """
    from actors.comic_characters.network import stacked

    numbers: dict[tuple[str, str], int] = {}

    def number(kind: str, name: str) -> int:
        return numbers.setdefault((kind, name), len(numbers))

    rows = []
    for place, one in enumerate(sequences):
        kept = [i for i in range(len(one.instances)) if not features[one.instances[i]].error]
        faces, bodies, there = stacked([features[one.instances[i]][:2] for i in kept], width)
        empty = longest - len(kept)
        names = {
            "character": [number("character", one.characters[i]) for i in kept],
            "sequence": [place] * len(kept),
            "series": [number("series", one.series)] * len(kept),
        }
        rows.append(
            {
                "faces": np.pad(faces, ((0, empty), (0, 0))),
                "bodies": np.pad(bodies, ((0, empty), (0, 0))),
                "there": np.pad(there.astype(np.uint8), ((0, empty), (0, 0))),
                "uncertain": np.pad(np.array([one.uncertain[i] for i in kept], np.uint8), (0, empty)),
                **{name: np.pad(np.array(v, np.int64), (0, empty), constant_values=-1) for name, v in names.items()},
            }
        )
    return rows


def flat(batch: Tensors) -> Tensors:
    """The instances of all sequences of a batch, one per row."""
    used = batch["character"] >= 0
    rows = {name: column[used] for name, column in batch.items()}
    return {**rows, "there": rows["there"].bool(), "uncertain": rows["uncertain"].bool()}


def masked(there: Tensor, share: float) -> Tensor:
    """Hide the face or the body of this share of the instances that have both."""
    import torch

    both = there.all(1)
    hidden = (torch.rand(len(there), device=there.device) < share) & both
    part = torch.rand(len(there), device=there.device) < 0.5
    return there & ~(hidden[:, None] & torch.stack([part, ~part], 1))


def drawn(rows: Tensors, width: int) -> Tensors:
    """Of features (N, K * width) of the crop and its views one at random, (N, width), for face and body alike."""
    import torch

    copies = rows["faces"].shape[1] // width
    if copies == 1:
        return rows
    every = torch.arange(len(rows["faces"]), device=rows["faces"].device)
    chosen = torch.randint(copies, every.shape, device=every.device)
    return rows | {name: rows[name].unflatten(1, (copies, width))[every, chosen] for name in ("faces", "bodies")}


def loss(config: FineTuneConfig, width: int, model: nn.Module, batch: Tensors) -> Tensor:
    """The metric loss over all instances of a batch of sequences. width: number of features."""
    rows = drawn(flat(batch), width)
    there = masked(rows["there"], config.mask) if config.mask and model.training else rows["there"]
    return metric_loss(config, model(rows["faces"], rows["bodies"], there), rows)


def query_mrr(found: np.ndarray, same: np.ndarray, differ: np.ndarray) -> float:
    """Mean over queries of 1 / rank of the first of the same character, among all that are known to differ.

    Queries with both count; at equal distance, wrong answers come first. NaN where no query counts.

    Args:
        found: vectors float (N, D) of length 1.
        same, differ: bool (N, N).
    """
    alike = found @ found.T
    counts = same.any(1) & differ.any(1)
    best = np.where(same, alike, -np.inf).max(1, initial=-np.inf)
    before = (differ & (alike >= best[:, None])).sum(1)
    return float((1 / (1 + before[counts])).mean()) if counts.any() else float("nan")


def evaluate(config: FineTuneConfig, model: nn.Module, batches: Iterable[Tensors]) -> dict[str, float]:
    """query_mrr, with each instance as a query in its own series, and valid_loss, a mean over batches."""
    import torch

    rows: list[Tensors] = []
    vectors: list[Tensor] = []
    values: list[float] = []
    for batch in batches:
        rows.append(flat(batch))
        vectors.append(model(rows[-1]["faces"], rows[-1]["bodies"], rows[-1]["there"]))
        values.append(metric_loss(config, vectors[-1], rows[-1]).item())
    whole = {name: torch.cat([one[name] for one in rows]) for name in ("character", "sequence", "series", "uncertain")}
    same, differ = (pairs.cpu().numpy() for pairs in relations(whole))
    series = whole["series"].cpu().numpy()
    mrr = query_mrr(torch.cat(vectors).float().cpu().numpy(), same, differ & (series[:, None] == series))
    return {"query_mrr": mrr, "valid_loss": float(np.mean(values))}


def make_model(config: FineTuneConfig, backbone: str) -> nn.Module:
    """An untrained head."""
    from actors.comic_characters.network import Head

    return Head(config.head, feature_size(backbone))


def fine_tune(config: ComicsConfig, plan: FineTunePlan) -> tuple[dict[str, Any], Trained]:
    """Compute missing features, then train; resumes. Returns the run record's values and the training."""
    import ray

    from pipelines.core.training import fit

    store, settings = Store(config.output), config.fine_tune
    stages = {"features": extract(config, plan.backbone, plan.todo)}
    if settings.augment:
        stages["views"] = extract_by(config, source_of(config, plan.backbone, settings.augment), plan.views)
    features = _whole(read_features(store, plan.backbone.folder, plan.instances), settings.head)
    bad = [one for one in plan.instances if features[one].error]
    names = ("series_id", "page_id", "face", "body", "error", "message")
    told = ((*one, features[one].error, features[one].message) for one in bad)
    rejected = [dict(zip(names, values, strict=True)) for values in told]
    store.replace_table("rejected/fine-tune", [pa.Table.from_pylist(rejected, REJECTED_INSTANCES)])
    width = feature_size(config.backbone.name)
    datasets: dict[str, Dataset] = {
        name: ray.data.from_items(part).materialize() for name, part in _rows(config, plan, features, width).items()
    }
    new = {"lone": True, "augment": None}
    about = {
        "fine_tune": {name: value for name, value in changed(settings, new).items() if name != "training"},
        "features": plan.backbone.folder,
        "sequences": hashlib.sha256(
            json.dumps([asdict(one) for one in (*plan.train, *plan.valid)]).encode()
        ).hexdigest(),
        "left_out": len(bad),
    }
    trained = fit(
        partial(make_model, settings, config.backbone.name),
        partial(loss, settings, width),
        partial(evaluate, settings),
        datasets,
        settings.training,
        output=store.uri(settings.folder),
        settings=about,
    )
    count = len(plan.instances)
    record = {
        "rows": {"in": count, "out": count - len(bad), "rejected": dict(Counter(features[one].error for one in bad))},
        "stages": stages,
        "sequences": {"train": len(plan.train), "valid": len(plan.valid)},
        "best": trained.history[trained.best_epoch - 1],
        "notes": mixed_features(Counter(one.computed for one in features.values()), plan.backbone.folder),
    }
    return record, trained


def _whole(features: dict[Instance, Features], head: HeadConfig) -> dict[Instance, Features]:
    """Features, with an error where an instance lacks the only part that the head takes."""
    only = ONE_PART.get(head.fusion)
    if not only:
        return features
    why = f"no {only}, and the head takes nothing else"
    return {
        one: found
        if found.error or getattr(found, only) is not None
        else found._replace(error=MISSING_PART, message=why)
        for one, found in features.items()
    }


def _rows(
    config: ComicsConfig, plan: FineTunePlan, features: dict[Instance, Features], width: int
) -> dict[str, list[dict[str, np.ndarray]]]:
    """Rows of `sequence_rows` for train and valid; those of training with the features of views behind the crops'."""
    longest = max(len(one.instances) for one in (*plan.train, *plan.valid))
    rows = {"valid": sequence_rows(plan.valid, features, width, longest)}
    if copies := config.fine_tune.augment:
        instances = [one for sequence in plan.train for one in sequence.instances]
        folder = views_folder(config, plan.backbone, copies)
        views = read_features(Store(config.output), folder, instances)
        features = {one: _with_views(features[one], views[one]) for one in instances}
        width *= copies.copies + 1
    return {"train": sequence_rows(plan.train, features, width, longest), **rows}


def _with_views(crop: Features, views: Features) -> Features:
    if crop.error or views.error:
        return crop if crop.error else views
    face, body = (
        None if one is None or more is None else np.concatenate([one, more])
        for one, more in zip(crop[:2], views[:2], strict=True)
    )
    return Features(face, body)

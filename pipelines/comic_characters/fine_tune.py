"""Stage 2: train a head on labelled sequences, so that vectors of one character are close.

The backbone stays frozen; its features are computed once. The head fuses a face and a body into one vector. Pairs that
are not known to differ are no negatives, unless fine_tune.uncertain is set.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from actors.comic_characters.instances import REJECTED_INSTANCES, Instance
from actors.comic_characters.network_settings import feature_size
from actors.core.checkpoints import Tensors
from actors.core.errors import UserError
from actors.core.store import Store
from pipelines.comic_characters.features import (
    Backbone,
    Features,
    extract,
    find_backbone,
    mixed_features,
    read_features,
    without_features,
)
from pipelines.comic_characters.sequences import Sequence, known_to_differ, read_sequences
from pipelines.comic_characters.settings import ComicsConfig, FineTuneConfig
from pipelines.core.float32 import in_float32

if TYPE_CHECKING:
    from ray.data import Dataset
    from torch import Tensor, nn

    from pipelines.core.training import Trained

LOSSES = {
    "contrastive": "ContrastiveLoss",
    "triplet": "TripletMarginLoss",
    "multi_similarity": "MultiSimilarityLoss",
    "circle": "CircleLoss",
    "tuplet": "TupletMarginLoss",
    "n_pairs": "NPairsLoss",
}
"""Losses of pytorch-metric-learning, with its default margins and scales; contrastive and triplet use L2 distance."""
MINERS = {
    "multi_similarity": "MultiSimilarityMiner",
    "pair_margin": "PairMarginMiner",
    "triplet_margin": "TripletMarginMiner",
}
"""Miners of pytorch-metric-learning, with its defaults."""


@dataclass(frozen=True)
class FineTunePlan:
    """The sequences of training and validation, and the missing features."""

    train: list[Sequence]
    valid: list[Sequence]
    backbone: Backbone
    todo: list[Instance]

    @property
    def instances(self) -> list[Instance]:
        """The instances of all sequences, repeated where they are in several."""
        return [instance for one in (*self.train, *self.valid) for instance in one.instances]


def plan_fine_tuning(config: ComicsConfig) -> FineTunePlan:
    """Read the sequences and find missing features. Raises UserError where there are no sequences, or no backbone."""
    if not config.labels:
        raise UserError("labels: this setting is required")
    train, valid = (
        read_sequences(Store(config.labels).uri(f"{name}_sequences.json")) for name in ("train", "validation")
    )
    for name, sequences in (("train", train), ("validation", valid)):
        if not any(one.instances for one in sequences):
            raise UserError(f"{config.labels}/{name}_sequences.json has no instance")
    backbone = find_backbone(config)
    plan = FineTunePlan(train, valid, backbone, [])
    todo = without_features(Store(config.output), backbone.folder, plan.instances)
    return FineTunePlan(train, valid, backbone, todo)


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


def relations(rows: Tensors) -> tuple[Tensor, Tensor]:
    """Which pairs are the same character, and which are known to differ: bool (N, N) each."""
    import torch

    columns = [rows[name].cpu().numpy() for name in ("character", "sequence", "series", "uncertain")]
    differ = torch.from_numpy(known_to_differ(*columns)).to(rows["character"].device)
    same = rows["character"][:, None] == rows["character"]
    return same & ~torch.eye(len(same), dtype=torch.bool, device=same.device), differ


def masked(there: Tensor, share: float) -> Tensor:
    """Hide the face or the body of this share of the instances that have both."""
    import torch

    both = there.all(1)
    hidden = (torch.rand(len(there), device=there.device) < share) & both
    part = torch.rand(len(there), device=there.device) < 0.5
    return there & ~(hidden[:, None] & torch.stack([part, ~part], 1))


def loss(config: FineTuneConfig, model: nn.Module, batch: Tensors) -> Tensor:
    """The metric loss over all instances of a batch of sequences."""
    rows = flat(batch)
    there = masked(rows["there"], config.mask) if config.mask and model.training else rows["there"]
    return metric_loss(config, model(rows["faces"], rows["bodies"], there), rows)


@in_float32
def metric_loss(config: FineTuneConfig, found: Tensor, rows: Tensors) -> Tensor:
    """The loss of vectors (N, D) of the rows of `flat`."""
    import torch
    from pytorch_metric_learning import losses, miners

    labels, criterion = rows["character"], getattr(losses, LOSSES[config.loss])()
    if config.loss == "n_pairs" or config.miner != "none":
        # These treat all other labels as negatives, so they get groups in which all others are known to differ.
        groups = [torch.arange(len(labels), device=labels.device)] if config.uncertain else _sure_groups(rows)
        if config.loss == "n_pairs":
            return torch.stack([criterion(found[group], labels[group]) for group in groups]).mean()
        miner = getattr(miners, MINERS[config.miner])()
        mined = [[group[some] for some in miner(found[group].detach(), labels[group])] for group in groups]
        return criterion(found, labels, tuple(torch.cat(some) for some in zip(*mined, strict=True)))
    same, differ = relations(rows)
    if config.uncertain:
        differ = labels[:, None] != labels
    return criterion(found, labels, (*torch.where(same), *torch.where(differ)))


def _sure_groups(rows: Tensors) -> list[Tensor]:
    """Row numbers in groups whose pairs are all known to be the same or to differ: one sequence per series in each."""
    import torch

    groups: dict[int, list[Tensor]] = {}
    for series in rows["series"].unique():
        for number, sequence in enumerate(rows["sequence"][rows["series"] == series].unique()):
            chosen = torch.where((rows["sequence"] == sequence) & ~rows["uncertain"])[0]
            groups.setdefault(number, []).append(chosen)
    return [torch.cat(chosen) for chosen in groups.values()]


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
    features = read_features(store, plan.backbone.folder, plan.instances)
    bad = [one for one in plan.instances if features[one].error]
    names = ("series_id", "page_id", "face", "body", "error", "message")
    told = ((*one, features[one].error, features[one].message) for one in bad)
    rejected = [dict(zip(names, values, strict=True)) for values in told]
    store.replace_table("rejected/fine-tune", [pa.Table.from_pylist(rejected, REJECTED_INSTANCES)])
    width = feature_size(config.backbone.name)
    longest = max(len(one.instances) for one in (*plan.train, *plan.valid))
    rows = {
        name: sequence_rows(sequences, features, width, longest)
        for name, sequences in (("train", plan.train), ("valid", plan.valid))
    }
    datasets: dict[str, Dataset] = {name: ray.data.from_items(part).materialize() for name, part in rows.items()}
    about = {
        "fine_tune": {name: value for name, value in asdict(settings).items() if name != "training"},
        "features": plan.backbone.folder,
        "sequences": hashlib.sha256(
            json.dumps([asdict(one) for one in (*plan.train, *plan.valid)]).encode()
        ).hexdigest(),
        "left_out": len(bad),
    }
    trained = fit(
        partial(make_model, settings, config.backbone.name),
        partial(loss, settings),
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

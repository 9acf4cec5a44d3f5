"""Stage 1: train the backbone on pairs of a face and its body, without labels.

Every pair has two views. Loss = NT-Xent(face, face') + NT-Xent(body, body') + NT-Xent(face, body); the last one, the
identity term, makes a face and its own body similar. NT-Xent is that of Chen et al., "A Simple Framework for
Contrastive Learning of Visual Representations", 2020; negatives come from all workers.
"""

import hashlib
import json
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import asdict
from functools import partial
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from actors.comic_characters.network import make_backbone
from actors.comic_characters.network_settings import feature_size
from actors.comic_characters.pairs import KEY, REJECTED_PAIRS
from actors.core.checkpoints import Tensors
from actors.core.store import Store
from pipelines.comic_characters.augment import views
from pipelines.comic_characters.distributed import SharedBatchNorm, gathered
from pipelines.comic_characters.pairs import PARTS, PretrainPlan, dataset, decode_pairs, prepared
from pipelines.comic_characters.settings import ComicsConfig, PretrainConfig
from pipelines.comic_characters.validation import (
    RELATIONS,
    features_of,
    identity_retrieval,
    labels_of,
    validation_of,
    view_retrieval,
)
from pipelines.core.float32 import in_float32
from pipelines.core.ray_data import set_context
from pipelines.core.training import Trained, fit

log = logging.getLogger(__name__)

# ----------------------------------------------------------------------------------------------------------------- loss


@in_float32
def nt_xent(first: Tensor, second: Tensor, temperature: float, everyones: bool = True) -> tuple[Tensor, Tensor]:
    """The loss of two views (n, D) with rows of length 1; equal row numbers are partners.

    Each vector has to find its partner among all others of both views; with `everyones`, among those of all workers.
    Returns the mean over this worker's 2n vectors, and the rank of each one's partner, from 1, (2n,): among equal
    similarities wrong answers come first, as in `rank_scores`.
    """
    left, begin = gathered(first) if everyones else (first, 0)
    right, _ = gathered(second) if everyones else (second, 0)
    count, rows = len(left), torch.arange(len(first), device=first.device) + begin
    mine, partner = torch.cat([rows, rows + count]), torch.cat([rows + count, rows])
    logits = torch.cat([first, second]) @ torch.cat([left, right]).T / temperature
    logits = logits.scatter(1, mine[:, None], -torch.inf)
    positive = logits.detach().gather(1, partner[:, None])
    # The partner itself is not below itself; nor is what is not a number, which thus comes last.
    return cross_entropy(logits, partner), (~(logits.detach() < positive)).sum(1)


class Contrastive(nn.Module):
    """The ResNet that faces and bodies share, and a projection head for training only."""

    def __init__(self, backbone: str, dimensions: int) -> None:
        super().__init__()
        self.backbone = make_backbone(backbone, SharedBatchNorm)
        width = feature_size(backbone)
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [nn.Linear(width, width, bias=False), SharedBatchNorm(width), nn.ReLU(inplace=True)]
        self.head = nn.Sequential(
            *layers, nn.Linear(width, dimensions, bias=False), SharedBatchNorm(dimensions, affine=False)
        )

    def forward(self, *groups: Tensor) -> tuple[Tensor, ...]:
        """Groups of pictures (N, 3, S, S), one size per group, to vectors (N, D) of length 1."""
        return tuple(normalize(self.head(self.backbone(pictures)).float(), dim=1) for pictures in groups)


def terms(
    model: nn.Module,
    batch: Tensors,
    config: PretrainConfig,
    generator: torch.Generator | None = None,
    everyones: bool = True,
) -> dict[str, tuple[Tensor, Tensor]]:
    """Loss and ranks of `nt_xent` for face, body and, unless switched off, identity.

    batch: face and body, uint8 (N, S, S, 3), pairs by row.
    """
    pairs = _pairs(model, batch, config, generator)
    return {name: nt_xent(left, right, config.temperature, everyones) for name, (left, right) in pairs.items()}


def _pairs(
    model: nn.Module, batch: Tensors, config: PretrainConfig, generator: torch.Generator | None
) -> dict[str, tuple[Tensor, Tensor]]:
    """By term, the vectors (N, D) that should be alike."""
    seen = [
        torch.cat([views(batch[kind], config.views, generator) for _ in range(2)]).contiguous(
            memory_format=torch.channels_last
        )
        for kind in ("face", "body")
    ]
    faces, bodies = (vectors.chunk(2) for vectors in model(*seen))
    return {"face": faces, "body": bodies} | ({"identity": (faces[0], bodies[0])} if config.identity else {})


def loss(config: PretrainConfig, model: nn.Module, batch: Tensors) -> Tensor:
    """The sum of the terms over a batch."""
    return torch.stack([value for value, _ in terms(model, batch, config).values()]).sum()


def evaluate(
    config: PretrainConfig, model: nn.Module, batches: Iterable[Tensors], by: str = "views"
) -> dict[str, float]:
    """retrieval, by identities or views; valid_loss; and for each term its loss, and the partner's ranks in a batch.

    The views are the same in every epoch. All values but those of retrieval depend on the batch size.
    """
    sums: defaultdict[str, float] = defaultdict(float)
    count = 0
    generator: torch.Generator | None = None
    sides: defaultdict[str, list[tuple[Tensor, Tensor]]] = defaultdict(list)
    features, labels = [], []
    for batch in batches:
        device = batch["face"].device
        generator = generator or torch.Generator(device).manual_seed(config.training.seed)
        rows = len(batch["face"])
        count += rows
        for name, (left, right) in _pairs(model, batch, config, generator).items():
            value, positions = nt_xent(left, right, config.temperature, everyones=False)
            sides[name].append((left, right))
            found = positions.float()
            sums[f"{name}_loss"] += value.item() * rows
            sums[f"{name}_acc_top1"] += (found <= 1).float().mean().item() * rows
            sums[f"{name}_acc_top5"] += (found <= 5).float().mean().item() * rows
            sums[f"{name}_mean_position"] += found.mean().item() * rows
        if by == "identities":
            features.append(features_of(_backbone(model), batch).cpu())
            labels.append(torch.stack([batch[name] for name in RELATIONS], 1).cpu())
    means = {name: total / count for name, total in sums.items()}
    ranks = [view_retrieval(*(torch.cat(side) for side in zip(*parts, strict=True))) for name, parts in sides.items()]
    retrieval = {"view_mrr": sum(ranks) / len(ranks)}
    if by == "identities":
        retrieval["identity_map_at_r"] = identity_retrieval(torch.cat(features).numpy(), torch.cat(labels).numpy())
    best = retrieval["identity_map_at_r" if by == "identities" else "view_mrr"]
    loss_ = sum(value for name, value in means.items() if name.endswith("_loss"))
    return {"retrieval": best, **retrieval, "valid_loss": loss_, **means}


def _backbone(model: nn.Module) -> nn.Module:
    assert isinstance(model, Contrastive)
    return model.backbone


# ------------------------------------------------------------------------------------------------------------- training


def make_model(backbone: str, dimensions: int) -> nn.Module:
    """An untrained network."""
    return Contrastive(backbone, dimensions)


def pretrain(config: ComicsConfig, plan: PretrainPlan) -> tuple[dict[str, Any], Trained]:
    """Decode missing pairs, then train; resumes. Returns the run record's values and the training."""
    store, settings = Store(config.output), config.pretrain
    store.write_json(config.backbone.sizes(), "pairs.json")
    started = time.monotonic()
    if len(plan.todo):
        decode_pairs(config, plan.todo)
    decoded = time.monotonic() - started
    rows = plan.pairs.merge(prepared(store), "left", on=KEY)
    bad = rows[rows.error != ""]
    store.replace_table("rejected/pairs", [pa.Table.from_pandas(bad, REJECTED_PAIRS, preserve_index=False)])
    set_context()
    groups = {part: {name for name, where in plan.parts.items() if where == part} for part in PARTS}
    sound = rows[rows.error == ""][KEY]
    valid = sound[sound.series_id.isin(groups["valid"])]
    known = labels_of(config.labels, valid)
    validated = validation_of(known, len(valid))
    log.info("%s", validated.said)
    sizes = config.backbone.sizes()
    datasets = {
        "train": dataset(store, groups["train"], sizes),
        "valid": dataset(store, groups["valid"], sizes, known, RELATIONS),
    }
    about = {
        "backbone": asdict(config.backbone),
        "pretrain": {name: value for name, value in asdict(settings).items() if name not in ("training", "decode")},
        "pairs": hashlib.sha256(json.dumps(sound.to_numpy().tolist()).encode()).hexdigest(),
        "validation": [validated.by, hashlib.sha256(json.dumps(sorted(known.items())).encode()).hexdigest()],
    }
    started = time.monotonic()
    trained = fit(
        partial(make_model, config.backbone.name, settings.dimensions),
        partial(loss, settings),
        partial(evaluate, settings, by=validated.by),
        datasets,
        settings.training,
        output=store.uri(settings.folder),
        settings=about,
    )
    trained_s = time.monotonic() - started
    counts = rows[rows.error == ""].series_id.map(plan.parts).value_counts()
    batch = settings.training.batch_size
    seen = (len(trained.history) - trained.resumed_from) * (int(counts.get("train", 0)) // batch) * batch
    record = {
        "rows": {"in": len(rows), "out": len(rows) - len(bad), "rejected": dict(Counter(bad.error.tolist()))},
        "stages": {
            "decode": {"rows": len(plan.todo), "seconds": round(decoded, 1)},
            "train": {"rows": seen, "seconds": round(trained_s, 1)},
        },
        "alone": plan.alone,
        "series": {part: sorted(names) for part, names in groups.items()},
        "pairs": {part: int(counts.get(part, 0)) for part in PARTS},
        "best": trained.history[trained.best_epoch - 1],
        "best_by": {"retrieval": validated.by, "queries": validated.queries},
    }
    return record, trained

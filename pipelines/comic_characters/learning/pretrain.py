"""Stage 1: train the backbone, or one each for faces and bodies, on pairs of a face and its body, without labels.

Every pair has two views. Loss = NT-Xent(face, face') + NT-Xent(body, body') + NT-Xent(face, body); the last one, the
identity term, makes a face and its own body similar. NT-Xent is that of Chen et al., "A Simple Framework for
Contrastive Learning of Visual Representations", 2020; negatives come from all workers.
"""

import hashlib
import json
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import pandas as pd
import pyarrow as pa
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from actors.comic_characters.augment import views
from actors.comic_characters.instances import Instance
from actors.comic_characters.network import HIDDEN, make_backbone, make_projection
from actors.comic_characters.network_settings import KINDS, feature_size
from actors.comic_characters.pairs import KEY, REJECTED_PAIRS
from actors.core.checkpoints import Tensors
from actors.core.store import Store
from pipelines.comic_characters.learning.distributed import SharedBatchNorm, gathered
from pipelines.comic_characters.learning.pairs import PARTS, PretrainPlan, dataset, decode_pairs, prepared
from pipelines.comic_characters.learning.validation import (
    RELATIONS,
    Validation,
    features_of,
    identity_retrieval,
    labels_of,
    validation_of,
    view_retrieval,
)
from pipelines.comic_characters.settings import ComicsConfig, PretrainConfig
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
    """A ResNet, and a projection head for training only."""

    def __init__(self, backbone: str, dimensions: int) -> None:
        super().__init__()
        self.backbone = make_backbone(backbone, SharedBatchNorm)
        self.head = make_projection(feature_size(backbone), dimensions, SharedBatchNorm)

    def forward(self, *groups: Tensor) -> tuple[Tensor, ...]:
        """Groups of pictures (N, 3, S, S), one size per group, to vectors (N, D) of length 1."""
        return tuple(normalize(self.head(self.backbone(pictures)).float(), dim=1) for pictures in groups)


class Separate(nn.Module):
    """A network for faces and one for bodies."""

    def __init__(self, backbone: str, dimensions: int) -> None:
        super().__init__()
        self.face, self.body = (Contrastive(backbone, dimensions) for _ in range(2))

    def forward(self, faces: Tensor, bodies: Tensor) -> tuple[Tensor, ...]:
        """Pictures of both to vectors (N, D) of length 1 of both."""
        return *self.face(faces), *self.body(bodies)


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
    config: PretrainConfig,
    model: nn.Module,
    batches: Iterable[Tensors],
    by: str = "views",
    projection: bool = False,
) -> dict[str, float]:
    """retrieval, by identities or views; valid_loss; and for each term its loss, and the partner's ranks in a batch.

    projection: whether identities are searched by features behind hidden layers of the projection head.

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
            features.append(features_of(networks_of(model, projection), batch).cpu())
            labels.append(torch.stack([batch[name] for name in RELATIONS], 1).cpu())
    means = {name: total / count for name, total in sums.items()}
    ranks = [view_retrieval(*(torch.cat(side) for side in zip(*parts, strict=True))) for name, parts in sides.items()]
    retrieval = {"view_mrr": sum(ranks) / len(ranks)}
    if by == "identities":
        retrieval["identity_map_at_r"] = identity_retrieval(torch.cat(features).numpy(), torch.cat(labels).numpy())
    best = retrieval["identity_map_at_r" if by == "identities" else "view_mrr"]
    loss_ = sum(value for name, value in means.items() if name.endswith("_loss"))
    return {"retrieval": best, **retrieval, "valid_loss": loss_, **means}


def networks_of(model: nn.Module, projection: bool = False) -> dict[str, nn.Module]:
    """What gives features, by kind: the ResNets, and of the projection head its hidden layers or nothing."""
    assert isinstance(model, Contrastive | Separate)
    both = {kind: model if isinstance(model, Contrastive) else getattr(model, kind) for kind in KINDS}
    return {
        kind: nn.Sequential(one.backbone, one.head[:HIDDEN]) if projection else one.backbone
        for kind, one in both.items()
    }


# ------------------------------------------------------------------------------------------------------------- training


def make_model(backbone: str, dimensions: int, shared: bool = True) -> nn.Module:
    """An untrained network, or two."""
    return Contrastive(backbone, dimensions) if shared else Separate(backbone, dimensions)


def pretrain(config: ComicsConfig, plan: PretrainPlan) -> tuple[dict[str, Any], Trained]:
    """Decode missing pairs, then train; resumes. Returns the run record's values and the training."""
    store = Store(config.output)
    started = time.monotonic()
    rows = _decoded(config, plan, store)
    decoded, started = time.monotonic() - started, time.monotonic()
    sound = rows[rows.error == ""]
    valid = sound[sound.series_id.map(plan.parts) == "valid"][KEY]
    known = labels_of(config.labels, valid, config.identities)
    validated = validation_of(known, len(valid))
    log.info("%s", validated.said)
    trained = _train(config, plan, sound[KEY], known, validated)
    trained_s = time.monotonic() - started
    counts = sound.series_id.map(plan.parts).value_counts()
    batch = config.pretrain.training.batch_size
    seen = (len(trained.history) - trained.resumed_from) * (int(counts.get("train", 0)) // batch) * batch
    codes = dict(Counter(rows[rows.error != ""].error.tolist()))
    record = {
        "rows": {"in": len(rows), "out": len(sound), "rejected": codes},
        "stages": {
            "decode": {"rows": len(plan.todo), "seconds": round(decoded, 1)},
            "train": {"rows": seen, "seconds": round(trained_s, 1)},
        },
        "alone": plan.alone,
        "series": {part: sorted(names) for part, names in _series(plan).items()},
        "pairs": {part: int(counts.get(part, 0)) for part in PARTS},
        "best": trained.history[trained.best_epoch - 1],
        "best_by": {"retrieval": validated.by, "queries": validated.queries},
    }
    return record, trained


def _decoded(config: ComicsConfig, plan: PretrainPlan, store: Store) -> pd.DataFrame:
    """The pairs with their errors, after those that are missing have been decoded."""
    store.write_json(config.backbone.sizes(), "pairs.json")
    if len(plan.todo):
        decode_pairs(config, plan.todo)
    rows = plan.pairs.merge(prepared(store), "left", on=KEY)
    bad = pa.Table.from_pandas(rows[rows.error != ""], REJECTED_PAIRS, preserve_index=False)
    store.replace_table("rejected/pairs", [bad])
    return rows


def _series(plan: PretrainPlan) -> dict[str, set[str]]:
    return {part: {name for name, where in plan.parts.items() if where == part} for part in PARTS}


def _train(
    config: ComicsConfig,
    plan: PretrainPlan,
    sound: pd.DataFrame,
    known: Mapping[Instance, tuple[int, int, int, int]],
    validated: Validation,
) -> Trained:
    """Train on the sound pairs (columns of KEY). known: labels of validation pairs."""
    set_context()
    store, settings, sizes, groups = Store(config.output), config.pretrain, config.backbone.sizes(), _series(plan)
    datasets = {
        "train": dataset(store, groups["train"], sizes),
        "valid": dataset(store, groups["valid"], sizes, known, RELATIONS),
    }
    about = {
        "backbone": config.backbone.described(),
        "pretrain": {name: value for name, value in asdict(settings).items() if name not in ("training", "decode")},
        "pairs": hashlib.sha256(json.dumps(sound.to_numpy().tolist()).encode()).hexdigest(),
        "validation": [validated.by, hashlib.sha256(json.dumps(sorted(known.items())).encode()).hexdigest()],
    }
    return fit(
        partial(make_model, config.backbone.name, settings.dimensions, config.backbone.shared),
        partial(loss, settings),
        partial(evaluate, settings, by=validated.by, projection=config.backbone.projection),
        datasets,
        settings.training,
        output=store.uri(settings.folder),
        settings=about,
    )

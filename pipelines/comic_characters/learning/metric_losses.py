"""Metric losses over what is known: pairs that may be the same character are no negatives, unless asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from actors.core.checkpoints import Tensors
from pipelines.comic_characters.learning.loss_settings import LossConfig, MinerConfig
from pipelines.comic_characters.sequences import known_to_differ
from pipelines.comic_characters.settings import FineTuneConfig
from pipelines.core.float32 import in_float32

if TYPE_CHECKING:
    from torch import Tensor

LOSSES = {
    "contrastive": "ContrastiveLoss",
    "triplet": "TripletMarginLoss",
    "multi_similarity": "MultiSimilarityLoss",
    "circle": "CircleLoss",
    "tuplet": "TupletMarginLoss",
    "n_pairs": "NPairsLoss",
    "intra_pair_variance": "IntraPairVarianceLoss",
}
"""Losses of pytorch-metric-learning."""
MINERS = {
    "multi_similarity": "MultiSimilarityMiner",
    "pair_margin": "PairMarginMiner",
    "triplet_margin": "TripletMarginMiner",
}
"""Miners of pytorch-metric-learning."""
DISTANCES = {"lp": "LpDistance", "cosine": "CosineSimilarity", "dot": "DotProductSimilarity"}
REDUCERS = {"mean": "MeanReducer", "sum": "SumReducer", "avg_non_zero": "AvgNonZeroReducer"}


def make_loss(config: LossConfig) -> Any:
    """The loss of pytorch-metric-learning."""
    from pytorch_metric_learning import distances, losses, reducers

    made: dict[str, Any] = dict(config.options)
    if config.distance:
        made["distance"] = getattr(distances, DISTANCES[config.distance])()
    if config.reducer:
        made["reducer"] = getattr(reducers, REDUCERS[config.reducer])()
    return getattr(losses, LOSSES[config.name])(**made)


def make_miner(config: MinerConfig) -> Any:
    """The miner of pytorch-metric-learning."""
    from pytorch_metric_learning import distances, miners

    made: dict[str, Any] = dict(config.options)
    if config.distance:
        made["distance"] = getattr(distances, DISTANCES[config.distance])()
    return getattr(miners, MINERS[config.name])(**made)


def relations(rows: Tensors) -> tuple[Tensor, Tensor]:
    """Which pairs are the same character, and which are known to differ: bool (N, N) each."""
    import torch

    columns = [rows[name].cpu().numpy() for name in ("character", "sequence", "series", "uncertain")]
    differ = torch.from_numpy(known_to_differ(*columns)).to(rows["character"].device)
    same = rows["character"][:, None] == rows["character"]
    return same & ~torch.eye(len(same), dtype=torch.bool, device=same.device), differ


@in_float32
def metric_loss(config: FineTuneConfig, found: Tensor, rows: Tensors) -> Tensor:
    """The loss of vectors (N, D) of the rows of `flat`: the weighted sum of all losses."""
    import torch

    labels, pairs = rows["character"], None
    values = []
    for one in config.losses:
        criterion = make_loss(one)
        if one.name == "n_pairs":
            # It picks its own pairs, and treats all other labels as negatives.
            own = [criterion(found[group], labels[group]) for group in _groups(config, rows)]
            value = torch.stack(own).mean()
        else:
            pairs = pairs or _pairs(config, found, rows)
            value = criterion(found, labels, pairs)
        values.append(one.weight * value)
    return torch.stack(values).sum()


def _pairs(config: FineTuneConfig, found: Tensor, rows: Tensors) -> tuple[Tensor, ...]:
    """Row numbers of pairs or triplets: those that the miner picks, or all of which enough is known."""
    import torch

    labels = rows["character"]
    if config.mined:
        miner = make_miner(config.mined)
        groups = _groups(config, rows)
        mined = [[group[some] for some in miner(found[group].detach(), labels[group])] for group in groups]
        return tuple(torch.cat(some) for some in zip(*mined, strict=True))
    same, differ = relations(rows)
    if config.uncertain:
        differ = labels[:, None] != labels
    return *torch.where(same), *torch.where(differ)


def _groups(config: FineTuneConfig, rows: Tensors) -> list[Tensor]:
    """Row numbers in groups whose pairs are all known to be the same or to differ: one sequence per series in each.

    With `uncertain`, all rows are one group.
    """
    import torch

    if config.uncertain:
        return [torch.arange(len(rows["character"]), device=rows["character"].device)]
    groups: dict[int, list[Tensor]] = {}
    for series in rows["series"].unique():
        for number, sequence in enumerate(rows["sequence"][rows["series"] == series].unique()):
            chosen = torch.where((rows["sequence"] == sequence) & ~rows["uncertain"])[0]
            groups.setdefault(number, []).append(chosen)
    return [torch.cat(chosen) for chosen in groups.values()]

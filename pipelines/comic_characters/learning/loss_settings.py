"""Settings of metric losses and miners of pytorch-metric-learning; imports no torch."""

from dataclasses import dataclass, field
from typing import Literal

from actors.core.errors import UserError

LossName = Literal["contrastive", "triplet", "multi_similarity", "circle", "tuplet", "n_pairs", "intra_pair_variance"]
MinerName = Literal["multi_similarity", "pair_margin", "triplet_margin"]
Distance = Literal["lp", "cosine", "dot"]
Reducer = Literal["mean", "sum", "avg_non_zero"]
OPTIONS: dict[str, tuple[str, ...]] = {
    "contrastive": ("pos_margin", "neg_margin"),
    "triplet": ("margin",),
    "multi_similarity": ("alpha", "beta", "base"),
    "circle": ("m", "gamma"),
    "tuplet": ("margin", "scale"),
    "n_pairs": (),
    "intra_pair_variance": ("pos_eps", "neg_eps"),
}
"""Numbers that a loss takes, by their names in pytorch-metric-learning."""
MINER_OPTIONS: dict[str, tuple[str, ...]] = {
    "multi_similarity": ("epsilon",),
    "pair_margin": ("pos_margin", "neg_margin"),
    "triplet_margin": ("margin",),
}
"""Numbers that a miner takes, by their names in pytorch-metric-learning."""
NEEDS: dict[str, tuple[Distance, ...]] = {"circle": ("cosine",), "tuplet": ("cosine",), "n_pairs": ("cosine", "dot")}
"""Distances that a loss is defined for, where it is not for all."""


@dataclass(frozen=True)
class LossConfig:
    """A metric loss of pytorch-metric-learning, and its part in the sum of all."""

    name: LossName
    """Kind of the loss."""
    weight: float = 1.0
    """Factor of this loss in the sum, above 0."""
    distance: Distance | None = None
    """Distance of vectors: lp (Euclidean), or the similarities cosine and dot. null: the loss's own, which is lp for
    contrastive and triplet, dot for n_pairs, else cosine."""
    reducer: Reducer | None = None
    """How the losses of pairs become one: mean; sum; avg_non_zero (mean of those above 0). null: the loss's own."""
    options: dict[str, float] = field(default_factory=dict)
    """Numbers that the loss takes, such as {margin: 0.2}: margin for triplet; pos_margin, neg_margin for contrastive;
    alpha, beta, base for multi_similarity; m, gamma for circle; margin, scale for tuplet; pos_eps, neg_eps for
    intra_pair_variance. What is left out has the library's default."""

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise UserError(f"fine_tune.loss: weight of {self.name} must be above 0, not {self.weight}")
        _check_options("fine_tune.loss", self.name, OPTIONS[self.name], self.options)
        if self.distance and self.distance not in NEEDS.get(self.name, (self.distance,)):
            raise UserError(
                f"fine_tune.loss: {self.name} needs distance={' or '.join(NEEDS[self.name])}, not {self.distance}"
            )
        if self.name == "contrastive":
            _check_margins(
                "fine_tune.loss", self.name, self.distance, {"pos_margin": 0, "neg_margin": 1} | self.options
            )


@dataclass(frozen=True)
class MinerConfig:
    """A miner of pytorch-metric-learning, which picks the pairs or triplets for the loss."""

    name: MinerName
    """Kind of the miner."""
    distance: Distance | None = None
    """Distance of vectors by which it picks: lp (Euclidean), or the similarities cosine and dot. null: the miner's own,
    which is cosine for multi_similarity, else lp."""
    options: dict[str, float] = field(default_factory=dict)
    """Numbers that the miner takes: epsilon for multi_similarity; pos_margin, neg_margin for pair_margin; margin for
    triplet_margin. What is left out has the library's default."""

    def __post_init__(self) -> None:
        _check_options("fine_tune.miner", self.name, MINER_OPTIONS[self.name], self.options)
        if self.name == "pair_margin":
            margins = {"pos_margin": 0.2, "neg_margin": 0.8} | self.options
            _check_margins("fine_tune.miner", self.name, self.distance, margins)


def _check_options(where: str, name: str, known: tuple[str, ...], options: dict[str, float]) -> None:
    if wrong := [option for option in options if option not in known]:
        raise UserError(f"{where}: {name} has no option {', '.join(wrong)}. It has: {', '.join(known) or 'none'}.")


def _check_margins(where: str, name: str, distance: Distance | None, margins: dict[str, float]) -> None:
    positive, negative = margins["pos_margin"], margins["neg_margin"]
    alike = distance in ("cosine", "dot")
    if (positive <= negative) if alike else (positive >= negative):
        least = "above" if alike else "below"
        raise UserError(
            f"{where}: with distance={distance or 'lp'}, pos_margin of {name} must be {least} neg_margin, not "
            f"{positive} and {negative}. Set options, such as "
            + ("{pos_margin: 1, neg_margin: 0}." if alike else "{pos_margin: 0, neg_margin: 1}.")
        )

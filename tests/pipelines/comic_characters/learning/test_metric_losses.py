"""Losses with their margins, distances and reducers, several at once, and what is refused before anything is loaded."""

import inspect
from typing import Any

import pytest
import torch
from pytorch_metric_learning import losses, miners
from torch import Tensor

from actors.core.errors import UserError
from pipelines.comic_characters.learning.loss_settings import MINER_OPTIONS, OPTIONS, LossConfig, MinerConfig
from pipelines.comic_characters.learning.metric_losses import LOSSES, MINERS, metric_loss
from pipelines.comic_characters.settings import FineTuneConfig

ROWS = {
    "character": torch.tensor([0, 0, 1]),
    "sequence": torch.zeros(3, dtype=torch.int64),
    "series": torch.zeros(3, dtype=torch.int64),
    "uncertain": torch.zeros(3, dtype=torch.bool),
}
VECTORS = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
"""Of one character 0.894 apart (cosine 0.6); the other 1.414 from the first (cosine 0), 0.632 from the second (0.8)."""
APART = [0.8**0.5, 2**0.5, 0.4**0.5]


def value(*many: LossConfig, **more: Any) -> float:
    return metric_loss(FineTuneConfig(loss=list(many), **more), VECTORS, ROWS).item()


def test_margins_of_the_contrastive_loss_by_hand() -> None:
    """Each pair twice, as both may be the anchor; means are over pairs with a loss."""
    assert value(LossConfig("contrastive")) == pytest.approx(APART[0] + (1 - APART[2]), abs=1e-4)
    found = value(LossConfig("contrastive", options={"pos_margin": 0.5, "neg_margin": 2}))
    assert found == pytest.approx(APART[0] - 0.5 + (4 - APART[1] - APART[2]) / 2, abs=1e-4)
    cosine = LossConfig("contrastive", distance="cosine", options={"pos_margin": 1, "neg_margin": 0})
    assert value(cosine) == pytest.approx(0.4 + 0.8, abs=1e-4)


def test_margins_and_reducers_of_the_triplet_loss_by_hand() -> None:
    """Two triplets: the anchor is the first (negative far away) or the second (negative nearer than the positive)."""
    second = APART[0] - APART[2] + 0.1
    for reducer, expected in (("mean", second / 2), ("sum", second), ("avg_non_zero", second)):
        one = LossConfig("triplet", reducer=reducer, options={"margin": 0.1})  # pyright: ignore[reportArgumentType]
        assert value(one) == pytest.approx(expected, abs=1e-4)
    cosine = LossConfig("triplet", distance="cosine", options={"margin": 0.1})
    assert value(cosine) == pytest.approx(0.8 - 0.6 + 0.1, abs=1e-4)


def test_several_losses_are_added_by_weight_with_their_gradients() -> None:
    both = [LossConfig("triplet", options={"margin": 0.2}), LossConfig("intra_pair_variance", weight=0.5)]
    both.append(LossConfig("n_pairs", weight=2))

    def gradient(*many: LossConfig) -> Tensor:
        vectors = VECTORS.clone().requires_grad_()
        metric_loss(FineTuneConfig(loss=list(many)), vectors, ROWS).backward()
        assert vectors.grad is not None
        return vectors.grad

    assert value(*both) == pytest.approx(sum(value(one) for one in both))
    torch.testing.assert_close(gradient(*both), torch.stack([gradient(one) for one in both]).sum(0))
    plain = metric_loss(FineTuneConfig(loss="triplet"), VECTORS, ROWS).item()
    assert value(LossConfig("triplet")) == plain


def test_a_miner_picks_by_its_margins() -> None:
    """With the wide margin all pairs are mined, with the narrow one only the near negative."""
    loss = LossConfig("contrastive", options={"neg_margin": 2}, reducer="sum")
    wide = MinerConfig("pair_margin", options={"pos_margin": 0, "neg_margin": 3})
    near = MinerConfig("pair_margin", options={"pos_margin": 0, "neg_margin": 1})
    assert value(loss, miner=wide) == pytest.approx(value(loss))
    assert value(loss, miner=near) == pytest.approx(value(loss) - 2 * (2 - APART[1]), abs=1e-3)


def test_options_are_those_of_the_library() -> None:
    for own, names, module in ((OPTIONS, LOSSES, losses), (MINER_OPTIONS, MINERS, miners)):
        assert own.keys() == names.keys()
        for name, options in own.items():
            taken = inspect.signature(getattr(module, names[name]).__init__).parameters
            assert set(options) <= set(taken), name


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"name": "triplet", "options": {"pos_margin": 1}}, "triplet has no option pos_margin. It has: margin"),
        ({"name": "circle", "distance": "lp"}, "circle needs distance=cosine, not lp"),
        ({"name": "n_pairs", "distance": "lp"}, "n_pairs needs distance=cosine or dot"),
        ({"name": "contrastive", "distance": "cosine"}, "pos_margin: 1, neg_margin: 0"),
        ({"name": "contrastive", "options": {"neg_margin": 0}}, "must be below neg_margin"),
        ({"name": "triplet", "weight": 0}, "must be above 0"),
    ],
)
def test_losses_that_cannot_be_are_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        LossConfig(**wrong)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"loss": []}, "loss is empty"),
        ({"loss": [LossConfig("n_pairs")], "miner": MinerConfig("triplet_margin")}, "picks its own pairs"),
    ],
)
def test_stages_that_cannot_be_are_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        FineTuneConfig(**wrong)

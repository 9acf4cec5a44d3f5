"""What a head is validated by."""

import math

import pytest
import torch
from torch import nn

from actors.directors.head import head_values


def test_accuracy_counts_a_tie_as_its_fair_share() -> None:
    logits = torch.tensor([[2.0, 0, 0], [1, 1, 0], [0, 0, 0], [0, 3, 0]])
    batch = {"vector": logits, "label": torch.tensor([0, 1, 0, 2])}
    values = head_values(nn.Identity(), [batch, batch], [1.0, 1.0, 1.0])
    assert values["valid_accuracy"] == pytest.approx((1 + 1 / 2 + 1 / 3 + 0) / 4)
    nothing = {"vector": torch.full((1, 3), math.nan), "label": torch.tensor([0])}
    assert math.isnan(head_values(nn.Identity(), [nothing], [1.0, 1.0, 1.0])["valid_accuracy"])

"""The head that classifies the vector of a single frame by director, its loss and its validation."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from actors.core.checkpoints import Tensors
from actors.directors.head_settings import HeadConfig


class FrameHead(nn.Module):
    """Two layers on the vector of a single picture, standardised to mean 0 and standard deviation 1.

    Takes vectors float (B, D), returns logits (B, C).
    """

    mean: Tensor
    """float32 (D,), mean of the training vectors."""
    scale: Tensor
    """float32 (D,), standard deviation of the training vectors."""

    def __init__(self, dimensions: int, classes: int, hidden: int = 128, dropout: float = 0.5) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dimensions))
        self.register_buffer("scale", torch.ones(dimensions))
        self.layers = nn.Sequential(
            nn.Linear(dimensions, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, classes)
        )

    def forward(self, vectors: Tensor) -> Tensor:
        return self.layers((vectors.float() - self.mean) / self.scale)


def make_head(config: HeadConfig, mean: list[float], scale: list[float], classes: int) -> FrameHead:
    """A head with its initial weights, and the mean and deviation of the training vectors (D values each)."""
    head = FrameHead(len(mean), classes, config.hidden, config.dropout)
    head.mean.copy_(torch.tensor(mean))
    head.scale.copy_(torch.tensor(scale))
    return head


def head_loss(model: Any, batch: Tensors, weights: list[float]) -> Tensor:
    """Mean cross-entropy of a batch, each row multiplied by the weight of its class.

    weights: C values whose mean over the training rows is 1.
    """
    losses = cross_entropy(model(batch["vector"]), batch["label"], reduction="none")
    return (losses * torch.tensor(weights, device=losses.device)[batch["label"]]).mean()


def head_values(model: Any, batches: Iterable[Tensors], weights: list[float]) -> dict[str, float]:
    """Loss and accuracy over the validation rows; of equally likely directors each counts as its fair share."""
    loss = right = rows = 0.0
    for batch in batches:
        logits, labels = model(batch["vector"]), batch["label"]
        each = cross_entropy(logits, labels, reduction="none")
        loss += float((each * torch.tensor(weights, device=each.device)[labels]).sum())
        best = logits == logits.amax(1, keepdim=True)
        right += float((best.gather(1, labels[:, None])[:, 0] / best.sum(1)).sum())
        rows += len(labels)
    return {"valid_loss": loss / rows, "valid_accuracy": right / rows}

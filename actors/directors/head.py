"""The head that classifies a frame's vector by director."""

import torch
from torch import Tensor, nn


class FrameHead(nn.Module):
    """Two layers on the vector of a single picture, each of its values brought to mean 0 and deviation 1.

    Takes vectors float (B, D), gives logits (B, C).
    """

    mean: Tensor
    """float32 (D,), of the pictures it was trained on, as is `scale`."""
    scale: Tensor

    def __init__(self, dimensions: int, classes: int, hidden: int = 128, dropout: float = 0.5) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dimensions))
        self.register_buffer("scale", torch.ones(dimensions))
        self.layers = nn.Sequential(
            nn.Linear(dimensions, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, classes)
        )

    def forward(self, vectors: Tensor) -> Tensor:
        return self.layers((vectors.float() - self.mean) / self.scale)

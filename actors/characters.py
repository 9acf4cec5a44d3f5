"""The ResNet that faces and bodies share."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from actors.crops import Kind

RESNETS: dict[str, tuple[type[BasicBlock | Bottleneck], list[int]]] = {
    "resnet10": (BasicBlock, [1, 1, 1, 1]),
    "resnet18": (BasicBlock, [2, 2, 2, 2]),
    "resnet34": (BasicBlock, [3, 4, 6, 3]),
    "resnet50": (Bottleneck, [3, 4, 6, 3]),
    "resnet101": (Bottleneck, [3, 4, 23, 3]),
}
"""Kind and number of blocks, as torchvision has them; resnet10 is for CPUs."""


@dataclass(frozen=True)
class BackboneConfig:
    """The network that faces and bodies share, and the size at which it sees them."""

    name: Literal["resnet10", "resnet18", "resnet34", "resnet50", "resnet101"] = "resnet50"
    """Its architecture."""
    face_size: int = 96
    """Pixels of a face's square."""
    body_size: int = 128
    """Pixels of the square that a body is fitted into."""

    def __post_init__(self) -> None:
        if min(self.face_size, self.body_size) < 16:
            raise ValueError(f"face_size and body_size start at 16: {self}")

    def sizes(self) -> dict[Kind, int]:
        """Pixels of a side, by kind."""
        return {"face": self.face_size, "body": self.body_size}


def make_backbone(name: str, norm: type[nn.Module] = nn.BatchNorm2d) -> ResNet:
    """A ResNet with its first weights, without its last layer: (N, 3, S, S) to features (N, `feature_size`)."""
    block, layers = RESNETS[name]
    backbone = ResNet(block, layers, norm_layer=norm)
    backbone.add_module("fc", nn.Identity())
    return backbone.to(memory_format=torch.channels_last)


def feature_size(name: str) -> int:
    """Features that a ResNet gives."""
    return 512 * RESNETS[name][0].expansion

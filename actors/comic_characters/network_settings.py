"""Settings of the network that faces and bodies share, and of its head; imports no torch."""

from dataclasses import dataclass
from typing import Literal

from actors.comic_characters.crops import Kind
from actors.core.errors import UserError
from actors.core.stage import Stage

RESNETS: dict[str, tuple[int, list[int]]] = {
    "resnet10": (1, [1, 1, 1, 1]),
    "resnet18": (1, [2, 2, 2, 2]),
    "resnet34": (1, [3, 4, 6, 3]),
    "resnet50": (4, [3, 4, 6, 3]),
    "resnet101": (4, [3, 4, 23, 3]),
}
"""Expansion (4: bottlenecks) and number of blocks, as in torchvision; resnet10 is for CPUs."""


def feature_size(name: str) -> int:
    """Number of features of a ResNet."""
    return 512 * RESNETS[name][0]


@dataclass(frozen=True)
class BackboneConfig:
    """The network that faces and bodies share, and its input sizes."""

    name: Literal["resnet10", "resnet18", "resnet34", "resnet50", "resnet101"] = "resnet50"
    """Architecture of the network. resnet10 suits CPUs; larger ones need GPUs and more training data."""
    face_size: int = 96
    """Side of a face's square in pixels, from 16."""
    body_size: int = 128
    """Side in pixels, from 16, of the square that a body is fitted into."""

    def __post_init__(self) -> None:
        if min(self.face_size, self.body_size) < 16:
            raise UserError(f"face_size and body_size start at 16, not {self.face_size} and {self.body_size}")

    def sizes(self) -> dict[Kind, int]:
        """Side of the input in pixels, by kind."""
        return {"face": self.face_size, "body": self.body_size}


Fusion = Literal["sum", "cat", "mean", "weighted", "self_attention", "face_to_body"]
"""How the features of face and body become one; see `Head`."""


@dataclass(frozen=True)
class HeadConfig:
    """The head that fuses the features of a face and a body into one vector."""

    fusion: Fusion = "sum"
    """How features of face and body are fused: sum; cat (concatenated); mean; weighted (by learned weights);
    self_attention (both attend to both); face_to_body (the face attends to both)."""
    padding: Literal["zero", "learned"] = "zero"
    """Features of a missing face or body: zeros, or a learned vector."""
    dimensions: int = 256
    """Length of an instance's vector, from 2."""

    def __post_init__(self) -> None:
        if self.dimensions < 2:
            raise UserError(f"dimensions start at 2, not {self.dimensions}")


@dataclass(frozen=True)
class EmbedConfig(Stage):
    """Actor pool that applies the head to stored features."""

    batch_size: int = 512
    """Instances per part of embeddings/, and per call."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.workers < 1 or self.num_gpus:
            raise UserError(
                f"embed.workers must be 1 or more and embed.num_gpus 0 (a head needs no GPU), not {self.workers} and "
                f"{self.num_gpus}"
            )


@dataclass(frozen=True)
class FeaturesConfig(Stage):
    """Actor pool that applies the frozen backbone to crops."""

    weights: str | None = None
    """Weights of the backbone: a .safetensors file of `pretrain`, or of a ResNet with torchvision's names. null: those
    of `pretrain` in the output."""
    batch_size: int = 64
    """Instances per call; raise it on a GPU."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the network: bfloat16 is faster on GPUs. Stored features are float32."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.workers < 1:
            raise UserError(f"features.workers starts at 1, not {self.workers}")

    @property
    def computed(self) -> str:
        """Device and precision, as they are stored beside features."""
        return f"{'cuda' if self.num_gpus > 0 else 'cpu'} {self.dtype}"

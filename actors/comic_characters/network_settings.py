"""Settings of the network that faces and bodies share, and of its head; imports no torch."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from actors.comic_characters.crops import Kind
from actors.core.errors import UserError
from actors.core.stage import Stage
from actors.models.memory import weight_bytes, worker_gb

RESNETS: dict[str, tuple[int, list[int], int]] = {
    "resnet10": (1, [1, 1, 1, 1], 64),
    "resnet18": (1, [2, 2, 2, 2], 64),
    "resnet34": (1, [3, 4, 6, 3], 64),
    "resnet50": (4, [3, 4, 6, 3], 64),
    "resnet101": (4, [3, 4, 23, 3], 64),
    "wide_resnet50_2": (4, [3, 4, 6, 3], 128),
}
"""Expansion (4: bottlenecks), number of blocks and width of the first ones, as in torchvision; resnet10 is for CPUs."""
KINDS: tuple[Kind, Kind] = ("face", "body")


def feature_size(name: str) -> int:
    """Number of features of a ResNet."""
    return 512 * RESNETS[name][0]


@dataclass(frozen=True)
class BackboneConfig:
    """The network of faces and bodies, and its input sizes."""

    name: Literal["resnet10", "resnet18", "resnet34", "resnet50", "resnet101", "wide_resnet50_2"] = "resnet50"
    """Architecture of the network. resnet10 suits CPUs; larger ones need GPUs and more training data."""
    face_size: int = 96
    """Side of a face's square in pixels, from 16."""
    body_size: int = 128
    """Side in pixels, from 16, of the square that a body is fitted into."""
    shared: bool = True
    """One network for faces and bodies. false: one each, of the same architecture, with weights of its own."""
    projection: bool = False
    """Take features behind the hidden layers of stage 1's projection head, as the published model of the reference
    does. false: those of the ResNet."""

    def __post_init__(self) -> None:
        if min(self.face_size, self.body_size) < 16:
            raise UserError(f"face_size and body_size start at 16, not {self.face_size} and {self.body_size}")

    def sizes(self) -> dict[Kind, int]:
        """Side of the input in pixels, by kind."""
        return {"face": self.face_size, "body": self.body_size}

    def described(self) -> dict[str, Any]:
        """The settings by name; those that earlier versions lack only where they are changed, so that outputs of these
        go on."""
        return changed(self, {"shared": True, "projection": False})


def changed(config: Any, new: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a dataclass, without those of `new` that are as they are there."""
    return {name: value for name, value in asdict(config).items() if name not in new or value != new[name]}


Fusion = Literal[
    "sum",
    "cat",
    "mean",
    "weighted",
    "weighted_dimensions",
    "favor_face",
    "favor_body",
    "only_face",
    "only_body",
    "self_attention",
    "face_to_body",
]
"""How the features of face and body become one; see `Head`."""
ONE_PART: dict[Fusion, Kind] = {"only_face": "face", "only_body": "body"}
"""Fusions for which the other part does not exist."""


@dataclass(frozen=True)
class HeadConfig:
    """The head that fuses the features of a face and a body into one vector."""

    fusion: Fusion = "sum"
    """How features of face and body are fused: sum; cat (concatenated); mean; weighted (by two learned weights);
    weighted_dimensions (by two learned weights per dimension); favor_face, favor_body (that part, or the other where it
    is missing); only_face, only_body (instances without that part get no vector); self_attention (both attend to
    both); face_to_body (the face attends to both)."""
    padding: Literal["zero", "learned"] = "zero"
    """Features of a missing face or body: zeros, or a learned vector."""
    dimensions: int = 256
    """Length of an instance's vector, from 2."""

    def __post_init__(self) -> None:
        if self.dimensions < 2:
            raise UserError(f"dimensions start at 2, not {self.dimensions}")
        if self.padding == "learned" and (self.fusion.startswith("favor_") or self.fusion in ONE_PART):
            raise UserError(f"fusion={self.fusion} never fills a missing part. Set padding=zero.")


@dataclass(frozen=True)
class EmbedConfig(Stage):
    """Actor pool that applies the head to stored features."""

    batch_size: int = 512
    """Instances per part of embeddings/, and per call."""

    @property
    def worker_gb(self) -> float:
        """Memory of one worker, in GiB."""
        return worker_gb(call_gb=0.1, num_gpus=0)

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

    weights: str | dict[Kind, str] | None = None
    """Weights of the backbone: a .safetensors file of `pretrain`, or of a ResNet with torchvision's names; also .pth
    and .ckpt, such as a checkpoint of the reference. With backbone.shared=false also one file each:
    {face: FILE, body: FILE}. null: those of `pretrain` in the output."""
    batch_size: int = 64
    """Instances per call; raise it on a GPU."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the network: bfloat16 is faster on GPUs. Stored features are float32."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.workers < 1:
            raise UserError(f"features.workers starts at 1, not {self.workers}")
        if isinstance(self.weights, dict) and set(self.weights) != set(KINDS):
            raise UserError(
                f"features.weights names a file for {' and '.join(self.weights) or 'none'}. Set face and body."
            )

    @property
    def worker_gb(self) -> float:
        """Memory of one worker, in GiB; weights of the output count as those of a ResNet-50."""
        weights = self.weights.values() if isinstance(self.weights, dict) else filter(None, [self.weights])
        return worker_gb(*map(weight_bytes, weights), call_gb=0.4, num_gpus=self.num_gpus)

    @property
    def computed(self) -> str:
        """Device and precision, as they are stored beside features."""
        return f"{'cuda' if self.num_gpus > 0 else 'cpu'} {self.dtype}"

"""The ResNet that faces and bodies share, frozen once trained, and the head that fuses both into one vector."""

from collections.abc import Sequence

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn
from torch.nn.functional import normalize
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from actors.comic_characters.crops import prepare, with_features
from actors.comic_characters.network_settings import RESNETS, BackboneConfig, EmbedConfig, FeaturesConfig, HeadConfig
from actors.core import storage
from actors.core.errors import UserError
from actors.core.stage import Batch
from actors.models.devices import sent


def make_backbone(name: str, norm: type[nn.Module] = nn.BatchNorm2d) -> ResNet:
    """An untrained ResNet without its last layer: (N, 3, S, S) to features (N, `feature_size`)."""
    expansion, layers = RESNETS[name]
    backbone = ResNet(BasicBlock if expansion == 1 else Bottleneck, layers, norm_layer=norm)
    backbone.add_module("fc", nn.Identity())
    return backbone.to(memory_format=torch.channels_last)


class Head(nn.Module):
    """Features of faces and bodies (N, F), and bool (N, 2) whether they are there, to vectors (N, D) of length 1.

    Features of a missing part are ignored; an instance has at least one part. With zero padding, a missing part
    does not count in a mean, and attention skips it.
    """

    def __init__(self, config: HeadConfig, features: int) -> None:
        super().__init__()
        self.features, self.fusion = features, config.fusion
        self.padding = nn.Parameter(torch.randn(2, features) * 0.02) if config.padding == "learned" else None
        if config.fusion == "weighted":
            self.weights = nn.Parameter(torch.zeros(2))
        if config.fusion in ("self_attention", "face_to_body"):
            self.attention = nn.MultiheadAttention(features, 4, batch_first=True)
        self.linear = nn.Linear(features * (2 if config.fusion == "cat" else 1), config.dimensions)

    def forward(self, faces: Tensor, bodies: Tensor, there: Tensor) -> Tensor:
        parts = torch.stack([faces, bodies], 1)
        missing = torch.zeros_like(parts) if self.padding is None else self.padding.expand_as(parts)
        parts = torch.where(there[..., None], parts, missing)
        fused = self._fused(parts, there if self.padding is None else torch.ones_like(there))
        return normalize(self.linear(fused).float())

    def _fused(self, parts: Tensor, seen: Tensor) -> Tensor:
        match self.fusion:
            case "sum":
                return parts.sum(1)
            case "cat":
                return parts.flatten(1)
            case "mean":
                return parts.sum(1) / seen.sum(1, keepdim=True)
            case "weighted":
                return torch.einsum("npf,p->nf", parts, self.weights.softmax(0))
            case "self_attention":
                found, _ = self.attention(parts, parts, parts, key_padding_mask=~seen, need_weights=False)
                return ((parts + found) * seen[..., None]).sum(1) / seen.sum(1, keepdim=True)
            case _:
                found, _ = self.attention(parts[:, :1], parts, parts, key_padding_mask=~seen, need_weights=False)
                return parts[:, 0] + found[:, 0]


Parts = tuple[np.ndarray | None, np.ndarray | None]
"""Features of a face and of a body, float32 (F,), None where there is none."""


def stacked(features: Sequence[Parts], width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Faces and bodies float32 (N, F), zeros where there is none, and bool (N, 2) whether there is one."""
    parts = np.zeros((2, len(features), width), np.float32)
    there = np.zeros((len(features), 2), bool)
    for row, pair in enumerate(features):
        for part, vector in enumerate(pair):
            if vector is not None:
                parts[part, row], there[row, part] = vector, True
    return parts[0], parts[1], there


def load_head(config: HeadConfig, features: int, weights: bytes) -> Head:
    """A head with weights, in evaluation mode. Raises ValueError where they are those of another one."""
    head = Head(config, features)
    try:
        head.load_state_dict(load(weights))
    except (SafetensorError, RuntimeError) as error:
        raise UserError(f"The weights are not those of a head of {config}: {error}") from error
    return head.eval().requires_grad_(False)


def embed(head: Head, features: Sequence[Parts]) -> np.ndarray:
    """Vectors float32 (N, D) of length 1, of the features of N instances."""
    with torch.inference_mode():
        return head(*map(torch.from_numpy, stacked(features, head.features))).numpy()


def load_backbone(name: str, weights: bytes) -> ResNet:
    """A frozen ResNet with weights, in evaluation mode, statistics of batch norm included.

    Raises ValueError where they are those of another network.
    """
    backbone = make_backbone(name)
    try:
        tensors = load(weights)
    except SafetensorError as error:
        raise UserError(f"The weights are no safetensors: {error}") from error
    if own := {key.removeprefix("backbone."): value for key, value in tensors.items() if key.startswith("backbone.")}:
        tensors = own
    tensors = {key: value for key, value in tensors.items() if not key.startswith("fc.")}
    try:
        backbone.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(f"The weights are not those of a {name}: {error}") from error
    return backbone.eval().requires_grad_(False)


class FeatureExtractor:
    """Features of the face and the body of instances, by a frozen backbone.

    Reads:  series_id, page_id  str (N,); face, body  float (N,), their index, NaN where there is none
    Adds:   face_features, body_features  object (N,), float32 (F,), None where there is no such part
            error, message  str (N,): missing_crop, broken_crop
    """

    def __init__(self, config: FeaturesConfig, backbone: BackboneConfig, weights: str, crops: str) -> None:
        if config.num_gpus == 0:
            torch.set_num_threads(max(1, int(config.num_cpus)))
        self._device = "cuda" if config.num_gpus > 0 else "cpu"
        self._dtype = getattr(torch, config.dtype)
        self._sizes, self._crops = backbone.sizes(), crops
        network = load_backbone(backbone.name, storage.read_bytes(weights))
        self.network = network.to(self._device, self._dtype)

    def __call__(self, batch: Batch) -> Batch:
        return with_features(
            batch, self._crops, lambda crop, kind: prepare(crop, kind, self._sizes[kind]), self._features
        )

    def _features(self, pictures: np.ndarray) -> np.ndarray:
        """Of pictures uint8 (N, S, S, 3): float32 (N, F)."""
        pixels = sent([pictures], self._device).permute(0, 3, 1, 2).float().div(127.5).sub(1)
        with torch.inference_mode():
            return self.network(pixels.to(self._dtype, memory_format=torch.channels_last)).float().cpu().numpy()


class InstanceEmbedder:
    """One vector for each instance, by the head.

    Reads:  face_features, body_features  object (N,), float32 (F,), None where there is no such part
            error  str (N,); rows with an error are left out
    Adds:   vector  object (N,), float32 (D,) of length 1, None where there is an error
    Drops:  face_features, body_features
    """

    def __init__(self, config: EmbedConfig, head: HeadConfig, features: int, weights: bytes) -> None:
        torch.set_num_threads(max(1, int(config.num_cpus)))
        self._head = load_head(head, features, weights)

    def __call__(self, batch: Batch) -> Batch:
        sound = np.flatnonzero(batch["error"] == "").tolist()
        features = [(batch["face_features"][row], batch["body_features"][row]) for row in sound]
        vectors = np.full(len(batch["error"]), None, object)
        for row, vector in zip(sound, embed(self._head, features), strict=True):
            vectors[row] = vector
        return {**{name: batch[name] for name in batch if not name.endswith("_features")}, "vector": vectors}

"""The ResNets of faces and bodies, frozen once trained, and the head that fuses both into one vector."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn
from torch.nn.functional import normalize
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from actors.comic_characters.augment import views
from actors.comic_characters.augment_settings import CopiesConfig
from actors.comic_characters.checkpoints import Weights, read_backbone
from actors.comic_characters.crops import Kind, prepare, with_features
from actors.comic_characters.instances import MISSING_PART
from actors.comic_characters.network_settings import (
    KINDS,
    ONE_PART,
    RESNETS,
    BackboneConfig,
    EmbedConfig,
    FeaturesConfig,
    HeadConfig,
    feature_size,
)
from actors.core.checkpoints import Tensors, below
from actors.core.errors import UserError
from actors.core.stage import Batch
from actors.models.devices import sent


def make_backbone(name: str, norm: type[nn.Module] = nn.BatchNorm2d) -> ResNet:
    """An untrained ResNet without its last layer: (N, 3, S, S) to features (N, `feature_size`)."""
    expansion, layers, width = RESNETS[name]
    backbone = ResNet(BasicBlock if expansion == 1 else Bottleneck, layers, norm_layer=norm, width_per_group=width)
    backbone.add_module("fc", nn.Identity())
    return backbone.to(memory_format=torch.channels_last)


def make_projection(width: int, dimensions: int, norm: type[nn.Module] = nn.BatchNorm1d) -> nn.Sequential:
    """The untrained projection head of stage 1: features (N, `width`) to (N, `dimensions`)."""
    layers: list[nn.Module] = []
    for _ in range(2):
        layers += [nn.Linear(width, width, bias=False), norm(width), nn.ReLU(inplace=True)]
    last: Any = norm
    return nn.Sequential(*layers, nn.Linear(width, dimensions, bias=False), last(dimensions, affine=False))


HIDDEN = 6
"""Modules of the projection head but for its last layer."""


class Head(nn.Module):
    """Features of faces and bodies (N, F), and bool (N, 2) whether they are there, to vectors (N, D) of length 1.

    Features of a missing part are ignored; an instance has at least one part, and that of a fusion which takes only
    one. With zero padding, a missing part does not count in a mean, and attention skips it.
    """

    def __init__(self, config: HeadConfig, features: int) -> None:
        super().__init__()
        self.features, self.fusion = features, config.fusion
        self.padding = nn.Parameter(torch.randn(2, features) * 0.02) if config.padding == "learned" else None
        if config.fusion in ("weighted", "weighted_dimensions"):
            self.weights = nn.Parameter(torch.zeros(2) if config.fusion == "weighted" else torch.zeros(2, features))
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
            case "weighted_dimensions":
                return torch.einsum("npf,pf->nf", parts, self.weights.softmax(0))
            case "favor_face":
                return torch.where(seen[:, :1], parts[:, 0], parts[:, 1])
            case "favor_body":
                return torch.where(seen[:, 1:], parts[:, 1], parts[:, 0])
            case "only_face" | "only_body":
                return parts[:, int(self.fusion == "only_body")]
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


def load_networks(config: BackboneConfig, weights: bytes) -> dict[Kind, nn.Module]:
    """Frozen networks with weights, by kind, in evaluation mode, statistics of batch norm included.

    Pictures (N, 3, S, S) to features (N, `feature_size`). Raises UserError where the weights are those of others.
    """
    try:
        tensors = load(weights)
    except SafetensorError as error:
        raise UserError(f"The weights are no safetensors: {error}") from error
    if config.shared:
        return dict.fromkeys(KINDS, _load_network(config, tensors))
    return {kind: _load_network(config, below(kind, tensors)) for kind in KINDS}


def _load_network(config: BackboneConfig, tensors: Tensors) -> nn.Module:
    network: nn.Module = make_backbone(config.name)
    own = below("backbone", tensors) or tensors
    parts: list[tuple[nn.Module, Tensors]] = [
        (network, {key: value for key, value in own.items() if not key.startswith("fc.")})
    ]
    if config.projection:
        hidden = make_projection(feature_size(config.name), 2)[:HIDDEN]
        parts.append((hidden, {k: v for k, v in below("head", tensors).items() if int(k.split(".")[0]) < HIDDEN}))
        network = nn.Sequential(network, hidden)
    try:
        for module, state in parts:
            module.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"The weights are not those of a {config.name}: {error}") from error
    return network.eval().requires_grad_(False)


class FeatureExtractor:
    """Features of the face and the body of instances, by frozen networks; with copies, those of views, (K * F,).

    Reads:  series_id, page_id  str (N,); face, body  float (N,), their index, NaN where there is none
    Adds:   face_features, body_features  object (N,), float32 (F,), None where there is no such part
            error, message  str (N,): missing_crop, broken_crop, too_large
    """

    def __init__(
        self,
        config: FeaturesConfig,
        backbone: BackboneConfig,
        weights: Weights,
        crops: str,
        copies: CopiesConfig | None = None,
        seed: int = 0,
    ) -> None:
        if config.num_gpus == 0:
            torch.set_num_threads(max(1, int(config.num_cpus)))
        self._device = "cuda" if config.num_gpus > 0 else "cpu"
        self._dtype = getattr(torch, config.dtype)
        self._sizes, self._crops, self._size = backbone.sizes(), crops, config.batch_size
        self._copies, self._seed = copies, seed
        networks = load_networks(backbone, read_backbone(weights))
        self.networks = {kind: network.to(self._device, self._dtype) for kind, network in networks.items()}

    def __call__(self, batch: Batch) -> Batch:
        if self._copies:
            return with_features(batch, self._crops, self._views, self._features_of_views)
        return with_features(
            batch, self._crops, lambda crop, kind: prepare(crop, kind, self._sizes[kind]), self.features
        )

    def _views(self, crop: Image.Image, kind: Kind) -> np.ndarray:
        """Views float32 (K, 3, S, S) in -1..1, which depend on the crop and the seed alone."""
        assert self._copies is not None
        pixels = prepare(crop, kind, self._sizes[kind])
        own = hashlib.blake2b(pixels.tobytes(), key=str(self._seed).encode(), digest_size=6).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(own))
        same = torch.from_numpy(pixels.copy())[None].expand(self._copies.copies, -1, -1, -1)
        return views(same, self._copies.views, generator).numpy()

    def _features_of_views(self, drawn: np.ndarray, kind: Kind) -> np.ndarray:
        """Of views float32 (M, K, 3, S, S): float32 (M, K * F), one after the other."""
        parts = torch.from_numpy(drawn).flatten(0, 1).split(self._size)
        return np.concatenate([self._see(part.to(self._device), kind) for part in parts]).reshape(len(drawn), -1)

    def features(self, pictures: np.ndarray, kind: Kind) -> np.ndarray:
        """Of pictures uint8 (N, S, S, 3): float32 (N, F)."""
        return self._see(sent([pictures], self._device).permute(0, 3, 1, 2).float().div(127.5).sub(1), kind)

    def _see(self, pixels: Tensor, kind: Kind) -> np.ndarray:
        with torch.inference_mode():
            return self.networks[kind](pixels.to(self._dtype, memory_format=torch.channels_last)).float().cpu().numpy()


class InstanceEmbedder:
    """One vector for each instance, by the head.

    Reads:  face_features, body_features  object (N,), float32 (F,), None where there is no such part
            error, message  str (N,); rows with an error are left out
    Adds:   vector  object (N,), float32 (D,) of length 1, None where there is an error
            error  missing_part, where the head takes only a part that the instance lacks
    Drops:  face_features, body_features
    """

    def __init__(self, config: EmbedConfig, head: HeadConfig, features: int, weights: bytes) -> None:
        torch.set_num_threads(max(1, int(config.num_cpus)))
        self._head = load_head(head, features, weights)
        self._only = ONE_PART.get(head.fusion)

    def __call__(self, batch: Batch) -> Batch:
        if self._only:
            lacks = [part is None for part in batch[f"{self._only}_features"]] & (batch["error"] == "")
            why = f"no {self._only}, and the head takes nothing else"
            batch = {
                **batch,
                "error": np.where(lacks, MISSING_PART, batch["error"]),
                "message": np.where(lacks, why, batch["message"]),
            }
        sound = np.flatnonzero(batch["error"] == "").tolist()
        features = [(batch["face_features"][row], batch["body_features"][row]) for row in sound]
        vectors = np.full(len(batch["error"]), None, object)
        for row, vector in zip(sound, embed(self._head, features), strict=True):
            vectors[row] = vector
        return {**{name: batch[name] for name in batch if not name.endswith("_features")}, "vector": vectors}

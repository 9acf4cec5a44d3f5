"""Scenes as vectors of length 1: scenes that show the same have a high cosine.

The vector of a scene is the mean of those of its key frames, each of length 1, scaled to length 1 again; that of a key
frame is the same of its views: all of it, its centre, and their mirror images. With CLIP it lies in one space with
texts.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa

from actors.core.errors import UserError
from actors.core.stage import Batch, ModelStage
from actors.curation.measuring.family import Reads
from actors.models import backbones, clip
from actors.models.backbones import Backbone, BackboneConfig
from actors.models.clip import EmbeddingsConfig
from actors.models.devices import sent

if TYPE_CHECKING:
    # Only workers that hold a model pay for importing torch.
    import torch

COLUMN = "embedding"
DEFAULT = ("ViT-B-32", "laion2b_s34b_b79k")
"""The CLIP model that is the default, and its weights."""

CENTRE = 0.8
"""Of the sides of a picture, what a crop leaves."""


@dataclass(frozen=True)
class EmbeddingConfig(ModelStage):
    """Which network turns key frames into vectors."""

    by: Literal["clip", "backbone"] = "clip"
    """clip: a CLIP model of open_clip, which also takes texts, so that `search` finds scenes by words; backbone: an
    image network of timm or torchvision."""
    model: str = DEFAULT[0]
    """clip: a model name of open_clip, hf-hub:ORGANISATION/NAME, or a folder with open_clip_config.json and weights.
    backbone: resnet18 to resnet152, a name of timm, or a folder as timm saves it."""
    weights: str | None = None
    """Weights of a model given by name. clip: a tag of open_clip or a file; null: laion2b_s34b_b79k for ViT-B-32.
    backbone: a file; null: download its pretrained weights."""
    mirrored: bool = True
    """Take the mean over each picture and its mirror image, so that mirrored copies have the same vector. Twice the
    work; false where left and right matter."""
    crops: int = 2
    """Take the mean over each key frame and its centre, 0 to 4 times: 80 % of the sides, 80 % of these, and so on, so
    that cropped copies are close. Each is once more the work; 0 for `search` alone."""
    fit: Literal["letterbox", "crop"] = "crop"
    """What a backbone sees of a picture. crop: its centre; letterbox: all, between grey bars. CLIP crops as it was
    trained."""
    batch_size: int = 16
    """Scenes per call of a worker."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.crops <= 4:
            raise UserError(f"measure.embedding.crops={self.crops}: set 0 to 4")

    @property
    def worker_gb(self) -> float:
        """Memory of one worker, in GiB."""
        return (self.clip if self.by == "clip" else self.backbone).worker_gb

    @property
    def clip(self) -> EmbeddingsConfig:
        """The settings of a CLIP model."""
        weights = DEFAULT[1] if self.weights is None and self.model == DEFAULT[0] else self.weights
        return EmbeddingsConfig(
            model=self.model, pretrained=weights, dtype=self.dtype, num_gpus=self.num_gpus, num_cpus=self.num_cpus
        )

    @property
    def backbone(self) -> BackboneConfig:
        """The settings of a backbone."""
        return BackboneConfig(
            model=self.model,
            weights=self.weights,
            fit=self.fit,
            dtype=self.dtype,
            num_gpus=self.num_gpus,
            num_cpus=self.num_cpus,
        )


@contextmanager
def _named() -> Iterator[None]:
    """Mistakes are told by the names that settings have here."""
    try:
        yield
    except UserError as error:
        told = str(error).replace("embeddings.pretrained", "measure.embedding.weights")
        for group in ("embeddings.", "backbone."):
            told = told.replace(group, "measure.embedding.")
        raise UserError(told) from error


class Embedding:
    """A family of scores: see `Scorer`.

    Reads:  frames  object array (N,), each uint8 (1 to 3, H, W, 3) RGB
    Gives:  embedding  float16 (N, D), each of length 1; NaN where a scene has no vector
            error, message  not_embedded, where the network's numbers are not finite
    """

    reads: Reads = "keyframes"
    settings = EmbeddingConfig
    columns: Mapping[str, pa.DataType]

    def __init__(self, config: EmbeddingConfig) -> None:
        self._config = config
        with _named():
            self._network = _ByClip(config.clip) if config.by == "clip" else _ByBackbone(config.backbone)
        width = self._vectors([np.zeros((1, 32, 32, 3), np.uint8)]).shape[1]
        self.columns = {COLUMN: pa.list_(pa.float16(), width)}

    @staticmethod
    def check(config: EmbeddingConfig) -> None:
        """Raise UserError where the model is missing; loads and downloads nothing."""
        with _named():
            if config.by == "clip":
                clip.check_clip(config.clip)
            else:
                backbones.check_backbone(config.backbone)

    @staticmethod
    def identity(config: EmbeddingConfig) -> str:
        """The weights, where they are a file; a model by name has those of its name."""
        if config.by == "backbone":
            # Whatever computes it.
            return backbones.name(replace(config.backbone, dtype="float32"))
        folder, file = Path(config.model.removeprefix("local-dir:")), config.clip.pretrained
        files = sorted(folder.glob("*.safetensors")) or ([Path(file)] if file and Path(file).is_file() else [])
        return ":".join([config.clip.pretrained or "", *(backbones.digest(str(path)) for path in files)])

    def __call__(self, batch: Batch) -> Mapping[str, Any]:
        vectors = self._vectors(list(batch["frames"]))
        sound = np.array([np.isfinite(vector).all() for vector in vectors])
        return {
            COLUMN: vectors,
            "error": np.where(sound, "", "not_embedded"),
            "message": np.where(sound, "", "the vector of its key frames is not finite"),
        }

    def image(self, picture: np.ndarray) -> np.ndarray:
        """The vector of a picture uint8 (H, W, 3) RGB, float32 (D,)."""
        return self._vectors([picture[None]])[0].astype(np.float32)

    def text(self, words: str) -> np.ndarray:
        """The vector of a text, float32 (D,); raises UserError where the network takes none."""
        return self._network.text(words)

    def _vectors(self, scenes: Sequence[np.ndarray]) -> np.ndarray:
        """Vectors float16 (N, D) of the frames of scenes, each uint8 (T, H, W, 3)."""
        import torch

        counts = np.array([len(frames) for frames in scenes])
        starts = np.cumsum(counts) - counts
        # One copy to the device for each size of pictures, in the order of these.
        sizes: dict[tuple[int, ...], list[int]] = {}
        for number, frames in enumerate(scenes):
            sizes.setdefault(frames.shape[1:], []).append(number)
        views: list[list[torch.Tensor]] = [[] for _ in range(self._config.crops + 1)]
        with torch.inference_mode():
            for numbers in sizes.values():
                pixels = sent([scenes[number] for number in numbers], self._config.device).permute(0, 3, 1, 2)
                for view in views:
                    view.append(self._network.prepared(pixels))
                    pixels = _centre(pixels)
            seen = torch.stack([self._seen(torch.cat(view)) for view in views])
            frames = _unit(seen.sum(0)).cpu().numpy()
        places = np.concatenate(
            [np.arange(starts[n], starts[n] + counts[n]) for group in sizes.values() for n in group]
        )
        ordered = np.empty_like(frames)
        ordered[places] = frames
        sums = np.add.reduceat(ordered, starts)
        with np.errstate(invalid="ignore"):
            return (sums / np.linalg.norm(sums, axis=1, keepdims=True)).astype(np.float16)

    def _seen(self, pictures: "torch.Tensor") -> "torch.Tensor":
        """The sum of what the network makes of pictures and, where that is wanted, of their mirror images."""
        import torch

        parts = pictures.split(256 if self._config.device == "cuda" else 32)
        found = torch.cat([self._network.vectors(part) for part in parts])
        if not self._config.mirrored:
            return found
        return found + torch.cat([self._network.vectors(part.flip(3)) for part in parts])


def _centre(pixels: "torch.Tensor") -> "torch.Tensor":
    """The middle of pictures (N, 3, H, W), of CENTRE of their sides."""
    height, width = pixels.shape[2:]
    down, across = (round(side * (1 - CENTRE) / 2) for side in (height, width))
    return pixels[:, :, down : height - down, across : width - across]


def _unit(vectors: "torch.Tensor") -> "torch.Tensor":
    from torch.nn.functional import normalize

    return normalize(vectors.float(), dim=1)


class _ByClip:
    """A CLIP model: squares of pictures on the device, and their vectors of length 1."""

    def __init__(self, config: EmbeddingsConfig) -> None:
        self._config, self._clip = config, clip.load_clip(config)

    def prepared(self, pixels: "torch.Tensor") -> "torch.Tensor":
        return clip.prepared(self._clip, pixels)

    def vectors(self, pictures: "torch.Tensor") -> "torch.Tensor":
        return _unit(self._clip.model.encode_image(pictures))

    def text(self, words: str) -> np.ndarray:
        return clip.embed_texts(self._clip, [words], self._config.per_call)[0]


class _ByBackbone:
    """An image network, as `_ByClip`."""

    def __init__(self, config: BackboneConfig) -> None:
        self._model, self._network = config.model, Backbone(config)

    def prepared(self, pixels: "torch.Tensor") -> "torch.Tensor":
        return self._network.prepared(pixels)

    def vectors(self, pictures: "torch.Tensor") -> "torch.Tensor":
        return _unit(self._network.embed(pictures))

    def text(self, words: str) -> np.ndarray:
        raise UserError(
            f"{self._model} takes pictures only, so it finds nothing by words. Search with a picture, or run `embed` "
            "with measure.embedding.by=clip."
        )

"""A small CLIP whose image tower knows which pictures show the same drawn character, trained by `fit`."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from pytorch_metric_learning.losses import NTXentLoss
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from actors.core.checkpoints import Tensors
from pipelines.core.training import fit
from pipelines.core.training_config import TrainingConfig
from tests.benchmarks.drawn_model import PICTURES, dataset, pictures
from tests.support.drawn import SIZE, Cast, Identity

WIDTH = 128
SETTINGS = {
    "model_cfg": {
        "embed_dim": WIDTH,
        "vision_cfg": {
            "timm_model_name": "resnet10t",
            "timm_model_pretrained": False,
            "timm_pool": "avg",
            "timm_proj": "linear",
            "image_size": SIZE,
        },
        # Nothing is compared with texts here.
        "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    },
    "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
}


class Tower(nn.Module):
    """The image tower: uint8 (N, SIZE, SIZE, 3) to vectors (N, WIDTH)."""

    def __init__(self) -> None:
        super().__init__()
        model_cfg: Any = SETTINGS["model_cfg"]
        self.visual = open_clip.CLIP(**model_cfg).visual

    def forward(self, drawn: Tensor) -> Tensor:
        """As CLIP prepares pictures."""
        return self.visual(drawn.permute(0, 3, 1, 2).float() / 127.5 - 1)


def embed_loss(model: nn.Module, batch: Tensors) -> Tensor:
    """NT-Xent: pictures of one character are alike, of all others not."""
    found = model(batch["drawn"].flatten(0, 1))
    return NTXentLoss(temperature=0.1)(found, batch["person"].flatten())


def embed_scores(model: nn.Module, batches: Iterable[Tensors]) -> dict[str, float]:
    """nearest: the share of pictures of which the nearest other one shows the same character."""
    parts = [(model(batch["drawn"].flatten(0, 1)), batch["person"].flatten()) for batch in batches]
    found, person = (torch.cat(column) for column in zip(*parts, strict=True))
    found = nn.functional.normalize(found, dim=1)
    alike = found @ found.T
    alike.fill_diagonal_(-1)
    return {"nearest": float((person[alike.argmax(1)] == person).float().mean())}


def train_embedder(cast: Cast, people: list[Identity], others: list[Identity], output: Path, epochs: int) -> Path:
    """Train on people, watch others; returns a folder as open_clip has it. Goes on where it was killed."""
    folder = output / "clip"
    if (folder / "open_clip_model.safetensors").is_file():
        return folder
    torch.manual_seed(0)
    datasets = {}
    for name, crowd, seed in (("train", people, 0), ("valid", others, 1)):
        # Two pictures of one character in a row, so that every batch has some that are alike.
        drawn = pictures(cast, crowd, seed).reshape(-1, 2, SIZE, SIZE, 3)
        person = np.repeat(np.arange(len(crowd)), PICTURES // 2)
        datasets[name] = dataset(drawn=drawn, person=np.stack([person, person], 1))
    config = TrainingConfig(
        epochs=epochs, batch_size=64, learning_rate=1e-3, schedule="cosine", monitor="nearest", mode="max"
    )
    fit(
        Tower,
        embed_loss,
        embed_scores,
        datasets,
        config,
        output=str(output / "embedder"),
        settings={"cast": type(cast).__name__, "people": len(people)},
    )
    learnt = load_file(output / "embedder" / "model.safetensors")
    model_cfg: Any = SETTINGS["model_cfg"]
    weights = open_clip.CLIP(**model_cfg).state_dict()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps(SETTINGS))
    save_file({**weights, **learnt}, folder / "open_clip_model.safetensors")
    return folder

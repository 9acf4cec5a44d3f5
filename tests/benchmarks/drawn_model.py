"""A small Stable Diffusion that has learnt to draw characters, trained by this project's own call.

Same classes as the real one, pictures of 64 x 64, a UNet of 4 million weights. It learns from people whom nobody asks
for; a caption has a letter for every choice of a layer.
"""

import string
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from ray.data import Dataset
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel

from actors.core.checkpoints import Tensors
from pipelines.core.training import fit
from pipelines.core.training_config import TrainingConfig
from tests.support.drawn import SIZE, Cast, Identity, picture
from tests.support.tiny_models import letters, save_pipeline, schedule

CHANNELS, SIDE, WIDTH = 12, 8, 64
"""Channels and side of a latent, and the width of a condition."""
PICTURES = 40
"""Of each person."""
UNTOLD = 0.1
"""Share of pictures whose caption is not told, so that guidance has something to lead away from."""


def caption(cast: Cast, identity: Identity) -> str:
    """A letter for every choice of a layer."""
    starts = np.cumsum([0, *cast.choices])
    return " ".join(string.ascii_lowercase[start + choice] for start, choice in zip(starts, identity, strict=False))


def autoencoder() -> AutoencoderKL:
    """The VAE with its first weights."""
    blocks: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (16, 32, 64, 64),
    }
    return AutoencoderKL(**blocks, latent_channels=CHANNELS, norm_num_groups=8, sample_size=SIZE)


class Painter(nn.Module):
    """UNet and text encoder, which learn together."""

    def __init__(self) -> None:
        super().__init__()
        blocks: dict[str, Any] = {
            "down_block_types": ("CrossAttnDownBlock2D",) * 2,
            "up_block_types": ("CrossAttnUpBlock2D",) * 2,
            "block_out_channels": (64, 128),
            "layers_per_block": 1,
            "norm_num_groups": 16,
        }
        self.unet: Any = UNet2DConditionModel(
            sample_size=SIDE, in_channels=CHANNELS, out_channels=CHANNELS, cross_attention_dim=WIDTH, **blocks
        )
        words = letters()
        ends: dict[str, Any] = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id}
        text = CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            pad_token_id=words.eos_token_id,
            **ends,
        )
        self.text_encoder: Any = CLIPTextModel(text)

    def forward(self, noisy: Tensor, timesteps: Tensor, tokens: Tensor) -> Tensor:
        """The noise in latents (N, C, H, W), told captions as tokens (N, 77)."""
        return self.unet(noisy, timesteps, self.text_encoder(tokens).last_hidden_state).sample


def paint_loss(model: nn.Module, batch: Tensors, scheduler: Any, told: bool = False) -> Tensor:
    """Mean squared error of the noise; told: every caption is."""
    latents, tokens = batch["latent"].float(), batch["tokens"].long()
    if not told:
        silent = torch.as_tensor(letters()("", padding="max_length").input_ids, device=tokens.device)
        tokens = torch.where(torch.rand(len(tokens), 1, device=tokens.device) < UNTOLD, silent, tokens)
    noise = torch.randn_like(latents)
    timesteps = torch.randint(0, len(scheduler), (len(latents),), device=latents.device)
    noisy = scheduler.add_noise(latents, noise, timesteps)
    return functional.mse_loss(model(noisy, timesteps, tokens), noise)


def paint_scores(model: nn.Module, batches: Iterable[Tensors], scheduler: Any) -> dict[str, float]:
    """valid_loss with the right captions, and what it loses with those of others."""
    with torch.random.fork_rng():
        right, wrong = [], []
        for batch in batches:
            for losses, tokens in ((right, batch["tokens"]), (wrong, batch["tokens"].roll(PICTURES, 0))):
                torch.manual_seed(0)
                losses.append(paint_loss(model, {**batch, "tokens": tokens}, scheduler, told=True).item())
    return {"valid_loss": float(np.mean(right)), "loss_of_others": float(np.mean(wrong))}


def rebuild_loss(model: nn.Module, batch: Tensors) -> Tensor:
    """Mean absolute error of rebuilt pictures, which lie in -1..1."""
    pictures = batch["picture"].permute(0, 3, 1, 2).float() / 127.5 - 1
    return functional.l1_loss(model(pictures, sample_posterior=True).sample, pictures)


def rebuild_scores(model: nn.Module, batches: Iterable[Tensors]) -> dict[str, float]:
    """valid_loss: the mean absolute error."""
    return {"valid_loss": float(np.mean([rebuild_loss(model, batch).item() for batch in batches]))}


def pictures(cast: Cast, people: list[Identity], seed: int) -> np.ndarray:
    """uint8 (people * PICTURES, SIZE, SIZE, 3), person by person."""
    random = np.random.default_rng(seed)
    poses = random.integers(0, cast.poses, (len(people), PICTURES))
    return np.stack(
        [picture(cast, one, int(pose), random) for one, some in zip(people, poses, strict=True) for pose in some]
    )


def dataset(**columns: np.ndarray) -> Dataset:
    """A dataset of columns."""
    return ray.data.from_items([dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)])


def train_diffusion(
    cast: Cast, people: list[Identity], others: list[Identity], output: Path, vae_epochs: int, unet_epochs: int
) -> Path:
    """Train on people, watch others; returns the folder of the pipeline. Goes on where it was killed."""
    folder = output / "model"
    if (folder / "model_index.json").is_file():
        return folder
    torch.manual_seed(0)
    drawn = {"train": pictures(cast, people, 0), "valid": pictures(cast, others, 1)}
    about = {"cast": type(cast).__name__, "people": len(people)}
    config = TrainingConfig(
        epochs=vae_epochs, batch_size=32, learning_rate=2e-3, schedule="cosine", num_cpus=1.5, checkpoint_s=60
    )
    watched = {"train": drawn["train"], "valid": drawn["valid"][: 8 * PICTURES]}
    datasets = {name: dataset(picture=part) for name, part in watched.items()}
    vae = fit(autoencoder, rebuild_loss, rebuild_scores, datasets, config, output=str(output / "vae"), settings=about)
    assert isinstance(vae.model, AutoencoderKL)
    latents = {name: encode(vae.model, part) for name, part in drawn.items()}
    scale = float(1 / latents["train"].std())
    vae.model.register_to_config(scaling_factor=scale)
    datasets = {}
    for name, crowd in (("train", people), ("valid", others)):
        tokens = letters()([caption(cast, one) for one in crowd], padding="max_length").input_ids
        each = np.repeat(np.array(tokens, np.uint8), PICTURES, 0)
        datasets[name] = dataset(latent=(latents[name] * scale).astype(np.float16), tokens=each)
    config = TrainingConfig(
        epochs=unet_epochs, batch_size=32, learning_rate=1e-3, schedule="cosine", num_cpus=1.5, checkpoint_s=60
    )
    noise = schedule()
    fit(
        Painter,
        partial(paint_loss, scheduler=noise),
        partial(paint_scores, scheduler=noise),
        datasets,
        config,
        output=str(output / "unet"),
        settings=about | {"scale": scale},
    )
    model = Painter()
    model.load_state_dict(load_file(output / "unet" / "last.safetensors"))
    save_pipeline(folder, vae.model, model.text_encoder, model.unet, noise)
    return folder


def encode(vae: AutoencoderKL, drawn: np.ndarray) -> np.ndarray:
    """Means of the posterior, float32 (N, C, H, W)."""
    found = []
    with torch.inference_mode():
        for part in torch.from_numpy(drawn).split(64):
            pixels = part.permute(0, 3, 1, 2).float() / 127.5 - 1
            encoded: Any = vae.encode(pixels)
            found.append(encoded.latent_dist.mean.numpy())
    return np.concatenate(found)

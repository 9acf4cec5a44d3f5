"""The encoder that ships with the project, in plain torch: importing diffusers takes each worker ten seconds."""

import json
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import load_file
from torch import nn


class TinyEncoder(nn.Module):
    """The encoder of a diffusers `AutoencoderTiny` with ReLU, its weights under the same names."""

    def __init__(self, blocks: list[int], channels: int, latent_channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for level, count in enumerate(blocks):
            first = level == 0
            layers.append(
                nn.Conv2d(3 if first else channels, channels, 3, stride=1 if first else 2, padding=1, bias=first)
            )
            layers += [_Block(channels) for _ in range(count)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels, latent_channels, 3, padding=1))

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        return next(self.parameters()).dtype

    def encode(self, pixels: torch.Tensor) -> SimpleNamespace:
        """`latents` (N, C, H/8, W/8) of RGB in [-1, 1] (N, 3, H, W)."""
        return SimpleNamespace(latents=self.layers(pixels.add(1).div(2)))


class _Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        convolutions = [nn.Conv2d(channels, channels, 3, padding=1) for _ in range(3)]
        self.conv = nn.Sequential(convolutions[0], nn.ReLU(), convolutions[1], nn.ReLU(), convolutions[2])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.relu(self.conv(x) + x)


def load(folder: Path, dtype: torch.dtype) -> TinyEncoder:
    """The encoder in `folder`: config.json, encoder.safetensors."""
    config = json.loads((folder / "config.json").read_bytes())
    encoder = TinyEncoder(
        config["num_encoder_blocks"], config["encoder_block_out_channels"][0], config["latent_channels"]
    )
    encoder.load_state_dict(load_file(folder / "encoder.safetensors"))
    return encoder.to(dtype)

"""Train the small VAE that ships with the project: free film and pictures → crops → an AutoencoderTiny and its card."""

import json
import math
import shlex
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from functools import partial
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.models.unets.unet_2d_blocks import AutoencoderTinyBlock
from ray import train as ray_train
from ray.train.torch import get_device, prepare_model
from safetensors.torch import save
from torch.nn.functional import cosine_similarity, l1_loss

from actors.core import storage
from pipelines.core.epochs import report, restore
from pipelines.core.training import train as run_training
from pipelines.tiny_vae.settings import AutoencoderConfig, TrainConfig
from pipelines.tiny_vae.sources import FILM, HELD_OUT_STILLS, STILLS, packaged, sources

HELD_OUT_SHOTS = ((183, 243), (365, 395), (485, 552), (864, 923), (923, 959))
"""Held-out shots of the film, first frame and one past the last; no other shot has their camera positions."""
EVERY = 6
"""Every 6th frame of the film is used, one in 250 ms, as in curation."""
SIZE = 240
"""Short side of film frames, and side of the square that is measured, in pixels; as in curation."""


@dataclass(frozen=True)
class Figures:
    """Quality of an autoencoder on held-out pictures; PSNR in dB, the mean over pictures."""

    film_psnr: float
    """PSNR of frames of the held-out shots."""
    stills_psnr: float
    """PSNR of held-out stills."""
    film_area_psnr: float
    """PSNR of these frames averaged over 8×8 pixels and scaled up again (bicubic)."""
    stills_area_psnr: float
    """PSNR of held-out stills averaged over 8×8 pixels and scaled up again (bicubic)."""
    film_mean_psnr: float
    """PSNR of these frames, each replaced by its mean colour."""
    stills_mean_psnr: float
    """PSNR of held-out stills, each replaced by its mean colour."""
    same_shot: tuple[float, ...]
    """Cosine of the latents of frames 250 ms apart in one held-out shot, ascending."""
    across_cut: tuple[float, ...]
    """Cosine of the latents on both sides of each cut into and out of a held-out shot, ascending."""


@dataclass(frozen=True)
class Trained:
    """A training that has ended."""

    metrics: dict[str, Any]
    """As `train_autoencoder` returns them."""
    figures: Figures
    weights: str
    """URI of encoder.safetensors."""
    card: str
    """URI of README.md."""
    seconds: float
    """How long training took."""


def train(config: TrainConfig) -> Trained:
    """Train on Ray, measure on held-out pictures, write weights and card; resumes."""
    started = time.monotonic()
    vae, metrics = train_autoencoder(
        config.model, output=config.output, workers=config.workers, num_gpus=config.num_gpus
    )
    seconds = time.monotonic() - started
    figures = measure(vae)
    weights, card = write(config.output, vae, describe(config.model, config.workers, metrics, figures))
    return Trained(metrics, figures, weights, card, seconds)


def build(config: AutoencoderConfig) -> AutoencoderTiny:
    """The untrained model: RGB in [-1, 1] (N, 3, H, W) to latents (N, 4, H/8, W/8) and back."""
    return AutoencoderTiny(
        encoder_block_out_channels=(config.channels,) * 4,
        decoder_block_out_channels=(config.channels,) * 4,
        num_encoder_blocks=config.encoder_blocks,
        num_decoder_blocks=config.decoder_blocks,
    )


def initialise(vae: AutoencoderTiny) -> None:
    """Draw initial weights so that every layer keeps the variance and every residual block starts as the identity.

    With PyTorch's defaults the signal vanishes over the many layers, and the first thousand steps are lost.
    """
    for module in vae.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            if module.bias is not None:
                torch.nn.init.zeros_(module.bias)
    for module in vae.modules():
        if isinstance(module, AutoencoderTinyBlock):
            last = module.conv[-1]
            assert isinstance(last, torch.nn.Conv2d)
            torch.nn.init.zeros_(last.weight)


def train_autoencoder(
    config: AutoencoderConfig, *, output: str, workers: int = 1, num_gpus: float = 0.0
) -> tuple[AutoencoderTiny, dict[str, Any]]:
    """Train on all but the held-out pictures; the same call resumes after a kill.

    Returns:
        the model in evaluation mode on the CPU, and its metrics: step, loss, losses [[step, mean since the last], ...],
        resumed_from (the step at which this call began), device
    """
    sources()
    settings = {"autoencoder": asdict(config), "workers": workers}
    result = run_training(
        partial(_loop, config), settings, seed=config.seed, output=output, workers=workers, num_gpus=num_gpus
    )
    vae = build(config)
    restore(result.checkpoint, vae)
    assert result.metrics is not None
    return vae.eval().requires_grad_(False), result.metrics


def pictures(path: Path, short_side: int) -> Iterator[np.ndarray]:
    """Every frame of a film, or the single one of a still, scaled to this short side: uint8 (H, W, 3) RGB."""
    with av.open(path) as container:
        for frame in container.decode(video=0):
            scale = short_side / min(frame.width, frame.height)
            yield frame.to_ndarray(format="rgb24", width=round(frame.width * scale), height=round(frame.height * scale))


def training_pictures() -> list[np.ndarray]:
    """Training pictures, film and stills in equal numbers: uint8 (H, W, 3) RGB of various sizes.

    The entries of a still are the same array; film is at `SIZE`, stills at twice that.
    """
    film = [
        frame
        for number, frame in enumerate(pictures(packaged(*FILM), SIZE))
        if number % EVERY == 0 and not any(first <= number < end for first, end in HELD_OUT_SHOTS)
    ]
    stills = [next(pictures(packaged("scikit-image", name), 2 * SIZE)) for name in STILLS]
    return film + stills * (len(film) // len(stills))


def crops(sources: list[np.ndarray], config: AutoencoderConfig, step: int, rank: int = 0) -> torch.Tensor:
    """The batch of one step on one worker, deterministic: float32 (N, 3, crop, crop) RGB in [-1, 1].

    Squares of any side from `crop` to the whole picture, shrunk to `crop`, mirrored, with the colours in any order.
    """
    random = np.random.default_rng((config.seed, rank, step))
    batch = np.empty((config.batch_size, config.crop, config.crop, 3), np.uint8)
    for i in range(config.batch_size):
        source = sources[random.integers(len(sources))]
        side = random.integers(config.crop, min(source.shape[:2]) + 1)
        y, x = (random.integers(length - side + 1) for length in source.shape[:2])
        square = source[y : y + side, x : x + side, random.permutation(3)][:, :: random.choice((-1, 1))]
        batch[i] = cv2.resize(np.ascontiguousarray(square), (config.crop, config.crop), interpolation=cv2.INTER_AREA)
    return _scaled(batch)


def _scaled(frames: np.ndarray) -> torch.Tensor:
    """Frames uint8 (N, H, W, 3) as float32 (N, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(frames).permute(0, 3, 1, 2).float().div(127.5).sub(1)


class _Reconstruction(torch.nn.Module):
    """Encoder and decoder in one forward pass, without the rounding to bytes of AutoencoderTiny's own."""

    def __init__(self, vae: AutoencoderTiny) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        latents = self.vae.encoder(pixels)
        return latents, self.vae.decoder(latents)


def loss(config: AutoencoderConfig, pixels: torch.Tensor, latents: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    """L1 of pixels and of their differences along both axes, plus the latents' squared distance from whiteness."""
    edges = sum(l1_loss(output.diff(dim=axis), pixels.diff(dim=axis)) for axis in (2, 3))
    channels = latents.transpose(0, 1).flatten(1)
    identity = torch.eye(len(channels), device=latents.device)
    moments = channels.mean(1).square().mean() + (torch.cov(channels) - identity).square().mean()
    return l1_loss(output, pixels) + config.gradient_weight * edges + config.moments_weight * moments


def learning_rate(config: AutoencoderConfig, step: int) -> float:
    """A linear warm-up over 2 % of the steps, then a cosine down to 0."""
    warm_up = max(1, config.steps // 50)
    if step < warm_up:
        return config.learning_rate * (step + 1) / warm_up
    return config.learning_rate * (1 + math.cos(math.pi * (step - warm_up) / (config.steps - warm_up))) / 2


def _loop(config: AutoencoderConfig) -> None:
    sources = training_pictures()
    device = get_device()
    bare = _Reconstruction(build(config)).to(memory_format=torch.channels_last).to(device)
    vae = bare.vae
    initialise(vae)
    optimizer = torch.optim.Adam(vae.parameters(), config.learning_rate)
    metrics = restore(ray_train.get_checkpoint(), vae, optimizer)
    losses: list[list[float]] = metrics.get("losses", [])
    begin = metrics.get("step", 0)
    model = prepare_model(bare)
    total = 0.0
    for step in range(begin, config.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step)
        pixels = crops(sources, config, step, ray_train.get_context().get_world_rank()).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            latents, output = model(pixels)
        value = loss(config, pixels, latents.float(), output.float())
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        total += float(value)
        done = step + 1
        if done % config.checkpoint_every == 0 or done == config.steps:
            mean = total / (done - (losses[-1][0] if losses else 0))
            losses.append([done, mean])
            total = 0.0
            report(
                {"step": done, "loss": mean, "losses": losses, "resumed_from": begin, "device": device.type},
                vae,
                optimizer,
            )


def measure(vae: AutoencoderTiny) -> Figures:
    """Reconstruct and compare the held-out pictures, at 240×240 as in curation."""
    frames = [_square(frame) for frame in pictures(packaged(*FILM), SIZE)]
    sampled = {shot: range(shot[0], shot[1], EVERY) for shot in HELD_OUT_SHOTS}
    film = [frames[number] for numbers in sampled.values() for number in numbers]
    stills = [_square(next(pictures(packaged("scikit-image", name), SIZE))) for name in HELD_OUT_STILLS]
    same = [pair for numbers in sampled.values() for pair in pairwise(numbers)]
    cuts = sorted({edge for shot in HELD_OUT_SHOTS for edge in shot})
    return Figures(
        film_psnr=_mean_psnr(film, [_reconstructed(vae, frame) for frame in film]),
        stills_psnr=_mean_psnr(stills, [_reconstructed(vae, frame) for frame in stills]),
        film_area_psnr=_mean_psnr(film, [_area(frame) for frame in film]),
        stills_area_psnr=_mean_psnr(stills, [_area(frame) for frame in stills]),
        film_mean_psnr=_mean_psnr(film, [_mean_colour(frame) for frame in film]),
        stills_mean_psnr=_mean_psnr(stills, [_mean_colour(frame) for frame in stills]),
        same_shot=tuple(sorted(_cosine(vae, frames[a], frames[b]) for a, b in same)),
        across_cut=tuple(sorted(_cosine(vae, frames[cut - 1], frames[cut]) for cut in cuts)),
    )


def _square(frame: np.ndarray) -> np.ndarray:
    """The central square."""
    height, width = frame.shape[:2]
    y, x = (height - SIZE) // 2, (width - SIZE) // 2
    return frame[y : y + SIZE, x : x + SIZE]


def _reconstructed(vae: AutoencoderTiny, frame: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        output = vae.decoder(vae.encoder(_scaled(frame[None])))[0]
    return output.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()


def _area(frame: np.ndarray) -> np.ndarray:
    small = cv2.resize(frame, (SIZE // 8, SIZE // 8), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)


def _mean_colour(frame: np.ndarray) -> np.ndarray:
    return np.broadcast_to(frame.mean((0, 1)).round().astype(np.uint8), frame.shape)


def _mean_psnr(truths: list[np.ndarray], guesses: list[np.ndarray]) -> float:
    return float(np.mean([psnr(truth, guess) for truth, guess in zip(truths, guesses, strict=True)]))


def psnr(truth: np.ndarray, guess: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two uint8 pictures in dB: 10 log10(255² / mean squared difference)."""
    return 10 * math.log10(255**2 / float(np.mean((truth.astype(np.float64) - guess) ** 2)))


def _cosine(vae: AutoencoderTiny, a: np.ndarray, b: np.ndarray) -> float:
    with torch.inference_mode():
        latents = vae.encoder(_scaled(np.stack([a, b]))).flatten(1)
    return float(cosine_similarity(latents[:1], latents[1:]))


def write(output: str, vae: AutoencoderTiny, readme: str) -> tuple[str, str]:
    """Write config.json, encoder.safetensors and the card below `output`; returns where the last two are."""
    weights, card = (storage.join(output, name) for name in ("encoder.safetensors", "README.md"))
    encoder = {name: tensor.contiguous() for name, tensor in vae.encoder.state_dict().items()}
    storage.write_bytes(storage.join(output, "config.json"), vae.to_json_string().encode())
    storage.write_bytes(weights, save(encoder))
    storage.write_bytes(card, readme.encode())
    return weights, card


def describe(config: AutoencoderConfig, workers: int, metrics: dict[str, Any], figures: Figures) -> str:
    """The card of a trained encoder, in Markdown."""
    settings = "\n".join(f"- {name}: {value}" for name, value in asdict(config).items())
    packages = " and ".join(f"{name} {metadata.version(name)}" for name in (FILM[0], "scikit-image"))
    shots = ", ".join(f"{first}–{end - 1}" for first, end in HELD_OUT_SHOTS)
    losses = ", ".join(
        f"{value:.4f} up to step {step}" for step, value in (metrics["losses"][0], metrics["losses"][-1])
    )
    return f"""# A tiny VAE encoder

`encoder.safetensors` is the encoder of a diffusers `AutoencoderTiny` and `config.json` its settings. It takes RGB in
[−1, 1] (N, 3, H, W) and gives latents (N, 4, H/8, W/8), so that the demo and small machines have latents without a
download (`latents.model: tiny`). It has seen little: for a corpus take a VAE that was trained on millions of pictures.

## Data
From {packages}:
- {FILM[1]}, CC-BY-4.0, © Titusz Pan: every {EVERY}th frame of the shots that are not held out
- public domain or CC0: {", ".join(STILLS)}

Held out: the shots of frames {shots}, whose camera positions occur nowhere else,
and {", ".join(HELD_OUT_STILLS)} (CC0). They chose no checkpoint: this is the last one.

Licence of the weights: CC-BY-4.0, as the film's.

## Training
With Ray Train on {workers} {"GPU" if metrics["device"] == "cuda" else "CPU"} worker{"s" if workers > 1 else ""}:

    {_command(config, workers)}

Adam, with a warm-up and a cosine; on a GPU bfloat16 in the forward pass. The loss is the L1 distance of the pixels,
plus `gradient_weight` × that of the differences of neighbouring pixels,
plus `moments_weight` × the squared distance of the latents' mean from 0 and of their covariance from 1.
Its mean was {losses}.

{settings}

{_results(figures)}"""


def _command(config: AutoencoderConfig, workers: int) -> str:
    """The command that trains these weights again."""
    changed = {
        f"model.{f.name}": getattr(config, f.name) for f in fields(config) if getattr(config, f.name) != f.default
    }
    if workers > 1:
        changed["workers"] = workers
    arguments = [shlex.quote(f"{name}={json.dumps(value)}") for name, value in changed.items()]
    return " ".join(["python -m jobs.tiny_vae train", *arguments])


def _results(figures: Figures) -> str:
    """The figures of a card."""
    same, cut = np.array(figures.same_shot), np.array(figures.across_cut)
    return f"""## Reconstruction of held-out pictures
PSNR in dB at 240×240, mean over pictures:

| | {len(same) + len(HELD_OUT_SHOTS)} frames of held-out shots | {len(HELD_OUT_STILLS)} held-out stills |
|---|---|---|
| encoder and decoder | {figures.film_psnr:.2f} | {figures.stills_psnr:.2f} |
| mean of every 8×8 pixels, scaled up again (bicubic) | {figures.film_area_psnr:.2f} | {figures.stills_area_psnr:.2f} |
| mean colour | {figures.film_mean_psnr:.2f} | {figures.stills_mean_psnr:.2f} |

## Cosine of the latents of two frames
| | pairs | least | median | greatest |
|---|---|---|---|---|
| 250 ms apart in a held-out shot | {len(same)} | {same.min():.3f} | {np.median(same):.3f} | {same.max():.3f} |
| on both sides of a cut into or out of one | {len(cut)} | {cut.min():.3f} | {np.median(cut):.3f} | {cut.max():.3f} |
"""

"""Identifying by diffusion against the reference's loop: `python -m tests.benchmarks.diffusion [LEARNT [PICTURES]]`.

One thread of one process, float32, all ways in every round; CPU-seconds. The loop does what the reference does: one
identity at a time, one timestep at a time, each mixed with the same noise.

Without an argument a UNet of Stable Diffusion's classes with random weights (6 million of them, which cost the same as
others), latents of 16×16 and 20 identities. Random weights know nobody, so that no answer is certain: staged spends its
most here, and what it answers means nothing. LEARNT is the output of `tests.benchmarks.drawn_characters`: its model,
its identities and so many (20) of its pictures to be recognised, so that it also tells how often the answers are the
same, and right.
"""

import copy
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch.nn import functional

from actors.media.images import read_image
from actors.movie_characters.diffusion import (
    DiffusionConfig,
    StableDiffusion,
    crop,
    encode_pictures,
    load_diffusion,
    noise_schedule,
)
from actors.movie_characters.diffusion_classifier import StagesConfig, ask_all, decide, race
from actors.movie_characters.identities import find_learnt
from actors.movie_characters.names import class_of
from actors.movie_characters.noise_losses import full_bank, noise_losses, staged_bank
from pipelines.movie_characters.pictures import find_pictures
from tests.benchmarks.curation import alternate, line, ratio

STEPS, PER_CALL = 50, 32
IDENTITIES, SHAPE, ROUNDS = 20, (4, 16, 16), 3
"""Of random weights, one picture a round."""
SIDE = 64
"""Of pictures of what was learnt, all in one round."""


@dataclass(frozen=True)
class Question:
    """Who is on pictures."""

    model: StableDiffusion
    latents: torch.Tensor
    """float32 (N, C, h, w)."""
    conditions: torch.Tensor
    """float32 (K, 77, d)."""
    truth: list[int]
    """Of each picture the number of the right identity; none where weights know nobody."""


def random() -> Question:
    """Without a VAE: pictures here are latents."""
    torch.manual_seed(0)
    blocks: dict[str, Any] = {
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "block_out_channels": (64, 128, 128),
        "layers_per_block": 1,
        "attention_head_dim": 4,
        "cross_attention_dim": 128,
        "sample_size": SHAPE[1],
    }
    unet: Any = UNet2DConditionModel(**blocks).eval().requires_grad_(False)
    model = StableDiffusion(unet, None, noise_schedule(), "cpu", torch.float32)
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn((1, *SHAPE), generator=generator)
    return Question(model, latents, 3 * torch.randn((IDENTITIES, 77, 128), generator=generator), [])


def learnt(root: Path, count: int) -> Question:
    """What drawn_characters left, of its pictures as many of each person as may be."""
    model = load_diffusion(str(root / "model"), DiffusionConfig())
    people = find_learnt(str(root / "identities"), "identities")
    pictures = find_pictures(str(root / "asked"), "asked")
    some = pictures[:: max(1, len(pictures) // count)][:count]
    pixels = np.stack([crop(read_image(one.uri), SIDE, SIDE) for one in some])
    names = [class_of(one.name) for one in people]
    truth = [names.index(class_of(one.name)) for one in some]
    conditions = torch.from_numpy(np.stack([one.optimized for one in people]))
    return Question(model, encode_pictures(model, pixels), conditions, truth)


def by_reference(model: StableDiffusion, latents: torch.Tensor, conditions: torch.Tensor) -> np.ndarray:
    """Mean losses (N, K), one evaluation after the other."""
    bank = full_bank(model.scheduler, STEPS, latents.shape[1:], 0)
    losses = np.empty((len(latents), len(conditions)))
    with torch.inference_mode():
        for i, latent in enumerate(latents):
            for k, condition in enumerate(conditions):
                total = 0.0
                for t in bank.timesteps:
                    noisy = model.scheduler.add_noise(latent[None], bank.noise, t[None])
                    found = model.unet(noisy, t, condition[None]).sample
                    total += functional.mse_loss(found, bank.noise).item()
                losses[i, k] = total / STEPS
    return losses


def by_us(model: StableDiffusion, latents: torch.Tensor, conditions: torch.Tensor, staged: bool) -> np.ndarray:
    """Losses (N, K, P)."""
    stages, shape = StagesConfig(), latents.shape[1:]
    bank = (
        staged_bank(model.scheduler, stages.samples[-1], STEPS, shape, 0)
        if staged
        else full_bank(model.scheduler, STEPS, shape, 0)
    )

    def ask(rows: np.ndarray) -> np.ndarray:
        return noise_losses(model, latents, conditions, bank, torch.from_numpy(rows), "l2", PER_CALL).numpy()

    wanted = [range(len(conditions))] * len(latents)
    if staged:
        return race(wanted, len(conditions), stages, ask)
    return ask_all(wanted, len(conditions), STEPS, ask)


def main(root: Path | None, count: int) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    asked = learnt(root, count) if root else random()
    model, about = asked.model, (asked.latents, asked.conditions)
    compiled = replace(model, unet=copy.deepcopy(model.unet))
    compiled.unet.compile()
    by_us(compiled, asked.latents[:1], asked.conditions, staged=False)
    weights, pictures = sum(parameter.numel() for parameter in model.unet.parameters()), len(asked.latents)
    print(f"{platform.machine()}, one thread, Python {platform.python_version()},")
    print(", ".join(f"{package} {version(package)}" for package in ("torch", "diffusers")) + f", {weights:,} weights,")
    print(f"{pictures} pictures, {len(asked.conditions)} identities\n")
    found: dict[str, np.ndarray] = {}

    def kept(name: str, work: Callable[[], np.ndarray]) -> Callable[[], None]:
        def run() -> None:
            found[name] = work()

        return run

    taken = alternate(
        {
            "reference": kept("reference", lambda: by_reference(model, *about)),
            "full": kept("full", lambda: by_us(model, *about, staged=False)),
            "compiled": kept("compiled", lambda: by_us(compiled, *about, staged=False)),
            "staged": kept("staged", lambda: by_us(model, *about, staged=True)),
        },
        1 if root else ROUNDS,
    )
    loop = found["reference"]
    answers = {name: [decide(losses) for losses in found[name]] for name in ("full", "compiled", "staged")}
    best = {name: np.array([one.best for one in some]) for name, some in answers.items()}
    best["reference"] = loop.argmin(1)
    far = np.abs(np.array([one.losses for one in answers["full"]]) / loop - 1).max()
    spent = np.mean([one.evaluations for one in answers["staged"]])
    print("| figure | measured | target |\n|---|---|---|")
    for name in taken:
        line(f"{name}: CPU-s a picture", f"{np.median(taken[name]) / pictures:.2f}")
    for name in ("full", "compiled", "staged"):
        line(f"reference / {name}", ratio(taken["reference"], taken[name]), "at least 8" * (name == "staged"))
    line("staged: evaluations of the UNet a picture", f"{spent:.0f} of {len(asked.conditions) * STEPS}")
    line("greatest relative distance of full's losses from the reference's", f"{far:.1e}")
    for name in ("full", "compiled", *(["staged"] if root else [])):
        line(f"{name}: the reference's answers", f"{np.mean(best[name] == best['reference']):.1%}")
    for name in taken if root else ():
        line(f"{name}: right answers", f"{np.mean(best[name] == asked.truth):.1%}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None, int(sys.argv[2]) if len(sys.argv) > 2 else 20)

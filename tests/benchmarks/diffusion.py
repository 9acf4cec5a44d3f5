"""Identifying by diffusion against the reference's loop: `python -m tests.benchmarks.diffusion`.

A UNet of Stable Diffusion's classes with random weights (6 million of them, which cost the same as others), latents of
16×16, 20 identities, one thread of one process, float32, both ways in every round; CPU-seconds. The loop does what the
reference does: one identity at a time, one timestep at a time, each mixed with the same noise. Random weights know
nobody, so that no answer is certain: staged spends its most here, and what it answers means nothing.
"""

import platform
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch.nn import functional

from actors.diffusion import StableDiffusion, full_bank, noise_losses, noise_schedule, staged_bank
from actors.identity import StagesConfig, ask_all, decide, race
from tests.benchmarks.curation import alternate, line, ratio

IDENTITIES, STEPS, PICTURES, ROUNDS = 20, 50, 1, 3
SHAPE = (4, 16, 16)
PER_CALL = 32


def small() -> StableDiffusion:
    """The model, without a VAE: pictures here are latents."""
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
    return StableDiffusion(unet, None, noise_schedule(), "cpu", torch.float32)


def by_reference(model: StableDiffusion, latents: torch.Tensor, conditions: torch.Tensor) -> np.ndarray:
    """Mean losses (N, K), one evaluation after the other."""
    bank = full_bank(model.scheduler, STEPS, SHAPE, 0)
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
    stages = StagesConfig()
    bank = (
        staged_bank(model.scheduler, stages.samples[-1], STEPS, SHAPE, 0)
        if staged
        else full_bank(model.scheduler, STEPS, SHAPE, 0)
    )

    def ask(rows: np.ndarray) -> np.ndarray:
        return noise_losses(model, latents, conditions, bank, rows, "l2", PER_CALL)

    wanted = [range(len(conditions))] * len(latents)
    if staged:
        return race(wanted, len(conditions), stages, ask)
    return ask_all(wanted, len(conditions), STEPS, ask)


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    model = small()
    weights = sum(parameter.numel() for parameter in model.unet.parameters())
    print(f"{platform.machine()}, one thread, Python {platform.python_version()},")
    print(", ".join(f"{package} {version(package)}" for package in ("torch", "diffusers")) + f", {weights:,} weights\n")
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn((PICTURES, *SHAPE), generator=generator)
    conditions = 3 * torch.randn((IDENTITIES, 77, 128), generator=generator)
    found: dict[str, np.ndarray] = {}

    def kept(name: str, work: Callable[[], np.ndarray]) -> Callable[[], None]:
        def run() -> None:
            found[name] = work()

        return run

    taken = alternate(
        {
            "reference": kept("reference", lambda: by_reference(model, latents, conditions)),
            "full": kept("full", lambda: by_us(model, latents, conditions, staged=False)),
            "staged": kept("staged", lambda: by_us(model, latents, conditions, staged=True)),
        },
        ROUNDS,
    )
    loop = found["reference"]
    answers = {name: [decide(losses) for losses in found[name]] for name in ("full", "staged")}
    same = np.mean([one.best for one in answers["full"]] == loop.argmin(1))
    far = np.abs(np.array([one.losses for one in answers["full"]]) / loop - 1).max()
    spent = np.mean([one.evaluations for one in answers["staged"]])
    print("| figure | measured | target |\n|---|---|---|")
    for name in ("reference", "full", "staged"):
        line(f"{name}: CPU-s a picture", f"{np.median(taken[name]) / PICTURES:.1f}")
    line("reference / full", ratio(taken["reference"], taken["full"]))
    line("reference / staged", ratio(taken["reference"], taken["staged"]), "at least 8")
    line("staged: evaluations of the UNet a picture", f"{spent:.0f} of {IDENTITIES * STEPS}")
    line("greatest relative distance of full's losses from the reference's", f"{far:.1e}")
    line("full's answers as the reference's", f"{same:.0%}", "100 %")


if __name__ == "__main__":
    main()

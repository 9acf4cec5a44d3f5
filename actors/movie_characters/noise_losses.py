"""How well a diffusion model predicts the noise in a picture when it is conditioned on a character.

A latent z of the picture is mixed with known noise, z_t = sqrt(a_t) z + sqrt(1 - a_t) noise. The UNet predicts the
noise, given the timestep t and a condition c, the embedding of an identity. A flow mixes z_t = (1 - s_t) z + s_t noise,
and its transformer predicts the velocity, noise - z. The condition with the smallest error names
the character (Li et al., "Your Diffusion Model is Secretly a Zero-Shot Classifier", 2023). All identities of a picture
are compared on the same latent, timesteps and noise.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from actors.core.errors import UserError
from actors.models.devices import moved
from actors.movie_characters.diffusion import FlowSchedule, StableDiffusion, shrinks
from actors.movie_characters.families import TRAIN_TIMESTEPS

if TYPE_CHECKING:
    # Only workers that hold a model pay for importing torch.
    import torch

Loss = Literal["l2", "l1", "huber"]
Weighting = Literal["uniform", "exp", "snr"]


@dataclass(frozen=True)
class Bank:
    """Pairs of a timestep and noise, in the order in which they are drawn."""

    timesteps: "torch.Tensor"
    """int64 (P,)."""
    noise: "torch.Tensor"
    """float32 (P, C, h, w), or (1, C, h, w) where all pairs share it."""
    weights: "torch.Tensor"
    """float32 (P,): what the loss of each pair is multiplied by."""

    def __len__(self) -> int:
        return len(self.timesteps)

    def to(self, device: str) -> "Bank":
        """The bank on a device."""
        return Bank(*(moved(one, device) for one in (self.timesteps, self.noise, self.weights)))


def full_bank(scheduler: Any, steps: int, shape: Sequence[int], seed: int, weighting: Weighting = "uniform") -> Bank:
    """Evenly spaced timesteps, from noisy to clear, that share one noise tensor of the shape (C, h, w)."""
    import torch

    noise = torch.randn((1, *shape), generator=torch.Generator().manual_seed(seed))
    times = evenly_spaced(scheduler, steps)
    return Bank(times, noise, _weights(scheduler, times, times, weighting))


def staged_bank(
    scheduler: Any, pairs: int, steps: int, shape: Sequence[int], seed: int, weighting: Weighting = "uniform"
) -> Bank:
    """Pairs of one of the evenly spaced timesteps and noise of its own; every beginning is spread over the timesteps.

    To that end their order is van der Corput's: each next one lies in the widest gap that those before have left. After
    all `steps` it begins anew.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn((pairs, *shape), generator=generator)
    spaced = evenly_spaced(scheduler, steps)
    order = torch.tensor(_spread(steps))
    times = spaced[order[torch.arange(pairs) % steps]]
    return Bank(times, noise, _weights(scheduler, times, spaced, weighting))


def _spread(count: int) -> list[int]:
    """Numbers below `count` in van der Corput's order, shifted by half a gap: the first is in the middle."""
    bits = max(1, math.ceil(math.log2(count)))
    backwards = [int(f"{number:0{bits}b}"[::-1], 2) for number in range(2**bits)]
    middle = [(place + 2 ** (bits - 1)) % 2**bits for place in backwards]
    return [place for place in middle if place < count]


def evenly_spaced(scheduler: Any, steps: int) -> "torch.Tensor":
    """Timesteps as DDIM takes them, from noisy to clear: int64 (steps,)."""
    if not 1 <= steps <= TRAIN_TIMESTEPS:
        raise UserError(f"num_inference_steps={steps}: it lies in 1..{TRAIN_TIMESTEPS}")
    scheduler.set_timesteps(steps)
    return scheduler.timesteps


def _weights(scheduler: Any, times: "torch.Tensor", spaced: "torch.Tensor", weighting: Weighting) -> "torch.Tensor":
    """Weights of timesteps, with a mean of 1 over the evenly spaced ones.

    exp is exp(-7 t) with t in 0..1 (Clark and Jaini, "Text-to-Image Diffusion Models are Zero Shot Classifiers", 2023),
    snr the ratio of signal to noise: a_t / (1 - a_t), of a flow ((1 - s_t) / s_t)².
    """
    import torch

    def raw(t: "torch.Tensor") -> "torch.Tensor":
        match weighting:
            case "uniform":
                return torch.ones(len(t))
            case "exp":
                return torch.exp(-7 * t / TRAIN_TIMESTEPS)
            case "snr":
                if isinstance(scheduler, FlowSchedule):
                    return (1 / scheduler.sigma(t) - 1) ** 2
                signal = scheduler.alphas_cumprod[t]
                return signal / (1 - signal)

    return raw(times) / raw(spaced).mean()


def drawn_timesteps(model: StableDiffusion, count: int, generator: "torch.Generator") -> "torch.Tensor":
    """Timesteps of training, int64 (count,): uniform, of a flow with a standard normal logit (Esser et al., "Scaling
    Rectified Flow Transformers", 2024)."""
    import torch

    if not model.family.flow:
        return torch.randint(TRAIN_TIMESTEPS, (count,), generator=generator)
    return (torch.randn(count, generator=generator).sigmoid() * TRAIN_TIMESTEPS).long()


def predict(
    model: StableDiffusion,
    noisy: "torch.Tensor",
    timesteps: "torch.Tensor",
    conditions: "torch.Tensor",
    sizes: "torch.Tensor | None" = None,
) -> "torch.Tensor":
    """The noise that the network finds in noisy latents float32 (B, C, h, w), or the velocity: the same shape, float32.

    timesteps int64 (B,); conditions (B, S, d); sizes float (B, 6) as `Family.predict` has them, by default those of a
    picture without a margin. A UNet that predicts v = sqrt(a) noise - sqrt(1 - a) z gives the noise, too.
    """
    scheduler, family = model.scheduler, model.family
    times = scheduler.sigma(timesteps) * TRAIN_TIMESTEPS if family.flow else timesteps
    if sizes is None:
        sizes = noisy.new_zeros(len(noisy), 6)
        # Numbers fill a tensor on the device, where a copy of them would wait.
        for place, side in zip((0, 1, 4, 5), 2 * noisy.shape[2:] if family.sized else (), strict=False):
            sizes[:, place] = side * shrinks(model.vae)
    texts = family.unpack(model.unet, conditions.to(model.dtype))
    found = family.predict(model.unet, noisy.to(model.dtype), times, *texts, sizes).float()
    if family.flow or scheduler.config.prediction_type == "epsilon":
        return found
    signal = scheduler.alphas_cumprod.to(noisy.device)[timesteps][:, None, None, None]
    return signal.sqrt() * found + (1 - signal).sqrt() * noisy


def noise_losses(
    model: StableDiffusion,
    latents: "torch.Tensor",
    conditions: "torch.Tensor",
    bank: Bank,
    asked: "torch.Tensor",
    loss: Loss,
    per_call: int,
) -> "torch.Tensor":
    """Losses of single evaluations of the network, float32 (B,): the mean over a latent, times the weight of the pair.

    latents: float32 (N, C, h, w); conditions: (K, 77, d); asked: int64 (B, 3), for each evaluation the number of its
    latent, of its condition and of its pair in the bank. All tensors, and the losses, are on the model's device, which
    nothing here waits for.
    """
    import torch
    from torch.nn import functional

    how = {"l2": functional.mse_loss, "l1": functional.l1_loss, "huber": functional.huber_loss}[loss]
    shared = len(bank.noise) == 1
    found = []
    with torch.inference_mode():
        for part in asked.split(per_call):
            latent, condition, pair = part.unbind(1)
            noise = bank.noise.expand(len(part), -1, -1, -1) if shared else bank.noise[pair]
            times = bank.timesteps[pair]
            clear = latents[latent]
            predicted = predict(model, model.scheduler.add_noise(clear, noise, times), times, conditions[condition])
            wrong = how(predicted, model.target(clear, noise), reduction="none").mean((1, 2, 3))
            found.append(wrong * bank.weights[pair])
    return torch.cat(found) if found else latents.new_zeros(0)

"""Losses of several classes at once: logits and 0/1 targets (B, C) to their mean, a scalar."""

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from actors.core.errors import UserError
from pipelines.core.float32 import in_float32


@in_float32
def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy, every class and side alike."""
    return binary_cross_entropy_with_logits(logits, targets.to(logits.dtype))


def class_balanced_weights(positives: Tensor, films: int, beta: float = 0.999) -> tuple[Tensor, Tensor]:
    """Weights (C,) of the films that have a class and of those that do not, from how many have it, (C,) of `films`.

    The inverse of the effective number of samples (1 - beta^n) / (1 - beta), both sides of a class scaled to sum to 2:
    Cui et al., "Class-Balanced Loss Based on Effective Number of Samples", 2019, with each class a problem of two
    classes. beta = 0 weighs nothing, and beta near 1 by the inverse of the count.
    """
    if not 0 <= beta < 1:
        raise UserError(f"beta lies in [0, 1), not at {beta}")
    counts = torch.stack([positives, films - positives]).double()
    # A side without films weighs nothing in the loss, but would weigh infinitely here.
    weights = (1 - beta) / (1 - beta ** counts.clamp(min=1))
    there, missing = (2 * weights / weights.sum(0)).float()
    return there, missing


@in_float32
def class_balanced(logits: Tensor, targets: Tensor, there: Tensor, missing: Tensor) -> Tensor:
    """Binary cross-entropy with the weights of `class_balanced_weights`."""
    weights = torch.where(targets > 0, there, missing)
    return binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), weights)


@in_float32
def asymmetric(
    logits: Tensor, targets: Tensor, gamma_there: float = 0.0, gamma_missing: float = 4.0, margin: float = 0.05
) -> Tensor:
    """Cross-entropy that cares less for what is easy, and more so where the class is missing.

    Ridnik et al., "Asymmetric Loss For Multi-Label Classification", 2021: (1 - p)^gamma_there log p where the class is
    there, q^gamma_missing log(1 - q) with q = max(p - margin, 0) where it is not; their mean, negated.
    """
    p = logits.sigmoid()
    # Below 1, where its logarithm would be infinite.
    q = (p - margin).clamp(0, 1 - 1e-6)
    there = (1 - p) ** gamma_there * logsigmoid(logits)
    missing = q**gamma_missing * torch.log1p(-q)
    return -torch.where(targets > 0, there, missing).mean()

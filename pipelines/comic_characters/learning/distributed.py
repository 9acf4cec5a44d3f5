"""What the workers of a training see together: sums and rows over all of them, with gradients that find their way back.

Without several workers these are the plain thing.
"""

from typing import Any

import torch
from torch import Tensor, distributed, nn


class _Sum(torch.autograd.Function):
    """The sum over all workers. What each does with it depends on every worker's part, and so do the gradients."""

    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        total = part.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        return _Sum.forward(ctx, grad_outputs[0])


def alone() -> bool:
    """Whether there is no other worker."""
    return not distributed.is_available() or not distributed.is_initialized() or distributed.get_world_size() == 1


def gathered(rows: Tensor) -> tuple[Tensor, int]:
    """The rows of all workers in their order, (sum of n, D) of each (n, D), and where this worker's begin."""
    if alone():
        return rows, 0
    counts = torch.zeros(distributed.get_world_size(), dtype=torch.int64, device=rows.device)
    counts[distributed.get_rank()] = len(rows)
    distributed.all_reduce(counts)
    first = int(counts[: distributed.get_rank()].sum())
    after = int(counts.sum()) - first - len(rows)
    return _Sum.apply(nn.functional.pad(rows, (0, 0, first, after))), first


class SharedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm over the rows of all workers on CPUs. On GPUs a training takes PyTorch's own, SyncBatchNorm, for it.

    Takes (N, C) or (N, C, H, W), as BatchNorm1d and BatchNorm2d do, whose weights it has.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or alone():
            return super().forward(input)
        assert self.running_mean is not None and self.running_var is not None
        with torch.autocast(input.device.type, enabled=False):
            over = [0, *range(2, input.dim())]
            # Around the running mean, so that the difference of squares keeps its digits.
            shift = self.running_mean.view(1, -1, *[1] * (input.dim() - 2))
            values = input.float() - shift
            count = values.new_tensor([values.numel() / values.shape[1]])
            sums = _Sum.apply(torch.cat([values.sum(over), values.square().sum(over), count]))
            first, second = sums[:-1].chunk(2)
            total = sums[-1].detach()
            mean = first / total
            variance = (second / total - mean.square()).clamp(min=0)
            with torch.no_grad():
                share = self.momentum or 0.0
                self.running_var.lerp_(variance * total / (total - 1), share)
                moved = self.running_mean + mean * share
            scale = (variance + self.eps).rsqrt()
            offset = -mean * scale
            if self.affine:
                scale, offset = scale * self.weight, offset * self.weight + self.bias
            result = values * scale.view_as(shift) + offset.view_as(shift)
            self.running_mean.copy_(moved)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
        return result.to(input.dtype)

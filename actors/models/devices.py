"""How arrays and tensors reach the device of a model: in one copy each, and a GPU without waiting for it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    # Only workers that hold a model pay for importing torch.
    import torch


def sent(arrays: Sequence[np.ndarray], device: str) -> "torch.Tensor":
    """Arrays (n, ...) of one shape and dtype, one after the other, as a tensor on the device: (sum of n, ...).

    To a GPU they go through page-locked memory and on a stream of their own, so that the call returns before they are
    there, and what is computed meanwhile goes on; what the caller computes with them waits.
    """
    import torch

    if device == "cpu":
        return torch.from_numpy(np.concatenate(arrays))
    kind = torch.from_numpy(arrays[0][:0].copy()).dtype
    staged = torch.empty((sum(map(len, arrays)), *arrays[0].shape[1:]), dtype=kind, pin_memory=True)
    np.concatenate(arrays, out=staged.numpy())
    here, apart = torch.cuda.current_stream(), torch.cuda.Stream()
    with torch.cuda.stream(apart):
        there = staged.to(device, non_blocking=True)
    here.wait_stream(apart)
    there.record_stream(here)
    return there


def sent_apart(arrays: Sequence[np.ndarray], device: str) -> "list[torch.Tensor]":
    """Arrays of one dtype, each of its own shape, as tensors on the device: all in one copy, as `sent` makes it."""
    whole = sent([np.ascontiguousarray(array).reshape(-1) for array in arrays], device)
    return [
        part.view(array.shape)
        for part, array in zip(whole.split([array.size for array in arrays]), arrays, strict=True)
    ]


def moved(tensor: "torch.Tensor", device: str) -> "torch.Tensor":
    """A tensor of the CPU on a device; nothing waits for its way to a GPU."""
    return tensor.pin_memory().to(device, non_blocking=True) if device == "cuda" else tensor.to(device)

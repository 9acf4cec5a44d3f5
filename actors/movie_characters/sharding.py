"""A network that is divided over the workers of a process group: FSDP2 of torch, block by block.

Every worker keeps 1/n of each weight, of its gradient and of Adam's moments, and gathers a block while it computes with
it. A LoRA is added to a divided network as it is: whole on every worker, since it is small.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from actors.core.checkpoints import Tensors


def divide(network: Any, device: str, workers: int, compute: torch.dtype | None = None) -> None:
    """Divide a network of diffusers over all workers and move it to the device; all call it.

    compute: precision in which weights are gathered and used, where it is another than they are kept in. Gradients are
    summed over workers in the precision that they are kept in.
    """
    mesh, blocks = init_device_mesh(device, (workers,)), set(network._no_split_modules or ())
    # Inputs are rounded where those of a whole network are: timesteps would not bear it.
    policy = MixedPrecisionPolicy(compute, torch.float32 if compute else None, cast_forward_inputs=False)
    # From the innermost on: each divides what those inside have left.
    for module in reversed(list(network.modules())):
        if type(module).__name__ in blocks and module is not network:
            fully_shard(module, mesh=mesh, mp_policy=policy)
    fully_shard(network, mesh=mesh, mp_policy=policy)
    for module in network.modules():
        if isinstance(module, FSDPModule):
            # The loss of each worker is its part of that of all rows.
            module.set_gradient_divide_factor(1.0)
            # Gloo has no mean.
            module.set_force_sum_reduction_for_comms(True)


def is_divided(tensor: Tensor) -> bool:
    """Whether this worker has a part of it only."""
    return isinstance(tensor, DTensor)


def own(tensor: Tensor) -> Tensor:
    """What this worker has of a tensor, in place."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gathered(tensors: Tensors, keep: bool) -> Tensors:
    """Whole tensors on the CPU; all workers call it, and those that do not keep them get none."""
    found = {}
    for name, tensor in tensors.items():
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if keep:
            found[name] = whole.detach().cpu()
    return found


def like(tensor: Tensor, other: Tensor) -> Tensor:
    """A whole tensor, divided as another one of its shape is."""
    if not isinstance(other, DTensor) or tensor.shape != other.shape:
        return tensor
    moved = tensor.to(other.device, other.dtype)
    # Every worker has read it: none sends its own.
    return distribute_tensor(moved, other.device_mesh, other.placements, src_data_rank=None)


def plain(network: Any, kind: Any, weights: Tensors) -> Any:
    """The undivided network of the class that it had before, on the CPU, with whole weights of `gathered`."""
    with torch.device("meta"):
        made: nn.Module = kind.from_config(network.config)
    made.load_state_dict(weights, assign=True)
    return made

"""Optical flow by RAFT (torchvision's raft_large), for frames that are on a GPU anyway."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.core.errors import UserError

if TYPE_CHECKING:
    import torch


def check_raft(weights: str) -> None:
    """Raise UserError where motion.weights is neither a file nor a name that torchvision knows; nothing is loaded."""
    from torchvision.models.optical_flow import Raft_Large_Weights

    if not Path(weights).is_file() and weights not in Raft_Large_Weights.__members__:
        known = ", ".join(Raft_Large_Weights.__members__)
        raise UserError(f"motion.weights={weights} is neither a safetensors file nor one of torchvision's: {known}")


def load_raft(weights: str, device: str) -> Any:
    """raft_large with the weights of that name, or of a state dict in a safetensors file."""
    from safetensors.torch import load_file
    from torchvision.models.optical_flow import Raft_Large_Weights, raft_large

    check_raft(weights)
    if Path(weights).is_file():
        model = raft_large()
        model.load_state_dict(load_file(weights))
    else:
        model = raft_large(weights=Raft_Large_Weights[weights])
    return model.to(device).eval().requires_grad_(False)


def raft_precision(device: str) -> str:
    """What RAFT computes in: bfloat16 where it is fast."""
    return "bfloat16" if device == "cuda" else "float32"


def raft_speeds(model: Any, before: "torch.Tensor", after: "torch.Tensor", pairs_per_call: int = 8) -> "torch.Tensor":
    """Mean length of the flow of each pair, in pixels per step: float32 (P,); frames are uint8 (P, H, W, 3) RGB.

    H and W must be multiples of 8 and at least 128 (RAFT's own bounds).
    """
    import torch

    speeds = []
    for first, second in zip(before.split(pairs_per_call), after.split(pairs_per_call), strict=True):
        pair = [frames.permute(0, 3, 1, 2).float().div_(127.5).sub_(1).contiguous() for frames in (first, second)]
        # bf16 where it is fast; RAFT keeps its correlations in float32 itself.
        with torch.autocast(first.device.type, torch.bfloat16, enabled=first.is_cuda):
            flow = model(*pair)[-1]
        speeds.append(flow.float().norm(dim=1).mean((1, 2)))
    return torch.cat(speeds)

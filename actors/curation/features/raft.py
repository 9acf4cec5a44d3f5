"""Optical flow by RAFT (torchvision's raft_large), for frames that are on a GPU anyway.

The network is torchvision's, run for what is needed here: each frame goes through its encoders once although two pairs
share it, and only the last of its flows is brought to full size.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from actors.core.errors import UserError
from actors.models.devices import sent

if TYPE_CHECKING:
    import torch

UPDATES = 12
"""How often the flow is refined; torchvision's default."""
RADIUS = 4
"""Correlations are looked up so many pixels around a point."""


def check_raft(weights: str) -> None:
    """Raise UserError where motion.weights is neither a file nor a name that torchvision knows; nothing is loaded."""
    from torchvision.models.optical_flow import Raft_Large_Weights

    if not Path(weights).is_file() and weights not in Raft_Large_Weights.__members__:
        known = ", ".join(Raft_Large_Weights.__members__)
        raise UserError(f"motion.weights={weights} is neither a safetensors file nor one of torchvision's: {known}")


def load_raft(weights: str, device: str) -> Any:
    """raft_large with the weights of that name, or of a state dict in a safetensors file; in bfloat16 on a GPU."""
    import torch
    from safetensors.torch import load_file
    from torchvision.models.optical_flow import Raft_Large_Weights, raft_large

    check_raft(weights)
    if Path(weights).is_file():
        model = raft_large()
        model.load_state_dict(load_file(weights))
    else:
        model = raft_large(weights=Raft_Large_Weights[weights])
    return prepared(model, device, getattr(torch, raft_precision(device)))


def raft_precision(device: str) -> str:
    """What RAFT computes in: bfloat16 where it is fast."""
    return "bfloat16" if device == "cuda" else "float32"


def prepared(model: Any, device: str, dtype: "torch.dtype") -> Any:
    """A raft_large in evaluation mode on the device; its batch norms stay float32."""
    import torch

    model.to(device, dtype, memory_format=torch.channels_last)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.float()
    return model.eval().requires_grad_(False)


def raft_speeds(model: Any, frames: "torch.Tensor", firsts: np.ndarray, pairs_per_call: int = 8) -> "torch.Tensor":
    """Mean length of the flow from some frames to the ones after them, in pixels per step: float32 (P,).

    frames: uint8 (T, H, W, 3) RGB; H and W must be multiples of 8 and at least 128 (RAFT's own bounds).
    firsts: int64 (P,), ascending numbers of frames, each below T - 1.
    """
    import torch

    speeds = []
    everything = sent([firsts], frames.device.type)
    for begin in range(0, len(firsts), pairs_per_call):
        some = firsts[begin : begin + pairs_per_call]
        start, end = int(some[0]), int(some[-1]) + 2
        flow = _flow(model, frames[start:end], everything[begin : begin + pairs_per_call] - start)
        speeds.append(flow.norm(dim=1).mean((1, 2)))
    return torch.cat(speeds)


def _flow(model: Any, frames: "torch.Tensor", first: "torch.Tensor") -> "torch.Tensor":
    """The flow of each pair, float32 (P, 2, H, W); first: int64 (P,) on the device of the frames."""
    import torch
    from torchvision.models.optical_flow._utils import upsample_flow

    dtype = model.mask_predictor.conv.weight.dtype
    pixels = frames.permute(0, 3, 1, 2).float().div_(127.5).sub_(1).to(dtype, memory_format=torch.channels_last)
    # Correlations in float32, as the authors of RAFT compute them: of bfloat16 two digits would be left.
    features = model.feature_encoder(pixels).float()
    pyramid = _pyramid(features[first], features[first + 1])
    context = model.context_encoder(pixels[first])
    state = model.update_block.hidden_state_size
    hidden, context = torch.tanh(context[:, :state]), torch.relu(context[:, state:])
    height, width = features.shape[2:]
    points = _points(height, width, features.device).expand(len(first), -1, -1, -1)
    moved = torch.zeros_like(points)
    for _ in range(UPDATES):
        near = _lookup(pyramid, points + moved).permute(0, 3, 1, 2).to(dtype)
        flow = moved.permute(0, 3, 1, 2).to(dtype, memory_format=torch.channels_last)
        hidden, step = model.update_block(hidden, context, near, flow)
        moved = moved + step.permute(0, 2, 3, 1).float()
    return upsample_flow(moved.permute(0, 3, 1, 2).contiguous(), model.mask_predictor(hidden).float())


def _points(height: int, width: int, device: "torch.device") -> "torch.Tensor":
    """x and y of each place of a picture: float32 (1, height, width, 2)."""
    import torch

    y, x = torch.meshgrid(torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij")
    return torch.stack([x, y], -1).float()[None]


def _pyramid(before: "torch.Tensor", after: "torch.Tensor") -> "list[torch.Tensor]":
    """Correlations of each place with all places of the other picture, and those of 2, 4 and 8 places together.

    before, after: float32 (P, C, h, w). Returns four of (P h w, 1, h', w').
    """
    import torch

    pairs, channels, height, width = before.shape
    volume = torch.matmul(before.flatten(2).transpose(1, 2), after.flatten(2)) / channels**0.5
    levels = [volume.view(pairs * height * width, 1, height, width)]
    for _ in range(3):
        levels.append(torch.nn.functional.avg_pool2d(levels[-1], 2))
    return levels


def _lookup(pyramid: "list[torch.Tensor]", at: "torch.Tensor") -> "torch.Tensor":
    """Correlations around points float32 (P, h, w, 2), x and y: float32 (P, h, w, 4 · 81), by levels, then by x."""
    import torch

    reach = torch.arange(-RADIUS, RADIUS + 1, device=at.device, dtype=torch.float32)
    around = torch.stack(torch.meshgrid(reach, reach, indexing="ij"), -1)
    found = []
    for level, volume in enumerate(pyramid):
        places = at.reshape(-1, 1, 1, 2) / 2**level + around
        # grid_sample wants -1 at the middle of the first place and 1 at that of the last.
        unit = torch.cat([places[..., i : i + 1] * (2 / (volume.shape[3 - i] - 1)) for i in (0, 1)], -1) - 1
        near = torch.nn.functional.grid_sample(volume, unit, align_corners=True)
        found.append(near.view(*at.shape[:3], -1))
    return torch.cat(found, -1)

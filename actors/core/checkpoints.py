"""Training checkpoints: state as safetensors, packed and unpacked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

STATE = "state.safetensors"
"""The one file of a checkpoint: `model.*`, `optimizer.<parameter>.<moment>`, `best.*`, and the metrics as metadata."""

Tensors = dict[str, "Tensor"]
"""A batch: columns by name, each (N, ...)."""


def pack(
    path: Path,
    metrics: dict[str, Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    best: Tensors | None = None,
) -> None:
    """Write a checkpoint as one file of safetensors, which `unpack` reads; metrics (JSON values) are its metadata."""
    write_file(path, metrics, state_of(model, optimizer, best))


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer, best: Tensors | None = None) -> Tensors:
    """The tensors of a checkpoint, by the names that they have in its file."""
    import torch

    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"best.{name}": tensor for name, tensor in (best or {}).items()}
    for parameter, moments in optimizer.state_dict()["state"].items():
        for name, moment in moments.items():
            # 8-bit Adam counts its steps in a plain number and has a dictionary of what is quantised, which it takes
            # back without; its parameters share some of that, and a file of safetensors shares nothing.
            held = {n: t.clone() for n, t in moment.items()} if isinstance(moment, dict) else {name: moment}
            tensors |= {f"optimizer.{parameter}.{n}": torch.as_tensor(tensor) for n, tensor in held.items()}
    return tensors


def write_file(path: Path, metrics: dict[str, Any], tensors: Tensors) -> None:
    """Write tensors of `state_of` as a checkpoint."""
    from safetensors.torch import save_file

    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, path, {"metrics": json.dumps(metrics)})


def unpack(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    best: Tensors | None = None,
    like: Callable[[Tensor, Tensor], Tensor] = lambda tensor, parameter: tensor,
) -> dict[str, Any]:
    """Load what `pack` made into the bare model and its optimizer, and the best weights; returns the metrics.

    like: makes of a tensor what goes into a parameter or, for moments, beside it.
    """
    tensors, metrics = read_file(path)
    now = model.state_dict()
    model.load_state_dict({name: like(one, now.get(name, one)) for name, one in below("model", tensors).items()})
    if best is not None:
        best |= below("best", tensors)
    if optimizer is not None:
        state = optimizer.state_dict()
        parameters = [one for group in optimizer.param_groups for one in group["params"]]
        for name, tensor in below("optimizer", tensors).items():
            parameter, moment = name.split(".")
            counts = tensor.ndim == 0 and not tensor.is_floating_point()
            state["state"].setdefault(int(parameter), {})[moment] = (
                int(tensor) if counts else like(tensor, parameters[int(parameter)])
            )
        optimizer.load_state_dict(state)
    return metrics


def metrics_of(path: Path) -> dict[str, Any]:
    """The metrics of a checkpoint, without its tensors."""
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["metrics"])


def shapes_of(data: bytes) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors of a file of safetensors, by name, without torch, whose import takes seconds.

    Raises ValueError where it is no whole file of that kind.
    """
    length = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + length])
        header.pop("__metadata__", None)
        found = {name: tuple(about["shape"]) for name, about in header.items()}
        end = max((about["data_offsets"][1] for about in header.values()), default=0)
    except (ValueError, AttributeError, TypeError, LookupError) as error:
        raise ValueError("it has no header of safetensors") from error
    if len(data) != 8 + length + end:
        raise ValueError(f"it has {len(data)} bytes, and its header says {8 + length + end}")
    return found


def read_file(path: Path) -> tuple[Tensors, dict[str, Any]]:
    from safetensors.torch import load_file

    return load_file(path), metrics_of(path)


def below(group: str, tensors: Tensors) -> Tensors:
    return {name.removeprefix(f"{group}."): value for name, value in tensors.items() if name.startswith(f"{group}.")}

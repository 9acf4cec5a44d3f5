"""One training run on Ray Train: seeded, its checkpoints in the store, and continued by the same call after a kill."""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import ray
import torch
from ray import train as ray_train
from ray.train.torch import TorchTrainer
from safetensors import safe_open
from safetensors.torch import load_file, save_file

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Config = TypeVar("Config", bound="DataclassInstance")

STATE = "state.safetensors"
"""The one file of a checkpoint: `model.*`, `optimizer.<parameter>.<moment>`, and the metrics as metadata."""


def train(
    loop: Callable[[Config], None],
    config: Config,
    *,
    seed: int,
    output: str,
    workers: int = 1,
    use_gpu: bool = False,
) -> ray_train.Result:
    """Run `loop(config)` on every worker to its end, starting from the last checkpoint of these very settings.

    The loop calls `restore` before its first step and `report` at every checkpoint. PyTorch draws from `seed` plus the
    rank of the worker. A worker that dies is replaced, twice at most.

    Args:
        config: settings of the loop; other values are another run, which starts at zero.
        output: a path or s3://bucket/prefix that every worker can write to; checkpoints go to `checkpoints/` in it.

    Returns:
        the result, with the last `metrics` and the `checkpoint` that `restore` reads

    Raises:
        ValueError: the cluster is too small for the workers.
        ray.train.TrainingFailedError: the loop raised, or workers died three times.
    """

    def seeded() -> None:
        torch.manual_seed(seed + ray_train.get_context().get_world_rank())
        loop(config)

    check_room("CPU", workers)
    check_room("GPU", workers if use_gpu else 0)
    settings = json.dumps([loop.__module__, loop.__qualname__, asdict(config), seed, workers], sort_keys=True)
    # Workers run in folders of their own.
    root = output if "://" in output else os.path.abspath(output)
    trainer = TorchTrainer(
        seeded,
        scaling_config=ray_train.ScalingConfig(num_workers=workers, use_gpu=use_gpu),
        run_config=ray_train.RunConfig(
            name=hashlib.sha256(settings.encode()).hexdigest()[:16],
            storage_path=f"{root.rstrip('/')}/checkpoints",
            checkpoint_config=ray_train.CheckpointConfig(num_to_keep=1),
            failure_config=ray_train.FailureConfig(max_failures=2),
        ),
    )
    return trainer.fit()


def check_room(resource: str, workers: int) -> None:
    """Ray Train would wait for resources that never come; a cluster without workers yet grows by what is asked for."""
    there = ray.cluster_resources().get(resource, 0)
    if workers > there and ray.cluster_resources().get("CPU"):
        raise ValueError(f"workers={workers} need {workers} {resource}s, and the cluster has {there:g}: ask for fewer")


def report(metrics: dict[str, Any], model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Tell Ray Train the metrics (JSON values) with a checkpoint that `restore` can go on from; all workers call it.

    `model` is the bare module, not its distributed wrapper.
    """
    if ray_train.get_context().get_world_rank() > 0:
        ray_train.report(metrics)
        return
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for parameter, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{parameter}.{name}": tensor for name, tensor in moments.items()}
    with tempfile.TemporaryDirectory(prefix="filmray-") as folder:
        contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
        save_file(contiguous, Path(folder, STATE), {"metrics": json.dumps(metrics)})
        ray_train.report(metrics, checkpoint=ray_train.Checkpoint.from_directory(folder))


def restore(
    checkpoint: ray_train.Checkpoint | None, model: torch.nn.Module, optimizer: torch.optim.Optimizer | None = None
) -> dict[str, Any]:
    """Load a checkpoint into the bare model and its optimizer; returns its metrics, {} where there is none yet."""
    if checkpoint is None:
        return {}
    with checkpoint.as_directory() as folder:
        path = Path(folder, STATE)
        tensors = load_file(path)
        with safe_open(path, "pt") as file:
            metrics = json.loads(file.metadata()["metrics"])
    model.load_state_dict({name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")})
    if optimizer is not None:
        state = optimizer.state_dict()
        for name, tensor in tensors.items():
            if name.startswith("optimizer."):
                _, parameter, moment = name.split(".")
                state["state"].setdefault(int(parameter), {})[moment] = tensor
        optimizer.load_state_dict(state)
    return metrics

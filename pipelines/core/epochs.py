"""What each training worker does: epochs of optimizer steps, validation and checkpoints."""

import math
import random
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ray import train as ray_train
from ray.train.torch import get_device, prepare_model
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_map

from actors.core.checkpoints import STATE, Tensors, pack, unpack
from actors.core.temporary import TemporaryFolder
from pipelines.core.curves import Row, Scalars
from pipelines.core.progress import ProgressFile
from pipelines.core.training_config import OWN_VALUES, TrainingConfig, best_epoch, finished, learning_rate
from pipelines.core.training_rows import Rows, Share, pieces, row_count

TRAINING = 0.9
"""Share of an epoch that counts as done when its training rows are, before validation."""
INSIDE_S = 5.0
"""Seconds between two writes of how far an epoch is."""


def run_epochs(
    make_model: Callable[[], nn.Module],
    loss: Callable[[nn.Module, Tensors], Tensor],
    evaluate: Callable[[nn.Module, Iterable[Tensors]], dict[str, float]],
    config: TrainingConfig,
    output: str,
) -> tuple[int, str]:
    """What every worker does; returns the epochs that were there before, and what is wrong if it cannot go on."""
    training = _Training(make_model, loss, evaluate, config)
    begin = len(training.history)
    if finished(training.history, config):
        return begin, ""
    if problem := training.open(output):
        return begin, problem
    saved = time.monotonic()
    while not finished(training.history, config):
        due, problem = training.epoch(saved)
        if problem:
            return begin, problem
        if due or finished(training.history, config):
            training.save()
            saved = time.monotonic()
    return begin, ""


class _Training:
    """One worker's model, optimizer, rows and history."""

    def __init__(
        self,
        make_model: Callable[[], nn.Module],
        loss: Callable[[nn.Module, Tensors], Tensor],
        evaluate: Callable[[nn.Module, Iterable[Tensors]], dict[str, float]],
        config: TrainingConfig,
    ) -> None:
        context = ray_train.get_context()
        self.rank, self.workers = context.get_world_rank(), context.get_world_size()
        self.loss, self.evaluate, self.config = loss, evaluate, config
        self.device = get_device()
        self.bare = with_shared_norms(make_model().to(self.device), self.device, self.workers)
        if self.config.bf16 and self.device.type == "cuda":
            train_in_bfloat16(self.bare, self.device.type)
        self.optimizer = torch.optim.AdamW(
            [parameter for parameter in self.bare.parameters() if parameter.requires_grad],
            config.learning_rate,
            weight_decay=config.weight_decay,
        )
        self.best: Tensors = {}
        metrics = restore(ray_train.get_checkpoint(), self.bare, self.optimizer, self.best)
        self.history: list[Row] = metrics.get("history", [])

    def open(self, output: str) -> str:
        """Get ready for the first step; returns what is wrong."""
        self.model = prepare_model(self.bare)
        self.rows: dict[str, Rows] = {}
        for name in ("train", "valid") if self.rank == 0 else ("train",):
            stream = ray_train.get_dataset_shard(name)
            assert stream is not None
            self.rows[name] = Rows(stream, self.device, self.config.keep_mb << 20)
        if empty := _agreed([name for name in self.rows if self.rows[name].empty], self.device):
            return f"there are no rows in {' and '.join(empty)}"
        self.scalars = Scalars(output, len(self.history)) if self.rank == 0 else None
        self.report = ProgressFile(output, len(self.history)) if self.rank == 0 else None
        self.total = self.rows["train"].count
        return ""

    def epoch(self, saved: float) -> tuple[bool, str]:
        """Train and validate once; returns whether a checkpoint is due, and what is wrong."""
        start, number, config = time.perf_counter(), len(self.history), self.config
        rate = learning_rate(config, number)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        # Seeded anew, so that layers draw the same after a kill.
        seed_all(config.seed, number, self.rank)
        self.model.train()
        shares = self.rows["train"].shares(config.batch_size, (config.seed, number), self.rank, self.workers)
        if config.drop_last:
            shares = (share for share in shares if share.rows == config.batch_size)
        total, count = train_epoch(
            *(self.model, self.optimizer, self._counted(shares), self.loss, config.accumulate),
            *(self.workers, config.clip),
        )
        if not count:
            return False, f"there are fewer rows in train than batch_size={config.batch_size}: lower it"
        self.total = count
        if self.workers > 1:
            distributed.all_reduce(total)
        row: Row = {"epoch": number + 1, "train_loss": total.item() / count, "learning_rate": rate}
        problem, due = "", False
        if self.rank == 0:
            values = self._validated()
            row |= {name: float(value) for name, value in values.items()}
            row["seconds"] = time.perf_counter() - start
            problem = _problem(row, values, config)
            due = time.monotonic() - saved >= config.checkpoint_s
        row, problem, due = _agreed((row, problem, due), self.device)
        if not problem:
            self._add(row)
        return due, problem

    def _counted(self, shares: Iterable[Share]) -> Iterator[Share]:
        """The shares of an epoch; says how far it is, once each is dealt with."""
        seen = 0
        for share in shares:
            yield share
            seen += share.rows
            # The rows of the first epoch are not known where they are streamed.
            part = min(seen / self.total, 1) * TRAINING if self.total else 0
            if self.report is not None:
                note = f"epoch {len(self.history) + 1}: {seen:,} rows{self._latest()}"
                self.report.write(len(self.history) + part, note, INSIDE_S)

    def _validated(self) -> dict[str, float]:
        if self.report is not None:
            note = f"epoch {len(self.history) + 1}: validation{self._latest()}"
            self.report.write(len(self.history) + TRAINING, note, INSIDE_S)
        self.bare.eval()
        with torch.inference_mode():
            return self.evaluate(self.bare, self.rows["valid"].batches(self.config.batch_size))

    def _add(self, row: Row) -> None:
        self.history.append(row)
        if self.scalars is not None:
            self.scalars.add(row)
            if best_epoch(self.history, self.config) == len(self.history):
                self.best = {name: tensor.detach().cpu().clone() for name, tensor in self.bare.state_dict().items()}
        if self.report is not None:
            self.report.write(len(self.history), f"epoch {len(self.history)}{self._latest()}")

    def _latest(self) -> str:
        """The monitored value of the last epoch."""
        return f", {self.config.monitor} {self.history[-1][self.config.monitor]:.4g}" if self.history else ""

    def save(self) -> None:
        """Make a checkpoint; all workers call it."""
        if self.scalars is not None:
            self.scalars.publish()
        metrics = {"epoch": len(self.history), "history": self.history}
        report(metrics, self.bare, self.optimizer, self.best)


def with_shared_norms(model: nn.Module, device: torch.device, workers: int) -> nn.Module:
    """The model with batch norm over the rows of all workers where these have GPUs: PyTorch's SyncBatchNorm.

    Weights, and their names, stay as they are.
    """
    return nn.SyncBatchNorm.convert_sync_batchnorm(model) if device.type == "cuda" and workers > 1 else model


def train_in_bfloat16(model: nn.Module, device: str) -> None:
    """Let a model's forward compute in bfloat16 (autocast) while it trains, and return float32.

    Losses, which are computed outside of it, and all of validation are in float32: under autocast, products are
    bfloat16 whatever their inputs are, and similarities that differ by less than 0.4 % would be equal.
    """
    forward = model.forward

    @wraps(forward)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast(device, torch.bfloat16, enabled=model.training):
            found = forward(*args, **kwargs)
        return tree_map(lambda one: one.float() if isinstance(one, Tensor) and one.is_floating_point() else one, found)

    model.forward = wrapped


def train_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    shares: Iterable[Share],
    loss: Callable[[nn.Module, Tensors], Tensor],
    accumulate: int = 1,
    workers: int = 1,
    clip: float | None = None,
) -> tuple[Tensor, int]:
    """Make one optimizer step for every batch; returns the sum of this worker's losses, and how many rows all had.

    The gradient of a step is that of the mean loss over all rows of the batch, however they are split.
    """
    total, count = torch.zeros(()), 0
    for share in shares:
        optimizer.zero_grad()
        parts = list(pieces(share.batch, accumulate))
        for number, piece in enumerate(parts):
            last = number == len(parts) - 1
            # Gradients travel once a step.
            alone = model.no_sync() if isinstance(model, DistributedDataParallel) and not last else nullcontext()
            with alone:
                value = loss(model, piece) * (row_count(piece) if share.counts else 0)
                # The workers' gradients are averaged, which divides by their number.
                (value * workers / share.rows).backward()
            total = total.to(value.device) + value.detach()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        count += share.rows
    return total, count


def _problem(row: Row, values: dict[str, float], config: TrainingConfig) -> str:
    """What is wrong with the first row of a training, or any; "" where nothing is."""
    if taken := sorted(set(values) & set(OWN_VALUES)):
        return f"evaluate returns {', '.join(taken)}, which training itself fills: give other names"
    if config.monitor not in row:
        return f"monitor={config.monitor}: there is no such value; there are {', '.join(sorted(row))}"
    if not math.isfinite(row["train_loss"]):
        return (
            f"the loss became {row['train_loss']} in epoch {row['epoch']}: "
            f"lower learning_rate={config.learning_rate}, or look for such values in the data"
        )
    return ""


def _agreed(value: Any, device: torch.device) -> Any:
    """The first worker's value, on every worker."""
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return value
    box = [value]
    distributed.broadcast_object_list(box, src=0, device=device)
    return box[0]


def seed_all(*numbers: int) -> None:
    """Seed all that draws; a single number is PyTorch's seed as it is."""
    state = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    random.seed(state)
    np.random.seed(state)
    torch.manual_seed(numbers[0] if len(numbers) == 1 else state)


def report(
    metrics: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer, best: Tensors | None = None
) -> None:
    """Tell Ray Train the metrics (JSON values) with a checkpoint that `restore` can go on from; all workers call it.

    `model` is the bare module, not its distributed wrapper; `best` are weights to be kept beside the present ones.
    """
    if ray_train.get_context().get_world_rank() > 0:
        ray_train.report(metrics)
        return
    with TemporaryFolder() as folder:
        pack(folder / STATE, metrics, model, optimizer, best)
        ray_train.report(metrics, checkpoint=ray_train.Checkpoint.from_directory(str(folder)))


def restore(
    checkpoint: ray_train.Checkpoint | None,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    best: Tensors | None = None,
) -> dict[str, Any]:
    """Load a checkpoint into the bare model and its optimizer, and the best weights into the dictionary.

    Returns its metrics, {} where there is none yet.
    """
    if checkpoint is None:
        return {}
    with checkpoint.as_directory() as folder:
        return unpack(Path(folder, STATE), model, optimizer, best)

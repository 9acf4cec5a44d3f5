"""Settings of a training by epochs, and what follows from them: the learning rate, the best epoch, the end."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from actors.core.errors import UserError
from pipelines.core.curves import Row

OWN_VALUES = ("epoch", "train_loss", "learning_rate", "seconds")
"""What every row of a history holds beside the values of `evaluate`: number from 1, mean loss, rate, its duration."""


def gpus(use_gpu: bool) -> float:
    """The num_gpus that the older setting use_gpu stands for."""
    return float(use_gpu)


@dataclass(frozen=True)
class TrainingConfig:
    """How `fit` trains."""

    epochs: int = 100
    """Epochs at most: passes over the training rows."""
    batch_size: int = 32
    """Rows per optimizer step, over all workers together."""
    learning_rate: float = 1e-3
    """Initial learning rate of AdamW."""
    weight_decay: float = 0.0
    """Weight decay of AdamW; 0 makes it Adam."""
    schedule: Literal["constant", "cosine", "step"] = "constant"
    """Learning rate schedule: constant, cosine down to 0, or step (times `decay_ratio` every `decay_epochs`)."""
    decay_epochs: int = 150
    """schedule=step: epochs between two decays."""
    decay_ratio: float = 0.6
    """schedule=step: factor of each decay."""
    clip: float | None = None
    """Gradient clipping: largest gradient norm; null: no clipping."""
    drop_last: bool = False
    """Skip an incomplete last batch of an epoch, for losses that depend on the number of rows."""
    accumulate: int = 1
    """Gradient accumulation: pieces of a worker's share of a batch, for less memory and the same gradient."""
    bf16: bool = True
    """On a GPU: train in mixed precision with bfloat16 (autocast). Losses and validation are in float32."""
    monitor: str = "valid_loss"
    """Metric that selects the best epoch: a validation metric, or train_loss."""
    mode: Literal["min", "max"] = "min"
    """Whether a small (min) or large (max) value of `monitor` is better."""
    patience: int | None = None
    """Early stopping: epochs without a better value of `monitor`; null: never."""
    seed: int = 0
    """Seed of initial weights, row order and dropout."""
    keep_mb: int = 1024
    """Data sets up to this size, in MB, stay on the device of every worker; larger ones are streamed in every epoch and
    shuffled within a window of this size."""
    checkpoint_s: float = 30.0
    """Seconds between checkpoints; 0: one per epoch. The last epoch always makes one."""
    workers: int = 1
    """Training processes (data parallel), each on its share of every batch."""
    num_cpus: float = 1.0
    """CPUs per training process."""
    num_gpus: float = 0.0
    """GPUs per training process; above 0 it trains there."""

    ALIASES: ClassVar[dict[str, Any]] = {"use_gpu": ("num_gpus", gpus)}

    def __post_init__(self) -> None:
        counts = ("epochs", "batch_size", "decay_epochs", "accumulate", "keep_mb", "workers")
        for name in counts if self.patience is None else (*counts, "patience"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} starts at 1, not {getattr(self, name)}")
        for name in ("learning_rate", "decay_ratio", "num_cpus", *(("clip",) if self.clip is not None else ())):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"{name} is above 0, not {getattr(self, name)}")
        if min(self.seed, self.checkpoint_s, self.weight_decay) < 0:
            raise UserError(f"seed, checkpoint_s and weight_decay start at 0: {self}")


ELSEWHERE = ("checkpoint_s", "workers", "num_cpus", "num_gpus")
"""Settings that may change while a training is continued: they say where and how safely it runs, not what it learns."""


def learning_rate(config: TrainingConfig, epoch: int) -> float:
    """The learning rate in an epoch, counted from 0."""
    match config.schedule:
        case "constant":
            return config.learning_rate
        case "cosine":
            return config.learning_rate * (1 + math.cos(math.pi * epoch / config.epochs)) / 2
        case "step":
            return config.learning_rate * config.decay_ratio ** (epoch // config.decay_epochs)


def best_epoch(history: list[Row], config: TrainingConfig) -> int:
    """Number of the epoch with the best monitored value; 0 where none is a number.

    Of equal values, as when all is found, the least valid_loss counts, then the first epoch.
    """
    sign = 1 if config.mode == "min" else -1
    numbers = [row for row in history if not math.isnan(row[config.monitor])]
    ranked = (
        (sign * row[config.monitor], _number(row.get("valid_loss", math.inf)), int(row["epoch"])) for row in numbers
    )
    return min(ranked, default=(0.0, 0.0, 0))[2]


def _number(value: float) -> float:
    return math.inf if math.isnan(value) else value


def finished(history: list[Row], config: TrainingConfig) -> bool:
    """Whether all epochs are done, or none of the last `patience` ones was better than those before."""
    if config.patience is not None and len(history) - best_epoch(history, config) >= config.patience:
        return True
    return len(history) >= config.epochs

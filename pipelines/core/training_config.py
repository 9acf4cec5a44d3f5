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
    """Passes over the training rows at most."""
    batch_size: int = 32
    """Rows of one optimizer step, over all workers together."""
    learning_rate: float = 1e-3
    """Of AdamW, at the start."""
    weight_decay: float = 0.0
    """Of AdamW; with 0 it is Adam."""
    schedule: Literal["constant", "cosine", "step"] = "constant"
    """How the learning rate goes on: as it is, down to 0 along a cosine, or times `decay_ratio` at every step."""
    decay_epochs: int = 150
    """Epochs of one step."""
    decay_ratio: float = 0.6
    """What a step multiplies the learning rate by."""
    clip: float | None = None
    """Longest gradient that a step follows as it is; a longer one is shortened to this."""
    drop_last: bool = False
    """Leave out the last rows of an epoch where they fill no batch, for losses that depend on how many rows it has."""
    accumulate: int = 1
    """Pieces in which a worker computes its part of a batch: as many times less memory, the same gradient."""
    bf16: bool = True
    """On a GPU, compute in bfloat16 where PyTorch's autocast deems it safe."""
    monitor: str = "valid_loss"
    """The value that says which epoch is best: one that `evaluate` returns, or train_loss."""
    mode: Literal["min", "max"] = "min"
    """Which value of `monitor` is best."""
    patience: int | None = None
    """Epochs without a better value after which training ends; none: it never ends early."""
    seed: int = 0
    """Of the first weights, the order of rows and what layers draw."""
    keep_mb: int = 1024
    """A data set up to this size is read once and kept on the device of every worker; a larger one is streamed in every
    epoch, and shuffled within a window of this size."""
    checkpoint_s: float = 30.0
    """Seconds between two checkpoints; the last epoch always makes one, and 0 means every epoch."""
    workers: int = 1
    """Processes that train side by side, each on its part of every batch."""
    num_cpus: float = 1.0
    """CPUs that one worker holds."""
    num_gpus: float = 0.0
    """GPUs that one worker holds; above 0 it trains there."""

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
    """Number of the first epoch with the best monitored value; 0 where none is a number."""
    numbers = [(row[config.monitor], int(row["epoch"])) for row in history if not math.isnan(row[config.monitor])]
    sign = 1 if config.mode == "min" else -1
    return min(((sign * value, epoch) for value, epoch in numbers), default=(0, 0))[1]


def finished(history: list[Row], config: TrainingConfig) -> bool:
    """Whether all epochs are done, or none of the last `patience` ones was better than those before."""
    if config.patience is not None and len(history) - best_epoch(history, config) >= config.patience:
        return True
    return len(history) >= config.epochs

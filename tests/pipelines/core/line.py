"""A training of seconds for the tests: a small network learns y = 3x - 2 from rows with noise, and is killed on demand.

python -m tests.pipelines.core.line OUTPUT [MARKER]   with MARKER, the worker is killed at its third epoch, once, and
epochs are slow, so that the driver can be killed, too
"""

import os
import signal
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import ray
import torch
from torch import Tensor, nn

from jobs.core.session import ray_session
from pipelines.core.training import Trained, fit
from pipelines.core.training_config import TrainingConfig

# 33 rows in batches of 8: with two workers one has no row of the last batch.
CONFIG = TrainingConfig(epochs=8, batch_size=8, learning_rate=0.05, checkpoint_s=0, schedule="step", decay_epochs=3)


def rows(count: int, seed: int) -> ray.data.Dataset:
    random = np.random.default_rng(seed)
    x = random.normal(size=count).astype(np.float32)
    y = 3 * x - 2 + random.normal(size=count, scale=0.1).astype(np.float32)
    return ray.data.from_items([{"x": float(a), "y": float(b)} for a, b in zip(x, y, strict=True)])


def make_model(dropout: float = 0.0) -> nn.Module:
    return nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Dropout(dropout), nn.Linear(4, 1))


def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return (model(batch["x"][:, None].float())[:, 0] - batch["y"]).square().mean()


def evaluate(marker: str, model: nn.Module, batches: Iterable[dict[str, Tensor]]) -> dict[str, float]:
    errors = torch.cat([model(batch["x"][:, None].float())[:, 0] - batch["y"] for batch in batches])
    if marker:
        time.sleep(0.5)
        with Path(marker).open("a") as epochs:
            epochs.write("epoch\n")
        if len(Path(marker).read_text().splitlines()) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
    return {"valid_loss": errors.square().mean().item(), "valid_bias": errors.mean().item()}


def train_line(output: str, config: TrainingConfig = CONFIG, dropout: float = 0.0, marker: str = "") -> Trained:
    datasets = {"train": rows(33, 0), "valid": rows(20, 1)}
    settings = {"dropout": dropout}
    make = partial(make_model, dropout)
    return fit(make, loss, partial(evaluate, marker), datasets, config, output=output, settings=settings)


if __name__ == "__main__":
    with ray_session():
        trained = train_line(sys.argv[1], replace(CONFIG, epochs=20), dropout=0.2, marker="".join(sys.argv[2:]))
        print(f"resumed from {trained.resumed_from}")

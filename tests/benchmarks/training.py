"""What Ray Train adds to a training: the same epochs in a plain PyTorch loop, on the same rows in memory.

python -m tests.benchmarks.training
"""

import tempfile
import time
from collections.abc import Iterable
from functools import partial
from statistics import median

import numpy as np
import ray
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from jobs.core.session import ray_session
from pipelines.core.training import fit
from pipelines.core.training_config import TrainingConfig

ROWS, FRAMES, WIDTH, LABELS = 896, 16, 512, 21
CONFIG = TrainingConfig(epochs=30, batch_size=32, seed=1)


def make_model() -> nn.Module:
    return nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 128), nn.ReLU(), nn.Linear(128, LABELS))


def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return binary_cross_entropy_with_logits(model(batch["x"].float()).amax(1), batch["y"])


def evaluate(model: nn.Module, batches: Iterable[dict[str, Tensor]]) -> dict[str, float]:
    return {"valid_loss": float(np.mean([loss(model, batch).item() for batch in batches]))}


def columns(rows: int, seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    x = random.normal(size=(rows, FRAMES, WIDTH)).astype(np.float16)
    return {"x": x, "y": (random.random((rows, LABELS)) < 0.15).astype(np.float32)}


def plain(train: dict[str, np.ndarray], valid: dict[str, np.ndarray]) -> list[float]:
    """Seconds of each epoch."""
    torch.set_num_threads(1)
    torch.manual_seed(CONFIG.seed)
    rows, others = ({name: torch.from_numpy(column) for name, column in part.items()} for part in (train, valid))
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), CONFIG.learning_rate, weight_decay=0)
    seconds = []
    for _ in range(CONFIG.epochs):
        start = time.perf_counter()
        model.train()
        for part in torch.randperm(ROWS).split(CONFIG.batch_size):
            optimizer.zero_grad()
            loss(model, {name: column[part] for name, column in rows.items()}).backward()
            optimizer.step()
        model.eval()
        with torch.inference_mode():
            first = range(0, len(others["x"]), CONFIG.batch_size)
            evaluate(model, ({k: c[at : at + CONFIG.batch_size] for k, c in others.items()} for at in first))
        seconds.append(time.perf_counter() - start)
    return seconds


def main() -> None:
    train, valid = columns(ROWS, 0), columns(ROWS // 4, 1)
    datasets = {}
    with ray_session(), tempfile.TemporaryDirectory() as output:
        for name, part in (("train", train), ("valid", valid)):
            rows = zip(*part.values(), strict=True)
            datasets[name] = ray.data.from_items([dict(zip(part, row, strict=True)) for row in rows])
        run = partial(fit, make_model, loss, evaluate, datasets, output=output, settings={})
        before = plain(train, valid)
        start = time.perf_counter()
        trained = run(CONFIG)
        whole = time.perf_counter() - start
        after = plain(train, valid)
    ours = [row["seconds"] for row in trained.history]
    base = before + after
    print(f"an epoch of a plain loop: {median(base):.3f} s; with fit: {median(ours):.3f} s")
    print(f"fit / plain, an epoch: {median(ours) / median(base):.2f}")
    print(f"beside the epochs: {whole - sum(ours):.1f} s in all")


if __name__ == "__main__":
    main()

"""Training of a head on stored vectors."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
from ray.data.extensions import ArrowTensorArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from actors.core.checkpoints import Tensors
from actors.directors.head import FrameHead
from pipelines.core.curves import Row
from pipelines.core.epochs import train_epoch
from pipelines.core.training import fit
from pipelines.core.training_config import TrainingConfig, best_epoch, finished, learning_rate
from pipelines.core.training_rows import Share
from pipelines.directors.frames import TRAIN, VALID, Frames
from pipelines.directors.settings import DirectorsConfig, HeadConfig

# ------------------------------------------------------------------------------------------------------------- learning


def make_head(config: HeadConfig, mean: list[float], scale: list[float], classes: int) -> FrameHead:
    """A head with its first weights, which knows the vectors' mean and deviation (D values each)."""
    head = FrameHead(len(mean), classes, config.hidden, config.dropout)
    head.mean.copy_(torch.tensor(mean))
    head.scale.copy_(torch.tensor(scale))
    return head


def head_loss(model: Any, batch: Tensors, weights: list[float]) -> Tensor:
    """Cross-entropy in which a row weighs what its class weighs, (C,), whose mean over training rows is 1."""
    losses = cross_entropy(model(batch["vector"]), batch["label"], reduction="none")
    return (losses * torch.tensor(weights, device=losses.device)[batch["label"]]).mean()


def head_values(model: Any, batches: Iterable[Tensors], weights: list[float]) -> dict[str, float]:
    """Loss and share of right answers over validation rows."""
    loss = right = rows = 0.0
    for batch in batches:
        logits, labels = model(batch["vector"]), batch["label"]
        each = cross_entropy(logits, labels, reduction="none")
        loss += float((each * torch.tensor(weights, device=each.device)[labels]).sum())
        right += float((logits.argmax(1) == labels).sum())
        rows += len(labels)
    return {"valid_loss": loss / rows, "valid_accuracy": right / rows}


@dataclass(frozen=True)
class Task:
    """What a head is trained on."""

    make: Callable[[], FrameHead]
    loss: Callable[[Any, Tensors], Tensor]
    values: Callable[[Any, Iterable[Tensors]], dict[str, float]]
    train: tuple[np.ndarray, np.ndarray]
    """Vectors float32 (N, D) and labels int64 (N,)."""
    valid: tuple[np.ndarray, np.ndarray]


def task(frames: Frames, labels: np.ndarray, parts: np.ndarray, classes: int, config: HeadConfig) -> Task:
    """A head for these labels, int (N,) from 0 to classes - 1 wherever the part is TRAIN or VALID."""
    sides = [(frames.vectors[parts == part].astype(np.float32), labels[parts == part]) for part in (TRAIN, VALID)]
    vectors, answers = sides[0]
    # A value that is the same everywhere says nothing, and would be divided by 0.
    scale = np.where(vectors.std(0) > 1e-6, vectors.std(0), 1.0)
    counts = np.bincount(answers, minlength=classes)
    weights = (len(answers) / (classes * np.maximum(counts, 1))).tolist() if config.balanced else [1.0] * classes
    return Task(
        partial(make_head, config, vectors.mean(0).tolist(), scale.tolist(), classes),
        partial(head_loss, weights=weights),
        partial(head_values, weights=weights),
        *sides,
    )


def fit_stored(work: Task, config: DirectorsConfig, about: dict[str, Any]) -> tuple[FrameHead, list[Row], int]:
    """Train on Ray Train, below the output; returns the head, its history and its best epoch."""

    def dataset(side: tuple[np.ndarray, np.ndarray]) -> Any:
        table = pa.table({"vector": ArrowTensorArray.from_numpy(side[0]), "label": pa.array(side[1])})
        return ray.data.from_arrow(table)

    trained = fit(
        work.make,
        work.loss,
        work.values,
        {"train": dataset(work.train), "valid": dataset(work.valid)},
        config.training,
        output=config.output,
        settings=about,
    )
    assert isinstance(trained.model, FrameHead)
    return trained.model, trained.history, trained.best_epoch


def fit_here(work: Task, config: TrainingConfig) -> FrameHead:
    """The same training in this process, for comparisons that are made and forgotten."""
    threads = torch.get_num_threads()
    # In layers this small threads wait for each other longer than they work.
    torch.set_num_threads(1)
    try:
        return _fit_here(work, config)
    finally:
        torch.set_num_threads(threads)


def _fit_here(work: Task, config: TrainingConfig) -> FrameHead:
    torch.manual_seed(config.seed)
    head = work.make()
    optimizer = torch.optim.AdamW(head.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    train, valid = ({"vector": torch.from_numpy(x), "label": torch.from_numpy(y)} for x, y in (work.train, work.valid))
    history: list[Row] = []
    best = {}
    while not finished(history, config):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, len(history))
        head.train()
        order = torch.randperm(len(train["label"])).split(config.batch_size)
        shares = (Share({name: column[rows] for name, column in train.items()}, len(rows), True) for rows in order)
        total, count = train_epoch(head, optimizer, shares, work.loss, config.accumulate)
        head.eval()
        with torch.inference_mode():
            values = work.values(head, [valid])
        history.append({"epoch": len(history) + 1, "train_loss": total.item() / count, **values})
        if best_epoch(history, config) == len(history):
            best = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    head.load_state_dict(best)
    return head.eval()


@torch.inference_mode()
def logits(head: FrameHead, vectors: np.ndarray) -> np.ndarray:
    """float64 (N, C), for vectors float16 (N, D)."""
    parts = [head(torch.from_numpy(vectors[i : i + 4096].astype(np.float32))) for i in range(0, len(vectors), 4096)]
    return torch.cat(parts).double().numpy()

"""Training of a head on stored vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch

from actors.core.checkpoints import Tensors
from actors.directors.head_settings import HeadConfig
from pipelines.core.curves import Row
from pipelines.core.progress import Progress
from pipelines.core.training_config import TrainingConfig, best_epoch, finished, learning_rate
from pipelines.core.training_rows import Share
from pipelines.directors.frames import TRAIN, VALID, Frames
from pipelines.directors.settings import DirectorsConfig

if TYPE_CHECKING:
    from torch import Tensor

    from actors.directors.head import FrameHead


@dataclass(frozen=True)
class Task:
    """What a head is trained on."""

    make: Callable[[], FrameHead]
    loss: Callable[[Any, Tensors], Tensor]
    values: Callable[[Any, Iterable[Tensors]], dict[str, float]]
    train: tuple[np.ndarray, np.ndarray]
    """Vectors float32 (N, D) and labels int64 (N,)."""
    valid: tuple[np.ndarray, np.ndarray]


def task(frames: Frames, parts: np.ndarray, config: HeadConfig) -> Task:
    """Training data of a head for the directors of frames, which every picture in TRAIN and VALID is labelled with."""
    from actors.directors.head import head_loss, head_values, make_head

    classes = len(frames.directors)
    chosen = [frames.examples(np.flatnonzero(parts == part)) for part in (TRAIN, VALID)]
    sides = [(frames.vectors[rows].astype(np.float32), labels) for rows, labels in chosen]
    vectors, answers = sides[0]
    # A constant dimension has deviation 0; dividing by it would give NaN.
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
    """Train on Ray Train with checkpoints below the output; returns the head, its history and its best epoch."""
    import ray
    from ray.data.extensions import ArrowTensorArray

    from actors.directors.head import FrameHead
    from pipelines.core.training import fit

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


def fit_here(work: Task, config: TrainingConfig, name: str = "train") -> FrameHead:
    """Train in this process, without checkpoints: for folds and comparisons whose weights are not stored.

    name: what it is called in the log.
    """
    threads = torch.get_num_threads()
    # In layers this small, threads wait for each other longer than they compute.
    torch.set_num_threads(1)
    try:
        with Progress(name, config.epochs, "epochs") as progress:
            return _fit_here(work, config, progress)
    finally:
        torch.set_num_threads(threads)


def _fit_here(work: Task, config: TrainingConfig, progress: Progress) -> FrameHead:
    from pipelines.core.epochs import train_epoch

    torch.manual_seed(config.seed)
    head = work.make()
    optimizer = torch.optim.AdamW(head.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    train, valid = ({"vector": torch.from_numpy(x), "label": torch.from_numpy(y)} for x, y in (work.train, work.valid))
    history: list[Row] = []
    best, note = {}, ""
    while not finished(history, config):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, len(history))
        head.train()
        order = torch.randperm(len(train["label"])).split(config.batch_size)
        shares = (Share({name: column[rows] for name, column in train.items()}, len(rows), True) for rows in order)
        shares = counted(shares, progress, len(history), len(train["label"]), note)
        total, count = train_epoch(head, optimizer, shares, work.loss, config.accumulate)
        head.eval()
        with torch.inference_mode():
            values = work.values(head, [valid])
        history.append({"epoch": len(history) + 1, "train_loss": total.item() / count, **values})
        note = f", {config.monitor} {history[-1][config.monitor]:.4g}"
        progress.advance(len(history) - progress.done, f"epoch {len(history)}{note}")
        if best_epoch(history, config) == len(history):
            best = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    head.load_state_dict(best)
    return head.eval()


def counted(shares: Iterable[Share], progress: Progress, before: int, total: int, note: str) -> Iterator[Share]:
    """The shares of an epoch; counts each once it is dealt with, as its part of the epoch after so many before."""
    seen = 0
    for share in shares:
        yield share
        seen += share.rows
        progress.advance(before + 0.9 * seen / total - progress.done, f"epoch {before + 1}{note}")


@torch.inference_mode()
def logits(head: FrameHead, vectors: np.ndarray) -> np.ndarray:
    """Logits float64 (N, C) of vectors float16 (N, D)."""
    parts = [head(torch.from_numpy(vectors[i : i + 4096].astype(np.float32))) for i in range(0, len(vectors), 4096)]
    return torch.cat(parts).double().numpy()

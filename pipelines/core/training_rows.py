"""The rows that each training worker reads, seeded and sharded."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from actors.core.checkpoints import Tensors

if TYPE_CHECKING:
    from ray.data import DataIterator


class Share(NamedTuple):
    """A worker's part of one batch."""

    batch: Tensors
    """Its rows; at least one."""
    rows: int
    """Rows of the batch over all workers."""
    counts: bool
    """False where the batch has fewer rows than there are workers, and this one borrows a row to keep step."""


class Rows:
    """A dataset as batches on a device: kept there if it fits, else streamed in every pass."""

    def __init__(self, stream: DataIterator, device: torch.device, keep_bytes: int) -> None:
        self._stream = stream
        self._device = device
        self._kept: Tensors | None = None
        blocks: list[Tensors] = []
        size = rows = 0
        for block in stream.iter_torch_batches(batch_size=None, device="cpu"):
            blocks.append(block)
            size += sum(column.nbytes for column in block.values())
            rows += row_count(block)
            if size > keep_bytes:
                break
        else:
            names = blocks[0] if blocks else ()
            self._kept = {name: torch.cat([block[name] for block in blocks]).to(device) for name in names}
        self.empty = not rows
        self.count = rows if self._kept is not None else None
        """How many rows there are; None where they are streamed."""
        self._window = max(1, rows * keep_bytes // max(size, 1))

    def shares(self, batch_size: int, seed: Sequence[int], worker: int = 0, workers: int = 1) -> Iterator[Share]:
        """One pass in an order that depends on the seed alone, as this worker's part of every batch."""
        state = int(np.random.SeedSequence(seed).generate_state(1)[0])
        if self._kept is None:
            # With less than two batches in its window, Ray gives some batches fewer rows than asked for.
            window = max(self._window, 2 * batch_size)
            for batch in self._batches(batch_size, local_shuffle_buffer_size=window, local_shuffle_seed=state):
                yield _share(torch.arange(row_count(batch), device=self._device), batch, worker, workers)
            return
        order = torch.randperm(row_count(self._kept), generator=torch.Generator().manual_seed(state))
        for part in order.to(self._device).split(batch_size):
            yield _share(part, self._kept, worker, workers)

    def batches(self, batch_size: int) -> Iterator[Tensors]:
        """One pass in the order of the dataset."""
        if self._kept is None:
            yield from self._batches(batch_size)
            return
        for first in range(0, row_count(self._kept), batch_size):
            yield {name: column[first : first + batch_size] for name, column in self._kept.items()}

    def _batches(self, batch_size: int, **shuffle: Any) -> Iterator[Tensors]:
        yield from self._stream.iter_torch_batches(batch_size=batch_size, device=str(self._device), **shuffle)


def _share(indices: Tensor, columns: Tensors, worker: int, workers: int) -> Share:
    rows = len(indices)
    first, end = (rows * part // workers for part in (worker, worker + 1))
    mine = indices[first:end] if end > first else indices[:1]
    return Share({name: column[mine] for name, column in columns.items()}, rows, end > first)


def pieces(batch: Tensors, count: int) -> Iterator[Tensors]:
    size = math.ceil(row_count(batch) / count)
    for first in range(0, row_count(batch), size):
        yield {name: column[first : first + size] for name, column in batch.items()}


def row_count(batch: Tensors) -> int:
    return len(next(iter(batch.values())))

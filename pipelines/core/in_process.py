"""Stages applied in the driver's process: for few rows that takes less time than Ray's start."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from actors.core.stage import Batch, Row, Stage

FEW = 64
"""Up to this many rows of a model, computing in the driver is faster than starting Ray."""


def few(rows: int, stage: Stage, most: int = FEW) -> bool:
    """Whether a stage computes rows in the driver: there are at most so many, and it needs no GPU, which the driver's
    machine may lack."""
    return not rows or (rows <= most and not stage.num_gpus)


def in_process(rows: Sequence[Row], size: int, *steps: Callable[[Batch], Batch]) -> Iterator[Batch]:
    """Batches of `size` rows, to each of which every step was applied in turn, as Ray's `map_batches` would."""
    for first in range(0, len(rows), size):
        some = rows[first : first + size]
        batch = {name: np.array([row[name] for row in some]) for name in some[0]}
        for step in steps:
            batch = step(batch)
        yield batch

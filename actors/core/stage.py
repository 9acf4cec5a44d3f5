"""What every stage of a pipeline shares: a batch of columns, and how many workers with which resources apply it."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from actors.core.errors import UserError

Batch = dict[str, np.ndarray]
"""Columns by name, each (N, ...) with one entry a row; a batch that Ray hands over is read-only."""


Row = dict[str, Any]


@dataclass(frozen=True)
class Stage:
    """Resources of one stage; the settings of an actor extend it."""

    workers: int = 1
    """How many run at once over the whole cluster; 0, where a stage loads no model: as many as there are CPUs for."""
    num_cpus: float = 1.0
    """CPUs that one worker holds."""
    num_gpus: float = 0.0
    """GPUs that one worker holds; above 0 the stage computes there."""
    batch_size: int = 1
    """Rows that one call gets."""

    def __post_init__(self) -> None:
        if self.workers < 0 or self.batch_size < 1 or self.num_cpus < 0 or self.num_gpus < 0:
            raise UserError(f"batch_size starts at 1, workers, num_cpus and num_gpus at 0: {self}")

    def resources(self) -> dict[str, Any]:
        """Arguments that Ray takes for one worker of this stage."""
        return {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus}

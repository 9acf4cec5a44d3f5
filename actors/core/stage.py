"""What every stage of a pipeline shares: a batch of columns, and how many workers with which resources apply it."""

import json
from collections import Counter
from collections.abc import Iterable
from copy import copy
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np

from actors.core.errors import UserError

Batch = dict[str, np.ndarray]
"""Columns by name, each (N, ...) with one entry a row; a batch that Ray hands over is read-only."""


Row = dict[str, Any]


def codes_of(errors: Iterable[Any]) -> np.ndarray:
    """The column `codes` of what a stage returns for the rows that it has written: how many got which error code."""
    return np.array([json.dumps(Counter(str(error) for error in errors if error))], object)


def codes_in(batch: Batch) -> Counter[str]:
    """How many rows got which error code, by the column `codes` of a batch, else by its column `error`."""
    counted: Counter[str] = Counter()
    for text in batch.get("codes", ()):
        counted.update(json.loads(text))
    return counted or Counter(str(error) for error in batch.get("error", ()) if error)


@dataclass(frozen=True)
class Stage:
    """Resources of one stage; the settings of an actor extend it."""

    LEAST_BATCH: ClassVar[int] = 1
    """The least batch_size; 0 where a stage chooses its own."""
    MEMORY_GB: ClassVar[float] = 0.0
    """Memory of one worker on a CPU, in GiB, as `tests.benchmarks.workers` measures it; 0 where it was not."""
    reserved_gb: ClassVar[float] = 0.0
    """Memory that Ray reserves for one worker, in GiB: set by `reserving`, of one stage."""

    workers: int = 1
    """Workers at once over the whole cluster. 0, for stages that load no model: as many as CPUs allow."""
    num_cpus: float = 1.0
    """CPUs that one worker reserves."""
    num_gpus: float = 0.0
    """GPUs that one worker reserves, a fraction to share one; above 0 the stage computes on the GPU."""
    batch_size: int = 1
    """Rows per call of a worker, from 1."""

    def __post_init__(self) -> None:
        if self.workers < 0 or self.batch_size < self.LEAST_BATCH or self.num_cpus < 0 or self.num_gpus < 0:
            raise UserError(
                f"batch_size is {self.LEAST_BATCH} or more; workers, num_cpus and num_gpus are 0 or more: {self}"
            )

    @property
    def worker_gb(self) -> float:
        """Memory of one worker, in GiB, where it was measured; 0 where it was not."""
        return 0.0 if self.num_gpus else self.MEMORY_GB

    def reserving(self, memory_gb: float) -> Self:
        """The same stage, for each of whose workers Ray reserves memory."""
        stage = copy(self)
        object.__setattr__(stage, "reserved_gb", memory_gb)
        return stage

    def resources(self) -> dict[str, Any]:
        """Arguments that Ray takes for one worker of this stage."""
        memory = {"memory": int(self.reserved_gb * 2**30)} if self.reserved_gb else {}
        return {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus} | memory


@dataclass(frozen=True)
class ModelStage(Stage):
    """Resources of a stage that computes with a torch model, and its precision."""

    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Precision of the model; auto: bfloat16 on a GPU, float32 on a CPU. A CPU computes bfloat16 up to 2.6 times as
    fast where it has instructions for it (AVX512-BF16, AMX), and 12 times as slowly where it has none."""

    @property
    def device(self) -> Literal["cuda", "cpu"]:
        """Where tensors go."""
        return "cuda" if self.num_gpus > 0 else "cpu"

    @property
    def precision(self) -> Literal["bfloat16", "float32"]:
        """The dtype with auto resolved: the same on every worker, so that all rows are comparable."""
        if self.dtype == "auto":
            return "bfloat16" if self.num_gpus > 0 else "float32"
        return self.dtype

    @property
    def computed(self) -> str:
        """Device and precision, as they are stored beside what the model computes."""
        return f"{self.device} {self.precision}"

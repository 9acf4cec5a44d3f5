"""Settings of the estimate of a run."""

from dataclasses import dataclass, fields

from actors.core.errors import UserError


@dataclass(frozen=True)
class EstimateConfig:
    """What --dry-run of `run`, `score` and `retry` measures to estimate the cost of the run."""

    films: int = 0
    """Films of the sample, 0 or more. They are measured for real, in temporary folders that are removed; time, CPU- and
    GPU-hours, storage and requests of the run are scaled from them. More films narrow the intervals. 0: no estimate."""
    seed: int = 0
    """Seed of the draw of the sample."""
    cpu_hour: float = 0.0
    """Price of an hour of one CPU, in any currency; 0: not in the price."""
    gpu_hour: float = 0.0
    """Price of an hour of one GPU, in the same currency, without that of its machine's CPUs; 0: not in the price. Hours
    are those for which workers hold a GPU, at work or not."""
    gb_month: float = 0.0
    """Price of storing 1 GB (10^9 bytes) for a month; 0: not in the price."""
    put_1000: float = 0.0
    """Price of 1,000 PUT, POST or LIST requests; 0: not in the price."""
    get_1000: float = 0.0
    """Price of 1,000 GET or HEAD requests; 0: not in the price."""

    def __post_init__(self) -> None:
        if wrong := [one.name for one in fields(self) if one.name != "seed" and getattr(self, one.name) < 0]:
            raise UserError(f"estimate.{wrong[0]}={getattr(self, wrong[0])}: set 0 or more")

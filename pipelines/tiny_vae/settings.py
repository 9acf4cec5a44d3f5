"""Settings of the tiny VAE's training."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from actors.core.errors import UserError
from pipelines.core.training_config import gpus


@dataclass(frozen=True)
class AutoencoderConfig:
    """The model and its training: everything that the weights depend on."""

    channels: int = 32
    """Width of every layer, from 1. Wider is better and slower."""
    encoder_blocks: tuple[int, int, int, int] = (0, 1, 2, 3)
    """Residual blocks of the encoder at 1, 1/2, 1/4 and 1/8 of the size. Blocks at full size cost most time."""
    decoder_blocks: tuple[int, int, int, int] = (3, 3, 2, 0)
    """Residual blocks of the decoder at 1/8, 1/4, 1/2 and 1 of the size."""
    steps: int = 3000
    """Optimizer steps in all, from 1."""
    batch_size: int = 8
    """Crops per step and worker, from 1."""
    crop: int = 96
    """Side of a crop in pixels, a multiple of 8."""
    learning_rate: float = 1e-3
    """Peak learning rate of Adam, after a warm-up of 2 % of the steps; it falls to 0 along a cosine."""
    gradient_weight: float = 0.2
    """Weight of the L1 distance of pixel differences in the loss. Raise it for sharper edges."""
    moments_weight: float = 0.05
    """Weight in the loss that draws the channels of the latents to mean 0 and covariance 1. With it, the cosine of two
    latents says more about how similar two frames are."""
    checkpoint_every: int = 250
    """Steps between two checkpoints, from 1. A kill loses at most this many steps."""
    seed: int = 0
    """Seed of the initial weights and of every crop."""

    def __post_init__(self) -> None:
        if self.crop < 8 or self.crop % 8:
            raise UserError(f"model.crop must be a multiple of 8, not {self.crop}")
        for name in ("steps", "batch_size", "channels", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise UserError(f"model.{name} starts at 1, not {getattr(self, name)}")


@dataclass(frozen=True)
class TrainConfig:
    """Settings of `train`."""

    output: str = "output/tiny_vae"
    """Where weights, card, checkpoints and the run record go: a path or s3://bucket/prefix that every worker can write
    to."""
    workers: int = 1
    """Processes that train in parallel, each with its own batch, from 1."""
    num_gpus: float = 0.0
    """GPUs that each worker holds; above 0 it trains on a GPU."""
    model: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    """The model and its training."""

    ALIASES: ClassVar[dict[str, Any]] = {"use_gpu": ("num_gpus", gpus)}

    def __post_init__(self) -> None:
        if self.workers < 1 or self.num_gpus < 0:
            raise UserError(f"workers starts at 1 and num_gpus at 0, not {self.workers} and {self.num_gpus}")

"""Settings of comic characters: one tree for all verbs, so that one file of settings runs them all."""

from dataclasses import dataclass, field
from typing import Literal

from actors.characters import BackboneConfig
from actors.crops import CropConfig
from actors.stage import Stage
from pipelines.training import TrainingConfig
from pipelines.views import ViewsConfig


@dataclass(frozen=True)
class DecodeConfig(Stage):
    """How crops are decoded for training."""

    workers: int = 0


@dataclass(frozen=True)
class PretrainTraining(TrainingConfig):
    """How long and how fast stage 1 trains."""

    epochs: int = 500
    batch_size: int = 320
    learning_rate: float = 5e-4
    weight_decay: float = 0.01
    schedule: Literal["constant", "cosine", "step"] = "cosine"
    clip: float | None = 0.5
    drop_last: bool = True
    checkpoint_s: float = 300.0


@dataclass(frozen=True)
class PretrainConfig:
    """Stage 1: how the backbone is trained on pairs of face and body, without labels."""

    folder: str = "pretrain"
    """Where below the output the weights go."""
    identity: bool = True
    """Make a face and its body alike: the identity term."""
    temperature: float = 0.07
    """What cosines are divided by; the lower, the more the hardest negatives count."""
    dimensions: int = 128
    """Of the vectors that are compared."""
    shares: tuple[float, float, float] = (0.92, 0.04, 0.04)
    """Of series, not pairs: to train on, to validate, to test."""
    views: ViewsConfig = field(default_factory=ViewsConfig)
    """How a view may differ from its picture."""
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    """Decoding each crop once."""
    training: PretrainTraining = field(default_factory=PretrainTraining)
    """How long and how fast."""

    def __post_init__(self) -> None:
        if not self.temperature > 0 or self.dimensions < 2 or min(self.shares) <= 0:
            raise ValueError(f"temperature and shares are above 0 and dimensions start at 2: {self}")
        if self.training.accumulate > 1 or not self.training.drop_last:
            raise ValueError("training.accumulate is 1 and training.drop_last true: the loss is of a batch as a whole")
        if self.training.batch_size < max(2, self.training.workers):
            raise ValueError(f"training.batch_size starts at 2 and at training.workers: {self.training}")


@dataclass(frozen=True)
class ComicsConfig:
    """Settings of every verb."""

    output: str
    """Where everything goes: a path or s3://bucket/prefix."""
    pictures: str = ""
    """Folder of panels, <series>/<page>_<panel>.jpg, or of pages, <series>/<page>.jpg; also .jpeg, .png and .webp."""
    boxes: str = ""
    """CSV of boxes, in pixels of these pictures: series_id, page_id (<page>_<panel>), type (face or body), index,
    char_index (the same for a face and its body; empty or -1 where unknown), x_0, y_0, x1, y_1."""
    autoscaling: bool = False
    """The cluster grows by what is asked for: do not fit pools to what is there now."""
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    """The network that faces and bodies share."""
    crop: CropConfig = field(default_factory=CropConfig)
    """Faces and bodies cut out of pictures."""
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    """Stage 1."""

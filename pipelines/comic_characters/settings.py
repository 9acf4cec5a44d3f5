"""Settings of comic characters: one tree for all verbs, so that one file of settings runs them all."""

import re
from dataclasses import dataclass, field
from typing import Literal

from actors.comic_characters.crops import CropConfig
from actors.comic_characters.network import BackboneConfig, EmbedConfig, FeaturesConfig, HeadConfig
from actors.core.errors import UserError
from actors.core.stage import Stage
from actors.models import backbones
from pipelines.comic_characters.augment import ViewsConfig
from pipelines.comic_characters.retrieval import Rerank
from pipelines.core.training_config import TrainingConfig


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
    """Of series, not pairs: to train on, to validate, to test. Series of the labels' validation and test stay there."""
    views: ViewsConfig = field(default_factory=ViewsConfig)
    """How a view may differ from its picture."""
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    """Decoding each crop once."""
    training: PretrainTraining = field(default_factory=PretrainTraining)
    """How long and how fast."""

    def __post_init__(self) -> None:
        if not self.temperature > 0 or self.dimensions < 2 or min(self.shares) <= 0:
            raise UserError(f"temperature and shares are above 0 and dimensions start at 2: {self}")
        if self.training.accumulate > 1 or not self.training.drop_last:
            raise UserError("training.accumulate is 1 and training.drop_last true: the loss is of a batch as a whole")
        if self.training.batch_size < max(2, self.training.workers):
            raise UserError(f"training.batch_size starts at 2 and at training.workers: {self.training}")


@dataclass(frozen=True)
class FineTuneTraining(TrainingConfig):
    """How long and how fast stage 2 trains; a batch is one of sequences."""

    epochs: int = 20
    batch_size: int = 16
    learning_rate: float = 7.5e-4
    weight_decay: float = 0.05
    schedule: Literal["constant", "cosine", "step"] = "step"
    decay_epochs: int = 1
    decay_ratio: float = 0.95
    monitor: str = "query_mrr"
    mode: Literal["min", "max"] = "max"
    patience: int | None = 5


@dataclass(frozen=True)
class FineTuneConfig:
    """Stage 2: how the head is trained on sequences in which it is known who is who."""

    folder: str = "fine-tune"
    """Where below the output the weights go."""
    head: HeadConfig = field(default_factory=HeadConfig)
    """What makes one vector of a face and a body."""
    loss: Literal["contrastive", "triplet", "multi_similarity", "circle", "tuplet", "n_pairs"] = "contrastive"
    """Of pytorch-metric-learning."""
    miner: Literal["none", "multi_similarity", "pair_margin", "triplet_margin"] = "none"
    """Which pairs the loss is of: all that are known, or what a miner of pytorch-metric-learning picks of them."""
    uncertain: bool = False
    """Take characters that may be the same for different ones."""
    mask: float = 0.0
    """Share of instances with face and body of which, in training, one or the other is not seen."""
    training: FineTuneTraining = field(default_factory=FineTuneTraining)
    """How long and how fast."""

    def __post_init__(self) -> None:
        if not 0 <= self.mask <= 1:
            raise UserError(f"mask lies in [0, 1], not at {self.mask}")
        if self.loss == "n_pairs" and self.miner != "none":
            raise UserError("n_pairs takes pairs of its own: miner=none")
        if self.training.workers > 1 or self.training.accumulate > 1:
            raise UserError("training.workers and training.accumulate are 1: a batch is taken as a whole")


@dataclass(frozen=True)
class ScoreConfig:
    """How vectors are scored, and beside what."""

    folder: str = "scores"
    """Where below the output tables, pictures and the page go."""
    split: Literal["train", "validation", "test"] = "test"
    """Of which labels."""
    parts: Literal["any", "both"] = "any"
    """Score all instances, or only those of which both face and body are known."""
    least: int = 5
    """Series and sequences of fewer instances are not scored within."""
    rerank: Rerank | None = None
    """Also score the vectors re-ranked by shared neighbours: {} for the usual k1, k2 and weight."""
    draws: int = 1000
    """Of the bootstrap over series."""
    seed: int = 0
    """Of queries, k-means, random vectors and the bootstrap."""
    photographs: backbones.BackboneConfig = field(default_factory=backbones.BackboneConfig)
    """The network, trained on ImageNet, that is compared with."""
    ablations: dict[str, list[str]] = field(default_factory=dict)
    """Trainings to compare with, each by its name and the settings in which it differs, as
    {cat: [fine_tune.head.fusion=cat], unaligned: [pretrain.identity=false]}."""

    def __post_init__(self) -> None:
        if self.least < 2 or self.draws < 1 or self.seed < 0:
            raise UserError(f"least starts at 2, draws at 1, seed at 0: {self}")
        if wrong := [name for name in self.ablations if not re.fullmatch(r"[\w.-]+", name)]:
            raise UserError(f"ablations are named by letters, digits, '.', '_' and '-', not {', '.join(wrong)}")


@dataclass(frozen=True)
class AssignConfig:
    """Who is the same in a few panels."""

    folder: str = "assign"
    """Where below the output the result goes."""
    split: Literal["train", "validation", "test"] | None = "test"
    """Of which label file the sequences are; null, or without labels: consecutive panels of all that was cropped."""
    panels: int = 4
    """So many consecutive panels of a series are a sequence, where no label file says so; 0: the whole series is."""
    method: Literal["agglomerative", "dbscan"] = "agglomerative"
    """Average linkage, or DBSCAN with one neighbour; by Euclidean distance."""
    threshold: float | None = None
    """Up to which distance, 0 to 2, two are the same; null: what the validation split of `labels` teaches, else what
    it has taught before, else .82."""
    constraints: bool = True
    """Nobody stands in a panel twice, and boxes of a panel with one char_index are of one character."""
    bank: str = ""
    """CSV with the columns name and instance, <series>_<page>_<panel>_<face|body>_<number>: examples of characters."""
    pictures: int = 24
    """So many sequences, from the first to the last, get a picture with boxes."""

    def __post_init__(self) -> None:
        if self.panels < 0 or self.pictures < 0 or not 0 <= (self.threshold or 0) <= 2:
            raise UserError(f"panels and pictures start at 0, and threshold lies in 0..2: {self}")


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
    labels: str = ""
    """Folder of train_sequences.json, validation_sequences.json and test_sequences.json: who is who."""
    autoscaling: bool = False
    """The cluster grows by what is asked for: do not fit pools to what is there now."""
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    """The network that faces and bodies share."""
    crop: CropConfig = field(default_factory=CropConfig)
    """Faces and bodies cut out of pictures."""
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    """Stage 1."""
    features: FeaturesConfig = field(default_factory=FeaturesConfig)
    """The backbone, frozen, applied to crops."""
    fine_tune: FineTuneConfig = field(default_factory=FineTuneConfig)
    """Stage 2."""
    embed: EmbedConfig = field(default_factory=EmbedConfig)
    """The head applied to what the backbone sees."""
    score: ScoreConfig = field(default_factory=ScoreConfig)
    """What all that is worth."""
    assign: AssignConfig = field(default_factory=AssignConfig)
    """Who is the same, by their vectors."""

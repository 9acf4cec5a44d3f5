"""Settings of comic characters: one tree for all verbs, so that one settings file runs them all."""

import re
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from actors.comic_characters.augment_settings import CopiesConfig, ViewsConfig
from actors.comic_characters.crops import CropConfig
from actors.comic_characters.detection import DetectConfig
from actors.comic_characters.network_settings import (
    ONE_PART,
    BackboneConfig,
    EmbedConfig,
    FeaturesConfig,
    HeadConfig,
)
from actors.core.errors import UserError
from actors.core.stage import Stage
from actors.models import backbones
from pipelines.comic_characters.learning.loss_settings import LossConfig, LossName, MinerConfig, MinerName
from pipelines.comic_characters.learning.retrieval import Rerank
from pipelines.core.training_config import TrainingConfig

Identities = Literal["sequences", "lists"]
"""Which labels name characters."""


@dataclass(frozen=True)
class DecodeConfig(Stage):
    """Task stage that decodes crops for training."""

    workers: int = 0
    """Tasks that decode at once over the whole cluster; 0: as many as there are CPUs for."""


@dataclass(frozen=True)
class PretrainTraining(TrainingConfig):
    """Training of stage 1."""

    epochs: int = 500
    batch_size: int = 320
    learning_rate: float = 5e-4
    weight_decay: float = 0.01
    schedule: Literal["constant", "cosine", "step"] = "cosine"
    clip: float | None = 0.5
    drop_last: bool = True
    checkpoint_s: float = 300.0
    monitor: str = "retrieval"
    """Validation metric that selects the best epoch. retrieval: MAP@R of labelled characters in the validation series;
    without labels the mean reciprocal rank of another view of each picture. valid_loss (with mode=min): the loss."""
    mode: Literal["min", "max"] = "max"


@dataclass(frozen=True)
class PretrainConfig:
    """Stage 1: training of the backbone on pairs of face and body, without labels."""

    folder: str = "pretrain"
    """Folder of the weights of stage 1, below the output."""
    identity: bool = True
    """Add the identity term to the loss, which makes a face and its own body similar. false: for comparison."""
    temperature: float = 0.07
    """Temperature of the loss, above 0. The lower it is, the more the hardest negatives count."""
    dimensions: int = 128
    """Length of the vectors that the loss compares, from 2."""
    shares: tuple[float, float, float] = (0.92, 0.04, 0.04)
    """Shares of series for training, validation and test. Series in the validation or test labels keep their part."""
    views: ViewsConfig = field(default_factory=ViewsConfig)
    """Augmentation: how each view differs from its picture."""
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    """Task stage that decodes each crop once."""
    training: PretrainTraining = field(default_factory=PretrainTraining)
    """Training of stage 1: epochs, batch size, learning rate, workers."""

    def __post_init__(self) -> None:
        if not self.temperature > 0 or self.dimensions < 2 or min(self.shares) <= 0:
            raise UserError(
                f"pretrain: temperature and shares must be above 0 and dimensions 2 or more, not {self.temperature}, "
                f"{self.shares} and {self.dimensions}"
            )
        if self.training.accumulate > 1 or not self.training.drop_last:
            raise UserError("pretrain.training: accumulate must be 1 and drop_last true; the loss needs whole batches")
        if self.training.batch_size < max(2, self.training.workers):
            raise UserError(
                f"pretrain.training.batch_size={self.training.batch_size} must be at least 2 and at least "
                f"training.workers={self.training.workers}"
            )


@dataclass(frozen=True)
class FineTuneTraining(TrainingConfig):
    """Training of stage 2; a batch is a batch of sequences."""

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
    """Stage 2: training of the head on labelled sequences."""

    folder: str = "fine-tune"
    """Folder of the weights of stage 2, below the output."""
    head: HeadConfig = field(default_factory=HeadConfig)
    """The head that fuses a face and a body into one vector."""
    loss: LossName | list[LossConfig] = "contrastive"
    """Metric loss of pytorch-metric-learning with the library's defaults: contrastive, triplet, multi_similarity,
    circle, tuplet, n_pairs, intra_pair_variance. Or a list of losses that are added, with weight, distance, reducer and
    margins: [{name: triplet, options: {margin: 0.2}}, {name: contrastive, weight: 0.5}]."""
    miner: Literal["none"] | MinerName | MinerConfig = "none"
    """Miner of pytorch-metric-learning that picks the pairs for the loss, by its name, or with distance and margins:
    {name: pair_margin, options: {pos_margin: 0.1}}. none: all pairs with known labels."""
    uncertain: bool = False
    """Use characters that may be the same as negatives, too. false: only pairs known to differ are negatives."""
    mask: float = 0.0
    """Share, 0 to 1, of instances with face and body of which training hides one at random; makes the head robust."""
    lone: bool = True
    """Train also on characters who are in no sequence together with another, such as the only one of a series: they
    differ from those of other series. false: leave them out, as the reference does by default."""
    augment: CopiesConfig | None = None
    """Augmentation of the training crops; {} takes 8 views of each as in stage 1. null: none."""
    training: FineTuneTraining = field(default_factory=FineTuneTraining)
    """Training of stage 2: epochs, batch size, learning rate."""

    def __post_init__(self) -> None:
        if not 0 <= self.mask <= 1:
            raise UserError(f"fine_tune.mask must be in [0, 1], not {self.mask}")
        if self.mask and self.head.fusion in ONE_PART:
            raise UserError(
                f"fine_tune.head.fusion={self.head.fusion} takes one part, so none can be hidden. Set mask=0."
            )
        if not self.losses:
            raise UserError("fine_tune.loss is empty. Set a loss.")
        if self.mined and any(one.name == "n_pairs" for one in self.losses):
            raise UserError("fine_tune.loss=n_pairs picks its own pairs. Set fine_tune.miner=none.")
        if self.training.workers > 1 or self.training.accumulate > 1:
            raise UserError("fine_tune.training: workers and accumulate must be 1; the loss needs whole batches")

    @property
    def losses(self) -> list[LossConfig]:
        """All losses that are added."""
        return self.loss if isinstance(self.loss, list) else [LossConfig(self.loss)]

    @property
    def mined(self) -> MinerConfig | None:
        """The miner, None where all pairs count."""
        if isinstance(self.miner, MinerConfig):
            return self.miner
        return None if self.miner == "none" else MinerConfig(self.miner)


@dataclass(frozen=True)
class ScoreConfig:
    """Scores of vectors, and the baselines and ablations beside them."""

    folder: str = "scores"
    """Folder of tables, figures and the page, below the output."""
    split: Literal["train", "validation", "test"] = "test"
    """Label file that is scored: <split>_sequences.json."""
    parts: Literal["any", "both"] = "any"
    """Instances that are scored: all (any), or only those with both face and body (both)."""
    least: int = 5
    """Least number of instances, from 2, of a series or sequence to be scored within."""
    rerank: Rerank | None = None
    """Also score vectors re-ranked by k-reciprocal neighbours; {} sets the usual k1, k2 and weight. null: do not."""
    draws: int = 1000
    """Draws of the bootstrap over series, from 1, by which intervals are computed."""
    seed: int = 0
    """Seed of queries, k-means, random vectors and the bootstrap."""
    photographs: backbones.BackboneConfig = field(default_factory=backbones.BackboneConfig)
    """Baseline network, trained on photographs (ImageNet)."""
    ablations: dict[str, list[str]] = field(default_factory=dict)
    """Trainings to compare with: a name and the settings in which each differs, such as
    {cat: [fine_tune.head.fusion=cat], unaligned: [pretrain.identity=false]}."""

    def __post_init__(self) -> None:
        if self.least < 2 or self.draws < 1 or self.seed < 0:
            raise UserError(
                f"score: least starts at 2, draws at 1, seed at 0, not {self.least}, {self.draws}, {self.seed}"
            )
        if wrong := [name for name in self.ablations if not re.fullmatch(r"[\w.-]+", name)]:
            raise UserError(f"score.ablations are named by letters, digits, '.', '_' and '-', not {', '.join(wrong)}")


@dataclass(frozen=True)
class AssignConfig:
    """Clustering of the instances of each sequence into characters."""

    folder: str = "assign"
    """Folder of clusters, pictures and the page, below the output."""
    split: Literal["train", "validation", "test"] | None = "test"
    """Label file with the sequences to cluster: <split>_sequences.json. null, or without labels: consecutive panels of
    all crops."""
    panels: int = 4
    """Consecutive panels per sequence where there is no label file; 0: each series is one sequence."""
    method: Literal["agglomerative", "dbscan"] = "agglomerative"
    """Clustering method on Euclidean distances: average linkage, or DBSCAN with one neighbour."""
    threshold: float | None = None
    """Largest distance, 0 to 2, between instances of one character. null: fitted on the validation split of `labels`;
    else the one fitted before, here or in `model`; else, where none was ever fitted, 0.82."""
    constraints: bool = True
    """Keep instances of one panel apart, and boxes of a panel with one char_index together."""
    bank: str | None = None
    """Character bank: a CSV of examples with columns name and instance (<series>_<page>_<panel>_<face|body>_<number>),
    or name, face and body, which are pictures (paths or S3, also relative to the CSV) of which one is enough. Clusters
    close to a character's examples get its name. null: the bank of `model`, if it has one. Empty: no names."""
    pictures: int = 24
    """Sequences, evenly spread, that get a picture with boxes."""

    def __post_init__(self) -> None:
        if self.panels < 0 or self.pictures < 0 or not 0 <= (self.threshold or 0) <= 2:
            raise UserError(
                f"assign: panels and pictures start at 0, and threshold lies in 0..2, not {self.panels}, "
                f"{self.pictures} and {self.threshold}"
            )


@dataclass(frozen=True)
class ComicsConfig:
    """Settings of panels, detect, convert, crop, embed, assign and score; of pretrain and fine-tune, too."""

    output: str
    """Where all results go: a path or s3://bucket/prefix."""
    input: str = ""
    """Folder or prefix of panels, <series>/<page>_<panel>.jpg, or of pages, <series>/<page>.jpg; also .jpeg, .png and
    .webp. Needed by `panels`, `detect` and `crop`."""
    boxes: str = ""
    """Boxes in pixels of the input's pictures. A CSV: series_id, page_id (<page>_<panel>), type (face or body), index,
    char_index (equal for a face and its body; empty or -1 where unknown), x_0, y_0, x1, y_1; or Manga109 XML, COCO JSON
    or CoMix JSON, a file or a folder of such. Empty: those that `detect` wrote into the output."""
    reading: Literal["left_to_right", "right_to_left"] | None = None
    """Direction in which panels are read, and numbered. null: right to left for Manga109 XML, else left to right."""
    labels: str = ""
    """Folder of labels: train_sequences.json, validation_sequences.json, test_sequences.json. Needed by `fine-tune` and
    `score`."""
    identities: Identities = "sequences"
    """Who is who in the labels: sequences (their charId); lists (<split>_char_faces.json and <split>_char_bodies.json,
    {character: [instance, ...]}; one character may be in several sequences; instances in no list are left out)."""
    experiment: str = ""
    """Name of a settings file that ships with the project (jobs/comic_characters/experiments/NAME.yaml). Your settings
    override it. Empty: none."""
    model: str = ""
    """Output of another run, or a copy of its model/ folder, a path or s3://. Its model is used here: weights of both
    stages, the settings that they were trained with, the threshold, and the bank. Also a stage 2 checkpoint of the
    reference, a .ckpt file, which has no threshold and no bank. Empty: the model in `output`."""
    autoscaling: bool = False
    """Request as many workers as set, for a cluster that grows on demand; false: scale them to what the cluster has."""
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    """Network of faces and bodies."""
    detect: DetectConfig = field(default_factory=DetectConfig)
    """Detection of faces and bodies on pages."""
    crop: CropConfig = field(default_factory=CropConfig)
    """Cutting faces and bodies out of pictures."""
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    """Stage 1: training of the backbone."""
    features: FeaturesConfig = field(default_factory=FeaturesConfig)
    """Features of crops by the frozen backbone."""
    fine_tune: FineTuneConfig = field(default_factory=FineTuneConfig)
    """Stage 2: training of the head."""
    embed: EmbedConfig = field(default_factory=EmbedConfig)
    """Vectors of instances by the trained head."""
    score: ScoreConfig = field(default_factory=ScoreConfig)
    """Scores of the vectors, beside baselines and ablations."""
    assign: AssignConfig = field(default_factory=AssignConfig)
    """Clustering of instances into characters."""

    ALIASES: ClassVar[dict[str, Any]] = {"pictures": "input"}

    def __post_init__(self) -> None:
        if isinstance(self.features.weights, dict) and self.backbone.shared:
            raise UserError("features.weights names two files, and backbone.shared=true. Set backbone.shared=false.")


def gpus(gpus: int) -> dict[str, float]:
    """Settings of a training that stand for PyTorch Lightning's `trainer.gpus`: that many workers with a GPU each."""
    if gpus < 0:
        raise UserError(f"trainer.gpus={gpus} is not supported. Set the number of GPUs, or 0 for CPUs.")
    return {"workers": gpus, "num_gpus": 1.0} if gpus else {"num_gpus": 0.0}


def _overrides(training: str) -> dict[str, Any]:
    """Hydra overrides of the reference system, for the training at this path."""
    return {
        **ComicsConfig.ALIASES,
        "trainer.max_epochs": f"{training}.epochs",
        "trainer.gradient_clip_val": f"{training}.clip",
        "trainer.gpus": (training, gpus),
        "datamodule.batch_size": f"{training}.batch_size",
    }


_NOT_HERE = {
    "trainer.min_epochs": "pretrain and fine_tune have training.epochs and training.patience",
    "datamodule.num_workers": "Ray schedules decoding; see pretrain.decode.workers",
    "datamodule.pin_memory": "a training keeps its data on the device",
}


@dataclass(frozen=True)
class PretrainSettings(ComicsConfig):
    """Settings of `pretrain`."""

    ALIASES: ClassVar[dict[str, Any]] = _overrides("pretrain.training")
    IGNORED: ClassVar[dict[str, str]] = _NOT_HERE


@dataclass(frozen=True)
class FineTuneSettings(ComicsConfig):
    """Settings of `fine-tune`."""

    ALIASES: ClassVar[dict[str, Any]] = _overrides("fine_tune.training")
    IGNORED: ClassVar[dict[str, str]] = _NOT_HERE

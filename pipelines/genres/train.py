"""Heads that tell the genres of films: how they learn, what they answer, and what they are worth on films not seen."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa

from actors.core import storage
from actors.core.errors import UserError
from actors.core.store import Store
from actors.genres.head_settings import HeadConfig
from pipelines.core.film_vectors import Films
from pipelines.core.metrics import ENOUGH, average_precision, averages, bootstrap, thresholds, widened
from pipelines.core.training_config import TrainingConfig, gpus
from pipelines.genres.process import fused, read_any
from pipelines.genres.splits import given, parts_of

if TYPE_CHECKING:
    import ray
    from torch import Tensor, nn

    from pipelines.genres.closed_form import SolveConfig

PREDICTIONS = pa.schema(
    [("id", pa.string()), ("genre", pa.string()), ("probability", pa.float32()), ("chosen", pa.bool_())]
)
"""One row for each film and genre; chosen: the probability reaches the genre's threshold."""
MOST = 2.0
"""A genre is chosen at most so many times as often as it is there, on the films that thresholds are taken from."""
BATCH = 256
"""Films that a head gets at once when it answers."""


MEANS = ("macro", "weighted")
"""Means of average precision that a training reports."""
DRAWS = 1000
"""Draws of the bootstrap over test films."""


@dataclass(frozen=True)
class LearnConfig(HeadConfig):
    """How a head learns; the names, and the defaults of the LSTM, are the reference's."""

    solve: bool = True
    """head=mean: solve its weights in closed form instead of by gradient descent; faster and better on small data."""
    ridge: float = 4.0
    """Closed form only: L2 penalty on the weights, above 0; raise it if held-out films score far worse."""
    coupling: float = 1.0
    """Closed form only: coupling between genres, from 0 (each genre alone); higher shares more between related ones."""
    train_split_proportion: float = 0.8
    """Share of films in the training split, in (0, 1]; the rest is halved into validation and test. At 1 all films
    train and none tests, which only the closed form allows."""
    n_epochs: int = 60
    """Gradient descent only: epochs at most."""
    sequence_length: int = 256
    """Key frames per film that a classifier reads at most, sampled at equal steps from a longer film."""
    batch_size: int = 32
    """Gradient descent only: films per optimizer step."""
    loss: Literal["cross_entropy", "asymmetric"] = "cross_entropy"
    """Gradient descent only: binary cross-entropy, or the asymmetric loss, which down-weights easy negatives."""
    class_weights_crossentropy: bool = True
    """Weight the cross-entropy so that rare genres count as much as frequent ones."""
    learning_rate: float = 1e-3
    """Initial learning rate of gradient descent."""
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    """Learning rate schedule; step multiplies by learning_decay_ratio every learning_decay epochs."""
    learning_decay: int = 150
    """schedule=step: epochs between two decays."""
    learning_decay_ratio: float = 0.6
    """schedule=step: factor of each decay."""
    weight_decay: float = 0.0
    """Weight decay of AdamW; 0 makes it Adam."""
    patience: int = 160
    """Early stopping: epochs without a better macro average precision of the validation films, or, of fewer than 10,
    without a better validation loss. The best epoch is kept."""
    seed: int = 0
    """Seed of the split, the initial weights and the order of films."""
    workers: int = 1
    """Training processes (data parallel); results match up to rounding."""
    num_gpus: float = 0.0
    """GPUs per training process; above 0 it trains there."""

    ALIASES: ClassVar[dict[str, Any]] = {"use_gpu": ("num_gpus", gpus)}

    def __post_init__(self) -> None:
        if not 0 < self.train_split_proportion <= 1:
            raise UserError(f"train_split_proportion lies in (0, 1], not at {self.train_split_proportion}")
        if self.train_split_proportion == 1 and not self.solved:
            raise UserError("train_split_proportion=1 leaves no films to say when to stop: only head=mean can do so")
        if self.sequence_length < 1:
            raise UserError(f"sequence_length starts at 1, not {self.sequence_length}")
        super().__post_init__()
        # They check the rest.
        for settings in (self.training, self.closed):
            settings()

    @property
    def solved(self) -> bool:
        """Whether the weights are had in closed form."""
        return self.head == "mean" and self.solve

    def closed(self) -> SolveConfig:
        """Settings of the closed form."""
        from pipelines.genres.closed_form import SolveConfig

        return SolveConfig(self.ridge, self.coupling)

    def layers(self) -> HeadConfig:
        """The head, without how it learns."""
        return HeadConfig(**{one.name: getattr(self, one.name) for one in fields(HeadConfig)})

    def training(self) -> TrainingConfig:
        """The descent."""
        return TrainingConfig(
            epochs=self.n_epochs,
            decay_epochs=self.learning_decay,
            decay_ratio=self.learning_decay_ratio,
            **{
                name: getattr(self, name)
                for name in ("batch_size", "learning_rate", "weight_decay", "schedule", "patience", "seed")
            },
            workers=self.workers,
            num_gpus=self.num_gpus,
        )


@dataclass(frozen=True)
class TrainConfig(LearnConfig):
    """Settings of `train`."""

    input: str = "output/genres/films.npz"
    """Films with genres: the .npz that `process` writes."""
    output: str = "output/genres"
    """Folder or s3:// prefix for model/, test.parquet and, with gradient descent, training/."""
    refit: bool | None = None
    """Train the final model on all films, after a model of the training split has been evaluated; by default
    where the weights are had in closed form, which alone can do so."""
    split_file: str = ""
    """A given split instead of a random one: JSON with lists of films, `train`, `val` and `test`, as MovieNet's
    movie1K.split.v1.json. Films in none of them are left out."""
    extra: list[str] = field(default_factory=list)
    """Other features of the same films, as .npz of the same layout; their means are concatenated to each key frame."""

    ALIASES: ClassVar[dict[str, Any]] = {**LearnConfig.ALIASES, "films": "input"}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.split_file and self.train_split_proportion != LearnConfig.train_split_proportion:
            raise UserError("split_file says which films train: leave out train_split_proportion")
        if self.refit and not self.solved:
            raise UserError(
                "refit: only what is had in closed form (head=mean) needs no validation films; leave it out"
            )


@dataclass(frozen=True)
class GenreModel:
    """A head that has learnt, and from which probability it says that a film has a genre."""

    head: nn.Module
    learn: LearnConfig
    genre_names: list[str]
    thresholds: np.ndarray
    """float64 (C,), of probabilities."""
    dimensions: int

    def probabilities(self, films: Films) -> np.ndarray:
        """float64 (N, C) of whole films, in the order of `films.whole()`: of its pieces the mean."""
        import pandas as pd
        import torch

        check_dimensions(films, self.dimensions)
        if self.learn.head == "mean":
            films = films.whole()
        found = []
        self.head.eval()
        with torch.inference_mode():
            for first in range(0, len(films), BATCH):
                some = films.take(np.arange(first, min(first + BATCH, len(films))))
                found.append(self.head(*frames_of(some, self.learn.sequence_length)).sigmoid().double().numpy())
        probabilities = np.concatenate(found)
        if not films.owners:
            return probabilities
        means = pd.DataFrame(probabilities).groupby(np.array(films.owners), sort=False).mean()
        return means.to_numpy()

    def save(self, store: Store) -> None:
        """Write model/: weights, and settings with genres and thresholds."""
        from safetensors.torch import save as save_tensors

        tensors = {name: tensor.contiguous() for name, tensor in self.head.state_dict().items()}
        storage.write_bytes(store.uri("model", "model.safetensors"), save_tensors(tensors))
        learn = {one.name: getattr(self.learn, one.name) for one in fields(LearnConfig)}
        told = dict(zip(self.genre_names, self.thresholds.tolist(), strict=True))
        store.write_json({"learn": learn, "dimensions": self.dimensions, "thresholds": told}, "model", "config.json")


def check_dimensions(films: Films, dimensions: int) -> None:
    """Raise UserError where films have vectors of another length than those that a model was trained on."""
    if films.vectors.shape[1] != dimensions:
        raise UserError(
            f"the model has learnt from vectors of {dimensions} numbers, and these have "
            f"{films.vectors.shape[1]}: embed by the same model, and give the same extra features"
        )


def read_model(uri: str) -> tuple[dict[str, Any], bytes]:
    """The settings and the weights of a model, without torch; raises UserError where it is not there."""
    try:
        about = json.loads(storage.read_bytes(storage.join(uri, "config.json")))
        return about, storage.read_bytes(storage.join(uri, "model.safetensors"))
    except FileNotFoundError as error:
        raise UserError(f"{uri} holds no model: `train` first, or name the model/ of its output") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{uri}/config.json is damaged: {error}. Run `train` again.") from error


def load_model(uri: str) -> GenreModel:
    """Read what `GenreModel.save` wrote below a path or s3://; raises UserError where it is not there."""
    about, data = read_model(uri)
    from safetensors.torch import load as load_tensors

    from actors.genres.heads import make_head

    weights = load_tensors(data)
    learn, told = LearnConfig(**about["learn"]), about["thresholds"]
    head = make_head(learn.layers(), about["dimensions"], len(told))
    head.load_state_dict(weights)
    return GenreModel(head.eval(), learn, list(told), np.array(list(told.values())), about["dimensions"])


# ------------------------------------------------------------------------------------------------------------- learning


def learn(films: Films, valid: Films | None, config: LearnConfig, output: str) -> GenreModel:
    """Train a head; what had no validation films takes its thresholds from answers without each film (leave-one-out).

    Args:
        valid: films that say when to stop and where thresholds lie; the closed form, which needs none, learns from
            them, too.
        output: where a descent has its checkpoints, so that the same call after a kill goes on.
    """
    import torch

    from actors.genres.heads import MeanProbe, mean_directions
    from pipelines.core.training import fit
    from pipelines.genres import losses

    dimensions, classes = films.vectors.shape[1], len(films.genre_names)
    if config.solved:
        everything = _joined(films, valid).whole()
        probe = MeanProbe(dimensions, classes).eval()
        from pipelines.genres.closed_form import solve

        logits = solve(probe, *frames_of(everything, config.sequence_length), everything.genres, config.closed())
        found = thresholds(1 / (1 + np.exp(-logits)), everything.genres, most=MOST)
        return GenreModel(probe, config, films.genre_names, found, dimensions)
    assert valid is not None
    centre = mean_directions(*frames_of(films, config.sequence_length)).mean(0) if config.head == "mean" else None
    make = partial(_first, config.layers(), dimensions, classes, centre)
    weights = losses.class_balanced_weights(torch.from_numpy(films.genres.sum(0, dtype=np.int64)), len(films))
    trained = fit(
        make,
        partial(_loss, config.loss, weights if config.class_weights_crossentropy else None),
        _validate,
        {"train": _dataset(films, config), "valid": _dataset(valid, config)},
        monitored(config.training(), valid),
        output=output,
        settings={"head": asdict(config.layers()), "loss": [config.loss, config.class_weights_crossentropy]}
        | {"films": films.ids, "valid": valid.ids, "sequence_length": config.sequence_length},
    )
    model = GenreModel(trained.model, config, films.genre_names, np.full(classes, 0.5), dimensions)
    found = thresholds(model.probabilities(valid), valid.whole().genres, most=MOST)
    return replace(model, thresholds=found)


def monitored(training: TrainingConfig, valid: Films) -> TrainingConfig:
    """The descent, whose best epoch has the best macro average precision of validation, if there are ENOUGH films.

    The loss of validation does not weight genres as training does, and grows with certainty while films are ranked
    better.
    """
    whole = valid.whole()
    if len(whole) < ENOUGH or not whole.genres.any():
        return training
    return replace(training, monitor="valid_macro_ap", mode="max")


def _joined(films: Films, others: Films | None) -> Films:
    if others is None:
        return films
    return Films(
        vectors=np.concatenate([films.vectors, others.vectors]),
        offsets=np.concatenate([films.offsets, films.offsets[-1] + others.offsets[1:]]),
        ids=films.ids + others.ids,
        genres=np.concatenate([films.genres, others.genres]),
        genre_names=films.genre_names,
        directors=films.directors + others.directors,
        owners=films.owners + others.owners,
    )


def frames_of(films: Films, length: int = 256) -> tuple[Tensor, Tensor]:
    """Frames float32 (N, T, D) and mask (N, T) as heads take them, with T at most `length`."""
    import torch

    frames, mask = films.padded(min(length, int(np.diff(films.offsets).max())))
    return torch.from_numpy(frames), torch.from_numpy(mask)


def _first(layers: HeadConfig, dimensions: int, classes: int, centre: Tensor | None) -> nn.Module:
    """The head with its first weights."""
    from actors.genres.heads import MeanProbe, make_head

    head = make_head(layers, dimensions, classes)
    if isinstance(head, MeanProbe) and centre is not None:
        head.centre.copy_(centre)
    return head


def _dataset(films: Films, config: LearnConfig) -> ray.data.Dataset:
    import ray

    frames, mask = films.padded(min(config.sequence_length, int(np.diff(films.offsets).max())))
    columns = {"frames": frames.astype(np.float16), "mask": mask, "labels": films.genres}
    return ray.data.from_items([dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)])


def _loss(kind: str, weights: tuple[Tensor, Tensor] | None, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    from pipelines.genres import losses

    logits = model(batch["frames"].float(), batch["mask"].bool())
    if kind == "asymmetric":
        return losses.asymmetric(logits, batch["labels"])
    if weights is None:
        return losses.cross_entropy(logits, batch["labels"])
    there, missing = (side.to(logits.device) for side in weights)
    return losses.class_balanced(logits, batch["labels"], there, missing)


def _validate(model: nn.Module, batches: Iterable[dict[str, Tensor]]) -> dict[str, float]:
    """Cross-entropy and average precision of the validation films."""
    import torch

    from pipelines.genres import losses

    scored = [(model(batch["frames"].float(), batch["mask"].bool()).float(), batch["labels"]) for batch in batches]
    logits = torch.cat([logits for logits, _ in scored])
    labels = torch.cat([labels for _, labels in scored])
    found = averages(average_precision(logits.cpu().numpy(), labels.cpu().numpy()), labels.sum(0).cpu().numpy())
    loss = float(losses.cross_entropy(logits, labels))
    return {"valid_loss": loss, "valid_macro_ap": float(found["macro"]), "valid_weighted_ap": float(found["weighted"])}


@dataclass(frozen=True)
class TrainPlan:
    """What is learned from."""

    films: Films
    parts: np.ndarray
    """int64 (N,): the part of each row, 0 to 2 for train, validation and test; all 0 where nothing tests."""
    left_out: int = 0
    """Films that a given split does not have."""


def plan_train(config: TrainConfig) -> TrainPlan:
    """Read the films and divide them; raises UserError where that cannot work."""
    films = fused(read_any(config.input), [read_any(uri) for uri in config.extra])
    if not films.whole().genres.any():
        raise UserError(f"{config.input}: no film has a genre, so there is nothing to learn. Run `process` with meta.")
    if config.split_file:
        films, parts, left_out = given(films, config.split_file, valid=not config.solved)
        return TrainPlan(films, parts, left_out)
    share = config.train_split_proportion
    if share == 1:
        return TrainPlan(films, np.zeros(len(films), np.int64))
    parts = parts_of(films, (share, (1 - share) / 2, (1 - share) / 2), config.seed)
    if len(np.unique(parts)) < 3:
        raise UserError(f"{len(films.whole())} films are too few for train, validation and test: give more")
    return TrainPlan(films, parts)


def train(config: TrainConfig, plan: TrainPlan) -> dict[str, Any]:
    """Learn, answer for the test films (test.parquet), and keep a model (model/).

    Returns how many films each part has, and the macro and weighted average precision on the test films, unless these
    are too few.
    """
    films, store = plan.films, Store(config.output)
    settings = LearnConfig(**{one.name: getattr(config, one.name) for one in fields(LearnConfig)})
    storage.delete(store.uri("test.parquet"))
    if not plan.parts.any():
        learn(films, None, settings, store.uri("training")).save(store)
        return {"films": {"train": len(films.whole())}, "test_ap": {}}
    train, valid, test = (films.take(np.flatnonzero(plan.parts == part)) for part in range(3))
    model = learn(train, valid if len(valid) else None, settings, store.uri("training"))
    answers, labels = model.probabilities(test), test.whole().genres
    write_predictions(store, "test.parquet", test.whole().ids, answers, model)
    if config.solved if config.refit is None else config.refit:
        model = learn(films, None, settings, store.uri("training"))
    model.save(store)
    counts = {name: len(part.whole()) for name, part in {"train": train, "valid": valid, "test": test}.items()}
    about = {"films": counts, "left_out": plan.left_out, "genres": int((labels.sum(0) > 0).sum())}
    if len(labels) < ENOUGH:
        return {**about, "test_ap": {}, "note": f"{len(labels)} test films, and {ENOUGH} are needed"}
    low, high = bootstrap(lambda weights: _means(answers, labels, weights), len(labels), DRAWS, config.seed)
    found = _means(answers, labels, np.ones((1, len(labels))))[0]
    ends = [widened(*one, len(labels)) for one in zip(found.tolist(), low.tolist(), high.tolist(), strict=True)]
    return {
        **about,
        "test_ap": dict(zip(MEANS, found.tolist(), strict=True)),
        "test_ap_95": {name: list(pair) for name, pair in zip(MEANS, ends, strict=True)},
    }


def _means(answers: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """MEANS of average precision (R, 2), for weights (R, N) of films."""
    found = averages(average_precision(answers, labels, weights), weights @ labels)
    return np.column_stack([found[name] for name in MEANS])


def write_predictions(
    store: Store, name: str, ids: Sequence[str], probabilities: np.ndarray, model: GenreModel
) -> None:
    """Write PREDICTIONS of films, probabilities (N, C)."""
    import pandas as pd

    count, classes = probabilities.shape
    rows = {
        "id": np.repeat(np.array(ids, object), classes),
        "genre": np.tile(np.array(model.genre_names, object), count),
        "probability": probabilities.ravel(),
        "chosen": (probabilities >= model.thresholds).ravel(),
    }
    store.write_table(pa.Table.from_pandas(pd.DataFrame(rows), PREDICTIONS, preserve_index=False), name)

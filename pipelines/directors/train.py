"""Whose film is it? A head on the vectors of a frozen network, measured on films that it has not seen.

Pictures of one film resemble each other, and those of one shot more so: a split by picture puts neighbours on both
sides, and tells how well films are recognised, not directors. Both figures are told, so that the difference is seen.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from functools import partial
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import ray
import torch
from ray.data.extensions import ArrowTensorArray
from safetensors.torch import load
from scipy.special import log_softmax
from sklearn.ensemble import RandomForestClassifier
from sklearn.inspection import permutation_importance
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.nn.functional import cross_entropy

from actors.core import storage
from actors.core.store import Store
from actors.directors.style import FEATURES
from actors.genres.heads import FrameHead
from actors.models.backbones import BackboneConfig
from actors.models.backbones import name as space
from pipelines.core.film_vectors import Films
from pipelines.core.training import (
    Row,
    Share,
    Tensors,
    TrainingConfig,
    best_epoch,
    finished,
    fit,
    learning_rate,
    train_epoch,
)
from pipelines.directors.metrics import (
    auroc,
    by_film,
    calibration_error,
    figures,
    temperature,
    threshold,
)
from pipelines.directors.sample import Screenshot
from pipelines.directors.vectors import Pictures, PicturesConfig

log = logging.getLogger(__name__)

TRAIN, VALID, TEST, NONE = 0, 1, 2, 3
"""Parts; NONE: of a stranger, or of a view of a picture that is not trained on."""
STYLE = (*FEATURES, "shot_s")
"""FEATURES of `actors.directors.style`, and how long the shot lasts, in seconds; NaN where that is not known."""
METHODS = ("head", "linear probe", "nearest neighbours", "style alone", "majority")
MANY = 20_000
"""Pictures that the comparisons learn from at most, drawn at random."""
STRANGERS = 4
"""Films of strangers from which their answers say something."""
KNOWN = 0.9
"""The threshold lets this share of the validation through at least, whatever strangers say."""


@dataclass(frozen=True)
class HeadConfig:
    """The layers that are trained."""

    hidden: int = 128
    """Width of the hidden layer."""
    dropout: float = 0.5
    """Share of it that is left out in training."""
    balanced: bool = True
    """Directors weigh alike, however many pictures there are of each."""

    def __post_init__(self) -> None:
        if self.hidden < 1 or not 0 <= self.dropout < 1:
            raise ValueError(f"hidden starts at 1 and dropout lies in [0, 1): {self}")


@dataclass(frozen=True)
class DirectorsConfig:
    """Settings of `train`."""

    data: str = ""
    """A folder of screenshots, as `sample` makes it, or <director>/<film>/<image>; a path or s3://."""
    films: str = ""
    """Instead of data: vectors of films in one npz file, with directors."""
    output: str = ""
    """A path or s3:// for the model and its report."""
    split: Literal["film", "frame"] = "film"
    """What is kept apart: films, or, for comparison, single pictures."""
    compare: bool = True
    """Tell the figures of the other split, too."""
    test: float = 0.1
    """Share of each director's films (or pictures) that the figures are of."""
    valid: float = 0.1
    """Share that decides when training ends, and how sure answers are."""
    folds: int = 0
    """Measure by so many folds, so that each film is once among those not seen; 0: by the one split."""
    min_films: int = 3
    """Directors with fewer films are not learned: they are the strangers by which "unknown" is measured."""
    unknown: list[str] = field(default_factory=list)
    """More directors to be strangers."""
    neighbours: int = 10
    """Pictures that the comparison by nearest neighbours asks."""
    head: HeadConfig = field(default_factory=HeadConfig)
    """The layers that are trained."""
    training: TrainingConfig = field(
        default_factory=lambda: TrainingConfig(epochs=200, batch_size=32, learning_rate=1e-4, patience=20)
    )
    """How they are trained; the seed is that of the split, too."""
    pictures: PicturesConfig = field(default_factory=PicturesConfig)
    """How pictures become vectors."""

    def __post_init__(self) -> None:
        if bool(self.data) == bool(self.films) or not self.output:
            raise ValueError("output is needed, and one of data (screenshots) and films (an npz file)")
        if not (0 < self.test < 1 and 0 < self.valid < 1 and self.test + self.valid < 1):
            raise ValueError(f"test and valid are above 0 and sum to less than 1, not {self.test} and {self.valid}")
        if self.folds and self.folds < 3:
            raise ValueError(f"folds are 3 or more, or 0, not {self.folds}: one is to test, one to validate")
        if self.min_films < 3 and (self.split == "film" or self.compare or self.folds):
            raise ValueError(
                "min_films is 3 or more where films are split: training, validation and test need one each; with "
                "fewer films there is split=frame compare=false"
            )
        if self.films and self.pictures.views.count:
            raise ValueError("films are vectors already: pictures.views.count needs data")
        if self.neighbours < 1 or self.min_films < 1:
            raise ValueError(f"neighbours and min_films start at 1: {self.neighbours}, {self.min_films}")


@dataclass(frozen=True)
class Frames:
    """Vectors of pictures, and whose they are."""

    vectors: np.ndarray
    """float16 (N, D)"""
    style: np.ndarray
    """float32 (N, len(STYLE)), NaN where it is not known."""
    view: np.ndarray
    """int (N,), 0 for the picture itself."""
    film: np.ndarray
    """int (N,), the number of its film."""
    films: list[str]
    """F names, <director>/<film>."""
    director: np.ndarray
    """int (F,), the number of each film's director; -1 for a stranger."""
    directors: list[str]
    """C names, sorted."""

    @property
    def labels(self) -> np.ndarray:
        """int (N,), the number of each picture's director; -1 for a stranger."""
        return self.director[self.film]


def frames_of_pictures(shots: Sequence[Screenshot], pictures: Pictures, config: DirectorsConfig) -> Frames:
    """What is learned from screenshots."""
    about = {shot.path: shot for shot in shots}
    rows = [about[path] for path in pictures.path]
    names = [(row.director, f"{row.director}/{row.film}") for row in rows]
    lengths = np.array([row.shot_s for row in rows], np.float32)
    style = np.column_stack([pictures.style, lengths])
    return _frames(pictures.vectors, style, pictures.view, names, config)


def frames_of_films(films: Films, config: DirectorsConfig) -> Frames:
    """What is learned from vectors of films; films whose director is not known are left out."""
    known = [i for i, director in enumerate(films.directors) if director]
    if not known:
        raise ValueError(f"{config.films} names no director: its `director` is empty")
    some = films.take(known)
    names = [
        (director, f"{director}/{film}")
        for director, film, count in zip(some.directors, some.ids, np.diff(some.offsets), strict=True)
        for _ in range(count)
    ]
    style = np.full((len(names), len(STYLE)), np.nan, np.float32)
    return _frames(some.vectors, style, np.zeros(len(names), int), names, config)


def _frames(
    vectors: np.ndarray, style: np.ndarray, view: np.ndarray, names: list[tuple[str, str]], config: DirectorsConfig
) -> Frames:
    owners = {film: director for director, film in names}
    counts = Counter(owners.values())
    pictures = Counter(director for director, _ in names)
    if absent := [name for name in config.unknown if name not in counts]:
        near = get_close_matches(absent[0], counts, 3, 0.3)
        raise ValueError(f"unknown={absent[0]} is no director of these films; near it: {', '.join(near) or 'none'}")
    directors = sorted(
        name
        for name, count in counts.items()
        if count >= config.min_films and pictures[name] >= 3 and name not in config.unknown
    )
    if len(directors) < 2:
        few = ", ".join(f"{name} {count}" for name, count in counts.most_common(5))
        raise ValueError(
            f"of {len(counts)} directors {len(directors)} can be learned: two or more, with {config.min_films} films "
            f"and three pictures each, are needed (films: {few})"
        )
    films = sorted(owners)
    number = {name: i for i, name in enumerate(directors)}
    place = {name: i for i, name in enumerate(films)}
    return Frames(
        vectors,
        style,
        view,
        np.array([place[film] for _, film in names], int),
        films,
        np.array([number.get(owners[film], -1) for film in films], int),
        directors,
    )


# -------------------------------------------------------------------------------------------------------------- splits


def deal(groups: np.ndarray, shares: tuple[float, float], seed: int) -> np.ndarray:
    """A part for each item, int (N,): of every group the shares go to VALID and TEST, at least one each.

    groups: int (N,); items of group -1 get NONE. A group needs three items.
    """
    random = np.random.default_rng(seed)
    parts = np.full(len(groups), NONE)
    for group in range(groups.max() + 1):
        items = random.permutation(np.flatnonzero(groups == group))
        valid, test = (max(1, round(share * len(items))) for share in shares)
        parts[items] = TRAIN
        parts[items[:test]] = TEST
        parts[items[test : test + valid]] = VALID
    return parts


def fold(groups: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """A fold for each item, int (N,), each group dealt out evenly; -1 for items of group -1."""
    random = np.random.default_rng(seed)
    found = np.full(len(groups), -1)
    begin = 0
    for group in range(groups.max() + 1):
        items = random.permutation(np.flatnonzero(groups == group))
        # Each group begins where the last one ended, so that folds have the same size.
        found[items] = (begin + np.arange(len(items))) % folds
        begin += len(items)
    return found


def parts_of(frames: Frames, config: DirectorsConfig, split: str, folds: int = 0) -> list[np.ndarray]:
    """The part of each picture, int (N,), once for every fold; views are trained on or not used."""
    own = frames.view == 0
    groups = frames.director if split == "film" else np.where(own, frames.labels, -1)
    seed = config.training.seed
    if folds:
        number = fold(groups, folds, seed)
        dealt = [
            np.select([number < 0, number == i, number == (i + 1) % folds], [NONE, TEST, VALID], TRAIN)
            for i in range(folds)
        ]
    else:
        dealt = [deal(groups, (config.valid, config.test), seed)]
    found = []
    for parts in dealt:
        if split == "film":
            parts = parts[frames.film]
        else:
            # A view goes where its picture, the last row before it that is none, goes.
            parts = parts[np.maximum.accumulate(np.where(own, np.arange(len(own)), 0))]
        found.append(np.where((parts == TRAIN) | own, parts, NONE))
    return found


# ------------------------------------------------------------------------------------------------------------- learning


def make_head(config: HeadConfig, mean: list[float], scale: list[float], classes: int) -> FrameHead:
    """A head with its first weights, which knows the vectors' mean and deviation (D values each)."""
    head = FrameHead(len(mean), classes, config.hidden, config.dropout)
    head.mean.copy_(torch.tensor(mean))
    head.scale.copy_(torch.tensor(scale))
    return head


def head_loss(model: Any, batch: Tensors, weights: list[float]) -> Tensor:
    """Cross-entropy in which a row weighs what its class weighs, (C,), whose mean over training rows is 1."""
    losses = cross_entropy(model(batch["vector"]), batch["label"], reduction="none")
    return (losses * torch.tensor(weights, device=losses.device)[batch["label"]]).mean()


def head_values(model: Any, batches: Iterable[Tensors], weights: list[float]) -> dict[str, float]:
    """Loss and share of right answers over validation rows."""
    loss = right = rows = 0.0
    for batch in batches:
        logits, labels = model(batch["vector"]), batch["label"]
        each = cross_entropy(logits, labels, reduction="none")
        loss += float((each * torch.tensor(weights, device=each.device)[labels]).sum())
        right += float((logits.argmax(1) == labels).sum())
        rows += len(labels)
    return {"valid_loss": loss / rows, "valid_accuracy": right / rows}


@dataclass(frozen=True)
class Task:
    """What a head is trained on."""

    make: Callable[[], FrameHead]
    loss: Callable[[Any, Tensors], Tensor]
    values: Callable[[Any, Iterable[Tensors]], dict[str, float]]
    train: tuple[np.ndarray, np.ndarray]
    """Vectors float32 (N, D) and labels int64 (N,)."""
    valid: tuple[np.ndarray, np.ndarray]


def task(frames: Frames, labels: np.ndarray, parts: np.ndarray, classes: int, config: HeadConfig) -> Task:
    """A head for these labels, int (N,) from 0 to classes - 1 wherever the part is TRAIN or VALID."""
    sides = [(frames.vectors[parts == part].astype(np.float32), labels[parts == part]) for part in (TRAIN, VALID)]
    vectors, answers = sides[0]
    # A value that is the same everywhere says nothing, and would be divided by 0.
    scale = np.where(vectors.std(0) > 1e-6, vectors.std(0), 1.0)
    counts = np.bincount(answers, minlength=classes)
    weights = (len(answers) / (classes * np.maximum(counts, 1))).tolist() if config.balanced else [1.0] * classes
    return Task(
        partial(make_head, config, vectors.mean(0).tolist(), scale.tolist(), classes),
        partial(head_loss, weights=weights),
        partial(head_values, weights=weights),
        *sides,
    )


def fit_stored(work: Task, config: DirectorsConfig, about: dict[str, Any]) -> tuple[FrameHead, list[Row], int]:
    """Train on Ray Train, below the output; returns the head, its history and its best epoch."""

    def dataset(side: tuple[np.ndarray, np.ndarray]) -> Any:
        table = pa.table({"vector": ArrowTensorArray.from_numpy(side[0]), "label": pa.array(side[1])})
        return ray.data.from_arrow(table)

    trained = fit(
        work.make,
        work.loss,
        work.values,
        {"train": dataset(work.train), "valid": dataset(work.valid)},
        config.training,
        output=config.output,
        settings=about,
    )
    assert isinstance(trained.model, FrameHead)
    return trained.model, trained.history, trained.best_epoch


def fit_here(work: Task, config: TrainingConfig) -> FrameHead:
    """The same training in this process, for comparisons that are made and forgotten."""
    threads = torch.get_num_threads()
    # In layers this small threads wait for each other longer than they work.
    torch.set_num_threads(1)
    try:
        return _fit_here(work, config)
    finally:
        torch.set_num_threads(threads)


def _fit_here(work: Task, config: TrainingConfig) -> FrameHead:
    torch.manual_seed(config.seed)
    head = work.make()
    optimizer = torch.optim.AdamW(head.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    train, valid = ({"vector": torch.from_numpy(x), "label": torch.from_numpy(y)} for x, y in (work.train, work.valid))
    history: list[Row] = []
    best = {}
    while not finished(history, config):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, len(history))
        head.train()
        order = torch.randperm(len(train["label"])).split(config.batch_size)
        shares = (Share({name: column[rows] for name, column in train.items()}, len(rows), True) for rows in order)
        total, count = train_epoch(head, optimizer, shares, work.loss, config.accumulate)
        head.eval()
        with torch.inference_mode():
            values = work.values(head, [valid])
        history.append({"epoch": len(history) + 1, "train_loss": total.item() / count, **values})
        if best_epoch(history, config) == len(history):
            best = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    head.load_state_dict(best)
    return head.eval()


@torch.inference_mode()
def logits(head: FrameHead, vectors: np.ndarray) -> np.ndarray:
    """float64 (N, C), for vectors float16 (N, D)."""
    parts = [head(torch.from_numpy(vectors[i : i + 4096].astype(np.float32))) for i in range(0, len(vectors), 4096)]
    return torch.cat(parts).double().numpy()


def compared(frames: Frames, parts: np.ndarray, config: DirectorsConfig) -> dict[str, np.ndarray]:
    """Log-probabilities float64 (N, C) that other methods give the pictures of TEST, by name of METHODS."""
    random = np.random.default_rng(config.training.seed)
    rows = np.flatnonzero((parts == TRAIN) & (frames.view == 0))
    if len(rows) > MANY:
        rows = np.sort(random.choice(rows, MANY, replace=False))
    test = parts == TEST
    labels, classes = frames.labels[rows], len(frames.directors)
    x, y = frames.vectors[rows].astype(np.float32), frames.vectors[test].astype(np.float32)
    near = KNeighborsClassifier(min(config.neighbours, len(rows)), metric="cosine", weights="distance")
    models: dict[str, tuple[Any, np.ndarray, np.ndarray]] = {
        "linear probe": (_linear(config), x, y),
        "nearest neighbours": (near, x, y),
    }
    if known := _known_style(frames):
        models["style alone"] = (_forest(config), frames.style[rows][:, known], frames.style[test][:, known])
    found = {name: _answers(model.fit(a, labels), b, classes) for name, (model, a, b) in models.items()}
    share = np.bincount(labels, minlength=classes) + 1e-9
    return found | {"majority": np.tile(np.log(share / share.sum()), (int(test.sum()), 1))}


def _linear(config: DirectorsConfig) -> Any:
    balance = "balanced" if config.head.balanced else None
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.01, class_weight=balance, max_iter=1000))


def _forest(config: DirectorsConfig) -> Any:
    balance = "balanced" if config.head.balanced else None
    return RandomForestClassifier(
        200, min_samples_leaf=3, class_weight=balance, random_state=config.training.seed, n_jobs=1
    )


def _known_style(frames: Frames) -> list[int]:
    return np.flatnonzero(~np.isnan(frames.style).all(0)).tolist()


def _answers(model: Any, rows: np.ndarray, classes: int) -> np.ndarray:
    # Not 0: no picture rules a director out for the whole film.
    chances = np.full((len(rows), classes), 1e-3)
    chances[:, model.classes_] += model.predict_proba(rows)
    return np.log(chances / chances.sum(1, keepdims=True))


def style_importance(frames: Frames, parts: np.ndarray, config: DirectorsConfig) -> list[dict[str, Any]]:
    """What each value of STYLE is worth to a forest that knows only these: rows name, loss, deviation.

    loss: by how much the share of right answers on TEST falls when this value is shuffled among the pictures.
    """
    known = _known_style(frames)
    if not known:
        return []
    rows = np.flatnonzero((parts == TRAIN) & (frames.view == 0))[:MANY]
    test = np.flatnonzero(parts == TEST)[:MANY]
    forest = _forest(config).fit(frames.style[rows][:, known], frames.labels[rows])
    worth: Any = permutation_importance(
        forest, frames.style[test][:, known], frames.labels[test], n_repeats=10, random_state=config.training.seed
    )
    found = zip(known, worth.importances_mean, worth.importances_std, strict=True)
    table = [{"name": STYLE[i], "loss": float(mean), "deviation": float(std)} for i, mean, std in found]
    return sorted(table, key=lambda row: -row["loss"])


# ------------------------------------------------------------------------------------------------------------ measuring


@dataclass
class Measured:
    """Answers for pictures that were not seen, over all folds."""

    answers: dict[str, list[np.ndarray]] = field(default_factory=dict)
    """By name of METHODS log-probabilities of the pictures of TEST, a block a fold."""
    raw: list[np.ndarray] = field(default_factory=list)
    """Log-probabilities of the head before its temperature."""
    rows: list[np.ndarray] = field(default_factory=list)
    """Numbers of these pictures."""
    temperatures: list[float] = field(default_factory=list)


def measure(frames: Frames, parts: Sequence[np.ndarray], config: DirectorsConfig, head: FrameHead | None) -> Measured:
    """Train on each division and answer its test; head: one that is trained on the first of them already."""
    found = Measured()
    for number, part in enumerate(parts):
        work = task(frames, frames.labels, _thinned(part, config), len(frames.directors), config.head)
        model = head if head is not None and number == 0 else fit_here(work, config.training)
        valid, test = part == VALID, part == TEST
        warmth = temperature(logits(model, frames.vectors[valid]), frames.labels[valid])
        answers = logits(model, frames.vectors[test])
        methods = {"head": log_softmax(answers / warmth, 1), **compared(frames, part, config)}
        for name, block in methods.items():
            found.answers.setdefault(name, []).append(block)
        found.raw.append(log_softmax(answers, 1))
        found.rows.append(np.flatnonzero(test))
        found.temperatures.append(warmth)
        if len(parts) > 1:
            log.info("fold %d of %d measured", number + 1, len(parts))
    return found


def _thinned(parts: np.ndarray, config: DirectorsConfig) -> np.ndarray:
    rows = np.flatnonzero(parts == TRAIN)
    if len(rows) <= MANY:
        return parts
    out = np.random.default_rng(config.training.seed).choice(rows, len(rows) - MANY, replace=False)
    thinned = parts.copy()
    thinned[out] = NONE
    return thinned


def tabled(measured: Measured, frames: Frames, split: str) -> list[dict[str, Any]]:
    """A row for each method: method, split and `figures`; films mean nothing where pictures were split."""
    rows = np.concatenate(measured.rows)
    films = np.unique(frames.film[rows], return_inverse=True)[1]
    table = []
    for name in METHODS:
        if name in measured.answers:
            values = figures(np.concatenate(measured.answers[name]), frames.labels[rows], films)
            if split == "frame":
                values = {key: value if key.startswith("picture") else None for key, value in values.items()}
            table.append({"method": name, "split": split, **values})
    return table


def unknown(
    frames: Frames, parts: np.ndarray, head: FrameHead, warmth: float, config: DirectorsConfig
) -> dict[str, Any]:
    """From which confidence an answer counts, for pictures and films: threshold of VALID, AUROC of TEST.

    Strangers are films of directors that were not learned, half of them for the threshold. Where there are few, a
    second head is trained without a quarter of the directors, who are strangers to it; and where that leaves too few
    of either, the threshold only lets most of VALID through, and there is no AUROC.
    """
    directors = len(frames.directors)
    strange = frames.labels < 0
    source = "directors that are not learned"
    own = parts == VALID, head, warmth
    labels, strangers = frames.labels, np.full(len(frames.film), NONE)
    films = np.flatnonzero(frames.director < 0)
    if len(films) >= STRANGERS or directors < 4:
        for part, half in ((VALID, films[::2]), (TEST, films[1::2])):
            strangers[np.isin(frames.film, half) & (frames.view == 0)] = part
    else:
        random = np.random.default_rng(config.training.seed)
        left = np.sort(random.permutation(directors)[directors // 4 :])
        number = np.full(directors + 1, -1)  # the last one is that of strangers
        number[left] = np.arange(len(left))
        labels = number[frames.labels]
        strangers = np.where((labels < 0) & ~strange, parts, NONE)
        strangers = np.where(strangers == TRAIN, NONE, strangers)
        parts = np.where(labels < 0, NONE, parts)
        work = task(frames, labels, _thinned(parts, config), len(left), config.head)
        head = fit_here(work, config.training)
        warmth = temperature(logits(head, frames.vectors[parts == VALID]), labels[parts == VALID])
        source = f"a head trained without {directors - len(left)} of the directors"
    found: dict[str, Any] = {"strangers": source, "threshold": {}, "auroc": {}}
    for what in ("picture", "film"):
        sure = {
            (kind, part): _confidence(frames, which == part, head, warmth, what)
            for kind, which in (("known", parts), ("strange", strangers))
            for part in (VALID, TEST)
        }
        found["threshold"][what] = float(np.quantile(_confidence(frames, *own, what), 1 - KNOWN))
        if len(sure["strange", VALID]):
            best = threshold(sure["known", VALID], sure["strange", VALID])
            found["threshold"][what] = min(found["threshold"][what], best)
        else:
            found["strangers"] = f"none: the threshold lets {KNOWN:.0%} of the validation through"
        if len(sure["strange", TEST]):
            found["auroc"][what] = auroc(sure["known", TEST], sure["strange", TEST])
    return found


def _confidence(frames: Frames, which: np.ndarray, head: FrameHead, warmth: float, what: str) -> np.ndarray:
    """Probability of the likeliest director, of each picture or film among these rows."""
    if not which.any():
        return np.zeros(0)
    answers = log_softmax(logits(head, frames.vectors[which]) / warmth, 1)
    if what == "film":
        answers = by_film(answers, np.unique(frames.film[which], return_inverse=True)[1])
    return np.exp(answers.max(1))


# ---------------------------------------------------------------------------------------------------------------- train


def train(frames: Frames, config: DirectorsConfig) -> dict[str, Any]:
    """Train, measure and store a model; returns the report: JSON values, and arrays that figures are drawn from."""
    store = Store(config.output)
    other = {"film": "frame", "frame": "film"}[config.split]
    parts = parts_of(frames, config, config.split)[0]
    work = task(frames, frames.labels, parts, len(frames.directors), config.head)
    about = {
        "head": asdict(config.head),
        "split": [config.split, config.test, config.valid],
        "directors": frames.directors,
        "films": [name for name, number in zip(frames.films, frames.director, strict=True) if number >= 0],
        "pictures": {}
        if config.films
        else {"backbone": asdict(config.pictures.backbone), "views": asdict(config.pictures.views)},
        "rows": len(frames.vectors),
    }
    head, history, best = fit_stored(work, config, about)
    one = None if config.folds else head
    measured = measure(frames, parts_of(frames, config, config.split, config.folds), config, one)
    table = tabled(measured, frames, config.split)
    if config.compare:
        table += tabled(measure(frames, parts_of(frames, config, other, config.folds), config, None), frames, other)
    rows = np.concatenate(measured.rows)
    labels = frames.labels[rows]
    answers, raw = np.concatenate(measured.answers["head"]), np.concatenate(measured.raw)
    valid = parts == VALID
    warmth = temperature(logits(head, frames.vectors[valid]), frames.labels[valid])
    report = {
        "directors": frames.directors,
        "counts": _counts(frames),
        "table": table,
        "calibration": {
            "temperature": warmth,
            "ece_before": calibration_error(raw, labels),
            "ece": calibration_error(answers, labels),
        },
        "unknown": unknown(frames, parts, head, warmth, config),
        "importance": style_importance(frames, parts, config),
        "style": _style_by_director(frames),
        "epochs": {"trained": len(history), "best": best},
        "folds": config.folds,
    }
    model = {
        "directors": frames.directors,
        "head": asdict(config.head),
        "dimensions": frames.vectors.shape[1],
        "temperature": warmth,
        "threshold": report["unknown"]["threshold"],
        "pictures": None if config.films else asdict(config.pictures),
        "space": "" if config.films else space(config.pictures.backbone),
    }
    store.write_json(model, "model.json")
    store.write_json(report, "report.json")
    return report | {"answers": answers, "raw": raw, "labels": labels, "rows": rows}


def _counts(frames: Frames) -> list[dict[str, Any]]:
    own = frames.view == 0
    pictures = np.bincount(frames.labels[own & (frames.labels >= 0)], minlength=len(frames.directors))
    films = np.bincount(frames.director[frames.director >= 0], minlength=len(frames.directors))
    found = zip(frames.directors, films.tolist(), pictures.tolist(), strict=True)
    return [{"director": name, "films": f, "pictures": p} for name, f, p in found]


def _style_by_director(frames: Frames) -> list[dict[str, Any]]:
    """Medians of what is known of STYLE, a row a director."""
    known = _known_style(frames)
    return (
        [
            {"director": name}
            | {
                STYLE[i]: float(np.nanmedian(frames.style[(frames.labels == number) & (frames.view == 0), i]))
                for i in known
            }
            for number, name in enumerate(frames.directors)
        ]
        if known
        else []
    )


# ---------------------------------------------------------------------------------------------------------------- guess


@dataclass(frozen=True)
class Model:
    """A model that `train` has stored."""

    head: FrameHead
    directors: list[str]
    temperature: float
    threshold: dict[str, float]
    """Probabilities below which nobody is named, for a picture and for a film."""
    pictures: dict[str, Any] | None
    """How its pictures became vectors, as settings; none where it was trained on vectors of films."""
    space: str
    """The name of the network that gave the vectors."""


@dataclass(frozen=True)
class Guess:
    """Whose picture, or film, it is."""

    name: str
    """The director, or "unknown"."""
    top: list[tuple[str, float]]
    """The likeliest directors with their probabilities."""


def read_model(folder: str) -> Model:
    """A model of `train`; raises ValueError where there is none."""
    store = Store(folder)
    about = store.read_json("model.json")
    if about is None:
        raise ValueError(f"{folder} holds no model: `train output={folder}` makes one")
    size = about["dimensions"]
    head = make_head(HeadConfig(**about["head"]), [0.0] * size, [1.0] * size, len(about["directors"]))
    head.load_state_dict(load(storage.read_bytes(store.uri("model.safetensors"))))
    return Model(
        head.eval(), about["directors"], about["temperature"], about["threshold"], about["pictures"], about["space"]
    )


def network(model: Model) -> dict[str, Any]:
    """The settings by which pictures become its vectors, on a CPU; raises ValueError where it knows none."""
    if model.pictures is None:
        raise ValueError(
            "this model was trained on vectors of films (films=), and does not know how pictures become such"
        )
    tree = dict(model.pictures)
    return tree | {"backbone": tree["backbone"] | {"num_gpus": 0.0}, "views": tree["views"] | {"count": 0}}


def check_space(model: Model, backbone: BackboneConfig) -> None:
    """Raise ValueError where a network gives other vectors than those that the model was trained on."""
    if (found := space(backbone)) != model.space:
        raise ValueError(f"the model was trained on vectors of {model.space}, not of {found}: give its own network")


def guess(model: Model, vectors: np.ndarray, top: int) -> tuple[list[Guess], Guess]:
    """Whose each picture is, and whose they are together, as pictures of one film: vectors float16 (N, D), N > 0."""
    answers = log_softmax(logits(model.head, vectors) / model.temperature, 1)
    whole = by_film(answers, np.zeros(len(answers), int))[0]
    # One picture is no more certain for being called a film.
    of_all = "film" if len(vectors) > 1 else "picture"
    return [_guess(model, row, "picture", top) for row in answers], _guess(model, whole, of_all, top)


def _guess(model: Model, answer: np.ndarray, what: str, top: int) -> Guess:
    best = np.argsort(-answer, kind="stable")[:top]
    likeliest = [(model.directors[i], float(np.exp(answer[i]))) for i in best]
    sure = float(np.exp(answer.max())) >= model.threshold[what]
    return Guess(likeliest[0][0] if sure else "unknown", likeliest)

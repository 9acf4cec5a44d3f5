"""What heads are worth on films that they have not seen, beside what costs less: figures, folds and baselines."""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from actors.core import storage
from actors.core.errors import UserError
from actors.models.clip import EmbeddingsConfig, check_clip, embed_texts, load_clip
from pipelines.core.film_vectors import Films
from pipelines.core.metrics import AVERAGES, ENOUGH, difference, table
from pipelines.genres.embed import clip
from pipelines.genres.process import fused, read_any
from pipelines.genres.splits import parts_of
from pipelines.genres.train import LearnConfig, frames_of, learn

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

LOGISTIC, PRIOR, ZERO_SHOT = "logistic regression on the mean", "always the prior", "zero-shot CLIP"
"""Rows to compare with."""
PREDICTED = "predictions"
"""The row of answers that were read."""
PROMPTS = ("a still from a {} film.", "a frame of a {} movie.", "a scene of a {} film.")
"""What CLIP compares frames with where it has learnt nothing of genres; a genre is their mean."""
HEADS: dict[str, dict[str, Any]] = {
    "mean": {"head": "mean"},
    "mean-descent": {"head": "mean", "solve": False},
    "attention": {"head": "attention"},
    "transformer": {"head": "transformer"},
    "lstm": {"head": "lstm"},
    "lstm-reference": {"head": "lstm", "reference": True, "class_weights_crossentropy": False},
}
"""Heads that `folds` compares, by name, and how they differ from the settings."""


@dataclass(frozen=True)
class ScoreConfig:
    """Settings of `score`."""

    input: str = "output/genres/films.npz"
    """Films with genres: the .npz that `process` writes."""
    output: str = "output/genres"
    """Folder or s3:// prefix for score.json, report.html, figures, and folds/ with cross-validation."""
    predictions: str | None = None
    """Predictions to evaluate, as `predict` writes them; null: OUTPUT/test.parquet, the test films of `train`."""
    others: dict[str, str] = field(default_factory=dict)
    """Further predictions for the same films, each a row of the tables: a name and the file, such as
    `{vlm: OUTPUT/predictions.parquet}` of `zero-shot`. A film that lacks one counts with probability 0."""
    folds: int = 0
    """Cross-validate classifiers in this many folds of films instead of evaluating predictions; 0: off, else from 2."""
    heads: list[str] = field(default_factory=lambda: ["mean"])
    """Classifiers to cross-validate: mean, mean-descent, attention, transformer, lstm, lstm-reference."""
    seeds: int = 1
    """Random assignments to folds, from 1; figures are means over them."""
    learn: LearnConfig = field(default_factory=LearnConfig)
    """Training of the cross-validated classifiers."""
    extra: list[str] = field(default_factory=list)
    """Other features of the same films (.npz), concatenated to each key frame's vector."""
    zero_shot: bool = False
    """Also classify by text prompts, with the text encoder of the model that embedded the films."""
    embeddings: EmbeddingsConfig = field(default_factory=clip)
    """The CLIP model that embedded the films, for zero_shot."""
    draws: int = 1000
    """Bootstrap samples of films for the 95 % intervals."""

    ALIASES: ClassVar[dict[str, str]] = {"films": "input"}

    def __post_init__(self) -> None:
        if self.folds == 1 or self.folds < 0 or self.seeds < 1 or self.draws < 1:
            raise UserError(f"folds is 0 or 2 and more, seeds and draws start at 1: {self}")
        if unknown := set(self.heads) - HEADS.keys():
            raise UserError(f"heads: {', '.join(sorted(unknown))} is none of {', '.join(HEADS)}")
        if self.folds and self.predictions:
            raise UserError("predictions are scored as they are, folds learn their own: give one of them")
        if taken := self.others.keys() & {PREDICTED, LOGISTIC, PRIOR, ZERO_SHOT, *HEADS}:
            raise UserError(f"others: {', '.join(sorted(taken))} is the name of a row that is there. Choose another.")


@dataclass(frozen=True)
class Answers:
    """What one method answers for films, in every draw of the folds."""

    scores: np.ndarray
    """float64 (S, N, C), higher is likelier."""
    chosen: np.ndarray | None = None
    """bool (S, N, C) by the method's own thresholds; none where it has no probabilities."""


@dataclass(frozen=True)
class Judged:
    """Answers for films beside their genres."""

    films: Films
    """N whole films."""
    answers: dict[str, Answers]
    """By method; the first is the one that is shown in detail."""
    notes: list[str]
    """What could not be compared, and why."""

    @property
    def best(self) -> str:
        """The method that is shown in detail."""
        return next(iter(self.answers))


def plan_score(config: ScoreConfig) -> Films:
    """Read the films; raises UserError where they have no genres, or predictions or the model are missing."""
    if not config.folds and not storage.exists(predicted(config)):
        raise UserError(f"{predicted(config)} does not exist. Run `train` or `predict` first, or set folds=5.")
    for name, uri in config.others.items():
        if not storage.exists(uri):
            raise UserError(f"others.{name}={uri} does not exist. Run `zero-shot` or `predict` first.")
    if config.zero_shot:
        check_clip(config.embeddings)
    films = fused(read_any(config.input), [read_any(uri) for uri in config.extra])
    if not films.genre_names:
        raise UserError(f"{config.input} has no genres to score by: give an .npz as `process` writes it")
    if not films.genres.any():
        raise UserError(f"{config.input}: no film has a genre, so there is nothing to score. Run `process` with meta.")
    return films


def predicted(config: ScoreConfig) -> str:
    """Where the predictions to evaluate are."""
    return config.predictions or storage.join(config.output, "test.parquet")


def judge(config: ScoreConfig, films: Films) -> Judged:
    """Gather answers: those that were predicted, or of heads in folds, and those to compare with."""
    judged = _in_folds(films, config) if config.folds else _predicted(films, config)
    notes = judged.notes
    for name, uri in config.others.items():
        judged.answers[name], missing = _other(judged.films, uri, config.input)
        if missing:
            films_of = f"{missing} of {len(judged.films)} films"
            notes = [*notes, f"{name} has no prediction of {films_of}, which count with probability 0"]
    if config.zero_shot:
        judged.answers[ZERO_SHOT] = Answers(zero_shot(judged.films, config.embeddings)[None])
    else:
        notes = [*notes, f"{ZERO_SHOT} was not asked: zero_shot=true, with the model that embedded the films"]
    if not config.folds:
        return replace(judged, notes=notes)
    order = sorted(config.heads, key=lambda head: -ap(judged, head, 1).ap["macro"])
    ordered = {name: judged.answers[name] for name in [*order, *judged.answers]}
    return Judged(judged.films, ordered, notes)


def _read(uri: str, genres: Sequence[str], input: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Probabilities and choices of predictions, a row a film and a column a genre."""
    try:
        rows = pq.read_table(io.BytesIO(storage.read_bytes(uri))).to_pandas()
    except pa.ArrowInvalid as error:
        raise UserError(f"{uri} is no Parquet file: give what `predict` or `train` wrote") from error
    if missing := {"id", "genre", "probability", "chosen"} - set(rows):
        raise UserError(f"{uri} lacks {', '.join(sorted(missing))}: give what `predict` or `train` wrote")
    if rows.duplicated(["id", "genre"]).any():
        raise UserError(f"{uri} has two predictions of one film and genre")
    probabilities = rows.pivot(index="id", columns="genre", values="probability")
    chosen = rows.pivot(index="id", columns="genre", values="chosen")
    if missing := sorted(set(genres) ^ set(probabilities.columns)):
        raise UserError(f"{uri} and {input} have other genres: {', '.join(missing[:5])}")
    if probabilities.isna().any(axis=None):
        raise UserError(f"{uri} has no probability of some films and genres")
    return probabilities, chosen


def _other(films: Films, uri: str, input: str) -> tuple[Answers, int]:
    """Answers of predictions for films, and how many films have none."""
    found = [part.reindex(films.ids) for part in _read(uri, films.genre_names, input)]
    missing = int(found[0].isna().all(axis=1).sum())
    scores, chosen = (part[films.genre_names].fillna(0).to_numpy()[None] for part in found)
    return Answers(scores.astype(float), chosen.astype(bool)), missing


def _predicted(films: Films, config: ScoreConfig) -> Judged:
    uri, whole = predicted(config), films.whole()
    probabilities, chosen = _read(uri, whole.genre_names, config.input)
    if missing := sorted(set(probabilities.index) - set(whole.ids)):
        raise UserError(f"{config.input} has no genres of {', '.join(missing[:5])} ({len(missing)}), which {uri} has")
    there = np.isin(whole.ids, probabilities.index)
    seen, rest = whole.take(np.flatnonzero(there)), whole.take(np.flatnonzero(~there))
    found = [part.loc[seen.ids, whole.genre_names].to_numpy()[None] for part in (probabilities, chosen)]
    answers = {PREDICTED: Answers(found[0].astype(float), found[1].astype(bool))}
    if len(rest) < 2:
        return Judged(seen, answers, ["all films were predicted: none is left for the prior and logistic regression"])
    answers[LOGISTIC] = Answers(logistic(rest, seen)[None])
    answers[PRIOR] = Answers(prior(rest, seen)[None])
    return Judged(seen, answers, [])


def _in_folds(films: Films, config: ScoreConfig) -> Judged:
    """Every film answered by what has learnt from the other folds, in the same folds for every method."""
    whole = films.whole()
    place = {name: number for number, name in enumerate(whole.ids)}
    names = [*config.heads, LOGISTIC, PRIOR]
    scores = {name: np.zeros((config.seeds, *whole.genres.shape)) for name in names}
    chosen = {name: np.zeros((config.seeds, *whole.genres.shape), bool) for name in config.heads}
    for seed in range(config.seeds):
        parts = parts_of(films, [1] * config.folds, seed)
        for fold in range(config.folds):
            rest, seen = (films.take(np.flatnonzero(which)) for which in (parts != fold, parts == fold))
            at = [place[name] for name in seen.whole().ids]
            scores[LOGISTIC][seed, at] = logistic(rest.whole(), seen.whole())
            scores[PRIOR][seed, at] = prior(rest.whole(), seen.whole())
            for head in config.heads:
                learnt = replace(config.learn, **HEADS[head], seed=seed)
                found = _fold(rest, seen, learnt, config.output, f"{head}-{seed}-{fold}")
                scores[head][seed, at], chosen[head][seed, at] = found
    return Judged(whole, {name: Answers(scores[name], chosen.get(name)) for name in names}, [])


def _fold(rest: Films, seen: Films, config: LearnConfig, output: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Answers for the films of a fold, and which are chosen; stored, so that the same command after a kill goes on."""
    settings = {one.name: getattr(config, one.name) for one in fields(LearnConfig)}
    described = json.dumps([settings, rest.ids, seen.ids]).encode() + rest.vectors.tobytes()
    uri = storage.join(output, "folds", name, f"{hashlib.sha256(described).hexdigest()[:16]}.npz")
    if storage.exists(uri):
        with np.load(io.BytesIO(storage.read_bytes(uri)), allow_pickle=False) as file:
            return file["probabilities"], file["chosen"]
    train, valid = rest, None
    if not config.solved:
        share = config.train_split_proportion
        parts = parts_of(rest, (share, (1 - share) / 2), config.seed)
        train, valid = (rest.take(np.flatnonzero(parts == part)) for part in range(2))
    model = learn(train, valid, config, storage.join(output, "folds", name))
    probabilities = model.probabilities(seen)
    chosen = probabilities >= model.thresholds
    data = io.BytesIO()
    np.savez_compressed(data, probabilities=probabilities, chosen=chosen)
    storage.write_bytes(uri, data.getvalue())
    log.info("%s learnt", name)
    return probabilities, chosen


# ------------------------------------------------------------------------------------------------------------ baselines


def means(films: Films) -> np.ndarray:
    """The direction of each film's mean frame, float32 (N, D) of length 1."""
    from torch.nn.functional import normalize

    from actors.genres.heads import mean_directions

    return normalize(mean_directions(*frames_of(films)), dim=-1).numpy()


def logistic(films: Films, others: Films) -> np.ndarray:
    """Probabilities (M, C) for other films by logistic regression on the mean frame, each genre alone."""
    from sklearn.linear_model import LogisticRegression

    x, new = means(films), means(others)
    found = np.zeros((len(others), films.genres.shape[1]))
    for number, label in enumerate(films.genres.T):
        if 0 < label.sum() < len(label):
            found[:, number] = LogisticRegression(C=3.0, max_iter=1000).fit(x, label).predict_proba(new)[:, 1]
        else:
            found[:, number] = label[0]
    return found


def prior(films: Films, others: Films) -> np.ndarray:
    """The share of films that have each genre, for all others alike: (M, C)."""
    return np.tile(films.genres.mean(0), (len(others), 1))


def zero_shot(films: Films, config: EmbeddingsConfig) -> np.ndarray:
    """Cosines (N, C) of films with prompts for each genre."""
    import torch
    from torch.nn.functional import normalize

    model = load_clip(replace(config, num_gpus=0))
    prompts = [prompt.format(genre.lower()) for genre in films.genre_names for prompt in PROMPTS]
    vectors = torch.from_numpy(embed_texts(model, prompts, config.per_call))
    texts = normalize(vectors.view(len(films.genre_names), len(PROMPTS), -1).mean(1), dim=-1).numpy()
    if texts.shape[1] != films.vectors.shape[1]:
        raise UserError(
            f"embeddings.model={config.model} has vectors of {texts.shape[1]} numbers, the films of "
            f"{films.vectors.shape[1]}: zero_shot needs the model that embedded them, and no extra features"
        )
    return means(films) @ texts.T


# -------------------------------------------------------------------------------------------------------------- figures


def ap(judged: Judged, name: str, draws: int) -> pd.DataFrame:
    """Rows AVERAGES, columns ap, ap_low, ap_high of a method: means over the draws of the folds."""
    labels, names = judged.films.genres, judged.films.genre_names
    tables = [table(one, labels, names, 0.5, draws) for one in judged.answers[name].scores]
    return _mean(tables)[["ap", "ap_low", "ap_high"]].tail(len(AVERAGES))


def per_genre(judged: Judged, draws: int) -> pd.DataFrame:
    """The table of the method in detail: `ranking.table` at .5, and chosen_precision, _recall, _f1 as it chooses."""
    labels, names = judged.films.genres, judged.films.genre_names
    answers = judged.answers[judged.best]
    found = _mean([table(one, labels, names, 0.5, draws) for one in answers.scores])
    if answers.chosen is None:
        return found
    own = _mean([table(one.astype(float), labels, names, 0.5, 1) for one in answers.chosen])
    for column in ("precision", "recall", "f1"):
        found[f"chosen_{column}"] = own[column]
    return found


def lead(judged: Judged, name: str, draws: int) -> pd.DataFrame | None:
    """By how much a method beats logistic regression on the same films, rows AVERAGES; None where that is not there."""
    if LOGISTIC not in judged.answers or name == LOGISTIC:
        return None
    labels = judged.films.genres
    # What needs no folds has answered once.
    pairs = zip(judged.answers[name].scores, judged.answers[LOGISTIC].scores, strict=False)
    return _mean([difference(one, other, labels, draws) for one, other in pairs])


def _mean(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    together: Any = sum(tables[1:], tables[0])
    return together / len(tables)


def figures(judged: Judged, draws: int) -> dict[str, Any]:
    """What becomes score.json: the table per genre, and each method's averages with its lead; all in 0..1.

    Average precision of fewer than ENOUGH films is not there, and a note says so: of a genre it is null, of a method
    empty.
    """
    films, notes = len(judged.films), list(judged.notes)
    genres = per_genre(judged, draws)
    rare = [name for name in judged.films.genre_names if 0 < genres.support[name] < ENOUGH]
    if films < ENOUGH:
        notes.append(f"average precision and calibration are not measured: {films} films, and {ENOUGH} are needed")
        rare = list(genres.index)
    elif rare:
        named = ", ".join(rare[:5]) + (f" and {len(rare) - 5} others" if len(rare) > 5 else "")
        notes.append(f"no average precision of {named}: fewer than {ENOUGH} films have such a genre")
    genres.loc[rare, ["ap", "ap_low", "ap_high"]] = np.nan
    methods = {}
    for name in judged.answers:
        leading = lead(judged, name, draws) if films >= ENOUGH else None
        methods[name] = {
            "ap": _plain(ap(judged, name, draws)) if films >= ENOUGH else {},
            "lead_on_logistic_regression": None if leading is None else _plain(leading),
        }
    return {
        "films": films,
        "detail": judged.best,
        "table": _plain(genres),
        "methods": methods,
        "notes": notes,
    }


def _plain(rows: pd.DataFrame) -> dict[str, dict[str, float | None]]:
    """Rows by name; JSON has no NaN."""
    return json.loads(rows.to_json(orient="index", double_precision=6))

"""Accuracy of a head on held-out films, with intervals."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.core.metrics import ENOUGH
from pipelines.core.progress import Progress, ticking, tracked
from pipelines.directors.baselines import MANY, compared
from pipelines.directors.frames import NONE, TEST, TRAIN, VALID, Frames
from pipelines.directors.metrics import (
    auroc,
    by_film,
    figures,
    temperature,
    threshold,
)
from pipelines.directors.settings import DirectorsConfig

if TYPE_CHECKING:
    from actors.directors.head import FrameHead

log = logging.getLogger(__name__)
METHODS = ("head", "linear probe", "nearest neighbours", "style alone", "majority")
STRANGERS = 4
"""Least number of films by unknown directors to choose a threshold with."""
KNOWN = 0.9
"""Least share of validation answers above the threshold, whatever films of unknown directors suggest."""


@dataclass
class Measured:
    """Answers for held-out pictures, over all folds."""

    answers: dict[str, list[np.ndarray]] = field(default_factory=dict)
    """By name of METHODS: log-probabilities of the pictures of TEST, one block per fold."""
    raw: list[np.ndarray] = field(default_factory=list)
    """Log-probabilities of the head without its temperature."""
    rows: list[np.ndarray] = field(default_factory=list)
    """Row numbers of these pictures."""
    temperatures: list[float] = field(default_factory=list)


def measure(frames: Frames, parts: Sequence[np.ndarray], config: DirectorsConfig, head: FrameHead | None) -> Measured:
    """Train on each fold and classify its test pictures; head: one already trained on the first fold."""
    from scipy.special import log_softmax

    from pipelines.directors.head import fit_here, logits, task

    found = Measured()
    steps = Progress("measure", len(parts), "folds" if len(parts) > 1 else "split")
    for number, part in enumerate(tracked(parts, steps)):
        work = task(frames, _thinned(part, config), config.head)
        model = head if head is not None and number == 0 else fit_here(work, config.training, _named(number, parts))
        valid, test = part == VALID, part == TEST
        warmth = temperature(logits(model, frames.vectors[valid]), frames.labels[valid])
        answers = logits(model, frames.vectors[test])
        with ticking(steps, "baselines"):
            others = compared(frames, part, config)
        methods = {"head": log_softmax(answers / warmth, 1), **others}
        for name, block in methods.items():
            found.answers.setdefault(name, []).append(block)
        found.raw.append(log_softmax(answers, 1))
        found.rows.append(np.flatnonzero(test))
        found.temperatures.append(warmth)
        if len(parts) > 1:
            log.info("measured fold %d of %d", number + 1, len(parts))
    return found


def _named(number: int, parts: Sequence[np.ndarray]) -> str:
    return f"train, fold {number + 1}" if len(parts) > 1 else "train, for comparison"


def _thinned(parts: np.ndarray, config: DirectorsConfig) -> np.ndarray:
    rows = np.flatnonzero(parts == TRAIN)
    if len(rows) <= MANY:
        return parts
    out = np.random.default_rng(config.training.seed).choice(rows, len(rows) - MANY, replace=False)
    thinned = parts.copy()
    thinned[out] = NONE
    return thinned


def tabled(measured: Measured, frames: Frames, split: str) -> list[dict[str, Any]]:
    """One row per method: method, split and `figures`; those of films are None where pictures were split."""
    rows = np.concatenate(measured.rows)
    own, films = np.unique(frames.film[rows], return_inverse=True)
    table = []
    for name in METHODS:
        if name in measured.answers:
            answers = np.concatenate(measured.answers[name])
            of_films = frames.truth(own, by_film(answers, films))
            values = figures(answers, frames.truth(frames.film[rows], answers), films, of_films)
            if split == "frame":
                values = {key: value if key.startswith("picture") else None for key, value in values.items()}
            table.append({"method": name, "split": split, **values})
    return table


def unknown(
    frames: Frames, parts: np.ndarray, head: FrameHead, warmth: float, config: DirectorsConfig
) -> dict[str, Any]:
    """Confidence below which an answer is "unknown", for pictures and films: threshold on VALID, AUROC on TEST.

    It is chosen with films of directors that are not classes, half of them for the threshold and half for the AUROC.
    Where there are fewer than STRANGERS such films, a second head is trained without a quarter of the directors, whose
    films serve instead. Where that leaves too few of either, the threshold accepts the share KNOWN of VALID, and there
    is no AUROC.
    """
    own = parts == VALID, head, warmth
    films = np.flatnonzero(frames.director < 0)
    if len(films) >= STRANGERS or len(frames.directors) < 4:
        source, strangers = "directors that are not learned", np.full(len(frames.film), NONE)
        for part, half in ((VALID, films[::2]), (TEST, films[1::2])):
            strangers[np.isin(frames.film, half) & (frames.view == 0)] = part
    else:
        source, parts, strangers, head, warmth = _without_some(frames, parts, config)
    found: dict[str, Any] = {"strangers": source, "threshold": {}, "auroc": {}, "tested": {}}
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
        found["tested"][what] = {kind: len(sure[kind, TEST]) for kind in ("known", "strange")}
        # Pictures of few films are few cases, however many there are.
        fewest = min(len(np.unique(frames.film[one == TEST])) for one in (parts, strangers))
        if fewest >= ENOUGH and (what == "picture" or frames.films_known):
            found["auroc"][what] = auroc(sure["known", TEST], sure["strange", TEST])
    return found


def _without_some(
    frames: Frames, parts: np.ndarray, config: DirectorsConfig
) -> tuple[str, np.ndarray, np.ndarray, FrameHead, float]:
    """A head that is trained without a quarter of the directors, whose films are strangers to it.

    Returns what it is, the parts of the films of its directors and of strangers, the head and its temperature.
    """
    from pipelines.directors.head import fit_here, logits, task

    directors = len(frames.directors)
    random = np.random.default_rng(config.training.seed)
    left = np.sort(random.permutation(directors)[directors // 4 :])
    number = np.full(directors + 1, -1)  # the last entry is for unknown directors, whose number is -1
    number[left] = np.arange(len(left))
    labels = number[frames.labels]
    # Where one of several directors is left, another one may be a stranger: such films are neither.
    others = {film: tuple(number[list(own)].tolist()) for film, own in frames.others.items()}
    mixed = np.isin(frames.film, [film for film, own in others.items() if -1 in own and set(own) != {-1}])
    labels = np.where(mixed, -1, labels)
    strangers = np.where((labels < 0) & ~mixed & (frames.labels >= 0) & (parts != TRAIN), parts, NONE)
    parts = np.where(labels < 0, NONE, parts)
    some = replace(
        frames,
        director=number[frames.director],
        directors=[frames.directors[i] for i in left],
        others={film: own for film, own in others.items() if -1 not in own},
    )
    work = task(some, _thinned(parts, config), config.head)
    head = fit_here(work, config.training, "train, for unknown directors")
    warmth = temperature(logits(head, frames.vectors[parts == VALID]), labels[parts == VALID])
    return f"a head trained without {directors - len(left)} of the directors", parts, strangers, head, warmth


def _confidence(frames: Frames, which: np.ndarray, head: FrameHead, warmth: float, what: str) -> np.ndarray:
    """Probability of the likeliest director for each picture, or film, among these rows."""
    from scipy.special import log_softmax

    from pipelines.directors.head import logits

    if not which.any():
        return np.zeros(0)
    answers = log_softmax(logits(head, frames.vectors[which]) / warmth, 1)
    if what == "film":
        answers = by_film(answers, np.unique(frames.film[which], return_inverse=True)[1])
    return np.exp(answers.max(1))

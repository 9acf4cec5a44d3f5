"""Train a head on the vectors of a frozen network, and measure it on held-out films.

Pictures of one film resemble each other, and those of one shot more so. A split by picture therefore leaks: it measures
how well films are recognised, not directors. The report has both figures, so that the difference shows.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from actors.core import storage
from actors.core.errors import UserError, check_all
from actors.core.stage import Row
from actors.core.store import Store
from actors.directors.style import FEATURES
from actors.models.backbones import check_backbone, check_weights
from actors.models.backbones import name as space
from pipelines.core.film_vectors import read_films
from pipelines.core.progress import Progress, ticking
from pipelines.directors.baselines import known_style, style_importance
from pipelines.directors.frames import STYLE, VALID, Frames, frames_of_films, frames_of_pictures, parts_of
from pipelines.directors.key_frames import FilmFiles, read_key_frames
from pipelines.directors.measure import Measured, measure, tabled, unknown
from pipelines.directors.metrics import calibration_error, temperature
from pipelines.directors.sample import Screenshot, read_screenshots
from pipelines.directors.settings import DirectorsConfig
from pipelines.directors.vectors import Pictures, embed, missing, read_pictures_of, wanted

if TYPE_CHECKING:
    from actors.directors.head import FrameHead

REJECTED = pa.schema([(name, pa.string()) for name in ("path", "error", "message")])
"""One row per screenshot that cannot be read."""
UNKNOWN_FILMS = (
    "Films are unknown, so pictures are split. This leaks: pictures of one film are on both sides, and the accuracy is "
    "too high for new films. Use folders <director>/<film>/, a manifest with the column film, or film_separator."
)


@dataclass(frozen=True)
class TrainPlan:
    """Screenshots and their vectors to do; or films, whose vectors are there."""

    shots: list[Screenshot]
    rows: list[Row]
    """One row per picture and view, as `wanted` returns them."""
    todo: list[Row]
    """Rows without a vector."""
    films: int = 0
    """Films of an npz file, those without a director included."""
    frames: Frames | None = None
    """Labelled vectors of these films."""

    @property
    def films_known(self) -> bool:
        """Whether it is known which film each picture is from."""
        return all(shot.film for shot in self.shots)


def settled(config: DirectorsConfig, plan: TrainPlan) -> DirectorsConfig:
    """The settings that are trained with: where films are unknown, only pictures can be split."""
    return config if plan.films_known else replace(config, split="frame", compare=False)


@dataclass(frozen=True)
class Trained:
    """What `train` has learned from, and its report."""

    frames: Frames
    rows: dict[str, Any]
    """Rows of the run record: in, out, rejected by code."""
    report: dict[str, Any]
    """JSON values of report.json, and arrays that figures are drawn from: answers, raw, labels, rows."""
    seconds: dict[str, float]
    """How long the stages embed and train took."""
    notes: list[str]
    """Which vectors are not comparable, in sentences."""


def plan_train(config: DirectorsConfig) -> TrainPlan:
    """The training data and the vectors to do; raises UserError where input or network do not fit."""
    if config.films:
        films = read_films(config.films)
        return TrainPlan([], [], [], len(films), frames_of_films(films, config))
    if config.meta:
        shots = read_key_frames(config.input, FilmFiles(config.meta, config.annotations, config.shots))
    else:
        shots = read_screenshots(config.input, config.film_separator)
    check_all(partial(check_split, shots, config), partial(check_backbone, config.pictures.backbone))
    pictures = [(shot.path, shot.uri, shot.size) for shot in shots]
    rows = wanted(pictures, config.pictures.views, {shot.path for shot in shots})
    todo = missing(Store(config.input), rows, config.pictures)
    if todo:
        check_weights(config.pictures.backbone)
    return TrainPlan(shots, rows, todo)


def check_split(shots: Sequence[Screenshot], config: DirectorsConfig) -> None:
    """Raise UserError where directors are too few, or films too few for the split: names tell, before a picture is
    opened."""
    found = [shot for shot in shots if shot.size >= 0]
    if not found:
        raise UserError(f"{config.input}: none of {len(shots)} screenshots exists. Check the paths of the manifest.")
    count = len(found)
    style = np.full((count, len(FEATURES)), np.nan, np.float32)
    nothing = Pictures(
        [shot.path for shot in found], np.zeros(count, int), np.zeros((count, 0), np.float16), style, [], []
    )
    frames = frames_of_pictures(found, nothing, config)
    parts_of(frames, config, config.split if frames.films_known else "frame", config.folds)


def train(config: DirectorsConfig, plan: TrainPlan) -> Trained:
    """Embed what has no vector, then train, measure and store a model; runs on Ray."""
    started = time.monotonic()
    config = settled(config, plan)
    if plan.frames is not None:
        frames, rejected = plan.frames, {"no_director": plan.films - len(plan.frames.films)}
        notes: list[str] = []
        count = plan.films
    else:
        frames, rejected, notes = _embedded(config, plan)
        count = len(plan.shots)
    rejected = {code: number for code, number in rejected.items() if number}
    embedded = time.monotonic()
    report = train_head(frames, config)
    seconds = {"embed": embedded - started, "train": time.monotonic() - embedded}
    rows = {"in": count, "out": count - sum(rejected.values()), "rejected": rejected}
    return Trained(frames, rows, report, seconds, notes)


def _embedded(config: DirectorsConfig, plan: TrainPlan) -> tuple[Frames, dict[str, int], list[str]]:
    """Labelled vectors of the screenshots, how many were rejected, by code, and which are not comparable."""
    cache = Store(config.input)
    if plan.todo:
        embed(cache, plan.todo, config.pictures)
    pictures = read_pictures_of(cache, plan.rows, config.pictures)
    table = pa.Table.from_pylist([dict(row) for row in pictures.rejected], REJECTED)
    Store(config.output).replace_table("rejected", [table])
    codes = Counter(row["error"] for row in pictures.rejected)
    if not pictures.path:
        why = ", ".join(f"{code} {count}" for code, count in codes.items())
        raise UserError(
            f"{config.input}: none of {len(plan.shots)} screenshots can be read ({why}); see {config.output}/rejected"
        )
    return frames_of_pictures(plan.shots, pictures, config), dict(codes), pictures.notes


def train_head(frames: Frames, config: DirectorsConfig) -> dict[str, Any]:
    """Train, measure and store a model; returns the report: JSON values, and arrays that figures are drawn from."""
    from pipelines.directors.head import logits

    store = Store(config.output)
    parts = parts_of(frames, config, config.split)[0]
    head, history, best = _fit(frames, parts, config)
    measured = measure(
        frames, parts_of(frames, config, config.split, config.folds), config, None if config.folds else head
    )
    rows = np.concatenate(measured.rows)
    answers, raw = np.concatenate(measured.answers["head"]), np.concatenate(measured.raw)
    labels = frames.truth(frames.film[rows], answers)
    valid = parts == VALID
    warmth = temperature(logits(head, frames.vectors[valid]), frames.labels[valid])
    report = {
        "directors": frames.directors,
        "counts": _counts(frames),
        "table": _table(frames, measured, config),
        "calibration": {
            "temperature": warmth,
            "ece_before": calibration_error(raw, labels),
            "ece": calibration_error(answers, labels),
            "cases": len(np.unique(frames.film[rows])),
            "case": "film" if frames.films_known else "picture",
        },
        "unknown": unknown(frames, parts, head, warmth, config),
        "importance": _importance(frames, parts, config),
        "style": _style_by_director(frames),
        "epochs": {"trained": len(history), "best": best},
        "folds": config.folds,
    }
    store.write_json(_model(frames, warmth, report["unknown"]["threshold"], config), "model.json")
    store.write_json(report, "report.json")
    if isinstance(config.plot, str):
        storage.write_bytes(plot_uri(config.plot), storage.read_bytes(store.uri("curves.png")))
    return report | {"answers": answers, "raw": raw, "labels": labels, "rows": rows}


def _importance(frames: Frames, parts: np.ndarray, config: DirectorsConfig) -> list[dict[str, Any]]:
    with Progress("importance of style", 1, "forest") as progress, ticking(progress):
        return style_importance(frames, parts, config)


def plot_uri(path: str) -> str:
    """Where the curves are written: the path, with .png added where it lacks it."""
    return path if path.lower().endswith(".png") else f"{path.rstrip('/')}.png"


def _fit(frames: Frames, parts: np.ndarray, config: DirectorsConfig) -> tuple[FrameHead, list[dict[str, float]], int]:
    from pipelines.directors.head import fit_stored, task

    work = task(frames, parts, config.head)
    about = {
        "head": asdict(config.head),
        "split": [config.split, config.test, config.valid, *([config.split_file] if config.split_file else [])],
        "directors": frames.directors,
        "films": [name for name, number in zip(frames.films, frames.director, strict=True) if number >= 0],
        "pictures": {}
        if config.films
        else {"backbone": asdict(config.pictures.backbone), "views": asdict(config.pictures.views)},
        "rows": len(frames.vectors),
    }
    return fit_stored(work, config, about)


def _table(frames: Frames, measured: Measured, config: DirectorsConfig) -> list[dict[str, Any]]:
    """Accuracy by method, of the chosen split and, where asked for, of the other one."""
    table = tabled(measured, frames, config.split)
    if config.compare:
        other = {"film": "frame", "frame": "film"}[config.split]
        table += tabled(measure(frames, parts_of(frames, config, other, config.folds), config, None), frames, other)
    return table


def _model(frames: Frames, warmth: float, threshold: dict[str, float], config: DirectorsConfig) -> dict[str, Any]:
    return {
        "directors": frames.directors,
        "head": asdict(config.head),
        "dimensions": frames.vectors.shape[1],
        "temperature": warmth,
        "threshold": threshold,
        "pictures": None if config.films else asdict(config.pictures),
        "space": "" if config.films else space(config.pictures.backbone),
    }


def _counts(frames: Frames) -> list[dict[str, Any]]:
    own = frames.view == 0
    pictures = np.bincount(frames.labels[own & (frames.labels >= 0)], minlength=len(frames.directors))
    each = [frames.others.get(film, (number,)) for film, number in enumerate(frames.director.tolist()) if number >= 0]
    films = np.bincount([number for own in each for number in own], minlength=len(frames.directors))
    found = zip(frames.directors, films.tolist(), pictures.tolist(), strict=True)
    return [{"director": name, "films": f if frames.films_known else None, "pictures": p} for name, f, p in found]


def _style_by_director(frames: Frames) -> list[dict[str, Any]]:
    """Medians of the known values of STYLE, one row per director."""
    known = known_style(frames)
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

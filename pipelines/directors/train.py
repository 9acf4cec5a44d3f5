"""Whose film is it? A head on the vectors of a frozen network, measured on films that it has not seen.

Pictures of one film resemble each other, and those of one shot more so: a split by picture puts neighbours on both
sides, and tells how well films are recognised, not directors. Both figures are told, so that the difference is seen.
"""

import logging
from dataclasses import asdict
from typing import Any

import numpy as np

from actors.core.store import Store
from actors.models.backbones import name as space
from pipelines.directors.baselines import known_style, style_importance
from pipelines.directors.frames import STYLE, VALID, Frames, parts_of
from pipelines.directors.head import fit_stored, logits, task
from pipelines.directors.measure import measure, tabled, unknown
from pipelines.directors.metrics import (
    calibration_error,
    temperature,
)
from pipelines.directors.settings import DirectorsConfig

log = logging.getLogger(__name__)


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

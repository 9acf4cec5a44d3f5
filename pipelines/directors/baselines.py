"""Baselines that the head is compared with: majority, linear probe, random forest on style."""

from typing import Any

import numpy as np

from pipelines.directors.frames import STYLE, TEST, TRAIN, Frames
from pipelines.directors.settings import DirectorsConfig

MANY = 20_000
"""Largest number of pictures that baselines are trained on, drawn at random."""


def compared(frames: Frames, parts: np.ndarray, config: DirectorsConfig) -> dict[str, np.ndarray]:
    """Log-probabilities float64 (N, C) of the baselines for the pictures of TEST, by name of METHODS."""
    from sklearn.neighbors import KNeighborsClassifier

    random = np.random.default_rng(config.training.seed)
    rows = np.flatnonzero((parts == TRAIN) & (frames.view == 0))
    if len(rows) > MANY:
        rows = np.sort(random.choice(rows, MANY, replace=False))
    test = parts == TEST
    classes = len(frames.directors)
    rows, labels = frames.examples(rows)
    x, y = frames.vectors[rows].astype(np.float32), frames.vectors[test].astype(np.float32)
    near = KNeighborsClassifier(min(config.neighbours, len(rows)), metric="cosine", weights="distance")
    models: dict[str, tuple[Any, np.ndarray, np.ndarray]] = {
        "linear probe": (_linear(config), x, y),
        "nearest neighbours": (near, x, y),
    }
    if known := known_style(frames):
        models["style alone"] = (_forest(config), frames.style[rows][:, known], frames.style[test][:, known])
    found = {name: _answers(model.fit(a, labels), b, classes) for name, (model, a, b) in models.items()}
    share = np.bincount(labels, minlength=classes) + 1e-9
    return found | {"majority": np.tile(np.log(share / share.sum()), (int(test.sum()), 1))}


def _linear(config: DirectorsConfig) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    balance = "balanced" if config.head.balanced else None
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.01, class_weight=balance, max_iter=1000))


def _forest(config: DirectorsConfig) -> Any:
    from sklearn.ensemble import RandomForestClassifier

    balance = "balanced" if config.head.balanced else None
    return RandomForestClassifier(
        200, min_samples_leaf=3, class_weight=balance, random_state=config.training.seed, n_jobs=1
    )


def known_style(frames: Frames) -> list[int]:
    """Columns of STYLE that are known for at least one picture."""
    return np.flatnonzero(~np.isnan(frames.style).all(0)).tolist()


def _answers(model: Any, rows: np.ndarray, classes: int) -> np.ndarray:
    # Above 0, so that no single picture eliminates a director for the whole film.
    chances = np.full((len(rows), classes), 1e-3)
    chances[:, model.classes_] += model.predict_proba(rows)
    return np.log(chances / chances.sum(1, keepdims=True))


def style_importance(frames: Frames, parts: np.ndarray, config: DirectorsConfig) -> list[dict[str, Any]]:
    """Permutation importance of each style feature for a random forest on style alone: rows name, loss, deviation.

    loss: how much accuracy on TEST falls when this feature is shuffled among the pictures.
    """
    from sklearn.inspection import permutation_importance

    known = known_style(frames)
    if not known:
        return []
    rows = np.flatnonzero((parts == TRAIN) & (frames.view == 0))[:MANY]
    test = np.flatnonzero(parts == TEST)[:MANY]
    rows, labels = frames.examples(rows)
    forest = _forest(config).fit(frames.style[rows][:, known], labels)
    worth: Any = permutation_importance(
        forest, frames.style[test][:, known], frames.labels[test], n_repeats=10, random_state=config.training.seed
    )
    found = zip(known, worth.importances_mean, worth.importances_std, strict=True)
    table = [{"name": STYLE[i], "loss": float(mean), "deviation": float(std)} for i, mean, std in found]
    return sorted(table, key=lambda row: -row["loss"])

"""Ways to make vectors of instances that are scored beside those of `embed`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from actors.comic_characters.network_settings import feature_size
from pipelines.comic_characters.embed import head_weights
from pipelines.comic_characters.features import Features
from pipelines.comic_characters.learning.retrieval import Rerank
from pipelines.comic_characters.settings import ComicsConfig

if TYPE_CHECKING:
    from actors.comic_characters.network import Parts


@dataclass(frozen=True)
class Method:
    """One way to make vectors."""

    vectors: np.ndarray
    """float32 (N, D) of length 1."""
    guessed: int = 0
    """How many of them are random, because the instance has no such part."""
    rerank: Rerank | None = None


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows (N, D) divided by their length; of zeros, zeros."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def fused(features: Sequence[Features], kinds: Sequence[str], seed: int) -> Method:
    """The sum of the normalised features of face and body, or of one of them; without such a part, a random vector."""
    width = next((len(part) for one in features for part in one[:2] if part is not None), 1)
    total = np.zeros((len(features), width), np.float32)
    for row, one in enumerate(features):
        for kind in kinds:
            if (part := getattr(one, kind)) is not None:
                total[row] += part / max(float(np.linalg.norm(part)), 1e-12)
    there = np.array([any(getattr(one, kind) is not None for kind in kinds) for one in features])
    return _guessed(unit(total), there, seed)


def _guessed(vectors: np.ndarray, there: np.ndarray, seed: int) -> Method:
    random = np.random.default_rng(seed)
    guesses = unit(random.normal(size=vectors.shape).astype(np.float32))
    return Method(np.where(there[:, None], vectors, guesses), int((~there).sum()))


def only(config: ComicsConfig, features: Sequence[Features], kind: str) -> Method:
    """Vectors of faces or bodies alone, by the head of stage 2."""
    from actors.comic_characters.network import embed, load_head

    head = load_head(config.fine_tune.head, feature_size(config.backbone.name), head_weights(config))
    there = np.array([getattr(one, kind) is not None for one in features])
    parts: list[Parts] = [
        (one.face, None) if kind == "face" else (None, one.body)
        for one, known in zip(features, there, strict=True)
        if known
    ]
    vectors = np.zeros((len(features), config.fine_tune.head.dimensions), np.float32)
    if parts:
        vectors[there] = embed(head, parts)
    return _guessed(vectors, there, config.score.seed)

"""Classify screenshots and films by a trained model."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from safetensors.torch import load
from scipy.special import log_softmax

from actors.core import storage
from actors.core.errors import UserError
from actors.core.store import Store
from actors.directors.head import FrameHead
from actors.models.backbones import BackboneConfig
from actors.models.backbones import name as space
from pipelines.directors.head import logits, make_head
from pipelines.directors.metrics import (
    by_film,
)
from pipelines.directors.settings import HeadConfig

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
    """A model of `train`; raises UserError where there is none."""
    store = Store(folder)
    about = store.read_json("model.json")
    if about is None:
        raise UserError(f"{folder} holds no model: `train output={folder}` makes one")
    size = about["dimensions"]
    head = make_head(HeadConfig(**about["head"]), [0.0] * size, [1.0] * size, len(about["directors"]))
    head.load_state_dict(load(storage.read_bytes(store.uri("model.safetensors"))))
    return Model(
        head.eval(), about["directors"], about["temperature"], about["threshold"], about["pictures"], about["space"]
    )


def network(model: Model) -> dict[str, Any]:
    """The settings by which pictures become its vectors, on a CPU; raises UserError where it knows none."""
    if model.pictures is None:
        raise UserError(
            "this model was trained on vectors of films (films=), and does not know how pictures become such"
        )
    tree = dict(model.pictures)
    return tree | {"backbone": tree["backbone"] | {"num_gpus": 0.0}, "views": tree["views"] | {"count": 0}}


def check_space(model: Model, backbone: BackboneConfig) -> None:
    """Raise UserError where a network gives other vectors than those that the model was trained on."""
    if (found := space(backbone)) != model.space:
        raise UserError(f"the model was trained on vectors of {model.space}, not of {found}: give its own network")


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

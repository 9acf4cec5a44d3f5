"""Classify pictures, and all pictures together as one film, with a model that `train` has stored."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from actors.core import storage
from actors.core.errors import UserError
from actors.core.stage import Row
from actors.core.storage import Entry
from actors.core.store import Store
from actors.directors.head_settings import HeadConfig
from actors.media.archives import is_tar
from actors.media.images import IMAGE_SUFFIXES, images_below, natural
from actors.models.backbones import BackboneConfig, check_backbone, check_weights
from actors.models.backbones import name as space
from pipelines.core.in_process import few
from pipelines.directors.films import FilmPictures, find_film_pictures, pictures_of
from pipelines.directors.metrics import by_film
from pipelines.directors.settings import GuessConfig
from pipelines.directors.vectors import embed, embed_few, missing, read_pictures_of, wanted

if TYPE_CHECKING:
    from actors.directors.head import FrameHead


@dataclass(frozen=True)
class Model:
    """A model that `train` has stored."""

    head: FrameHead
    directors: list[str]
    temperature: float
    threshold: dict[str, float]
    """Probability below which the answer is "unknown", by `picture` and `film`."""
    pictures: dict[str, Any] | None
    """Settings by which its pictures were embedded; None where it was trained on vectors of films."""
    space: str
    """Name of the network that computed the vectors."""


@dataclass(frozen=True)
class Guess:
    """Answer for a picture or a film."""

    name: str
    """The director, or "unknown"."""
    top: list[tuple[str, float]]
    """The likeliest directors with their probabilities."""


@dataclass(frozen=True)
class GuessPlan:
    """Pictures to classify, and those that have no vector yet."""

    model: Model
    found: list[Entry]
    """Every picture."""
    rows: list[Row]
    """One row per picture, as `wanted` returns them."""
    todo: list[Row]
    """Rows without a vector."""
    needs_ray: bool
    """Whether there are enough of these that Ray is worth its start, or video files to take screenshots of."""
    films: FilmPictures | None
    """Films to classify as a whole, instead of single pictures."""


@dataclass(frozen=True)
class Guesses:
    """Answers for pictures."""

    each: dict[str, Guess]
    """By URI of the picture, in order."""
    whole: Guess | None
    """For all of them as pictures of one film; None where no picture can be read, or `films` are classified."""
    films: dict[str, Guess]
    """By film; empty where pictures are classified."""
    rejected: list[Row]
    """Pictures that cannot be read: path, error, message."""
    seconds: float
    """How long embedding took."""
    notes: list[str]
    """Which vectors are not comparable, in sentences."""

    @property
    def codes(self) -> dict[str, int]:
        """How many pictures were rejected, by error code."""
        return dict(Counter(row["error"] for row in self.rejected))


def plan_guess(config: GuessConfig) -> GuessPlan:
    """Load the model and list the pictures; raises UserError where they, the network or `save` do not fit."""
    check_backbone(config.pictures.backbone)
    check_space(_about(config.model)["space"], config.pictures.backbone)
    films = find_film_pictures(config) if config.film else None
    found = [entry for _, entry in films.pictures] if films else find_images(config.image)
    if config.save and is_picture(config.save) and len(found) > 1:
        raise UserError(f"save={config.save} is a file, but there are {len(found)} pictures. Set save to a folder.")
    rows = _rows(found, config)
    todo = missing(Store(config.model), rows, config.pictures)
    if todo or (films and films.todo):
        check_weights(config.pictures.backbone)
    needs_ray = not few(len(todo), config.pictures.backbone) or bool(films and films.todo)
    return GuessPlan(read_model(config.model), found, rows, todo, needs_ray, films)


def _rows(found: Sequence[Entry], config: GuessConfig) -> list[Row]:
    return wanted([(entry.uri, entry.uri, entry.size) for entry in found], config.pictures.views, set())


def guess(config: GuessConfig, plan: GuessPlan) -> Guesses:
    """Embed the pictures that have no vector, on Ray where there are many, and classify all."""
    store, started = Store(config.model), time.monotonic()
    rows, todo, lost = plan.rows, plan.todo, []
    film_of: dict[str, str] = {}
    if plan.films:
        pictures, lost = pictures_of(plan.films, config)
        film_of = {entry.uri: film for film, entry in pictures}
        rows = _rows([entry for _, entry in pictures], config)
        todo = missing(store, rows, config.pictures)
    if todo:
        (embed if plan.needs_ray else embed_few)(store, todo, config.pictures)
    seconds = time.monotonic() - started
    got = read_pictures_of(store, rows, config.pictures)
    rejected = [*lost, *got.rejected]
    if not got.path:
        return Guesses({}, None, {}, rejected, seconds, got.notes)
    if plan.films:
        names = np.array([film_of[path] for path in got.path])
        own = {name: got.vectors[names == name] for name in dict.fromkeys(names.tolist())}
        whole = {name: answers(plan.model, vectors, config.top)[1] for name, vectors in own.items()}
        return Guesses({}, None, whole, rejected, seconds, got.notes)
    each, one = answers(plan.model, got.vectors, config.top)
    return Guesses(dict(zip(got.path, each, strict=True)), one, {}, rejected, seconds, got.notes)


def find_images(uri: str) -> list[Entry]:
    """A picture, or those of a folder, prefix or tar in the order of names; raises UserError where there is none."""
    if not uri:
        raise UserError("Set --image to a picture or a folder of pictures, or --film to a film or a folder of films.")
    root = storage.absolute(uri)
    one = [Entry(root.rpartition("/")[2], root, storage.size(root))] if storage.exists(root) else None
    if one and not is_tar(root):
        return one
    found = sorted(images_below(root, one), key=lambda entry: natural(entry.name))
    if not found:
        raise UserError(f"{uri} has no pictures. Their names must end in {', '.join(IMAGE_SUFFIXES)}.")
    return found


def is_picture(path: str) -> bool:
    """Whether a path names one picture to write, not a folder."""
    return path.lower().endswith((".png", ".jpg", ".jpeg"))


def _about(folder: str) -> dict[str, Any]:
    about = Store(folder).read_json("model.json")
    if about is None:
        raise UserError(f"{folder} has no model. Run `train output={folder}` first.")
    return about


def read_model(folder: str) -> Model:
    """A model of `train`; raises UserError where there is none."""
    from safetensors.torch import load

    from actors.directors.head import make_head

    about = _about(folder)
    size = about["dimensions"]
    head = make_head(HeadConfig(**about["head"]), [0.0] * size, [1.0] * size, len(about["directors"]))
    head.load_state_dict(load(storage.read_bytes(Store(folder).uri("model.safetensors"))))
    return Model(
        head.eval(), about["directors"], about["temperature"], about["threshold"], about["pictures"], about["space"]
    )


def network(folder: str) -> dict[str, Any]:
    """The settings by which a model's pictures are embedded, on CPUs and without views.

    Raises UserError where there is no model, or where it was trained on vectors.
    """
    tree = _about(folder)["pictures"]
    if tree is None:
        raise UserError(
            f"{folder} was trained on vectors (films=) and cannot embed pictures. Use a model trained with input=."
        )
    return tree | {"backbone": tree["backbone"] | {"num_gpus": 0.0}, "views": tree["views"] | {"count": 0}}


def check_space(trained: str, backbone: BackboneConfig) -> None:
    """Raise UserError where a network computes other vectors than those that a model was trained on, by its name."""
    if (found := space(backbone)) != trained:
        raise UserError(
            f"The model was trained on vectors of {trained}, not of {found}. Remove pictures.backbone settings."
        )


def answers(model: Model, vectors: np.ndarray, top: int) -> tuple[Sequence[Guess], Guess]:
    """The answer for each picture, and for all as one film, by mean log-probability: vectors float16 (N, D), N > 0."""
    from scipy.special import log_softmax

    from pipelines.directors.head import logits

    each = log_softmax(logits(model.head, vectors) / model.temperature, 1)
    whole = by_film(each, np.zeros(len(each), int))[0]
    # A film of one picture has the picture's confidence, so the picture's threshold applies.
    kind = "film" if len(vectors) > 1 else "picture"
    return [_guess(model, row, "picture", top) for row in each], _guess(model, whole, kind, top)


def _guess(model: Model, answer: np.ndarray, kind: str, top: int) -> Guess:
    best = np.argsort(-answer, kind="stable")[:top]
    likeliest = [(model.directors[i], float(np.exp(answer[i]))) for i in best]
    sure = float(np.exp(answer.max())) >= model.threshold[kind]
    return Guess(likeliest[0][0] if sure else "unknown", likeliest)

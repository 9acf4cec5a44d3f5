"""The model that an identity was trained on: recorded in its folder, and compared with the one that is to use it.

A LoRA or an embedding means nothing to another model. Names and folders change, and so does the precision in which a
model is saved: it is recognised by some of its weights.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from actors.core.errors import UserError
from actors.movie_characters.diffusion import StableDiffusion, check_size
from actors.movie_characters.families import SD, Family
from actors.movie_characters.identities import Learnt

NUMBERS = 32
"""Weights of the first and of the last layer of a network that are recorded."""
ROUNDED = 0.01
"""What rounding to half precision changes at most, as a share of a weight; training changes some weights by more."""


def base_of(model: StableDiffusion, name: str) -> dict[str, Any]:
    """The record of a loaded model, to which no LoRA has been added yet, as JSON values."""
    weights = [one for one in model.unet.parameters() if one.ndim > 1]
    found = [layer.detach().flatten()[:NUMBERS].float().cpu().tolist() for layer in (weights[0], weights[-1])]
    return {"model": name, "pipeline": model.family.pipeline, "weights": [*found[0], *found[1]]}


def check_use(learnt: Sequence[Learnt], model: str, family: Family, clip_model: str | None, **sizes: int) -> None:
    """Raise UserError where a model of a family cannot be used with identities; loads no weights.

    sizes: of images, by the names of settings.
    """
    check_size(family.multiple, **sizes)
    if clip_model and family is not SD:
        raise UserError(f"clip_model_name is for a {SD.pipeline}, and this is a {family.pipeline}. Leave it out.")
    for one in learnt:
        if one.base and one.base["pipeline"] != family.pipeline:
            raise UserError(_told(one.name, one.base, f"sd_model_name={model} is a {family.pipeline}"))


def check_base(bases: dict[str, dict[str, Any]], model: StableDiffusion, name: str) -> None:
    """Raise UserError where an identity was trained on a model of other weights; bases: records by identity."""
    own = base_of(model, name)
    for identity, base in bases.items():
        same = base["pipeline"] == own["pipeline"] and len(base["weights"]) == len(own["weights"])
        if not same or not np.allclose(own["weights"], base["weights"], rtol=ROUNDED, atol=1e-6):
            raise UserError(_told(identity, base, f"sd_model_name={name} has other weights"))


def _told(identity: str, base: dict[str, Any], but: str) -> str:
    return (
        f"{identity} was trained on {base['model']}, a {base['pipeline']}, and {but}. Set sd_model_name to the model "
        "that it was trained on, or personalise again."
    )

"""A trained model as one folder, OUTPUT/model, that other comics can use from wherever it is copied to.

backbone.safetensors, head.safetensors   the weights of both stages
settings.json                            the settings that vectors depend on
threshold.json                           what `assign` fitted on the validation split of its output
bank.json                                characters and the vectors of their examples, of `assign` with a bank

`fine-tune` writes the weights and settings, `assign` the others. Each of these says by which weights it was made, so
that none is used with others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from actors.comic_characters.checkpoints import Weights, is_checkpoint, read_backbone, settings_of_checkpoint
from actors.core import storage
from actors.core.errors import UserError
from actors.core.store import Store
from pipelines.comic_characters.clusters import Bank

if TYPE_CHECKING:
    from pipelines.comic_characters.settings import ComicsConfig

FOLDER = "model"
BACKBONE, HEAD, SETTINGS = "backbone.safetensors", "head.safetensors", "settings.json"
THRESHOLD, BANK = "threshold.json", "bank.json"


def find_model(model: str) -> Store:
    """The folder of a model: the one that is named, or model/ of that output; raises UserError where there is none."""
    own, below = Store(model), Store(Store(model).uri(FOLDER))
    for store in (own, below):
        if store.read_json(SETTINGS) is not None:
            return store
    raise UserError(
        f"model={model} holds no model: neither {own.uri(SETTINGS)} nor {below.uri(SETTINGS)} exists. Set it to the "
        "output of `fine-tune`; one of an earlier version gets its model/ when `fine-tune` is run again."
    )


def settings_of_model(model: str) -> dict[str, Any]:
    """The settings that vectors of a model depend on, as a tree."""
    return settings_of_checkpoint(model) if is_checkpoint(model) else find_model(model).read_json(SETTINGS)


def weights_of_model(model: str, name: str) -> str:
    """The file with the weights of a model, BACKBONE or HEAD; a checkpoint has both."""
    return model if is_checkpoint(model) else find_model(model).uri(name)


def backbone_uri(config: ComicsConfig) -> Weights:
    """Where the weights of the backbone are: those of the settings, of the model, or of the output."""
    if config.features.weights:
        return config.features.weights
    if config.model:
        return weights_of_model(config.model, BACKBONE)
    store = Store(config.output)
    own, kept = store.uri(config.pretrain.folder, "model.safetensors"), store.uri(FOLDER, BACKBONE)
    # Stage 2 may have been trained here on stage 1 of another output.
    return kept if storage.exists(kept) and not storage.exists(own) else own


def head_uri(config: ComicsConfig) -> str:
    """Where the weights of the head are: those of the model, or of the output."""
    if config.model:
        return weights_of_model(config.model, HEAD)
    return Store(config.output).uri(config.fine_tune.folder, "model.safetensors")


def keep_model(config: ComicsConfig, backbone: Weights) -> str:
    """Write model/ of the output after `fine-tune`; returns where it is. backbone: its weights.

    A threshold and a bank of other weights go.
    """
    store = Store(Store(config.output).uri(FOLDER))
    head = Store(config.output).uri(config.fine_tune.folder, "model.safetensors")
    tree = {
        "backbone": config.backbone.described(),
        "features": {"dtype": config.features.dtype},
        "fine_tune": {"head": asdict(config.fine_tune.head)},
    }
    files = {BACKBONE: read_backbone(backbone), HEAD: storage.read_bytes(head)}
    same = store.read_json(SETTINGS) == tree and all(
        storage.exists(store.uri(name)) and storage.read_bytes(store.uri(name)) == data for name, data in files.items()
    )
    if not same:
        # Settings are written last: a folder without them is no model.
        for name in (SETTINGS, THRESHOLD, BANK):
            storage.delete(store.uri(name))
        for name, data in files.items():
            storage.write_bytes(store.uri(name), data)
        store.write_json(tree, SETTINGS)
    return store.root


def keep(config: ComicsConfig, name: str, value: dict[str, Any]) -> None:
    """Write THRESHOLD or BANK beside the weights of the output's own model, which it was made with."""
    store = Store(Store(config.output).uri(FOLDER))
    if not config.model and store.read_json(SETTINGS) is not None:
        store.write_json(value, name)


def kept_bank(bank: Bank, made_by: dict[str, Any]) -> dict[str, Any]:
    """The content of BANK. made_by: content of embeddings.json."""
    examples = np.split(bank.vectors, bank.starts[1:])
    return {"by": made_by, "characters": {n: rows.tolist() for n, rows in zip(bank.names, examples, strict=True)}}


def read_kept_bank(config: ComicsConfig, made_by: dict[str, Any]) -> Bank | None:
    """The bank of the model, None where there is none; raises UserError where other weights made it."""
    if not config.model or is_checkpoint(config.model):
        return None
    store = find_model(config.model)
    found = store.read_json(BANK)
    if found is None:
        return None
    if found["by"] != made_by:
        raise UserError(
            f"{store.uri(BANK)} is of other weights or settings than the vectors of {config.output}. Run `assign` with "
            "its bank there again, or set assign.bank (empty: no names)."
        )
    return bank_of(list(found["characters"]), [np.array(rows, np.float32) for rows in found["characters"].values()])


def bank_of(names: list[str], examples: Sequence[np.ndarray]) -> Bank:
    """A bank of characters and their examples, float32 (E, D) of each."""
    starts = np.cumsum([0, *map(len, examples)])[:-1]
    return Bank(names, np.concatenate(list(examples)), starts)

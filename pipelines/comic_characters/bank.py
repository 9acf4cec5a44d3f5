"""A bank of named characters from a CSV: examples are instances that have a vector, or pictures of a face or a body."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from actors.comic_characters.crops import Kind, decode, instance_name, prepare
from actors.comic_characters.instances import Instance
from actors.comic_characters.network_settings import KINDS, ONE_PART, feature_size
from actors.core import storage
from actors.core.csv_tables import read_csv_table
from actors.core.errors import UserError
from actors.core.store import Store
from pipelines.comic_characters.clusters import Bank
from pipelines.comic_characters.embed import Embeddings, head_weights
from pipelines.comic_characters.features import find_backbone
from pipelines.comic_characters.model import bank_of, read_kept_bank
from pipelines.comic_characters.settings import ComicsConfig

if TYPE_CHECKING:
    import pandas as pd


def find_bank(config: ComicsConfig, embeddings: Embeddings) -> tuple[Bank | None, dict[Instance, int]]:
    """The bank of the settings, else of the model, and which instances are its examples."""
    if config.assign.bank is None:
        return read_kept_bank(config, Store(config.output).read_json("embeddings.json")), {}
    return read_bank(config, config.assign.bank, embeddings) if config.assign.bank else (None, {})


def read_bank(config: ComicsConfig, uri: str, embeddings: Embeddings) -> tuple[Bank, dict[Instance, int]]:
    """Characters and their examples.

    Raises UserError where a row names no instance with a vector, or another's, or a picture that cannot be read.
    """
    try:
        table = read_csv_table(uri, ["name"])
    except FileNotFoundError as error:
        raise UserError(f"assign.bank={uri}: there is no such file") from error
    if not {"instance", *KINDS} & set(table.columns) or table.empty:
        raise UserError(f"assign.bank={uri} needs the columns name and instance (or face, body), and a row")
    rows: dict[str, int] = {}
    for number, one in enumerate(embeddings.instances):
        rows.update(dict.fromkeys(names_of(one).values(), number))
    members: dict[str, list[np.ndarray]] = {}
    owners: dict[int, str] = {}
    shown = _vectors_of_pictures(config, uri, table)
    for place, row in enumerate(table.to_dict("records")):
        name, instance = row["name"], row.get("instance", "")
        where = f"assign.bank={uri}: line {table.index[place]}"
        if place in shown and instance:
            raise UserError(f"{where} names an instance and a picture. Write a line for each.")
        if not name or (place not in shown and instance not in rows):
            raise UserError(f"{where}: {instance!r} of {name!r} has no vector")
        if place not in shown and (other := owners.setdefault(rows[instance], name)) != name:
            raise UserError(f"{where}: {instance} is listed under two characters, {other} and {name}")
        members.setdefault(name, []).append(shown[place] if place in shown else embeddings.vectors[rows[instance]])
    numbers = {name: number for number, name in enumerate(members)}
    examples = {embeddings.instances[row]: numbers[name] for row, name in owners.items()}
    return bank_of(list(members), [np.stack(of_one) for of_one in members.values()]), examples


def names_of(instance: Instance) -> dict[Kind, str]:
    """Names of the face and the body of an instance, as in label files."""
    series, page, *parts = instance
    return {k: instance_name(series, page, k, n) for k, n in zip(KINDS, parts, strict=True) if n is not None}


def _vectors_of_pictures(config: ComicsConfig, uri: str, table: pd.DataFrame) -> dict[int, np.ndarray]:
    """Vectors float32 (D,) by row of the table, of those with a picture in the columns face or body.

    A picture is a whole face or body, as `crop` cuts them; its path may be relative to the table.
    """
    wanted: dict[int, dict[Kind, np.ndarray]] = {}
    sizes, only = config.backbone.sizes(), ONE_PART.get(config.fine_tune.head.fusion)
    there: list[Kind] = [kind for kind in KINDS if kind in table.columns]
    for kind in there:
        for place, path in enumerate(table[kind]):
            if not path:
                continue
            where = f"assign.bank={uri}: line {table.index[place]}: {kind} {path}"
            if only and kind != only:
                raise UserError(f"{where}: the head takes nothing but a {only}. Leave the column {kind} out.")
            try:
                picture = decode(storage.read_bytes(_beside(uri, path)))
            except (FileNotFoundError, PermissionError, ValueError) as error:
                raise UserError(f"{where}: {error}") from error
            wanted.setdefault(place, {})[kind] = prepare(picture, kind, sizes[kind])
    return dict(zip(wanted, _embedded(config, list(wanted.values())), strict=True)) if wanted else {}


def _beside(uri: str, path: str) -> str:
    if path.startswith("/") or "://" in path:
        return path
    folder, _, _ = uri.rpartition("/")
    return storage.join(folder or ".", path)


def _embedded(config: ComicsConfig, pictures: Sequence[dict[Kind, np.ndarray]]) -> np.ndarray:
    """Vectors float32 (N, D) of uint8 (S, S, 3) by kind, on this machine's CPUs."""
    from actors.comic_characters.network import FeatureExtractor, embed, load_head

    backbone = find_backbone(config)
    stage = replace(config.features, num_gpus=0.0)
    extractor = FeatureExtractor(stage, config.backbone, backbone.weights, Store(config.output).root)
    features: list[list[np.ndarray | None]] = [[None, None] for _ in pictures]
    for part, kind in enumerate(KINDS):
        places = [place for place, one in enumerate(pictures) if kind in one]
        for first in range(0, len(places), stage.batch_size):
            some = places[first : first + stage.batch_size]
            found = extractor.features(np.stack([pictures[place][kind] for place in some]), kind)
            for place, vector in zip(some, found, strict=True):
                features[place][part] = vector
    head = load_head(config.fine_tune.head, feature_size(config.backbone.name), head_weights(config))
    return embed(head, [(face, body) for face, body in features])

"""Labelled sequences of panels: who is the same character, and which pairs are known to differ.

`<split>_sequences.json`: [{seq_id: "1014_14_0+1014_14_1+...", annotations: [{charId, charInstances: [{face?, body?}],
uncertain?}]}], with names <series>_<page>_<panel>_<face|body>_<number>. One charId is one character, wherever it
appears. Others are known to differ in the same sequence, and in another series. In other sequences of the same series
they may be the same, and so may those with `uncertain: true`.
"""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from actors.comic_characters.crops import parse_instance
from actors.comic_characters.instances import Instance
from actors.core import storage
from actors.core.errors import UserError

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Sequence:
    """A few consecutive panels, and the instances in them."""

    name: str
    """seq_id."""
    series: str
    instances: list[Instance]
    """One per character and panel."""
    characters: list[str]
    """charId of each instance."""
    uncertain: list[bool]
    """Whether it may be the same as another character."""


def read_sequences(uri: str) -> list[Sequence]:
    """The sequences of a file. Raises UserError where its layout is wrong; the message says where."""
    try:
        tree = json.loads(storage.read_bytes(uri))
    except FileNotFoundError as error:
        raise UserError(f"{uri} does not exist") from error
    except ValueError as error:
        raise UserError(f"{uri} is not JSON: {error}") from error
    if not isinstance(tree, list):
        raise UserError(f"{uri} is not a list of sequences")
    found = []
    for number, one in enumerate(tree):
        try:
            found.append(_sequence(one))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{uri}: sequence {number}: {type(error).__name__} {error}") from error
    return found


def _sequence(one: dict[str, Any]) -> Sequence:
    instances: list[Instance] = []
    characters: list[str] = []
    uncertain: list[bool] = []
    owners: dict[str, str] = {}
    for annotation in one["annotations"]:
        character, unsure = str(annotation["charId"]), bool(annotation.get("uncertain", False))
        for instance in annotation["charInstances"]:
            for name in (instance[kind] for kind in ("face", "body") if instance.get(kind) and not unsure):
                if (other := owners.setdefault(name, character)) != character:
                    raise UserError(f"{name} is listed under two characters, {other} and {character}")
            instances.append(_instance(instance))
            characters.append(character)
            uncertain.append(unsure)
    if len(series := {instance[0] for instance in instances}) > 1:
        raise UserError(f"instances of several series: {', '.join(sorted(series))}")
    return Sequence(one["seq_id"], series.pop() if series else "", instances, characters, uncertain)


def _instance(parts: dict[str, Any]) -> Instance:
    names = {kind: parts[kind] for kind in ("face", "body") if parts.get(kind)}
    found = {kind: parse_instance(name) for kind, name in names.items()}
    if not found or any(kind != parsed[2] for kind, parsed in found.items()):
        raise UserError(f"an instance is a face, a body or both, not {parts}")
    if len(places := {parsed[:2] for parsed in found.values()}) > 1:
        raise UserError(f"a face and its body must be in one panel, not {parts}")
    series, page = places.pop()
    face, body = (found[kind][3] if kind in found else None for kind in ("face", "body"))
    return series, page, face, body


def known_to_differ(
    characters: np.ndarray, sequences: np.ndarray, series: np.ndarray, uncertain: np.ndarray
) -> np.ndarray:
    """Which pairs of instances are known to be different characters: bool (N, N), of four columns (N,)."""
    sure = ~uncertain
    together = (sequences[:, None] == sequences) & sure[:, None] & sure
    return (characters[:, None] != characters) & (together | (series[:, None] != series))

"""Labelled sequences with the identities that the settings name: those of the sequences, or of lists of characters.

<split>_char_faces.json, <split>_char_bodies.json: {character: [instance, ...]}, with the names of faces or bodies. A
character of the lists may be in several sequences under several charIds; in the lists it is one.
"""

import json
from dataclasses import replace

from actors.comic_characters.crops import instance_name
from actors.comic_characters.instances import Instance
from actors.comic_characters.network_settings import KINDS
from actors.core import storage
from actors.core.errors import UserError
from actors.core.store import Store
from pipelines.comic_characters.sequences import Sequence, read_sequences
from pipelines.comic_characters.settings import Identities

LISTS = {"face": "char_faces", "body": "char_bodies"}


def sequences_uri(labels: str, split: str) -> str:
    """The file with the sequences of a split."""
    return Store(labels).uri(f"{split}_sequences.json")


def read_labels(labels: str, split: str, identities: Identities) -> list[Sequence]:
    """The sequences of a split. With lists, instances that are in none of them are left out.

    Raises UserError where a file is missing or its layout is wrong.
    """
    sequences = read_sequences(sequences_uri(labels, split))
    if identities == "sequences":
        return sequences
    names = _read_lists(labels, split)
    found = []
    for one in sequences:
        known = [_character(instance, names, labels) for instance in one.instances]
        kept = [i for i, who in enumerate(known) if who is not None]
        found.append(
            replace(
                one,
                instances=[one.instances[i] for i in kept],
                characters=[str(known[i]) for i in kept],
                uncertain=[one.uncertain[i] for i in kept],
            )
        )
    return found


def _read_lists(labels: str, split: str) -> dict[str, str]:
    """Character by name of a face or body."""
    found: dict[str, str] = {}
    for name in LISTS.values():
        # The reference's own name of the validation split is shorter than that of its sequences.
        places = [
            Store(labels).uri(f"{word}_{name}.json") for word in dict.fromkeys([split, split.replace("idation", "")])
        ]
        uri = next((place for place in places if storage.exists(place)), None)
        if uri is None:
            raise UserError(f"{' and '.join(places)}: none exists. Set identities=sequences, or add the lists.")
        try:
            tree = json.loads(storage.read_bytes(uri))
            pairs = [(str(who), str(one)) for who, instances in tree.items() for one in instances]
        except (ValueError, AttributeError, TypeError) as error:
            raise UserError(f"{uri} is no list of instances by character: {error}") from error
        for who, one in pairs:
            if (other := found.setdefault(one, who)) != who:
                raise UserError(f"{uri}: {one} is listed under two characters, {other} and {who}")
    return found


def _character(instance: Instance, names: dict[str, str], labels: str) -> str | None:
    series, page, *parts = instance
    both = [
        (name, names[name])
        for kind, index in zip(KINDS, parts, strict=True)
        if index is not None and (name := instance_name(series, page, kind, index)) in names
    ]
    if len({who for _, who in both}) > 1:
        raise UserError(f"{labels}: the lists name {' and '.join(f'{name} {who}' for name, who in both)}, one instance")
    return both[0][1] if both else None


def without_lone(sequences: list[Sequence]) -> list[Sequence]:
    """The sequences without characters who are in none together with another."""
    together = {who for one in sequences if len(names := set(one.characters)) > 1 for who in names}
    found = []
    for one in sequences:
        kept = [i for i, who in enumerate(one.characters) if who in together]
        columns = {name: [getattr(one, name)[i] for i in kept] for name in ("instances", "characters", "uncertain")}
        found.append(replace(one, **columns))
    return found

"""What people say of scenes: 1 good, 0 bad, and how often they agree.

A label file is the reference's own form, a JSON object {frames path: 0 | 1}, where a frames path is
`frames/<video_id>/<scene_id>`. One person has one file, so that nobody overwrites another's labels.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations
from pathlib import PurePosixPath
from typing import Any

from actors.core import storage
from actors.core.errors import UserError
from actors.core.store import Store
from actors.curation.tables import check_planned

Key = tuple[str, str]
"""A scene: its video_id and scene_id."""
Labels = dict[Key, int]
"""What one person said of scenes, in the order of the file."""


@dataclass(frozen=True)
class Agreement:
    """How often two people agree on the scenes that both labelled."""

    scenes: int
    """How many both labelled, at least one."""
    share: float
    """Of these, how many got the same label from both, 0 to 1."""
    kappa: float
    """Cohen's κ, up to 1; 0 is what chance would give; NaN where both gave all scenes one and the same label."""


def read_labels(path: str) -> dict[str, Labels]:
    """Labels by annotator: of one .json file, or of every .json file of a folder, named after their files.

    path: a path or s3://; nothing there means no labels. A frames path may also have backslashes, a prefix or a slash
    at its end. Raises ValueError, with the file and the key, for what is no label.
    """
    if path.endswith(".json"):
        files = [path] if storage.exists(path) else []
    else:
        files = [entry.uri for entry in storage.listing(path, (".json",)) if "/" not in entry.name]
    return {PurePosixPath(file).stem: _parse(file, storage.read_bytes(file)) for file in files}


def write_labels(path: str, labels: Labels) -> None:
    """Write one person's file, in one step, in place of what was there."""
    tree = {frames_path(*key): label for key, label in labels.items()}
    storage.write_bytes(path, json.dumps(tree, indent=0, ensure_ascii=False).encode())


def frames_path(video_id: str, scene_id: str) -> str:
    """The name of a scene in a label file."""
    return f"frames/{video_id}/{scene_id}"


def majority(labels: Iterable[Labels]) -> Labels:
    """What most people said of each scene; a scene that as many call good as bad is left out, since nobody knows."""
    votes: dict[Key, int] = {}
    for one in labels:
        for key, label in one.items():
            votes[key] = votes.get(key, 0) + (1 if label else -1)
    return {key: int(vote > 0) for key, vote in votes.items() if vote}


def labels_for(output: str, path: str | None) -> tuple[str, list[str], Labels]:
    """The labels of an output: where they lie (path, else OUTPUT/labels), who labelled, and what most of them said.

    Raises UserError where there are none, and for what is no output of a run.
    """
    check_planned(Store(output))
    path = path or Store(output).uri("labels")
    people = read_labels(path)
    labels = majority(people.values())
    if not labels:
        raise UserError(f"{path} holds no labels. Run `annotate {output}`, or set labels=PATH.")
    return path, sorted(people), labels


def kappa(labels: dict[str, Labels]) -> dict[tuple[str, str], Agreement]:
    """Agreement of every two people who labelled some of the same scenes.

    Cohen's κ = (p - e) / (1 - e), where p is the share of scenes on which they agree, and e the share on which they
    would by chance, each keeping their own share of good ones (Cohen 1960, A coefficient of agreement for nominal
    scales).
    """
    from sklearn.metrics import cohen_kappa_score

    found = {}
    for one, other in combinations(sorted(labels), 2):
        pairs = [(label, labels[other][key]) for key, label in labels[one].items() if key in labels[other]]
        if pairs:
            ours, theirs = zip(*pairs, strict=True)
            share = sum(a == b for a, b in pairs) / len(pairs)
            value = float(cohen_kappa_score(ours, theirs)) if len({*ours, *theirs}) > 1 else math.nan
            found[one, other] = Agreement(len(pairs), share, value)
    return found


def _parse(file: str, data: bytes) -> Labels:
    form = 'labels are one object {"frames/<video_id>/<scene_id>": 0 or 1}'
    try:
        # A dict would hide what is there twice.
        pairs = json.loads(data, object_pairs_hook=tuple)
    except ValueError as error:
        raise UserError(f"{file} is not JSON ({error}): {form}") from error
    if not isinstance(pairs, tuple):
        raise UserError(f"{file} holds no labels: {form}")
    labels: Labels = {}
    for path, label in pairs:
        key = _key(file, path)
        if type(label) is not int or label not in (0, 1):
            raise UserError(f"{file}: the label of {path!r} is {_short(label)}: 1 is good, 0 is bad")
        if labels.setdefault(key, label) != label:
            raise UserError(f"{file}: {path!r} is there twice, once with 0 and once with 1: leave one of them")
    return labels


def _key(file: str, path: str) -> Key:
    parts = path.replace("\\", "/").rstrip("/").split("/")
    if len(parts) < 2 or {"", ".", ".."} & set(parts[-2:]):
        raise UserError(f"{file}: {path!r} names no scene: write frames/<video_id>/<scene_id>")
    return parts[-2], parts[-1]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:37]}..."

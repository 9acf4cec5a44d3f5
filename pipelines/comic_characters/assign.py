"""Cluster the instances of each sequence of panels into characters, with names from a bank, and draw pictures.

plan      the sequences of a label file, or of consecutive panels; their vectors; the bank; the threshold
assign    a tree per sequence, cut at the threshold: clusters.json, rejected/assign/
pictures  of some sequences; existing ones of the same clusters are not drawn again
"""

from __future__ import annotations

import logging
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from actors.comic_characters.checkpoints import is_checkpoint
from actors.comic_characters.crops import BOX, CROPS, decode
from actors.comic_characters.instances import KEY, REJECTED_INSTANCES, Instance
from actors.core import storage
from actors.core.errors import UserError
from actors.core.store import Store
from actors.media.images import natural
from pipelines.comic_characters.bank import find_bank, names_of
from pipelines.comic_characters.clusters import Agreement, Bank, bcubed, best, cluster, curve, in_panels
from pipelines.comic_characters.embed import (
    check_head,
    check_known,
    crop_instances,
    read_embeddings,
    read_rejected,
)
from pipelines.comic_characters.labels import read_labels
from pipelines.comic_characters.model import BANK, THRESHOLD, find_model, keep, kept_bank
from pipelines.comic_characters.panels import Panel, Person, draw_panels
from pipelines.comic_characters.sequences import Sequence
from pipelines.comic_characters.settings import AssignConfig, ComicsConfig
from pipelines.core.linkage import tree
from pipelines.core.progress import Progress, tracked

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

THRESHOLDS = np.round(np.arange(0.02, 1.61, 0.02), 2)
"""Thresholds of the curve. Vectors of length 1 are at most 2 apart, and about 1.41 where they are unrelated."""
DEFAULT = 0.82
"""The threshold where none was fitted."""
DRAWN = 24
"""Largest number of panels in a picture."""
THREADS = 8
"""Pictures read and drawn at once."""


@dataclass(frozen=True)
class Threshold:
    """Largest distance between instances of one character."""

    value: float
    why: str
    """How it was chosen."""
    taught: dict[str, Any] | None = None
    """Content of threshold.json: the fit on the validation split."""


@dataclass(frozen=True)
class AssignPlan:
    """Sequences to cluster, with their vectors, bank and threshold."""

    sequences: list[Sequence]
    labelled: bool
    """Whether they are from a label file."""
    vectors: dict[Instance, np.ndarray]
    """float32 (D,) of length 1."""
    errors: dict[Instance, tuple[str, str]]
    """Code and message of instances without a vector."""
    crops: pd.DataFrame
    """Rows of CROPS."""
    people: dict[Instance, int]
    """char_index of instances where it is known."""
    bank: Bank | None
    examples: dict[Instance, int]
    """Number of the bank's character that an instance is an example of."""
    threshold: Threshold


@dataclass(frozen=True)
class Assigned:
    """A sequence with its clusters."""

    sequence: Sequence
    clusters: np.ndarray
    """int (N,), from 0; -1 where an instance has no vector."""
    names: dict[int, str]
    """Names of clusters, where the bank has one."""


@dataclass(frozen=True)
class Assignment:
    """All sequences with their clusters."""

    sequences: list[Assigned]
    agreement: Agreement | None
    """B-cubed over all instances with a certain label."""
    pictures: dict[int, str]
    """Files below the folder, by number of the sequence."""


# ------------------------------------------------------------------------------------------------------------ the plan


def plan_assignment(config: ComicsConfig) -> AssignPlan:
    """Read sequences, vectors, bank and threshold. Raises UserError where one is missing or does not fit."""
    store, settings = Store(config.output), config.assign
    embeddings = read_embeddings(store)
    check_head(config)
    errors = read_rejected(store)
    vectors = dict(zip(embeddings.instances, embeddings.vectors, strict=True))
    crops = store.read_table("crops", CROPS).to_pandas()
    people = find_people(crops, vectors)
    labelled = bool(config.labels and settings.split)
    where = Store(config.labels).uri(f"{settings.split}_sequences.json") if labelled else store.uri("crops")
    if labelled:
        sequences = read_labels(config.labels, settings.split or "", config.identities)
    else:
        sequences = consecutive(crop_instances(crops), settings.panels)
    if not sequences:
        raise UserError(f"{where} has no sequence")
    check_known(sequences, {*vectors, *errors}, where)
    bank, examples = find_bank(config, embeddings)
    threshold = find_threshold(config, vectors, errors, people)
    return AssignPlan(sequences, labelled, vectors, errors, crops, people, bank, examples, threshold)


def consecutive(instances: Iterable[Instance], panels: int) -> list[Sequence]:
    """Unlabelled sequences of so many consecutive panels of a series; 0: one sequence per series."""
    found = []
    by_series: defaultdict[str, defaultdict[str, list[Instance]]] = defaultdict(lambda: defaultdict(list))
    for one in instances:
        by_series[one[0]][one[1]].append(one)
    for series in sorted(by_series, key=natural):
        pages = sorted(by_series[series], key=natural)
        for first in range(0, len(pages), panels or len(pages)):
            chosen = pages[first : first + (panels or len(pages))]
            members = [one for page in chosen for one in by_series[series][page]]
            name = "+".join(f"{series}_{page}" for page in chosen) if panels else series
            found.append(Sequence(name, series, members, [""] * len(members), [True] * len(members)))
    return found


def find_people(crops: pd.DataFrame, instances: Iterable[Instance]) -> dict[Instance, int]:
    """The char_index of instances, from their face, else from their body, where it is known."""
    named = crops[crops.char_index.notna()]
    columns = (named[name] for name in ("series_id", "page_id", "type", "index", "char_index"))
    known = {tuple(row): int(number) for *row, number in zip(*columns, strict=True)}
    found = {}
    for one in instances:
        series, page, face, body = one
        number = known.get((series, page, "face", face), known.get((series, page, "body", body)))
        if number is not None:
            found[one] = number
    return found


# ------------------------------------------------------------------------------------------------------- the threshold


def find_threshold(
    config: ComicsConfig,
    vectors: dict[Instance, np.ndarray],
    errors: dict[Instance, Any],
    people: dict[Instance, int],
) -> Threshold:
    """The threshold of the settings; else fitted on the validation split, now or before, here or with the model.

    Raises UserError where one was fitted before, but for other weights or settings.
    """
    store, settings = Store(config.output), config.assign
    about = {"method": settings.method, "constraints": settings.constraints, "by": store.read_json("embeddings.json")}
    uri = Store(config.labels).uri("validation_sequences.json")
    taught, why = None, "assign.threshold"
    if config.labels and storage.exists(uri):
        sequences = read_labels(config.labels, "validation", config.identities)
        check_known(sequences, {*vectors, *errors}, uri)
        taught = {**about, **teach(settings, sequences, vectors, people)}
        why = f"the best of {taught['sequences']} sequences of the validation split"
    elif settings.threshold is None:
        taught, why = _fitted_before(config, about)
    if settings.threshold is not None:
        return Threshold(settings.threshold, "assign.threshold", taught)
    return Threshold(taught["threshold"], why, taught) if taught else Threshold(DEFAULT, "the default")


def _fitted_before(config: ComicsConfig, about: dict[str, Any]) -> tuple[dict[str, Any] | None, str]:
    places = [
        Store(config.output),
        *([find_model(config.model)] if config.model and not is_checkpoint(config.model) else []),
    ]
    found = [(place.uri(THRESHOLD), place.read_json(THRESHOLD)) for place in places]
    there = [(place, fit) for place, fit in found if fit is not None]
    for place, fit in there:
        if all(fit[name] == value for name, value in about.items()):
            return fit, f"fitted before on a validation split: {place}"
    if not there:
        return None, ""
    place, fit = there[-1]
    differs = ", ".join(
        "other weights" if name == "by" else f"assign.{name}={fit[name]}" for name in about if fit[name] != about[name]
    )
    raise UserError(
        f"{place} was fitted for {differs}. Set assign.threshold, or labels with validation_sequences.json to fit it."
    )


def teach(
    settings: AssignConfig,
    sequences: list[Sequence],
    vectors: dict[Instance, np.ndarray],
    people: dict[Instance, int],
) -> dict[str, Any]:
    """B-cubed at each of THRESHOLDS, and the best one. Raises UserError where no label is certain."""
    from scipy.spatial.distance import cdist

    trees, labels, known = [], [], []
    for number, one in enumerate(sequences):
        kept = [i for i in range(len(one.instances)) if one.instances[i] in vectors]
        if not kept:
            continue
        instances = [one.instances[i] for i in kept]
        rows = np.stack([vectors[i] for i in instances])
        trees.append(tree(cdist(rows, rows), *relations(instances, people, settings.constraints), settings.method))
        labels.append(np.array([f"{number} {one.characters[i]}" for i in kept]))
        known.append(np.array([not one.uncertain[i] for i in kept]))
    if not any(some.any() for some in known):
        raise UserError("The validation split has no labelled characters. Set assign.threshold.")
    found = curve(trees, labels, known, THRESHOLDS)
    threshold = best(THRESHOLDS, np.array([one.f1 for one in found]))
    at_best = found[int(np.flatnonzero(threshold == THRESHOLDS)[0])]
    return {
        "threshold": threshold,
        **at_best._asdict(),
        "sequences": len(trees),
        "instances": int(sum(some.sum() for some in known)),
        "curve": [{"threshold": float(t), **one._asdict()} for t, one in zip(THRESHOLDS, found, strict=True)],
    }


def relations(
    instances: list[Instance], people: dict[Instance, int], constraints: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Groups that belong together and pairs that cannot, for `tree`."""
    if not constraints:
        return np.arange(len(instances)), np.zeros((len(instances),) * 2, bool)
    return in_panels(np.array([one[1] for one in instances]), np.array([people.get(one, -1) for one in instances]))


# --------------------------------------------------------------------------------------------------------- the clusters


def assign(config: ComicsConfig, plan: AssignPlan) -> tuple[dict[str, Any], Assignment]:
    """Write clusters and pictures; returns the run record's values and the clusters."""
    store, folder = Store(config.output), config.assign.folder
    if taught := plan.threshold.taught:
        store.write_json(taught, THRESHOLD)
        keep(config, THRESHOLD, taught)
    if plan.bank and config.assign.bank:
        keep(config, BANK, kept_bank(plan.bank, store.read_json("embeddings.json")))
    found: list[Assigned] = []
    started = time.monotonic()
    for one in tracked(plan.sequences, Progress("assign", len(plan.sequences), "sequences")):
        found.append(assign_sequence(one, plan, config.assign))
    seconds = time.monotonic() - started
    somebody = [number for number, one in enumerate(found) if one.clusters.max(initial=-1) >= 0]
    chosen = np.linspace(0, len(somebody) - 1, min(config.assign.pictures, len(somebody))).round().astype(int)
    pictures = {somebody[i]: f"pictures/{somebody[i]:06d}.jpg" for i in chosen.tolist()}
    tree_of_all = [as_json(one, plan.errors, pictures.get(number)) for number, one in enumerate(found)]
    if store.read_json(folder, "clusters.json") != tree_of_all:
        # The existing pictures show other clusters.
        for entry in list(storage.listing(store.uri(folder, "pictures"), (".jpg",))):
            storage.delete(entry.uri)
        store.write_json(tree_of_all, folder, "clusters.json")
    bad = [i for one in plan.sequences for i in one.instances if i in plan.errors]
    rejected = [dict(zip([*KEY, "error", "message"], (*i, *plan.errors[i]), strict=True)) for i in bad]
    store.replace_table("rejected/assign", [pa.Table.from_pylist(rejected, REJECTED_INSTANCES)])
    draw_pictures(config, plan, found, pictures)
    count = sum(len(one.instances) for one in plan.sequences)
    agreement = agreed(found) if plan.labelled else None
    record = {
        "rows": {
            "in": count,
            "out": count - len(bad),
            "rejected": dict(Counter(plan.errors[i][0] for i in bad)),
        },
        "stages": {"assign": {"rows": len(found), "seconds": round(seconds, 3)}},
        "threshold": {"value": plan.threshold.value, "why": plan.threshold.why},
        "sequences": len(found),
        "clusters": sum(int(one.clusters.max(initial=-1)) + 1 for one in found),
        "named": sum(len(one.names) for one in found),
        "bcubed": agreement and agreement._asdict(),
    }
    return record, Assignment(found, agreement, pictures)


def assign_sequence(sequence: Sequence, plan: AssignPlan, settings: AssignConfig) -> Assigned:
    """The clusters of one sequence."""
    kept = [i for i, one in enumerate(sequence.instances) if one in plan.vectors]
    clusters = np.full(len(sequence.instances), -1)
    names: dict[int, str] = {}
    if kept:
        instances = [sequence.instances[i] for i in kept]
        clusters[kept], names = cluster(
            np.stack([plan.vectors[one] for one in instances]),
            *relations(instances, plan.people, settings.constraints),
            settings.method,
            plan.threshold.value,
            plan.bank,
            np.array([plan.examples.get(one, -1) for one in instances]),
        )
    return Assigned(sequence, clusters, names)


def agreed(found: list[Assigned]) -> Agreement:
    """B-cubed over the instances of all sequences with a certain label."""
    labels: list[str] = []
    clusters: list[str] = []
    for number, one in enumerate(found):
        for character, uncertain, place in zip(
            one.sequence.characters, one.sequence.uncertain, one.clusters.tolist(), strict=True
        ):
            if not uncertain and place >= 0:
                labels.append(f"{number} {character}")
                clusters.append(f"{number} {place}")
    return bcubed(np.array(labels), np.array(clusters))


def as_json(one: Assigned, errors: dict[Instance, tuple[str, str]], picture: str | None) -> dict[str, Any]:
    """A sequence in the layout of label files: one annotation per cluster."""
    annotations = [
        {
            "charId": one.names.get(number, f"{one.sequence.name}/{number}"),
            "name": one.names.get(number),
            "charInstances": [names_of(one.sequence.instances[i]) for i in np.flatnonzero(one.clusters == number)],
        }
        for number in range(int(one.clusters.max(initial=-1)) + 1)
    ]
    bad = [one.sequence.instances[i] for i in np.flatnonzero(one.clusters < 0)]
    rejected = [{**names_of(instance), "error": errors[instance][0]} for instance in bad]
    return {"seq_id": one.sequence.name, "annotations": annotations, "rejected": rejected, "picture": picture}


# --------------------------------------------------------------------------------------------------------- the pictures


def draw_pictures(config: ComicsConfig, plan: AssignPlan, found: list[Assigned], pictures: dict[int, str]) -> None:
    """Draw the missing pictures."""
    import pandas as pd

    folder = Store(config.output).uri(config.assign.folder)
    there = {entry.name for entry in storage.listing(storage.join(folder, "pictures"), (".jpg",))}
    todo = {number: name for number, name in pictures.items() if name.rpartition("/")[2] not in there}
    pages = {one[:2] for number in todo for one in found[number].sequence.instances}
    wanted = pd.MultiIndex.from_frame(plan.crops[["series_id", "page_id"]]).isin(pages)
    boxes = {
        (row["series_id"], row["page_id"], row["type"], row["index"]): row
        for row in plan.crops[wanted & (plan.crops.error == "")].to_dict("records")
    }

    def draw(number: int) -> None:
        storage.write_bytes(storage.join(folder, todo[number]), draw_panels(panels_of(found[number], boxes)))

    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(draw, todo))


def panels_of(one: Assigned, boxes: dict[tuple[Any, ...], dict[Any, Any]]) -> list[Panel]:
    """The first DRAWN pictures of a sequence with a character; a page with boxes of several panels appears once.

    boxes: rows of CROPS by series, page, type and index.
    """
    people: list[tuple[str, str, Person]] = []
    for instance, number in zip(one.sequence.instances, one.clusters.tolist(), strict=True):
        series, page, face, body = instance
        parts = (boxes.get((series, page, kind, index)) for kind, index in (("body", body), ("face", face)))
        rows = [row for row in parts if row is not None]
        if number >= 0 and rows:
            frames = [(row[BOX[0]], row[BOX[1]], row[BOX[2]], row[BOX[3]]) for row in rows]
            person = Person(frames, one.names.get(number, str(number + 1)), number)
            people.append((rows[0]["picture"], page, person))
    ordered = sorted(people, key=lambda row: natural(row[1]))
    found = []
    shown: dict[str, list[tuple[str, Person]]] = {}
    for picture, page, person in ordered:
        shown.setdefault(picture, []).append((page, person))
    for picture, rows in list(shown.items())[:DRAWN]:
        title = " ".join([one.sequence.series, *dict.fromkeys(page for page, _ in rows)])
        found.append(Panel(title, _picture(picture), [who for _, who in rows]))
    return found


def _picture(uri: str) -> Any:
    try:
        return decode(storage.read_bytes(uri))
    except (FileNotFoundError, PermissionError, ValueError) as error:
        log.warning("cannot draw %s: %s", uri, error)
        return None

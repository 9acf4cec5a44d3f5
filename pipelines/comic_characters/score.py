"""Scores of the vectors of comic characters, in retrieval and clustering, beside baselines and ablations.

plan    driver  the labelled instances, and the missing features
extract actors  features by the backbone, of colours, and by a network trained on photographs
ablate  task    each training with other settings, as many at once as fit; its vectors are stored
score   driver  ranks and clusters of every method, with intervals from a bootstrap over series
"""

from __future__ import annotations

import csv
import io
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from actors.comic_characters.baselines import ColourExtractor, PhotographExtractor
from actors.comic_characters.instances import KEY, MISSING_PART, REJECTED_INSTANCES, Instance
from actors.comic_characters.network_settings import ONE_PART
from actors.core import storage
from actors.core.errors import UserError
from actors.core.stage import Stage
from actors.core.store import Store
from actors.models import backbones
from pipelines.comic_characters.ablations import read_vectors, run_ablations, variant
from pipelines.comic_characters.embed import check_known, head_weights, read_embeddings, read_rejected
from pipelines.comic_characters.features import (
    Features,
    Source,
    extract_by,
    find_backbone,
    mixed_features,
    read_features,
    source_of,
    without_features,
)
from pipelines.comic_characters.labels import read_labels, sequences_uri
from pipelines.comic_characters.learning.retrieval import (
    ADJUSTED,
    CLUSTERS,
    RANKS,
    Across,
    Between,
    Labelled,
    Tally,
    Within,
    between,
    labelled,
    score_between,
    score_within,
    within,
)
from pipelines.comic_characters.score_methods import Method, fused, only, unit
from pipelines.comic_characters.settings import ComicsConfig
from pipelines.core.metrics import ENOUGH, bootstrap, clustered, widened

log = logging.getLogger(__name__)

OURS = "stage 2"
"""The method that others are compared with: the vectors of `embed`."""
SCORES = (*RANKS, *CLUSTERS)
PLACES = ("between", "within")
"""Across all series at once, and in each series alone."""


@dataclass(frozen=True)
class ScorePlan:
    """The instances to score, and the missing features and trainings."""

    instances: list[Instance]
    """Instances of the labels."""
    vectors: dict[Instance, np.ndarray]
    """Their vectors by `embed`."""
    sources: dict[str, Source]
    """Sources of features by name."""
    todo: dict[str, list[Instance]]
    """Instances without features, by source."""
    notes: dict[str, str]
    """Methods that are not available, and why."""
    variants: Mapping[str, ComicsConfig]
    """Settings of the ablations, as `variant` returns them."""


def plan_scores(config: ComicsConfig, others: Mapping[str, ComicsConfig]) -> ScorePlan:
    """Find what to score. Raises UserError where there are no labels, vectors or weights.

    others: the settings of each ablation, with those in which it differs.
    """
    if not config.labels:
        raise UserError("labels: this setting is required")
    variants = {name: variant(config, name, other) for name, other in others.items()}
    uri = sequences_uri(config.labels, config.score.split)
    sequences = read_labels(config.labels, config.score.split, config.identities)
    instances = list(dict.fromkeys(one for sequence in sequences for one in sequence.instances))
    if config.score.parts == "both":
        instances = [one for one in instances if None not in one]
    if not instances:
        raise UserError(f"{uri} has no instance to score")
    store = Store(config.output)
    found = read_embeddings(store)
    check_known(sequences, {*found.instances, *read_rejected(store)}, uri)
    head_weights(config)
    sources, notes = find_sources(config)
    todo = {name: without_features(store, source.folder, instances) for name, source in sources.items()}
    return ScorePlan(instances, dict(zip(found.instances, found.vectors, strict=True)), sources, todo, notes, variants)


def find_sources(config: ComicsConfig) -> tuple[dict[str, Source], dict[str, str]]:
    """Sources of the features that are compared, and those that are not available, with the reason."""
    rivals, notes = find_rivals(config)
    return {"stage 1": source_of(config, find_backbone(config)), **rivals}, notes


def find_rivals(config: ComicsConfig) -> tuple[dict[str, Source], dict[str, str]]:
    """Sources of features that need no training, and those that are not available, with the reason."""
    root, photographs = Store(config.output).root, config.score.photographs
    pool = Stage(config.features.workers, batch_size=config.features.batch_size)
    sources = {"colours": Source("features/colours", ColourExtractor, pool, lambda stage: [root])}
    name = f"ImageNet {photographs.model}"
    try:
        backbones.check_backbone(photographs)
        # Without a network the download would try for half a minute.
        backbones.check_weights(photographs)
        backbones.check_loads(photographs)
    except ValueError as error:
        return sources, {name: str(error).replace("backbone.", "score.photographs.")}
    folder = f"features/{backbones.name(photographs).replace(':', '-').replace('/', '-')}"
    own = photographs.computed
    sources[name] = Source(folder, PhotographExtractor, photographs, lambda stage: [stage, root], own)
    return sources, {}


def methods_of(
    config: ComicsConfig, plan: ScorePlan, features: Mapping[str, Mapping[Instance, Features]], sound: list[Instance]
) -> dict[str, Method]:
    """Every method but ablations, by name; the cheapest first."""
    seed = config.score.seed
    known = {name: [found[one] for one in sound] for name, found in features.items()}
    both = ("face", "body")
    random = np.random.default_rng(seed).normal(size=(len(sound), config.fine_tune.head.dimensions))
    found = {"random": Method(unit(random.astype(np.float32)), len(sound))}
    found |= {name: fused(known[name], both, seed) for name in plan.sources if name != "stage 1"}
    found["stage 1"] = fused(known["stage 1"], both, seed)
    found |= {f"stage 1, only {kind}": fused(known["stage 1"], [kind], seed) for kind in both}
    if config.fine_tune.head.fusion not in ONE_PART:
        found |= {f"{OURS}, only {kind}": only(config, known["stage 1"], kind) for kind in both}
    found[OURS] = Method(np.stack([plan.vectors[one] for one in sound]))
    if config.score.rerank:
        found[f"{OURS}, re-ranked"] = replace(found[OURS], rerank=config.score.rerank)
    return found


Value = dict[str, float]
"""value, low and high, and the lead of stage 2: ahead, ahead_low, ahead_high; NaN where there is none."""


@dataclass(frozen=True)
class Found:
    """The content of scores.json."""

    facts: dict[str, int]
    """Counts by name."""
    methods: dict[str, dict[str, dict[str, Value]]]
    """By method, by place, by score; all in 0..1."""
    guessed: dict[str, int]
    """Instances of each method whose vector is random."""
    notes: dict[str, str]
    """Methods that were not available, and why."""
    few: list[str]
    """What is not stated because cases are too few."""

    def as_json(self) -> dict[str, Any]:
        """All of it as JSON values; NaN becomes None."""
        tree = asdict(self)
        for scores in (scores for places in tree["methods"].values() for scores in places.values()):
            for score, value in scores.items():
                scores[score] = {name: None if np.isnan(x) else x for name, x in value.items()}
        return tree

    def as_csv(self) -> bytes:
        """One row per method, place and score; methods that were not available have a row with the reason."""
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        names = ("value", "low", "high", "ahead", "ahead_low", "ahead_high")
        writer.writerow(["method", "place", "score", *names, "guessed", "note"])
        for method, places in self.methods.items():
            for place, scores in places.items():
                for score, value in scores.items():
                    numbers = ["" if np.isnan(value[name]) else value[name] for name in names]
                    writer.writerow([method, place, score, *numbers, self.guessed[method], ""])
        for method, note in self.notes.items():
            writer.writerow([method, *[""] * 9, note])
        return text.getvalue().encode()


def score(config: ComicsConfig, plan: ScorePlan) -> tuple[dict[str, Any], Found]:
    """Compute missing features, train ablations, and score all methods; returns the run record's values and scores."""
    store = Store(config.output)
    stages = {name: extract_by(config, source, plan.todo[name]) for name, source in plan.sources.items()}
    features = {name: read_features(store, source.folder, plan.instances) for name, source in plan.sources.items()}
    # Whom the head gives no vector, no method is scored on.
    lacking = {one: Features(None, None, *why) for one, why in read_rejected(store).items() if why[0] == MISSING_PART}
    every = [lacking, *features.values()]
    errors = {one: next((f[one] for f in every if one in f and f[one].error), None) for one in plan.instances}
    bad = {one: why for one, why in errors.items() if why}
    sound = [one for one in plan.instances if one not in bad]
    if missing := [one for one in sound if one not in plan.vectors]:
        raise UserError(f"embeddings/ has no vectors of {len(missing)} instances of the labels. Run `embed` first.")
    written = run_ablations(config, plan.variants, plan.instances)
    methods = methods_of(config, plan, features, sound)
    for name, uri in written.items():
        vectors = read_vectors(uri)
        methods[f"ablation {name}"] = Method(np.stack([vectors[one] for one in sound]))
    sequences = read_labels(config.labels, config.score.split, config.identities)
    rows = labelled(sequences, set(sound))
    found = scores_of(config, rows, {one: row for row, one in enumerate(sound)}, methods, plan.notes)
    rejected = [{**dict(zip(KEY, one, strict=True)), "error": why[2], "message": why[3]} for one, why in bad.items()]
    store.replace_table("rejected/score", [pa.Table.from_pylist(rejected, REJECTED_INSTANCES)])
    store.write_json(found.as_json(), config.score.folder, "scores.json")
    storage.write_bytes(store.uri(config.score.folder, "scores.csv"), found.as_csv())
    codes = dict(Counter(why.error for why in bad.values()))
    record = {"rows": {"in": len(plan.instances), "out": len(sound), "rejected": codes}, "stages": stages}
    counts = {name: Counter(one.computed for one in some.values()) for name, some in features.items()}
    notes = [note for name, some in counts.items() for note in mixed_features(some, plan.sources[name].folder)]
    return record | {"facts": found.facts, "notes": notes}, found


def scores_of(
    config: ComicsConfig,
    rows: Labelled,
    place: Mapping[Instance, int],
    methods: Mapping[str, Method],
    notes: dict[str, str],
) -> Found:
    """Score methods on labelled rows. Raises UserError where there are no queries between series.

    place: the row of each instance in the methods' vectors.
    """
    settings = config.score
    groups, search = within(rows, settings.least), between(rows, settings.seed)
    if len(search.queries) < 2:
        raise UserError("The labels need two characters that are known to differ, with two instances each.")
    order = np.array([place[one] for one in rows.instances])
    queries = {"between": len(search.queries), "within": groups.queries}
    series = {"between": len(set(rows.series[search.queries].tolist())), "within": len(groups.series)}
    values: dict[str, dict[str, dict[str, Value]]] = {}
    told: dict[str, tuple[Across, Tally]] = {}
    # The method that others are compared with comes first.
    for name in sorted(methods, key=lambda name: name != OURS):
        told[name] = _told(rows, groups, search, methods[name], order, settings.seed)
        log.info("scored %s", name)
    for name in methods:
        across, inside = told[name]
        ours, ours_inside = told[OURS]
        ranks = _values(RANKS, across.ranks, ours.ranks, queries["between"], settings.draws, settings.seed)
        # These depend on which series there are, so a bootstrap over series gives no valid interval.
        nothing = [np.nan] * 5
        clusters = {score: _value(x, *nothing) for score, x in zip(CLUSTERS, across.clusters, strict=True)}
        values[name] = {
            "between": ranks | clusters,
            "within": _values(SCORES, inside, ours_inside, queries["within"], settings.draws, settings.seed),
        }
        for where in (where for where in PLACES if queries[where] < ENOUGH):
            values[name][where] = {score: _value(*[np.nan] * 6) for score in SCORES}
    facts = {
        "instances": len(order),
        "series": len(set(rows.series.tolist())),
        "characters between series": queries["between"],
        "references between series": len(search.references),
        "series within": series["within"],
        "queries within": queries["within"],
        "sequences within": len(groups.sequences),
        "series and sequences too small": groups.skipped,
    }
    guessed = {name: method.guessed for name, method in methods.items()}
    return Found(facts, values, guessed, notes, _too_few(queries, series))


def _too_few(queries: Mapping[str, int], series: Mapping[str, int]) -> list[str]:
    """What is not stated because there are too few queries, or series, by PLACES."""
    return [
        f"no scores {where} series: {count} queries, and {ENOUGH} are needed"
        for where, count in queries.items()
        if count < ENOUGH
    ] + [
        f"no lead {where} series: {series[where]} series, and {ENOUGH} are needed"
        for where, count in queries.items()
        if count >= ENOUGH > series[where]
    ]


def _told(
    rows: Labelled, groups: Within, search: Between, method: Method, order: np.ndarray, seed: int
) -> tuple[Across, Tally]:
    vectors = method.vectors[order]
    across = score_between(rows, search, vectors, seed, method.rerank)
    return across, score_within(rows, groups, vectors, seed, method.rerank)


def _values(names: Sequence[str], tally: Tally, ours: Tally, queries: int, draws: int, seed: int) -> dict[str, Value]:
    """Scores with their intervals, whose cases are the series, and how far ours are ahead, of ENOUGH series."""
    count = len(tally.sums)
    if not count:
        return {name: _value(*[np.nan] * 6) for name in names}

    def both(weights: np.ndarray) -> np.ndarray:
        own = tally.means(weights)
        return np.hstack([own, ours.means(weights) - own])

    values = both(np.ones((1, count)))[0]
    low, high = bootstrap(both, count, draws, seed)
    first, second = range(len(names)), range(len(names), 2 * len(names))
    for own, name in enumerate(names):
        there = tally.counts[:, own] > 0
        # Adjusted scores of chance are about 0 and may lie below.
        if there.any() and (name not in ADJUSTED or values[own] >= 0):
            least = clustered(tally.sums[there, own], tally.counts[there, own], queries)
            low[own], high[own] = widened(values[own], low[own], high[own], int(there.sum()), least)
    if count < ENOUGH:
        values[len(names) :] = low[len(names) :] = high[len(names) :] = np.nan
    return {
        name: _value(values[own], low[own], high[own], values[ahead], low[ahead], high[ahead])
        for name, own, ahead in zip(names, first, second, strict=True)
    }


def _value(*numbers: float) -> Value:
    names = ("value", "low", "high", "ahead", "ahead_low", "ahead_high")
    return {name: round(float(x), 6) for name, x in zip(names, numbers, strict=True)}

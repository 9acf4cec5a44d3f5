"""Speed of comic characters: `python -m tests.benchmarks.comics [assign]`.

assign: 10,000 sequences of four panels with two to four people each, of vectors of 256 numbers; one thread of one
process, CPU-seconds, the ways alternating. scikit-learn's clustering, which knows no constraints, is what the reference
calls for each sequence.
"""

import platform
import sys
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
from scipy.spatial.distance import cdist
from sklearn.cluster import AgglomerativeClustering

from actors.comic_characters.crops import CROPS
from actors.comic_characters.instances import Instance
from pipelines.comic_characters.assign import THRESHOLDS, AssignPlan, Threshold, assign_sequence
from pipelines.comic_characters.clusters import Bank, curve, in_panels
from pipelines.comic_characters.sequences import Sequence
from pipelines.comic_characters.settings import AssignConfig
from pipelines.core.linkage import tree
from tests.benchmarks.curation import alternate, line

SEQUENCES, PANELS, CAST, DIMENSIONS, NAMED = 10_000, 4, 5, 256, 50
"""Sequences, panels and characters of each, numbers of a vector, and characters of the bank, of three examples each."""


def drawn(random: np.random.Generator) -> tuple[list[Sequence], dict[Any, np.ndarray]]:
    """Sequences of people who look alike as often as different ones look alike by chance, and their vectors."""
    sequences, vectors = [], {}
    for number in range(SEQUENCES):
        cast = random.normal(size=(CAST, DIMENSIONS))
        seen = [(panel, who) for panel in range(PANELS) for who in random.permutation(CAST)[: random.integers(2, 5)]]
        found = cast[[who for _, who in seen]] + 0.5 * random.normal(size=(len(seen), DIMENSIONS))
        instances: list[Instance] = [
            (f"s{number}", f"0_{panel}", place, place) for place, (panel, _) in enumerate(seen)
        ]
        vectors |= zip(
            instances, (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32), strict=True
        )
        characters = [str(who) for _, who in seen]
        sequences.append(Sequence(f"s{number}", f"s{number}", instances, characters, [False] * len(seen)))
    return sequences, vectors


def assign() -> None:
    """Print the table of `assign`."""
    random = np.random.default_rng(0)
    sequences, vectors = drawn(random)
    names = [f"name {number}" for number in range(NAMED)]
    examples = random.normal(size=(3 * NAMED, DIMENSIONS)).astype(np.float32)
    bank = Bank(names, examples / np.linalg.norm(examples, axis=1, keepdims=True), np.arange(0, 3 * NAMED, 3))
    nobody = CROPS.empty_table().to_pandas()

    def ours(settings: AssignConfig, bank: Bank | None = None) -> None:
        plan = AssignPlan(sequences, True, vectors, {}, nobody, {}, bank, {}, Threshold(0.82, ""))
        for one in sequences:
            assign_sequence(one, plan, settings)

    options: Any = {"n_clusters": None, "distance_threshold": 0.82, "linkage": "average"}

    def reference() -> None:
        for one in sequences:
            rows = np.stack([vectors[instance] for instance in one.instances])
            AgglomerativeClustering(**options).fit_predict(rows)

    def threshold() -> None:
        trees, labels, known = [], [], []
        for number, one in enumerate(sequences[:1000]):
            rows = np.stack([vectors[instance] for instance in one.instances])
            panels = np.array([instance[1] for instance in one.instances])
            trees.append(tree(cdist(rows, rows), *in_panels(panels, np.full(len(panels), -1)), "agglomerative"))
            labels.append(np.array([f"{number} {who}" for who in one.characters]))
            known.append(np.ones(len(rows), bool))
        curve(trees, labels, known, THRESHOLDS)

    works: dict[str, Callable[[], Any]] = {
        "agglomerative": partial(ours, AssignConfig()),
        "dbscan": partial(ours, AssignConfig(method="dbscan")),
        f"agglomerative, {NAMED} characters of a bank": partial(ours, AssignConfig(), bank),
        "scikit-learn, no constraints": reference,
        "curve": threshold,
    }
    taken = alternate(works)
    print("| figure | measured | target |\n|---|---|---|")
    for name in list(works)[:4]:
        line(f"{name}: sequences a CPU-second", f"{SEQUENCES / np.median(taken[name]):,.0f}")
    line(f"B-cubed of 1,000 sequences at {len(THRESHOLDS)} thresholds, CPU-s", f"{np.median(taken['curve']):.1f}")


PARTS: dict[str, Callable[[], None]] = {"assign": assign}


def main() -> None:
    """Print the tables that are asked for, or all."""
    packages = ", ".join(f"{package} {version(package)}" for package in ("numpy", "scipy", "scikit-learn"))
    print(f"{platform.machine()}, Python {platform.python_version()}, {packages}\n")
    for name in sys.argv[1:] or PARTS:
        PARTS[name]()


if __name__ == "__main__":
    main()

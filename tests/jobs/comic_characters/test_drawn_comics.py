"""All verbs of comic characters one after the other on a small comic, to scores of who was never seen."""

import json
from pathlib import Path

import numpy as np
import pytest

from pipelines.comic_characters.clusters import bcubed
from pipelines.comic_characters.sequences import read_sequences
from tests.benchmarks.drawn_comics import SMALL, draw, learn
from tests.support.drawn import Sketches

TINY = [
    "backbone={name: resnet10, face_size: 32, body_size: 32}",
    "pretrain.training={epochs: 4, batch_size: 16, checkpoint_s: 0}",
    "pretrain.views={min_scale: 0.4, light: 0.5}",
    "fine_tune.training={epochs: 6, batch_size: 4, checkpoint_s: 0}",
    "score={draws: 100, photographs: {weights: nowhere.safetensors}}",
    "score.ablations={cat: [fine_tune.head.fusion=cat]}",
]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_who_is_who_is_learnt(ray_cluster: None, tmp_path: Path) -> None:
    settings = [*draw(tmp_path, SMALL, Sketches()), *TINY]
    learn(settings)
    found = json.loads((tmp_path / "out/scores/scores.json").read_text())
    values = {name: places["within"]["map_at_r"]["value"] for name, places in found["methods"].items()}
    assert values["stage 2"] > max(values[name] for name in ("random", "colours", "stage 1")) + 0.1
    assert values["ablation cat"] > values["random"] + 0.1
    clusters = json.loads((tmp_path / "out/runs/assign.json").read_text())["bcubed"]["f1"]
    assert clusters > knowing_nothing(tmp_path / "test_sequences.json") + 0.15
    pairs = json.loads((tmp_path / "out/runs/pretrain.json").read_text())["series"]
    assert pairs["test"] == [f"s{number}" for number in (10, 11, 12, 8, 9)]
    kept = {one: one.stat().st_mtime_ns for one in (tmp_path / "out/scores/ablations").glob("*/*.parquet")}
    learn(settings, ["score"])
    assert len(kept) == 1 and all(one.stat().st_mtime_ns == then for one, then in kept.items())
    assert json.loads((tmp_path / "out/scores/scores.json").read_text()) == found


def knowing_nothing(labels: Path) -> float:
    """The best B-cubed F1 of taking all of a sequence for different, for one, or for who the dice say.

    Dice know how many characters there are, and that nobody stands in a panel twice.
    """
    random = np.random.default_rng(0)
    names: list[str] = []
    guesses: dict[str, list[str]] = {"different": [], "one": [], "dice": []}
    for one in read_sequences(str(labels)):
        names += [f"{one.name} {who}" for who in one.characters]
        guesses["different"] += [f"{one.name} {number}" for number in range(len(one.instances))]
        guesses["one"] += [one.name] * len(one.instances)
        panels = [page for _, page, _, _ in one.instances]
        dice = {page: iter(random.permutation(len(set(one.characters))).tolist()) for page in set(panels)}
        guesses["dice"] += [f"{one.name} {next(dice[page])}" for page in panels]
    return max(bcubed(np.array(names), np.array(guess)).f1 for guess in guesses.values())

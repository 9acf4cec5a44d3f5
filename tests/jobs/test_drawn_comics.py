"""All verbs of comic characters one after the other on a small comic, to scores of who was never seen."""

import json
from pathlib import Path

import pytest

from tests.benchmarks.drawn_comics import SMALL, draw, learn
from tests.drawn import Sketches

TINY = [
    "backbone={name: resnet10, face_size: 32, body_size: 32}",
    "pretrain.training={epochs: 2, batch_size: 16, checkpoint_s: 0}",
    "fine_tune.training={epochs: 6, batch_size: 4, checkpoint_s: 0}",
    "score={draws: 100, photographs: {weights: nowhere.safetensors}}",
    "score.ablations={unaligned: [pretrain.identity=false]}",
]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_who_is_who_is_learnt(ray_cluster: None, tmp_path: Path) -> None:
    settings = [*draw(tmp_path, SMALL, Sketches()), *TINY]
    learn(settings)
    found = json.loads((tmp_path / "out/scores/scores.json").read_text())
    assert "ablation unaligned" in found["methods"]
    values = {name: places["within"]["map_at_r"]["value"] for name, places in found["methods"].items()}
    assert values["stage 2"] > values["random"] + 0.1
    pairs = json.loads((tmp_path / "out/runs/pretrain.json").read_text())["series"]
    assert pairs["test"] == [f"s{number}" for number in (10, 11, 12, 8, 9)]
    folder = tmp_path / "out/scores/ablations"
    assert (folder / "unaligned/pretrain/model.safetensors").exists()
    before = {one: one.stat().st_mtime_ns for one in folder.glob("*/*.parquet")}
    learn(settings, ["score"])
    assert before == {one: one.stat().st_mtime_ns for one in folder.glob("*/*.parquet")} and len(before) == 1
    assert json.loads((tmp_path / "out/scores/scores.json").read_text()) == found

"""Selecting from millions of scenes within a small driver."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.benchmarks.selection import select, write_corpus

SCENES = 2_000_000


@pytest.mark.slow
def test_two_million_scenes_fit_a_driver_of_two_gigabytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # A Ray of its own, whose sockets lie under a short path.
    monkeypatch.setenv("RAY_ADDRESS", "local")
    output = tmp_path / "output"
    write_corpus(str(output), SCENES)
    _, peak, told = select(str(output), "select.by=classifier", "select.count=10000")
    assert peak < 2048
    assert f"{SCENES} scenes = 10000 kept" in told
    scenes = pq.read_table(output / "scenes", columns=["video_id", "clip_id", "probability", "kept", "reason", "error"])
    assert len(scenes) == SCENES
    kept = scenes.filter(scenes["kept"]).to_pandas()
    left = scenes.filter(pq.filters_to_expression([("reason", "==", "not_selected")])).to_pandas()
    assert len(kept) == 10_000 and not kept.duplicated(["video_id", "clip_id"]).any()
    assert kept.probability.min() >= left.probability.max()

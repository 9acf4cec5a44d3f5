"""The loop over real film: labels by a rule that a person can apply come back from what was measured."""

from pathlib import Path

import pytest

from tests.benchmarks.by_eye import loop


@pytest.mark.slow
def test_a_filter_learns_what_was_labelled_by_eye(ray_cluster: None, tmp_path: Path):
    report = loop(tmp_path)
    assert (report["scenes"], report["good"], report["videos"]) == (78, 49, 16)
    # On outer folds, beside always answering "good"; intervals of 16 pieces are wide.
    assert report["metrics"]["gain"]["value"] > 0.1
    assert report["metrics"]["roc_auc"]["value"] > 0.8 and report["metrics"]["roc_auc"]["low"] > 0.5

"""Ways to make vectors of instances: what each part counts, and what is guessed."""

import numpy as np
import pytest

from pipelines.comic_characters.features import Features
from pipelines.comic_characters.score_methods import fused


def test_face_and_body_count_alike_and_what_is_not_there_is_guessed() -> None:
    features = [
        Features(np.array([3.0, 0.0]), np.array([0.0, 0.1])),
        Features(None, np.array([0.0, 2.0])),
        Features(np.array([5.0, 0.0]), None),
    ]
    both = fused(features, ("face", "body"), 0)
    assert both.vectors == pytest.approx(np.array([[np.sqrt(0.5)] * 2, [0, 1], [1, 0]])) and both.guessed == 0
    face = fused(features, ["face"], 0)
    assert face.guessed == 1 and face.vectors[[0, 2]] == pytest.approx(np.array([[1.0, 0], [1, 0]]))
    assert np.linalg.norm(face.vectors, axis=1) == pytest.approx(1)
    assert fused(features, ["face"], 1).vectors[1] != pytest.approx(face.vectors[1])

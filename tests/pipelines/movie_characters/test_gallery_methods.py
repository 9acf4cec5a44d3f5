"""Nearest neighbours and the probe, against what can be reckoned."""

import numpy as np
import pytest

from pipelines.movie_characters import gallery_methods
from pipelines.movie_characters.gallery_methods import SMALL, nearest, probe


def unit(count: int, width: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("size", [500, SMALL + 500])
def test_the_nearest_are_those_of_the_highest_cosine(size: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gallery_methods, "ROWS", 3)
    images, gallery = unit(7, 16, 0), unit(size, 16, 1)
    numbers, cosines = nearest(images, gallery, 20)
    expected = images @ gallery.T
    assert numbers.tolist() == np.argsort(-expected, axis=1)[:, :20].tolist()
    assert cosines == pytest.approx(np.take_along_axis(expected, numbers, 1), abs=1e-5)


def test_of_no_image_none_is_near():
    numbers, cosines = nearest(unit(0, 16, 0), unit(5, 16, 1), 3)
    assert numbers.shape == cosines.shape == (0, 3)


def test_a_probe_tells_classes_that_no_single_image_tells():
    # Each class is one axis, drowned by what all have in common.
    random = np.random.default_rng(0)
    truth = [f"c{i % 3}" for i in range(90)]
    vectors = random.standard_normal((90, 8)) * [1, 1, 1, 1, 1, 0.1, 0.1, 0.1]
    vectors[:, 5:] += 0.5 * np.eye(3)[[i % 3 for i in range(90)]]
    answer = probe(vectors[:60], truth[:60], c=100)
    numbers, scores = answer(vectors[60:])
    found = [f"c{n}" for n in np.take_along_axis(numbers, scores.argmax(1)[:, None], 1)[:, 0]]
    assert np.mean([a == b for a, b in zip(found, truth[60:], strict=True)]) > 0.95
    assert np.exp(scores).sum(1) == pytest.approx(1)


def test_a_probe_needs_two_classes():
    with pytest.raises(ValueError, match="two classes"):
        probe(unit(3, 4, 0), ["a", "a", "a"], c=1)

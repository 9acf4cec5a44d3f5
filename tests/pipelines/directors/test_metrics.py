"""Answers for films and their certainty, against closed forms."""

import numpy as np
import pytest
from scipy.special import log_softmax

from pipelines.core.metrics import wilson
from pipelines.directors.metrics import auroc, by_film, calibration_error, figures, in_top, temperature, threshold


def test_a_films_answer_is_the_geometric_mean_of_its_pictures():
    chances = np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8]])
    found = np.exp(by_film(np.log(chances), np.array([0, 0, 1])))
    product = np.sqrt([0.9 * 0.4, 0.1 * 0.6])
    np.testing.assert_allclose(found, [product / product.sum(), [0.2, 0.8]])


def test_top_k_counts_ties_by_their_fair_share():
    answers = np.log([[0.5, 0.3, 0.2], [0.5, 0.25, 0.25], [1 / 3] * 3])
    assert in_top(answers, np.array([1, 2, 0]), 1).tolist() == [0, 0, 1 / 3]
    assert in_top(answers, np.array([1, 2, 0]), 2) == pytest.approx([1, 0.5, 2 / 3])


def test_temperature_undoes_the_scale_of_logits_and_so_calibrates():
    random = np.random.default_rng(0)
    honest = random.normal(size=(20_000, 4)) * 2
    labels = (honest + random.gumbel(size=honest.shape)).argmax(1)  # drawn by softmax(honest)
    assert temperature(3 * honest, labels) == pytest.approx(3, rel=0.05)
    assert calibration_error(log_softmax(honest, 1), labels) < 0.02
    assert calibration_error(log_softmax(3 * honest, 1), labels) > 0.08


def test_the_threshold_parts_what_can_be_parted():
    known, strangers = np.array([0.9, 0.8, 0.7]), np.array([0.5, 0.3])
    assert 0.5 < threshold(known, strangers) < 0.7
    assert auroc(known, strangers) == 1
    assert auroc(np.array([0.4, 0.6]), np.array([0.5])) == 0.5


def test_figures_are_of_pictures_and_of_films():
    # Film 0 is right by its sum though one of its pictures is wrong; film 1 is wrong.
    chances = np.array([[0.9, 0.1], [0.45, 0.55], [0.7, 0.3]])
    found = figures(np.log(chances), np.array([0, 0, 1]), np.array([0, 0, 1]), np.array([0, 1]), ks=(1, 2))
    assert found["picture_top1"] == pytest.approx(1 / 3) and found["film_top1"] == 0.5
    assert found["picture_top2"] == found["film_top2"] == 1
    assert (found["film_low"], found["film_high"]) == wilson(0.5, 2)
    assert found["picture_low"] < 1 / 3 < found["picture_high"]
    assert (found["picture_n"], found["film_n"]) == (3, 2)
    # Film F1: of class 0 two thirds (one right of two answers), of class 1 nothing.
    assert found["film_f1"] == pytest.approx(1 / 3)


def test_few_right_answers_do_not_make_sure_of_everything():
    logits = np.array([[2.0, 0.0], [0.0, 3.0], [1.0, 0.0]])
    assert 0.4 < temperature(logits, np.array([0, 1, 0])) < 1

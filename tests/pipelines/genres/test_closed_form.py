"""The probe in closed form: against refits, ridge regression of scikit-learn, and logistic regression on real films."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from torch import Tensor
from torch.nn.functional import normalize

from actors.genres.heads import MeanProbe, mean_directions
from pipelines.core.film_vectors import split
from pipelines.core.metrics import average_precision, averages, calibration
from pipelines.genres.closed_form import SolveConfig, coupling, solve
from tests.support.data import real_films

D = 24


def sample(films: int, seed: int) -> tuple[Tensor, Tensor, np.ndarray]:
    """Films whose classes show faintly: the second is nearly always there with the first, the last one never is."""
    random = np.random.default_rng(seed)
    first = random.random(films) < 0.4
    labels = np.column_stack([first, first & (random.random(films) < 0.9), random.random(films) < 0.2, first < 0])
    shown = np.random.default_rng(0).normal(size=(4, D)) * [[1.0], [0.1], [0.8], [1.0]]
    frames = 3 + labels[:, None] @ shown + random.normal(size=(films, 3, D)) * 3
    return torch.from_numpy(frames).float(), torch.ones(films, 3, dtype=torch.bool), labels.astype(np.uint8)


def solved(films: int, config: SolveConfig) -> tuple[MeanProbe, np.ndarray]:
    frames, mask, labels = sample(films, 1)
    probe = MeanProbe(D, 4).eval()
    return probe, solve(probe, frames, mask, labels, config)


@torch.no_grad()
def test_each_film_is_answered_as_by_a_probe_that_never_saw_it():
    frames, mask, labels = sample(300, 1)
    _, without = solved(300, SolveConfig())
    for film in (0, 17, 299):
        others = np.arange(300) != film
        probe = MeanProbe(D, 4).eval()
        solve(probe, frames[others], mask[others], labels[others], SolveConfig())
        assert probe(frames[[film]], mask[[film]])[0].numpy() == pytest.approx(without[film], abs=0.05)
    assert without.std(0)[:3].min() > 0.4


@torch.no_grad()
def test_uncoupled_it_ranks_as_ridge_regression():
    probe, _ = solved(200, SolveConfig(ridge=2.0, coupling=0.0))
    frames, mask, labels = sample(200, 1)
    x, new = (probe.features(*films).numpy() / D**0.5 for films in ((frames, mask), sample(50, 2)[:2]))
    logits = probe(*sample(50, 2)[:2]).numpy()
    for number in range(3):
        target = labels[:, number] - labels[:, number].mean()
        theirs = Ridge(2.0, fit_intercept=False).fit(x, target).predict(new)
        assert np.corrcoef(theirs, logits[:, number])[0, 1] > 0.99999


def test_classes_are_coupled_as_noisy_answers_are_best_read():
    labels = sample(400, 3)[2]
    random = np.random.default_rng(4)
    centred = np.tile(labels - labels.mean(0), (200, 1))
    answers = centred + random.normal(size=centred.shape) * labels.std(0) * 0.5**0.5
    best = np.linalg.lstsq(answers[:, :3], centred[:, :3])[0]
    assert coupling(labels, 0.5)[:3, :3] == pytest.approx(best, abs=0.02)
    assert coupling(labels, 0.5)[0, 1] > 0.2 and not coupling(labels, 0.5)[3, :3].any()
    assert coupling(labels, 0.0) == pytest.approx(np.eye(4), abs=1e-9)


@torch.no_grad()
def test_probabilities_are_calibrated_and_a_class_without_films_is_unlikely():
    probe, without = solved(600, SolveConfig())
    frames, mask, labels = sample(2000, 5)
    probabilities = probe(frames, mask).sigmoid().numpy()
    assert calibration(probabilities, labels)[1] < 0.03
    assert probabilities[:, 3].max() == probabilities[:, 3].min() < 0.01 and np.ptp(without[:, 3]) == 0


def test_what_cannot_be_solved_is_refused():
    with pytest.raises(ValueError, match="two films or more"):
        solved(1, SolveConfig())
    with pytest.raises(ValueError, match="ridge is above 0"):
        SolveConfig(ridge=0.0)


@pytest.mark.slow
@torch.no_grad()
def test_it_beats_logistic_regression_on_real_films():
    films = real_films()
    frames, mask = (torch.from_numpy(array) for array in films.padded())
    x = normalize(mean_directions(frames, mask), dim=1).numpy()
    gains = []
    parts = split(films.genres, [1] * 5)
    for part in range(5):
        train, test = parts != part, parts == part
        probe = MeanProbe(512, 21).eval()
        solve(probe, frames[train], mask[train], films.genres[train], SolveConfig())
        logistic = np.zeros((test.sum(), 21))
        for genre in np.flatnonzero(films.genres[train].any(0)):
            model = LogisticRegression(C=3, max_iter=1000).fit(x[train], films.genres[train, genre])
            logistic[:, genre] = model.decision_function(x[test])
        truth = films.genres[test]
        ours, theirs = (
            averages(average_precision(scores, truth), truth.sum(0))
            for scores in (probe(frames[test], mask[test]).numpy(), logistic)
        )
        gains.append([ours[name] - theirs[name] for name in ("macro", "weighted")])
    assert (np.mean(gains, 0) > [0.005, 0.002]).all()

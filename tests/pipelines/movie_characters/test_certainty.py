"""False certainty comes at its nominal rate where nothing is known, and knowledge is found."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from actors.movie_characters.diffusion import DiffusionConfig
from actors.movie_characters.diffusion_classifier import (
    DiffusionIdentifier,
    Identity,
    QuestionConfig,
    StagesConfig,
    decide,
    race,
)
from pipelines.movie_characters.certainty import MIN_IMAGES, calibrated, in_words
from tests.support import tiny_models

RUNS = 40


def drawn(
    random: np.random.Generator, images: int, identities: int, bias: float, known: float = 0, dist: str = "normal"
) -> tuple[np.ndarray, np.ndarray]:
    """Losses (N, K): the image's own, a bias of each identity, a spread between images; the true identities."""
    spread = {
        "normal": random.normal(size=(images, identities)),
        "heavy": random.standard_t(3, (images, identities)),
        "uneven": random.normal(size=(images, identities)) * random.lognormal(size=(images, 1)),
        "alike": random.normal(size=(images, 3)) @ random.normal(size=(3, identities)),
    }[dist]
    losses = random.normal(0, 5, (images, 1)) + random.normal(0, bias, identities) + spread
    truth = random.permutation(np.arange(images) % identities)
    losses[np.arange(images), truth] -= known
    return losses, truth


def most(alpha: float, runs: int) -> float:
    """The greatest rate that chance allows a test of rate alpha: p of the images of a run depend on each other, so that
    runs are counted as if each was ten images."""
    return float(stats.binom.ppf(0.999, 10 * runs, alpha)) / (10 * runs)


@pytest.mark.slow
@pytest.mark.parametrize("dist", ["normal", "heavy", "uneven", "alike"])
@pytest.mark.parametrize("bias", [0, 0.3, 3])
@pytest.mark.parametrize(("images", "identities"), [(20, 3), (60, 3), (60, 20)])
def test_a_network_without_knowledge_is_certain_at_the_nominal_rate(
    images: int, identities: int, bias: float, dist: str
) -> None:
    random = np.random.default_rng(0)
    p = []
    for _ in range(RUNS):
        losses, _ = drawn(random, images, identities, bias, dist=dist)
        p.append(calibrated(losses, losses.argmin(1)))
    for alpha in (0.05, 0.1, 0.2):
        assert np.mean(np.concatenate(p) <= alpha) <= most(alpha, RUNS), alpha


def test_an_identity_that_is_better_on_everything_is_never_certain() -> None:
    losses, _ = drawn(np.random.default_rng(1), 60, 5, 0)
    losses[:, 2] -= 50
    p = calibrated(losses, losses.argmin(1))
    assert (losses.argmin(1) == 2).all() and (p <= 0.05).mean() <= 0.05
    # Over the noise of one image each of these answers is as certain as can be.
    assert decide(losses[0][:, None] + 0.1 * np.random.default_rng(0).normal(size=(5, 20))).p_noise < 1e-9


@pytest.mark.parametrize(("images", "identities"), [(30, 3), (60, 5), (60, 20)])
def test_what_is_known_is_found(images: int, identities: int) -> None:
    random = np.random.default_rng(2)
    for _ in range(10):
        losses, truth = drawn(random, images, identities, 1, known=8)
        best = losses.argmin(1)
        p = calibrated(losses, best)
        assert (p[best == truth] <= 0.05).mean() > 0.8


def test_an_answer_that_its_bias_alone_gives_is_not_certain_among_those_that_are_known() -> None:
    random = np.random.default_rng(3)
    losses, truth = drawn(random, 60, 6, 0, known=8)
    strangers = np.flatnonzero(truth == 0)
    losses[strangers, 0] += 8
    losses[:, 1] -= 4
    best = losses.argmin(1)
    p = calibrated(losses, best)
    assert (best[strangers] == 1).mean() > 0.8 and (p[strangers] <= 0.05).mean() < 0.2
    assert (p[truth == 2] <= 0.05).mean() > 0.8


def test_where_there_is_too_little_no_certainty_is_stated() -> None:
    losses, _ = drawn(np.random.default_rng(0), MIN_IMAGES, 4, 0, known=8)
    best = losses.argmin(1)
    assert np.isfinite(calibrated(losses, best)).all()
    for few in (losses[:-1], losses[:, :2], losses[:0]):
        assert np.isnan(calibrated(few, few.argmin(1))).all()
    assert in_words(np.array([0.05, 0.06, np.nan])) == [
        "certain",
        "not certain",
        "not stated: it takes 20 images, and 3 identities",
    ]


def test_identities_on_few_images_have_no_certainty_and_spoil_none() -> None:
    random = np.random.default_rng(4)
    losses, _ = drawn(random, 60, 6, 1, known=8)
    losses[:, 5] = np.nan
    alone = calibrated(losses, np.nanargmin(losses, 1))
    assert alone == pytest.approx(calibrated(losses[:, :5], losses[:, :5].argmin(1)), abs=1e-12)
    losses[:7, 5] = 0
    p = calibrated(losses, np.nanargmin(losses, 1))
    assert np.isnan(p[:7]).all() and np.isfinite(p[7:]).all()


def test_the_order_of_images_and_identities_does_not_matter() -> None:
    random = np.random.default_rng(5)
    losses, _ = drawn(random, 30, 5, 1, known=3)
    images, identities = random.permutation(30), random.permutation(5)
    other = losses[images][:, identities]
    assert calibrated(other, other.argmin(1)) == pytest.approx(calibrated(losses, losses.argmin(1))[images])


@pytest.mark.slow
def test_early_stops_are_certain_at_the_nominal_rate_too() -> None:
    """Noise of single pairs, a profile over timesteps for each identity, and elimination while it runs."""
    random, stages = np.random.default_rng(6), StagesConfig(samples=(4, 8, 20), keep=(6, 3, 1))
    p = []
    for _ in range(15):
        profile, shared = random.normal(0, 0.5, (8, 20)), random.normal(0, 1, (60, 1, 20))
        full = profile + shared + random.normal(0, 0.2, (60, 8, 1)) + random.normal(0, 0.3, (60, 8, 20))

        def ask(rows: np.ndarray, full: np.ndarray = full) -> np.ndarray:
            return full[tuple(rows.T)]

        raced = race([range(8)] * 60, 8, stages, ask)
        best = [decide(losses).best for losses in raced]
        p.append(calibrated(raced[:, :, :4].mean(2), best))
    assert np.mean(np.concatenate(p) <= 0.05) <= most(0.05, 15)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "staged"])
def test_random_weights_are_certain_at_the_nominal_rate(tmp_path: Path, method: Any) -> None:
    """Networks that have learnt nothing, on noise, plain colours and spots; each identity is another random text."""
    stages, count, images = StagesConfig(samples=(4, 8, 20), keep=(6, 3, 1)), 8, 60
    p, noise = [], []
    for seed in range(4):
        random = np.random.default_rng(seed)
        folder = tmp_path / str(seed)
        folder.mkdir()
        model = tiny_models.stable_diffusion(folder / "sd", seed=seed)
        uris = [_random_image(random, folder / f"{number}.png", number % 3) for number in range(images)]
        who = [Identity(f"A_{number}", random.normal(size=(77, 16)).astype(np.float32)) for number in range(count)]
        question = QuestionConfig(method=method, height=16, width=16, num_inference_steps=20, stages=stages)
        asked = np.empty(images, object)
        asked[:] = [np.arange(count)] * images
        identifier = DiffusionIdentifier(model, DiffusionConfig(evaluations_per_call=64), question, who)
        found = np.stack(list(identifier({"image": np.array(uris, object), "missing": asked})["losses"]))
        answers = [decide(losses) for losses in found]
        shared = found if method == "full" else found[:, :, :4]
        p.append(calibrated(shared.mean(2), [one.best for one in answers]))
        noise += [one.p_noise for one in answers]
        # Also where no bias of an identity decides the answer.
        centred = shared.mean(2) - np.median(shared.mean(2), axis=0)
        p.append(calibrated(centred, centred.argmin(1)))
    for alpha in (0.05, 0.1):
        assert np.mean(np.concatenate(p) <= alpha) <= most(alpha, len(p)), alpha
    if method == "full":
        assert np.mean(np.array(noise) <= 0.05) > 0.2


def _random_image(random: np.random.Generator, path: Path, kind: int) -> str:
    y, x = np.mgrid[:16, :16]
    colour = random.integers(0, 256, 3)
    centre, width = random.uniform(0, 16, 2), random.uniform(4, 60)
    pixels = {
        0: random.integers(0, 256, (16, 16, 3)),
        1: colour + random.normal(0, 10, (16, 16, 3)),
        2: colour * np.exp(-((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / width)[..., None],
    }[kind]
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
    return str(path)

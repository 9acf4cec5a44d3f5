"""The shipped encoder tells shots apart, and its training learns and keeps to what it may see."""

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from actors.curation.features.latents import TINY, encode, latent_distances, load_vae
from pipelines.tiny_vae.settings import AutoencoderConfig
from pipelines.tiny_vae.sources import packaged
from pipelines.tiny_vae.train import (
    EVERY,
    HELD_OUT_SHOTS,
    SIZE,
    build,
    crops,
    initialise,
    learning_rate,
    loss,
    measure,
    pictures,
    psnr,
    train_autoencoder,
    training_pictures,
)
from tests.support.films import demo_mp4

CUTS = (183, 243, 365, 395, 485, 552, 706, 741, 864, 923, 959, 1024, 1119, 1162, 1188, 1300, 1369, 1432)
"""Hard cuts of demo.mp4, first frames of shots."""


def test_the_shipped_encoder_is_small_and_gives_latents_of_an_eighth() -> None:
    assert (TINY / "encoder.safetensors").stat().st_size <= 3_000_000
    vae = load_vae("tiny", torch.float32, "cpu")
    latents = vae.encode(torch.rand(2, 3, 240, 240) * 2 - 1).latents
    assert latents.shape == (2, 4, 30, 30)
    assert torch.isfinite(latents).all()


@pytest.mark.slow
def test_the_shipped_encoder_tells_cuts_from_neighbours_on_film() -> None:
    frames = [frame[:, (frame.shape[1] - SIZE) // 2 :][:, :SIZE] for frame in pictures(demo_mp4(), SIZE)]
    middles = [(a + b) // 2 for a, b in pairwise(CUTS)]
    pairs = [(cut - 1, cut) for cut in CUTS] + [(middle, middle + EVERY) for middle in middles]
    vae = load_vae("tiny", torch.float32, "cpu")
    latents = encode(vae, torch.from_numpy(np.stack([frames[i] for pair in pairs for i in pair])), 8)
    mse, cosine = (values[::2].numpy() for values in latent_distances(latents))
    cut, same = slice(0, len(CUTS)), slice(len(CUTS), None)
    assert 1 - np.median(cosine[cut]) > 5 * (1 - np.median(cosine[same]))
    # Of all pairings of a cut with a pair inside a shot, nearly all are told apart.
    assert (cosine[same][:, None] > cosine[cut]).mean() > 0.95
    assert (mse[same][:, None] < mse[cut]).mean() > 0.95


@pytest.mark.slow
def test_no_held_out_frame_is_trained_on() -> None:
    film = list(pictures(packaged("iscc-samples", "demo.mp4"), SIZE))
    held_out = {film[i].tobytes() for first, end in HELD_OUT_SHOTS for i in range(first, end)}
    held_out |= {
        next(pictures(packaged("scikit-image", name), 2 * SIZE)).tobytes() for name in ("chelsea.png", "coffee.png")
    }
    trained = {picture.tobytes() for picture in training_pictures()}
    assert film[0].tobytes() in trained and len(trained) > 150
    assert not trained & held_out


def test_a_batch_depends_on_seed_step_and_worker_alone() -> None:
    sources = [np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)]
    config = AutoencoderConfig(batch_size=3, crop=32)
    batch = crops(sources, config, step=7)
    assert batch.shape == (3, 3, 32, 32) and -1 <= batch.min() < -0.5 and 0.5 < batch.max() <= 1
    assert torch.equal(batch, crops(sources, config, step=7))
    for other in (crops(sources, config, 8), crops(sources, config, 7, rank=1)):
        assert not torch.equal(batch, other)


def test_the_loss_of_a_perfect_picture_is_that_of_its_latents() -> None:
    config = AutoencoderConfig(gradient_weight=0.5, moments_weight=0.25)
    pixels = torch.zeros(1, 3, 8, 8)
    latents = torch.full((2, 4, 8, 8), 3.0)
    assert loss(config, pixels, latents, pixels).item() == pytest.approx(0.25 * (3**2 + 4 / 16))
    white = torch.randn(400, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert loss(config, pixels, white, pixels).item() < 1e-3
    brighter = loss(config, pixels, latents, pixels + 0.1) - loss(config, pixels, latents, pixels)
    assert brighter.item() == pytest.approx(0.1, rel=1e-4)


def test_the_learning_rate_rises_to_its_peak_and_falls_to_zero() -> None:
    config = AutoencoderConfig(steps=1000, learning_rate=0.5)
    rates = [learning_rate(config, step) for step in range(1000)]
    assert rates[0] == pytest.approx(0.5 / 20) and max(rates) == rates[19] == 0.5
    assert rates[20:] == sorted(rates[20:], reverse=True) and rates[-1] < 1e-4
    assert rates[510] == pytest.approx(0.25)


def test_psnr_of_one_grey_level_of_error() -> None:
    grey = np.full((4, 4, 3), 100, np.uint8)
    assert psnr(grey, grey + np.uint8(1)) == pytest.approx(20 * math.log10(255))


def test_first_weights_keep_the_scale_of_the_signal() -> None:
    torch.manual_seed(0)
    vae = build(AutoencoderConfig())
    initialise(vae)
    with torch.inference_mode():
        latents = vae.encoder(torch.randn(4, 3, 64, 64))
    assert 0.05 < latents.std() < 5


@pytest.mark.parametrize("wrong", [{"crop": 30}, {"crop": 0}, {"steps": 0}, {"batch_size": 0}, {"channels": 0}])
def test_wrong_settings_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        replace(AutoencoderConfig(), **wrong)


@pytest.mark.parametrize("package", ["no-such-package-of-films", "iscc-samples"])
def test_a_missing_file_is_named(package: str) -> None:
    with pytest.raises(ValueError, match=f"{package}.*(not installed|has no nothing.png)"):
        packaged(package, "nothing.png")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("ray_cluster")
def test_training_learns(tmp_path: Path) -> None:
    config = AutoencoderConfig(steps=120, batch_size=4, crop=48, channels=16, checkpoint_every=20)
    vae, metrics = train_autoencoder(config, output=str(tmp_path))
    losses = [value for _, value in metrics["losses"]]
    assert len(losses) == 6 and losses[-1] < 0.7 * losses[0]
    assert not any(parameter.requires_grad for parameter in vae.parameters())
    figures = measure(vae)
    assert figures.film_psnr > figures.film_mean_psnr
    assert len(figures.across_cut) == 9 and np.median(figures.same_shot) > np.median(figures.across_cut)

"""Latents are the posterior mean of frames in [-1, 1]; a model that cannot be had is told before the work."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.models.unets.unet_2d import UNet2DModel
from safetensors.torch import load_file
from torch import Tensor

from actors.curation.features.latents import TINY, check_model, encode, latent_distances, load_vae


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    """On a busy machine more of them wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def frames() -> Tensor:
    """Five frames of a bright square that moves over noise: uint8 (5, 32, 32, 3)."""
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    film = np.stack([picture] * 5)
    for i, frame in enumerate(film):
        frame[4 * i : 4 * i + 8, 8:16] = 255
    return torch.from_numpy(film)


@pytest.fixture(scope="module")
def kl(vae_folder: str) -> Any:
    return load_vae(vae_folder, torch.float32, "cpu")


@pytest.fixture(scope="module")
def folders(vae_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What may lie under a path: VAEs of two kinds, a pipeline, and what is none of these."""
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(1)
    small: dict[str, Any] = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    AutoencoderTiny(**small, num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1)).save_pretrained(root / "tiny")
    blocks: dict[str, Any] = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    UNet2DModel(**blocks, block_out_channels=(8,), norm_num_groups=4, layers_per_block=1).save_pretrained(root / "unet")
    shutil.copytree(vae_folder, root / "pipeline" / "vae")
    shutil.copytree(vae_folder, root / "torn")
    weights = root / "torn" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    shutil.copytree(vae_folder, root / "pickled")
    weights = root / "pickled" / "diffusion_pytorch_model.safetensors"
    weights.unlink()
    torch.save({}, weights.with_suffix(".bin"))
    (root / "empty").mkdir()
    (root / "settings").mkdir()
    (root / "settings" / "config.json").write_text("{}")
    return root


def test_latents_are_the_posterior_mean_of_frames_from_minus_one_to_one(kl: Any, vae_folder: str, frames: Tensor):
    plain: Any = AutoencoderKL.from_pretrained(vae_folder)
    with torch.inference_mode():
        latents = encode(kl, frames)
        expected = [plain.encode(frame.permute(2, 0, 1)[None] / 255 * 2 - 1).latent_dist.mean for frame in frames]
    assert latents.shape == (5, 4 * 16 * 16)
    assert latents.dtype == torch.float32
    torch.testing.assert_close(latents, torch.cat(expected).flatten(1), rtol=1e-4, atol=1e-5)


def test_black_and_white_are_the_ends_of_the_range():
    class Echo:
        """A VAE whose latents are its input."""

        dtype = torch.float32

        def encode(self, pixels: Tensor) -> Any:
            return type("Out", (), {"latents": pixels})

    frames = torch.tensor([0, 255], dtype=torch.uint8)[:, None, None, None].expand(2, 4, 4, 3)
    assert encode(Echo(), frames)[:, 0].tolist() == [-1, 1]


@pytest.mark.parametrize("frames_per_call", [1, 2, 5, 16])
def test_how_many_frames_go_at_once_changes_nothing(kl: Any, frames: Tensor, frames_per_call: int):
    with torch.inference_mode():
        torch.testing.assert_close(encode(kl, frames, frames_per_call), encode(kl, frames, 1), rtol=1e-4, atol=1e-5)


def test_an_order_of_frames_is_an_order_of_latents(kl: Any, frames: Tensor):
    with torch.inference_mode():
        torch.testing.assert_close(encode(kl, frames.flip(0), 2), encode(kl, frames, 2).flip(0), rtol=1e-4, atol=1e-5)


def test_half_precision_stays_close(kl: Any, vae_folder: str, frames: Tensor):
    half = load_vae(vae_folder, torch.bfloat16, "cpu")
    assert half.dtype == torch.bfloat16
    with torch.inference_mode():
        exact, close = encode(kl, frames), encode(half, frames)
    assert close.dtype == torch.float32
    assert not torch.equal(exact, close)
    assert ((close - exact).norm() / exact.norm()).item() < 0.02
    for a, b in zip(latent_distances(exact), latent_distances(close), strict=True):
        torch.testing.assert_close(a, b, rtol=0.05, atol=0.002)


def test_an_autoencoder_without_a_distribution_gives_its_latents(folders: Path, frames: Tensor):
    tiny = load_vae(str(folders / "tiny"), torch.float32, "cpu")
    plain: Any = AutoencoderTiny.from_pretrained(folders / "tiny")
    with torch.inference_mode():
        expected = plain.encode(frames.permute(0, 3, 1, 2) / 127.5 - 1).latents
        torch.testing.assert_close(encode(tiny, frames, 2), expected.flatten(1), rtol=1e-4, atol=1e-5)


def test_of_a_pipeline_its_vae_is_taken(folders: Path, kl: Any, frames: Tensor):
    check_model(str(folders / "pipeline"))
    vae = load_vae(str(folders / "pipeline"), torch.float32, "cpu")
    with torch.inference_mode():
        assert torch.equal(encode(vae, frames), encode(kl, frames))


def test_a_model_learns_nothing_and_drops_nothing(kl: Any):
    assert not kl.training
    assert not any(parameter.requires_grad for parameter in kl.parameters())


@pytest.mark.parametrize("dimensions", [1, 7, 1024])
def test_distances_have_closed_forms(dimensions: int):
    random = torch.Generator().manual_seed(0)
    first = torch.randn(dimensions, generator=random)
    latents = torch.stack([first, first, first + 3, -first - 3, 2 * first])
    mse, cosine = latent_distances(latents)
    assert mse.shape == cosine.shape == (4,)
    torch.testing.assert_close(
        mse[:3], torch.stack([torch.tensor(0.0), torch.tensor(9.0), 4 * latents[2].square().mean()])
    )
    assert cosine[0] == pytest.approx(1)
    assert cosine[2] == pytest.approx(-1)


def test_right_angles_and_lengths_do_not_mix():
    mse, cosine = latent_distances(torch.tensor([[1.0, 0], [0, 5], [0, 10], [0, 0]]))
    assert cosine.tolist() == pytest.approx([0, 1, 0])
    assert mse.tolist() == pytest.approx([13, 12.5, 50])


# -------------------------------------------------------------------------------------------------- models that are not


@pytest.mark.parametrize("name", ["empty", "none/at/all"])
def test_a_path_without_a_model_is_told_at_once(folders: Path, name: str):
    with pytest.raises(ValueError, match=rf"latents\.model={folders / name}: no config\.json there; give a folder"):
        check_model(str(folders / name))


@pytest.mark.parametrize("name", ["nobody/nothing", "not a name", "a/b/c"])
def test_a_name_that_cannot_be_had_is_told_with_the_ways_out(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        ValueError, match=f"latents.model={name} cannot be downloaded from the Hugging Face Hub"
    ) as error:
        check_model(name)
    assert "latents.model=tiny" in str(error.value)
    assert "HF_TOKEN" in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("unet", "is a UNet2DModel, not a VAE"),
        ("settings", "cannot be loaded by diffusers"),
        ("torn", "cannot be loaded by diffusers"),
        # Weights that may run code are not loaded.
        ("pickled", r"cannot be loaded by diffusers: .*\.safetensors"),
    ],
)
def test_what_is_no_vae_is_refused_by_name(folders: Path, name: str, message: str):
    check_model(str(folders / name))
    with pytest.raises(ValueError, match=message) as error:
        load_vae(str(folders / name), torch.float32, "cpu")
    assert f"latents.model={folders / name}" in str(error.value)


def test_the_shipped_encoder_is_the_one_of_diffusers(frames: Tensor) -> None:
    config: Any = AutoencoderTiny.load_config(str(TINY))
    theirs: Any = AutoencoderTiny.from_config(config)
    theirs.encoder.load_state_dict(load_file(TINY / "encoder.safetensors"))
    expected = encode(theirs.eval(), frames)
    assert torch.equal(encode(load_vae("tiny", torch.float32, "cpu"), frames), expected)
    half = encode(load_vae("tiny", torch.bfloat16, "cpu"), frames)
    assert (half - expected).abs().max() < 0.05 * expected.abs().max()

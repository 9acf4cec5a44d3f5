"""The loss against a loop over one identity and one timestep, schedules against their formulas, pictures by hand."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.nn import functional

from actors.media.images import read_image
from actors.movie_characters import noise_losses as losses_module
from actors.movie_characters.diffusion import (
    DiffusionConfig,
    StableDiffusion,
    check_diffusion,
    crop,
    embed_prompt,
    encode_pictures,
    latent_shape,
    load_diffusion,
    load_texts,
    noise_schedule,
)
from actors.movie_characters.diffusion_classifier import (
    DiffusionIdentifier,
    Identity,
    QuestionConfig,
    StagesConfig,
    decide,
)
from actors.movie_characters.loras import Loras
from actors.movie_characters.noise_losses import evenly_spaced, full_bank, noise_losses, staged_bank
from tests.support import tiny_models
from tests.support.waits import Waits

CONFIG = DiffusionConfig(evaluations_per_call=7)


@pytest.fixture(scope="module")
def model(sd_folder: str) -> StableDiffusion:
    return load_diffusion(sd_folder, CONFIG)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    uris = []
    for number in range(3):
        pixels = random.integers(0, 256, (20, 24, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"Ann_{number:03}.png")
        uris.append(str(folder / f"Ann_{number:03}.png"))
    return uris


def conditions(count: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(count, 77, 16)).astype(np.float32)


def identities(count: int) -> list[Identity]:
    return [Identity(f"Ann_{number}", condition) for number, condition in enumerate(conditions(count))]


def by_hand(model: StableDiffusion, pixels: np.ndarray, condition: np.ndarray, seed: int) -> list[float]:
    """The loss of one identity at one timestep after the other, written from the formulas alone."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    signal = torch.cumprod(1 - betas, 0)
    picture = torch.tensor(pixels.transpose(2, 0, 1)[None] / 127.5 - 1, dtype=torch.float32)
    noise = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(seed))
    losses = []
    with torch.no_grad():
        z = 0.18215 * model.vae.encode(picture).latent_dist.mean
        for t in range(980, -1, -20):
            noisy = signal[t].sqrt().float() * z + (1 - signal[t]).sqrt().float() * noise
            found = model.unet(noisy, t, torch.from_numpy(condition)[None]).sample
            losses.append(float(functional.mse_loss(found, noise)))
    return losses


def question(**changes: object) -> QuestionConfig:
    return replace(QuestionConfig(method="full", height=16, width=16, seed=5), **changes)


def asked(pictures: list[str], sd_folder: str, config: QuestionConfig, who: list[Identity]) -> list[np.ndarray]:
    missing = np.empty(len(pictures), object)
    missing[:] = [np.arange(len(who))] * len(pictures)
    batch = {"image": np.array(pictures, object), "missing": missing}
    return list(DiffusionIdentifier(sd_folder, CONFIG, config, who)(batch)["losses"])


def test_the_full_loss_is_that_of_a_loop_over_identities_and_timesteps(
    model: StableDiffusion, pictures: list[str], sd_folder: str
) -> None:
    found = asked(pictures[:2], sd_folder, question(), identities(3))
    for uri, losses in zip(pictures, found, strict=False):
        pixels = crop(read_image(uri), 16, 16)
        expected = [by_hand(model, pixels, condition, 5) for condition in conditions(3)]
        assert losses == pytest.approx(np.array(expected), rel=2e-4)
        assert decide(losses).losses == pytest.approx(np.mean(expected, 1), rel=2e-4)


def test_identities_and_pictures_do_not_depend_on_each_other_and_a_seed_fixes_all(
    pictures: list[str], sd_folder: str
) -> None:
    who, config = identities(4), question(num_inference_steps=6)
    one = asked(pictures, sd_folder, config, who)
    other = asked(pictures[::-1], sd_folder, config, who[::-1])
    for losses, same in zip(one, other[::-1], strict=True):
        assert losses == pytest.approx(same[::-1], rel=1e-4)
    again = asked(pictures, sd_folder, config, who)
    assert all(np.array_equal(losses, same) for losses, same in zip(one, again, strict=True))
    elsewhere = asked(pictures, sd_folder, question(num_inference_steps=6, seed=6), who)
    assert not np.allclose(one[0], elsewhere[0], rtol=1e-4)


def test_staged_asks_each_evaluation_once_and_answers_as_all_its_pairs_would(
    pictures: list[str], sd_folder: str
) -> None:
    who = identities(6)
    never = StagesConfig(samples=(2, 12), keep=(6, 1), p=0)
    whole = asked(pictures, sd_folder, question(method="staged", stages=never), who)
    assert all(np.isfinite(losses).all() for losses in whole)
    # Losses of a model that learnt nothing differ little: of who is far behind it may be known all the same.
    some = asked(pictures, sd_folder, question(method="staged", stages=replace(never, p=0.01)), who)
    for losses, all_of_them in zip(some, whole, strict=True):
        spent = np.isfinite(losses)
        assert losses[spent] == pytest.approx(all_of_them[spent], rel=1e-4)
        assert decide(losses).best == decide(all_of_them).best
        assert decide(losses).evaluations == spent.sum() <= losses.size


@pytest.mark.parametrize("method", ["full", "staged"])
def test_only_the_chosen_are_asked_and_answer_as_among_themselves(
    pictures: list[str], sd_folder: str, method: Any
) -> None:
    who = identities(5)
    config = question(method=method, num_inference_steps=6, stages=StagesConfig((2, 6), (3, 1)))
    chosen = [[1, 3], [0, 1, 4], [2, 3]]
    missing = np.empty(3, object)
    missing[:] = [np.array(some) for some in chosen]
    together = DiffusionIdentifier(sd_folder, CONFIG, config, who)(
        {"image": np.array(pictures, object), "missing": missing}
    )["losses"]
    for uri, some, losses in zip(pictures, chosen, together, strict=True):
        assert np.isnan(np.delete(losses, some, axis=0)).all()
        (alone,) = asked([uri], sd_folder, config, [who[number] for number in some])
        assert losses[some] == pytest.approx(alone, rel=1e-4, nan_ok=True)
        assert decide(losses[some]).best == decide(alone).best


@pytest.fixture(scope="module")
def loras(sd_folder: str, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Files of LoRAs as diffusers saves them; the last has another rank."""
    folder = tmp_path_factory.mktemp("loras")
    return [
        tiny_models.lora(sd_folder, folder, f"{number}.safetensors", rank, number)
        for number, rank in enumerate((2, 2, 3))
    ]


@pytest.mark.slow
def test_loras_take_turns_in_a_unet_that_is_loaded_once(
    loras: list[str], pictures: list[str], sd_folder: str, tmp_path: Path
) -> None:
    shutil.copytree(sd_folder, tmp_path / "sd")
    config = question()
    same = conditions(1)[0]
    who = [Identity(f"Ann_{n}", same, lora) for n, lora in enumerate([*loras, "", *loras])]
    actor = DiffusionIdentifier(str(tmp_path / "sd"), CONFIG, config, who)
    shutil.rmtree(tmp_path / "sd")
    missing = np.empty(1, object)
    missing[:] = [np.arange(len(who))]
    batch = {"image": np.array(pictures[:1], object), "missing": missing}
    (losses,) = actor(batch)["losses"]
    size = sum(parameter.numel() for parameter in actor._model.unet.parameters())
    (again,) = actor(batch)["losses"]
    assert np.array_equal(losses, again)
    assert np.array_equal(losses[:3], losses[4:])
    # Each as if it were alone in a UNet.
    for number, lora in enumerate(loras):
        alone = load_diffusion(sd_folder, CONFIG)
        alone.unet.load_lora_adapter(load_file(lora), prefix="unet")
        pixels = crop(read_image(pictures[0]), 16, 16)
        assert losses[number] == pytest.approx(np.array(by_hand(alone, pixels, same, 5)), rel=2e-4)
    assert losses[3] == pytest.approx(asked(pictures[:1], sd_folder, config, [Identity("Ann_0", same)])[0][0])
    assert len(np.unique(losses[:4, 0])) == 4
    # Two places for three LoRAs, since one has another rank.
    bare = sum(parameter.numel() for parameter in load_diffusion(sd_folder, CONFIG).unet.parameters())
    numbers = [sum(one.numel() for one in load_file(lora).values()) for lora in loras]
    assert size - bare == numbers[0] + numbers[2]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_of_a_call_may_have_loras_of_their_own(
    loras: list[str], pictures: list[str], sd_folder: str, dtype: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    who = [replace(one, lora=lora) for one, lora in zip(identities(4), [*loras, ""], strict=True)]
    missing = np.empty(3, object)
    missing[:] = [np.arange(4)] * 3
    batch = {"image": np.array(pictures, object), "missing": missing}
    actor = DiffusionIdentifier(sd_folder, replace(CONFIG, dtype=dtype), question(num_inference_steps=1), who)
    sizes: list[int] = []

    def counting(model: StableDiffusion, *about: Any) -> torch.Tensor:
        sizes.append(len(about[3]))
        return noise_losses(model, *about)

    monkeypatch.setattr("actors.movie_characters.diffusion_classifier.noise_losses", counting)
    alone = np.stack(list(actor(batch)["losses"]))
    actor._unets.mixed = True
    together = np.stack(list(actor(batch)["losses"]))
    again = np.stack(list(actor(batch)["losses"]))
    # The base; LoRAs one by one; the first two of the same shape in one call.
    assert sizes == [3, 3, 3, 3] + 2 * [3, 6, 3]
    assert together == pytest.approx(alone, rel=1e-5 if dtype == "float32" else 0.01)
    assert np.array_equal(together, again)
    actor._unets.mixed = False
    assert np.array_equal(np.stack(list(actor(batch)["losses"])), alone)


def test_the_loss_of_a_class_is_the_mean_over_its_identities_each_with_its_own_unet(
    loras: list[str], pictures: list[str], sd_folder: str
) -> None:
    ann, eve, bob = (replace(one, lora=lora) for one, lora in zip(identities(3), loras, strict=True))
    config = question(num_inference_steps=6)
    means = [replace(ann, name="Ann", members=(ann, eve)), replace(bob, name="Bob", members=(bob,))]
    for found, alone in zip(
        asked(pictures, sd_folder, config, means), asked(pictures, sd_folder, config, [ann, eve, bob]), strict=True
    ):
        assert found == pytest.approx(np.stack([alone[:2].mean(0), alone[2]]), rel=1e-4)


def test_a_picture_that_cannot_be_read_is_a_row_with_a_code(
    pictures: list[str], sd_folder: str, tmp_path: Path
) -> None:
    (tmp_path / "torn.png").write_bytes(Path(pictures[0]).read_bytes()[:60])
    uris = [str(tmp_path / "torn.png"), pictures[0], str(tmp_path / "none.png")]
    missing = np.empty(3, object)
    missing[:] = [np.arange(2)] * 3
    actor = DiffusionIdentifier(sd_folder, CONFIG, question(num_inference_steps=2), identities(2))
    out = actor({"image": np.array(uris, object), "missing": missing})
    assert out["error"].tolist() == ["broken_image", "", "not_found"]
    assert [losses.shape for losses in out["losses"]] == [(2, 0), (2, 2), (2, 0)]
    assert "none.png" in out["message"][2]


@pytest.mark.parametrize(
    ("loss", "formula"),
    [
        ("l2", lambda d: d**2),
        ("l1", np.abs),
        ("huber", lambda d: np.where(np.abs(d) < 1, d**2 / 2, np.abs(d) - 0.5)),
    ],
)
def test_losses_and_weights_follow_their_formulas(
    model: StableDiffusion, loss: losses_module.Loss, formula: Callable[[np.ndarray], np.ndarray]
) -> None:
    latents = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(1))
    told = torch.from_numpy(conditions(1))
    plain = full_bank(model.scheduler, 4, (4, 8, 8), 0)
    rows = torch.tensor([[0, 0, pair] for pair in range(4)])
    with torch.no_grad():
        noisy = [model.scheduler.add_noise(latents, plain.noise, t[None]) for t in plain.timesteps]
        found = [model.unet(z, t, told).sample.numpy() for z, t in zip(noisy, plain.timesteps, strict=True)]
    expected = np.array([formula(one - plain.noise.numpy()).mean() for one in found])
    assert noise_losses(model, latents, told, plain, rows, loss, 3).numpy() == pytest.approx(expected, rel=1e-4)
    t = np.array([750, 500, 250, 0])
    signal = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)[t]
    expected_weights: dict[losses_module.Weighting, np.ndarray] = {
        "exp": np.exp(-7 * t / 1000),
        "snr": signal / (1 - signal),
    }
    for weighting, weights in expected_weights.items():
        bank = full_bank(model.scheduler, 4, (4, 8, 8), 0, weighting)
        weighed = noise_losses(model, latents, told, bank, rows, loss, 3).numpy()
        assert weighed == pytest.approx(expected * weights / weights.mean(), rel=1e-3)


def test_a_model_that_predicts_v_gives_the_noise_of_it(tmp_path: Path) -> None:
    model = load_diffusion(tiny_models.stable_diffusion(tmp_path, predicts="v_prediction"), CONFIG)
    z, noise = torch.randn((2, 1, 4, 8, 8), generator=torch.Generator().manual_seed(1))
    t = torch.tensor([400])
    noisy = model.scheduler.add_noise(z, noise, t)

    class Perfect(torch.nn.Module):
        def forward(self, *_: object, **__: object) -> tuple[torch.Tensor]:
            return (model.scheduler.get_velocity(z, noise, t),)

    perfect = replace(model, unet=Perfect())
    assert torch.allclose(losses_module.predict(perfect, noisy, t, torch.zeros(1, 77, 16)), noise, atol=1e-5)


def test_every_beginning_of_a_staged_bank_is_spread_over_the_timesteps() -> None:
    scheduler = noise_schedule()
    bank = staged_bank(scheduler, 100, 50, (4, 8, 8), 0)
    assert len(bank) == 100 and bank.noise.shape == (100, 4, 8, 8)
    times = bank.timesteps.numpy()
    assert sorted(times[:50]) == sorted(evenly_spaced(scheduler, 50)) and np.array_equal(times[:50], times[50:])
    for count in (4, 8, 16):
        spread = np.sort(times[:count])
        assert np.diff(spread, prepend=-1, append=1000).max() <= 2.6 * 1000 / count
        assert abs(spread.mean() - 490) < 110
    assert not torch.equal(bank.noise[0], bank.noise[1])
    longer = staged_bank(scheduler, 120, 50, (4, 8, 8), 0)
    assert torch.equal(longer.timesteps[:100], bank.timesteps)


def test_latents_are_the_scaled_mean_of_the_posterior(model: StableDiffusion) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 32, 3), np.uint8)
    latents = encode_pictures(model, pixels)
    assert latents.shape[1:] == latent_shape(model.vae, 16, 32) == (4, 8, 16)
    with torch.no_grad():
        both = model.vae.encode(torch.tensor(pixels / 127.5 - 1, dtype=torch.float32).permute(0, 3, 1, 2))
    assert torch.allclose(latents, both.latent_dist.mode() * 0.18215, atol=1e-5)


def test_a_gpu_encodes_pictures_in_calls_of_a_bounded_number(
    model: StableDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (11, 16, 16, 3), np.uint8)
    one_by_one = encode_pictures(model, pixels)
    sizes: list[int] = []

    class Counted:
        config = model.vae.config

        def encode(self, scaled: torch.Tensor) -> Any:
            sizes.append(len(scaled))
            return model.vae.encode(scaled)

    monkeypatch.setattr("actors.movie_characters.diffusion.moved", lambda tensor, _: tensor)
    batched = encode_pictures(replace(model, vae=Counted(), device="cuda"), pixels)
    assert sizes == [8, 3] and torch.allclose(batched, one_by_one, atol=1e-5)


def test_a_picture_is_scaled_to_cover_and_cut_in_the_middle() -> None:
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 255
    assert (crop(Image.fromarray(wide), 8, 8) > 200).mean() > 0.9
    assert crop(Image.fromarray(wide), 8, 8, (0, 0)).max() < 50
    assert crop(Image.fromarray(wide.transpose(1, 0, 2).copy()), 16, 8).shape == (16, 8, 3)


def test_prompts_differ_and_are_cut_at_what_the_encoder_reads(sd_folder: str) -> None:
    texts = load_texts(sd_folder, None)
    ann, anna = embed_prompt(texts, "ann"), embed_prompt(texts, "anna")
    assert ann.shape == (1, 77, 16) and not torch.allclose(ann, anna)
    assert embed_prompt(texts, "a" * 500).shape == (1, 77, 16)
    # Another repository may hold the text encoder alone.
    alone = load_texts("nothing", f"{sd_folder}")
    assert torch.equal(embed_prompt(alone, "ann"), ann)


def test_a_model_that_cannot_be_had_is_told(sd_folder: str, tmp_path: Path) -> None:
    check_diffusion(sd_folder, "sd_model_name")
    with pytest.raises(ValueError, match=r"sd_model_name=.* has no model_index.json; give a folder"):
        check_diffusion(str(tmp_path), "sd_model_name")
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(ValueError, match=r"sd_model_name=.*: its unet cannot be loaded by diffusers"):
        load_diffusion(str(tmp_path), CONFIG)
    with pytest.raises(ValueError, match="multiples of 8"):
        QuestionConfig(height=500)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch compiles with g++")
def test_a_compiled_unet_has_the_same_losses(pictures: list[str], sd_folder: str, loras: list[str]) -> None:
    who = [replace(one, lora=lora) for one, lora in zip(identities(4), ["", "", *loras[:2]], strict=True)]
    missing = np.empty(1, object)
    missing[:] = [np.arange(4)]
    batch = {"image": np.array(pictures[:1], object), "missing": missing}
    plain, compiled = (
        DiffusionIdentifier(sd_folder, replace(CONFIG, compile=yes), question(num_inference_steps=4), who)(batch)
        for yes in (False, True)
    )
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert compiled["losses"][0] == pytest.approx(plain["losses"][0], rel=1e-3)


def test_a_machine_without_a_compiler_says_what_to_do(sd_folder: str) -> None:
    from torch._inductor import config

    with (
        config.patch({"cpp.cxx": ("no-such-compiler",)}),
        pytest.raises(ValueError, match=r"install g\+\+, name another"),
    ):
        load_diffusion(sd_folder, replace(CONFIG, compile=True))


def test_bfloat16_losses_are_near_those_of_float32(
    loras: list[str], pictures: list[str], sd_folder: str, tmp_path: Path
) -> None:
    unet = load_diffusion(sd_folder, CONFIG).unet
    with torch.no_grad():
        unet.conv_out.weight.mul_(3)
    unet.save_pretrained(tmp_path / "unet")
    one, *others = identities(5)
    who = [one, *(replace(other, lora=lora) for other, lora in zip(others, loras, strict=False))]
    who += [replace(others[3], unet=str(tmp_path / "unet"))]
    who += [Identity("Ann", one.condition, members=tuple(who[1:]))]
    config = question(num_inference_steps=4)
    missing = np.empty(1, object)
    missing[:] = [np.arange(len(who))]
    batch = {"image": np.array(pictures[:1], object), "missing": missing}
    half = DiffusionIdentifier(sd_folder, replace(CONFIG, dtype="bfloat16"), config, who)(batch)["losses"][0]
    whole = asked(pictures[:1], sd_folder, config, who)[0]
    assert half == pytest.approx(whole, rel=0.02) and half.dtype == np.float32
    assert not np.allclose(whole[0], whole[4], rtol=0.1)


def test_a_text_encoder_is_loaded_in_float32_or_as_it_is_asked_for_however_it_was_saved(
    sd_folder: str, tmp_path: Path
) -> None:
    texts: Any = load_texts(sd_folder, None)
    texts.encoder.half().save_pretrained(tmp_path / "text_encoder")
    texts.tokenizer.save_pretrained(tmp_path / "tokenizer")
    half: Any = load_texts(sd_folder, str(tmp_path))
    assert half.encoder.dtype == torch.float32
    exact = embed_prompt(load_texts(sd_folder, None), "ann").numpy()
    assert embed_prompt(half, "ann").numpy() == pytest.approx(exact, abs=0.02)
    # As beside a network on a GPU; a condition is in float32 still.
    rounded: Any = load_texts(sd_folder, None, dtype=torch.bfloat16)
    found = embed_prompt(rounded, "ann")
    assert (rounded.encoder.dtype, found.dtype) == (torch.bfloat16, torch.float32)
    assert found.numpy() == pytest.approx(exact, abs=0.05)


def test_nothing_waits_for_losses_before_they_are_all_there(
    loras: list[str], model: StableDiffusion, sd_folder: str
) -> None:
    bank = staged_bank(model.scheduler, 4, 4, (4, 8, 8), 0)
    latents, told = torch.randn((2, 4, 8, 8)), torch.from_numpy(conditions(2))
    rows = torch.tensor([[n, k, p] for n in range(2) for k in range(2) for p in range(4)])
    unet = load_diffusion(sd_folder, CONFIG).unet
    swapped = Loras(unet)
    for one in loras[:2]:
        swapped.use([one])
    with Waits() as waits:
        for some in (loras[1:2], loras[:1], loras[:2]):
            swapped.use(some)
            noise_losses(replace(model, unet=unet), latents, told, bank, rows, "l2", 2)
        swapped.leave()
    assert not waits.found
    with Waits() as waits:
        float(latents.sum())
    assert waits.found

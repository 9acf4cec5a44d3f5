"""StableDiffusionXL, StableDiffusion3 and Flux: predictions, losses and LoRAs against diffusers' own pipelines."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from actors.core.errors import UserError
from actors.media.images import read_image
from actors.movie_characters.diffusion import DiffusionConfig, crop, embed_prompt, load_diffusion, load_texts
from actors.movie_characters.diffusion_classifier import DiffusionIdentifier
from actors.movie_characters.drawer import Drawer, GenerateConfig
from actors.movie_characters.identities import LORA, find_learnt
from actors.movie_characters.noise_losses import predict
from actors.movie_characters.personalise_settings import DONE, PersonaliseConfig
from actors.movie_characters.personaliser import Personaliser
from pipelines.movie_characters.generate import plan_generate
from pipelines.movie_characters.identify_diffusion import IdentifyConfig, check_identify, conditions
from pipelines.movie_characters.personalise import plan_personalise
from tests.support import tiny_models

MODELS: dict[str, Callable[..., str]] = {
    "xl": tiny_models.stable_diffusion_xl,
    "sd3": tiny_models.stable_diffusion_3,
    "flux": tiny_models.flux,
}
PROMPT = "a photo of Ann"
SHIFT = {"sd3": 3.0, "flux": 1.0}
"""Of the noise in training: that of Flux depends on the size of the picture only when it draws."""


@dataclass(frozen=True)
class Known:
    """A model, and what was trained on it."""

    kind: str
    folder: str
    ids: str
    config: PersonaliseConfig

    def pipeline(self, lora: str = "") -> Any:
        """The pipeline as diffusers loads it, with an identity's LoRA."""
        # It was saved without T5.
        without: Any = {"text_encoder_3": None, "tokenizer_3": None} if self.kind == "sd3" else {}
        found: Any = DiffusionPipeline.from_pretrained(self.folder, **without)
        if lora:
            found.load_lora_weights(f"{self.ids}/{lora}", weight_name=LORA)
        found.set_progress_bar_config(disable=True)
        return found

    def network(self, pipeline: Any) -> nn.Module:
        return pipeline.unet if self.kind == "xl" else pipeline.transformer

    def prompt(self, pipeline: Any) -> dict[str, Tensor]:
        """The embedded prompt, as the pipeline takes it."""
        with torch.inference_mode():
            found = pipeline.encode_prompt(*([PROMPT] if self.kind != "sd3" else [PROMPT, None, None]))
        pooled = found[1] if self.kind == "flux" else found[2]
        return {"prompt_embeds": found[0].clone(), "pooled_prompt_embeds": pooled.clone()}

    def told(self, pipeline: Any, noisy: Tensor, t: Tensor, sizes: list[int]) -> Tensor:
        """What the network predicts for noisy latents, called as diffusers' training scripts call it."""
        texts = self.prompt(pipeline)
        tokens, pooled = (one.expand(len(noisy), *one.shape[1:]) for one in texts.values())
        if self.kind == "xl":
            added = {"text_embeds": pooled, "time_ids": torch.tensor([sizes] * len(noisy), dtype=torch.float32)}
            return pipeline.unet(noisy, t, tokens, added_cond_kwargs=added).sample
        if self.kind == "sd3":
            return pipeline.transformer(noisy, tokens, pooled, self.sigma(t) * 1000).sample
        height, width = noisy.shape[2:]
        found = pipeline.transformer(
            pipeline._pack_latents(noisy, len(noisy), noisy.shape[1], height, width),
            encoder_hidden_states=tokens,
            pooled_projections=pooled,
            timestep=self.sigma(t),
            img_ids=pipeline._prepare_latent_image_ids(1, height // 2, width // 2, "cpu", torch.float32),
            txt_ids=torch.zeros(tokens.shape[1], 3),
            guidance=torch.full((len(noisy),), 3.5),
        ).sample
        return pipeline._unpack_latents(found, height * 2, width * 2, 2)

    def sigma(self, t: Tensor) -> Tensor:
        share, shift = (t + 1) / 1000, SHIFT[self.kind]
        return shift * share / (1 + (shift - 1) * share)

    def loss(self, pipeline: Any, z: Tensor, noise: Tensor, t: Tensor, sizes: list[int]) -> Tensor:
        """The loss by the formula of the kind."""
        if self.kind == "xl":
            noisy = pipeline.scheduler.add_noise(z, noise, t)
            return mse_loss(self.told(pipeline, noisy, t, sizes), noise)
        sigma = self.sigma(t)[:, None, None, None]
        return mse_loss(self.told(pipeline, (1 - sigma) * z + sigma * noise, t, sizes), noise - z)


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faces")
    random = np.random.default_rng(0)
    for name in ("Ann_1", "Bob_1"):
        Image.fromarray(random.integers(0, 256, (18, 24, 3), np.uint8)).save(folder / f"{name}.png")
    return folder


@pytest.fixture(scope="module", params=list(MODELS))
def known(request: pytest.FixtureRequest, faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Known:
    folder = MODELS[request.param](tmp_path_factory.mktemp(request.param))
    ids = str(tmp_path_factory.mktemp("ids"))
    config = PersonaliseConfig(
        input=str(faces),
        output=ids,
        pretrained_model_name_or_path=folder,
        resolution=16,
        train_batch_size=2,
        emb_train_steps=2,
        max_train_steps=12,
        emb_learning_rate=0.05,
        lora_learning_rate=0.02,
        log_interval=4,
    )
    todo = plan_personalise(config).todo
    assert Personaliser(config, todo)({"number": np.arange(2)})["error"].tolist() == ["", ""]
    return Known(request.param, folder, ids, config)


def latent(pipeline: Any, pixels: np.ndarray) -> Tensor:
    """The mean latent of a picture, as the pipeline's VAE has it."""
    with torch.no_grad():
        scaled = torch.tensor(pixels.transpose(2, 0, 1)[None] / 127.5 - 1, dtype=torch.float32)
        mean = pipeline.vae.encode(scaled).latent_dist.mean
    return (mean - (pipeline.vae.config.shift_factor or 0)) * pipeline.vae.config.scaling_factor


@pytest.mark.slow
def test_the_network_is_called_as_the_pipeline_of_diffusers_calls_it(known: Known) -> None:
    pipeline = known.pipeline()
    model = load_diffusion(known.folder, DiffusionConfig())
    condition = embed_prompt(load_texts(known.folder, None), PROMPT)
    calls: list[tuple[Any, ...]] = []
    hook = known.network(pipeline).register_forward_hook(
        lambda module, args, kwargs, output: calls.append((args, kwargs, output)), with_kwargs=True
    )
    guided = 3.5 if known.kind == "flux" else 1.0
    pipeline(PROMPT, height=16, width=32, num_inference_steps=1, guidance_scale=guided, output_type="latent")
    hook.remove()
    ((args, kwargs, output),) = calls
    noisy, told = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0], output[0]
    if known.kind == "flux":
        noisy, told = (pipeline._unpack_latents(one, 16, 32, 2) for one in (noisy, told))
    # A flow begins with noise alone.
    t = args[1].view(1).long() if known.kind == "xl" else torch.tensor([999])
    with torch.inference_mode():
        assert torch.allclose(predict(model, noisy, t, condition), told, atol=1e-5)
        other = predict(model, noisy, t, torch.cat([condition[:, :-1], condition[:, -1:] + 1], 1))
    # The pooled text counts, too.
    assert not torch.allclose(other, told, atol=1e-3)


def test_the_first_losses_of_a_training_are_those_of_the_formula(known: Known, faces: Path, tmp_path: Path) -> None:
    config = replace(known.config, input=str(faces / "Ann_1.png"), output=str(tmp_path), emb_train_steps=1, seed=5)
    config = replace(config, max_train_steps=0, log_interval=1, center_crop=True)
    todo = plan_personalise(config).todo
    assert Personaliser(config, todo)({"number": np.arange(1)})["error"].tolist() == [""]
    ((_, found),) = json.loads((tmp_path / "Ann_1" / DONE).read_text())["losses"]["embedding"]
    pipeline = known.pipeline()
    z = latent(pipeline, crop(read_image(str(faces / "Ann_1.png")), 16, 16))
    state = int(np.random.SeedSequence([5, 0, 0, 0]).generate_state(1)[0])
    generator = torch.Generator().manual_seed(state)
    torch.randint(1, (2,), generator=generator)
    if known.kind == "xl":
        t = torch.randint(1000, (2,), generator=generator)
    else:
        t = (torch.sigmoid(torch.randn(2, generator=generator)) * 1000).long()
    noise = torch.randn((2, *z.shape[1:]), generator=generator)
    # 18 x 24 is scaled to 16 x 21, and 16 x 16 are cut from its third column on.
    with torch.no_grad():
        expected = known.loss(pipeline, z.expand(2, -1, -1, -1), noise, t, [18, 24, 0, 2, 16, 16])
    assert found == pytest.approx(float(expected), rel=1e-4)


def test_a_lora_is_small_and_learns_the_picture(known: Known) -> None:
    about = json.loads(Path(known.ids, "Ann_1", DONE).read_text())
    assert about["base"]["model"] == known.folder and about["base"]["pipeline"] == type(known.pipeline()).__name__
    assert Path(known.ids, "Ann_1", LORA).stat().st_size < 100_000
    one, other = (find_learnt(known.ids, "x")[number] for number in range(2))
    assert one.optimized.shape == other.optimized.shape and not np.allclose(one.optimized, other.optimized)
    assert one.target is not None and not np.allclose(one.target[-1], one.optimized[-1])


def test_losses_of_identities_are_those_of_the_pipeline_with_their_loras(known: Known, faces: Path) -> None:
    config = IdentifyConfig(
        imagic_pretrained_path=known.ids,
        input=str(faces),
        output="unused",
        sd_model_name=known.folder,
        imagic_pipe=True,
        method="full",
        num_inference_steps=3,
        resolution=16,
        alpha=1.0,
        seed=7,
    )
    who, _ = conditions(config, check_identify(config))
    # With the prompt of Ann for both, they differ by their LoRAs alone.
    who = [who[0], replace(who[1], condition=who[0].condition)]
    actor = DiffusionIdentifier(known.folder, DiffusionConfig(), config.question(), who)
    missing = np.empty(1, object)
    missing[:] = [np.arange(2)]
    batch = {"image": np.array([str(faces / "Ann_1.png")], object), "missing": missing}
    (found,) = actor(batch)["losses"]
    for row, name in enumerate(("Ann_1", "Bob_1")):
        pipeline = known.pipeline(name)
        z = latent(pipeline, crop(read_image(str(faces / "Ann_1.png")), 16, 16))
        noise = torch.randn((1, *z.shape[1:]), generator=torch.Generator().manual_seed(7))
        with torch.no_grad():
            expected = [
                float(known.loss(pipeline, z, noise, torch.tensor([t]), [16, 16, 0, 0, 16, 16])) for t in (666, 333, 0)
            ]
        assert found[row] == pytest.approx(np.array(expected), rel=1e-3)
    assert not np.allclose(found[0], found[1], rtol=1e-3)
    # On a GPU each row of a call has the LoRA of its own.
    actor._unets.mixed = True
    assert actor._unets.shared(0) == actor._unets.shared(1)
    assert actor(batch)["losses"][0] == pytest.approx(found, rel=1e-4)


def test_images_are_those_of_the_pipeline_with_the_lora(known: Known, tmp_path: Path) -> None:
    config = GenerateConfig(
        imagic_pretrained_path=known.ids,
        output=str(tmp_path),
        input="Ann_1",
        imagic_pipe=True,
        sd_model_name=known.folder,
        alpha_range=(1.0,),
        guidance_scale_range=(3.5,),
        height=16,
        width=32,
        num_inference_steps=2,
    )
    plan = plan_generate(config)
    actor = Drawer(config, plan.identities, plan.todo)
    assert actor({"number": np.arange(1)})["error"].tolist() == [""]
    (file,) = tmp_path.glob("*.png")
    pipeline = known.pipeline("Ann_1")
    noise = torch.randn((1, 4, 8, 16), generator=torch.Generator().manual_seed(0))
    if known.kind == "flux":
        noise = pipeline._pack_latents(noise, 1, 4, 8, 16)
    if known.kind == "xl":
        pipeline.scheduler = DDIMScheduler.from_config(actor._model.scheduler.config, steps_offset=1)
    drawn = pipeline(PROMPT, height=16, width=32, num_inference_steps=2, guidance_scale=3.5, latents=noise).images[0]
    difference = np.abs(np.asarray(Image.open(file), int) - np.asarray(drawn, int))
    assert difference.max() <= 1


def test_identities_are_refused_with_another_base(known: Known, faces: Path, tmp_path: Path) -> None:
    config = IdentifyConfig(
        imagic_pretrained_path=known.ids, input=str(faces), output="unused", sd_model_name=known.folder, resolution=16
    )
    who, _ = conditions(config, check_identify(config))
    about: Any = DiffusionConfig(), config.question(), who
    # In half precision, and in another place, it is the same.
    half = known.pipeline().to(torch.bfloat16)
    half.save_pretrained(tmp_path / "half")
    DiffusionIdentifier(str(tmp_path / "half"), *about)
    other = MODELS[known.kind](tmp_path / "other", seed=1)
    with pytest.raises(UserError, match=rf"Ann_1 was trained on {known.folder}, a \w+, and .*has other weights"):
        DiffusionIdentifier(other, *about)
    drawing = GenerateConfig(imagic_pretrained_path=known.ids, output=str(tmp_path), sd_model_name=other)
    with pytest.raises(UserError, match=r"has other weights. Set sd_model_name"):
        Drawer(drawing, find_learnt(known.ids, "x"), [])


def test_a_base_of_another_kind_is_refused_before_it_is_loaded(known: Known, faces: Path, sd_folder: str) -> None:
    given: Any = {"imagic_pretrained_path": known.ids, "sd_model_name": sd_folder, "output": "unused"}
    told = "is a StableDiffusionPipeline. Set sd_model_name"
    with pytest.raises(UserError, match=told):
        check_identify(IdentifyConfig(**given, input=str(faces)))
    with pytest.raises(UserError, match=told):
        plan_generate(GenerateConfig(**given))


def test_what_a_kind_cannot_do_is_told_before(known: Known, faces: Path, sd_folder: str) -> None:
    for method in ("imagic", "textual_inversion"):
        with pytest.raises(UserError, match=f"method={method} is for a StableDiffusionPipeline"):
            plan_personalise(replace(known.config, method=method))
    given: Any = {"imagic_pretrained_path": known.ids, "sd_model_name": known.folder, "output": "unused"}
    with pytest.raises(UserError, match="clip_model_name is for a StableDiffusionPipeline"):
        plan_generate(GenerateConfig(**given, clip_model_name=sd_folder))
    if known.kind != "xl":
        with pytest.raises(UserError, match=r"resolution=24.* multiples of 16"):
            plan_personalise(replace(known.config, resolution=24))
        with pytest.raises(UserError, match=r"height=24.* multiples of 16"):
            check_identify(IdentifyConfig(**given, input=str(faces), height=24))


def test_a_pipeline_of_another_architecture_is_refused(tmp_path: Path, faces: Path) -> None:
    index = {"_class_name": "PixArtAlphaPipeline", "transformer": ["diffusers", "PixArtTransformer2DModel"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    config = PersonaliseConfig(input=str(faces), output="x", pretrained_model_name_or_path=str(tmp_path))
    with pytest.raises(UserError, match=r"is a PixArtAlphaPipeline. Give a model of one of: StableDiffusionPipeline"):
        plan_personalise(config)

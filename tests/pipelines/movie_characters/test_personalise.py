"""What is learnt, against a loop by hand; what a kill changes: nothing; what diffusers makes of the files."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from actors.media.images import read_image
from actors.movie_characters import personalise_steps as module
from actors.movie_characters.diffusion import crop, embed_prompt, encode_pictures, load_texts, noise_schedule
from actors.movie_characters.identities import LORA, OPTIMIZED, TARGET, find_learnt
from actors.movie_characters.personalise_settings import DONE, PersonaliseConfig
from actors.movie_characters.personaliser import Personaliser
from pipelines.movie_characters.personalise import check_repository, personalise, plan_personalise
from tests.support import hub
from tests.support.waits import Waits

HALF = {"bf16": "bfloat16", "fp16": "float16"}


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faces")
    random = np.random.default_rng(0)
    for name in ("Ann_1", "Ann_2", "Anna_1"):
        Image.fromarray(random.integers(0, 256, (18, 24, 3), np.uint8)).save(folder / f"{name}.png")
    return folder


@pytest.fixture
def config(faces: Path, sd_folder: str, tmp_path: Path) -> PersonaliseConfig:
    return PersonaliseConfig(
        input=str(faces),
        output=str(tmp_path / "out"),
        pretrained_model_name_or_path=sd_folder,
        resolution=16,
        center_crop=True,
        train_batch_size=2,
        emb_train_steps=4,
        max_train_steps=4,
        emb_learning_rate=0.05,
        learning_rate=1e-3,
        lora_learning_rate=0.01,
        log_interval=2,
        seed=3,
    )


def learn(config: PersonaliseConfig) -> list[str]:
    """Learn what the plan lacks; returns the error codes."""
    todo = plan_personalise(config).todo
    return Personaliser(config, todo)({"number": np.arange(len(todo))})["error"].tolist()


def learnt(config: PersonaliseConfig, name: str) -> dict[str, np.ndarray]:
    """All tensors of an identity's folder."""
    files = sorted(Path(config.output, name).rglob("*.safetensors"))
    return {f"{file.stem}.{key}": tensor for file in files for key, tensor in load_file(file).items()}


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)


def test_the_embedding_is_that_of_adam_by_hand(config: PersonaliseConfig, faces: Path, sd_folder: str) -> None:
    config = replace(config, input=str(faces / "Anna_1.png"), max_train_steps=0, gradient_accumulation_steps=2)
    assert learn(config) == [""]
    model = Personaliser(config, [])._model
    pixels = crop(read_image(str(faces / "Anna_1.png")), 16, 16)[None]
    z = encode_pictures(model, pixels).clone()
    start = embed_prompt(load_texts(sd_folder, None), "a photo of Anna").clone()
    found = start.clone().requires_grad_()
    adam = torch.optim.Adam([found], 0.05)
    for step in range(4):
        adam.zero_grad()
        for piece in range(2):
            state = int(np.random.SeedSequence([3, 0, step, piece]).generate_state(1)[0])
            generator = torch.Generator().manual_seed(state)
            torch.randint(1, (2,), generator=generator)
            t = torch.randint(1000, (2,), generator=generator)
            noise = torch.randn((2, *z.shape[1:]), generator=generator)
            noisy = noise_schedule().add_noise(z.expand(2, -1, -1, -1), noise, t)
            told = model.unet(noisy, t, found.expand(2, -1, -1)).sample
            (functional.mse_loss(told, noise) / 2).backward()
        torch.nn.utils.clip_grad_norm_([found], 1.0)
        adam.step()
    stored = learnt(config, "Anna_1")
    assert stored[f"{TARGET}.{TARGET}"] == pytest.approx(start.numpy(), abs=1e-6)
    assert stored[f"{OPTIMIZED}.{OPTIMIZED}"] == pytest.approx(found.detach().numpy(), abs=1e-4)
    assert not torch.allclose(found, start, atol=0.01)


@pytest.mark.parametrize("scale", [False, True])
def test_the_unet_is_that_of_adamw_by_hand(config: PersonaliseConfig, faces: Path, scale: bool) -> None:
    adam: dict[str, Any] = {"adam_beta1": 0.7, "adam_beta2": 0.95, "adam_weight_decay": 3.0, "adam_epsilon": 1e-3}
    config = replace(config, input=str(faces / "Anna_1.png"), method="imagic", scale_lr=scale, **adam)
    config = replace(config, emb_train_steps=0, max_train_steps=3, learning_rate=2e-3, max_grad_norm=0.05)
    assert learn(config) == [""]
    actor = Personaliser(config, [])
    unet = actor._model.unet.requires_grad_(True)
    z = encode_pictures(actor._model, crop(read_image(str(faces / "Anna_1.png")), 16, 16)[None]).clone()
    told = embed_prompt(actor._texts, "a photo of Anna").clone()
    rate = 2e-3 * (2 if scale else 1)
    optimizer = torch.optim.AdamW(unet.parameters(), rate, (0.7, 0.95), 1e-3, 3.0)
    start = unet.conv_out.weight.detach().clone()
    for step in range(3):
        optimizer.zero_grad()
        state = int(np.random.SeedSequence([3, 1, step, 0]).generate_state(1)[0])
        generator = torch.Generator().manual_seed(state)
        torch.randint(1, (2,), generator=generator)
        t = torch.randint(1000, (2,), generator=generator)
        noise = torch.randn((2, *z.shape[1:]), generator=generator)
        noisy = noise_schedule().add_noise(z.expand(2, -1, -1, -1), noise, t)
        functional.mse_loss(unet(noisy, t, told.expand(2, -1, -1)).sample, noise).backward()
        assert torch.nn.utils.clip_grad_norm_(unet.parameters(), 0.05) > 0.05
        optimizer.step()
    stored = learnt(config, "Anna_1")
    for name in ("conv_out.weight", "mid_block.resnets.0.conv1.weight"):
        expected = unet.get_parameter(name).detach().numpy()
        assert stored[f"diffusion_pytorch_model.{name}"] == pytest.approx(expected, abs=1e-5)
    assert (unet.conv_out.weight - start).abs().max() > 1e-3
    # With the embedding fixed.
    assert stored[f"{OPTIMIZED}.{OPTIMIZED}"] == pytest.approx(told.numpy(), abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "imagic"])
def test_checkpointing_gradients_changes_nothing_but_memory(
    config: PersonaliseConfig, tmp_path: Path, method: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(config, method=method, input=str(Path(str(config.input)) / "Ann_1.png"))
    twice = replace(config, gradient_checkpointing=True, output=str(tmp_path / "twice"))
    assert learn(config) == [""]
    computed: list[object] = []

    def counting(*arguments: Any, **options: Any) -> Any:
        computed.append(arguments)
        return checkpoint(*arguments, **options)

    monkeypatch.setattr("torch.utils.checkpoint.checkpoint", counting)
    assert learn(twice) == [""]
    assert computed
    one, other = learnt(config, "Ann_1"), learnt(twice, "Ann_1")
    assert one.keys() == other.keys()
    for key in one:
        assert other[key] == pytest.approx(one[key], abs=1e-5)


def test_where_a_picture_is_cut_depends_on_the_seed_and_its_name_alone(config: PersonaliseConfig) -> None:
    config = replace(config, center_crop=False)
    tasks = plan_personalise(config).tasks
    actor, other = Personaliser(config, tasks), Personaliser(replace(config, seed=4), tasks)
    middle = Personaliser(replace(config, center_crop=True), tasks)

    def latents(of: Personaliser) -> list[torch.Tensor]:
        return [of._latents(task)[0] for task in tasks]

    def equal(one: list[torch.Tensor], again: list[torch.Tensor]) -> bool:
        return all(torch.equal(*pair) for pair in zip(one, again, strict=True))

    assert equal(latents(actor), [actor._latents(task)[0] for task in tasks[::-1]][::-1])
    assert not equal(latents(actor), latents(other)) and not equal(latents(actor), latents(middle))


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    [
        {"method": "lora"},
        {"method": "imagic"},
        {"method": "textual_inversion"},
        {"method": "lora", "mixed_precision": "bf16", "gradient_accumulation_steps": 2},
        {"method": "imagic", "mixed_precision": "bf16"},
        {"method": "lora", "use_8bit_adam": True, "lora_rank": 512},
    ],
)
def test_a_killed_run_ends_as_if_nothing_had_happened_and_identities_do_not_mix(
    config: PersonaliseConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: dict[str, Any]
) -> None:
    config = replace(config, **how, checkpoint_s=0, emb_train_steps=2, max_train_steps=3)
    config = replace(config, input=tuple(f"{config.input}/{name}.png" for name in ("Ann_1", "Anna_1")))
    whole, other = config, replace(config, output=str(tmp_path / "killed"))
    assert learn(whole) == ["", ""]

    class Killed(BaseException):
        pass

    save, lives = module.Steps._save, 0
    while True:
        saved = []

        def dying(*arguments: Any, saved: list[Any] = saved) -> None:
            save(*arguments)
            saved.append(arguments)
            if len(saved) == 2:
                raise Killed

        monkeypatch.setattr(module.Steps, "_save", dying)
        try:
            learn(other)
            break
        except Killed:
            lives += 1
    assert lives >= 2
    for name in ("Ann_1", "Anna_1"):
        assert same(learnt(whole, name), learnt(other, name))
    assert not list(Path(other.output, "checkpoints").rglob("*.safetensors"))
    assert plan_personalise(other).todo == []


def test_diffusers_reads_what_was_learnt(config: PersonaliseConfig, sd_folder: str, tmp_path: Path) -> None:
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

    lora = replace(config, input=str(Path(str(config.input)) / "Ann_1.png"))
    learn(lora)
    pipeline: Any = StableDiffusionPipeline.from_pretrained(sd_folder, safety_checker=None)
    pipeline.load_lora_weights(f"{lora.output}/Ann_1", weight_name=LORA)
    stored = load_file(f"{lora.output}/Ann_1/{LORA}")
    loaded = dict(pipeline.unet.named_parameters())
    first = next(key for key in stored if key.endswith("lora_B.weight") or key.endswith("lora.up.weight"))
    assert any(torch.equal(torch.from_numpy(stored[first]), parameter) for parameter in loaded.values())
    assert stored[first].any() and sum(tensor.nbytes for tensor in stored.values()) < 100_000

    imagic = replace(lora, method="imagic", output=str(tmp_path / "imagic"))
    learn(imagic)
    own: Any = StableDiffusionPipeline.from_pretrained(f"{imagic.output}/Ann_1", safety_checker=None)
    assert not torch.equal(own.unet.conv_in.weight, pipeline.unet.conv_in.weight)

    word = replace(lora, method="textual_inversion", output=str(tmp_path / "word"))
    learn(word)
    plain: Any = StableDiffusionPipeline.from_pretrained(sd_folder, safety_checker=None)
    plain.load_textual_inversion(f"{word.output}/Ann_1", weight_name="learned_embeds.safetensors")
    number = plain.tokenizer.convert_tokens_to_ids("<Ann>")
    vector = plain.text_encoder.get_input_embeddings().weight[number]
    assert vector.detach().numpy() == pytest.approx(learnt(word, "Ann_1")["learned_embeds.<Ann>"], abs=1e-6)
    # The embedding is what the encoder makes of the prompt with that word.
    ids = plain.tokenizer("a photo of <Ann>", padding="max_length", max_length=77, return_tensors="pt").input_ids
    with torch.no_grad():
        told = plain.text_encoder(ids)[0].numpy()
    assert learnt(word, "Ann_1")[f"{OPTIMIZED}.{OPTIMIZED}"] == pytest.approx(told, abs=1e-5)


@pytest.mark.slow
def test_steps_make_the_loss_smaller_and_all_options_work_together(config: PersonaliseConfig) -> None:
    config = replace(
        config,
        method="imagic",
        together=True,
        center_crop=False,
        emb_train_steps=2,
        max_train_steps=20,
        learning_rate=2e-3,
        gradient_checkpointing=True,
        scale_lr=True,
        log_interval=5,
    )
    plan = plan_personalise(config)
    assert [(task.name, len(task.pictures)) for task in plan.tasks] == [("Ann_0", 2), ("Anna_0", 1)]
    assert learn(config) == ["", ""]
    about = json.loads(Path(config.output, "Ann_0", DONE).read_text())
    assert [step for step, _ in about["losses"]["unet"]] == [5, 10, 15, 20]
    first, *_, last = (loss for _, loss in about["losses"]["unet"])
    assert last < 0.9 * first
    assert [one.name for one in find_learnt(config.output, "x")] == ["Ann_0", "Anna_0"]


@pytest.fixture(scope="module")
def in_float32() -> dict[str, PersonaliseConfig]:
    """By method, what was learnt in float32."""
    return {}


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("method", ["lora", "imagic", "textual_inversion"])
def test_half_precision_learns_nearly_the_same(
    config: PersonaliseConfig,
    in_float32: dict[str, PersonaliseConfig],
    tmp_path: Path,
    method: Any,
    precision: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if method not in in_float32:
        one = f"{config.input}/Ann_1.png"
        in_float32[method] = replace(config, method=method, gradient_accumulation_steps=2, input=one)
        assert learn(in_float32[method]) == [""]
    config = in_float32[method]
    half = replace(config, mixed_precision=precision, output=str(tmp_path / "half"))
    # As on a GPU: by itself a CPU does not compute fp16.
    monkeypatch.setattr(PersonaliseConfig, "precision", property(lambda given: given.mixed_precision))
    assert learn(half) == [""]
    one, other = (json.loads(Path(c.output, "Ann_1", DONE).read_text())["losses"] for c in (config, half))
    assert one.keys() == other.keys()
    for phase in one:
        assert np.array(other[phase]) == pytest.approx(np.array(one[phase]), rel=0.02)
    assert all(tensor.dtype == np.float32 for tensor in learnt(half, "Ann_1").values())
    if method == "imagic":
        # In float32 a step of 0.001 changes what half precision would round away.
        weights = learnt(half, "Ann_1")["diffusion_pytorch_model.mid_block.resnets.0.norm1.weight"]
        assert not np.array_equal(weights, torch.from_numpy(weights).to(getattr(torch, HALF[precision])).float())


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "imagic", "textual_inversion"])
def test_no_step_waits_for_the_device(config: PersonaliseConfig, method: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    one = str(Path(str(config.input)) / "Ann_1.png")
    config = replace(config, method=method, input=one, mixed_precision="fp16", gradient_accumulation_steps=2)
    monkeypatch.setattr(PersonaliseConfig, "precision", property(lambda given: given.mixed_precision))
    waits, steps, optimizer = Waits(), module.Steps.steps, module._optimizer

    def watched(*arguments: Any, **options: Any) -> None:
        with waits:
            steps(*arguments, **options)

    monkeypatch.setattr(module.Steps, "steps", watched)
    monkeypatch.setattr(module.Steps, "_save", lambda *_: None)
    monkeypatch.setattr(module, "_optimizer", lambda *about: cast(Any, optimizer)(*about[:4], "cuda"))
    assert learn(config) == [""] and waits.found == []
    # As on a CPU: Adam asks how many steps it has made.
    monkeypatch.setattr(module, "_optimizer", optimizer)
    assert learn(replace(config, seed=4)) == [""] and waits.found


def test_a_gpu_computes_in_bf16_and_an_output_of_before_continues_in_float32(
    config: PersonaliseConfig, caplog: pytest.LogCaptureFixture
) -> None:
    assert plan_personalise(config).tasks == plan_personalise(replace(config, mixed_precision="no")).tasks
    on_gpu = replace(config, diffusion=replace(config.diffusion, num_gpus=1))
    assert plan_personalise(on_gpu).config.precision == "bf16"
    assert plan_personalise(on_gpu).tasks == plan_personalise(replace(on_gpu, mixed_precision="bf16")).tasks
    before = plan_personalise(replace(on_gpu, mixed_precision="no")).tasks
    assert not caplog.text
    folder = Path(config.output, before[0].name)
    folder.mkdir(parents=True)
    (folder / DONE).write_text(json.dumps({"settings_digest": before[0].settings}))
    plan = plan_personalise(on_gpu)
    assert (plan.config.precision, plan.tasks, plan.todo) == ("no", before, before[1:])
    assert "was begun in float32 and continues in it" in caplog.text
    assert len(plan_personalise(replace(on_gpu, mixed_precision="bf16")).todo) == 3


def test_fp16_without_a_gpu_is_float32_and_says_so(
    config: PersonaliseConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = replace(config, input=str(Path(str(config.input)) / "Ann_1.png"), max_train_steps=1)
    asked = replace(config, mixed_precision="fp16")
    computed = replace(config, mixed_precision="no", output=str(tmp_path / "float32"))
    assert learn(asked) == learn(computed) == [""]
    assert "mixed_precision=fp16 needs a GPU: computing in float32" in caplog.text
    assert same(learnt(asked, "Ann_1"), learnt(computed, "Ann_1"))


def test_adam_in_8_bits_learns_nearly_the_same(
    config: PersonaliseConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.Steps, "forget", lambda run: None)
    # What has less than 4,096 numbers is held in 32 bits all the same.
    one = str(Path(str(config.input)) / "Ann_1.png")
    config = replace(config, input=one, lora_rank=512, max_train_steps=3, checkpoint_s=0)
    small = replace(config, use_8bit_adam=True, output=str(tmp_path / "small"))
    assert learn(config) == learn(small) == [""]
    states = [load_file(Path(c.output, "checkpoints", "Ann_1", "unet.safetensors")) for c in (config, small)]
    moments = [{k: v for k, v in state.items() if k.startswith("optimizer.")} for state in states]
    assert all(moment.dtype == np.float32 for moment in moments[0].values())
    assert sum(moment.dtype == np.uint8 for moment in moments[1].values()) == 2 * 64
    exact, near = (learnt(c, "Ann_1") for c in (config, small))
    assert not same(exact, near)
    for key in exact:
        assert np.abs(exact[key] - near[key]).mean() < 0.1 * 0.01 * 3


def test_other_settings_are_learnt_anew_and_where_it_runs_is_no_setting(config: PersonaliseConfig) -> None:
    config = replace(config, max_train_steps=0, emb_train_steps=1)
    learn(config)
    assert plan_personalise(replace(config, checkpoint_s=1, autoscaling=True)).todo == []
    assert len(plan_personalise(replace(config, seed=4)).todo) == 3


def test_a_bad_picture_costs_its_identity_and_a_diverging_one_too(config: PersonaliseConfig, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.new("RGB", (20, 20), "red").save(pictures / "Bob_2.png")
    (pictures / "Bob_1.jpg").write_text("no picture")
    quick = replace(config, input=str(pictures), max_train_steps=1)
    assert learn(quick) == ["not_an_image", ""]
    assert [task.name for task in plan_personalise(quick).todo] == ["Bob_1"]
    wild = replace(quick, learning_rate=1e30, max_train_steps=4, method="imagic", output=str(tmp_path / "wild"))
    assert learn(wild) == ["not_an_image", "diverged"]


def test_what_was_learnt_goes_to_the_hub(config: PersonaliseConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(config, emb_train_steps=0, max_train_steps=0, push_to_hub=True, hub_model_id="me/faces")
    assert learn(config) == ["", "", ""]
    server = hub.start(monkeypatch)
    monkeypatch.setenv("HF_TOKEN", "another's")
    with pytest.raises(ValueError, match=r"hub_model_id=me/faces cannot be written .*HF_TOKEN"):
        check_repository(config)
    assert not server.files
    monkeypatch.setenv("HF_TOKEN", "mine")
    check_repository(config)
    assert not personalise(config, plan_personalise(config))
    hub.stop(server)
    root = Path(config.output)
    here = {str(file.relative_to(root)): file.read_bytes() for file in root.glob("Ann*/**/*") if file.is_file()}
    assert server.files == here and f"Anna_1/{LORA}" in here


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"resolution": 500}, "multiples of 8"),
        ({"train_batch_size": 0}, "train_batch_size starts at 1"),
        ({"push_to_hub": True}, "hub_model_id"),
        ({"method": "textual_inversion", "target_text": "a man"}, "has no {}"),
    ],
)
def test_what_cannot_work_is_told_before(config: PersonaliseConfig, wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        plan_personalise(replace(config, **wrong))

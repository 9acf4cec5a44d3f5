"""Ranges, names, what is skipped, and that guidance and alpha are those of the formulas."""

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from actors.movie_characters.diffusion import embed_prompt, load_texts
from actors.movie_characters.drawer import Drawer, Drawing, GenerateConfig, values
from actors.movie_characters.identities import LORA, OPTIMIZED, TARGET, TEXT, write_embedding
from actors.movie_characters.manifest import read_manifest
from pipelines.movie_characters.generate import generate, plan_generate
from pipelines.movie_characters.pictures import find_pictures
from tests.support import tiny_models


@pytest.fixture
def config(sd_folder: str, tmp_path: Path) -> GenerateConfig:
    random = np.random.default_rng(0)
    for name in ("Ann_1", "Bob_1"):
        for which in (TARGET, OPTIMIZED):
            write_embedding(random.normal(size=(1, 77, 16)).astype(np.float32), str(tmp_path / "ids"), name, which)
    return GenerateConfig(
        imagic_pretrained_path=str(tmp_path / "ids"),
        output=str(tmp_path / "out"),
        sd_model_name=sd_folder,
        height=16,
        width=24,
        num_inference_steps=3,
    )


@pytest.mark.parametrize(
    ("given", "all_of_them"),
    [
        ((3,), [3]),
        ((1, 3), [1, 2, 3]),
        ((0, 1, 0.1), [number / 10 for number in range(11)]),
        ((0, 1, 0.4), [0, 0.4, 0.8]),
    ],
)
def test_ranges_include_their_last(given: tuple[float, ...], all_of_them: list[float]) -> None:
    assert values(given, "alpha_range") == all_of_them


@pytest.mark.parametrize(
    "wrong",
    [{"seed_range": ()}, {"alpha_range": (0, 2)}, {"guidance_scale_range": (2, 1)}, {"height": 20}, {"width": 20}],
)
def test_wrong_ranges_are_told(config: GenerateConfig, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        replace(config, **wrong)


def test_names_are_legal_everywhere_and_tell_pictures_apart() -> None:
    name = Drawing('Zoë: "Z"/1_2', 3, 0.25, 7.5).file
    assert name == "Zoë---Z--1_2_seed3_alpha0p25_guidance7p5.png"


def test_what_is_there_is_not_drawn_again_and_identities_are_chosen_by_name(
    config: GenerateConfig, tmp_path: Path
) -> None:
    swept = replace(config, seed_range=(0, 1), alpha_range=(0.0, 1.0, 0.5), input=("faces/Ann_1.jpg", "Bob_1"))
    plan = plan_generate(swept)
    assert len(plan.drawings) == len(plan.todo) == 12
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / plan.todo[0].file).touch()
    assert len(plan_generate(swept).todo) == 11
    with pytest.raises(ValueError, match=r"input: Eve_1 are not in"):
        plan_generate(replace(config, input="Eve_1"))


@pytest.mark.parametrize("own", [False, True])
def test_pictures_follow_alpha_and_guidance(config: GenerateConfig, sd_folder: str, tmp_path: Path, own: bool) -> None:
    """By hand; own: with imagic_pipe, and a UNet that Bob has for himself."""
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    pipeline: Any = StableDiffusionPipeline.from_pretrained(sd_folder, safety_checker=None)
    with torch.no_grad():
        pipeline.unet.conv_out.weight.mul_(3)
    pipeline.unet.save_pretrained(tmp_path / "ids" / "Bob_1" / "unet")
    if not own:
        pipeline = StableDiffusionPipeline.from_pretrained(sd_folder, safety_checker=None)
    swept = replace(config, alpha_range=(0.5,), guidance_scale_range=(1.0, 3.0, 2.0), input="Bob_1")
    swept = replace(swept, imagic_pipe=own)
    plan = plan_generate(swept)
    out = Drawer(swept, plan.identities, plan.todo)({"number": np.arange(2)})
    assert out["error"].tolist() == ["", ""]
    plain, guided = (np.asarray(Image.open(tmp_path / "out" / one.file), float) for one in plan.todo)
    assert plain.shape == (16, 24, 3)
    # DDIM by hand.
    one = plan.identities[0]
    assert one.target is not None
    c = torch.from_numpy((one.target + one.optimized)[None] / 2)
    u = embed_prompt(load_texts(sd_folder, None), "")
    scheduler: Any = DDIMScheduler.from_pretrained(sd_folder, subfolder="scheduler", set_alpha_to_one=False)
    for guidance, picture in ((1, plain), (3, guided)):
        z = torch.randn((1, 4, 8, 12), generator=torch.Generator().manual_seed(0))
        scheduler.set_timesteps(3)
        with torch.no_grad():
            for t in scheduler.timesteps:
                found, empty = (pipeline.unet(z, t, told).sample for told in (c, u))
                noise = empty + guidance * (found - empty) if guidance > 1 else found
                z = scheduler.step(noise, t, z).prev_sample
            decoded = pipeline.vae.decode(z / 0.18215).sample[0].permute(1, 2, 0).numpy()
        assert picture == pytest.approx((decoded.clip(-1, 1) + 1) * 127.5, abs=1.5)
    assert np.abs(plain - guided).max() > 2


@pytest.mark.parametrize("own", ["", "lora", "unet"])
def test_a_picture_in_bfloat16_is_that_of_float32_but_for_rounding(
    config: GenerateConfig, sd_folder: str, tmp_path: Path, own: str
) -> None:
    if own == "lora":
        tiny_models.lora(sd_folder, tmp_path / "ids" / "Bob_1", LORA)
    if own == "unet":
        shutil.copytree(Path(sd_folder, "unet"), tmp_path / "ids" / "Bob_1" / "unet")
    # The embedding of the prompt is computed, and so is mixed with one that was stored.
    (tmp_path / "ids" / "Bob_1" / f"{TARGET}.safetensors").unlink()
    (tmp_path / "ids" / "Bob_1" / TEXT).write_text("bob")
    config = replace(config, guidance_scale_range=(3.0,), alpha_range=(0.5,), input="Bob_1", imagic_pipe=bool(own))
    found = []
    for dtype in ("float32", "bfloat16"):
        other = replace(config, output=str(tmp_path / dtype), diffusion=replace(config.diffusion, dtype=dtype))
        plan = plan_generate(other)
        out = Drawer(other, plan.identities, plan.todo)({"number": np.arange(1)})
        assert out["error"].tolist() == [""], out["message"]
        found.append(np.asarray(Image.open(tmp_path / dtype / plan.todo[0].file), float))
    assert np.abs(found[0] - found[1]).mean() < 4 < np.abs(found[0] - found[0].mean()).mean()


def test_a_kill_leaves_whole_pictures_and_the_same_command_draws_the_others(
    config: GenerateConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def files(folder: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".png"}

    def draw(config: GenerateConfig) -> int:
        plan = plan_generate(config)
        told = Drawer(config, plan.identities, plan.todo)({"number": np.arange(len(plan.todo))})
        assert set(told["error"]) == {""}
        return len(plan.todo)

    swept = replace(config, seed_range=(0, 1), alpha_range=(0.0, 1.0))
    assert draw(swept) == 8
    killed = replace(swept, output=str(tmp_path / "killed"))
    written, move = [], os.replace

    def dying(*places: Any) -> None:
        written.append(places)
        if len(written) == 4:
            # As SIGKILL leaves it: what was being written stays, and nothing is tidied up.
            raise Killed
        move(*places)

    monkeypatch.setattr("os.replace", dying)
    monkeypatch.setattr("os.unlink", lambda *_, **__: None)
    with pytest.raises(Killed):
        draw(killed)
    monkeypatch.undo()
    assert len(files(tmp_path / "killed")) == 3 and len(list((tmp_path / "killed").iterdir())) == 4
    assert draw(killed) == 5
    assert files(tmp_path / "killed") == files(tmp_path / "out")


class Killed(BaseException):
    """What nothing here catches."""


def test_what_an_identity_lacks_is_a_row_with_a_code(config: GenerateConfig, tmp_path: Path) -> None:
    (tmp_path / "ids" / "Ann_1" / f"{TARGET}.safetensors").unlink()
    swept = replace(config, alpha_range=(1.0,))
    plan = plan_generate(swept)
    assert Drawer(swept, plan.identities, plan.todo)({"number": np.arange(2)})["error"].tolist() == ["no_target", ""]
    own = replace(config, imagic_pipe=True)
    plan = plan_generate(own)
    told = Drawer(own, plan.identities, plan.todo)({"number": np.arange(2)})["error"].tolist()
    assert set(told) <= {"no_weights"} and told


def test_a_manifest_says_what_each_picture_was_made_from(
    config: GenerateConfig, tmp_path: Path, ray_cluster: None
) -> None:
    (tmp_path / "ids" / "Ann_1").rename(tmp_path / "ids" / "Mr. Ann_1")
    (tmp_path / "ids" / "Bob_1" / f"{TARGET}.safetensors").unlink()
    swept = replace(config, alpha_range=(0.0, 1.0), diffusion=replace(config.diffusion, num_cpus=0.5))
    assert generate(swept, plan_generate(swept)) == {"no_target": 1}
    rows = read_manifest(config.output)
    name = "Mr--Ann_1_seed0_alpha1_guidance7p5.png"
    assert rows[name] == {
        **{"file": name, "class": "Mr. Ann", "identity": "Mr. Ann_1", "seed": "0", "alpha": "1", "guidance": "7.5"},
        "model": config.sd_model_name,
    }
    # A picture that could not be drawn has no row, and those of an earlier run keep theirs.
    assert {one.name: one.cls for one in find_pictures(config.output, "input")} == {
        "Bob_1_seed0_alpha0_guidance7p5.png": "Bob",
        **{f"Mr--Ann_1_seed0_alpha{alpha}_guidance7p5.png": "Mr. Ann" for alpha in (0, 1)},
    }
    assert set(rows) < set(plan_generate(replace(swept, alpha_range=(0.5,))).manifest)
    # What was interrupted is not taken for whole.
    (tmp_path / "out" / name).unlink()
    with pytest.raises(ValueError, match="if `generate` was interrupted, rerun it"):
        find_pictures(config.output, "input")

"""`fuse` and `compare` as their users run them."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner, Result

from actors.movie_characters.identities import OPTIMIZED, TARGET, write_embedding
from jobs.core.settings import load
from jobs.movie_characters.__main__ import app
from pipelines.movie_characters.compare import CompareConfig
from pipelines.movie_characters.models import ClipModel, DiffusionModel
from tests.support import pictures, results
from tests.support.colours import GREEN, RED


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


def test_fuse_writes_results_and_tells_what_has_no_answer(tmp_path: Path):
    losses = {"Ann_1": {"Ann_1": 0.1, "Bob_1": 0.3}, "Bob_1": {"Ann_1": 0.1, "Bob_1": 0.2}}
    one, other = results.write(tmp_path / "a", losses), results.write(tmp_path / "b", {"Ann_1": losses["Ann_1"]})
    settings = [f"models.a.folder={one}", f"models.b.folder={other}", f"output_folder={tmp_path / 'out'}"]
    assert "a: 2 images, 2 identities" in run("fuse", *settings, "--dry-run").stdout
    told = run("fuse", *settings, "by=rank").stdout
    assert "2 rows = 2 done + 0 rejected" in told
    assert "images without an answer of a model, fused from the others: b 1" in told
    table = pd.read_csv(tmp_path / "out" / "Ann_results.csv")
    assert table.input_embeds.to_list() == ["Ann_0", "Bob_0"]
    assert table.loss.to_list() == pytest.approx([2 / 61, 2 / 62])
    assert "needs two or more" in run("fuse", *settings[::2], code=2).output


def test_weights_and_who_is_unknown_are_learnt_from_other_images(tmp_path: Path):
    random = np.random.default_rng(0)

    def said(folder: str, images: list[str], strength: float) -> str:
        """Scores of Ann, Bob and Cid, of whom the true one has so much more."""
        scores = {
            image: {f"{cls}_1": random.normal() + strength * image.startswith(cls) for cls in ("Ann", "Bob", "Cid")}
            for image in images
        }
        return results.write(tmp_path / folder, scores)

    names = [f"{cls}_{n}" for cls in ("Ann", "Bob", "Cid", "Eve", "Zoe") for n in range(10)]
    settings = [f"output_folder={tmp_path / 'out'}"]
    for model, strength in (("good", 6.0), ("poor", 0.0)):
        settings += [
            f"models.{model}.folder={said(model, [f'{name}1' for name in names], strength)}",
            f"models.{model}.validation={said(f'{model}_validation', [f'{name}2' for name in names], strength)}",
            f"models.{model}.clip_csv=true",
        ]
    assert "weights: good 2, poor 0" in run("fuse", *settings).stdout
    record = json.loads((tmp_path / "out" / "runs" / "fuse.json").read_text())
    assert record["weights"]["good"] == pytest.approx(2, abs=0.1)
    report = ["score", "report", f"input_folder={tmp_path / 'out'}", f"output_folder={tmp_path / 'scores'}"]
    without = run(*report, "clip_csv=true").stdout
    told = run(*report, "clip_csv=true", f"validation={tmp_path / 'out' / 'validation'}", "confidence=lead").stdout
    assert "right answers: 60.00 %" in without and "unknown below a confidence of" in told
    assert float(told.partition("right answers: ")[2].split()[0]) > 80


@pytest.fixture
def characters(tmp_path: Path) -> str:
    """Red and Green, learnt: what the one's prompt says is what was learnt of the other."""
    first, second = np.random.default_rng(0).normal(size=(2, 1, 77, 16)).astype(np.float32)
    for name, target, optimized in (("Red_0", first, second), ("Green_0", second, first)):
        write_embedding(target, str(tmp_path / "ids"), name, TARGET)
        write_embedding(optimized, str(tmp_path / "ids"), name, OPTIMIZED)
    return str(tmp_path / "ids")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_compare_runs_models_through_filters(
    tmp_path: Path, clip_folder: str, sd_folder: str, characters: str, ray_cluster: None
):
    gallery = pictures.write(tmp_path / "gallery", {"Red_1": RED, "Green_1": GREEN})
    images = pictures.write(tmp_path / "images", {"Red_7": (255, 60, 0), "Green_7": (60, 255, 0)})
    (tmp_path / "images" / "Red_8.png").write_bytes(b"no image")
    clip = f"{{input_dir: {gallery}, model_name: {clip_folder}, embeddings: {{dtype: float32, num_cpus: 0.5}}}}"
    sd = f"imagic_pretrained_path: {characters}, sd_model_name: {sd_folder}, resolution: 16, method: full"
    sd += ", num_inference_steps: 4, preselect: {model: near, best: 2}, diffusion: {num_cpus: 0.5}"
    settings = [
        *(f"image_list={images}", f"output={tmp_path / 'out'}", "filters={none: 0, red: 1.0}", "k_range=2"),
        *(f"models.sd={{by: diffusion, settings: {{{sd}}}}}", f"models.near={{by: clip, settings: {clip}}}"),
        "models.both={by: fusion, settings: {models: [near, sd]}}",
        *("alpha_model=sd", "alphas=[0, 1]"),
    ]
    told = run("compare", *settings, "--dry-run").stdout
    assert "input: 3 images" in told and "8 identifications" in told
    assert not (tmp_path / "out").exists()
    told = run("compare", *settings).stdout
    assert "3 rows = 2 done + 1 rejected\nrejected: not_an_image 1" in told
    table = pd.read_csv(tmp_path / "out" / "accuracy.csv").set_index(["model", "filter"])
    # Of three images one is broken; in red light Green is Red.
    assert table.accuracy["near", "none"] == pytest.approx(2 / 3)
    assert table.accuracy["near", "red"] == pytest.approx(1 / 3)
    assert table.unanswered.to_list() == [1] * 6
    assert (table.low <= table.accuracy).all() and (table.accuracy <= table.high).all()
    tests = pd.read_csv(tmp_path / "out" / "mcnemar.csv")
    one = tests[(tests["filter"] == "none") & (tests["first"] == "sd") & (tests["second"] == "near")]
    ((only_first, only_second),) = one[["only_first", "only_second"]].to_numpy().tolist()
    right = {name: table.accuracy[name, "none"] * 3 for name in ("sd", "near")}
    assert only_first - only_second == pytest.approx(right["sd"] - right["near"])
    # With alpha = 1 each is asked by what was learnt of the other.
    swept = pd.read_csv(tmp_path / "out" / "alpha.csv").set_index("alpha").accuracy
    assert swept.index.to_list() == [0, 1] and swept[0] == table.accuracy["sd", "none"]
    assert swept[0] + swept[1] == pytest.approx(2 / 3)
    page = (tmp_path / "out" / "compare.html").read_text()
    assert "McNemar" in page and "Alpha of sd" in page and (tmp_path / "out" / "alpha.png").exists()
    record = json.loads((tmp_path / "out" / "runs" / "compare.json").read_text())
    assert record["rows"] == {"in": 3, "out": 2, "rejected": {"not_an_image": 1}}


@pytest.mark.timeout(300)
def test_other_images_teach_how_much_each_model_counts(tmp_path: Path, clip_folder: str, ray_cluster: None):
    # Of which class they are stands beside them alone.
    images = pictures.write(tmp_path / "images", {"first": (255, 60, 0), "second": (60, 255, 0)})
    (tmp_path / "images" / "pictures.csv").write_text("file,class\nfirst.png,Red\nsecond.png,Green\n")
    others = pictures.write(tmp_path / "others", {"Red_8": (255, 0, 60), "Green_8": (0, 255, 60)})
    (tmp_path / "others" / "Red_9.png").write_bytes(b"no image")
    settings = [
        f"image_list={images}",
        f"output={tmp_path / 'out'}",
        f"validation={others}",
        "filters={dark: 0.2}",
    ]
    # Who learnt from the other's picture is always wrong.
    for name, colours in {"good": {"Red_1": RED, "Green_1": GREEN}, "wrong": {"Red_1": GREEN, "Green_1": RED}}.items():
        gallery = pictures.write(tmp_path / name, colours)
        about = f"{{input_dir: {gallery}, model_name: {clip_folder}, embeddings: {{dtype: float32, num_cpus: 0.5}}}}"
        settings.append(f"models.{name}={{by: clip, settings: {about}}}")
    settings.append("models.both={by: fusion, settings: {models: [wrong, good]}}")
    assert "2 images, 3 for validation" in run("compare", *settings, "--dry-run").stdout
    told = run("compare", *settings).stdout
    assert "5 rows = 4 done + 1 rejected" in told and "weights of both: wrong 0, good 2" in told
    found = pd.read_csv(tmp_path / "out" / "accuracy.csv").set_index(["model", "filter"]).accuracy
    assert found["both", "dark"] == 1 and found["wrong", "dark"] == 0
    with_set = [*settings[:-1], "models.both={by: fusion, settings: {models: [wrong, good], weights: {good: 3}}}"]
    assert "trains the weights of fusions without weights" in run("compare", *with_set, code=2).output
    assert (
        "Use other images for validation" in run("compare", *settings, f"validation=[{images},{others}]", code=2).output
    )


def test_settings_of_a_model_are_checked_before_anything_runs(tmp_path: Path):
    images = pictures.write(tmp_path / "images", {"Red_7": RED})
    settings = [f"image_list={images}", f"output={tmp_path / 'out'}", "models.a={by: clip, settings: {size: 3}}"]
    assert (
        "models.a.settings.gallery: this setting is required; models.a.settings.size: there is no"
        in run("compare", *settings, code=2).output
    )


def test_older_names_of_a_models_settings_work_in_files_and_beside_them(tmp_path: Path):
    file = tmp_path / "compare.yaml"
    file.write_text(
        "{image_list: stills, output: out, models: {sd: {by: diffusion, settings: {imagic_pretrained_path: ids}},"
        " near: {by: clip, settings: {input_dir: gallery, device: cuda}}}}"
    )
    config = load(CompareConfig, [str(file), "models.near.settings.input_dir=other", "models.sd.settings.num_gpus=1"])
    near, sd = config.models["near"], config.models["sd"]
    assert isinstance(near, ClipModel) and isinstance(sd, DiffusionModel)
    assert (near.settings.gallery, near.settings.embeddings.num_gpus, config.input) == ("other", 1, "stills")
    assert sd.settings.diffusion.num_gpus == 1


def test_alpha_of_a_diffusion_model_is_varied_on_the_images_as_they_are(tmp_path: Path, characters: str):
    images = pictures.write(tmp_path / "images", {"Red_7": RED})
    settings = [f"image_list={images}", f"output={tmp_path / 'out'}", "filters={none: 0, dark: .5}", "alpha_model=sd"]
    settings += [
        f"models.sd={{by: diffusion, settings: {{imagic_pretrained_path: {characters}}}}}",
        "alphas=[0, .5, 1]",
    ]
    # Once for each filter, and once for each alpha.
    assert "to do: 5 identifications" in run("compare", *settings, "--dry-run").stdout
    assert "models.sd.settings: " in run("compare", *settings, "alphas=[2]", code=2).output


def test_who_preselects_is_another_model_of_the_comparison(tmp_path: Path):
    images = pictures.write(tmp_path / "images", {"Red_7": RED})
    sd = f"imagic_pretrained_path: {tmp_path}, preselect: {{model: clip}}"
    settings = [
        f"image_list={images}",
        f"output={tmp_path / 'out'}",
        f"models.sd={{by: diffusion, settings: {{{sd}}}}}",
    ]
    assert "no model by clip or faces has that name" in run("compare", *settings, code=2).output

"""`fuse` and `compare` as their users run them."""

import json
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner, Result

from jobs.movie_characters import app
from tests import pictures, results
from tests.colours import GREEN, RED


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
    assert "2 rows = 1 done + 1 rejected\nrejected: not_answered_by_all 1" in told
    table = pd.read_csv(tmp_path / "out" / "Ann_results.csv")
    assert table.input_embeds.to_list() == ["Ann_0", "Bob_0"]
    assert table.loss.to_list() == pytest.approx([2 / 61, 2 / 62])
    assert "two or more" in run("fuse", *settings[::2], code=2).output


@pytest.mark.slow
def test_compare_runs_models_through_filters(tmp_path: Path, clip_folder: str, ray_cluster: None):
    gallery = pictures.write(tmp_path / "gallery", {"Red_1": RED, "Green_1": GREEN})
    images = pictures.write(tmp_path / "images", {"Red_7": (255, 60, 0), "Green_7": (60, 255, 0)})
    (tmp_path / "images" / "Red_8.png").write_bytes(b"no image")
    clip = f"{{by: clip, settings: {{input_dir: {gallery}, model_name: {clip_folder}, vectors: {tmp_path / 'v'}, "
    clip += "embeddings: {dtype: float32, num_cpus: 0.5}"
    settings = [
        *(f"image_list={images}", f"output={tmp_path / 'out'}", "filters={none: 0, red: 1.0}", "k_range=2"),
        *(f"models.near={clip}}}}}", f"models.probe={clip}, method: probe}}}}"),
        "models.both={by: fusion, settings: {models: [near, probe]}}",
    ]
    told = run("compare", *settings, "--dry-run").stdout
    assert "input: 3 images" in told and "6 identifications" in told
    assert not (tmp_path / "out").exists()
    told = run("compare", *settings).stdout
    assert "3 rows = 2 done + 1 rejected\nrejected: not_an_image 1" in told
    table = pd.read_csv(tmp_path / "out" / "accuracy.csv").set_index(["model", "filter"])
    # Of three images one is broken; in red light Green is Red.
    assert table.accuracy["near", "none"] == pytest.approx(2 / 3)
    assert table.accuracy["near", "red"] == pytest.approx(1 / 3)
    assert table.accuracy["both", "none"] == pytest.approx(2 / 3)
    assert table.unanswered.to_list() == [1] * 6
    page = (tmp_path / "out" / "compare.html").read_text()
    assert "McNemar" in page and "robustness" not in page
    record = json.loads((tmp_path / "out" / "runs" / "compare.json").read_text())
    assert record["rows"] == {"in": 3, "out": 2, "rejected": {"not_an_image": 1}}


def test_settings_of_a_model_are_checked_before_anything_runs(tmp_path: Path):
    images = pictures.write(tmp_path / "images", {"Red_7": RED})
    settings = [f"image_list={images}", f"output={tmp_path / 'out'}", "models.a={by: clip, settings: {size: 3}}"]
    assert "models.a.settings: input_dir: this setting is needed; size" in run("compare", *settings, code=2).output


def test_alpha_of_a_diffusion_model_is_varied_on_the_images_as_they_are(tmp_path: Path):
    images = pictures.write(tmp_path / "images", {"Red_7": RED})
    settings = [f"image_list={images}", f"output={tmp_path / 'out'}", "filters={none: 0, dark: .5}", "alpha_model=sd"]
    settings += [f"models.sd={{by: diffusion, settings: {{imagic_pretrained_path: {tmp_path}}}}}", "alphas=[0, .5, 1]"]
    # Once for each filter, and once for each alpha.
    assert "to do: 5 identifications" in run("compare", *settings, "--dry-run").stdout
    assert "models.sd.settings: " in run("compare", *settings, "alphas=[2]", code=2).output

"""The command that trains the tiny VAE: what it writes, and that a kill costs nothing but time."""

import json
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from jobs.core.settings import SettingsError, load
from jobs.tiny_vae.__main__ import app
from pipelines.tiny_vae.settings import AutoencoderConfig, TrainConfig
from pipelines.tiny_vae.train import Figures, describe
from tests.support import corpus

METRICS = {"step": 50, "losses": [[10, 0.5], [50, 0.125]], "device": "cpu"}
FIGURES = Figures(31.5, 25.25, 30.0, 24.0, 16.0, 15.0, same_shot=(0.9, 0.95, 0.99), across_cut=(0.1, 0.3))


def test_the_card_gives_the_command_that_trains_the_same_again() -> None:
    config = AutoencoderConfig(steps=50, encoder_blocks=(1, 1, 1, 1), seed=3)
    card = describe(config, 2, METRICS, FIGURES)
    command = next(line.strip() for line in card.splitlines() if "jobs.tiny_vae train" in line)
    arguments = shlex.split(command)[4:]
    assert load(TrainConfig, arguments) == TrainConfig(workers=2, model=config)
    for told in ("31.50", "25.25", "CC-BY-4.0", "0.1250 up to step 50", "| 3 | 0.900 | 0.950 | 0.990 |"):
        assert told in card


@pytest.mark.parametrize("argument", ["workers=0", "model.crop=30", "model.stepz=3"])
def test_wrong_settings_name_their_key(argument: str) -> None:
    with pytest.raises(SettingsError, match=argument.partition("=")[0].rpartition(".")[2]):
        load(TrainConfig, [argument])


def test_a_dry_run_says_what_would_be_done_and_does_nothing(tmp_path: Path) -> None:
    arguments = ["train", f"output={tmp_path / 'out'}", "workers=2", "--use_gpu", "--dry-run"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "demo.mp4" in result.output and "3000 steps of 16 crops" in result.output
    assert "train: 2 actors of 1 CPUs, 1 GPUs, 8 rows a call" in result.output
    assert f"runs/train.json: {tmp_path}/out/runs/train.json" in result.output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("arguments", "gpus"), [(["use_gpu=true"], 1.0), (["--num-gpus", "0.5"], 0.5), ([], 0.0)])
def test_gpus_go_by_the_older_name_too(arguments: list[str], gpus: float) -> None:
    assert load(TrainConfig, arguments).num_gpus == gpus


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_training_goes_on_and_ends_with_the_same_weights(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = ["model.steps=60", "model.checkpoint_every=5", "model.batch_size=4", "model.crop=32", "model.channels=8"]
    command = ["train", f"output={tmp_path / 'killed'}", *small]
    with corpus.job(tmp_path / "log.txt", *command, program=("-m", "jobs.tiny_vae")) as job:
        job.wait_until(lambda: bool(list(tmp_path.glob("killed/checkpoints/*/checkpoint_manager_snapshot.json"))))
        job.kill()
    assert not (tmp_path / "killed" / "encoder.safetensors").exists()

    told = CliRunner().invoke(app, command).output
    assert "60 steps, resumed from step" in told
    assert f"weights: {tmp_path}/killed/encoder.safetensors" in told and f"card: {tmp_path}/killed/README.md" in told

    # Measured once is enough.
    monkeypatch.setattr("pipelines.tiny_vae.train.measure", lambda vae: FIGURES)
    CliRunner().invoke(app, ["train", f"output={tmp_path / 'undisturbed'}", *small])
    for name in ("encoder.safetensors", "config.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes()
    record = json.loads((tmp_path / "killed/runs/train.json").read_text())
    assert record["status"] == "done" and record["step"] == 60 and record["resumed_from"] >= 5
    assert record["figures"]["film_psnr"] > 0 and record["settings"]["model"]["crop"] == 32

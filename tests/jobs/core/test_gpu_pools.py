"""Pools on GPUs, on a cluster that says it has one: the driver, whose machine may have none, computes nothing there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import films, pictures
from tests.support.colours import BLUE, GREEN, RED
from tests.support.tiny_models import backbone

ROOT = Path(__file__).parents[3]
PROGRAM = """
import json, sys
from importlib import import_module
import ray, torch
from typer.testing import CliRunner
touched = []
def refuse():
    touched.append(1)
    raise AssertionError("the driver touches a GPU")
# What torch calls before anything is done with a GPU.
torch.cuda._lazy_init = refuse
ray.init(
    address="local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False,
    _temp_dir=sys.argv[1], runtime_env={"env_vars": {"PYTHONPATH": sys.argv[2]}},
)
found = {}
for command in json.loads(sys.argv[3]):
    app = import_module(f"jobs.{command[0]}.__main__").app
    result = CliRunner().invoke(app, command[1:])
    # Messages of this Ray, which no command has started, may come below it.
    last = [line for line in result.output.splitlines() if line.startswith("failed: ")][-1:]
    found[" ".join(command[:2])] = (result.exit_code, "".join(last), len(touched))
print(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_only_workers_touch_a_gpu(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, clip_folder: str) -> None:
    """Each verb gets as far as its workers, which find no GPU here; its last line is what they found."""
    for director in "AB":
        for number in range(5):
            pictures.write(tmp_path / "shots" / director / f"film{number}", {"1": RED, "2": GREEN})
    films.film(tmp_path / "films/a.mp4", shots=(24, 24))
    gallery = pictures.write(tmp_path / "gallery", {"Ann_1": RED, "Bea_1": BLUE})
    images = pictures.write(tmp_path / "images", {"Cleo_1": GREEN})
    network = backbone(tmp_path / "backbone")

    def command(capability: str, verb: str, *settings: str) -> list[str]:
        return [capability, verb, f"output={tmp_path / capability}", *settings]

    commands = [
        command(
            *("directors", "train", f"input={tmp_path / 'shots'}"),
            *(f"pictures.backbone.model={network}", "pictures.backbone.num_gpus=1"),
        ),
        command(
            *("movie_characters", "identify-clip", f"gallery={gallery}", f"input={images}"),
            *(f"model_name={clip_folder}", "num_gpus=1"),
        ),
        command("curation", "run", f"input={tmp_path / 'films'}", "latents.model=tiny", "latents.num_gpus=1"),
    ]
    program = [sys.executable, "-c", PROGRAM, str(tmp_path_factory.mktemp("r")), str(ROOT), json.dumps(commands)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(program, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == len(commands)
    for verb, (code, last, touched) in found.items():
        assert not touched, (verb, last)
        assert code and "Found no NVIDIA driver" in last, (verb, last)

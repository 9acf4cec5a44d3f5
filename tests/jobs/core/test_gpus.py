"""Workers that Ray gives a GPU on a machine without CUDA: the command ends, and says which setting asked for it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import films

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
ROOT = Path(__file__).resolve().parents[3]
PROGRAM = """
import sys, tempfile
from importlib import import_module
import ray

with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
    environment = {"env_vars": {"PYTHONPATH": sys.argv[1]}}
    options = {"include_dashboard": False, "log_to_driver": False, "_temp_dir": folder, "runtime_env": environment}
    ray.init(address="local", num_cpus=2, num_gpus=1, **options)
    try:
        for command in sys.argv[2:]:
            capability, *sys.argv[1:] = command.split()
            try:
                import_module(f"jobs.{capability}.__main__").app()
            except SystemExit as end:
                print(f"code {end.code}", file=sys.stderr, flush=True)
    finally:
        ray.shutdown()
"""


def test_a_worker_without_cuda_ends_the_run_with_the_setting(tmp_path: Path) -> None:
    """A cluster of its own, which claims a GPU that is none."""
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    films.film(tmp_path / "films" / "a.mp4")
    curation = f"curation run input={tmp_path}/films output={tmp_path}/out frames.size=64 latents.model=tiny"
    commands = [
        f"{curation} latents.num_gpus=0.5",
        f"{curation} latents.num_gpus=2",
        f"tiny_vae train output={tmp_path}/vae num_gpus=1 model.steps=1",
    ]
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(ROOT), *commands],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    told = [line for line in ended.stderr.splitlines() if line.startswith(("failed: ", "error: ", "code "))]
    assert told[1::2] == ["code 1", "code 2", "code 1"], ended.stderr
    worker, planned, training = told[::2]
    assert "latents.num_gpus=0.5: a worker was given a GPU on which CUDA does not run" in worker
    assert "needs more GPUs (latents 2) than there are (1)" in planned
    assert "num_gpus=1: a worker was given a GPU on which CUDA does not run" in training

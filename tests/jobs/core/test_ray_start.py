"""Ray starts at the second try where the first fails, ends what it began, and its own messages stay away."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
FAILING = """
import json, sys, time
import psutil
from ray._private import services

look, failures, begun = services.get_node, int(sys.argv[1]), []

def look_later(*arguments):
    begun.append([one.pid for one in psutil.Process().children(True) if one.name() in ("raylet", "gcs_server")])
    if len(begun) <= failures:
        raise Exception("The current node timed out during startup. This could happen because it is busy.")
    return look(*arguments)

services.get_node = look_later
"""
SAYS = """
import ray
from jobs.core.session import ray_session, start_logging

class _Own:
    def fail(self):
        print("own actor", flush=True)
        raise KeyError("dataset_1")

class Speaker:
    def fail(self):
        print("our actor", flush=True)

start_logging()
with ray_session():
    print(json.dumps(begun))
    print(ray._private.worker._global_node.get_temp_dir_path())
    for kind in (_Own, Speaker):
        actor = ray.remote(num_cpus=0)(kind).remote()
        ray.wait([actor.fail.remote()])
    time.sleep(2)
"""


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder for temporary files whose path leaves room for that of a socket, 107 characters at most."""
    with tempfile.TemporaryDirectory(prefix="r-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def run(code: str, failures: int, folder: Path, code_of_exit: int) -> tuple[list[str], str]:
    """Standard output in lines, and standard error."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    program = [sys.executable, "-c", FAILING + code, str(failures)]
    done = subprocess.run(
        program, env=environment | {"TMPDIR": str(folder)}, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == code_of_exit, done.stderr
    return done.stdout.splitlines(), done.stderr


def test_ray_starts_at_the_second_try_and_only_what_our_code_writes_is_shown(short_folder: Path):
    lines, errors = run(SAYS, 1, short_folder, 0)
    first, second = json.loads(lines[0])[:2]
    assert first and not set(first) & set(second), "the first node was not ended before the second began"
    folder = Path(lines[1])
    assert folder.is_relative_to(short_folder) and not folder.exists()
    assert any("our actor" in line for line in lines)
    assert not any("own actor" in line or "dataset_1" in line for line in [*lines, *errors.splitlines()])


@pytest.fixture
def bystander(tmp_path: Path) -> Iterator[psutil.Process]:
    """A process that looks like one of a Ray which ran before."""
    program = shutil.copy("/bin/sleep", tmp_path / "raylet")
    with subprocess.Popen([program, "300"]) as process:
        yield psutil.Process(process.pid)
        process.kill()


def test_a_ray_that_does_not_start_is_one_line_and_only_its_own_processes_are_ended(
    short_folder: Path, bystander: psutil.Process
):
    code = """
from jobs.core.errors import exit_codes
from jobs.core.session import ray_session
import atexit
atexit.register(lambda: print(json.dumps(begun)))
import typer
try:
    with exit_codes(), ray_session():
        pass
except typer.Exit as error:
    sys.exit(error.exit_code)
"""
    lines, errors = run(code, 9, short_folder, 2)
    told = [line for line in errors.splitlines() if line]
    assert len(told) == 1 and told[0].startswith("error: Ray did not start, twice (The current node timed out")
    begun = {pid for pids in json.loads(lines[-1]) for pid in pids}
    until = time.monotonic() + 20
    while any(map(psutil.pid_exists, begun)) and time.monotonic() < until:
        time.sleep(0.2)
    assert len(begun) >= 2 and not any(map(psutil.pid_exists, begun))
    assert bystander.is_running() and "processes of other Rays run" in told[0]

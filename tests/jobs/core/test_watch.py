"""`status --watch`: until no run is at work, with the exit code of the run's end."""

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

import boto3
import pytest
from typer.testing import CliRunner, Result

from actors.core import storage
from actors.core.lease import Lease
from actors.core.store import Store
from jobs.core.status import Status
from jobs.core.verbs import Run, Verb, Verbs, execute
from pipelines.core.progress import Progress
from pipelines.core.reporting import PAGE
from tests.support.servers import s3, s3_server

__all__ = ["s3", "s3_server"]
app = Verbs("A capability of a test.")
app.verb(Status)


@dataclass(frozen=True)
class WaitConfig:
    """Settings of `wait`."""

    output: str
    """A folder."""
    fails: bool = False
    """Whether it fails."""


@app.verb
class Wait(Verb):
    """Work until a file is there."""

    positional = ("output",)

    def settings(self) -> type[WaitConfig]:
        return WaitConfig

    def work(self, config: WaitConfig, plan: None, run: Run) -> None:
        progress = Progress("wait", 2, "films")
        while not storage.exists(run.store.uri("go")):
            progress.advance(0)
            time.sleep(0.02)
        if config.fails:
            raise OSError("the disk is full")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {"FIRST_S": 0.02, "EVERY_S": 0.04, "LAST_S": 0.04}.items():
        monkeypatch.setattr(f"pipelines.core.reporting.{name}", seconds)
    monkeypatch.setattr("jobs.core.status.LEAST_S", 0.02)


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(one) for one in arguments])


@contextmanager
def running(output: str, fails: bool = False) -> Iterator[None]:
    """A run that goes on until the block ends."""

    def work() -> None:
        # Not by a CliRunner: it replaces the standard output of the whole process.
        with suppress(OSError):
            execute(Wait(), WaitConfig(output, fails), None)

    thread = threading.Thread(target=work)
    thread.start()
    until = time.monotonic() + 20
    while not storage.exists(f"{output}/{PAGE}"):
        assert time.monotonic() < until
        time.sleep(0.02)
    try:
        yield
    finally:
        storage.write_bytes(f"{output}/go", b"")
        thread.join()


@pytest.mark.parametrize("fails", [False, True])
def test_a_run_is_watched_until_it_ends_and_its_page_says_how(fails: bool, tmp_path: Path):
    output = str(tmp_path / "out")
    with running(output, fails):
        threading.Timer(0.3, lambda: storage.write_bytes(f"{output}/go", b"")).start()
        watched = invoke("status", output, "--watch", "interval_s=0.02")
        assert '<span id="state">Running</span>' not in (tmp_path / "out" / PAGE).read_text()
    assert watched.exit_code == int(fails)
    assert "at work: " in watched.stderr and "wait wait: 0 of 2 films" in watched.stderr
    page = (tmp_path / "out" / PAGE).read_text()
    if fails:
        assert "failed: wait failed: OSError: the disk is full" in watched.stderr
        assert ">Failed</span>" in page and "the disk is full" in page
    else:
        assert "wait done after" in watched.stdout and ">Done</span>" in page


def test_a_run_that_was_killed_is_told_apart_and_so_is_one_that_ended_before(tmp_path: Path):
    storage.write_bytes(str(tmp_path / "go"), b"")
    assert invoke("wait", tmp_path).exit_code == 0
    assert invoke("status", tmp_path, "--watch").exit_code == 0
    with Lease(Store(str(tmp_path)), "wait", verb="wait", run="now"):
        lease = tmp_path / "runs/wait.lease"
        lease.write_text(json.dumps(json.loads(lease.read_text()) | {"machine": "another"}))
        os.utime(lease, (0, 0))
        done = invoke("status", tmp_path, "--watch")
        assert done.exit_code == 1 and "wait was killed, or its machine is gone" in done.stderr
    assert invoke("wait", tmp_path, "fails=true").exit_code == 1
    assert invoke("status", tmp_path, "--watch").exit_code == 1
    assert "interval_s=0.001" in invoke("status", tmp_path, "--watch", "interval_s=0.001").stderr


def test_a_run_on_s3_is_watched_by_its_page_through_a_presigned_link(s3: str):
    output = f"{s3}/out"
    with running(output):
        bucket, _, key = output.removeprefix("s3://").partition("/")
        link = boto3.client("s3").generate_presigned_url("get_object", {"Bucket": bucket, "Key": f"{key}/{PAGE}"})
        with urlopen(link) as answer:
            assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
            assert ">Running</span>" in answer.read().decode()
        assert "wait wait: 0 of 2 films" in invoke("status", output).stdout
        threading.Timer(0.3, lambda: storage.write_bytes(f"{output}/go", b"")).start()
        assert invoke("status", output, "--watch", "interval_s=0.1").exit_code == 0
    assert b">Done</span>" in storage.read_bytes(f"{output}/{PAGE}")

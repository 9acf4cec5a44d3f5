"""SIGTERM ends a command with 143, a record and a log line, wherever it arrives."""

import json
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from jobs.core.termination import Terminated, kept_handler, terminable
from jobs.core.verbs import Run, Verb, Verbs
from tests.support import corpus
from tests.support.corpus import FAST


@dataclass(frozen=True)
class WaitConfig:
    """Settings of `wait`."""

    output: str
    """A folder."""
    signals: int = 1
    """How many SIGTERMs arrive."""


class Wait(Verb):
    """Wait for signals."""

    def settings(self) -> type[WaitConfig]:
        return WaitConfig

    def work(self, config: WaitConfig, plan: None, run: Run) -> None:
        run.record["left"] = False
        try:
            _send(signal.SIGTERM)
        finally:
            for _ in range(config.signals - 1):
                _send(signal.SIGTERM)
            run.record["left"] = True


def _send(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0.01)


@pytest.mark.parametrize("signals", [1, 3])
def test_sigterm_leaves_a_record_a_line_and_the_handler_before(
    signals: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    app = Verbs("A capability of a test.")
    app.verb(Wait)
    before = signal.getsignal(signal.SIGTERM)
    result = CliRunner().invoke(app, ["wait", f"output={tmp_path}", f"signals={signals}"])
    assert result.exit_code == 143
    record = json.loads((tmp_path / "runs" / "wait.json").read_text())
    assert (record["status"], record["error"], record["left"]) == ("failed", "Terminated: by SIGTERM", True)
    assert [entry.getMessage() for entry in caplog.records] == [
        "Ended by SIGTERM. What is written so far is kept. Rerun the same command to resume."
    ]
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_library_that_sets_its_own_handler_changes_nothing():
    def start() -> None:
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))
        _send(signal.SIGTERM)

    with terminable():
        handler = signal.getsignal(signal.SIGTERM)
        with pytest.raises(Terminated), kept_handler():
            start()
        assert signal.getsignal(signal.SIGTERM) is handler
        with pytest.raises(SystemExit), kept_handler():
            raise SystemExit(3)


def test_a_command_in_another_thread_runs_without_a_handler():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def look() -> None:
        with terminable(), kept_handler():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [before]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_run_that_a_signal_ends_leaves_its_record_and_no_process(number: int, code: int, tmp_path: Path):
    films, output = corpus.make(tmp_path / "films"), tmp_path / "out"
    command = ["run", f"input={films}", f"output={output}", *FAST]
    with corpus.job(tmp_path / "log.txt", *command) as job:
        job.wait_until(lambda: any((output / "scores").glob("*.parquet")))
        below = psutil.Process(job.process.pid).children(recursive=True)
        job.process.send_signal(number)
        text = job.wait(code)
        _, left = psutil.wait_procs(below, timeout=60)
    assert not left
    assert (
        text.count(
            f"Ended by {signal.Signals(number).name}. What is written so far is kept. Rerun the same command to resume."
        )
        == 1
    )
    assert "Traceback" not in text
    record = json.loads((output / "run.json").read_text())
    assert record["status"] == "failed"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_sigterm_while_ray_starts_ends_with_the_same_code(tmp_path: Path):
    films, output = corpus.make(tmp_path / "films"), tmp_path / "out"
    command = ["run", f"input={films}", f"output={output}", *FAST]
    with corpus.job(tmp_path / "log.txt", *command) as job:
        job.wait_until(partial(_has_child, job.process.pid, "gcs_server"))
        job.process.send_signal(signal.SIGTERM)
        job.wait(143)
        assert json.loads((output / "run.json").read_text())["status"] == "failed"


def _has_child(pid: int, name: str) -> bool:
    return any(name in child.name() for child in psutil.Process(pid).children(recursive=True))

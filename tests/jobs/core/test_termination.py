"""SIGTERM ends a command with 143, a record and a log line, wherever it arrives."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from actors.core import patience
from jobs.core.termination import Terminated, kept_handler, terminable
from jobs.core.verbs import Run, Verb, Verbs
from tests.conftest import ROOT
from tests.support import corpus, films
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


def test_a_second_ctrl_c_kills(tmp_path: Path):
    code = (
        "import signal, time\n"
        "from jobs.core.termination import terminable\n"
        "with terminable():\n"
        "    try:\n"
        "        print('ready', flush=True)\n"
        "        time.sleep(600)\n"
        "    finally:\n"
        "        print('cleaning', flush=True)\n"
        "        time.sleep(600)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, text=True
    )
    assert process.stdout and process.stderr
    try:
        assert process.stdout.readline() == "ready\n"
        # As `timeout` does; the second of them is the first one's.
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "cleaning\n"
        time.sleep(0.5)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
    finally:
        process.kill()
    assert process.stderr.read() == "Stopping. Press Ctrl-C again to kill.\nKilled. Rerun the same command to resume.\n"


def test_a_store_is_waited_for_shortly_once_a_command_ends(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(patience.PATIENCE, "600")
    with terminable():
        assert patience.patience_s() == 600
        with pytest.raises(Terminated):
            _send(signal.SIGTERM)
        assert patience.patience_s() < 10
    assert patience.patience_s() == 600


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
    source, output = corpus.make(tmp_path / "films"), tmp_path / "out"
    command = ["run", f"input={source}", f"output={output}", *FAST]
    with corpus.job(tmp_path / "log.txt", *command, workers="own") as job:
        job.wait_until(lambda: any((output / "scores").glob("*.parquet")))
        below = psutil.Process(job.process.pid).children(recursive=True)
        # As a terminal or a service manager does: to every process that the command has started, too.
        os.killpg(job.process.pid, number)
        began = time.monotonic()
        text = job.wait(code)
        assert time.monotonic() - began < 30
        _, left = psutil.wait_procs(below, timeout=60)
    assert not left
    assert (
        text.count(
            f"Ended by {signal.Signals(number).name}. What is written so far is kept. Rerun the same command to resume."
        )
        == 1
    )
    assert "Traceback" not in text and "***" not in text
    record = json.loads((output / "run.json").read_text())
    assert record["status"] == "failed"


VERBS = {
    # In the driver and a decode child, without Ray.
    "extract": ("movie_characters", ["csv={films}/table.csv", "input={films}/Ann/0.mp4", "category=who"], "Ann/*.jpg"),
    # Tasks of Ray.
    "sample": ("directors", ["input={films}", "screenshots.per_film=20", "screenshots.shots=true"], "*/*.jpg"),
}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("verb", VERBS)
def test_ctrl_c_says_what_is_kept_and_the_same_command_goes_on(verb: str, tmp_path: Path):
    folder, output = tmp_path / "films", tmp_path / "out"
    long = films.film(folder / "Ann" / "0.mp4", shots=(30,) * 40)
    for number in range(1, 12):
        shutil.copy(long, folder / "Ann" / f"{number}.mp4")
    (folder / "table.csv").write_text("start_time,end_time,who\n0,50,Ann\n")
    capability, settings, made = VERBS[verb]
    command = [verb, *(one.format(films=folder) for one in settings), f"output={output}"]
    with corpus.job(tmp_path / "log.txt", *command, program=("-m", f"jobs.{capability}"), workers="own") as job:
        job.wait_until(lambda: any(output.glob(made)))
        below = psutil.Process(job.process.pid).children(recursive=True)
        job.process.send_signal(signal.SIGINT)
        text = job.wait(130)
        _, left = psutil.wait_procs(below, timeout=60)
    assert not left and "Traceback" not in text
    last = text.splitlines()[-1]
    assert last.endswith("Ended by SIGINT. What is written so far is kept. Rerun the same command to resume.")
    assert json.loads((output / "runs" / f"{verb}.json").read_text())["status"] == "failed"
    kept = {path: path.stat().st_mtime_ns for path in output.glob(made)}
    assert kept
    with corpus.job(tmp_path / "again.txt", *command, program=("-m", f"jobs.{capability}"), workers="own") as job:
        job.wait(0)
    record = json.loads((output / "runs" / f"{verb}.json").read_text())
    assert record["status"] == "done" and record["rows"]["rejected"] == {}
    whole = {path: path.stat().st_mtime_ns for path in output.glob(made)}
    assert len(whole) == {"extract": 1200, "sample": 12 * 20}[verb]
    if verb == "extract":
        # Not a single frame is written again; of films, those that were done.
        assert kept.items() <= whole.items()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_sigterm_while_ray_starts_ends_with_the_same_code(tmp_path: Path):
    source, output = corpus.make(tmp_path / "films"), tmp_path / "out"
    command = ["run", f"input={source}", f"output={output}", *FAST]
    with corpus.job(tmp_path / "log.txt", *command, workers="own") as job:
        job.wait_until(partial(_has_child, job.process.pid, "gcs_server"))
        job.process.send_signal(signal.SIGTERM)
        job.wait(143)
        assert json.loads((output / "run.json").read_text())["status"] == "failed"


def _has_child(pid: int, name: str) -> bool:
    return any(name in child.name() for child in psutil.Process(pid).children(recursive=True))

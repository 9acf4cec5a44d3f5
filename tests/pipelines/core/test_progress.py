"""How far a stage is: in the log at growing intervals, in a file for `status`, on a terminal as a live line."""

import io
import json
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from actors.core.store import Store
from pipelines.core.progress import (
    PROGRESS_FILE,
    Progress,
    ProgressFile,
    duration,
    following,
    ticking,
    tracked,
)
from pipelines.core.reporting import PAGE, reporting


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr("pipelines.core.progress.time.monotonic", lambda: now[0])
    return now


def test_log_lines_come_at_growing_intervals_with_rate_and_time_left(
    clock: list[float], caplog: pytest.LogCaptureFixture
):
    lines_at = []
    with caplog.at_level(logging.INFO), Progress("embed", 1000, "images") as progress:
        for second in range(1, 101):
            clock[0] += 1
            progress.advance(5)
            if len(caplog.messages) > len(lines_at):
                lines_at.append(second)
    assert lines_at == [10, 30, 70]
    assert caplog.messages[0] == "embed: 50 of 1,000 images, 5/s, 3 min left"
    assert caplog.messages[2] == "embed: 350 of 1,000 images, 5/s, 2 min left"


def test_without_a_total_there_is_no_time_left(clock: list[float]):
    progress = Progress("extract", None, "frames")
    clock[0] += 4
    progress.advance(10)
    assert str(progress) == "extract: 10 frames, 2.5/s" and progress.remaining_s is None


def test_items_count_once_they_are_dealt_with():
    progress, seen = Progress("sample", 3, "films"), []
    for item in tracked([1, 2, 3], progress, lambda item: 10 * item):
        seen.append((item, progress.done))
    assert seen == [(1, 0), (2, 10), (3, 30)] and progress.done == 60


def test_the_files_are_there_while_a_verb_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name, seconds in {"FIRST_S": 0.01, "EVERY_S": 0.03, "LAST_S": 0.03}.items():
        monkeypatch.setattr(f"pipelines.core.reporting.{name}", seconds)
    store, file, page = Store(str(tmp_path)), tmp_path / "runs" / "embed.progress.json", tmp_path / PAGE
    with reporting(store, "embed", lambda now: f"{now.next_s} {list(now.stages)} {now.lines}".encode()):
        progress = Progress("embed", 8, "films")
        progress.fail({"broken": 1})
        progress.advance(4)
        _until(lambda: file.exists() and page.exists())
        about = json.loads(file.read_text())["embed"]
        assert (about["done"], about["total"], about["unit"], about["codes"]) == (4, 8, "films", {"broken": 1})
        logging.getLogger("pipelines").warning("of a worker")
        _until(lambda: "['embed']" in page.read_text() and "of a worker" in page.read_text())
    assert not file.exists() and page.read_text().startswith("None ['embed']"), "it has ended"
    page.unlink()
    with reporting(store, "embed", lambda now: b"short"):
        pass
    assert not page.exists()


def test_a_report_that_cannot_be_written_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr("pipelines.core.reporting.FIRST_S", 0.01)
    monkeypatch.setattr("pipelines.core.reporting.EVERY_S", 0.01)
    (tmp_path / "file").write_text("")
    with reporting(Store(str(tmp_path / "file")), "embed", lambda now: b"page"):
        progress = Progress("embed", 8)
        _until(lambda: progress.advance() or bool(caplog.messages))
        time.sleep(0.1)
    assert len(caplog.messages) == 1 and "it goes on" in caplog.messages[0]


def test_a_terminal_gets_a_live_line(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with (
        caplog.at_level(logging.INFO),
        Progress("fetch", 2, "films") as first,
        Progress("score", 3, "scenes") as second,
    ):
        first.advance(2)
        second.advance()
    told = terminal.getvalue()
    assert "fetch" in told and "2/2" in told and "1/3" in told and not caplog.messages


@pytest.mark.parametrize(("seconds", "told"), [(9.4, "9 s"), (61, "1 min"), (3 * 3600 + 300, "3 h 05 min")])
def test_lengths_of_time(seconds: float, told: str):
    assert duration(seconds) == told


def test_the_driver_follows_a_training_and_not_what_a_killed_one_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pipelines.core.progress.FOLLOW_S", 0.01)
    ProgressFile(str(tmp_path)).write(9, "loss 1")
    progress = Progress("train", 10, "epochs")
    with following(str(tmp_path), progress):
        time.sleep(0.1)
        assert progress.done == 0
        ProgressFile(str(tmp_path)).write(4, "loss 0.5")
        until = time.monotonic() + 10
        while not progress.done and time.monotonic() < until:
            time.sleep(0.01)
    assert progress.done == 4 and not (tmp_path / PROGRESS_FILE).exists()


def test_a_training_reports_inside_an_epoch_and_what_was_there_before_is_no_speed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr("pipelines.core.progress.FOLLOW_S", 0.01)
    monkeypatch.setattr("pipelines.core.progress.FIRST_S", 0.05)
    progress = Progress("train", 30, "epochs")
    with caplog.at_level(logging.INFO), following(str(tmp_path), progress):
        # Nobody has written anything yet, and still it is told that it runs.
        _until(lambda: bool(caplog.messages))
        assert caplog.messages[0] == "train: 0 of 30 epochs, workers start"
        ProgressFile(str(tmp_path), begin=20).write(20, "epoch 21: 0 rows")
        _until(lambda: progress.done == 20)
        assert progress.rate == 0 and progress.remaining_s is None
        ProgressFile(str(tmp_path), begin=20).write(20.45, "epoch 21: 640 rows")
        before = len(caplog.messages)
        _until(lambda: len(caplog.messages) > before and progress.done > 20)
    assert "train: 20.4 of 30 epochs" in caplog.messages[-1] and "left, epoch 21: 640 rows" in caplog.messages[-1]


def test_a_silent_step_still_says_that_it_runs(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    monkeypatch.setattr("pipelines.core.progress.FOLLOW_S", 0.01)
    monkeypatch.setattr("pipelines.core.progress.FIRST_S", 0.05)
    with caplog.at_level(logging.INFO), ticking(Progress("measure", 1, "split"), "baselines"):
        _until(lambda: len(caplog.messages) > 1)
    assert set(caplog.messages) == {"measure: 0 of 1 split, baselines"}
    # The intervals grow.
    times = [record.created for record in caplog.records]
    _until(lambda: time.time() - times[-1] > 0.3)
    assert len(caplog.records) == len(times)


def _until(happened: Callable[[], bool]) -> None:
    until = time.monotonic() + 10
    while not happened():
        assert time.monotonic() < until
        time.sleep(0.005)

import logging
from typing import Any

import numpy as np
import pytest

from pipelines.core.progress import INTERVAL_S, Ticker, finish


def test_it_is_due_once_in_an_interval(monkeypatch: pytest.MonkeyPatch):
    now = 100.0
    monkeypatch.setattr("pipelines.core.progress.time.monotonic", lambda: now)
    ticker = Ticker()
    found = []
    for step in (1, INTERVAL_S, 1, INTERVAL_S):
        now += step
        found.append(ticker.due())
    assert found == [False, True, False, True]
    assert ticker.rate(44) == pytest.approx(44 / 22)


class Slow:
    """A dataset of three batches, each of which takes six seconds of the clock."""

    def __init__(self, clock: list[float]) -> None:
        self.clock = clock

    def iter_batches(self, **_: object) -> Any:
        for size in (1, 2, 4):
            self.clock[0] += 6
            yield {"boxes": np.ones(size, int)}


def test_a_dataset_is_run_to_its_end_and_says_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    clock = [100.0]
    monkeypatch.setattr("pipelines.core.progress.time.monotonic", lambda: clock[0])
    rows: Any = Slow(clock)
    with caplog.at_level(logging.INFO):
        finish(rows, "boxes", 7, "boxes cut")
    assert clock == [118], "all three batches were asked for"
    assert caplog.messages == ["3 of 7 boxes cut, 0 a second"]

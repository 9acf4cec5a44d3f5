import pytest

from pipelines.progress import INTERVAL_S, Ticker


def test_it_is_due_once_in_an_interval(monkeypatch: pytest.MonkeyPatch):
    now = 100.0
    monkeypatch.setattr("pipelines.progress.time.monotonic", lambda: now)
    ticker = Ticker()
    found = []
    for step in (1, INTERVAL_S, 1, INTERVAL_S):
        now += step
        found.append(ticker.due())
    assert found == [False, True, False, True]
    assert ticker.rate(44) == pytest.approx(44 / 22)

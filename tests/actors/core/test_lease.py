"""One run at a time: who comes second is told, and what a killed run leaves counts for a minute."""

import json
import logging
import subprocess
import sys
import time
from pathlib import Path

import pytest

from actors.core import lease, storage
from actors.core.lease import HeldError, Lease
from actors.core.store import Store

HOLD = """
import sys, time
from actors.core.lease import Lease
from actors.core.store import Store
with Lease(Store(sys.argv[1]), "run"):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture(params=["path", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store") if request.param == "path" else request.getfixturevalue("s3"))


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease of three seconds: S3 counts whole ones."""
    for name, seconds in {"RENEWED_S": 0.3, "LEASE_S": 3.0, "LOOK_S": 0.1}.items():
        monkeypatch.setattr(lease, name, seconds)


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes of this machine cannot be looked at, as those of another."""
    monkeypatch.setattr(lease, "_machine", lambda: "")


def there(store: Store) -> list[str]:
    return [entry.name for entry in storage.listing(store.root)]


def test_the_second_is_told_who_is_at_work_and_the_next_one_is_free(store: Store) -> None:
    with Lease(store, "run"):
        about = json.loads(storage.read_bytes(store.uri("runs", "run.lease")))
        with pytest.raises(HeldError) as told, Lease(store, "run"):
            pass
        for known in ("host", "pid", "since", "command"):
            assert str(about[known]) in str(told.value)
        with Lease(store, "select"):
            pass
    with Lease(store, "run"):
        pass
    assert there(store) == []


def test_force_goes_on_and_the_first_one_says_so(store: Store, fast: None, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with Lease(store, "run"), Lease(store, "run", force=True) as second:
        until = time.monotonic() + 20
        while not any("taken over" in line for line in caplog.messages):
            assert time.monotonic() < until
            time.sleep(0.05)
        assert second._is_ours()


def test_the_lease_of_a_killed_process_of_this_machine_does_not_count(store: Store) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLD, store.root], stdout=subprocess.PIPE)
    assert process.stdout
    try:
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(HeldError, match=f"process {process.pid}"), Lease(store, "run"):
            pass
    finally:
        process.kill()
        process.wait()
    assert there(store) == ["runs/run.lease"]
    with Lease(store, "run"):
        pass


def test_another_machine_is_at_work_while_it_renews(store: Store, fast: None, elsewhere: None) -> None:
    with Lease(store, "run"), pytest.raises(HeldError), Lease(store, "run"):
        pass


def test_the_lease_of_another_machine_that_is_gone_is_waited_for(
    store: Store, fast: None, elsewhere: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    gone = {"token": "x", "host": "away", "pid": 7, "since": "noon", "command": "run", "renewed": 3}
    storage.write_bytes(store.uri("runs", "run.lease"), json.dumps(gone).encode())
    before = time.monotonic()
    with Lease(store, "run") as ours:
        # The clock of S3 has whole seconds.
        assert 1.5 < time.monotonic() - before < 30
        assert ours._is_ours()
    assert any("away, process 7, since noon" in line for line in caplog.messages)
    assert there(store) == []


def test_a_process_with_the_id_of_one_that_has_ended_is_another(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store = Store(str(tmp_path))
    with Lease(store, "run"):
        path = tmp_path / "runs" / "run.lease"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"started": "1"}))
        with Lease(store, "run"):
            pass


def test_what_is_no_lease_does_not_count_for_longer(tmp_path: Path, fast: None) -> None:
    store = Store(str(tmp_path))
    storage.write_bytes(store.uri("runs", "run.lease"), b"torn")
    with Lease(store, "run"):
        pass

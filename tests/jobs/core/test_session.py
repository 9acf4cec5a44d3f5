"""What a command lets through of what Ray's C++ parts write."""

import json
import logging
import subprocess
import sys
from typing import Any

import pytest

from actors.core.log_format import LOG_FORMAT, LineFormatter
from jobs.core.ray_start import json_of

LINE = (
    "[2026-11-28 01:03:46,941 E 1 1] core_worker.cc:2465: Actor with class name: 'MapWorker' and ID: '58' has "
    "constructor arguments in the object store and max_restarts > 0. If the arguments go out of scope, it will fail."
)
CODE = f"""
import logging, os, sys
from jobs.core.session import start_logging, without_noise
start_logging()
terminal = sys.stderr
with without_noise():
    os.write(2, {LINE!r}.encode() + b"\\n")
    os.write(2, b"[2026-11-28 01:03:46,941 W 1 1] (raylet) memory_monitor.cc:9: of Ray\\n")
    os.write(2, b"[2026-11-28 01:03:46,941 F 1 1] core_worker.cc:99: why it dies\\n")
    os.write(2, b"something else\\n")
    print("by Python", file=sys.stderr)
    logging.getLogger("jobs.core").info("logged")
    DIES
assert sys.stderr is terminal
os.write(2, b"afterwards\\n")
"""


def run(dies: str, code: int) -> list[str]:
    program = [sys.executable, "-c", CODE.replace("DIES", dies)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, done.stderr
    return done.stderr.splitlines()


def test_what_ray_logs_is_kept_back_and_all_else_passes():
    lines = run("pass", 0)
    assert not any("max_restarts" in line or "of Ray" in line for line in lines)
    assert any("why it dies" in line for line in lines)
    assert {"something else", "by Python", "afterwards"} <= set(lines)
    assert any(line.endswith(" logged") for line in lines)


def test_what_is_written_when_the_process_dies_passes():
    assert "the end" in run('os.write(2, b"the end\\n"); os._exit(7)', 7)


def test_a_line_of_a_worker_becomes_a_json_object_with_who_wrote_it(monkeypatch: pytest.MonkeyPatch):
    from ray._private.ray_logging import DedupState

    data = {"is_err": True, "pid": 7, "ip": "10.0.0.1", "actor_name": "MapWorker", "task_name": ""}
    monkeypatch.setenv(LOG_FORMAT, "json")
    record = logging.makeLogRecord(
        {"name": "actors.core.child", "levelname": "WARNING", "msg": "no %s", "args": ("x",)}
    )
    record.film, record.code = "a.mp4", "crashed"
    own = LineFormatter("%(message)s").format(record)
    # As Ray writes it once several workers have written it.
    kind: Any = DedupState
    again = kind(0, 3, own, data, set()).formatted()
    told = [json.loads(json_of(data, line)) for line in (own, again, "Segmentation fault")]
    for one in told:
        assert (one["level"], one["worker"], one["pid"], one["node"]) == ("WARNING", "MapWorker", 7, "10.0.0.1")
        assert "time" in one
    assert [one["message"] for one in told] == ["no x", "no x", "Segmentation fault"]
    assert told[0]["film"] == "a.mp4" and told[1]["code"] == "crashed" and told[2]["logger"] == "worker"
    assert told[1]["repeated"] == 3 and "repeated" not in told[0]

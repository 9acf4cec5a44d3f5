"""Start Ray on a busy machine, and keep what it says of itself from the terminal."""

import json
import logging
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from actors.core.errors import UserError
from actors.core.log_format import as_json, json_line
from actors.core.temporary import TemporaryFolder

log = logging.getLogger(__name__)

START_S = 120.0
"""Seconds that a node of Ray has to start. Ray itself waits for 30, which a busy machine exceeds."""
TELL_S = 20.0
"""Seconds of that after which a line says so."""
PROCESSES = ("raylet", "gcs_server")
"""Programs of Ray that stay where the command that started them was killed."""
_REPEATED = re.compile(r"(?:\x1b\[\d+m)* \[repeated (\d+)x across cluster\].*$", re.DOTALL)
"""What Ray adds to a line that several workers have written."""
OF_RAY = ("raylet", "AutoscalingRequester")
"""Processes whose messages are about Ray itself; so are those of actors with an underscore, as _StatsActor."""


def start_ray(**options: Any) -> TemporaryFolder | None:
    """Join the cluster that the environment names, or start one here: where that fails, once more in a fresh folder.

    Returns that folder, which is to be removed once Ray has ended. Raises UserError where Ray does not start. Ends only
    processes that it started.
    """
    import ray

    try:
        with _patience():
            ray.init(**options)
        return None
    except Exception as error:
        if not _end_node(error):
            raise
    folder = TemporaryFolder()
    try:
        with _patience():
            ray.init(**options, _temp_dir=str(folder.path))
    except BaseException as error:
        begun = isinstance(error, Exception) and _end_node(error)
        folder.remove()
        if not begun:
            raise
        raise UserError(_failed(error)) from error
    return folder


@contextmanager
def _patience() -> Iterator[None]:
    """Let a node have START_S to start; Ray 2.60 has no setting for it, and looks for the node by this function."""
    from ray._private import services

    look = services.get_node

    def wait(*arguments: Any) -> Any:
        begun, told = time.monotonic(), False
        while True:
            try:
                return look(*arguments)
            except RuntimeError:
                if time.monotonic() - begun > START_S:
                    raise
            if not told and time.monotonic() - begun > TELL_S:
                log.info("Ray has not started after %.0f s (%s); waiting up to %.0f s", TELL_S, _load(), START_S)
                told = True
            time.sleep(0.2)

    services.get_node = wait
    try:
        yield
    finally:
        services.get_node = look


def _end_node(error: BaseException) -> bool:
    """End the processes of a node that an error kept from starting; whether there was one: Ray leaves them running."""
    from ray._private.node import Node

    trace, node = error.__traceback__, None
    while trace is not None:
        found = trace.tb_frame.f_locals.get("self")
        node = found if isinstance(found, Node) and found.is_head() else node
        trace = trace.tb_next
    if node is None:
        return False
    node.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)
    return True


def _failed(error: BaseException) -> str:
    reason = str(error).strip().partition("\n")[0].rstrip(".")
    left = _running()
    there = f", and {left} processes of other Rays run" if left else ""
    return (
        f"Ray did not start, twice ({reason}). This machine may be too busy ({_load()}{there}). See what runs with "
        f"`top`, and what an earlier Ray left with `pgrep -af '{'|'.join(PROCESSES)}'`. End what is not needed, then "
        "rerun the same command."
    )


def _load() -> str:
    return f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs"


def _running() -> int:
    """How many processes of Ray run on this machine; 0 where the system does not tell."""
    count = 0
    for path in Path("/proc").glob("[0-9]*/comm"):
        try:
            count += path.read_text().strip() in PROCESSES
        except OSError:
            continue
    return count


@contextmanager
def worker_lines(of_ray: bool) -> Iterator[None]:
    """Within it, of what Ray brings from workers to the terminal, only that passes which our code has written, or with
    `of_ray` everything; each line as a JSON object where log lines are.

    To be entered before Ray starts: its threads take the function that is there then.
    """
    from ray._private import ray_logging, worker

    if not of_ray:
        # Of calls of its own actors whose results nobody takes.
        os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    show = worker.print_to_stdstream

    def ours(data: dict[str, Any], *arguments: Any, **named: Any) -> None:
        if is_about_ray(data) and not of_ray:
            return
        if not as_json():
            show(data, *arguments, **named)
            return
        told = ray_logging.stderr_deduplicator if data["is_err"] else ray_logging.stdout_deduplicator
        for batch in told.deduplicate(data):
            lines = batch["lines"]
            for line in worker.filter_autoscaler_events(lines) if batch["pid"] == "autoscaler" else lines:
                print(json_of(batch, line), file=sys.stderr, flush=True)

    worker.print_to_stdstream = ours
    try:
        yield
    finally:
        worker.print_to_stdstream = show


def json_of(data: dict[str, Any], line: str) -> str:
    """A line of a worker as a JSON object: its own, if it is one, with who wrote it, and how often it came since."""
    repeated = _REPEATED.search(line)
    line = line[: repeated.start()] if repeated else line
    try:
        about = json.loads(line)
    except ValueError:
        about = None
    if not isinstance(about, dict) or not about.keys() >= {"level", "logger", "message"}:
        about = json.loads(json_line("WARNING" if data["is_err"] else "INFO", "worker", line))
    names = {"worker": data.get("actor_name") or data.get("task_name"), "pid": data.get("pid"), "node": data.get("ip")}
    about |= {name: value for name, value in names.items() if value}
    if repeated:
        about["repeated"] = int(repeated[1])
    return json.dumps(about, ensure_ascii=False)


def is_about_ray(data: dict[str, Any]) -> bool:
    """Whether lines that Ray brings to the driver are of one of its own processes."""
    actor = data.get("actor_name") or ""
    return data.get("pid") in OF_RAY or actor.startswith("_") or actor in OF_RAY

"""Ray for as long as a command needs it, and what is printed meanwhile."""

import logging
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TextIO

from actors.core.log_format import LOG_FORMAT, LineFormatter, as_json
from actors.core.temporary import remove_abandoned
from jobs.core.ray_start import start_ray, worker_lines
from jobs.core.termination import kept_handler

NOISE = r"^\[[^]]* [IWE] [0-9]+ [0-9]+\] (\([a-z_]+\) )?[a-z_]+\.(cc|h):[0-9]+: "
"""Log lines of Ray's C++ parts, but not those of fatal errors (F)."""
OURS = ("actors", "pipelines", "jobs")
"""Loggers of this project."""


log = logging.getLogger(__name__)


class _Stderr(logging.StreamHandler[TextIO]):
    """Writes to what is standard error now, so that lines go above a live progress display."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def start_logging(verbose: bool = False) -> None:
    """Log this project's events to standard error, one line each; verbose: also those of libraries."""
    handler = _Stderr()
    handler.setFormatter(LineFormatter("%(asctime)s %(message)s", "%H:%M:%S"))
    root = logging.getLogger()
    if not any(isinstance(one, _Stderr) for one in root.handlers):
        root.addHandler(handler)
    root.setLevel(logging.INFO if verbose else logging.ERROR)
    for name in OURS:
        logging.getLogger(name).setLevel(logging.INFO)
    if not verbose:
        warnings.simplefilter("ignore")


def tell_end(record: Mapping[str, Any], told: Sequence[str], lines: Sequence[str]) -> None:
    """Print how a run has ended; as JSON it is one log line, but for lines of a verb that keeps no record, since they
    are its result.

    told: lines of a verb that keeps a record; lines: what the verb itself says.
    """
    if told and as_json():
        names = ("command", "status", "error", "seconds", "started", "rows", "stages")
        about = {name: record.get(name) for name in names}
        log.info(told[0], extra={**about, "lines": [*told[1:], *lines]})
        return
    print(*told, *lines, sep="\n", end="\n" if told or lines else "", flush=True)


def format_logs_of_libraries() -> None:
    """Write what libraries log by handlers of their own, as Ray does, in the form of our lines."""
    for logger in [logging.getLogger(), *logging.root.manager.loggerDict.values()]:
        for handler in getattr(logger, "handlers", ()):
            if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
                for one in (handler, getattr(handler, "plain_handler", None)):
                    if one is not None:
                        one.setFormatter(LineFormatter())


def begin_worker() -> None:
    """Run in each worker when it starts, with --verbose."""
    from pipelines.core.monitoring import meter_worker

    if as_json():
        start_logging(verbose=True)
        format_logs_of_libraries()
    meter_worker()


def begin_quiet_worker() -> None:
    """Run in each worker when it starts: of what is logged there, only this project's warnings reach the driver."""
    begin_worker()
    logging.getLogger().setLevel(logging.ERROR)
    for name in OURS:
        logging.getLogger(name).setLevel(logging.WARNING)
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter("%(message)s"))
    logging.basicConfig(handlers=[handler])
    warnings.simplefilter("ignore")


@contextmanager
def without_noise() -> Iterator[None]:
    """Keep what Ray's C++ parts log from the terminal, as a line for each pool of actors. Everything else passes, also
    what is written when this process dies."""
    grep = shutil.which("grep")
    if grep is None:
        yield
        return
    shown, before = os.dup(2), sys.stderr
    # Ctrl-C is for this process alone.
    with subprocess.Popen(
        [grep, "-a", "-E", "-v", "--line-buffered", NOISE], stdin=subprocess.PIPE, stdout=shown, start_new_session=True
    ) as passed:
        assert passed.stdin
        os.dup2(passed.stdin.fileno(), 2)
        if before is sys.__stderr__:
            # Python's own lines go straight to the terminal, which a progress display has to know.
            sys.stderr = os.fdopen(os.dup(shown), "w", buffering=1)
        try:
            yield
        finally:
            os.dup2(shown, 2)
            os.close(shown)
            if sys.stderr is not before:
                sys.stderr.close()
                sys.stderr = before


@contextmanager
def ray_session(verbose: bool = False) -> Iterator[None]:
    """Join the cluster that the environment names, or start one here; leave what was there before running."""
    import ray

    from actors.core.patience import PATIENCE, patience_s
    from pipelines.core.monitoring import metered
    from pipelines.core.ray_data import set_context

    set_context()
    if as_json():
        format_logs_of_libraries()
    if ray.is_initialized():
        yield
        return
    root = str(Path(__file__).resolve().parents[2])
    # A submitted job has its working directory from Ray; elsewhere workers find the packages by this path.
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    # A worker that starts while the store is away waits for it, too.
    variables = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", PATIENCE: str(patience_s())}
    if as_json():
        variables[LOG_FORMAT] = "json"
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ:
        variables["PYTHONPATH"] = path
    environment: dict[str, Any] = {"env_vars": variables}
    # Ray ends a worker after a second without work where there are more than CPUs, and starts it again at seconds each.
    os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "600000")
    hook = begin_worker if verbose else begin_quiet_worker
    environment["worker_process_setup_hook"] = f"{hook.__module__}.{hook.__qualname__}"
    # A cluster has its dashboard already; on one machine it makes the start longer.
    level = logging.INFO if verbose else logging.ERROR
    with nullcontext() if verbose else without_noise(), worker_lines(of_ray=verbose):
        with kept_handler():
            folder = start_ray(
                runtime_env=environment,
                include_dashboard=False,
                logging_level=level,
                configure_logging=not as_json(),
            )
        try:
            with metered():
                yield
        finally:
            ray.shutdown()
            if folder:
                folder.remove()
            # Workers that were killed leave copies of films; those elsewhere are removed by the next worker there.
            remove_abandoned()

"""Workers and agents of the tests' Rays as forks of a process that has imported what the tests import.

Else each worker imports Ray twice, Ray Data, torch and what it works with: three CPU-seconds and more, a hundred times;
the agents of each Ray take five. Ray runs this file in their place. It asks a server for a fork, and lives as long as
that does. The server is itself a fork of pytest, of the moment when all tests are collected.

    python -m tests.support.forked_workers run MODULE ARGUMENTS    a program as `python -m` runs it, whose Ray does so
"""

import json
import os
import runpy
import select
import socket
import sys
from collections.abc import Callable
from typing import Any

SERVER = "FILMRAY_TESTS_FORKS"
"""Environment variable: name of the server's socket."""
RAY = "2.60.0"
"""The Ray whose insides are meant here; another one starts its own workers."""
OF_RAY = (
    "ray.data._internal.execution.operators.actor_pool_map_operator",
    "ray._private.workers.default_worker",
    "ray._private.workers.setup_worker",
    "ray._private.log_monitor",
    "ray._private.runtime_env.agent.main",
    "ray.autoscaler._private.monitor",
    "ray.dashboard.agent",
    "ray.dashboard.dashboard",
    "ray.dashboard.modules.job.job_head",
    "ray.dashboard.modules.reporter.reporter_head",
    "ray.dashboard.modules.task_events.task_events_head",
)
"""Modules that workers and agents import."""
AS_IMPORTED = {"RAY_JOB_ID": "ffffffff", "RAY_RAYLET_PID": str(os.getpid())}
"""Environment in which Ray has to be imported for forks to become its workers: Ray reads it only then. A worker without
a job gets one with its first task, and it ends where the process has ended that it takes for its raylet."""


class _ClassId:
    """Makes an id as Ray's own does, but for the generator of random ids: once used, it is the same in all forks."""

    @staticmethod
    def from_random() -> Any:
        from ray import ActorClassID

        return ActorClassID(os.urandom(ActorClassID.size()))


def keep_ids_apart() -> None:
    """Have importing Ray Data draw none of Ray's random ids: two forks would choose the same name for an object."""
    import ray.actor

    setattr(ray.actor, "ActorClassID", _ClassId)  # noqa: B010 - the module does not export it


def serve() -> None:
    """Fork the server of this process, which ends with it; `SERVER` in the environment is its name from now on."""
    for name in AS_IMPORTED:
        os.environ.pop(name, None)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"\0{SERVER}-{os.getpid()}")
    listener.listen(64)
    os.environ[SERVER] = f"{SERVER}-{os.getpid()}"
    # The other side is open for as long as this process is there.
    end, _ = os.pipe()
    if os.fork():
        os.close(end)
        listener.close()
        return
    try:
        _close_all_but(end, listener.fileno())
        _forget_pytest()
        _serve(listener, end)
    finally:
        os._exit(0)


def _close_all_but(*kept: int) -> None:
    """Lead all other files into nothing: closed ones would be closed again when their objects are gone."""
    with open(os.devnull, "r+b") as nothing:
        for name in os.listdir("/proc/self/fd"):
            number = int(name)
            if number not in (*kept, nothing.fileno()) and os.path.exists(f"/proc/self/fd/{number}"):
                os.dup2(nothing.fileno(), number)


def _forget_pytest() -> None:
    """Write, log and warn as a process does that has just begun."""
    import logging
    import signal
    import tempfile
    import threading
    import warnings

    sys.stdin, sys.stdout, sys.stderr = sys.__stdin__, sys.__stdout__, sys.__stderr__
    sys.excepthook, sys.unraisablehook = sys.__excepthook__, sys.__unraisablehook__
    threading.excepthook = threading.__excepthook__
    logging.root.handlers.clear()
    logging.root.setLevel(logging.WARNING)
    warnings.resetwarnings()
    tempfile.tempdir = None
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _ask() -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(f"\0{os.environ[SERVER]}")
        asked = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
        socket.send_fds(connection, [len(asked).to_bytes(4, "big")], [0, 1, 2])
        connection.sendall(asked)
        # Until the fork ends, or Ray.
        select.select([connection, os.pidfd_open(os.getppid())], [], [])


def _serve(listener: socket.socket, end: int) -> None:
    """Fork for whoever asks at this socket, until the pipe `end` ends."""
    import importlib
    import signal

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while select.select([listener, end], [], [])[0] == [listener]:
        os.environ.update(AS_IMPORTED)
        for module in OF_RAY:
            importlib.import_module(module)
        asker, _ = listener.accept()
        if not os.fork():
            listener.close()
            os.close(end)
            _become_worker(asker)
        asker.close()


def _become_worker(asker: socket.socket) -> None:
    """Run what is asked for with the streams, folder and environment of the process that asks; never returns."""
    import fcntl
    import signal

    from ray._private.runtime_env.context import RuntimeEnvContext
    from ray._private.workers import setup_worker

    # Where a worker dies, Ray ends all of its group.
    os.setpgid(0, 0)
    size, streams, _, _ = socket.recv_fds(asker, 4, 3)
    argv, folder, environment = json.loads(asker.recv(int.from_bytes(size, "big"), socket.MSG_WAITALL))
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    # The asker waits for the end of this connection. Where the asker ends, this process is killed.
    fcntl.fcntl(asker, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(asker, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(asker, fcntl.F_SETFL, os.O_ASYNC)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    if os.path.basename(argv[0]) == "default_worker.py":
        options, sys.argv = setup_worker.parser.parse_known_args(argv)
        os.environ.update(RuntimeEnvContext.deserialize(options.serialized_runtime_env_context or "{}").env_vars)
    else:
        sys.argv = argv
        # Agents look whether their parent is the raylet.
        os.environ["RAY_RAYLET_PID"] = str(os.getppid())
    code: object = 1
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
        code = 0
    except SystemExit as error:
        code = error.code
    finally:
        os._exit(code if isinstance(code, int) else 1)


def use_forks(put: Callable[[object, str, object], None] = setattr) -> None:
    """Have workers and agents of Rays that this process starts forked, where pytest has started it."""
    from ray import __version__
    from ray._private import ray_constants, services

    # CUDA works in no fork of a process that has looked for it.
    if SERVER not in os.environ or __version__ != RAY or os.path.exists("/dev/nvidiactl"):
        return
    start = services.start_ray_process

    def started(command: list[str], *args: Any, **options: Any) -> Any:
        program = command[2:] if command[:2] == [sys.executable, "-u"] else None
        return start([sys.executable, __file__, *program] if program else command, *args, **options)

    put(ray_constants, "SETUP_WORKER_FILENAME", __file__)
    put(services, "_build_python_executable_command_memory_profileable", lambda *_, **__: [sys.executable, __file__])
    put(services, "start_ray_process", started)


if __name__ == "__main__":
    if sys.argv[1] == "run":
        use_forks()
        del sys.argv[:2]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        _ask()

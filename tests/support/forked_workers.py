"""Workers of the tests' Rays as forks of one process that has imported what they need.

Else each worker imports Ray twice, Ray Data and torch: three CPU-seconds, a hundred times. Ray runs this file in place
of its own setup_worker.py. It asks a server for a fork, and lives as long as that does.

    python -m tests.support.forked_workers run MODULE ARGUMENTS    a program as `python -m` runs it, whose Ray does so
"""

import atexit
import functools
import json
import os
import runpy
import select
import socket
import subprocess
import sys

SERVER = "FILMRAY_TESTS_FORKS"
"""Environment variable: name of the server's socket."""
PRELOADED = (
    "ray.data._internal.execution.operators.actor_pool_map_operator",
    "ray._private.workers.default_worker",
    "ray._private.workers.setup_worker",
    "torch",
    "pipelines.curation.cutting.score",
)


@functools.cache
def server() -> str:
    """The name of this process's server, which ends with this process."""
    name = f"{SERVER}-{os.getpid()}"
    command = [sys.executable, "-m", __name__, "serve", name]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline(), "the server of workers did not start"
    atexit.register(process.communicate)
    return name


def _ask() -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(f"\0{os.environ[SERVER]}")
        asked = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
        socket.send_fds(connection, [len(asked).to_bytes(4, "big")], [0, 1, 2])
        connection.sendall(asked)
        # Until the fork ends, or Ray.
        select.select([connection, os.pidfd_open(os.getppid())], [], [])


def _serve(name: str) -> None:
    """Fork for whoever asks at this socket, until stdin ends."""
    import gc
    import importlib
    import selectors
    import signal

    # Ray reads these when it is imported. A worker without a job gets one with its first task, and it ends where the
    # process has ended that it takes for its raylet.
    os.environ |= {"RAY_JOB_ID": "ffffffff", "RAY_RAYLET_PID": str(os.getpid())}
    gc.disable()
    for module in PRELOADED:
        importlib.import_module(module)
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"\0{name}")
    listener.listen(64)
    os.write(1, b"ready\n")
    with selectors.DefaultSelector() as waiting:
        waiting.register(listener, selectors.EVENT_READ)
        waiting.register(sys.stdin, selectors.EVENT_READ)
        while all(key.fileobj is listener for key, _ in waiting.select()):
            asker, _ = listener.accept()
            if not os.fork():
                listener.close()
                _become_worker(asker)
            asker.close()


def _become_worker(asker: socket.socket) -> None:
    """Run what is asked for with the streams, folder and environment of the process that asks; never returns."""
    import fcntl
    import gc
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
    gc.enable()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    options, sys.argv = setup_worker.parser.parse_known_args(argv)
    os.environ.update(RuntimeEnvContext.deserialize(options.serialized_runtime_env_context or "{}").env_vars)
    code: object = 1
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
        code = 0
    except SystemExit as error:
        code = error.code
    finally:
        os._exit(code if isinstance(code, int) else 1)


def use_forks() -> None:
    """Have workers of Rays that this process starts forked."""
    from ray._private import ray_constants

    ray_constants.SETUP_WORKER_FILENAME = __file__


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        _serve(sys.argv[2])
    elif sys.argv[1] == "run":
        use_forks()
        del sys.argv[:2]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        _ask()

"""What the whole suite shares: one Ray cluster, a browser, and a VAE that is small enough for tests."""

import gc
import os
import shutil
import signal
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from filelock import FileLock

from tests.support import colours, forked_workers, tiny_models
from tests.support.servers import gemini, host, s3, s3_server  # noqa: F401

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from tests.support.fake_cuda import FakeCuda

ROOT = Path(__file__).resolve().parents[1]
# A shell starts what runs in its background without SIGINT, and what that starts would have none to be tested with.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Threads of OpenMP wait for each other in a loop: where other tests keep the cores busy, as they always do, a model on
# two threads takes ten times the CPU-seconds that it takes on one. What tests start inherits it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# On loopback no token is needed, and making one would write into the home folder.
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
# What costs a test seconds of imports: workers that Ray ends after a second without work and starts again, and an actor
# of each training that watches for nodes which are taken away.
os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "60000")
os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
# It looks for new log files ten times a second else.
os.environ.setdefault("RAY_LOG_MONITOR_MANY_FILES_THRESHOLD", "1")
# No test asks for them; each process would tell the head of all its tasks once a second, and of its event loops.
os.environ.setdefault("RAY_task_events_report_interval_ms", "0")
os.environ.setdefault("RAY_event_stats", "0")
os.environ.update(forked_workers.AS_IMPORTED)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Imports make objects that stay: looking for those that do not takes a fifth of the time."""
    gc.disable()
    forked_workers.keep_ids_apart()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_collection_finish() -> None:
    """The modules of all tests are two million objects, which each full collection would look through: a second."""
    gc.collect()
    gc.freeze()
    forked_workers.serve()


def pytest_unconfigure() -> None:
    """What was frozen would be told as leaked when Python ends."""
    gc.unfreeze()


def pytest_runtest_teardown() -> None:
    """A library that makes a process of tests real-time starves all others, and what it starts inherits that."""
    assert os.sched_getscheduler(0) == os.SCHED_OTHER, "this process has become a real-time one: see films.aside"


@pytest.fixture(scope="session")
def ray_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One local cluster of two CPUs for the session."""
    import ray

    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        # Several that start at once take longer than Ray waits for them.
        with FileLock(tmp_path_factory.getbasetemp().parent / "ray.lock"), pytest.MonkeyPatch.context() as inherited:
            # As a runtime_env, none of the workers that Ray starts at once would count as having it.
            inherited.setenv("PYTHONPATH", str(ROOT))
            forked_workers.use_forks(inherited.setattr)
            _start_ray(folder)
        with pytest.MonkeyPatch.context() as here:
            here.setattr("os.fork", _no_fork)
            yield
        ray.shutdown()


def _no_fork() -> None:
    """A fork shares what Ray's threads wait for, and may take an answer away from them: they wait for ever then."""
    raise RuntimeError("this process is a driver of Ray: fork in a process of its own, as test_storage does")


def _start_ray(folder: str) -> None:
    """Ray gives a node 30 seconds to start, which a busy machine may exceed."""
    import ray

    for attempt in range(4):
        try:
            ray.init(
                address="local",
                num_cpus=2,
                include_dashboard=False,
                log_to_driver=False,
                _temp_dir=f"{folder}/{attempt}",
            )
            return
        except Exception as error:
            if attempt == 3 or "timed out during startup" not in str(error):
                raise
            ray.shutdown()


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    """A headless Chromium, the system's; for one module, since its event loop stays in this thread while it runs."""
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium")
    assert program, "no program `chromium`; install the package chromium"
    # Its sandbox refuses to run as root, as in a container.
    options = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=options)
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def vae_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny AutoencoderKL with random weights, as diffusers saves it."""
    import torch
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    torch.manual_seed(0)
    folder = str(tmp_path_factory.mktemp("vae"))
    blocks: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "block_out_channels": (8, 8),
        "norm_num_groups": 4,
    }
    AutoencoderKL(**blocks).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A CLIP model that knows colours, as open_clip saves it."""
    return colours.clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="session")
def sd_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny Stable Diffusion with random weights, as diffusers saves it."""
    return tiny_models.stable_diffusion(tmp_path_factory.mktemp("sd"))


@pytest.fixture
def cuda() -> "Iterator[FakeCuda]":
    """A CUDA device that is none, which refuses what CUDA refuses, and counts copies and waits."""
    import torch

    from tests.support.fake_cuda import FakeCuda

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    # A process of tests shares its cores with others.
    torch.set_num_threads(1)
    with FakeCuda() as device:
        yield device

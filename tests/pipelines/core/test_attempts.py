"""What kills its workers is given up after three of them; nodes that are lost do not count."""

import os
import signal
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from actors.core.stage import Batch, Stage
from pipelines.core import attempts
from pipelines.core.attempts import KilledError, memory_kills, repeated
from pipelines.core.ray_data import batches, ray_actors, ray_task, set_context
from tests.conftest import ROOT
from tests.pipelines.core.spot import ACTOR, TASK
from tests.support import corpus


def die(batch: Batch, folder: Path) -> Batch:
    """Kill the worker that is at the second of the films, once it has left its name and its node."""
    if 1 in batch["video_index"]:
        import ray

        context = ray.get_runtime_context()
        (folder / f"{len(list(folder.iterdir()))}").write_text(f"{context.get_worker_id()} {context.get_node_id()}")
        os.kill(os.getpid(), signal.SIGKILL)
    return batch


def films(count: int) -> Any:
    import ray

    return ray.data.from_items([{"video_index": number, "video_id": f"{number}.mp4"} for number in range(count)])


def test_a_task_that_kills_its_worker_is_tried_three_times_and_tells_its_film(ray_cluster: None, tmp_path: Path):
    """The way to them is no public one: checked with the version that is pinned, to be looked at with another."""
    import ray

    assert ray.__version__ == "2.60.0"
    set_context()
    work: Any = partial(die, folder=tmp_path)
    with pytest.raises(KilledError, match=r"3 workers died at 1\.mp4, and none of their nodes") as told:
        list(batches(films(2).repartition(2).map_batches(work, batch_size=1, **ray_task(Stage(num_cpus=0.5)))))
    cause: Any = told.value
    assert cause.cause.films == {1}
    assert len(list(tmp_path.iterdir())) == 3


class Dying:
    """A worker that dies when it starts, or with the second film."""

    def __init__(self, folder: Path, start: bool) -> None:
        self.folder = folder
        if start:
            die({"video_index": [1]}, folder)  # type: ignore[arg-type]

    def __call__(self, batch: Batch) -> Batch:
        return die(batch, self.folder)


@pytest.mark.slow
@pytest.mark.parametrize("start", [False, True])
def test_an_actor_that_dies_each_time_ends_the_run(ray_cluster: None, tmp_path: Path, start: bool):
    set_context()
    rows = films(2).map_batches(Dying, fn_constructor_args=[tmp_path, start], **ray_actors(Stage(num_cpus=0.5)))
    with pytest.raises(Exception, match="3 workers died at"):
        list(batches(rows))
    assert len(list(tmp_path.iterdir())) == 3


def test_a_task_of_its_own_is_counted_too(ray_cluster: None, tmp_path: Path):
    import ray

    with pytest.raises(KilledError, match="3 workers died"):
        ray.get(repeated(die)({"video_index": [1]}, tmp_path))
    assert len(list(tmp_path.iterdir())) == 3
    assert ray.get(repeated(die)({"video_index": [0]}, tmp_path)) == {"video_index": [0]}
    # The kernel killed something for lack of memory while the last of them worked, or it did not.
    worker, node = (tmp_path / "2").read_text().split()
    kills = memory_kills()
    assert attempts._ended(worker, node, kills - 1) == {"crashed": True, "for_memory": True}
    assert attempts._ended(worker, node, kills) == {"crashed": True, "for_memory": False}
    alive = ray.get_runtime_context().get_worker_id()
    assert attempts._ended(alive, node, kills - 1) == {"crashed": False, "for_memory": False}


def test_what_the_kernel_has_killed_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(attempts, "VMSTAT", tmp_path / "vmstat")
    assert memory_kills() == 0, "there is no such file where the kernel is another one"
    (tmp_path / "vmstat").write_text("pgfault 7\noom_kill 12\noom_kill_pages 3\n")
    assert memory_kills() == 12


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_nodes_that_are_lost_use_up_no_tries(tmp_path: Path):
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as place:
        # A cluster tells its address there, and others that start meanwhile would join it.
        env = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_TMPDIR": place}
        command = [sys.executable, "-m", "tests.pipelines.core.spot", tmp_path]
        try:
            done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env, timeout=300, check=False)
        finally:
            corpus.Session(place).end()
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "[[0]]"
    # What the actor was given is computed again where it was lost with its node.
    assert len(list((tmp_path / "task").iterdir())) > len(TASK)
    assert len(list((tmp_path / "actor").iterdir())) == len(ACTOR) + 1

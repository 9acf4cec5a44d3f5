"""Several workers train an identity as one does: the same steps up to rounding, and the same end after any kill."""

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file
from torch import Tensor

from actors.core.errors import UserError
from actors.movie_characters import peers as peers_module
from actors.movie_characters import personalise_steps as steps_module
from actors.movie_characters.identities import LORA, OPTIMIZED
from actors.movie_characters.peers import Peers
from actors.movie_characters.personalise_settings import DONE, PersonaliseConfig, Together
from actors.movie_characters.personaliser import Personaliser
from jobs.core.settings import load
from pipelines.movie_characters.personalise import personalise, plan_personalise
from tests.support import corpus


class Threads(Peers):
    """Workers that are threads of one process and add on a shared list."""

    def __init__(
        self, rank: int, count: int, barrier: threading.Barrier, shelf: list[Any], sharded: bool = False
    ) -> None:
        super().__init__(rank, count, sharded)
        object.__setattr__(self, "about", (barrier, shelf))

    def reduce(self, tensor: Tensor) -> None:
        tensor.copy_(torch.stack(self.each(tensor.clone())).sum(0))

    def each(self, value: Any) -> list[Any]:
        barrier, shelf = self.about  # pyright: ignore[reportAttributeAccessIssue]
        shelf[self.rank] = value
        barrier.wait(60)
        found = list(shelf)
        barrier.wait(60)
        return found


class Killed(BaseException):
    """What ends a worker."""


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faces")
    random = np.random.default_rng(0)
    for name in ("Ann_1", "Bob_1"):
        Image.fromarray(random.integers(0, 256, (18, 24, 3), np.uint8)).save(folder / f"{name}.png")
    (folder / "Bob_2.png").write_text("no picture")
    return folder


def settings(faces: Path, sd_folder: str) -> list[str]:
    """Of a training with four rows a step, in two pieces."""
    return [
        f"input={faces}",
        f"pretrained_model_name_or_path={sd_folder}",
        "resolution=16",
        "train_batch_size=2",
        "gradient_accumulation_steps=2",
        "emb_learning_rate=0.05",
        "learning_rate=1e-3",
        "lora_learning_rate=0.01",
        "log_interval=2",
        "checkpoint_s=0",
    ]


def learn(config: PersonaliseConfig, workers: int) -> list[list[tuple[str, str]]]:
    """Train what the plan lacks by so many workers; returns what each says. Raises Killed where one was killed."""
    todo = plan_personalise(config).todo
    barrier, shelf = threading.Barrier(workers), [None] * workers
    found: list[Any] = [None] * workers
    made = [Personaliser(config, todo, Threads(rank, workers, barrier, shelf)) for rank in range(workers)]

    def run(rank: int) -> None:
        try:
            found[rank] = [made[rank].train(task) for task in todo]
        except (Killed, threading.BrokenBarrierError):
            barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(workers)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    if barrier.broken:
        raise Killed
    return found


def learnt(output: str, name: str) -> dict[str, np.ndarray]:
    """All tensors of an identity's folder."""
    files = sorted(Path(output, name).rglob("*.safetensors"))
    return {f"{file.stem}.{key}": tensor for file in files for key, tensor in load_file(file).items()}


def assert_alike(one: str, other: str, name: str) -> None:
    ours, theirs = learnt(one, name), learnt(other, name)
    assert ours.keys() == theirs.keys() and ours
    for key in ours:
        assert ours[key] == pytest.approx(theirs[key], abs=2e-4), key
    losses = [json.loads(Path(output, name, DONE).read_text())["losses"] for output in (one, other)]
    assert losses[0].keys() == losses[1].keys()
    for phase in losses[0]:
        assert np.array(losses[0][phase]) == pytest.approx(np.array(losses[1][phase]), rel=1e-4)


@pytest.mark.parametrize("method", [pytest.param("imagic", marks=pytest.mark.slow), "textual_inversion"])
def test_workers_share_the_rows_of_a_step_and_a_killed_one_changes_nothing(
    faces: Path, sd_folder: str, tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Gradients travel in more than one message.
    monkeypatch.setattr(peers_module, "BUCKET", 200)
    common = [*settings(faces, sd_folder), f"method={method}", "emb_train_steps=3", "max_train_steps=3"]
    alone = load(PersonaliseConfig, [*common, f"output={tmp_path / 'alone'}"])
    ended = [("", ""), ("", ""), ("not_an_image", f"{faces / 'Bob_2.png'}")]
    told = learn(alone, 1)[0]
    assert [code for code, _ in told] == [code for code, _ in ended]
    shared = replace(alone, output=str(tmp_path / "shared"))
    save = steps_module.Steps._save
    saved: list[str] = []

    def dying(steps: Any, phase: str, *arguments: Any) -> None:
        save(steps, phase, *arguments)
        saved.append(phase)
        if len(saved) == 2:
            raise Killed

    monkeypatch.setattr(steps_module.Steps, "_save", dying)
    with pytest.raises(Killed):
        learn(shared, 3)
    # By another number of workers, of which one has two rows, and the others one.
    assert learn(shared, 2) == [told, told]
    for name in ("Ann_1", "Bob_1"):
        assert_alike(alone.output, shared.output, name)


def test_a_loss_that_is_not_finite_ends_the_identity_on_all_workers(
    faces: Path, sd_folder: str, tmp_path: Path
) -> None:
    common = [*settings(faces, sd_folder), "method=imagic", f"output={tmp_path}", "emb_train_steps=0"]
    config = replace(load(PersonaliseConfig, [*common, "max_train_steps=5"]), learning_rate=1e30, log_interval=5)
    one, other = learn(config, 2)
    assert one == other and [code for code, _ in one] == ["diverged", "diverged", "not_an_image"]
    assert "not finite in step 2" in one[0][1]


def test_each_worker_needs_a_row_of_every_step(faces: Path, sd_folder: str) -> None:
    with pytest.raises(UserError, match=r"training.workers=5 is outside 1..4: a step has"):
        load(PersonaliseConfig, [*settings(faces, sd_folder), "output=x", "training.workers=5"])


def test_how_many_workers_train_is_no_setting_of_what_is_trained(faces: Path, sd_folder: str, tmp_path: Path) -> None:
    config = load(PersonaliseConfig, [*settings(faces, sd_folder), f"output={tmp_path}"])
    assert plan_personalise(config).tasks == plan_personalise(replace(config, training=Together(workers=2))).tasks


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_workers_of_ray_train_end_as_an_actor_does_after_the_death_of_one_and_of_the_driver(
    ray_cluster: None, faces: Path, sd_folder: str, tmp_path: Path
) -> None:
    common = [*settings(faces, sd_folder), "emb_train_steps=3", "max_train_steps=40"]
    together = ["training.workers=2", "diffusion.num_cpus=0.5", f"output={tmp_path / 'together'}"]
    ids = tmp_path / "together"

    def steps_of(name: str) -> Callable[[], bool]:
        return (ids / "checkpoints" / name / "unet.safetensors").exists

    program = ("-m", "jobs.movie_characters")
    with corpus.job(tmp_path / "log.txt", "personalise", *common, *together, program=program, workers="own") as running:
        running.wait_until(steps_of("Ann_1"))
        driver = psutil.Process(running.process.pid)
        workers = [one for one in driver.children(recursive=True) if "RayTrainWorker" in " ".join(one.cmdline())]
        assert len(workers) == 2
        workers[1].kill()
        running.wait_until(lambda: (ids / "Ann_1" / DONE).exists() and steps_of("Bob_1")())
        running.kill()
    done = (ids / "Ann_1" / LORA).stat().st_mtime_ns
    config = load(PersonaliseConfig, [*common, *together])
    plan = plan_personalise(config)
    assert [task.name for task in plan.todo] == ["Bob_1", "Bob_2"]
    assert personalise(config, plan) == {"not_an_image": 1}
    assert (ids / "Ann_1" / LORA).stat().st_mtime_ns == done
    assert not list(ids.glob("checkpoints/*/*.safetensors"))
    alone = load(PersonaliseConfig, [*common, f"output={tmp_path / 'alone'}"])
    todo = plan_personalise(alone).todo
    Personaliser(alone, todo)({"number": np.arange(len(todo))})
    for name in ("Ann_1", "Bob_1"):
        assert_alike(str(ids), alone.output, name)
        assert learnt(alone.output, name)[f"{OPTIMIZED}.{OPTIMIZED}"].shape == (1, 77, 16)

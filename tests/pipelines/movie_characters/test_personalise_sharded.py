"""A network that is divided over workers is trained as one that is whole: the same files, after a kill, too."""

import json
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import distributed
from torch.multiprocessing.spawn import ProcessException, spawn

from actors.core.errors import UserError
from actors.movie_characters import personalise_steps as steps_module
from actors.movie_characters import personaliser as personaliser_module
from actors.movie_characters.peers import Peers
from actors.movie_characters.personalise_settings import DONE, PersonaliseConfig, Task
from actors.movie_characters.personaliser import Personaliser
from actors.movie_characters.sharding import own
from jobs.core.settings import load
from pipelines.movie_characters import personalise as personalise_module
from pipelines.movie_characters.personalise import personalise, plan_personalise
from tests.pipelines.movie_characters.test_families import MODELS
from tests.pipelines.movie_characters.test_personalise_together import (
    Killed,
    Threads,
    assert_alike,
    learnt,
    settings,
)


@pytest.fixture(scope="module")
def face(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("faces") / "Ann_1.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (18, 24, 3), np.uint8)).save(path)
    return path


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Peers]:
    """A process group of this process alone."""
    join(f"{tmp_path}/meet", 0, 1)
    yield Peers(sharded=True)
    distributed.destroy_process_group()


def join(file: str, rank: int, count: int) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=count)


def train(config: PersonaliseConfig, peers: Peers) -> Personaliser:
    todo = plan_personalise(config).todo
    made = Personaliser(config, todo, peers)
    assert [made.train(task)[0] for task in todo] == [""] * len(todo)
    return made


def dying_at(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a worker die after it has written so many checkpoints."""
    save, saved = steps_module.Steps._save, []

    def dying(*arguments: Any) -> None:
        save(*arguments)
        saved.append(arguments)
        if len(saved) == number:
            raise Killed

    monkeypatch.setattr(steps_module.Steps, "_save", dying)


def files(output: str) -> dict[str, bytes]:
    """Names of all files of the identity, and what is in those that hold no trained weights."""
    folder = Path(output, "Ann_1")
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() if name.endswith("config.json") else b"" for name, path in found.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    [
        ["method=lora"],
        ["method=textual_inversion"],
        ["method=imagic"],
        ["method=imagic", "mixed_precision=bf16"],
        ["method=lora", "mixed_precision=bf16", "gradient_checkpointing=true"],
    ],
)
def test_the_files_are_those_of_a_whole_network_after_a_kill_too(
    face: Path,
    sd_folder: str,
    tmp_path: Path,
    alone: Peers,
    how: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    common = [*settings(face, sd_folder), *how, "emb_train_steps=2", "max_train_steps=3"]
    whole = load(PersonaliseConfig, [*common, f"output={tmp_path / 'whole'}"])
    train(whole, Peers())
    shared = replace(whole, output=str(tmp_path / "shared"))
    with monkeypatch.context() as patch:
        dying_at(1 if whole.method == "textual_inversion" else 3, patch)
        with pytest.raises(Killed):
            train(shared, alone)
    assert list(Path(shared.output, "checkpoints").rglob("*.safetensors"))
    train(shared, alone)
    assert files(shared.output) == files(whole.output)
    if whole.precision == "no":
        assert_alike(whole.output, shared.output, "Ann_1")
        return
    # The first steps of Adam go by the sign of a gradient, which bfloat16 may turn where it is next to nothing.
    found = [learnt(one.output, "Ann_1") for one in (whole, shared)]
    ours, theirs = (np.concatenate([one[name].ravel() for name in found[0]]) for one in found)
    assert float(ours @ theirs) > 0.99 * float(np.linalg.norm(ours) * np.linalg.norm(theirs))
    losses = [json.loads(Path(one.output, "Ann_1", DONE).read_text())["losses"]["unet"] for one in (whole, shared)]
    assert losses[0] == [[step, pytest.approx(loss, rel=5e-3)] for step, loss in losses[1]]


@pytest.mark.slow
def test_a_divided_network_goes_on_from_where_a_whole_one_was_and_the_other_way_round(
    face: Path,
    sd_folder: str,
    tmp_path: Path,
    alone: Peers,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    common = [*settings(face, sd_folder), "method=imagic", "emb_train_steps=1", "max_train_steps=4"]
    whole = load(PersonaliseConfig, [*common, f"output={tmp_path / 'whole'}"])
    train(whole, Peers())
    mixed = replace(whole, output=str(tmp_path / "mixed"))
    for peers in (Peers(), alone, Peers()):
        with monkeypatch.context() as patch:
            dying_at(1, patch)
            with pytest.raises(Killed):
                train(mixed, peers)
    train(mixed, alone)
    assert_alike(whole.output, mixed.output, "Ann_1")


@pytest.mark.parametrize(("rows", "size", "workers"), [(9, 3, 4), (4, 2, 3), (6, 2, 2), (7, 7, 7)])
def test_all_workers_make_the_same_passes_and_every_row_counts_once(rows: int, size: int, workers: int) -> None:
    for sharded in (False, True):
        passes = [Peers(rank, workers, sharded).pieces(rows, size) for rank in range(workers)]
        seen = [row for some in passes for one in some for row in range(one.start, one.stop)]
        assert sorted(seen) == list(range(rows))
        assert all(
            one.start // size == (one.stop - 1) // size for some in passes for one in some if one.stop > one.start
        )
        assert not sharded or len({len(some) for some in passes}) == 1


@pytest.mark.slow
def test_a_pass_without_rows_of_its_own_counts_for_nothing(
    face: Path,
    sd_folder: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By threads, none of whose networks is divided, so that passes alone are those of a divided one."""
    monkeypatch.setattr(personaliser_module, "divide", lambda *arguments: None)
    # Threads share the generator that draws a LoRA: there is none.
    common = [*settings(face, sd_folder), "train_batch_size=3", "gradient_accumulation_steps=3", "method=imagic"]
    config = load(PersonaliseConfig, [*common, "emb_train_steps=2", "max_train_steps=2", f"output={tmp_path / 'one'}"])
    train(config, Peers())
    shared = replace(config, output=str(tmp_path / "four"))
    todo = plan_personalise(shared).todo
    barrier, shelf = threading.Barrier(4), [None] * 4
    workers = [Personaliser(shared, todo, Threads(rank, 4, barrier, shelf, sharded=True)) for rank in range(4)]
    threads = [threading.Thread(target=worker.train, args=(todo[0],)) for worker in workers]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert_alike(config.output, shared.output, "Ann_1")


def test_what_a_divided_network_cannot_is_said_first(face: Path, sd_folder: str) -> None:
    common = [*settings(face, sd_folder), "output=x", "training.shard=true"]
    with pytest.raises(UserError, match=r"Set training\.workers=2 or more"):
        load(PersonaliseConfig, common)
    with pytest.raises(UserError, match="without use_8bit_adam"):
        load(PersonaliseConfig, [*common, "training.workers=2", "use_8bit_adam=true"])


def _worker(rank: int, count: int, meet: str, arguments: list[str], dies: bool) -> None:
    """A process of its own that trains with others."""
    torch.set_num_threads(1)
    join(meet, rank, count)
    config = load(PersonaliseConfig, arguments)
    if dies and rank == 1:
        dying_at(3, pytest.MonkeyPatch())
    made = train(config, Peers(rank, count, sharded=True))
    unet = made._model.unet
    held = sum(own(one).numel() for one in unet.parameters())
    Path(meet + f".{rank}").write_text(json.dumps([held, sum(one.numel() for one in unet.parameters())]))
    distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("method", ["imagic", "lora"])
def test_two_processes_hold_half_of_the_network_each(
    face: Path,
    sd_folder: str,
    tmp_path: Path,
    method: str,
) -> None:
    common = [*settings(face, sd_folder), f"method={method}", "emb_train_steps=2", "max_train_steps=4"]
    whole = load(PersonaliseConfig, [*common, f"output={tmp_path / 'whole'}"])
    train(whole, Peers())
    arguments = [*common, f"output={tmp_path / 'shared'}"]
    with pytest.raises(ProcessException):
        spawn(_worker, (2, f"{tmp_path}/first", arguments, True), nprocs=2)
    assert list((tmp_path / "shared" / "checkpoints").rglob("unet.safetensors"))
    spawn(_worker, (2, f"{tmp_path}/second", arguments, False), nprocs=2)
    assert_alike(whole.output, str(tmp_path / "shared"), "Ann_1")
    assert files(whole.output) == files(str(tmp_path / "shared"))
    assert (tmp_path / "shared" / "Ann_1" / DONE).exists()
    for rank in range(2):
        held, all_of_it = json.loads(Path(f"{tmp_path}/second.{rank}").read_text())
        # A LoRA is whole on every worker, and weights whose first side is odd are not halved exactly.
        assert held == pytest.approx(all_of_it / 2, rel=0.15 if method == "lora" else 0.02)


def dying_once(config: PersonaliseConfig, todo: Sequence[Task], loop: Any = personalise_module._train_all) -> Any:
    """What a worker of Ray Train does, of which the second dies once, after its second checkpoint."""
    from ray.train import get_context

    died = Path(config.output, "died")
    if get_context().get_world_rank() == 1 and not died.exists():
        save, saved = steps_module.Steps._save, []

        def dying(*arguments: Any) -> None:
            save(*arguments)
            saved.append(arguments)
            if len(saved) == 2:
                died.touch()
                os._exit(1)

        pytest.MonkeyPatch().setattr(steps_module.Steps, "_save", dying)
    return loop(config, todo)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", MODELS)
def test_ray_train_divides_each_kind_of_model_and_goes_on_after_the_death_of_a_worker(
    ray_cluster: None, face: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").mkdir()
    common = [*settings(face, MODELS[kind](tmp_path / "model")), "resolution=32", "method=lora"]
    common += ["emb_train_steps=1", "max_train_steps=2"]
    whole = load(PersonaliseConfig, [*common, f"output={tmp_path / 'whole'}"])
    train(whole, Peers())
    divided = ["training.workers=2", "training.shard=true", "diffusion.num_cpus=0.5", f"output={tmp_path / 'shared'}"]
    shared = load(PersonaliseConfig, [*common, *divided])
    if kind == "flux":
        monkeypatch.setattr(personalise_module, "_train_all", dying_once)
    assert not personalise(shared, plan_personalise(shared))
    assert_alike(whole.output, shared.output, "Ann_1")
    assert files(whole.output) == files(shared.output)
    assert (tmp_path / "shared" / "died").exists() == (kind == "flux")

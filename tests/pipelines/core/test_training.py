"""A training says what it learnt, makes the same steps on one worker or two, and goes on after any kill."""

import csv
import io
import json
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import ray
import torch
from ray.train import get_context
from safetensors.torch import load
from torch import Tensor, nn

from actors.core import storage
from actors.core.errors import UserError
from pipelines.core.curves import Row, draw_curves
from pipelines.core.epochs import train_epoch, train_in_bfloat16
from pipelines.core.training import Trained, fit, train
from pipelines.core.training_config import TrainingConfig, best_epoch, finished, learning_rate
from pipelines.core.training_rows import Rows, Share
from tests.pipelines.core import line
from tests.support import corpus

CPU = torch.device("cpu")


def values(*numbers: float) -> list[Row]:
    return [{"epoch": epoch, "train_loss": 1.0, "f1": number} for epoch, number in enumerate(numbers, 1)]


def test_the_learning_rate_stays_falls_along_a_cosine_or_in_steps() -> None:
    config = TrainingConfig(epochs=400, learning_rate=0.5)
    assert {learning_rate(config, epoch) for epoch in range(400)} == {0.5}
    cosine = replace(config, schedule="cosine")
    assert learning_rate(cosine, 0) == 0.5 and learning_rate(cosine, 200) == pytest.approx(0.25)
    assert learning_rate(cosine, 399) < 1e-4
    step = replace(config, schedule="step")
    assert [learning_rate(step, epoch) for epoch in (149, 150, 300)] == pytest.approx([0.5, 0.3, 0.18])


def test_training_ends_when_nothing_gets_better_for_as_long_as_patience_lasts() -> None:
    config = TrainingConfig(epochs=6, monitor="f1", mode="max", patience=2)
    history = values(math.nan, 0.4, 0.3, 0.5, 0.5, 0.1)
    assert [best_epoch(history[:n], config) for n in range(7)] == [0, 0, 2, 2, 4, 4, 4]
    assert [finished(history[:n], config) for n in range(7)] == [False] * 6 + [True]
    assert best_epoch(history, replace(config, mode="min")) == 6
    assert finished(values(math.nan, math.nan), config)
    endless = replace(config, patience=None)
    assert not finished(history[:5], endless) and finished(history, endless)


def test_of_epochs_that_find_all_the_one_of_least_loss_is_best() -> None:
    history: list[Row] = [
        {"epoch": 1, "found": 0.5, "valid_loss": 0.1},
        {"epoch": 2, "found": 1.0, "valid_loss": 3.0},
        {"epoch": 3, "found": 1.0, "valid_loss": 2.0},
        {"epoch": 4, "found": 1.0, "valid_loss": float("nan")},
        {"epoch": 5, "found": float("nan"), "valid_loss": 0.0},
    ]
    assert best_epoch(history, TrainingConfig(monitor="found", mode="max")) == 3
    assert best_epoch(history[4:], TrainingConfig(monitor="found", mode="max")) == 0


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"patience": 0}, {"learning_rate": 0.0}, {"seed": -1}])
def test_settings_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        TrainingConfig(**wrong)


@pytest.mark.parametrize("accumulate", [1, 3, 100])
def test_a_step_follows_the_gradient_of_the_mean_over_the_batch(accumulate: int) -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 2.0)
    x, y = torch.arange(5.0), torch.arange(5.0).square()
    shares = [Share({"x": x, "y": y}, 5, True), Share({"x": x[:1] + 7, "y": y[:1]}, 1, False)]
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    total, count = train_epoch(model, optimizer, shares, line.loss, accumulate)
    # d/dw mean (w x - y)² = 2 (w Σx² - Σxy) / n; the second batch does not count here.
    assert model.weight.item() == pytest.approx(2 - 0.01 * 2 * (2 * 30 - 100) / 5)
    assert total.item() == pytest.approx((2 * x - y).square().sum().item())
    assert count == 6


def test_only_the_forward_of_a_training_is_in_bfloat16() -> None:
    model = nn.Sequential(nn.Linear(64, 1, bias=False))
    x = torch.rand(1, 64)
    exact = model(x)
    train_in_bfloat16(model, "cpu")
    seen: list[torch.dtype] = []
    model[0].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        found = model(batch["x"])
        assert found.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        return found.square().mean()

    train_epoch(model.train(), torch.optim.SGD(model.parameters(), 0.0), [Share({"x": x}, 1, True)], loss)
    assert torch.equal(model.eval()(x), exact)
    assert seen == [torch.bfloat16, torch.float32]


@pytest.fixture(scope="module")
def numbered(ray_cluster: None) -> ray.data.Dataset:
    """1,003 rows in several blocks."""
    options = ray.data.DataContext.get_current().execution_options
    before, options.preserve_order = options.preserve_order, True
    dataset = ray.data.range(1003, override_num_blocks=7).materialize()
    options.preserve_order = before
    return dataset


@pytest.fixture(params=[1 << 20, 3000], ids=["kept", "streamed"])
def thousand(request: pytest.FixtureRequest, numbered: ray.data.Dataset) -> Rows:
    options = numbered.context.execution_options
    options.preserve_order = True
    return Rows(numbered.iterator(), CPU, request.param)


def ids(shares: Iterator[Share]) -> list[list[int]]:
    return [share.batch["id"].tolist() if share.counts else [] for share in shares]


def test_workers_share_every_batch_of_one_worker(thousand: Rows) -> None:
    alone = ids(thousand.shares(32, (1, 5)))
    assert [len(batch) for batch in alone] == [32] * 31 + [11]
    flat = [number for batch in alone for number in batch]
    assert sorted(flat) == list(range(1003)) and np.abs(np.diff(flat)).mean() > 50
    three = [ids(thousand.shares(32, (1, 5), worker, 3)) for worker in range(3)]
    assert [list(chain(*parts)) for parts in zip(*three, strict=True)] == alone
    assert ids(thousand.shares(32, (1, 6))) != alone


def test_a_worker_without_a_row_borrows_one_that_does_not_count(thousand: Rows) -> None:
    two = [list(thousand.shares(334, (0, 0), worker, 2))[-1] for worker in range(2)]
    assert [(len(share.batch["id"]), share.rows, share.counts) for share in two] == [(1, 1, False), (1, 1, True)]


def test_validation_keeps_the_order_of_the_dataset(thousand: Rows) -> None:
    batches = [batch["id"].tolist() for batch in thousand.batches(100)]
    assert list(chain(*batches)) == list(range(1003)) and len(batches) == 11


def test_curves_are_a_picture_with_a_panel_for_every_value() -> None:
    history = [{**row, "valid_loss": 2.0, "learning_rate": 0.1, "seconds": 3.0} for row in values(0.1, 0.2)]
    picture = cv2.imdecode(np.frombuffer(draw_curves(history, 2), np.uint8), cv2.IMREAD_COLOR)
    assert picture is not None
    height, width = picture.shape[:2]
    one = cv2.imdecode(np.frombuffer(draw_curves(values(0.1)[:1], 1), np.uint8), cv2.IMREAD_COLOR)
    assert one is not None
    # loss, f1 and learning_rate beside each other; loss and f1.
    assert width / one.shape[1] == pytest.approx(3 / 2, rel=0.01) and height == one.shape[0]


@pytest.mark.parametrize("too_much", [{"workers": 3}, {"workers": 1, "num_gpus": 1.0}, {"num_cpus": 1.5}])
def test_a_cluster_that_is_too_small_is_told_before_the_start(
    ray_cluster: None, tmp_path: Path, too_much: dict[str, Any]
) -> None:
    lazy = {"train": ray.data.range(3)}
    with pytest.raises(ValueError, match=r"the cluster has (2|0): ask for fewer"):
        train(lambda: None, {}, seed=1, output=str(tmp_path), datasets=lazy, **too_much)
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------------------------------------- with Ray Train


slow = pytest.mark.slow
timeout = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def one_worker(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Trained]:
    output = str(tmp_path_factory.mktemp("one"))
    return output, line.train_line(output)


@slow
@timeout
def test_a_training_leaves_the_best_and_the_last_weights_and_its_curves(one_worker: tuple[str, Trained]) -> None:
    output, trained = one_worker
    losses = [row["valid_loss"] for row in trained.history]
    assert [row["epoch"] for row in trained.history] == list(range(1, 9))
    assert losses[-1] < 0.5 * losses[0] and trained.best_epoch == 1 + int(np.argmin(losses))
    assert trained.resumed_from == 0 and not trained.model.training
    read = list(csv.DictReader(io.StringIO(storage.read_bytes(f"{output}/curves.csv").decode())))
    assert [float(row["valid_loss"]) for row in read] == losses
    assert [row["learning_rate"] for row in trained.history][2:4] == pytest.approx([0.05, 0.03])
    best, last = (load(storage.read_bytes(f"{output}/{name}.safetensors")) for name in ("model", "last"))
    batch = [{"x": torch.tensor(x), "y": torch.tensor(y)} for x, y in [columns(line.rows(20, 1))]]
    for weights, expected in ((best, min(losses)), (last, losses[-1])):
        model = line.make_model()
        model.load_state_dict(weights)
        with torch.inference_mode():
            assert line.evaluate("", model, batch)["valid_loss"] == pytest.approx(expected, rel=1e-4)
    settings = json.loads(storage.read_bytes(f"{output}/settings.json"))
    assert settings["training"]["batch_size"] == 8 and settings["dropout"] == 0
    assert cv2.imread(f"{output}/curves.png") is not None
    assert scalars(output)["valid_bias"] == pytest.approx(
        {epoch: row["valid_bias"] for epoch, row in enumerate(trained.history, 1)}, rel=1e-5
    )


def columns(dataset: ray.data.Dataset) -> tuple[np.ndarray, np.ndarray]:
    table = dataset.to_pandas()
    return table.x.to_numpy(np.float32), table.y.to_numpy(np.float32)


def scalars(output: str) -> dict[str, dict[int, float]]:
    """What TensorBoard would show: of every value the last one for each epoch, forgotten where a writer says so."""
    from tensorboardX.proto import event_pb2

    shown: dict[str, dict[int, float]] = {}
    messages: Any = event_pb2
    files = [storage.read_bytes(entry.uri) for entry in storage.listing(f"{output}/tensorboard")]
    events = [[messages.Event.FromString(record) for record in records(file)] for file in files]
    for event in chain(*sorted(events, key=lambda file: file[0].wall_time)):
        if event.session_log.status == messages.SessionLog.START:
            shown = {name: {s: v for s, v in steps.items() if s < event.step} for name, steps in shown.items()}
        for value in event.summary.value:
            assert event.step not in shown.get(value.tag, {})
            shown.setdefault(value.tag, {})[event.step] = value.simple_value
    return shown


def records(file: bytes) -> Iterator[bytes]:
    """The records of an event file, each after its length (8 bytes) and a checksum (4), and followed by another (4)."""
    at = 0
    while at + 12 <= len(file):
        length = int.from_bytes(file[at : at + 8], "little")
        yield file[at + 12 : at + 12 + length]
        at += length + 16


@slow
@timeout
def test_two_workers_make_the_steps_of_one(one_worker: tuple[str, Trained], tmp_path: Path) -> None:
    config = replace(line.CONFIG, workers=2, num_cpus=0.5, accumulate=2)
    two = line.train_line(str(tmp_path), config)
    for ours, theirs in zip(two.history, one_worker[1].history, strict=True):
        for name in ("train_loss", "valid_loss", "valid_bias"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-4), (ours, theirs)
    state = one_worker[1].model.state_dict()
    for name, tensor in two.model.state_dict().items():
        assert torch.allclose(tensor, state[name], atol=1e-4)


@slow
@timeout
def test_a_wrong_training_is_told_what_is_wrong(ray_cluster: None, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"monitor=f1: .* there are epoch, .*train_loss, valid_bias, valid_loss"):
        line.train_line(str(tmp_path), replace(line.CONFIG, monitor="f1"))
    datasets = {"train": line.rows(33, 0), "valid": line.rows(20, 1)}
    config = replace(line.CONFIG, monitor="train_loss")
    with pytest.raises(ValueError, match=r"the loss became nan in epoch 1: lower learning_rate=0.05"):
        fit(line.make_model, not_a_number, no_values, datasets, config, output=str(tmp_path), settings={})


@slow
@timeout
def test_what_the_user_has_to_mend_is_told_at_once(ray_cluster: None, tmp_path: Path) -> None:
    def loop() -> None:
        rank = get_context().get_world_rank()
        (tmp_path / f"tries_{rank}").open("a").write("I")
        if rank:
            raise UserError("weights.pt has other layers. Give another file.")
        # The others may wait for it.
        time.sleep(60)

    with pytest.raises(UserError, match=r"^weights\.pt has other layers\. Give another file\.$"):
        train(loop, {}, seed=0, output=str(tmp_path / "out"), workers=2, num_cpus=0.5)
    assert (tmp_path / "tries_1").read_text() == "I"


def not_a_number(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return line.loss(model, batch) * math.nan


def no_values(model: nn.Module, batches: Any) -> dict[str, float]:
    return {}


@pytest.fixture(scope="module")
def undisturbed(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    # Dropout draws in every step: what is drawn goes on, too.
    return line.train_line(str(tmp_path_factory.mktemp("whole")), replace(line.CONFIG, epochs=20), dropout=0.2)


@slow
@timeout
def test_a_killed_worker_and_a_killed_driver_change_nothing(s3: str, undisturbed: Trained, tmp_path: Path) -> None:
    marker = tmp_path / "epochs"
    program = ("-m", "tests.pipelines.core.line")

    def went_on() -> bool:
        return marker.exists() and len(marker.read_text().splitlines()) >= 9

    with corpus.job(tmp_path / "log.txt", s3, marker, program=program) as job:
        job.wait_until(went_on)
        job.kill()
    assert not storage.exists(f"{s3}/model.safetensors")
    epochs_before = len(marker.read_text().splitlines())
    with corpus.job(tmp_path / "log.txt", s3, marker, program=program) as job:
        told = job.wait()
    resumed_from = int(told.rpartition("resumed from")[2])
    # Beyond where the worker was killed; a checkpoint counts a moment later, when Ray Train has registered it.
    assert resumed_from > 2
    # A worker outlives its driver by a moment, in which it may end an epoch.
    assert len(marker.read_text().splitlines()) - (epochs_before + 20 - resumed_from) in (0, 1)
    read = list(csv.DictReader(io.StringIO(storage.read_bytes(f"{s3}/curves.csv").decode())))
    for name in ("epoch", "train_loss", "learning_rate", "valid_loss", "valid_bias"):
        assert [float(row[name]) for row in read] == [row[name] for row in undisturbed.history]
    weights = load(storage.read_bytes(f"{s3}/model.safetensors"))
    for name, tensor in undisturbed.model.state_dict().items():
        assert torch.equal(weights[name], tensor)
    assert list(scalars(s3)["valid_loss"]) == list(range(1, 21))

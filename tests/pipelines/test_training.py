"""A training that dies goes on where it was, and ends as if nothing had happened."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from ray import train as ray_train

from pipelines.training import report, restore, train

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]


@dataclass(frozen=True)
class LineConfig:
    """A line through four points, which needs a few hundred steps."""

    steps: int
    die_at: int = -1
    """The worker is killed at this step when it is here for the first time."""
    folder: str = ""
    """Where it says that it was here."""


def fit_line(config: LineConfig) -> None:
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    metrics = restore(ray_train.get_checkpoint(), model, optimizer)
    begin = metrics.get("step", 0)
    x = torch.tensor([[-1.0], [0.0], [1.0], [2.0]])
    for step in range(begin, config.steps):
        been_here = Path(config.folder, "been-here")
        if step == config.die_at and not been_here.exists():
            been_here.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        loss = (model(x) - (3 * x - 2)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % 10 == 0:
            report({"step": step + 1, "loss": float(loss.detach()), "resumed_from": begin}, model, optimizer)


def weights(result: ray_train.Result) -> list[float]:
    model = torch.nn.Linear(1, 1)
    restore(result.checkpoint, model)
    return [float(value) for parameter in model.parameters() for value in parameter.detach().flatten()]


def test_a_killed_worker_is_replaced_and_ends_with_the_weights_of_an_undisturbed_run(tmp_path: Path) -> None:
    undisturbed = train(fit_line, LineConfig(40), seed=1, output=str(tmp_path / "a"))
    killed = train(fit_line, LineConfig(40, die_at=25, folder=str(tmp_path)), seed=1, output=str(tmp_path / "b"))
    assert undisturbed.metrics is not None and undisturbed.metrics["resumed_from"] == 0
    assert killed.metrics is not None and killed.metrics["resumed_from"] == 20
    assert killed.metrics["loss"] == undisturbed.metrics["loss"]
    assert weights(killed) == weights(undisturbed)


def test_the_same_call_again_trains_nothing_and_other_settings_start_at_zero(tmp_path: Path) -> None:
    first = train(fit_line, LineConfig(20), seed=1, output=str(tmp_path))
    again = train(fit_line, LineConfig(20), seed=1, output=str(tmp_path))
    longer = train(fit_line, LineConfig(30), seed=1, output=str(tmp_path))
    assert first.checkpoint is not None and again.checkpoint is not None
    assert again.checkpoint.path == first.checkpoint.path
    assert weights(again) == weights(first)
    assert longer.metrics is not None and longer.metrics["resumed_from"] == 0 and longer.metrics["step"] == 30


def test_an_error_of_the_loop_is_told(tmp_path: Path) -> None:
    with pytest.raises(ray_train.TrainingFailedError, match="crop is too large"):
        train(refuse, LineConfig(1), seed=1, output=str(tmp_path))


def refuse(config: LineConfig) -> None:
    raise ValueError(f"crop is too large: {config}")

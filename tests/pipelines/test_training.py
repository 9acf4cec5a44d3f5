"""A training whose worker dies goes on where it was, and ends as if nothing had happened."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from ray import train as ray_train

from pipelines.training import report, restore, train

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.usefixtures("ray_cluster")]


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


def test_a_killed_worker_loses_little_and_changes_nothing(tmp_path: Path) -> None:
    undisturbed = train(fit_line, LineConfig(40), seed=1, output=str(tmp_path))
    assert undisturbed.metrics is not None and undisturbed.metrics["resumed_from"] == 0

    # Other settings are another run, although it has the same output; but what they name does not change the weights.
    killed = train(fit_line, LineConfig(40, die_at=35, folder=str(tmp_path)), seed=1, output=str(tmp_path))
    # A checkpoint counts once Ray Train has registered it, which may be a moment after it was reported.
    assert killed.metrics is not None and killed.metrics["resumed_from"] in (10, 20, 30)
    assert killed.metrics["loss"] == undisturbed.metrics["loss"]
    assert weights(killed) == weights(undisturbed)

    again = train(fit_line, LineConfig(40), seed=1, output=str(tmp_path))
    assert again.checkpoint is not None and undisturbed.checkpoint is not None
    assert again.checkpoint.path == undisturbed.checkpoint.path


@pytest.mark.parametrize("too_much", [{"workers": 3}, {"workers": 1, "use_gpu": True}])
def test_a_cluster_that_is_too_small_is_told_before_the_start(tmp_path: Path, too_much: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"the cluster has (2|0): ask for fewer"):
        train(fit_line, LineConfig(1), seed=1, output=str(tmp_path), **too_much)
    assert not list(tmp_path.iterdir())

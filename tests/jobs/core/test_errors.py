"""What each kind of error ends a command with, also when Ray has wrapped it."""

import pickle
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import typer
from ray.exceptions import RayTaskError

from actors.core.errors import UserError
from actors.core.stage import Stage
from jobs.core.errors import DONE, FAILED, REJECTED, USAGE, exit_codes, no_cuda, root_cause
from jobs.core.settings import SettingsError
from jobs.core.termination import Terminated
from pipelines.curation.rows import IncompleteError


class LackingError(UserError):
    """A UserError of a test's own."""


def in_task(error: Exception) -> Exception:
    return RayTaskError("f", "a worker's trace", error).as_instanceof_cause()


@pytest.mark.parametrize(
    ("error", "code", "last"),
    [
        (SettingsError("frames.size: must be a number"), USAGE, "error: frames.size: must be a number"),
        (UserError("no such file"), USAGE, "error: no such file"),
        (ValueError("cannot reshape"), FAILED, "failed: ValueError: cannot reshape"),
        (IncompleteError("2 videos have scenes without a row"), FAILED, "failed: IncompleteError: 2 videos have"),
        (ConnectionError("s3://b/k: gave up"), FAILED, "failed: ConnectionError: s3://b/k: gave up"),
        (RuntimeError(), FAILED, "failed: RuntimeError"),
        (pa.ArrowInvalid("not a Parquet file"), FAILED, "failed: ArrowInvalid: not a Parquet file"),
        (in_task(ValueError("x")), FAILED, "failed: ValueError: x"),
        (in_task(UserError("weights are missing")), USAGE, "error: weights are missing"),
    ],
)
def test_each_kind_of_error_has_its_code_and_its_line(
    error: Exception, code: int, last: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(typer.Exit) as left, exit_codes():
        raise error
    assert left.value.exit_code == code
    assert left.value.__cause__ is error
    told = capsys.readouterr().err
    assert told.splitlines()[-1].startswith(last)
    assert ("Traceback" in told) is (code == FAILED)


def test_a_librarys_error_inside_a_verb_is_not_the_users(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(typer.Exit) as left, exit_codes():
        np.zeros(3).reshape(2)
    assert left.value.exit_code == FAILED
    told = capsys.readouterr().err
    assert "np.zeros(3).reshape(2)" in told, "the traceback is there"
    assert told.splitlines()[-1] == "failed: ValueError: cannot reshape array of size 3 into shape (2,)"


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 130), (Terminated("by SIGTERM"), 143)])
def test_a_signal_ends_with_the_code_of_shells(error: BaseException, code: int):
    with pytest.raises(typer.Exit) as left, exit_codes():
        raise error
    assert left.value.exit_code == code


def test_a_code_that_was_chosen_stays():
    with pytest.raises(typer.Exit) as left, exit_codes():
        raise typer.Exit(REJECTED)
    assert left.value.exit_code == REJECTED
    with exit_codes():
        pass
    assert (DONE, FAILED, USAGE, REJECTED) == (0, 1, 2, 3)


class Actor:
    """An actor of a pipeline that fails when it starts, when it is called, or by dying."""

    def __init__(self, how: str) -> None:
        self.how = how
        if how == "start":
            raise LackingError("weights are missing:\npass a folder")

    def __call__(self, batch: Any) -> Any:
        if self.how == "call":
            raise UserError("this model has no encoder")
        return {"x": np.zeros(3).reshape(2)}


@pytest.mark.parametrize(
    ("how", "name", "message", "users"),
    [
        ("start", "LackingError", "weights are missing:\npass a folder", True),
        ("call", "UserError", "this model has no encoder", True),
        ("reshape", "ValueError", "cannot reshape array of size 3 into shape (2,)", False),
    ],
)
def test_the_cause_is_found_through_what_ray_wraps_it_in(
    ray_cluster: None, how: str, name: str, message: str, users: bool
):
    import ray

    from actors.core.stage import Stage
    from pipelines.core.ray_data import ray_actors, set_context

    set_context()
    with pytest.raises(Exception) as error:  # noqa: PT011
        ray.data.range(1).map_batches(Actor, fn_constructor_args=[how], **ray_actors(Stage(num_cpus=0.5))).materialize()
    cause = root_cause(error.value)
    assert (cause.name, cause.message, cause.users) == (name, message, users)


def test_a_users_error_survives_the_way_between_processes():
    assert str(pickle.loads(pickle.dumps(LackingError("a")))) == "a"  # noqa: S301


@dataclass(frozen=True)
class Pools:
    latents: Stage = field(default_factory=lambda: Stage(num_gpus=0.5))
    motion: Stage = field(default_factory=Stage)
    num_gpus: float = 1.0


def test_a_gpu_without_cuda_is_told_with_the_settings_that_asked_for_one() -> None:
    missing = in_task(RuntimeError("Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU"))
    told = no_cuda(root_cause(missing), Pools())
    assert told.startswith("latents.num_gpus=0.5, num_gpus=1: ") and "(Found no NVIDIA driver on your system)" in told
    assert no_cuda(root_cause(RuntimeError("CUDA out of memory")), Pools()) == ""

"""What each kind of error ends a command with, also when Ray has wrapped it."""

import pickle
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
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


class TwoFoldError(Exception):
    """An error that can be pickled and not unpickled, as those of many libraries."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{code} {message}")


FAILURES: dict[str, tuple[Exception, str, str, bool]] = {
    "users": (LackingError("weights are missing:\npass a folder"), "LackingError", "weights are missing:", True),
    "indented": (ValueError("one:\n  two\nthree"), "ValueError", "one:", False),
    "empty": (MemoryError(), "MemoryError", "", False),
    "no way back": (TwoFoldError(503, "busy"), "TwoFoldError", "503 busy", False),
}
"""What a worker raises: the exception, its class, the first line of its message, and whether the user can mend it."""


def fail(how: str) -> None:
    """Raise one of FAILURES, from another."""
    try:
        np.zeros(3).reshape(2)
    except ValueError as error:
        raise FAILURES[how][0] from error


class Actor:
    """An actor of a pool that fails when it starts or when it is called."""

    def __init__(self, how: str, start: bool) -> None:
        self.how = how
        if start:
            fail(how)

    def __call__(self, batch: Any) -> Any:
        fail(self.how)


def failing_task(batch: Any, how: str) -> Any:
    fail(how)


def in_an_actors_start(how: str) -> None:
    _pool(how, True).materialize()


def in_an_actors_call(how: str) -> None:
    _pool(how, False).materialize()


def in_a_task(how: str) -> None:
    import ray

    from actors.core.stage import Stage
    from pipelines.core.ray_data import ray_task

    task: Any = failing_task
    ray.data.range(1).map_batches(task, fn_kwargs={"how": how}, **ray_task(Stage(num_cpus=0.5))).materialize()


def in_an_actor_of_its_own(how: str) -> None:
    import ray

    actor: Any = ray.remote(num_cpus=0.5)(Actor)
    ray.get(actor.remote(how, False).__call__.remote(None))


def _pool(how: str, start: bool) -> Any:
    import ray

    from actors.core.stage import Stage
    from pipelines.core.ray_data import ray_actors

    stage: Any = ray_actors(Stage(num_cpus=0.5))
    return ray.data.range(1).map_batches(Actor, fn_constructor_args=[how, start], **stage)


@pytest.mark.parametrize("how", FAILURES)
@pytest.mark.parametrize(
    "where",
    [
        *(pytest.param(one, marks=pytest.mark.slow) for one in (in_an_actors_start, in_an_actors_call)),
        *(in_a_task, in_an_actor_of_its_own),
    ],
)
def test_the_cause_is_the_last_line_through_what_ray_wraps_it_in(
    ray_cluster: None, where: Any, how: str, capsys: pytest.CaptureFixture[str]
):
    from pipelines.core.ray_data import set_context

    set_context()
    error, name, first, users = FAILURES[how]
    with pytest.raises(typer.Exit) as left, exit_codes():
        where(how)
    assert left.value.__cause__ is not None
    cause = root_cause(left.value.__cause__)
    assert (cause.name, cause.message, cause.users) == (name, str(error), users)
    told = capsys.readouterr().err
    assert "apply UDF" not in told.splitlines()[-1]
    if users:
        assert left.value.exit_code == USAGE and told.endswith(f"error: {error}\n")
    else:
        assert left.value.exit_code == FAILED
        assert told.splitlines()[-1] == f"failed: {name}: {first}".removesuffix(": ")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["users", "indented"])
def test_the_cause_of_a_failed_training_is_the_last_line(
    ray_cluster: None, tmp_path: Path, how: str, capsys: pytest.CaptureFixture[str]
):
    from pipelines.core.training import train

    _, name, first, users = FAILURES[how]
    with pytest.raises(typer.Exit) as left, exit_codes():
        train(partial(fail, how), {}, seed=0, output=str(tmp_path), num_cpus=0.5)
    assert left.value.exit_code == (USAGE if users else FAILED)
    told = capsys.readouterr().err
    assert (f"error: {first}\n" in told) if users else told.splitlines()[-1] == f"failed: {name}: {first}"


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

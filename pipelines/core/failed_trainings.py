"""A training of Ray Train in which what the user has to mend ends it at once, and is not tried again."""

from typing import Any

from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision

from actors.core.errors import UserError


def end_at_once(trainer: Any) -> None:
    """Let a trainer not try again what a worker has raised as UserError. Ray 2.60 has no setting for it."""
    run = trainer._initialize_and_run_controller

    def run_with(failure_policy: Any, **given: Any) -> Any:
        return run(failure_policy=_Policy(failure_policy.failure_config), **given)

    trainer._initialize_and_run_controller = run_with


class _Policy(DefaultFailurePolicy):
    """Decides in a process of Ray Train's own."""

    def make_decision(self, training_failed_error: Any) -> FailureDecision:
        if users_fault(training_failed_error):
            return FailureDecision.RAISE
        return super().make_decision(training_failed_error)


def users_fault(error: BaseException) -> UserError | None:
    """What a worker of a training that failed has told the user to mend; None: nothing."""
    for one in getattr(error, "worker_failures", {}).values():
        cause = getattr(one, "_base_exc", one)
        if isinstance(cause, UserError):
            return cause
    return None

"""Ray Train's trainer, except that what the user has to mend ends a training at once, and is not tried again."""

from typing import Any

from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision

from actors.core.errors import UserError


class Trainer(TorchTrainer):
    """A TorchTrainer whose workers may raise UserError. Ray 2.60 has no setting for it."""

    def _initialize_and_run_controller(self, **given: Any) -> Any:
        return super()._initialize_and_run_controller(**{**given, "failure_policy": _Policy(given["failure_policy"])})


class _Policy(DefaultFailurePolicy):
    def __init__(self, policy: Any) -> None:
        super().__init__(policy.failure_config)

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

"""How long a store that is away is waited for: one bound for every place, and shorter once a command is being ended."""

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from actors.core.errors import UserError

logger = logging.getLogger(__name__)
T = TypeVar("T")

PATIENCE = "FILMRAY_STORE_PATIENCE_S"
"""Variable of the environment: seconds for which a store that is away is waited for. `store.patience_s` sets it."""
PATIENCE_S = 300.0
TOLD_EVERY_S = 30.0
"""Seconds between two warnings about a store that is away."""
ENDING_S = 3.0
"""Seconds for which a store is waited for once the command is being ended: its record is written, if that works."""

_ending = False


def patience_s() -> float:
    """Seconds for which a store that is away is waited for; raises UserError where the variable is no number."""
    given = os.environ.get(PATIENCE, str(PATIENCE_S))
    try:
        seconds = float(given)
    except ValueError as error:
        raise UserError(f"{PATIENCE}={given}: give seconds, as in {PATIENCE}=600") from error
    return min(seconds, ENDING_S) if _ending else seconds


def set_ending(ending: bool) -> None:
    """Say whether this process is being ended."""
    global _ending
    _ending = ending


@contextmanager
def briefly() -> Iterator[None]:
    """Within it a store is waited for as where this process is being ended: for what is not worth more."""
    before = _ending
    set_ending(True)
    try:
        yield
    finally:
        set_ending(before)


def repeated(
    place: str,
    request: Callable[[], T],
    passes: Callable[[BaseException], bool],
    name: Callable[[BaseException], str],
    allowed_s: float,
) -> T:
    """Make a request, again while its fault `passes`, with jitter and longer and longer pauses; then raises the fault.

    place, name: what a warning says of the store and of a fault.
    """
    # Imported here: a command that reads folders has no need of it.
    from tenacity import RetryCallState, Retrying, retry_if_exception, wait_random_exponential

    until, told = time.monotonic() + allowed_s, 0.0

    def tell(state: RetryCallState) -> None:
        nonlocal told
        now = time.monotonic()
        if now - told > TOLD_EVERY_S:
            level = logging.WARNING if told else logging.INFO
            told = now
            error = state.outcome.exception() if state.outcome else None
            assert error is not None
            logger.log(level, "%s: %s; trying again for %.0f s", place, name(error), max(until - now, 0))

    retrying = Retrying(
        retry=retry_if_exception(passes),
        stop=lambda state: time.monotonic() >= until,
        wait=wait_random_exponential(multiplier=0.2, max=10),
        before_sleep=tell,
        reraise=True,
    )
    return retrying(request)

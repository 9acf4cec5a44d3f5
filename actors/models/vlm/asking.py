"""Asking a model until a reply counts: turns, pauses, a budget, and how many requests are in flight.

A model gets frames and a text. Its reply counts where it passes the question's check; else the model is asked again,
three times in all. All workers of a run share its `Turns`; each worker has its own `Window`.
"""

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import numpy as np

from actors.core.errors import UserError

log = logging.getLogger(__name__)

TRIES = 3
"""Replies to a question that may fail before it does."""
UNFINISHED = "unfinished"
"""Code of a question that was not asked to the end, since the run's budget or the run ended."""
LONGEST_PAUSE_S = 60.0
"""Pauses that the service does not ask for grow up to this."""
GIVE_UP = 20
"""A run ends when so many questions in a row failed by the service's fault: it is down."""
FIRST_IN_FLIGHT = 8
"""Requests that a worker has in flight before it knows what the service takes."""


@dataclass(frozen=True)
class Question:
    """What is asked of a model about some frames."""

    frames_THWC: np.ndarray
    """uint8 (T, H, W, 3) RGB."""
    text: str
    """What stands beside the frames."""
    check: Callable[[str], tuple[str, str]]
    """What is kept of a reply, and what is wrong with it, "" for nothing."""
    most_tokens: int
    """A model that runs here and writes more than this has no answer."""
    code: str
    """Code of an answer that failed."""
    schema: dict[str, Any] | None = None
    """JSON schema of the reply, for services that take one."""


@dataclass(frozen=True)
class Reply:
    """What one request brought."""

    text: str = ""
    problem: str = ""
    """Why there is no text: refused, cut off, or a fault of the service."""
    fault: bool = False
    """The problem is the service's, so that a pause may help."""
    tokens_in: int = 0
    tokens_out: int = 0


@dataclass(frozen=True)
class Answer:
    """What asking a question brought in the end."""

    text: str = ""
    """"" where it failed."""
    code: str = ""
    """"", the code of the question, or UNFINISHED."""
    message: str = ""
    """What was wrong with the last try."""
    attempts: int = 0
    """Tries that count: up to TRIES."""
    requests: int = 0
    """Requests made, those answered with "too many requests" included."""
    tokens_in: int = 0
    tokens_out: int = 0
    fault: bool = False
    """The last try failed by the service's fault."""

    def then(self, reply: Reply, question: Question, requests: int) -> "Answer":
        """What it is after one more reply."""
        text, problem = ("", reply.problem) if reply.problem else question.check(reply.text)
        return Answer(
            text="" if problem else text,
            code=question.code if problem else "",
            message=problem,
            attempts=self.attempts + 1,
            requests=requests,
            tokens_in=self.tokens_in + reply.tokens_in,
            tokens_out=self.tokens_out + reply.tokens_out,
            fault=reply.fault,
        )

    @property
    def open(self) -> bool:
        """It failed, and may be tried once more."""
        return bool(self.code or not self.attempts) and self.attempts < TRIES


class Service(Protocol):
    """Answers one question at a time; may be shared by threads."""

    def reply(self, question: Question, attempt: int) -> Reply:
        """Ask once; attempt counts from 0.

        Raises Throttled where the service asks to wait, and Refusal where it takes no such request at all.
        """
        ...


class Throttled(Exception):
    """The service has had too many requests; wait_s is the pause that it asks for, None where it says nothing."""

    def __init__(self, wait_s: float | None) -> None:
        super().__init__("too many requests")
        self.wait_s = wait_s


class Refusal(UserError):
    """A request that the service refuses for what the user can mend: the key, the model, the address."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class ServiceDownError(RuntimeError):
    """The service does not answer for long: the run ends, and the same command goes on later."""


class End(NamedTuple):
    """Why a run ends early; status: of the refusal, 0 where it was none."""

    status: int
    message: str

    def error(self) -> Exception:
        """What the command raises."""
        return Refusal(self.status, self.message) if self.status else ServiceDownError(self.message)


class Turns:
    """What all that ask in one run share: a rate, a budget, pauses that the service asks for, and its end.

    per_minute, at_most: None for no bound; patience_s: how long the service may ask for pauses in a row. No method
    waits, so that one process can answer for all workers.
    """

    def __init__(self, per_minute: float | None = None, at_most: int | None = None, patience_s: float = 0) -> None:
        self._gap = 60 / per_minute if per_minute else 0.0
        self._left = at_most
        self._patience_s = patience_s
        self._next = 0.0
        self._throttled: float | None = None
        self._stopped = False
        self._open: set[str] = set()
        self._faults = 0
        self._end: End | None = None
        self._answered = False
        self._lock = threading.Lock()
        self.requests = 0
        """Requests made."""

    def turn(self, name: str) -> float | None:
        """Take the turn to make a request: 0, or how many seconds there are until the next one; None
        where no more are to be made."""
        with self._lock:
            if self._stopped or self._left == self.requests:
                return None
            now = time.monotonic()
            if (wait := self._next - now) > 0:
                return wait
            self._next = now + self._gap
            self.requests += 1
            self._open.add(name)
            return 0.0

    def hold(self, wait_s: float | None) -> None:
        """Let no request be made for so long; without a number, for as long as it has lasted already. Where patience
        ends, so does the run."""
        with self._lock:
            now = time.monotonic()
            self._throttled = now if self._throttled is None else self._throttled
            lasted = now - self._throttled
            wait = min(max(lasted, 1.0), LONGEST_PAUSE_S) if wait_s is None else wait_s
            self._next = max(self._next, now + wait)
        if lasted + wait > self._patience_s:
            self.end(
                0,
                f"the service says 429 or 503, too many requests, and asks to wait {wait:.0f} s after {lasted:.0f} s, "
                f"beyond patience_s={self._patience_s:g}: the quota may be used up; run the same command "
                "later, or set requests_per_minute",
            )
        log.info("the service asks to wait %.0f s", wait)

    def heard(self) -> None:
        """The service has answered: it is not throttling now."""
        self._throttled = None
        self._answered = True

    def answered(self) -> bool:
        """The service has answered at least one request."""
        return self._answered

    def settled(self, name: str, fault: str | None) -> None:
        """An answer has been written. fault: how it failed where that was the service's fault; "" where it was not;
        None where it has neither."""
        with self._lock:
            self._open.discard(name)
            if fault is not None:
                self._faults = self._faults + 1 if fault else 0
        if self._faults >= GIVE_UP:
            self.end(
                0,
                f"{self._faults} answers in a row failed by the service's fault ({fault}): run the same command "
                "again when it is well, and ask for the failed ones again",
            )

    def end(self, status: int, message: str) -> None:
        """Let no further request be made, since the run has failed; the first reason counts."""
        with self._lock:
            self._end = self._end or End(status, message)
            self._stopped = True

    def ended(self) -> End | None:
        """Why the run has failed, if it has."""
        return self._end

    def stop(self) -> int:
        """Let no further request be made; returns how many answers are not written yet."""
        with self._lock:
            self._stopped = True
            return len(self._open)


class Window:
    """How many requests one worker has in flight: as many as the service takes, `most` at most.

    It opens by one with each reply while nothing was refused, and by one with each round of replies after that; it
    halves where the service refuses a request or fails.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._width = float(min(most, FIRST_IN_FLIGHT))
        self._refused = False
        self._in_flight = 0
        self._halved = 0.0
        self._changed = threading.Condition()

    @property
    def width(self) -> int:
        """Requests that may be in flight now."""
        return max(1, int(self._width))

    @contextmanager
    def place(self) -> Iterator[float]:
        """Wait for a place among those in flight; yields when it was taken."""
        with self._changed:
            self._changed.wait_for(lambda: self._in_flight < self.width)
            self._in_flight += 1
        try:
            yield time.monotonic()
        finally:
            with self._changed:
                self._in_flight -= 1
                self._changed.notify_all()

    def open(self) -> None:
        """A request was answered."""
        with self._changed:
            self._width = min(self._most, self._width + (1 / self._width if self._refused else 1))
            self._changed.notify_all()

    def shut(self, since: float) -> None:
        """A request that was made at this time was refused or failed. Of those that were in flight together one
        counts."""
        with self._changed:
            self._refused = True
            if since >= self._halved:
                self._width, self._halved = max(1.0, self._width / 2), time.monotonic()


class Pace:
    """One worker's share of the turns and of what is in flight."""

    def __init__(self, turns: Turns | None = None, most: int = 1, pause_s: float = 0) -> None:
        self.turns = turns or Turns()
        self.window = Window(most)
        self.pause_s = pause_s
        """The first pause after a fault of the service; it doubles with each."""

    def wait(self, name: str) -> bool:
        """Wait for the turn to make a request; False where no more are to be made."""
        while wait := self.turns.turn(name):
            # Short enough to see the end of a run.
            time.sleep(min(wait, 1.0))
        return wait is not None


def ask(service: Service, question: Question, pace: Pace, name: str = "") -> Answer:
    """Ask until a reply counts, TRIES times at most; UNFINISHED where the budget or the run ended before.

    name: of the question, among all of the run. A request that the service refuses with 400, 413 or 422 is this
    question's failure where others were answered before; other refusals end the run.
    """
    answer, requests, turns = Answer(), 0, pace.turns
    while answer.open:
        with pace.window.place() as since:
            if not pace.wait(name):
                return replace(answer, code=UNFINISHED, requests=requests)
            requests += 1
            try:
                reply = service.reply(question, answer.attempts)
            except Throttled as error:
                pace.window.shut(since)
                turns.hold(error.wait_s)
                continue
            except Refusal as error:
                if error.status not in (400, 413, 422) or not turns.answered():
                    turns.end(error.status, str(error))
                    continue
                reply = Reply(problem=str(error), fault=True)
            if reply.fault:
                pace.window.shut(since)
            else:
                pace.window.open()
                turns.heard()
        answer = answer.then(reply, question, requests)
        if reply.fault and answer.open:
            pause = pace.pause_s * 2 ** (answer.attempts - 1) * random.uniform(0.5, 1)
            time.sleep(min(pause, LONGEST_PAUSE_S))
    return answer

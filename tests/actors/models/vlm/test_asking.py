"""How often and how fast a service is asked, and what ends a run."""

import threading
import time
from collections.abc import Iterable

import numpy as np
import pytest

from actors.models.vlm.asking import (
    GIVE_UP,
    TRIES,
    UNFINISHED,
    Pace,
    Question,
    Refusal,
    Reply,
    ServiceDownError,
    Throttled,
    Turns,
    Window,
    ask,
)
from tests.actors.curation.captioning.asked import GOOD, question


class Scripted:
    """A service that replies, or raises, one thing after the other."""

    def __init__(self, replies: Iterable[Reply | Exception]) -> None:
        self.left = list(replies)

    def reply(self, question: Question, attempt: int) -> Reply:
        reply = self.left.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply


def test_requests_are_spaced_over_all_threads():
    turns, times = Turns(per_minute=1200), []

    def work() -> None:
        pace = Pace(turns)
        for _ in range(3):
            assert pace.wait("one")
            times.append(time.monotonic())

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert turns.requests == 9
    assert np.diff(sorted(times)).min() > 0.04


def test_a_budget_ends_a_scene_in_the_middle():
    pace = Pace(Turns(at_most=2))
    answer = ask(Scripted([Reply("Bad", tokens_in=5)] * 3), question(), pace)
    assert (answer.code, answer.requests, answer.tokens_in) == (UNFINISHED, 2, 10)
    assert ask(Scripted([]), question(), pace).requests == 0


def test_a_stop_ends_those_that_wait_and_counts_those_under_way():
    turns = Turns(patience_s=1000)
    assert turns.turn("asked") == 0
    turns.hold(500)
    results: list[bool] = []
    waiting = threading.Thread(target=lambda: results.append(Pace(turns).wait("waits")))
    waiting.start()
    assert turns.stop() == 1
    waiting.join(30)
    assert results == [False]
    turns.settled("asked", None)
    assert turns.stop() == 0


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_bad_request_ends_the_run_only_where_nothing_was_answered(status: int):
    refusal = Refusal(status, "no such field")
    pace = Pace()
    assert ask(Scripted([refusal]), question(), pace).code == UNFINISHED
    end = pace.turns.ended()
    assert end and isinstance(end.error(), Refusal) and str(end.error()) == "no such field"

    pace = Pace()
    assert ask(Scripted([Reply(GOOD)]), question(), pace).text == GOOD
    answer = ask(Scripted([refusal] * 3), question(), pace)
    assert (answer.code, answer.message, answer.attempts, answer.fault) == ("caption_failed", "no such field", 3, True)
    assert pace.turns.ended() is None
    assert ask(Scripted([Refusal(403, "key revoked")]), question(), pace).code == UNFINISHED
    assert pace.turns.ended() == (403, "key revoked")


def test_a_loop_is_asked_again():
    replies = [Reply("a man " * 30), Reply("a man with the"), Reply(GOOD)]
    answer = ask(Scripted(replies), question(), Pace())
    assert (answer.text, answer.attempts) == (GOOD, 3)


def test_faults_in_a_row_end_the_run():
    turns = Turns()
    for _ in range(GIVE_UP - 1):
        turns.settled("one", "503 busy")
    # A caption that failed by its own fault, or was not asked for, says nothing of the service, or that it is well.
    turns.settled("one", None)
    assert turns.ended() is None
    turns.settled("one", "")
    for _ in range(GIVE_UP):
        turns.settled("one", "503 busy")
    end = turns.ended()
    assert end and isinstance(end.error(), ServiceDownError)
    assert f"{GIVE_UP} answers in a row" in end.message and "503 busy" in end.message


def test_patience_ends():
    turns = Turns(patience_s=5)
    turns.hold(4)
    assert turns.ended() is None
    turns.hold(30)
    end = turns.ended()
    assert end and "wait 30 s" in end.message and turns.turn("one") is None


# -------------------------------------------------------------------------------------------------- what is in flight


def test_the_window_opens_with_replies_and_halves_with_refusals():
    window = Window(64)
    assert window.width == 8
    for _ in range(20):
        window.open()
    assert window.width == 28
    now = time.monotonic()
    # Of those that were in flight together one counts.
    for _ in range(5):
        window.shut(now)
    assert window.width == 14
    # From now on it opens by one with each round of replies.
    for _ in range(15):
        window.open()
    assert window.width == 15
    for _ in range(9):
        window.shut(time.monotonic())
    assert window.width == 1
    assert Window(3).width == 3


def test_a_worker_finds_what_the_service_takes():
    """A service that takes five requests at once, and refuses others: nobody is refused for ever, and most requests
    are taken."""
    pace, lock, taken, refused = Pace(Turns(patience_s=60), most=32), threading.Lock(), [0], [0]

    class Busy:
        def reply(self, question: Question, attempt: int) -> Reply:
            with lock:
                taken[0] += 1
                full = taken[0] > 5
                refused[0] += full
            try:
                if full:
                    raise Throttled(0.01)
                time.sleep(0.01)
                return Reply(GOOD)
            finally:
                with lock:
                    taken[0] -= 1

    answers = []

    def work() -> None:
        answers.extend(ask(Busy(), question(), pace) for _ in range(15))

    threads = [threading.Thread(target=work) for _ in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answer.code for answer in answers] == [""] * 480 and {answer.attempts for answer in answers} == {1}
    # It opens once more while the last of the threads are at work.
    assert refused[0] < 480 and pace.window.width < 16
    assert sum(answer.requests for answer in answers) == 480 + refused[0]


def test_a_pause_doubles(monkeypatch: pytest.MonkeyPatch):
    pauses: list[float] = []
    monkeypatch.setattr("actors.models.vlm.asking.time.sleep", pauses.append)
    monkeypatch.setattr("actors.models.vlm.asking.random.uniform", lambda low, high: high)
    answer = ask(Scripted([Reply(problem="500", fault=True)] * TRIES), question(), Pace(pause_s=2))
    assert (answer.code, answer.fault, pauses) == ("caption_failed", True, [2, 4])

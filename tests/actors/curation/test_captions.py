"""What is asked of a vision-language model, which replies count, and what each fault of a service leads to."""

import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.curation.captioners import check_local_model, load_captioner
from actors.curation.captions import (
    GEMINI,
    TRIES,
    UNFINISHED,
    CaptionsConfig,
    CaptionServiceError,
    Pace,
    Refusal,
    Reply,
    ask,
    check_caption,
    prompt,
)
from tests.support.servers import Gemini, Said, blocks, fails, says
from tests.support.tiny_models import captioning_model

LIBRARIES = ["google-genai", "google-generativeai"]
GOOD = "a woman in a red coat walks along the river at dusk"


def frames(count: int = 3) -> np.ndarray:
    """Frames of one colour each: 0, 30, 60, ... of red."""
    made = np.zeros((count, 32, 48, 3), np.uint8)
    made[..., 0] = 30 * np.arange(count)[:, None, None]
    return made


# ----------------------------------------------------------------------------------------------------------- the rules


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        "two men talk.",
        "a van drives past 24 parked cars; neon sign 'café la rosa' glows",
        "the naïve fiancée reads 'die zeit' in el paso, near los angeles",
        "close-up: rain on a window, a hand, then nothing",
        "a die, a pan, war, a son, sale signs, a hat and an old van in the sun",
        " ".join(["the cat"] * 50),
    ],
)
def test_captions_that_keep_the_rules(text: str):
    assert check_caption(text) == ""


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("A woman walks", "lowercase"),
        ("a woman on the BBC", "lowercase"),
        (" ".join(["the cat"] * 50 + ["sleeps"]), "101 words"),
        ("женщина идёт по улице", "letter 'ж'"),
        ("a woman walks 在街上", "letter '在'"),
        ("eine frau geht mit dem hund auf der straße, und die sonne scheint", "small words"),
        ("une femme marche dans la rue avec un chien, les arbres sont verts", "small words"),
        ("una mujer camina por la calle con un perro y los árboles son verdes", "small words"),
        ("una donna cammina nella strada con il cane che abbaia", "small words"),
        ("uma mulher caminha na rua com um cachorro", "small words"),
        ("een vrouw loopt met een hond op straat naar het park", "small words"),
        ("kobieta idzie ulicą razem ze swoim psem przez zielony park", "small words"),
    ],
)
def test_captions_that_break_a_rule(text: str, problem: str):
    assert problem in check_caption(text)


def test_the_request_has_the_caption_and_the_rules():
    asked = prompt(" a man ")
    assert asked.endswith("Caption to improve: a man")
    for rule in ("detail", "lowercase", "at most 100 words", "only what can be seen", "English only"):
        assert rule in asked
    assert prompt("").endswith("(there is none yet)")


@pytest.mark.parametrize(
    "settings",
    [
        {"requests_at_once": 0},
        {"max_requests": -1},
        {"requests_per_minute": 0},
        {"model": ""},
        {"by": "transformers"},
        {"by": "transformers", "model": "some/model", "max_requests": 3},
    ],
)
def test_settings_that_cannot_work(settings: dict[str, Any]):
    with pytest.raises(ValueError, match=next(reversed(settings))):
        CaptionsConfig(**settings)


# ------------------------------------------------------------------------------------------------------------ the pace


class Scripted:
    """A captioner that replies, or raises, one thing after the other."""

    def __init__(self, replies: Iterable[Reply | Exception]) -> None:
        self.left = list(replies)

    def caption(self, frames_THWC: np.ndarray, caption: str, attempt: int) -> Reply:
        reply = self.left.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply


def test_requests_are_spaced_over_all_threads():
    pace, times = Pace(per_minute=1200), []

    def work() -> None:
        for _ in range(3):
            assert pace.take()
            times.append(time.monotonic())

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert pace.requests == 9
    assert np.diff(sorted(times)).min() > 0.04


def test_a_budget_ends_a_scene_in_the_middle():
    pace = Pace(at_most=2)
    answer = ask(Scripted([Reply("Bad", tokens_in=5)] * 3), frames(), "", pace)
    assert (answer.code, answer.requests, answer.tokens_in) == (UNFINISHED, 2, 10)
    assert ask(Scripted([]), frames(), "", pace).requests == 0


def test_a_stop_ends_those_that_wait():
    pace = Pace(patience_s=1000)
    pace.hold(500)
    waiting = threading.Thread(target=lambda: results.append(pace.take()))
    results: list[bool] = []
    waiting.start()
    pace.stop()
    waiting.join(30)
    assert results == [False]


def test_a_bad_request_ends_the_run_only_where_nothing_was_answered():
    refusal = Refusal(400, "no such field")
    pace = Pace()
    with pytest.raises(Refusal, match="no such field"):
        ask(Scripted([refusal]), frames(), "", pace)
    assert ask(Scripted([Reply(GOOD)]), frames(), "", pace).recaption == GOOD
    answer = ask(Scripted([refusal] * 3), frames(), "", pace)
    assert (answer.code, answer.message, answer.attempts, answer.fault) == ("caption_failed", "no such field", 3, True)
    with pytest.raises(Refusal):
        ask(Scripted([Refusal(403, "key revoked")]), frames(), "", pace)


# --------------------------------------------------------------------------------------------------- over the wire


def service(gemini: Gemini, by: Any, **settings: Any) -> CaptionsConfig:
    return CaptionsConfig(by=by, endpoint=gemini.endpoint, **{"timeout_s": 20, "patience_s": 30, **settings})


def asked_once(gemini: Gemini, config: CaptionsConfig, *replies: Said) -> Any:
    """The answer for one scene, to whose requests these are the replies."""
    gemini.replies["a man"] = list(replies)
    pace = Pace(patience_s=config.patience_s)
    return ask(load_captioner(config), frames(), "a man", pace, pause_s=0.01)


@pytest.mark.parametrize("by", LIBRARIES)
def test_a_good_reply(gemini: Gemini, by: str):
    answer = asked_once(gemini, service(gemini, by), says(f"{GOOD}\n"))
    assert (answer.recaption, answer.code, answer.attempts, answer.requests) == (GOOD, "", 1, 1)
    assert (answer.tokens_in, answer.tokens_out) == (1000, 50)
    [(caption, pictures)] = gemini.asked
    assert caption == "a man"
    for sent, picture in zip(frames(), pictures, strict=True):
        assert picture.shape == sent.shape
        np.testing.assert_allclose(picture.astype(int), sent, atol=6)


@pytest.mark.parametrize("by", LIBRARIES)
@pytest.mark.parametrize(
    ("reply", "problem"),
    [
        (says(""), "empty"),
        (Said({}), "empty"),
        (says("A Man"), "lowercase"),
        (blocks(), "refused: SAFETY"),
        (says("", finish="SAFETY"), "refused: SAFETY"),
        (says("a man in a", finish="MAX_TOKENS"), "cut off"),
        (fails(500, "INTERNAL", "An internal error has occurred"), "500 An internal error"),
        (Said(b"<html>busy", 503), "503 <html>busy"),
        (Said(b'{"candidates": [{"cont'), "malformed"),
        (Said(b"<html>sign in"), "malformed"),
        (Said({"candidates": 3}), "malformed"),
        (says(GOOD, cut=True), "connection failed"),
    ],
)
def test_a_failed_try_is_tried_again(gemini: Gemini, by: str, reply: Said, problem: str):
    config = service(gemini, by)
    answer = asked_once(gemini, config, reply, says(GOOD))
    assert (answer.recaption, answer.attempts, answer.requests) == (GOOD, 2, 2)
    answer = asked_once(gemini, config, reply)
    assert (answer.recaption, answer.code, answer.attempts, answer.requests) == ("", "caption_failed", TRIES, TRIES)
    assert problem in answer.message
    assert gemini.count("a man") == 2 + TRIES


@pytest.mark.parametrize("by", LIBRARIES)
def test_a_slow_service_is_not_waited_for_without_end(gemini: Gemini, by: str):
    answer = asked_once(gemini, service(gemini, by, timeout_s=1), says(GOOD, wait_s=3), says(GOOD))
    assert (answer.recaption, answer.attempts) == (GOOD, 2)


@pytest.mark.parametrize("by", LIBRARIES)
@pytest.mark.parametrize(
    "reply",
    [
        fails(429, "RESOURCE_EXHAUSTED", "quota", Retry_After="1"),
        fails(429, "RESOURCE_EXHAUSTED", "quota", retry_delay="1.5s"),
        Said(b"", 429),
    ],
)
def test_too_many_requests_are_waited_for_and_are_no_try(gemini: Gemini, by: str, reply: Said):
    answer = asked_once(gemini, service(gemini, by), reply, says("BAD"), says("BAD"), says(GOOD))
    assert (answer.recaption, answer.attempts, answer.requests) == (GOOD, 3, 4)
    assert gemini.times[1] - gemini.times[0] >= 1


@pytest.mark.parametrize("by", LIBRARIES)
def test_a_long_pause_ends_the_run(gemini: Gemini, by: str):
    quota = fails(429, "RESOURCE_EXHAUSTED", "quota for the day", Retry_After="40000")
    with pytest.raises(CaptionServiceError, match=r"wait 40000 s.*same command"):
        asked_once(gemini, service(gemini, by), quota)
    assert gemini.count("a man") == 1


@pytest.mark.parametrize("by", LIBRARIES)
def test_a_wrong_key_is_told_without_the_key(gemini: Gemini, by: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GEMINI_API_KEY", "a-wrong-key")
    with pytest.raises(Refusal, match=r"API key not valid.*check GEMINI_API_KEY") as caught:
        asked_once(gemini, service(gemini, by), says(GOOD))
    assert "a-wrong-key" not in str(caught.value)


@pytest.mark.parametrize("by", LIBRARIES)
def test_a_request_that_may_not_be_made_is_not_repeated(gemini: Gemini, by: str):
    with pytest.raises(Refusal, match="403 billing"):
        asked_once(gemini, service(gemini, by), fails(403, "PERMISSION_DENIED", "billing is off"))
    assert gemini.count("a man") == 1
    with pytest.raises(Refusal, match="401 who are you"):
        asked_once(gemini, service(gemini, by), fails(401, "UNAUTHENTICATED", "who are you"))


@pytest.mark.parametrize("by", LIBRARIES)
def test_an_unknown_model_is_named(gemini: Gemini, by: str):
    with pytest.raises(Refusal, match=r"captions.model=gemini-1.0-old is not there .404"):
        asked_once(gemini, service(gemini, by, model="gemini-1.0-old"), says(GOOD))


def test_the_default_is_the_model_of_the_test_server():
    assert GEMINI == Gemini.MODEL == CaptionsConfig().model


@pytest.mark.parametrize("by", LIBRARIES)
def test_without_a_key_nothing_is_loaded(by: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("GEMINI_API_KEY", raising=False)
    # Google's libraries also look here.
    monkeypatch.setenv("GOOGLE_API_KEY", "another")
    with pytest.raises(ValueError, match="set GEMINI_API_KEY"):
        load_captioner(CaptionsConfig(by=by))


def test_the_environment_does_not_lead_to_another_service(gemini: Gemini, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GOOGLE_GENAI_USE_VERTEXAI", "true")
    monkeypatch.setenv("GOOGLE_API_KEY", "another")
    assert asked_once(gemini, service(gemini, "google-genai"), says(GOOD)).recaption == GOOD


# ------------------------------------------------------------------------------------------------ a model of one's own


def test_a_model_that_is_none_is_told_before_it_is_loaded(tmp_path: Path):
    with pytest.raises(
        ValueError, match=r"captions.model=.*cannot be loaded: .*[^.]\. Pass a folder that transformers saved"
    ):
        check_local_model(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match="is a llama model"):
        check_local_model(str(tmp_path))


def test_a_local_model_captions_and_keeps_the_same_rules(tmp_path: Path):
    from actors.curation.captioners import LocalCaptioner

    # Its weights are random: whatever it says is made of the words that it knows.
    known = ["the", "a", "man", "woman", "dog", "walks", "in", "on", "street", "river", "red", "green"]
    folder = captioning_model(tmp_path / "english", known)
    check_local_model(folder)
    captioner = LocalCaptioner(folder, gpu=False)
    answer = ask(captioner, frames(), "a man", Pace())
    assert answer.code == "" and set(answer.recaption.split()) <= set(known)
    assert answer == ask(captioner, frames(), "a man", Pace())
    shouting = LocalCaptioner(captioning_model(tmp_path / "shouting", [word.upper() for word in known]), gpu=False)
    answer = ask(shouting, frames(1), "a man", Pace())
    assert (answer.code, answer.attempts) == ("caption_failed", TRIES)
    assert answer.message == "the reply is not all lowercase"

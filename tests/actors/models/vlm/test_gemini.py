"""What goes over the wire to Gemini, by either library, and what each fault of the service leads to."""

from typing import Any

import numpy as np
import pytest

from actors.curation.captioning.settings import CaptionsConfig
from actors.models.vlm.asking import (
    TRIES,
    UNFINISHED,
    Answer,
    Pace,
    Refusal,
    ServiceDownError,
    Turns,
    ask,
)
from actors.models.vlm.services import check_vlm, key_of, load_service
from actors.models.vlm.settings import GEMINI
from tests.actors.curation.captioning.asked import GOOD, frames, question
from tests.support.servers import Gemini, Said, blocks, fails, says

LIBRARIES = ["google-genai", "google-generativeai"]


def service(gemini: Gemini, by: Any, **settings: Any) -> CaptionsConfig:
    return CaptionsConfig(by=by, endpoint=gemini.endpoint, **{"timeout_s": 20, "patience_s": 30, **settings})


def asked_once(gemini: Gemini, config: CaptionsConfig, *replies: Said) -> Answer:
    """The answer for one scene, to whose requests these are the replies."""
    gemini.replies["a man"] = list(replies)
    pace = Pace(Turns(patience_s=config.patience_s), pause_s=0.01)
    answer = ask(load_service(config, key_of(config)), question(), pace)
    if end := pace.turns.ended():
        assert answer.code == UNFINISHED
        raise end.error()
    return answer


@pytest.mark.parametrize("by", LIBRARIES)
def test_a_good_reply(gemini: Gemini, by: str):
    answer = asked_once(gemini, service(gemini, by), says(f"{GOOD}\n"))
    assert (answer.text, answer.code, answer.attempts, answer.requests) == (GOOD, "", 1, 1)
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
    assert (answer.text, answer.attempts, answer.requests) == (GOOD, 2, 2)
    answer = asked_once(gemini, config, reply)
    assert (answer.text, answer.code, answer.attempts, answer.requests) == ("", "caption_failed", TRIES, TRIES)
    assert problem in answer.message
    assert gemini.count("a man") == 2 + TRIES


@pytest.mark.parametrize("by", LIBRARIES)
def test_a_slow_service_is_not_waited_for_without_end(gemini: Gemini, by: str):
    answer = asked_once(gemini, service(gemini, by, timeout_s=1), says(GOOD, wait_s=3), says(GOOD))
    assert (answer.text, answer.attempts) == (GOOD, 2)


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
    assert (answer.text, answer.attempts, answer.requests) == (GOOD, 3, 4)
    assert gemini.times[1] - gemini.times[0] >= 1


@pytest.mark.parametrize("by", LIBRARIES)
def test_a_long_pause_ends_the_run(gemini: Gemini, by: str):
    quota = fails(429, "RESOURCE_EXHAUSTED", "quota for the day", Retry_After="40000")
    with pytest.raises(ServiceDownError, match=r"wait 40000 s.*same command"):
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
        check_vlm(CaptionsConfig(by=by))


def test_the_environment_does_not_lead_to_another_service(gemini: Gemini, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GOOGLE_GENAI_USE_VERTEXAI", "true")
    monkeypatch.setenv("GOOGLE_API_KEY", "another")
    assert asked_once(gemini, service(gemini, "google-genai"), says(GOOD)).text == GOOD

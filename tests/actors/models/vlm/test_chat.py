"""What goes over the wire to a server of the OpenAI protocol, in a process of its own, and what its faults lead to."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from actors.curation.captioning.settings import CaptionsConfig
from actors.curation.captioning.styles import StyleName
from actors.models.vlm.asking import TRIES, Answer, Pace, Refusal, ServiceDownError, Turns, ask
from actors.models.vlm.services import check_vlm, key_of, load_service
from tests.actors.curation.captioning.asked import GOOD, question
from tests.support.chat_server import KEY, MODEL, STRUCTURED, ChatServer, caption_of, chat_server, fails, raw, says


@pytest.fixture(scope="module")
def process() -> Iterator[ChatServer]:
    with chat_server() as server:
        yield server


@pytest.fixture
def server(process: ChatServer, monkeypatch: pytest.MonkeyPatch) -> ChatServer:
    """The server, with nothing scripted, and its key in the environment."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    process.script(replies={}, asked=[], times=[], refused=0, most=0, takes=None, wait_s=0, names="max_tokens")
    return process


def config(server: ChatServer, **settings: Any) -> CaptionsConfig:
    about = {"by": "openai", "endpoint": server.endpoint, "model": MODEL, "timeout_s": 20, "patience_s": 30}
    return CaptionsConfig(**{**about, **settings})


def asked_once(server: ChatServer, config: CaptionsConfig, *replies: Any, style: StyleName = "improved") -> Answer:
    """The answer for one scene, to whose requests these are the replies."""
    asked = question(style=style)
    server.script(replies={caption_of(asked.text): list(replies)} if replies else {})
    pace = Pace(Turns(patience_s=config.patience_s), pause_s=0.01)
    answer = ask(load_service(config, key_of(config)), asked, pace)
    if end := pace.turns.ended():
        raise end.error()
    return answer


def test_a_good_reply(server: ChatServer):
    answer = asked_once(server, config(server), says(f"{GOOD}\n"))
    assert (answer.text, answer.code, answer.attempts, answer.requests) == (GOOD, "", 1, 1)
    assert (answer.tokens_in, answer.tokens_out) == (1000, 50)
    [asked] = server.log()["asked"]
    assert (asked["caption"], asked["text"], asked["format"]) == ("a man", question().text, "")
    assert [picture[:2] for picture in asked["pictures"]] == [[48, 32]] * 3
    assert [picture[2] for picture in asked["pictures"]] == pytest.approx([0, 30, 60], abs=6)


def test_a_structured_caption_is_asked_for_by_its_schema(server: ChatServer):
    answer = asked_once(server, config(server), style="structured")
    assert json.loads(answer.text) == STRUCTURED
    assert server.log()["asked"][0]["format"] == "action,camera,light,style,subject"


@pytest.mark.parametrize(
    ("reply", "problem"),
    [
        (says(""), "empty"),
        (says(None), "empty"),
        (says("A Man"), "lowercase"),
        (says(None, refusal="I cannot help with that"), "refused: I cannot help"),
        (says("", finish="content_filter"), "refused: content_filter"),
        (says("a man in a", finish="length"), "cut off after 50 tokens"),
        (fails(500, "CUDA out of memory"), "500 CUDA out of memory"),
        (raw("<html>bad gateway", 502), "502 <html>bad gateway"),
        (raw('{"choices": [{"mess'), "malformed"),
        (raw("<html>sign in"), "malformed"),
        (raw("[3]"), "malformed"),
        (raw('{"choices": []}'), "malformed"),
        (raw('{"error": {"message": "upstream"}}'), "malformed"),
        (says(GOOD, cut=True), "connection failed"),
    ],
)
def test_a_failed_try_is_tried_again(server: ChatServer, reply: Any, problem: str):
    answer = asked_once(server, config(server), reply, says(GOOD))
    assert (answer.text, answer.attempts, answer.requests) == (GOOD, 2, 2)
    answer = asked_once(server, config(server), reply)
    assert (answer.text, answer.code, answer.attempts, answer.requests) == ("", "caption_failed", TRIES, TRIES)
    assert problem in answer.message
    assert server.count("a man") == 2 + TRIES


def test_a_slow_server_is_not_waited_for_without_end(server: ChatServer):
    answer = asked_once(server, config(server, timeout_s=0.5), says(GOOD, wait_s=3), says(GOOD))
    assert (answer.text, answer.attempts) == (GOOD, 2)


def test_nobody_there_is_a_fault(server: ChatServer):
    answer = asked_once(server, config(server, endpoint="http://127.0.0.1:9/v1"))
    assert (answer.code, answer.fault) == ("caption_failed", True) and "connection failed" in answer.message


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("headers", [{"Retry-After": "1"}, {}])
def test_too_many_requests_are_waited_for_and_are_no_try(server: ChatServer, status: int, headers: dict[str, str]):
    busy = fails(status, "busy") | {"headers": headers}
    replies = [busy, says("BAD"), says("BAD"), says(GOOD)]
    answer = asked_once(server, config(server), *replies)
    assert (answer.text, answer.attempts, answer.requests) == (GOOD, 3, 4)
    times = server.log()["times"]
    assert times[1] - times[0] >= 1


def test_a_long_pause_ends_the_run(server: ChatServer):
    with pytest.raises(ServiceDownError, match=r"wait 40000 s.*same command"):
        asked_once(server, config(server), fails(429, "quota for the day", Retry_After="40000"))
    assert server.count("a man") == 1


def test_a_wrong_key_is_told_without_the_key(server: ChatServer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-wrong")
    with pytest.raises(Refusal, match=r"401 Incorrect API key.*check OPENAI_API_KEY") as caught:
        asked_once(server, config(server))
    assert "sk-wrong" not in str(caught.value)
    monkeypatch.delenv("OPENAI_API_KEY")
    # A server of one's own may need no key: that is known when it answers.
    check_vlm(config(server))
    with pytest.raises(Refusal, match="check OPENAI_API_KEY in the environment"):
        asked_once(server, config(server))


def test_an_unknown_model_and_a_wrong_address_are_named(server: ChatServer):
    with pytest.raises(Refusal, match=r"captions.model=other is not there.*The model `other` does not exist"):
        asked_once(server, config(server, model="other"))
    with pytest.raises(Refusal, match=r"nothing is at http://127.*Not Found.*ends with the version"):
        asked_once(server, config(server, endpoint=server.endpoint.removesuffix("/v1")))


def test_a_model_that_names_the_limit_otherwise_is_asked_so(server: ChatServer):
    server.script(names="max_completion_tokens")
    captioner = load_service(config(server), KEY)
    assert ask(captioner, question(), Pace()).attempts == 1
    assert ask(captioner, question(), Pace()).requests == 1


def test_requests_in_flight_follow_what_the_server_takes(server: ChatServer):
    """Of a server that takes six at once, sixteen threads get all their captions, and few requests are refused."""
    server.script(takes=6, wait_s=0.05)
    settings = replace(config(server), requests_at_once=16)
    pace = Pace(Turns(patience_s=60), settings.at_once, pause_s=0.01)
    captioner = load_service(settings, KEY)
    started = time.monotonic()
    with ThreadPoolExecutor(settings.at_once) as threads:
        answers = list(threads.map(lambda n: ask(captioner, question(f"scene {n}"), pace, str(n)), range(120)))
    log = server.log()
    assert {answer.code for answer in answers} == {""} and len({answer.text for answer in answers}) == 120
    assert all(log["whole"][f"scene {number}"] == 1 for number in range(120))
    assert 0 < log["refused"] < 60 and log["most"] <= 16
    # One after the other they would take 6 s, and a second of each pause.
    assert time.monotonic() - started < 60

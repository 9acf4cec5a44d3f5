"""What is asked for each style, and which replies keep its rules."""

import hashlib
import json
from typing import Any

import pytest

from actors.curation.captioning.settings import CaptionsConfig
from actors.curation.captioning.styles import IMPROVED, PROMPT, STYLES, StyleName, checked, fill, prompt_id, prompt_of
from tests.actors.curation.captioning.asked import GOOD
from tests.support.chat_server import STRUCTURED

LONG = (
    "The camera looks down a narrow street at night. A woman in a red coat comes out of a door on the left and walks "
    "towards us, past two parked cars. Rain falls, and neon signs shine in the puddles. She stops under a lamp, takes "
    "a letter out of her pocket and reads it. Behind her a man opens a window and looks after her."
)
TAGS = "woman, red coat, river, dusk, wide shot"


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        "two men talk.",
        "a van drives past 24 parked cars; neon sign 'café la rosa' glows",
        "the naïve fiancée reads 'die zeit' in el paso, near los angeles",
        "close-up: rain on a window, a hand, then nothing",
        "a die, a pan, war, a son, sale signs, a hat and an old van in the sun",
        "a very, very, very, very dark room with a door at its far end, and a very small light",
        " ".join(f"the cat{number}" for number in range(50)),
    ],
)
def test_captions_that_keep_the_rules(text: str):
    assert checked(IMPROVED, text, PROMPT + "{caption}") == (text, "")


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
    assert problem in checked(IMPROVED, text)[1]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a man walks and walks and walks and walks and walks", "repeats itself: 'walks and'"),
        ("a dark dark dark dark dark room", "repeats itself: 'dark'"),
        ("the red car, the red car, the red car", "repeats itself: 'the red car'"),
        ("a man stands in the rain. he waits. a man stands in the rain.", "repeats a sentence: 'a man stands in the"),
        ("a woman in a red coat walks along the", "ends with 'the'"),
        ("a woman in a red coat,", "ends with 'coat,'"),
        ("a man and", "ends with 'and'"),
        ("these pictures are frames of one scene of a film: a man walks", "repeats the prompt"),
        (
            "a man. rules: add visual detail; write everything in lowercase letters; at most 9 words",
            "repeats the prompt",
        ),
    ],
)
def test_loops_stumps_and_echoes_are_no_captions(text: str, problem: str):
    assert problem in checked(IMPROVED, text, PROMPT + "{caption}")[1]


def test_a_caption_may_be_said_again():
    caption = "a man with a long grey beard sits on a bench beside a pond"
    assert checked(IMPROVED, f"{caption} at noon", PROMPT + "{caption}")[1] == ""


@pytest.mark.parametrize(
    ("style", "text", "problem"),
    [
        ("short", "A woman in a red coat walks along the river at dusk.", ""),
        (
            "short",
            f"{GOOD} and she waves to a man on the other side who has a dog and looks away",
            "more than 25",
        ),
        ("short", "Woman.", "fewer than 3"),
        ("long", LONG, ""),
        ("long", "A woman walks.", "fewer than 50"),
        ("tags", TAGS, ""),
        ("tags", TAGS.upper(), "lowercase"),
        ("tags", "woman, river", "2 tags, not 5 to 20"),
        ("tags", f"{TAGS}, river", "repeats a tag"),
        ("tags", f"{TAGS}, a woman who walks along a river", "a tag of 7 words"),
        ("tags", f"{TAGS},", "a tag of 0 words"),
        ("tags", f"{TAGS}, река", "letter 'р'"),
        ("free", "Eine Frau geht am Fluss entlang", ""),
        ("free", "женщина идёт по улице", ""),
        ("free", "ha " * 30, "repeats itself"),
    ],
)
def test_each_style_has_its_own_rules(style: StyleName, text: str, problem: str):
    found = checked(style, text)[1]
    assert problem in found and bool(problem) == bool(found)


def test_a_structured_caption_is_json_with_its_keys():
    whole = json.dumps(STRUCTURED, ensure_ascii=False)
    turned = dict(reversed(STRUCTURED.items()))
    for text in (whole, json.dumps(turned, indent=2), f"```json\n{whole}\n```", f"```\n{whole}```"):
        assert checked("structured", text) == (whole, "")
    wrong: list[tuple[Any, str]] = [
        ({name: text for name, text in STRUCTURED.items() if name != "light"}, "light: Field required"),
        (STRUCTURED | {"mood": "sad"}, "mood: Extra inputs"),
        (STRUCTURED | {"light": 3}, "light: Input should be a valid string"),
        (STRUCTURED | {"light": ""}, "light: String should have at least 1"),
        (list(STRUCTURED), "the reply: "),
        (STRUCTURED | {"light": "свет"}, "letter 'с'"),
    ]
    for value, problem in wrong:
        assert problem in checked("structured", json.dumps(value))[1]
    assert "Invalid JSON" in checked("structured", whole[:-9])[1]


def test_the_request_has_the_caption_and_the_rules():
    asked = fill(prompt_of(IMPROVED), " a man ")
    assert asked == f"{PROMPT}a man"
    for rule in ("detail", "lowercase", "at most 100 words", "only what can be seen", "English only"):
        assert rule in asked
    assert fill(prompt_of(IMPROVED), "").endswith("(there is none yet)")
    for style in STYLES:
        if style not in (IMPROVED, "free"):
            assert "{a man}" in fill(prompt_of(style), "{a man}", seconds=2.25)
            assert "2.2" in fill(prompt_of(style), "{a man}", seconds=2.25)


def test_answers_of_earlier_versions_have_the_name_of_the_prompt():
    # As it was computed before there were styles, and of what was asked then.
    assert prompt_id(prompt_of(IMPROVED)) == hashlib.sha256(PROMPT.encode()).hexdigest()[:12] == "d73e556dceef"


def test_a_prompt_of_ones_own():
    config = CaptionsConfig(styles=("free",), prompt="{title}: was sieht man in {duration} s? {{bald}} {caption}")
    assert fill(config.prompt_of("free"), "a man", "film", 2.5) == "film: was sieht man in 2.5 s? {bald} a man"
    assert config.prompt_id("free") != CaptionsConfig().prompt_id(IMPROVED)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"prompt": "what is in {film}?"}, r"there is no \{film\}, but \{caption\}, \{title\}, \{duration\}"),
        ({"prompt": "as {}"}, r"there is no \{\}"),
        ({"prompt": "as {caption"}, "expected '}'"),
        ({"prompt": "{caption.__class__}"}, "there is no"),
        ({"prompt": "{duration:.2f}"}, "without a format"),
        ({"prompt": "x", "styles": ("short", "long")}, "one style"),
        ({"styles": ("free",)}, "free needs captions.prompt"),
        ({"styles": ()}, "at least one style"),
        ({"styles": ("short", "short")}, "each once"),
        ({"requests_at_once": 0}, "requests_at_once"),
        ({"max_requests": -1}, "max_requests"),
        ({"requests_per_minute": 0}, "requests_per_minute"),
        ({"model": ""}, "model"),
        ({"workers": 0}, "workers"),
        ({"by": "transformers"}, "needs captions.model"),
        ({"by": "transformers", "model": "some/model", "max_requests": 3}, "need a service"),
        ({"by": "openai", "model": "some/model"}, "needs captions.endpoint"),
        ({"by": "openai", "model": "some/model", "endpoint": "host:8000"}, "needs captions.endpoint"),
        ({"by": "openai", "endpoint": "http://host:8000/v1"}, "needs captions.model"),
        ({"by": "vllm", "model": "some/model"}, "needs GPUs"),
        ({"by": "vllm", "model": "some/model", "num_gpus": 0.5}, "needs GPUs"),
    ],
)
def test_settings_that_cannot_work(settings: dict[str, Any], problem: str):
    with pytest.raises(ValueError, match=problem):
        CaptionsConfig(**settings)


def test_prices_are_those_of_who_is_asked():
    assert CaptionsConfig().prices == (0.30, 2.50)
    server = CaptionsConfig(by="openai", model="m", endpoint="http://h/v1")
    assert (server.prices, server.at_once, CaptionsConfig().at_once) == ((0, 0), 64, 8)
    assert CaptionsConfig(usd_in=1.0).prices == (1.0, 2.50)

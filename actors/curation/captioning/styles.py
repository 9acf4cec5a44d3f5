"""Kinds of captions: the prompt of each, and whether a reply keeps its rules."""

import hashlib
import json
import re
import string
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from actors.core.errors import UserError

StyleName = Literal["improved", "short", "long", "tags", "structured", "free"]

IMPROVED: StyleName = "improved"
"""The style of the reference system; its captions are the recaptions of scenes."""
FIELDS = ("caption", "title", "duration")
"""What a prompt may name in braces."""
MAX_WORDS = 100
_FRAMES = "These pictures are frames of one scene of a film, in order of time. "
_ABOUT = "\n\nCaption that the scene has now, which may be wrong: {caption}\nSeconds: {duration}"
PROMPT = f"""\
{_FRAMES}Improve the caption of the scene.
Rules: add visual detail; write everything in lowercase letters; at most {MAX_WORDS} words; say only what can be seen \
in the pictures; English only. Answer with the improved caption and nothing else.

Caption to improve: """

_ENGLISH = (
    "a an and are as at away be behind by for from has have he her his i in into is it its near of off on one or out "
    "over she some that the their them there they this through to two under up wearing while who with"
)
_FOREIGN = (
    "der das und ein eine einem einen einer eines ist auf mit dem im nicht "  # German
    "le les une des du dans sur avec est aux qui sont "  # French
    "el los las una unos unas en y del por "  # Spanish
    "il lo gli di che nel nella sulla sono "  # Italian
    "os um uma em na da dos ao "  # Portuguese
    "het een op zijn naar voor "  # Dutch
)
ENGLISH = frozenset(_ENGLISH.split())
"""Words that most English captions have; some are words of other languages, too."""
FOREIGN = frozenset(_FOREIGN.split())
"""Function words of other languages with Latin letters, less those that are English words."""
DANGLING = frozenset(["a", "an", "and", "of", "or", "the", "their", "with"])
"""Words that no caption ends with."""
ECHO_WORDS = 8
"""Words in a row that a reply and its prompt may not share, the values in the prompt left out."""
REPEATS = {1: 5, 2: 4}
"""How often a phrase of so many words may not follow itself; longer phrases three times."""
LONGEST_PHRASE = 24
SENTENCE_WORDS = 5
"""A sentence of so many words or more may not occur twice."""


class Structured(BaseModel):
    """What the style `structured` holds."""

    model_config = ConfigDict(extra="forbid", strict=True)

    subject: str = Field(min_length=1, max_length=400)
    action: str = Field(min_length=1, max_length=400)
    camera: str = Field(min_length=1, max_length=400)
    light: str = Field(min_length=1, max_length=400)
    style: str = Field(min_length=1, max_length=400)


@dataclass(frozen=True)
class Style:
    """One kind of caption."""

    prompt: str
    """The text beside the pictures, with FIELDS in braces."""
    words: tuple[int, int]
    """The least and the most words."""
    tokens: int
    """Tokens of a usual answer, for the estimate."""
    most_tokens: int
    """A model that runs here and writes more than this has no caption of so many words."""
    lowercase: bool = False
    english: bool = True
    tags: tuple[int, int] | None = None
    """The least and the most tags, for a list of them."""
    structured: bool = False
    """A JSON object of Structured."""


STYLES: dict[StyleName, Style] = {
    IMPROVED: Style(PROMPT + "{caption}", (1, MAX_WORDS), 150, 256, lowercase=True),
    "short": Style(
        f"{_FRAMES}Write a caption of one sentence, at most 25 words, in English. Say only what can be seen. "
        f"Answer with the caption and nothing else.{_ABOUT}",
        *((3, 25), 40, 96),
    ),
    "long": Style(
        f"{_FRAMES}Describe the scene in English in 50 to 250 words: who and what is in it, what happens from the "
        "first picture to the last, the place, the light, the camera. Say only what can be seen. Answer with the "
        f"description and nothing else.{_ABOUT}",
        *((50, 250), 300, 512),
    ),
    "tags": Style(
        f"{_FRAMES}List 5 to 20 English tags for it, each of one to four words, in lowercase letters, separated by "
        f"commas, the most important first. Answer with the tags and nothing else.{_ABOUT}",
        *((5, 80), 60, 192),
        lowercase=True,
        tags=(5, 20),
    ),
    "structured": Style(
        f"{_FRAMES}Describe the scene in English as one JSON object with these five keys, each a string of one "
        "sentence at most: subject (who or what), action (what happens), camera (shot size, angle, movement), light, "
        "style (the look of the pictures). Say only what can be seen. Answer with the JSON object and nothing "
        f"else.{_ABOUT}",
        *((5, 250), 160, 512),
        structured=True,
    ),
    "free": Style("", (1, 400), 300, 512, english=False),
}
"""All styles; `free` has no prompt of its own, and asks for no language."""


# ---------------------------------------------------------------------------------------------------- what is asked


def check_prompt(prompt: str) -> None:
    """Raise UserError where a prompt names what no scene has."""
    known = ", ".join(f"{{{name}}}" for name in FIELDS)
    try:
        parts = list(string.Formatter().parse(prompt))
        names = {name for _, name, _, _ in parts if name is not None}
    except ValueError as error:
        raise UserError(
            f"captions.prompt: {error}. Write {known} for values, and double the braces that are to be sent."
        ) from error
    if unknown := names - {*FIELDS}:
        named = ", ".join(f"{{{name}}}" for name in sorted(unknown))
        raise UserError(f"captions.prompt: there is no {named}, but {known}. Double the braces that are to be sent.")
    if any(spec or conversion for _, _, spec, conversion in parts):
        raise UserError(f"captions.prompt: write {known} without a format or conversion.")


def prompt_of(style: StyleName, prompt: str | None = None) -> str:
    """The prompt of a style, or what the user has set in its place."""
    return STYLES[style].prompt if prompt is None else prompt


def prompt_id(prompt: str) -> str:
    """Names a prompt in stored answers."""
    # So it has been named since there was one prompt, which had no name in braces.
    return hashlib.sha256(prompt.removesuffix("{caption}").encode()).hexdigest()[:12]


def fill(prompt: str, caption: str, title: str = "", seconds: float = 0.0) -> str:
    """The text beside the pictures of one scene."""
    said = caption.strip() or "(there is none yet)"
    return prompt.format(caption=said, title=title, duration=f"{seconds:.1f}")


# -------------------------------------------------------------------------------------------------- whether it counts


def checked(style: StyleName, text: str, prompt: str = "") -> tuple[str, str]:
    """The caption in a reply, and what is wrong with it, "" for nothing.

    prompt: what was asked, with names in braces. A structured caption is JSON with its keys in order.
    """
    rules, text = STYLES[style], text.strip()
    problem = "" if text else "the reply is empty"
    if rules.structured and text:
        text, problem = _structured(text)
    plain = " ".join(json.loads(text).values()) if rules.structured and not problem else text
    problem = problem or _rule_broken(rules, plain) or _not_finished(rules, plain) or _repeated(rules, plain)
    return text, problem or _echoed(plain, prompt)


def _structured(text: str) -> tuple[str, str]:
    """A reply that is to be JSON, in one form of spelling; models like to put it into a block of Markdown."""
    inner = re.fullmatch(r"```(?:json)?\s*(.*?)\s*```", text, re.DOTALL)
    try:
        found = Structured.model_validate_json(inner[1] if inner else text)
    except ValidationError as error:
        [first, *_] = error.errors()
        where = ".".join(map(str, first["loc"])) or "the reply"
        return text, f"the reply is not the JSON that was asked for: {where}: {first['msg']}"
    return json.dumps(found.model_dump(), ensure_ascii=False), ""


def _rule_broken(rules: Style, text: str) -> str:
    least, most = rules.words
    words = text.split()
    if rules.lowercase and text != text.lower():
        return "the reply is not all lowercase"
    if len(words) > most:
        return f"the reply has {len(words)} words, more than {most}"
    if len(words) < least and not rules.tags:
        return f"the reply has {len(words)} words, fewer than {least}"
    if rules.tags:
        return _tags_broken(text, *rules.tags) or (_foreign_letter(text) if rules.english else "")
    return _not_english(text) if rules.english else ""


def _tags_broken(text: str, least: int, most: int) -> str:
    tags = [tag.strip() for tag in text.rstrip(".").split(",")]
    if not least <= len(tags) <= most:
        return f"the reply has {len(tags)} tags, not {least} to {most}"
    if wrong := [tag for tag in tags if not 1 <= len(tag.split()) <= 4]:
        return f"the reply has a tag of {len(wrong[0].split())} words: {wrong[0][:40]!r}"
    if len(set(tags)) < len(tags):
        return "the reply repeats a tag"
    return ""


def _foreign_letter(text: str) -> str:
    strange = [letter for letter in text if letter.isalpha() and "LATIN" not in unicodedata.name(letter, "")]
    return f"the reply is not English: it has the letter {strange[0]!r}" if strange else ""


def _not_english(text: str) -> str:
    """Of English it can tell this only: letters are Latin; words like `the` and `with` are not outnumbered by those of
    German, French, Spanish, Italian, Portuguese or Dutch; and where there are eight words or more, one of them is such
    an English word. Another language in few words passes, a wrongly refused reply is rare: it would cost a request.
    """
    if strange := _foreign_letter(text):
        return strange
    words = _words(text)
    english, foreign = (sum(word in known for word in words) for known in (ENGLISH, FOREIGN))
    if foreign > english or (len(words) >= 8 and not english):
        return "the reply is not English, by its small words"
    return ""


def _not_finished(rules: Style, text: str) -> str:
    """A reply that stops in the middle, as far as its end shows; most are known by what the model says of it."""
    last = text.split()[-1].lower()
    if text[-1] in ",;:-–—(" or (rules.english and not rules.tags and last in DANGLING):
        return f"cut off: the reply ends with {last[-40:]!r}"
    return ""


def _repeated(rules: Style, text: str) -> str:
    """A model that has got into a loop says the same words again and again, or whole sentences twice."""
    words = _words(text)
    for length in range(1, min(LONGEST_PHRASE, len(words) // 2) + 1):
        same = times = 0
        for at in range(length, len(words)):
            same = same + 1 if words[at] == words[at - length] else 0
            times = same // length + 1
            if times >= REPEATS.get(length, 3):
                phrase = " ".join(words[at - length + 1 : at + 1])
                return f"the reply repeats itself: {phrase[:60]!r}"
    sentences = [" ".join(_words(part)) for part in re.split(r"[.!?;\n]+", text)]
    long = [sentence for sentence in sentences if len(sentence.split()) >= SENTENCE_WORDS]
    twice = next((sentence for sentence in long if long.count(sentence) > 1), "")
    return f"the reply repeats a sentence: {twice[:60]!r}" if twice else ""


def _echoed(text: str, prompt: str) -> str:
    """A reply that says the words of the prompt."""
    said = {tuple(run) for run in _runs(_words(text))}
    # What stood in braces is no one's wording: a caption may be said again.
    for part in re.split(r"\{\w*\}", prompt):
        for run in _runs(_words(part)):
            if tuple(run) in said:
                return f"the reply repeats the prompt: {' '.join(run)[:60]!r}"
    return ""


def _runs(words: Sequence[str]) -> list[Sequence[str]]:
    return [words[at : at + ECHO_WORDS] for at in range(len(words) - ECHO_WORDS + 1)]


def _words(text: str) -> list[str]:
    stripped = (word.strip(".,;:!?\"'()[]-–—").lower() for word in text.split())
    return [word for word in stripped if word]

"""Genres by a vision-language model that was not trained for them: settings, what it is asked, what its answer holds.

A model in the worker is asked how likely it is to answer with each genre; a service, which does not say so, lists
genres with its confidence as JSON.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np

from actors.models.vlm.asking import UNFINISHED, Answer, Question
from actors.models.vlm.settings import VlmConfig

MOST_TOKENS = 512
"""Tokens of a list of genres."""
FILM, SCENE = "film", "scene"
_ABOUT = {
    FILM: "These pictures are frames of one film, in order of time. ",
    SCENE: "These pictures are frames of one scene of a film, in order of time. ",
}


@dataclass(frozen=True)
class ZeroShotVlm(VlmConfig):
    """Which vision-language model is asked, by whom it is run, how fast it is asked and at what price."""

    NAME: ClassVar[str] = "vlm"

    batch_size: int = 8
    """Genres whose likelihood a model in a worker computes at once, for vlm.by=transformers. More are faster while
    memory lasts: each holds the film's pictures."""
    by: Literal["google-genai", "google-generativeai", "openai", "transformers"] = "google-genai"
    """Who runs the model. google-genai, or its predecessor google-generativeai (extra of that name): Google's service,
    with GEMINI_API_KEY in the environment; openai: any server with the OpenAI chat-completions protocol (vLLM, SGLang,
    Ollama, LiteLLM), with its key, if it needs one, in OPENAI_API_KEY; transformers (extra of that name): an
    image-text-to-text model in workers, which gives likelihoods instead of text."""


def name_one(genres: Sequence[str], what: str = FILM) -> str:
    """The text whose answers' likelihoods are compared."""
    about = f"{_ABOUT[what]}Name the genre of the {what}, one of: {', '.join(genres)}. "
    return f"{about}Answer with the genre and nothing else."


def list_all(genres: Sequence[str], what: str = FILM) -> str:
    """The text that is answered by a list."""
    return (
        f"{_ABOUT[what]}Which of these genres does the {what} have: {', '.join(genres)}? It may have several. Answer "
        f"with one JSON object and nothing else: its keys are the genres that the {what} has, spelled as above, its "
        "values how confident you are, each a number from 0 to 1."
    )


def listing(frames_THWC: np.ndarray, genres: Sequence[str], what: str = FILM) -> Question:
    """The question that a service is asked."""
    check = partial(checked, genres=genres)
    return Question(frames_THWC, list_all(genres, what), check, MOST_TOKENS, "vlm_failed")


def checked(reply: str, genres: Sequence[str]) -> tuple[str, str]:
    """What a listing holds as JSON, {"genres": {name: confidence}, "outside": [names]}, and what is wrong with it.

    outside: names that are none of `genres`. A reply with such names only has failed.
    """
    inner = re.fullmatch(r"```(?:json)?\s*(.*?)\s*```", reply.strip(), re.DOTALL)
    try:
        said = json.loads(inner[1] if inner else reply)
    except ValueError:
        return "", f"the reply is not JSON: {reply.strip()[:60]!r}"
    if not isinstance(said, dict):
        return "", f"the reply is no JSON object of genres: {reply.strip()[:60]!r}"
    known = {name.casefold(): name for name in genres}
    found: dict[str, float] = {}
    outside = []
    for name, value in said.items():
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 1:
            return "", f"the confidence of {name[:40]} is {str(value)[:20]!r}, no number from 0 to 1"
        if genre := known.get(name.strip().casefold()):
            found[genre] = float(value)
        else:
            outside.append(name[:40])
    if outside and not found:
        return "", f"outside of the vocabulary: {', '.join(outside)[:200]}"
    return json.dumps({"genres": found, "outside": outside}, ensure_ascii=False), ""


def likely(
    model: Any,
    frames_THWC: np.ndarray,
    genres: Sequence[str],
    at_once: int,
    of_grey: dict[tuple[int, str], np.ndarray],
    what: str = FILM,
) -> np.ndarray:
    """Probabilities (C,) that sum to 1: how much likelier each genre is as the answer than for grey pictures.

    Without that comparison a model answers with its favourite genre, and with short names, whatever it is shown.
    of_grey: what it says of so many grey pictures of a film or scene, computed once for all.
    """
    text, grey = name_one(genres, what), (len(frames_THWC), what)
    if grey not in of_grey:
        of_grey[grey] = model.likelihoods(np.full_like(frames_THWC, 128), text, genres, at_once)
    gain = model.likelihoods(frames_THWC, text, genres, at_once) - of_grey[grey]
    odds = np.exp(gain - gain.max())
    return odds / odds.sum()


def answer_columns(answer: Answer, genres: Sequence[str]) -> dict[str, Any]:
    """The columns that are stored of a service's answer."""
    said = json.loads(answer.text) if answer.text else {"genres": {}, "outside": []}
    values = None if answer.code else [said["genres"].get(name, 0.0) for name in genres]
    return {"probabilities": values, "outside": said["outside"], "code": _code(answer), "message": answer.message}


def _code(answer: Answer) -> str:
    if answer.code in ("", UNFINISHED):
        return answer.code
    if answer.message.startswith("refused"):
        return "refused"
    return "outside_vocabulary" if answer.message.startswith("outside of the vocabulary") else answer.code

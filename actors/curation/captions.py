"""Better captions from a vision-language model: what is asked, whether a reply is a caption, and who answers.

A captioner gets the first, middle and last frame of a scene and its caption. Its reply counts where it keeps the rules;
else the scene is asked again, three times in all. `google-genai` is the library that Google maintains;
`google-generativeai`, which the reference names, has been given up by its makers and caps protobuf below 6.
"""

import hashlib
import logging
import random
import threading
import time
import unicodedata
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np

from actors.core.errors import UserError
from actors.core.stage import Stage

log = logging.getLogger(__name__)

TRIES = 3
"""Replies of a scene that may fail before it does."""
UNFINISHED = "unfinished"
"""Code of a scene that was not asked for to the end, since the run's budget was."""
MAX_WORDS = 100
GEMINI = "gemini-3.5-flash-lite"
"""Google's model for many short answers as of November 2026; it thinks as little as it can unless told otherwise."""
PROMPT = f"""\
These pictures are frames of one scene of a film, in order of time. Improve the caption of the scene.
Rules: add visual detail; write everything in lowercase letters; at most {MAX_WORDS} words; say only what can be seen \
in the pictures; English only. Answer with the improved caption and nothing else.

Caption to improve: """
PROMPT_ID = hashlib.sha256(PROMPT.encode()).hexdigest()[:12]
"""Names the prompt in stored answers."""
LONGEST_PAUSE_S = 60.0
"""Pauses that the service does not ask for grow up to this."""

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


@dataclass(frozen=True)
class CaptionsConfig(Stage):
    """Which model improves captions, how fast and at what price; workers and resources are those of a local model."""

    by: Literal["google-genai", "google-generativeai", "transformers"] = "google-genai"
    """Who runs the model. google-genai, or its predecessor google-generativeai (extra of that name): Google's service,
    with GEMINI_API_KEY in the environment of the driver; transformers (extra of that name): an image-text-to-text model
    in workers, without a key."""
    model: str = GEMINI
    """The model: the service's name of it; for captions.by=transformers a name on the Hugging Face Hub or a folder."""
    endpoint: str | None = None
    """Address of the service without its version, as of a proxy; null: Google's."""
    requests_at_once: int = 8
    """Requests in flight at one time, at least 1; the driver sends them all, since they wait for the network."""
    requests_per_minute: float | None = None
    """Most requests sent per minute, for a quota; null: as fast as replies come."""
    max_requests: int | None = None
    """Most requests of one run, failed ones included, for a budget; rerun to resume. null: no limit."""
    timeout_s: float = 120
    """Seconds to wait for one reply."""
    pause_s: float = 1.0
    """Seconds to pause after the service failed; doubled with every further attempt, up to 60."""
    patience_s: float = 600
    """Seconds of "too many requests" after which a run ends, and the longest pause that the service may ask for."""
    again: bool = False
    """Request captions also for scenes whose answer came from another model, prompt or caption; false: any answer
    counts."""
    tokens_per_frame: int = 1120
    """Tokens of one frame, for the estimate: the most that Gemini 3 counts
    (ai.google.dev/gemini-api/docs/media-resolution)."""
    usd_in: float = 0.30
    """Price of a million input tokens in US dollars, for the estimate: gemini-3.5-flash-lite as listed in July 2026."""
    usd_out: float = 2.50
    """Price of a million output tokens in US dollars, for the estimate: gemini-3.5-flash-lite as listed in July 2026.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.requests_at_once < 1 or not self.model:
            raise UserError("captions.requests_at_once must be at least 1, and captions.model must not be empty")
        if self.requests_per_minute is not None and self.requests_per_minute <= 0:
            raise UserError(f"captions.requests_per_minute={self.requests_per_minute}: set a number above 0, or null")
        if self.max_requests is not None and self.max_requests < 0:
            raise UserError(f"captions.max_requests={self.max_requests}: set 0 or more, or null")
        if self.by == "transformers":
            if self.model == GEMINI:
                raise UserError(
                    "captions.by=transformers needs captions.model=…: a name on the Hugging Face Hub or a folder"
                )
            if self.max_requests is not None or self.requests_per_minute is not None:
                raise UserError(
                    "captions.max_requests and requests_per_minute need a service, not captions.by=transformers"
                )
            if self.workers < 1:
                raise UserError("captions.workers=0: set at least 1 worker for captions.by=transformers")


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
    """What asking for one scene brought in the end."""

    recaption: str = ""
    """"" where it failed."""
    code: str = ""
    """"", caption_failed, or UNFINISHED."""
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


class Captioner(Protocol):
    """Improves one caption."""

    def caption(self, frames_THWC: np.ndarray, caption: str, attempt: int) -> Reply:
        """Ask once, for frames uint8 (T, H, W, 3) RGB; attempt counts from 0.

        Raises Throttled where the service asks to wait, and Refusal where it takes no such request at all.
        """
        ...


class Throttled(Exception):
    """The service has had too many requests; wait_s is the pause that it asks for, None where it says nothing."""

    def __init__(self, wait_s: float | None) -> None:
        super().__init__("429: too many requests")
        self.wait_s = wait_s


class Refusal(UserError):
    """A request that the service refuses for what the user can mend: the key, the model, the address."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class CaptionServiceError(RuntimeError):
    """The service does not answer for long: the run ends, and the same command goes on later."""


# ---------------------------------------------------------------------------------------------------- what is asked


def prompt(caption: str) -> str:
    """What is asked beside the pictures."""
    return PROMPT + (caption.strip() or "(there is none yet)")


def check_caption(text: str) -> str:
    """What is wrong with a reply, "" for nothing: it is not empty, all lowercase, at most 100 words, English.

    Of English it can tell this only: letters are Latin; words like `the` and `with` are not outnumbered by those of
    German, French, Spanish, Italian, Portuguese or Dutch; and where there are eight words or more, one of them is such
    an English word. Another language in few words passes, a wrongly refused reply is rare: it would cost a request.
    """
    if not text.strip():
        return "the reply is empty"
    if text != text.lower():
        return "the reply is not all lowercase"
    words = text.split()
    if len(words) > MAX_WORDS:
        return f"the reply has {len(words)} words, more than {MAX_WORDS}"
    strange = [letter for letter in text if letter.isalpha() and "LATIN" not in unicodedata.name(letter, "")]
    if strange:
        return f"the reply is not English: it has the letter {strange[0]!r}"
    plain = [word.strip(".,;:!?\"'()[]-–—") for word in words]
    english, foreign = (sum(word in known for word in plain) for known in (ENGLISH, FOREIGN))
    if foreign > english or (len(words) >= 8 and not english):
        return "the reply is not English, by its small words"
    return ""


class Pace:
    """What all that ask at once share: a rate, a budget, and pauses that the service asks for.

    per_minute, at_most: None for no bound; patience_s: how long the service may ask for pauses in a row.
    """

    def __init__(self, per_minute: float | None = None, at_most: int | None = None, patience_s: float = 0) -> None:
        self._gap = 60 / per_minute if per_minute else 0.0
        self._left = at_most
        self._patience_s = patience_s
        self._next = 0.0
        self._throttled: float | None = None
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self.requests = 0
        """Requests made."""
        self.answered = False
        """The service has answered at least one of them."""

    def take(self) -> bool:
        """Wait for the turn to make one request; False where no more are to be made."""
        while not self._stopped.is_set():
            with self._lock:
                if self._left == self.requests:
                    return False
                now = time.monotonic()
                if (wait := self._next - now) <= 0:
                    self._next = now + self._gap
                    self.requests += 1
                    return True
            self._stopped.wait(wait)
        return False

    def hold(self, wait_s: float | None) -> None:
        """Let no request be made for so long; without a number, for as long as it has lasted already.

        Raises CaptionServiceError where patience ends.
        """
        with self._lock:
            now = time.monotonic()
            self._throttled = now if self._throttled is None else self._throttled
            lasted = now - self._throttled
            wait = min(max(lasted, 1.0), LONGEST_PAUSE_S) if wait_s is None else wait_s
            if lasted + wait > self._patience_s:
                raise CaptionServiceError(
                    f"the service says 429, too many requests, and asks to wait {wait:.0f} s after {lasted:.0f} s, "
                    f"beyond captions.patience_s={self._patience_s:g}: the quota may be used up; run the same command "
                    "later, or set captions.requests_per_minute"
                )
            self._next = max(self._next, now + wait)
        log.info("the caption service asks to wait %.0f s", wait)

    def heard(self) -> None:
        """The service has answered: it is not throttling now."""
        self._throttled = None
        self.answered = True

    def pause(self, seconds: float) -> None:
        """Pause one of those that ask, unless all are stopped."""
        self._stopped.wait(seconds)

    def stop(self) -> None:
        """Let no further request be made."""
        self._stopped.set()


def ask(captioner: Captioner, frames_THWC: np.ndarray, caption: str, pace: Pace, pause_s: float = 0) -> Answer:
    """Ask for one scene until a reply keeps the rules, TRIES times at most; UNFINISHED where the pace ended it before.

    A request that the service refuses with 400 is this scene's failure where others were answered before. Raises
    Refusal and CaptionServiceError for what ends the run.
    """
    answer, requests = Answer(), 0
    while answer.attempts < TRIES:
        if not pace.take():
            return replace(answer, code=UNFINISHED, requests=requests)
        requests += 1
        try:
            reply = captioner.caption(frames_THWC, caption, answer.attempts)
        except Throttled as error:
            pace.hold(error.wait_s)
            continue
        except Refusal as error:
            if error.status != 400 or not pace.answered:
                raise
            reply = Reply(problem=str(error), fault=True)
        if not reply.fault:
            pace.heard()
        text = reply.text.strip()
        problem = reply.problem or check_caption(text)
        answer = Answer(
            recaption="" if problem else text,
            code="caption_failed" if problem else "",
            message=problem,
            attempts=answer.attempts + 1,
            requests=requests,
            tokens_in=answer.tokens_in + reply.tokens_in,
            tokens_out=answer.tokens_out + reply.tokens_out,
            fault=reply.fault,
        )
        if not problem:
            break
        if reply.fault and answer.attempts < TRIES:
            pace.pause(pause_s * 2 ** (answer.attempts - 1) * random.uniform(0.5, 1))
    return answer

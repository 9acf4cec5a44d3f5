"""Settings of captions: who makes them, what is asked, how fast and at what price."""

from dataclasses import dataclass
from typing import Literal

from actors.core.errors import UserError
from actors.core.stage import Stage
from actors.curation.captioning.styles import IMPROVED, StyleName, check_prompt, prompt_id, prompt_of

GEMINI = "gemini-3.5-flash-lite"
"""Google's model for many short answers as of November 2026; it thinks as little as it can unless told otherwise."""
OWN = ("transformers", "vllm")
"""Who needs no service: the model runs in workers."""
AT_ONCE = {"openai": 64}
"""captions.requests_at_once where it is not set, else AT_ONCE_GOOGLE."""
AT_ONCE_GOOGLE = 8


@dataclass(frozen=True)
class CaptionsConfig(Stage):
    """Which model captions scenes, what it is asked, how fast and at what price."""

    batch_size: int = 8
    """Captions that a model in a worker makes at once, for captions.by=transformers and vllm. More are faster while
    memory lasts; for vllm set 32 or more."""
    by: Literal["google-genai", "google-generativeai", "openai", "transformers", "vllm"] = "google-genai"
    """Who runs the model. google-genai, or its predecessor google-generativeai (extra of that name): Google's service,
    with GEMINI_API_KEY in the environment; openai: any server with the OpenAI chat-completions protocol (vLLM, SGLang,
    Ollama, LiteLLM), with its key, if it needs one, in OPENAI_API_KEY; transformers (extra of that name): an
    image-text-to-text model in workers; vllm (extra of that name): the same with the vLLM engine, on GPUs."""
    model: str = GEMINI
    """The model: the service's name of it; for captions.by=transformers and vllm a name on the Hugging Face Hub or a
    folder."""
    endpoint: str | None = None
    """Address of the service. For openai with its version, as http://host:8000/v1; for Google's without, as of a proxy.
    null: Google's."""
    styles: tuple[StyleName, ...] = (IMPROVED,)
    """The captions of each scene, each of which is a request. improved: the caption of the input with more detail,
    lowercase, at most 100 words, as in the reference system; it becomes `recaption`. short: one sentence. long: 50 to
    250 words. tags: 5 to 20 of them. structured: JSON with subject, action, camera, light and style. free: any text of
    up to 400 words in any language, by captions.prompt."""
    prompt: str | None = None
    """The text beside the pictures, in place of that of the one style in captions.styles, whose rules hold. {caption}
    is the caption of the input, {title} the video's id, {duration} the scene's seconds; write {{ and }} for braces.
    null: the style's own."""
    requests_at_once: int | None = None
    """Most requests in flight at one time over all workers, at least 1. There are fewer where the service answers 429
    or 503, or fails. null: 64 for openai, else 8."""
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
    usd_in: float | None = None
    """Price of a million input tokens in US dollars, for the estimate; null: 0.30 for Google's services, which is
    gemini-3.5-flash-lite as listed in July 2026, else 0."""
    usd_out: float | None = None
    """Price of a million output tokens in US dollars, for the estimate; null: 2.50 for Google's services, which is
    gemini-3.5-flash-lite as listed in July 2026, else 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.requests_at_once is not None and self.requests_at_once < 1) or not self.model:
            raise UserError("captions.requests_at_once must be at least 1, and captions.model must not be empty")
        if self.requests_per_minute is not None and self.requests_per_minute <= 0:
            raise UserError(f"captions.requests_per_minute={self.requests_per_minute}: set a number above 0, or null")
        if self.max_requests is not None and self.max_requests < 0:
            raise UserError(f"captions.max_requests={self.max_requests}: set 0 or more, or null")
        if self.workers < 1:
            raise UserError("captions.workers=0: set at least 1 worker")
        self._check_styles()
        if self.by in ("openai", *OWN) and self.model == GEMINI:
            own = "a name on the Hugging Face Hub or a folder"
            what = "the server's name of its model" if self.by == "openai" else own
            raise UserError(f"captions.by={self.by} needs captions.model=…: {what}")
        if self.by == "openai" and not (self.endpoint or "").startswith(("http://", "https://")):
            raise UserError(
                f"captions.by=openai needs captions.endpoint=…: the server's address with its version, as "
                f"http://host:8000/v1; it is {self.endpoint}"
            )
        if self.by in OWN and (self.max_requests is not None or self.requests_per_minute is not None):
            raise UserError(f"captions.max_requests and requests_per_minute need a service, not captions.by={self.by}")
        if self.by == "vllm" and (self.num_gpus < 1 or self.num_gpus != int(self.num_gpus)):
            raise UserError(
                f"captions.num_gpus={self.num_gpus:g}: captions.by=vllm needs GPUs. Set how many the model of one "
                "worker is spread over, from 1."
            )

    def _check_styles(self) -> None:
        if not self.styles or len(set(self.styles)) < len(self.styles):
            raise UserError(f"captions.styles={list(self.styles)}: name at least one style, and each once")
        if self.prompt is None:
            if "free" in self.styles:
                raise UserError("captions.styles: the style free needs captions.prompt=…, which says what is asked")
            return
        if len(self.styles) > 1:
            raise UserError("captions.prompt is the text of one style: name one in captions.styles")
        check_prompt(self.prompt)

    @property
    def service(self) -> bool:
        """Requests go to a service, over the network."""
        return self.by not in OWN

    @property
    def at_once(self) -> int:
        """requests_at_once with null resolved."""
        return self.requests_at_once or AT_ONCE.get(self.by, AT_ONCE_GOOGLE)

    @property
    def prices(self) -> tuple[float, float]:
        """usd_in and usd_out with null resolved."""
        usd_in, usd_out = (0.30, 2.50) if self.by.startswith("google") else (0.0, 0.0)
        return usd_in if self.usd_in is None else self.usd_in, usd_out if self.usd_out is None else self.usd_out

    def prompt_of(self, style: StyleName) -> str:
        """What is asked for a style, with names in braces."""
        return prompt_of(style, self.prompt)

    def prompt_id(self, style: StyleName) -> str:
        """Names that prompt in stored answers."""
        return prompt_id(self.prompt_of(style))

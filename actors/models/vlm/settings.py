"""Settings of a vision-language model: who runs it, how fast it is asked and at what price."""

from dataclasses import dataclass, replace
from typing import ClassVar, Self

from actors.core.errors import UserError
from actors.core.stage import Stage
from actors.models.memory import weight_bytes, worker_gb

GEMINI = "gemini-3.5-flash-lite"
"""Google's model for many short answers as of November 2026; it thinks as little as it can unless told otherwise."""
OWN = ("transformers", "vllm")
"""Who needs no service: the model runs in workers."""
SERVICE_GB = 0.4
"""Memory of a worker that asks a service, in GiB, as `tests.benchmarks.workers` measures it."""
AT_ONCE = {"openai": 64}
"""requests_at_once where it is not set, else AT_ONCE_GOOGLE."""
AT_ONCE_GOOGLE = 8


@dataclass(frozen=True)
class VlmConfig(Stage):
    """Which vision-language model is asked, by whom it is run, how fast it is asked and at what price."""

    NAME: ClassVar[str] = "vlm"
    """Where these settings lie among those of a verb, for messages."""

    batch_size: int = 8
    """Questions that a model in a worker answers at once, for by=transformers. More are faster while memory lasts."""
    by: str = "google-genai"
    """Who runs the model."""
    model: str = GEMINI
    """The model: the service's name of it; for by=transformers and vllm a name on the Hugging Face Hub or a
    folder."""
    endpoint: str | None = None
    """Address of the service. For openai with its version, as http://host:8000/v1; for Google's without, as of a proxy.
    null: Google's."""
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
        name = self.NAME
        if (self.requests_at_once is not None and self.requests_at_once < 1) or not self.model:
            raise UserError(f"{name}.requests_at_once must be at least 1, and {name}.model must not be empty")
        if self.requests_per_minute is not None and self.requests_per_minute <= 0:
            raise UserError(f"{name}.requests_per_minute={self.requests_per_minute}: set a number above 0, or null")
        if self.max_requests is not None and self.max_requests < 0:
            raise UserError(f"{name}.max_requests={self.max_requests}: set 0 or more, or null")
        if self.workers < 1:
            raise UserError(f"{name}.workers=0: set at least 1 worker")
        if self.by in ("openai", *OWN) and self.model == GEMINI:
            own = "a name on the Hugging Face Hub or a folder"
            what = "the server's name of its model" if self.by == "openai" else own
            raise UserError(f"{name}.by={self.by} needs {name}.model=…: {what}")
        if self.by == "openai" and not (self.endpoint or "").startswith(("http://", "https://")):
            raise UserError(
                f"{name}.by=openai needs {name}.endpoint=…: the server's address with its version, as "
                f"http://host:8000/v1; it is {self.endpoint}"
            )
        if self.by in OWN and (self.max_requests is not None or self.requests_per_minute is not None):
            raise UserError(f"{name}.max_requests and requests_per_minute need a service, not {name}.by={self.by}")

    @property
    def worker_gb(self) -> float:
        """Memory of one worker, in GiB; 0 with vLLM, whose workers Ray starts as it has them."""
        if self.service:
            return SERVICE_GB
        local = self.by == "transformers"
        return worker_gb(weight_bytes(self.model), call_gb=0.5, num_gpus=self.num_gpus) if local else 0.0

    @property
    def service(self) -> bool:
        """Requests go to a service, over the network."""
        return self.by not in OWN

    @property
    def at_once(self) -> int:
        """requests_at_once with null resolved."""
        return self.requests_at_once or AT_ONCE.get(self.by, AT_ONCE_GOOGLE)

    @property
    def pool(self) -> Self:
        """The same with no more workers than requests that a service gets at once."""
        return replace(self, workers=min(self.workers, self.at_once)) if self.service else self

    @property
    def prices(self) -> tuple[float, float]:
        """usd_in and usd_out with null resolved."""
        usd_in, usd_out = (0.30, 2.50) if self.by.startswith("google") else (0.0, 0.0)
        return usd_in if self.usd_in is None else self.usd_in, usd_out if self.usd_out is None else self.usd_out

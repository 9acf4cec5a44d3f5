"""Gemini, by either of Google's clients.

`google-genai` is the library that Google maintains; `google-generativeai`, which the reference names, has been given up
by its makers and caps protobuf below 6.
"""

import json
from collections.abc import Mapping
from typing import Any

from actors.core.errors import UserError
from actors.core.http import retry_after_s
from actors.media.images import encode_jpeg
from actors.models.vlm.asking import Question, Refusal, Reply, Throttled
from actors.models.vlm.settings import VlmConfig

MAX_OUTPUT_TOKENS = 4096
"""Bounds what one reply costs; a model that thinks spends of it, too."""
QUALITY = 90
"""Of the JPEG files that a service gets."""


class GoogleGenai:
    """Gemini through google-genai; may be shared by threads."""

    def __init__(self, config: VlmConfig, key: str) -> None:
        from google import genai
        from google.genai import types

        options = types.HttpOptions(base_url=config.endpoint, timeout=int(config.timeout_s * 1000))
        # Not Vertex AI, whatever the environment says: the key is Gemini's.
        self._client = genai.Client(api_key=key, vertexai=False, http_options=options)
        self._limit = types.GenerateContentConfig(max_output_tokens=MAX_OUTPUT_TOKENS)
        self._service = _Service(config, key)

    def reply(self, question: Question, attempt: int) -> Reply:
        import httpx2
        from google.genai import errors, types

        contents: list[Any] = [
            types.Part.from_bytes(data=encode_jpeg(frame, QUALITY), mime_type="image/jpeg")
            for frame in question.frames_THWC
        ]
        contents.append(question.text)
        try:
            response = self._client.models.generate_content(
                model=self._service.model, contents=contents, config=self._limit
            )
        except errors.APIError as error:
            return self._service.failed(error.code, getattr(error.response, "headers", {}), error.details)
        except httpx2.HTTPError as error:
            return self._service.fault(f"the connection failed: {str(error) or type(error).__name__}")
        except (ValueError, TypeError, AttributeError) as error:
            # What is no JSON, or JSON but not a reply, fails in the library's conversions.
            return self._service.fault(f"the reply is malformed: {error}")
        usage = response.usage_metadata or types.GenerateContentResponseUsageMetadata()
        tokens = usage.prompt_token_count or 0, (usage.candidates_token_count or 0) + (usage.thoughts_token_count or 0)
        blocked = response.prompt_feedback and response.prompt_feedback.block_reason
        candidate = response.candidates[0] if response.candidates else types.Candidate()
        parts = (candidate.content and candidate.content.parts) or []
        text = "".join(part.text for part in parts if part.text and not part.thought)
        return _reply(text, blocked, candidate.finish_reason, tokens)


class GoogleGenerativeAI:
    """Gemini through google-generativeai, over HTTP like its successor; may be shared by threads."""

    def __init__(self, config: VlmConfig, key: str) -> None:
        try:
            from google.generativeai.client import configure
            from google.generativeai.generative_models import GenerativeModel
        except ImportError as error:
            raise UserError(
                f"{config.NAME}.by=google-generativeai needs the extra `google-generativeai`: "
                f"pip install 'filmray[google-generativeai]'; {config.NAME}.by=google-genai is its successor"
            ) from error
        options = {"api_endpoint": config.endpoint} if config.endpoint else None
        configure(api_key=key, transport="rest", client_options=options)
        self._model = GenerativeModel(config.model, generation_config={"max_output_tokens": MAX_OUTPUT_TOKENS})
        # Its own tries would be paid for without being counted.
        self._once: Any = {"retry": None, "timeout": config.timeout_s}
        self._service = _Service(config, key)

    def reply(self, question: Question, attempt: int) -> Reply:
        import requests
        from google.api_core.exceptions import GoogleAPICallError
        from google.protobuf.json_format import ParseError

        contents: list[Any] = [
            {"mime_type": "image/jpeg", "data": encode_jpeg(frame, QUALITY)} for frame in question.frames_THWC
        ]
        contents.append(question.text)
        try:
            response = self._model.generate_content(contents, request_options=self._once)
        except GoogleAPICallError as error:
            if error.response is None:
                return self._service.failed(int(error.code or 0), {}, error.message)
            return self._service.failed(error.response.status_code, error.response.headers, _json(error.response.text))
        except requests.RequestException as error:
            return self._service.fault(f"the connection failed: {str(error) or type(error).__name__}")
        except (ParseError, ValueError) as error:
            return self._service.fault(f"the reply is malformed: {error}")
        tokens = response.usage_metadata.prompt_token_count, response.usage_metadata.candidates_token_count
        if not response.candidates:
            return _reply("", response.prompt_feedback.block_reason, None, tokens)
        candidate = response.candidates[0]
        return _reply("".join(part.text for part in candidate.content.parts), None, candidate.finish_reason, tokens)


class _Service:
    """What faults of the Gemini service mean, whatever library met them; its messages never hold the key."""

    def __init__(self, config: VlmConfig, key: str) -> None:
        self.model, self._name = config.model, config.NAME
        self._key = key

    def failed(self, status: int, headers: Mapping[str, str], body: Any) -> Reply:
        """An answer that is not 200: a fault, or Throttled or Refusal raised."""
        error = body.get("error", body) if isinstance(body, dict) else body
        said = self._plain(f"{status} {error.get('message') if isinstance(error, dict) else error or ''}")
        if status == 429:
            raise Throttled(retry_after_s(headers.get("Retry-After")) or _retry_delay_s(error))
        if status == 404:
            raise Refusal(
                status,
                f"{self._name}.model={self.model} is not there ({said}): choose one of "
                f"https://ai.google.dev/gemini-api/docs/models, and check {self._name}.endpoint",
            )
        if status in (400, 401, 403):
            raise Refusal(
                status,
                f"the service refuses the request ({said}): check GEMINI_API_KEY, whether it may use "
                f"{self._name}.model={self.model}, and {self._name}.endpoint",
            )
        return self.fault(said)

    def fault(self, message: str) -> Reply:
        """A fault that may pass."""
        return Reply(problem=self._plain(message), fault=True)

    def _plain(self, text: str) -> str:
        return " ".join(text.replace(self._key, "(key)").split())[:300]


def _reply(text: str, blocked: Any, finish: Any, tokens: tuple[int, int]) -> Reply:
    """A reply of Gemini by what it says of its end: block reason of the request, finish reason of the candidate.

    Both are members of an enum; where a library does not know a reason it may be a number; None where there is none.
    """
    reasons = [str(getattr(reason, "name", reason)) for reason in (blocked, finish) if reason]
    bad = [name for name in reasons if name != "STOP" and not name.endswith("_UNSPECIFIED")]
    problem = "" if not bad else "cut off: MAX_TOKENS" if bad == ["MAX_TOKENS"] else f"refused: {bad[0]}"
    return Reply("" if problem else text, problem, tokens_in=tokens[0], tokens_out=tokens[1])


def _retry_delay_s(error: Any) -> float | None:
    """The pause that Gemini asks for in the body of a 429: a google.rpc.RetryInfo among the error's details."""
    details = error.get("details") if isinstance(error, dict) else None
    for detail in details if isinstance(details, list) else []:
        delay = detail.get("retryDelay") if isinstance(detail, dict) else None
        if isinstance(delay, str) and delay.endswith("s") and delay[:-1].replace(".", "", 1).isdigit():
            return float(delay[:-1])
    return None


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text

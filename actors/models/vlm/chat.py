"""A server that speaks the OpenAI chat-completions protocol: vLLM, SGLang, Ollama, LiteLLM, OpenAI's own.

The client is httpx2, which google-genai brings already: threads may share it, and it tries once. The package `openai`
would try again by itself, uncounted, and has much besides.
"""

import base64
from typing import Any

from actors.core.http import certificates, retry_after_s
from actors.media.images import encode_jpeg
from actors.models.vlm.asking import Question, Refusal, Reply, Throttled
from actors.models.vlm.settings import VlmConfig

MAX_OUTPUT_TOKENS = 1024
"""Bounds what one reply costs. A server with little context would refuse more."""
QUALITY = 90
"""Of the JPEG files that a server gets."""


class ChatCompletions:
    """A model behind POST /chat/completions; may be shared by threads."""

    def __init__(self, config: VlmConfig, key: str) -> None:
        import httpx2

        self._model, self._key, self._name = config.model, key, config.NAME
        self._url = f"{(config.endpoint or '').rstrip('/')}/chat/completions"
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=config.at_once)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx2.Client(verify=certificates(), timeout=config.timeout_s, limits=limits, headers=headers)
        # Ollama knows no other name; models of OpenAI that think refuse it, and name the one that they take.
        self._limit = "max_tokens"

    def reply(self, question: Question, attempt: int) -> Reply:
        import httpx2

        try:
            response = self._client.post(self._url, json=self._body(question))
        except httpx2.TimeoutException as error:
            return self._fault(f"no reply in time ({type(error).__name__})")
        except httpx2.HTTPError as error:
            return self._fault(f"the connection failed: {str(error) or type(error).__name__}")
        except httpx2.InvalidURL as error:
            raise Refusal(404, f"{self._name}.endpoint: {error}") from error
        try:
            body = response.json()
        except ValueError:
            body = None
        if response.status_code != 200:
            return self._failed(question, attempt, response, body)
        try:
            return self._reply(body)
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            return self._fault(f"the reply is malformed: {response.text[:100] or error}")

    def _body(self, question: Question) -> dict[str, Any]:
        pictures = (base64.b64encode(encode_jpeg(frame, QUALITY)).decode() for frame in question.frames_THWC)
        content: list[Any] = [
            {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{picture}"}} for picture in pictures
        ]
        content.append({"type": "text", "text": question.text})
        body = {"model": self._model, "messages": [{"role": "user", "content": content}]}
        if question.schema:
            schema = {"name": "answer", "strict": True, "schema": question.schema}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return {**body, self._limit: MAX_OUTPUT_TOKENS}

    def _reply(self, body: Any) -> Reply:
        choice = body["choices"][0]
        message, usage = choice["message"], body.get("usage") or {}
        sent, made = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
        text, problem = (message.get("content") or "").strip(), ""
        if refused := message.get("refusal"):
            problem = self._plain(f"refused: {refused}")
        elif choice.get("finish_reason") == "length":
            problem = f"cut off after {made} tokens"
        elif choice.get("finish_reason") == "content_filter":
            problem = "refused: content_filter"
        return Reply("" if problem else text, problem, tokens_in=sent, tokens_out=made)

    def _failed(self, question: Question, attempt: int, response: Any, body: Any) -> Reply:
        """An answer that is not 200: a fault, or Throttled or Refusal raised."""
        error = body.get("error", body) if isinstance(body, dict) else body
        message = error.get("message") if isinstance(error, dict) else error
        status = response.status_code
        said = self._plain(f"{status} {message or response.text}")
        if status == 400 and "max_completion_tokens" in said and self._limit == "max_tokens":
            self._limit = "max_completion_tokens"
            return self.reply(question, attempt)
        if status in (429, 503):
            raise Throttled(retry_after_s(response.headers.get("Retry-After")))
        if status in (401, 403):
            raise Refusal(
                status,
                f"{self._url} refuses the key ({said}): check OPENAI_API_KEY in the environment, and whether it may "
                f"use {self._name}.model={self._model}",
            )
        if status == 404:
            raise Refusal(
                status,
                f"{self._name}.model={self._model} is not there, or nothing is at {self._url} ({said}): GET "
                f"/models lists the server's models; {self._name}.endpoint ends with the version, as in http://host:8000/v1",
            )
        if status in (400, 405, 413, 422):
            raise Refusal(
                status, f"{self._url} refuses the request ({said}): check {self._name}.model and {self._name}.endpoint"
            )
        return self._fault(said)

    def _fault(self, message: str) -> Reply:
        """A fault that may pass."""
        return Reply(problem=self._plain(message), fault=True)

    def _plain(self, text: str) -> str:
        """A message in one line that never holds the key."""
        text = text.replace(self._key, "(key)") if self._key else text
        return " ".join(text.split())[:300]

"""Vision-language models that caption scenes: Gemini by either of its clients, or a local model."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from actors.core.errors import UserError
from actors.core.http import retry_after_s
from actors.core.stage import Batch
from actors.curation.captions import Answer, Captioner, CaptionsConfig, Pace, Refusal, Reply, Throttled, ask, prompt
from actors.media.images import encode_jpeg
from actors.models.hub import check_hub, first_line

MAX_OUTPUT_TOKENS = 4096
"""Bounds what one reply costs; a model that thinks spends of it, too."""
LOCAL_TOKENS = 256
"""A model that runs here and says more than this has no caption of MAX_WORDS to say."""
QUALITY = 90
"""Of the JPEG files that a service gets."""


# ------------------------------------------------------------------------------------------------------- who answers


def check_captioner(config: CaptionsConfig) -> None:
    """Raise UserError where a key, a library or a model of one's own is missing; asks nothing of a service."""
    if config.by == "transformers":
        check_local_model(config.model)
    else:
        load_captioner(config)


def load_captioner(config: CaptionsConfig) -> Captioner:
    """A captioner of a service, for the driver; raises UserError where its key or its library is missing."""
    key = os.environ.get("GEMINI_API_KEY", "").strip()
    if not key:
        raise UserError(
            f"captions.by={config.by} needs a key: set GEMINI_API_KEY in the environment (https://aistudio.google.com "
            "makes them), or use captions.by=transformers captions.model=…"
        )
    return GoogleGenai(config, key) if config.by == "google-genai" else GoogleGenerativeAI(config, key)


class GoogleGenai:
    """Gemini through google-genai; may be shared by threads."""

    def __init__(self, config: CaptionsConfig, key: str) -> None:
        from google import genai
        from google.genai import types

        options = types.HttpOptions(base_url=config.endpoint, timeout=int(config.timeout_s * 1000))
        # Not Vertex AI, whatever the environment says: the key is Gemini's.
        self._client = genai.Client(api_key=key, vertexai=False, http_options=options)
        self._limit = types.GenerateContentConfig(max_output_tokens=MAX_OUTPUT_TOKENS)
        self._service = _Service(config, key)

    def caption(self, frames_THWC: np.ndarray, caption: str, attempt: int) -> Reply:
        import httpx2
        from google.genai import errors, types

        contents: list[Any] = [
            types.Part.from_bytes(data=encode_jpeg(frame, QUALITY), mime_type="image/jpeg") for frame in frames_THWC
        ]
        contents.append(prompt(caption))
        try:
            response = self._client.models.generate_content(
                model=self._service.model, contents=contents, config=self._limit
            )
        except errors.APIError as error:
            return self._service.failed(error.code, getattr(error.response, "headers", {}), error.details)
        except httpx2.HTTPError as error:
            return self._service.fault(f"the connection failed: {error or type(error).__name__}")
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

    def __init__(self, config: CaptionsConfig, key: str) -> None:
        try:
            from google.generativeai.client import configure
            from google.generativeai.generative_models import GenerativeModel
        except ImportError as error:
            raise UserError(
                "captions.by=google-generativeai needs the extra `google-generativeai`: "
                "pip install 'filmray[google-generativeai]'; captions.by=google-genai is its successor"
            ) from error
        options = {"api_endpoint": config.endpoint} if config.endpoint else None
        configure(api_key=key, transport="rest", client_options=options)
        self._model = GenerativeModel(config.model, generation_config={"max_output_tokens": MAX_OUTPUT_TOKENS})
        # Its own tries would be paid for without being counted.
        self._once: Any = {"retry": None, "timeout": config.timeout_s}
        self._service = _Service(config, key)

    def caption(self, frames_THWC: np.ndarray, caption: str, attempt: int) -> Reply:
        import requests
        from google.api_core.exceptions import GoogleAPICallError
        from google.protobuf.json_format import ParseError

        contents: list[Any] = [
            {"mime_type": "image/jpeg", "data": encode_jpeg(frame, QUALITY)} for frame in frames_THWC
        ]
        contents.append(prompt(caption))
        try:
            response = self._model.generate_content(contents, request_options=self._once)
        except GoogleAPICallError as error:
            if error.response is None:
                return self._service.failed(int(error.code or 0), {}, error.message)
            return self._service.failed(error.response.status_code, error.response.headers, _json(error.response.text))
        except requests.RequestException as error:
            return self._service.fault(f"the connection failed: {error or type(error).__name__}")
        except (ParseError, ValueError) as error:
            return self._service.fault(f"the reply is malformed: {error}")
        tokens = response.usage_metadata.prompt_token_count, response.usage_metadata.candidates_token_count
        if not response.candidates:
            return _reply("", response.prompt_feedback.block_reason, None, tokens)
        candidate = response.candidates[0]
        return _reply("".join(part.text for part in candidate.content.parts), None, candidate.finish_reason, tokens)


class _Service:
    """What faults of the Gemini service mean, whatever library met them; its messages never hold the key."""

    def __init__(self, config: CaptionsConfig, key: str) -> None:
        self.model = config.model
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
                f"captions.model={self.model} is not there ({said}): choose one of "
                "https://ai.google.dev/gemini-api/docs/models, and check captions.endpoint",
            )
        if status in (400, 401, 403):
            raise Refusal(
                status,
                f"the caption service refuses the request ({said}): check GEMINI_API_KEY, whether it may use "
                f"captions.model={self.model}, and captions.endpoint",
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


# ------------------------------------------------------------------------------------------------ a model of one's own


def check_local_model(model: str) -> None:
    """Raise UserError where transformers cannot have the model, or it takes no pictures; reads its settings alone."""
    try:
        from transformers import AutoConfig
        from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    except ImportError as error:
        raise UserError(
            "captions.by=transformers needs the extra `transformers`: pip install 'filmray[transformers]'"
        ) from error
    instead = "a folder that transformers saved"
    if not Path(model).is_dir() and not check_hub(f"captions.model={model}", model, ("config.json",), instead):
        return
    try:
        kind = AutoConfig.from_pretrained(model).model_type
    except (OSError, ValueError) as error:
        raise UserError(f"captions.model={model} cannot be loaded: {first_line(error)}. Pass {instead}.") from error
    if kind not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        raise UserError(f"captions.model={model} is a {kind} model. Set an image-text-to-text model.")


class LocalCaptioner:
    """An image-text-to-text model of transformers; the first try is its likeliest text, further ones are sampled."""

    def __init__(self, model: str, gpu: bool) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        # Other weights are pickles, which may run code.
        loaded: Any = AutoModelForImageTextToText.from_pretrained(model, dtype="auto", use_safetensors=True)
        self._model: Any = loaded.to("cuda" if gpu else "cpu").eval()
        self._processor = AutoProcessor.from_pretrained(model)
        if self._processor.chat_template is None:
            raise UserError(f"captions.model={model} has no chat template. Set an instruction-tuned model.")

    def caption(self, frames_THWC: np.ndarray, caption: str, attempt: int) -> Reply:
        import torch
        from PIL import Image

        content: list[Any] = [{"type": "image", "image": Image.fromarray(frame)} for frame in frames_THWC]
        content.append({"type": "text", "text": prompt(caption)})
        inputs = self._processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        ).to(self._model.device, self._model.dtype)
        torch.manual_seed(attempt)
        with torch.inference_mode():
            made = self._model.generate(**inputs, do_sample=attempt > 0, max_new_tokens=LOCAL_TOKENS)
        sent = inputs["input_ids"].shape[1]
        tokens = {"tokens_in": sent, "tokens_out": len(made[0]) - sent}
        if tokens["tokens_out"] == LOCAL_TOKENS:
            return Reply(problem=f"cut off after {LOCAL_TOKENS} tokens", **tokens)
        return Reply(self._processor.decode(made[0, sent:], skip_special_tokens=True), **tokens)


class Recaptioner:
    """Improve captions with a model that lives in the worker.

    Reads:  frames   object array (N,), each uint8 (T, H, W, 3) RGB: what the model is to see; T = 0 where there is none
            caption  str (N,)
    Adds:   the fields of Answer, each (N,)
    Drops:  frames
    Rows without frames have no attempts.
    """

    def __init__(self, config: CaptionsConfig) -> None:
        import torch

        gpu = config.num_gpus > 0
        if not gpu:
            torch.set_num_threads(max(1, int(config.num_cpus)))
        self._captioner = LocalCaptioner(config.model, gpu)

    def __call__(self, batch: Batch) -> Batch:
        answers = [
            ask(self._captioner, frames, str(caption), Pace()) if len(frames) else Answer()
            for frames, caption in zip(batch["frames"], batch["caption"], strict=True)
        ]
        kept = {name: column for name, column in batch.items() if name != "frames"}
        return kept | {name: np.array([getattr(answer, name) for answer in answers]) for name in Answer.__annotations__}

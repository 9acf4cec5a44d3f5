"""Rows for Ray Data's vLLM engine, and what it says of each: the engine itself runs in stages of Ray's own."""

import base64
import importlib.util
import json
from typing import Any

import numpy as np

from actors.core.errors import UserError
from actors.core.stage import Row
from actors.curation.captioning.recaptioners import question, styled, unpacked
from actors.curation.captioning.settings import CaptionsConfig
from actors.media.images import encode_jpeg
from actors.models.vlm.asking import Answer, Question, Reply
from actors.models.vlm.local import TEMPERATURE, check_local_model

QUALITY = 90
"""Of the JPEG files that the engine gets."""
CARRIED = ("video_id", "scene_id", "caption", "style", "error", "message")
"""Columns that go past the engine."""


def check_engine(config: CaptionsConfig) -> None:
    """Raise UserError where vLLM is missing, or transformers cannot have the model, or it takes no pictures."""
    if not importlib.util.find_spec("vllm"):
        raise UserError("captions.by=vllm needs the extra `vllm`: pip install 'filmray[vllm]'")
    check_local_model(config)


def request(row: Row, config: CaptionsConfig, attempt: int) -> Row:
    """What the engine takes for one caption: messages in the OpenAI form, and how to sample.

    row: of `key_frames_of` with one style. A scene without pictures costs one token: no row may leave on the way.
    """
    asked = question(config, unpacked(row), row["style"])
    sampling: dict[str, Any] = {
        "max_tokens": 1 if row["error"] else asked.most_tokens,
        "temperature": TEMPERATURE if attempt else 0.0,
        "seed": attempt,
    }
    if asked.schema:
        # As text: tables give every mapping in a column the same keys.
        sampling["structured_outputs"] = {"json": json.dumps(asked.schema)}
    carried = {name: row[name] for name in CARRIED}
    return {**carried, "messages": [{"role": "user", "content": _content(asked)}], "sampling_params": sampling}


def _content(asked: Question) -> list[Row]:
    pictures = (base64.b64encode(encode_jpeg(frame, QUALITY)).decode() for frame in asked.frames_THWC)
    images = [{"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{one}"}} for one in pictures]
    return [*images, {"type": "text", "text": asked.text}]


def response(row: Row) -> Row:
    """What is kept of an engine's row."""
    kept = {name: row[name] for name in CARRIED}
    tokens = {"tokens_in": row["num_input_tokens"], "tokens_out": row["num_generated_tokens"]}
    return {**kept, "generated_text": row["generated_text"], **tokens}


def answered(row: Row, config: CaptionsConfig, before: Answer) -> Answer:
    """The answer after one more try: a row of `response`, or one that failed in the engine."""
    if row["error"]:
        return Answer(code="caption_failed", message=f"{row['error']}: {row['message']}")
    asked = styled(np.empty((0, 0, 0, 3), np.uint8), "", row["style"], config.prompt_of(row["style"]))
    return before.then(_reply(row, asked.most_tokens), asked, before.requests + 1)


def _reply(row: Row, limit: int) -> Reply:
    if failed := row.get("__inference_error__"):
        return Reply(problem=" ".join(failed.split())[:300])
    sent, made = int(row["tokens_in"]), int(row["tokens_out"])
    # The engine's rows do not say how a text ended.
    cut = f"cut off after {limit} tokens" if made >= limit else ""
    return Reply("" if cut else row["generated_text"], cut, tokens_in=sent, tokens_out=made)

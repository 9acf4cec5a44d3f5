"""What Ray Data's vLLM engine gets for a caption, and what becomes of its rows."""

import base64
import json
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from actors.curation.captioning.engine import CARRIED, answered, check_engine, request, response
from actors.curation.captioning.recaptioners import packed
from actors.curation.captioning.settings import CaptionsConfig
from actors.curation.captioning.styles import STYLES
from actors.models.vlm.asking import Answer
from tests.actors.curation.captioning.asked import GOOD, frames

CONFIG = CaptionsConfig(by="vllm", model="some/model", num_gpus=2, styles=("improved", "structured"))


def row(style: str = "improved", error: str = "") -> dict[str, Any]:
    caption = packed({"caption": "a man", "start_s": 1.0, "end_s": 3.0}, [])
    about = {"video_id": "a", "scene_id": "a.0", "caption": caption, "style": style, "error": error, "message": "gone"}
    return about | {"frames": frames(0 if error else 2)}


def test_without_vllm_the_extra_is_named():
    with pytest.raises(ValueError, match=r"captions.by=vllm needs the extra `vllm`: pip install 'filmray\[vllm\]'"):
        check_engine(CONFIG)


def test_a_request_has_the_pictures_and_how_to_sample():
    asked = request(row(), CONFIG, attempt=0)
    assert asked["sampling_params"] == {"max_tokens": 256, "temperature": 0.0, "seed": 0}
    [turn] = asked["messages"]
    *pictures, text = turn["content"]
    assert turn["role"] == "user" and text["text"].endswith("Caption to improve: a man")
    for picture, red in zip(pictures, (0, 30), strict=True):
        data = picture["image_url"]["url"].removeprefix("data:image/jpeg;base64,")
        found = np.asarray(Image.open(BytesIO(base64.b64decode(data))))
        assert found.shape == (32, 48, 3) and found[5, 5, 0] == pytest.approx(red, abs=6)
    assert all(asked[name] == row()[name] for name in CARRIED) and "frames" not in asked
    again = request(row("structured"), CONFIG, attempt=2)["sampling_params"]
    assert again["temperature"] > 0 and again["seed"] == 2
    assert sorted(json.loads(again["structured_outputs"]["json"])["required"]) == sorted(
        ["subject", "action", "camera", "light", "style"]
    )
    assert request(row(error="not_found"), CONFIG, attempt=0)["sampling_params"]["max_tokens"] == 1


def made(text: str, tokens: int = 12) -> dict[str, Any]:
    """A row as the engine leaves it: all that went in, and what it adds."""
    asked = request(row(), CONFIG, attempt=0)
    return asked | {"generated_text": text, "num_input_tokens": 700, "num_generated_tokens": tokens, "metrics": None}


def test_an_engine_row_becomes_an_answer():
    answer = answered(response(made(GOOD)), CONFIG, Answer())
    assert answer == Answer(GOOD, attempts=1, requests=1, tokens_in=700, tokens_out=12)
    cut = answered(response(made("a man in a", STYLES["improved"].most_tokens)), CONFIG, Answer())
    assert (cut.message, cut.open) == ("cut off after 256 tokens", True)
    second = answered(response(made(GOOD)), CONFIG, cut)
    assert (second.text, second.attempts, second.tokens_out) == (GOOD, 2, 268)


def test_a_row_that_failed_in_the_engine_failed_by_itself():
    # It goes past `response`.
    bad = made("", 0) | {"__inference_error__": "ValueError: prompt (9000 tokens) is longer\nthan the model"}
    answer = answered(bad, CONFIG, Answer())
    assert (answer.code, answer.message) == (
        "caption_failed",
        "ValueError: prompt (9000 tokens) is longer than the model",
    )
    lost = answered(response(made("", 1) | {"error": "not_found"}), CONFIG, Answer())
    assert (lost.code, lost.message, lost.attempts) == ("caption_failed", "not_found: gone", 0)

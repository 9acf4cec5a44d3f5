"""A model in the worker: several captions at once are those of one at a time."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.curation.captioning.settings import CaptionsConfig
from actors.models.vlm.asking import TRIES, Question, Reply
from actors.models.vlm.local import LocalVlm, Sampled, ask_all, check_local_model
from tests.actors.curation.captioning.asked import frames, question
from tests.support.tiny_models import captioning_model

KNOWN = ["the", "a", "man", "woman", "dog", "walks", "in", "on", "street", "river", "red", "green"]


def local(model: str) -> CaptionsConfig:
    return CaptionsConfig(by="transformers", model=model)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model whose weights are random: whatever it says is made of the words that it knows."""
    return captioning_model(tmp_path_factory.mktemp("model"), KNOWN)


def test_a_model_that_is_none_is_told_before_it_is_loaded(tmp_path: Path):
    with pytest.raises(
        ValueError, match=r"captions.model=.*cannot be loaded: .*[^.]\. Pass a folder that transformers saved"
    ):
        check_local_model(local(str(tmp_path)))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match="is a llama model"):
        check_local_model(local(str(tmp_path)))


def test_a_local_model_captions_and_keeps_the_same_rules(tmp_path: Path, folder: str):
    check_local_model(local(folder))
    captioner = LocalVlm(folder, gpu=False)
    [answer] = ask_all(captioner, [question()])
    assert answer.code == "" and set(answer.text.split()) <= set(KNOWN)
    assert [answer] == ask_all(captioner, [question()])
    shouting = LocalVlm(captioning_model(tmp_path, [word.upper() for word in KNOWN]), gpu=False)
    [answer] = ask_all(shouting, [question(count=1)])
    assert (answer.code, answer.attempts) == ("caption_failed", TRIES)
    assert answer.message == "the reply is not all lowercase"


@pytest.mark.parametrize("attempt", [0, 2])
def test_captions_of_a_batch_are_those_of_one_at_a_time(folder: str, attempt: int):
    captioner = LocalVlm(folder, gpu=False)
    texts = ["a man", "the woman walks in the red street", "", "dog", "a green river on the street in red"]
    asked = [question(text, count=count) for text, count in zip(texts, (3, 1, 2, 3, 1), strict=True)]
    together = captioner.replies(asked, attempt)
    assert together == [captioner.replies([one], attempt)[0] for one in asked]
    # They differ in what is sent and said, so that rows were padded, in front and behind.
    assert len({reply.tokens_in for reply in together}) == len(asked)
    assert len({reply.tokens_out for reply in together}) > 1 or attempt
    assert max(reply.tokens_out for reply in together) > 5


def test_a_text_ends_where_a_chat_does_and_not_before(folder: str):
    captioner = LocalVlm(folder, gpu=False)
    # The words of the first half and </s>.
    assert captioner._ends == [2, *range(4, 4 + len(KNOWN) // 2)]
    sent = {"sent": 5, "limit": 4}
    assert captioner._reply([12, 13, 4, 1, 1], **sent).tokens_out == 3
    assert captioner._reply([12, 13, 14, 15, 4], **sent).problem == "cut off after 4 tokens"


def test_only_those_that_failed_are_asked_again(monkeypatch: pytest.MonkeyPatch):
    captioner = LocalVlm.__new__(LocalVlm)
    rounds: list[list[str]] = []

    def says(questions: Sequence[Question], attempt: int) -> list[Reply]:
        rounds.append([asked.text.rpartition(": ")[2] for asked in questions])
        return [Reply("" if "dog" in asked.text and not attempt else "in the rain") for asked in questions]

    monkeypatch.setattr(captioner, "replies", says)
    answers = ask_all(captioner, [question("a man"), question("a dog"), question("the river")])
    assert rounds == [["a man", "a dog", "the river"], ["a dog"]]
    assert [(answer.attempts, answer.requests, answer.code) for answer in answers] == [
        (1, 1, ""),
        (2, 2, ""),
        (1, 1, ""),
    ]


def test_noise_draws_tokens_by_their_probability():
    import torch

    scores = torch.log(torch.tensor([0.6, 0.3, 0.1]).repeat(4000, 1)) * 0.7
    drawn = [int(Sampled(1, seed)(None, scores[seed : seed + 1]).argmax()) for seed in range(4000)]
    # Within four standard deviations of a share of 4,000.
    np.testing.assert_allclose(np.bincount(drawn) / 4000, [0.6, 0.3, 0.1], atol=0.031)


def test_likelihoods_are_those_of_each_answer_alone(folder: str):
    """Beside a pass over each whole text, which is neither batched, nor padded, nor cut to the answer."""
    import torch
    from PIL import Image

    model, answers, shown = LocalVlm(folder, gpu=False), ["dog", "a man walks", "red river"], frames(2)
    content = [{"type": "image", "image": Image.fromarray(frame)} for frame in shown]
    talk = [{"role": "user", "content": [*content, {"type": "text", "text": "the man"}]}]
    how: dict[str, Any] = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    asked = model._processor.apply_chat_template(talk, **how)
    expected = []
    for answer in answers:
        # The order of `captioning_model`: four special tokens, of which </s> is the third, then the words.
        tokens = [*(4 + KNOWN.index(word) for word in answer.split()), 2]
        whole = torch.cat([asked["input_ids"], torch.tensor([tokens])], 1)
        with torch.inference_mode():
            logits = model._model(input_ids=whole, pixel_values=asked["pixel_values"]).logits[0].log_softmax(-1)
        start = asked["input_ids"].shape[1] - 1
        expected.append(sum(float(logits[start + at, token]) for at, token in enumerate(tokens)))
    for at_once in (1, 2, 3):
        np.testing.assert_allclose(model.likelihoods(shown, "the man", answers, at_once), expected, atol=1e-4)
    assert np.abs(model.likelihoods(frames(1), "the man", answers, 3) - expected).max() > 1e-3

"""A vision-language model of transformers, in the worker: several questions at once, or how likely answers are."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from actors.core.errors import UserError
from actors.core.loading import loading
from actors.models.hub import check_hub, first_line
from actors.models.vlm.asking import Answer, Question, Reply
from actors.models.vlm.settings import VlmConfig

TEMPERATURE = 0.7
"""Of further tries."""


def check_local_model(config: VlmConfig) -> None:
    """Raise UserError where transformers cannot have the model, or it takes no pictures; reads its settings alone."""
    try:
        from transformers import AutoConfig
        from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    except ImportError as error:
        raise UserError(
            f"{config.NAME}.by=transformers needs the extra `transformers`: pip install 'filmray[transformers]'"
        ) from error
    model, instead = config.model, "a folder that transformers saved"
    named = f"{config.NAME}.model={model}"
    if not Path(model).is_dir() and not check_hub(named, model, ("config.json",), instead):
        return
    try:
        kind = AutoConfig.from_pretrained(model).model_type
    except (OSError, ValueError) as error:
        raise UserError(f"{named} cannot be loaded: {first_line(error)}. Pass {instead}.") from error
    if kind not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        raise UserError(f"{named} is a {kind} model. Set an image-text-to-text model.")


class LocalVlm:
    """An image-text-to-text model of transformers; the first try is its likeliest text, further ones are sampled.

    What it says of one question does not depend on those beside it, but for rounding, which may decide between two
    tokens where the model is not float32.
    """

    @loading()
    def __init__(self, model: str, gpu: bool) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        # Other weights are pickles, which may run code.
        loaded: Any = AutoModelForImageTextToText.from_pretrained(model, dtype="auto", use_safetensors=True)
        self._model: Any = loaded.to("cuda" if gpu else "cpu").eval()
        self._processor: Any = AutoProcessor.from_pretrained(model)
        if self._processor.chat_template is None:
            raise UserError(f"{model} has no chat template. Set an instruction-tuned model.")
        tokenizer = self._processor.tokenizer
        # What is generated follows the prompt, so padding stands before it.
        tokenizer.padding_side = "left"
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        # A chat ends with its own token, which a model's settings do not always name.
        ends = self._model.generation_config.eos_token_id
        named = ends if isinstance(ends, list) else [ends]
        self._ends = sorted({end for end in (*named, tokenizer.eos_token_id) if end is not None})

    def replies(self, questions: Sequence[Question], attempt: int) -> list[Reply]:
        """Ask several questions at once; attempt counts from 0."""
        import torch
        from transformers import LogitsProcessorList

        inputs = self._inputs(questions)
        limits = [question.most_tokens for question in questions]
        with torch.inference_mode():
            made = self._model.generate(
                **inputs,
                do_sample=False,
                max_new_tokens=max(limits),
                eos_token_id=self._ends,
                pad_token_id=self._processor.tokenizer.pad_token_id,
                logits_processor=LogitsProcessorList([Sampled(len(questions), attempt)] if attempt else []),
            )
        sent = inputs["attention_mask"].sum(1).tolist()
        rows = made[:, inputs["input_ids"].shape[1] :].tolist()
        return [self._reply(*row) for row in zip(rows, sent, limits, strict=True)]

    def likelihoods(self, frames_THWC: np.ndarray, text: str, answers: Sequence[str], at_once: int) -> np.ndarray:
        """Log-likelihood that the model answers with each text, and ends there: float64 (N,).

        at_once: answers in one call of the model, each of which holds the question, too.
        """
        import torch

        inputs = self._inputs([Question(frames_THWC, text, _as_it_is, 1, "")])
        found = [
            self._likelihoods_of(inputs, answers[start : start + at_once]) for start in range(0, len(answers), at_once)
        ]
        return torch.cat(found).double().cpu().numpy()

    def _likelihoods_of(self, inputs: Any, answers: Sequence[str]) -> Any:
        import torch

        tokenizer, device = self._processor.tokenizer, self._model.device
        ends = [[*tokenizer(one, add_special_tokens=False).input_ids, tokenizer.eos_token_id] for one in answers]
        longest = max(map(len, ends))
        padded = [end + [tokenizer.pad_token_id] * (longest - len(end)) for end in ends]
        tokens = torch.tensor(padded, device=device)
        there = torch.tensor([[1] * len(end) + [0] * (longest - len(end)) for end in ends], device=device)
        behind = {"input_ids": tokens, "attention_mask": there}
        shape, rows = inputs["input_ids"].shape, {}
        for name, value in inputs.items():
            rows[name] = torch.cat([value] * len(ends))
            if value.shape == shape:
                # Whatever else is there for each token says of text that it is text.
                more = behind.get(name, torch.zeros_like(tokens)).to(value.dtype)
                rows[name] = torch.cat([rows[name], more], 1)
        with torch.inference_mode():
            logits = self._model(**rows, logits_to_keep=longest + 1).logits[:, -longest - 1 : -1]
            each = logits.float().log_softmax(-1).gather(2, tokens[..., None])[..., 0]
        return (each * there).sum(1)

    def _inputs(self, questions: Sequence[Question]) -> Any:
        """What the model takes for some questions, padded to one length."""
        from PIL import Image

        talks = []
        for question in questions:
            content: list[Any] = [{"type": "image", "image": Image.fromarray(frame)} for frame in question.frames_THWC]
            content.append({"type": "text", "text": question.text})
            talks.append([{"role": "user", "content": content}])
        return self._processor.apply_chat_template(
            talks,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        ).to(self._model.device, self._model.dtype)

    def _reply(self, row: list[int], sent: int, limit: int) -> Reply:
        """What one row of a batch says: up to its own end, behind which there is padding."""
        end = next((at for at, token in enumerate(row) if token in self._ends), None)
        if end is None or end >= limit:
            return Reply(problem=f"cut off after {limit} tokens", tokens_in=sent, tokens_out=limit)
        text = self._processor.tokenizer.decode(row[: end + 1], skip_special_tokens=True)
        return Reply(text, tokens_in=sent, tokens_out=end + 1)


def _as_it_is(text: str) -> tuple[str, str]:
    return text, ""


class Sampled:
    """Makes the likeliest token one that is drawn by its probability, in each row by a generator of its own.

    The largest sum of a logit and Gumbel noise is such a draw. `do_sample` draws for the whole batch at once, so that a
    question would get another answer beside other questions.
    """

    def __init__(self, rows: int, seed: int) -> None:
        import torch

        self._generators = [torch.Generator().manual_seed(seed) for _ in range(rows)]

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        import torch

        draws = torch.stack([torch.rand(scores.shape[1], generator=one) for one in self._generators])
        noise = -torch.log(-torch.log(draws.clamp(1e-10, 1 - 1e-7)))
        return scores.float() / TEMPERATURE + noise.to(scores.device)


def ask_all(model: LocalVlm, questions: Sequence[Question]) -> list[Answer]:
    """Ask until each reply counts, TRIES times at most; those that failed are asked together."""
    answers = [Answer()] * len(questions)
    while left := [number for number, answer in enumerate(answers) if answer.open]:
        attempt = answers[left[0]].attempts
        replies = model.replies([questions[number] for number in left], attempt)
        for number, reply in zip(left, replies, strict=True):
            answers[number] = answers[number].then(reply, questions[number], attempt + 1)
    return answers

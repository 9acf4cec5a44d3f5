"""A vision-language model of transformers, in the worker: several captions at once."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from actors.core.errors import UserError
from actors.curation.captioning.asking import Answer, Question, Reply
from actors.curation.captioning.styles import STYLES
from actors.models.hub import check_hub, first_line

TEMPERATURE = 0.7
"""Of further tries."""


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
    """An image-text-to-text model of transformers; the first try is its likeliest text, further ones are sampled.

    What it says of a scene does not depend on those beside it, but for rounding, which may decide between two tokens
    where the model is not float32.
    """

    def __init__(self, model: str, gpu: bool) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        # Other weights are pickles, which may run code.
        loaded: Any = AutoModelForImageTextToText.from_pretrained(model, dtype="auto", use_safetensors=True)
        self._model: Any = loaded.to("cuda" if gpu else "cpu").eval()
        self._processor: Any = AutoProcessor.from_pretrained(model)
        if self._processor.chat_template is None:
            raise UserError(f"captions.model={model} has no chat template. Set an instruction-tuned model.")
        tokenizer = self._processor.tokenizer
        # What is generated follows the prompt, so padding stands before it.
        tokenizer.padding_side = "left"
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        # A chat ends with its own token, which a model's settings do not always name.
        ends = self._model.generation_config.eos_token_id
        named = ends if isinstance(ends, list) else [ends]
        self._ends = sorted({end for end in (*named, tokenizer.eos_token_id) if end is not None})

    def captions(self, questions: Sequence[Question], attempt: int) -> list[Reply]:
        """Ask for several captions at once; attempt counts from 0."""
        import torch
        from PIL import Image
        from transformers import LogitsProcessorList

        talks = []
        for question in questions:
            content: list[Any] = [{"type": "image", "image": Image.fromarray(frame)} for frame in question.frames_THWC]
            content.append({"type": "text", "text": question.text})
            talks.append([{"role": "user", "content": content}])
        inputs = self._processor.apply_chat_template(
            talks,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        ).to(self._model.device, self._model.dtype)
        limits = [STYLES[question.style].most_tokens for question in questions]
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

    def _reply(self, row: list[int], sent: int, limit: int) -> Reply:
        """What one row of a batch says: up to its own end, behind which there is padding."""
        end = next((at for at, token in enumerate(row) if token in self._ends), None)
        if end is None or end >= limit:
            return Reply(problem=f"cut off after {limit} tokens", tokens_in=sent, tokens_out=limit)
        text = self._processor.tokenizer.decode(row[: end + 1], skip_special_tokens=True)
        return Reply(text, tokens_in=sent, tokens_out=end + 1)


class Sampled:
    """Makes the likeliest token one that is drawn by its probability, in each row by a generator of its own.

    The largest sum of a logit and Gumbel noise is such a draw. `do_sample` draws for the whole batch at once, so that a
    scene would get another caption beside other scenes.
    """

    def __init__(self, rows: int, seed: int) -> None:
        import torch

        self._generators = [torch.Generator().manual_seed(seed) for _ in range(rows)]

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        import torch

        draws = torch.stack([torch.rand(scores.shape[1], generator=one) for one in self._generators])
        noise = -torch.log(-torch.log(draws.clamp(1e-10, 1 - 1e-7)))
        return scores.float() / TEMPERATURE + noise.to(scores.device)


def ask_all(captioner: LocalCaptioner, questions: Sequence[Question]) -> list[Answer]:
    """Ask until each reply counts, TRIES times at most; those that failed are asked together."""
    answers = [Answer()] * len(questions)
    while left := [number for number, answer in enumerate(answers) if answer.open]:
        attempt = answers[left[0]].attempts
        replies = captioner.captions([questions[number] for number in left], attempt)
        for number, reply in zip(left, replies, strict=True):
            asked = questions[number]
            answers[number] = answers[number].then(reply, asked.style, asked.prompt, attempt + 1)
    return answers

"""Caption scenes with the vLLM engine of Ray Data, on GPUs.

frames     tasks    N -> 1: as of `recaption`
request    tasks    1 -> styles: messages with pictures inline
engine     actors   Ray's own stages: the chat template, pictures, the engine with the model over captions.num_gpus GPUs
write      driver   a part of captions/ for each block of captions that are settled

Captions whose reply does not count go through the engine once more, at most TRIES times, each time in a dataset of
their own: rows cannot go back in one.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from actors.core.stage import Row
from actors.curation.captioning.engine import answered, request, response
from actors.curation.captioning.recaptioners import Answers
from actors.curation.captioning.settings import CaptionsConfig
from actors.models.vlm.asking import TRIES, Answer
from pipelines.core.ray_data import batches, fitted
from pipelines.curation.captioning.recaption import asked, in_waves
from pipelines.curation.settings import CurationConfig

if TYPE_CHECKING:
    from ray.data import Dataset
    from ray.data.llm import vLLMEngineProcessorConfig

PICTURES = 3
"""Of one request at most."""
PREPARE_CPUS = 1.0
"""That each stage beside the engine reserves."""


def by_engine(config: CurationConfig, scenes: Iterable[Row], into: Answers) -> Generator[Answer, None, None]:
    """The answers for scenes with `styles`, each written when it is settled."""
    for some in in_waves(scenes):
        yield from _wave(config, some, into)


def _wave(config: CurationConfig, scenes: list[Row], into: Answers) -> Iterator[Answer]:
    before: dict[tuple[str, str, str], Answer] = {}
    left = {(row["video_id"], row["scene_id"]): row for row in scenes}
    for attempt in range(TRIES):
        again: dict[tuple[str, str], list[Any]] = {}
        for rows in _blocks(_answered(config, list(left.values()), attempt)):
            settled = []
            for row in rows:
                key = (row["video_id"], row["scene_id"], row["style"])
                answer = answered(row, config.captions, before.get(key, Answer()))
                if answer.open and not row["error"]:
                    before[key] = answer
                    again.setdefault(key[:2], []).append(row["style"])
                else:
                    settled.append((row | json.loads(row["caption"]), row["style"], answer))
            into.write_all(settled)
            yield from (answer for _, _, answer in settled)
        left = {key: {**left[key], "styles": styles} for key, styles in again.items()}
        if not left:
            return


def _answered(config: CurationConfig, scenes: list[Row], attempt: int) -> Dataset:
    from ray.data.llm import build_processor

    settings = config.captions
    stages = fitted({"captions": settings}, {"video": config.video}, config.autoscaling)
    rows = asked(config, scenes, stages["video"]).flat_map(_by_style, num_cpus=stages["video"].num_cpus)
    into_engine = partial(request, config=settings, attempt=attempt)
    return build_processor(engine_config(settings), preprocess=into_engine, postprocess=response)(rows)


def engine_config(settings: CaptionsConfig) -> vLLMEngineProcessorConfig:
    """The engine as the settings have it: one model over captions.num_gpus GPUs, captions.workers times."""
    from ray.data.llm import vLLMEngineProcessorConfig

    stage = {"enabled": True, "num_cpus": PREPARE_CPUS}
    return vLLMEngineProcessorConfig(
        model_source=settings.model,
        batch_size=settings.batch_size,
        concurrency=settings.workers,
        engine_kwargs={
            "tensor_parallel_size": int(settings.num_gpus),
            "limit_mm_per_prompt": {"image": PICTURES},
        },
        # A prompt that is too long is this caption's failure, not the run's.
        should_continue_on_error=True,
        log_engine_metrics=False,
        prepare_multimodal_stage={**stage, "chat_template_content_format": "openai"},
        chat_template_stage=stage,
        # The engine does both, and knows where pictures stand among the tokens.
        tokenize_stage=False,
        detokenize_stage=False,
    )


def _by_style(row: Row) -> list[Row]:
    return [{**row, "style": style} for style in json.loads(row["caption"])["styles"]]


def _blocks(dataset: Dataset) -> Iterator[list[Row]]:
    for batch in batches(dataset):
        names = list(batch)
        yield [dict(zip(names, values, strict=True)) for values in zip(*batch.values(), strict=True)]

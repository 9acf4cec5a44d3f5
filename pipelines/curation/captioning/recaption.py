"""Caption scenes: frames, ask, write down each answer at once.

frames   tasks    N -> 1: of each scene its first, middle and last frame, from keyframes/, else from its film
ask      actors   1 -> styles: threads ask a service, in turns that one actor gives to all; or a model lives in them
write    actors   a part of captions/ for each answer of a service, so that what was paid for is never asked again; for
                  each batch of a model

Answers are gathered into one part at the end. Nothing else is changed: `select` reads what is there.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pyarrow as pa

from actors.core import storage
from actors.core.errors import UserError
from actors.core.stage import Row, Stage
from actors.core.store import Store
from actors.curation.captioning.recaptioners import (
    Answers,
    LocalRecaptioner,
    ServiceRecaptioner,
    answers_of,
    check_captioner,
    packed,
)
from actors.curation.captioning.settings import CaptionsConfig
from actors.curation.captioning.styles import IMPROVED, STYLES, fill
from actors.curation.tables import CAPTIONS
from actors.models.vlm.asking import UNFINISHED, Answer
from actors.models.vlm.services import key_of
from pipelines.core.progress import Progress, tracked
from pipelines.core.ray_data import batches, fitted, ray_actors
from pipelines.core.turns import finish_turns, shared_turns
from pipelines.curation.cutting.frames import key_frames_of
from pipelines.curation.exporting.export import renew_exported, runs
from pipelines.curation.rows import answers, captions_by_style, current_answers
from pipelines.curation.selecting.select import tell_captions
from pipelines.curation.settings import CurationConfig

if TYPE_CHECKING:
    from ray.data import Dataset

log = logging.getLogger(__name__)

FRAMES_SENT = 3
CALLS = 16
"""Blocks that a worker takes at once, each of a few scenes and BLOCK_BYTES at most: enough to keep its requests in
flight while the last ones of some blocks are waited for."""


@dataclass(frozen=True)
class Estimate:
    """What captioning scenes costs where each reply counts at once; TRIES times as much at most."""

    scenes: int
    captions: int
    """One for each style of each scene."""
    tokens_in: int
    tokens_out: int
    usd: float


@dataclass
class Recaptioned:
    """What one run has asked for."""

    captioned: int = 0
    failed: int = 0
    left: int = 0
    """Captions not asked for, or not to the end, since captions.max_requests was reached."""
    requests: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    usd: float = 0.0
    """What these tokens cost at captions.usd_in and usd_out."""
    seconds: float = 0.0


def unasked(config: CurationConfig, scenes: list[Row]) -> list[Row]:
    """Those of some scenes that lack an answer, sound or failed, with `styles`, those that they lack.

    With captions.again an answer counts only where the model, the prompt and the caption are those of now.
    """
    settings = config.captions
    there = current_answers(Store(config.output)).to_pylist()
    named = ("video_id", "scene_id")
    if settings.again:
        now = {style: (settings.by, settings.model, settings.prompt_id(style)) for style in settings.styles}
        there = [row for row in there if (row["by"], row["model"], row["prompt"]) == now.get(row["style"])]
        named = (*named, "caption")
    answered = {(*(row[name] for name in named), row["style"]) for row in there}
    # A scene that is named twice is one scene.
    wanted = {(row["video_id"], row["scene_id"]): row for row in scenes}
    lacking = []
    for row in wanted.values():
        key = tuple(row[name] for name in named)
        if styles := [style for style in settings.styles if (*key, style) not in answered]:
            lacking.append({**row, "styles": styles})
    return lacking


def improving(config: CurationConfig) -> CurationConfig:
    """The settings with the style improved alone, whose captions are compared."""
    if not config.evaluate.recaption:
        return config
    if IMPROVED not in config.captions.styles:
        raise UserError(
            "evaluate compares captions of the style improved: name it in captions.styles, or set "
            "evaluate.recaption=false"
        )
    return replace(config, captions=replace(config.captions, styles=(IMPROVED,)))


def estimate(config: CurationConfig, scenes: list[Row]) -> Estimate:
    """What asking for scenes of `unasked` will cost, by the prices in the settings; a model in workers is free."""
    settings = config.captions
    asked = [(row, style) for row in scenes for style in row["styles"]]
    texts = sum(len(fill(settings.prompt_of(style), row["caption"])) // 4 for row, style in asked)
    sent = len(asked) * FRAMES_SENT * settings.tokens_per_frame + texts
    received = sum(STYLES[style].tokens for _, style in asked)
    return Estimate(len(scenes), len(asked), sent, received, _usd(settings, sent, received))


def recaption(config: CurationConfig, scenes: list[Row]) -> Recaptioned:
    """Ask for those of some scenes that lack an answer, and write each answer into captions/ at once.

    Args:
        scenes: rows as kept_scenes gives them: video_id, uri, clip_id, scene_id, caption, start_s, end_s, part.

    Raises ValueError where the key, the model or the endpoint is wrong; ServiceDownError where the service does not
    answer for long. What was answered before is written then, too.
    """
    check_captioner(config.captions)
    todo, started = unasked(config, scenes), time.monotonic()
    count = sum(len(row["styles"]) for row in todo)
    done = Recaptioned(left=count)
    if not todo:
        return done
    store = Store(config.output)
    into = Answers(store, config.captions, str(time.time()))
    with closing(_way(config.captions)(config, todo, into)) as replies:
        progress = Progress("recaption", count, "captions")
        for answer in tracked(
            replies,
            progress,
            lambda answer: int(answer.code != UNFINISHED),
            lambda answer: {} if answer.code in ("", UNFINISHED) else {answer.code: 1},
        ):
            done.captioned += answer.code == ""
            done.failed += answer.code == "caption_failed"
            done.left -= answer.code != UNFINISHED
            done.requests += answer.requests
            done.tokens_in += answer.tokens_in
            done.tokens_out += answer.tokens_out
    done.usd = round(_usd(config.captions, done.tokens_in, done.tokens_out), 4)
    _gather(store)
    done.seconds = round(time.monotonic() - started, 1)
    return done


def _way(settings: CaptionsConfig) -> Callable[[CurationConfig, list[Row], Answers], Generator[Answer, None, None]]:
    """How the model is asked."""
    if settings.by == "vllm":
        from pipelines.curation.captioning.caption_engine import by_engine

        return by_engine
    return _by_service if settings.service else _by_model


def caption_scenes(config: CurationConfig, scenes: list[Row], start: Callable[[], None] = runs) -> Recaptioned:
    """As `recaption`, and bring scenes/, rejected/ and kept.json in line with the answers; start: as `export`."""
    done, store = recaption(config, scenes), Store(config.output)
    tell_captions(store)
    renew_exported(config, start)
    return done


def forget_failed(store: Store) -> set[tuple[str, str]]:
    """Remove failed answers of captions that have no sound one, so that they are asked for again; returns the keys of
    their scenes."""
    best = captions_by_style(store)
    failed = best[best.code != ""]
    names = ("video_id", "scene_id", "style")
    keys = set(zip(*(failed[name] for name in names), strict=True))
    if keys:
        rows, parts = answers(store)
        kept = [row for row in rows.to_pylist() if tuple(row[name] for name in names) not in keys]
        _merge(store, pa.Table.from_pylist(kept, CAPTIONS), parts)
    return {(video_id, scene_id) for video_id, scene_id, _ in keys}


def _by_service(config: CurationConfig, scenes: list[Row], into: Answers) -> Generator[Answer, None, None]:
    settings = config.captions
    # A scene takes one request at least: what is beyond the budget need not be decoded.
    stages = fitted({"captions": settings}, {"video": config.video}, config.autoscaling)
    stage = replace(stages["captions"], workers=min(stages["captions"].workers, settings.at_once))
    turns, most = shared_turns(settings), settings.at_once // stage.workers
    answered = asked(config, scenes[: settings.max_requests], stages["video"]).map_batches(
        ServiceRecaptioner,
        fn_constructor_args=[into, key_of(settings), turns, most],
        batch_size=None,
        **ray_actors(stage, calls=min(most, CALLS), inputs=-(-len(scenes) // most)),
    )
    # Held here, so that the workers live until they have finished.
    replies = batches(answered)
    try:
        for batch in replies:
            answers = answers_of(batch)
            yield from answers
            if any(answer.code == UNFINISHED for answer in answers) and turns.ended():
                break
        if end := turns.ended():
            raise end.error()
    finally:
        finish_turns(turns, settings.timeout_s)


def _by_model(config: CurationConfig, scenes: list[Row], into: Answers) -> Generator[Answer, None, None]:
    stages = fitted({"captions": config.captions}, {"video": config.video}, config.autoscaling)
    stage = stages["captions"]
    fitting = replace(into, config=replace(config.captions, num_cpus=stage.num_cpus))
    answered = asked(config, scenes, stages["video"]).map_batches(
        LocalRecaptioner,
        fn_constructor_args=[fitting],
        batch_size=config.captions.batch_size,
        **ray_actors(stage, inputs=-(-len(scenes) // config.captions.batch_size)),
    )
    for batch in batches(answered):
        yield from answers_of(batch)


def asked(config: CurationConfig, scenes: list[Row], stage: Stage) -> Dataset:
    """Scenes with their key frames, and what is asked of them."""
    return key_frames_of([{**row, "caption": packed(row, row["styles"])} for row in scenes], config, stage)


def _gather(store: Store) -> None:
    """Make one part of all; until the small ones are gone, readers meet rows twice and count them once."""
    rows, parts = answers(store)
    _merge(store, rows, parts)


def _merge(store: Store, rows: pa.Table, parts: list[str]) -> None:
    """Write rows as one part and remove those that they come from; parts that others add meanwhile stay."""
    whole = store.write_part("captions", rows, map(str, rows["written"].to_pylist()))
    for name in set(parts) - {whole}:
        storage.delete(store.uri("captions", name))


def _usd(settings: CaptionsConfig, tokens_in: int, tokens_out: int) -> float:
    usd_in, usd_out = settings.prices
    return (tokens_in * usd_in + tokens_out * usd_out) / 1e6

"""Improve the captions of scenes: frames, ask, write down each answer at once.

frames   tasks    N -> 1: of each scene its first, middle and last frame, from keyframes/, else from its film
ask      driver   1 -> 1: a service is asked by threads of the driver; a model of one's own lives in actors
write    driver   1 -> 1: a part of captions/ for each answer, so that what was paid for is never asked again

Answers are gathered into one part at the end. Nothing else is changed: `select` reads what is there.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Generator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, replace

import pyarrow as pa

from actors.core import storage
from actors.core.stage import Row
from actors.core.store import Store
from actors.curation.captioners import Recaptioner, check_captioner, load_captioner
from actors.curation.captions import (
    PROMPT_ID,
    UNFINISHED,
    Answer,
    CaptionsConfig,
    CaptionServiceError,
    Pace,
    ask,
    prompt,
)
from actors.curation.tables import CAPTIONS, ORIGIN
from pipelines.core.progress import Progress, tracked
from pipelines.core.ray_data import fitted, ray_actors, rows_of
from pipelines.curation.export import renew_exported
from pipelines.curation.frames import key_frames_of
from pipelines.curation.rows import answers, captions, current_answers
from pipelines.curation.select import tell_captions
from pipelines.curation.settings import CurationConfig

log = logging.getLogger(__name__)

FRAMES_SENT = 3
OUTPUT_TOKENS = 150
"""For the estimate: a caption of 100 words."""
GIVE_UP = 20
"""A run ends when so many scenes in a row failed by the service's fault: it is down."""


@dataclass(frozen=True)
class Estimate:
    """What asking for scenes costs where each is answered at once; TRIES times as much at most."""

    scenes: int
    tokens_in: int
    tokens_out: int
    usd: float


@dataclass
class Recaptioned:
    """What one run has asked for."""

    captioned: int = 0
    failed: int = 0
    left: int = 0
    """Scenes not asked for, or not to the end, since captions.max_requests was reached."""
    requests: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    usd: float = 0.0
    """What these tokens cost at captions.usd_in and usd_out."""
    seconds: float = 0.0


def unasked(config: CurationConfig, scenes: list[Row]) -> list[Row]:
    """Those of some scenes that have no answer, sound or failed.

    With captions.again an answer counts only where the model, the prompt and the caption are those of now.
    """
    there = current_answers(Store(config.output)).to_pylist()
    named = ("video_id", "scene_id")
    if config.captions.again:
        now = (config.captions.by, config.captions.model, PROMPT_ID)
        there = [row for row in there if (row["by"], row["model"], row["prompt"]) == now]
        named = (*named, "caption")
    answered = {tuple(row[name] for name in named) for row in there}
    # A scene that is named twice is one scene.
    wanted = {(row["video_id"], row["scene_id"]): row for row in scenes}
    return [row for row in wanted.values() if tuple(row[name] for name in named) not in answered]


def estimate(config: CurationConfig, scenes: list[Row]) -> Estimate:
    """What asking for these scenes will cost, by the prices in the settings; a model of one's own costs nothing."""
    sent = sum(FRAMES_SENT * config.captions.tokens_per_frame + len(prompt(row["caption"])) // 4 for row in scenes)
    received = len(scenes) * OUTPUT_TOKENS
    return Estimate(len(scenes), sent, received, _usd(config.captions, sent, received))


def recaption(config: CurationConfig, scenes: list[Row]) -> Recaptioned:
    """Ask for those of some scenes that have no answer yet, and write each answer into captions/ at once.

    Args:
        scenes: rows as kept_scenes gives them: video_id, uri, clip_id, scene_id, caption, start_s, end_s, part.

    Raises ValueError where the key, the model or the endpoint is wrong; CaptionServiceError where the service does not
    answer for long. What was answered before is written then, too.
    """
    check_captioner(config.captions)
    todo, started = unasked(config, scenes), time.monotonic()
    done = Recaptioned(left=len(todo))
    if not todo:
        return done
    store, faults = Store(config.output), 0
    local = config.captions.by == "transformers"
    with closing((_by_model if local else _by_service)(config, todo, store)) as replies:
        progress = Progress("recaption", len(todo), "scenes")
        for answer in tracked(replies, progress, lambda answer: int(answer.code != UNFINISHED)):
            done.captioned += answer.code == ""
            done.failed += answer.code == "caption_failed"
            done.left -= answer.code != UNFINISHED
            done.requests += answer.requests
            done.tokens_in += answer.tokens_in
            done.tokens_out += answer.tokens_out
            faults = faults + 1 if answer.fault else 0
            if faults == GIVE_UP:
                raise CaptionServiceError(
                    f"{GIVE_UP} scenes in a row failed by the service's fault ({answer.message}): run the same command "
                    "again when it is well; `retry` asks for these again"
                )
    done.usd = round(_usd(config.captions, done.tokens_in, done.tokens_out), 4)
    _gather(store)
    done.seconds = round(time.monotonic() - started, 1)
    return done


def caption_scenes(config: CurationConfig, scenes: list[Row]) -> Recaptioned:
    """As `recaption`, and bring scenes/, rejected/ and kept.json in line with the answers."""
    done, store = recaption(config, scenes), Store(config.output)
    tell_captions(store)
    renew_exported(config)
    return done


def forget_failed(store: Store) -> set[tuple[str, str]]:
    """Remove failed answers of scenes that have no sound one, so that they are asked for again; returns their keys."""
    best = captions(store)
    failed = best[best.code != ""]
    keys = set(zip(failed.video_id, failed.scene_id, strict=True))
    if keys:
        rows, parts = answers(store)
        kept = [row for row in rows.to_pylist() if (row["video_id"], row["scene_id"]) not in keys]
        _merge(store, pa.Table.from_pylist(kept, CAPTIONS), parts)
    return keys


def _by_service(config: CurationConfig, scenes: list[Row], store: Store) -> Generator[Answer, None, None]:
    settings, origins = config.captions, _origins(scenes)
    captioner = load_captioner(settings)
    pace = Pace(settings.requests_per_minute, settings.max_requests, settings.patience_s)

    def answer(row: Row) -> Answer:
        found = Answer() if row["error"] else ask(captioner, row["frames"], row["caption"], pace, settings.pause_s)
        return _written(store, settings, row | origins[row["video_id"], row["scene_id"]], found)

    # A scene takes one request at least: what is beyond the budget need not be decoded.
    stages = fitted({}, {"video": config.video}, config.autoscaling)
    rows = rows_of(key_frames_of(scenes[: settings.max_requests], config, stages["video"]))
    waiting: set[Future[Answer]] = set()
    with ThreadPoolExecutor(settings.requests_at_once) as threads:
        try:
            for row in rows:
                waiting.add(threads.submit(answer, row))
                if len(waiting) == settings.requests_at_once:
                    ended, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in ended)
            yield from (future.result() for future in wait(waiting).done)
        finally:
            # Those under way still write what they get.
            pace.stop()


def _by_model(config: CurationConfig, scenes: list[Row], store: Store) -> Generator[Answer, None, None]:
    settings, origins = config.captions, _origins(scenes)
    stages = fitted({"captions": settings}, {"video": config.video}, config.autoscaling)
    stage = stages["captions"]
    answered = key_frames_of(scenes, config, stages["video"]).map_batches(
        Recaptioner,
        fn_constructor_args=[replace(settings, num_cpus=stage.num_cpus)],
        batch_size=stage.batch_size,
        **ray_actors(stage),
    )
    for row in rows_of(answered):
        found = Answer(**{name: row[name] for name in Answer.__annotations__})
        yield _written(store, settings, row | origins[row["video_id"], row["scene_id"]], found)


def _origins(scenes: list[Row]) -> dict[tuple[str, str], Row]:
    """By scene, which film and times an answer is of."""
    return {(row["video_id"], row["scene_id"]): {name: row.get(name) for name in ORIGIN} for row in scenes}


def _written(store: Store, settings: CaptionsConfig, row: Row, answer: Answer) -> Answer:
    """Write an answer as a part of its own; a scene that could not be decoded has failed."""
    if answer.code == UNFINISHED:
        return answer
    if row["error"]:
        answer = Answer(code="caption_failed", message=f"{row['error']}: {row['message']}")
    about = {name: row[name] for name in ("video_id", "scene_id", "caption", *ORIGIN)}
    made_by = {"by": settings.by, "model": settings.model, "prompt": PROMPT_ID, "written": time.time()}
    columns = {name: getattr(answer, name) for name in CAPTIONS.names if hasattr(answer, name)}
    table = pa.Table.from_pylist([{**about, **columns, **made_by}], CAPTIONS)
    store.write_part("captions", table, [row["video_id"], row["scene_id"], str(made_by["written"])])
    return answer


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
    if settings.by == "transformers":
        return 0.0
    return (tokens_in * settings.usd_in + tokens_out * settings.usd_out) / 1e6

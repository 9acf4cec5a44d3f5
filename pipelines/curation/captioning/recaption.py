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
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from itertools import groupby, islice
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from actors.core import storage
from actors.core.errors import UserError
from actors.core.stage import Batch, Row, Stage
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
from actors.curation.captioning.styles import IMPROVED, STYLES, StyleName, fill
from actors.models.vlm.asking import UNFINISHED, Answer
from actors.models.vlm.services import key_of
from pipelines.core.progress import Progress, tracked
from pipelines.core.ray_data import batches, fitted, ray_actors
from pipelines.core.turns import finish_turns, shared_turns
from pipelines.curation.cutting.frames import key_frames_of
from pipelines.curation.exporting.export import renew_exported, runs
from pipelines.curation.kept import KEYS, Chosen, Names, compute, first_of, names_of, scene_names
from pipelines.curation.rows import answers_of_part, read_answers
from pipelines.curation.selecting.select import tell_captions
from pipelines.curation.settings import CurationConfig
from pipelines.curation.waves import waves

if TYPE_CHECKING:
    from ray.data import Dataset

log = logging.getLogger(__name__)

FRAMES_SENT = 3
LOOKED_AT = (*("video_id", "clip_id", "scene_id", "uri", "start_s", "end_s", "clock_jumps"), "part")
"""What of a scene is needed to have its key frames."""
WAVE = 100_000
"""Scenes that are asked for at once: the driver holds some KB of each, and a model in workers is loaded anew for each
wave."""
PART_ROWS = 100_000
"""Answers in a part that many are gathered into."""
LARGE_BYTES = 8 << 20
"""Parts of so many bytes stay as they are."""
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


class Unasked:
    """Those of some scenes that lack an answer, sound or failed, with `styles`, those that they lack."""

    def __init__(self, scenes: Chosen, styles: Sequence[StyleName], lacking: np.ndarray) -> None:
        """lacking: which styles of which scenes, bool (N, S)."""
        self._scenes, self._styles, self._lacking = scenes, styles, lacking

    def __len__(self) -> int:
        return int(self._lacking.any(axis=1).sum())

    @property
    def captions(self) -> int:
        """How many answers they lack."""
        return int(self._lacking.sum())

    def by_style(self) -> dict[StyleName, int]:
        """How many they lack of each style."""
        return dict(zip(self._styles, self._lacking.sum(axis=0).tolist(), strict=True))

    def __iter__(self) -> Iterator[Row]:
        for row, lacking in zip(self._scenes, self._lacking, strict=True):
            if lacking.any():
                yield {**row, "styles": [style for style, one in zip(self._styles, lacking, strict=True) if one]}


def unasked(config: CurationConfig, scenes: Chosen) -> Unasked:
    """Which scenes lack an answer; scenes: gone through several times.

    With captions.again an answer counts only where the model, the prompt and the caption are those of now.
    """
    settings = config.captions
    named = [*KEYS, "caption"] if settings.again else KEYS
    lacking = np.ones((len(scenes), len(settings.styles)), bool)
    # A scene that is named twice is one scene.
    lacking[~first_of(scenes)] = False
    asked = Names(names_of(scenes, named))
    for rows in read_answers(Store(config.output)):
        for number, style in enumerate(settings.styles):
            counts = compute.equal(rows["style"], style)
            if settings.again:
                now = {"by": settings.by, "model": settings.model, "prompt": settings.prompt_id(style)}
                for name, value in now.items():
                    counts = compute.and_(counts, compute.equal(rows[name], value))
            at = asked.places(scene_names(rows.filter(counts), named))
            lacking[at[at >= 0], number] = False
    return Unasked(scenes, settings.styles, lacking)


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


def estimate(config: CurationConfig, scenes: Unasked) -> Estimate:
    """What asking for scenes of `unasked` will cost, by the prices in the settings; a model in workers is free."""
    settings = config.captions
    asked = ((row, style) for row in scenes for style in row["styles"])
    texts = sum(len(fill(settings.prompt_of(style), row["caption"])) // 4 for row, style in asked)
    sent = scenes.captions * FRAMES_SENT * settings.tokens_per_frame + texts
    received = sum(STYLES[style].tokens * count for style, count in scenes.by_style().items())
    return Estimate(len(scenes), scenes.captions, sent, received, _usd(settings, sent, received))


def recaption(config: CurationConfig, scenes: Chosen) -> Recaptioned:
    """Ask for those of some scenes that lack an answer, and write each answer into captions/ at once.

    Args:
        scenes: rows as kept_scenes gives them: video_id, uri, clip_id, scene_id, caption, start_s, end_s, part.

    Raises ValueError where the key, the model or the endpoint is wrong; ServiceDownError where the service does not
    answer for long. What was answered before is written then, too.
    """
    check_captioner(config.captions)
    todo, started = unasked(config, scenes), time.monotonic()
    count = todo.captions
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


def _way(settings: CaptionsConfig) -> Callable[[CurationConfig, Iterable[Row], Answers], Generator[Answer, None, None]]:
    """How the model is asked."""
    if settings.by == "vllm":
        from pipelines.curation.captioning.caption_engine import by_engine

        return by_engine
    return _by_service if settings.service else _by_model


def caption_scenes(config: CurationConfig, scenes: Chosen, start: Callable[[], None] = runs) -> Recaptioned:
    """As `recaption`, and bring scenes/, rejected/ and kept.json in line with the answers; start: as `export`."""
    done, store = recaption(config, scenes), Store(config.output)
    tell_captions(store)
    renew_exported(config, start)
    return done


def forget_failed(store: Store) -> set[tuple[str, str]]:
    """Remove failed answers of captions that have no sound one, so that they are asked for again; returns the keys of
    their scenes."""
    named = (*KEYS, "style")
    keys = {
        key for rows in read_answers(store) for key in _rows_of(rows.filter(compute.not_equal(rows["code"], "")), named)
    }
    for rows in read_answers(store) if keys else ():
        keys.difference_update(_rows_of(rows.filter(compute.equal(rows["code"], "")), named))
    for name in store.parts("captions") if keys else ():
        rows = answers_of_part(store, name)
        stays = [key not in keys for key in _rows_of(rows, named)]
        if not all(stays):
            _merge(store, rows.filter(pa.array(stays)), [name])
    return {(video_id, scene_id) for video_id, scene_id, _ in keys}


def _rows_of(rows: pa.Table, names: Sequence[str]) -> Iterator[tuple[str, ...]]:
    return zip(*(rows[name].to_pylist() for name in names), strict=True)


def in_waves(scenes: Iterable[Row]) -> Iterator[list[Row]]:
    """The scenes, so many at a time as the driver asks for at once; those of a video together."""
    videos = (list(rows) for _, rows in groupby(scenes, lambda row: row["video_id"]))
    for some in waves(videos, len, WAVE):
        yield [row for rows in some for row in rows]


def _by_service(config: CurationConfig, scenes: Iterable[Row], into: Answers) -> Generator[Answer, None, None]:
    settings = config.captions
    # A scene takes one request at least: what is beyond the budget need not be decoded.
    stages = fitted({"captions": settings.pool}, {"video": config.video}, config.autoscaling)
    stage = stages["captions"]
    turns, most = shared_turns(settings), settings.at_once // stage.workers

    def replied() -> Iterator[Batch]:
        for some in in_waves(islice(scenes, settings.max_requests)):
            answered = asked(config, some, stages["video"]).map_batches(
                ServiceRecaptioner,
                fn_constructor_args=[into, key_of(settings), turns, most],
                batch_size=None,
                **ray_actors(stage, calls=min(most, CALLS), inputs=-(-len(some) // most)),
            )
            yield from batches(answered)

    # Held here, so that the workers live until they have finished.
    replies = replied()
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


def _by_model(config: CurationConfig, scenes: Iterable[Row], into: Answers) -> Generator[Answer, None, None]:
    stages = fitted({"captions": config.captions}, {"video": config.video}, config.autoscaling)
    stage = stages["captions"]
    fitting = replace(into, config=replace(config.captions, num_cpus=stage.num_cpus))
    size = config.captions.batch_size
    for some in in_waves(scenes):
        answered = asked(config, some, stages["video"]).map_batches(
            LocalRecaptioner,
            fn_constructor_args=[fitting],
            batch_size=size,
            **ray_actors(stage, inputs=-(-len(some) // size)),
        )
        for batch in batches(answered):
            yield from answers_of(batch)


def asked(config: CurationConfig, scenes: Iterable[Row], stage: Stage) -> Dataset:
    """Scenes with their key frames, and what is asked of them."""
    rows = [
        {name: row[name] for name in LOOKED_AT if name in row} | {"caption": packed(row, row["styles"])}
        for row in scenes
    ]
    return key_frames_of(rows, config, stage)


def _gather(store: Store) -> None:
    """Make few parts of many small ones; until these are gone, readers meet rows twice and count them once."""
    small = [entry.name for entry in store.divided("captions")[1] if entry.size < LARGE_BYTES]
    rows: list[pa.Table] = []
    parts: list[str] = []
    for name in small if len(small) > 1 else ():
        with suppress(FileNotFoundError):
            # Another command gathers, too.
            rows.append(answers_of_part(store, name))
            parts.append(name)
        if sum(map(len, rows)) >= PART_ROWS:
            _merge(store, pa.concat_tables(rows), parts)
            rows, parts = [], []
    if rows:
        _merge(store, pa.concat_tables(rows), parts)


def _merge(store: Store, rows: pa.Table, parts: Sequence[str]) -> None:
    """Write rows as one part and remove those that they come from; parts that others add meanwhile stay."""
    whole = store.write_part("captions", rows, map(str, rows["written"].to_pylist()))
    for name in set(parts) - {whole}:
        storage.delete(store.uri("captions", name))


def _usd(settings: CaptionsConfig, tokens_in: int, tokens_out: int) -> float:
    usd_in, usd_out = settings.prices
    return (tokens_in * usd_in + tokens_out * usd_out) / 1e6

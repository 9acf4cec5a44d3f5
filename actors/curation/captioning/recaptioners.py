"""Captioning in workers: questions from scenes, and each answer written before the next is waited for."""

import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import partial

import numpy as np
import pyarrow as pa

from actors.core import storage
from actors.core.stage import Batch, Row
from actors.core.store import Store, part_name
from actors.curation.captioning.settings import CaptionsConfig
from actors.curation.captioning.styles import STYLES, Structured, StyleName, checked, fill
from actors.curation.tables import CAPTIONS, ORIGIN
from actors.models.vlm.asking import UNFINISHED, Answer, Pace, Question, Turns, ask
from actors.models.vlm.services import Key, check_vlm, load_service

ANSWER = tuple(one.name for one in fields(Answer))
"""Columns of what the workers return."""
STORED = {name: "recaption" if name == "text" else name for name in ANSWER if name != "fault"}
"""Those that are stored, and the column of CAPTIONS."""


def check_captioner(config: CaptionsConfig) -> None:
    """Raise UserError where a key, a library or a model of one's own is missing; asks nothing of a service."""
    if config.by == "vllm":
        from actors.curation.captioning.engine import check_engine

        check_engine(config)
    else:
        check_vlm(config)


def packed(row: Row, styles: Sequence[StyleName]) -> str:
    """All that is asked of a scene and written with its answers, to travel in place of its caption: the pictures come
    from far away, by code that hands a caption on and nothing else."""
    about = {name: row.get(name) for name in ("caption", "start_s", "end_s", *ORIGIN)}
    return json.dumps({**about, "styles": list(styles)})


def unpacked(row: Row) -> Row:
    """A row of `key_frames_of` with what `packed` has put into it."""
    return {**row, **json.loads(row["caption"])}


def question(config: CaptionsConfig, row: Row, style: StyleName) -> Question:
    """What is asked of a scene, as `unpacked` gives it."""
    prompt, seconds = config.prompt_of(style), (row["end_s"] or 0) - (row["start_s"] or 0)
    return styled(row["frames"], fill(prompt, row["caption"] or "", row["video_id"], seconds), style, prompt)


def styled(frames_THWC: np.ndarray, text: str, style: StyleName, prompt: str) -> Question:
    """A question whose reply keeps the rules of a style; prompt: the text with names in braces."""
    rules = STYLES[style]
    schema = Structured.model_json_schema() if rules.structured else None
    check = partial(checked, style, prompt=prompt)
    return Question(frames_THWC, text, check, rules.most_tokens, "caption_failed", schema)


@dataclass(frozen=True)
class Answers:
    """Where the answers of a run are written: at once, so that what was paid for is never asked again.

    run: names the run. What it has written stands: a worker that was started anew finds it.
    """

    store: Store
    config: CaptionsConfig
    run: str

    def found(self, row: Row, style: StyleName) -> Answer | None:
        """What this run has written of a scene before, if anything."""
        name = part_name(self._keys(row, style))
        if not storage.exists(self.store.uri("captions", name)):
            return None
        table = self.store.read_part("captions", name)
        rows = table.to_pylist() if table else []
        return Answer(**{name: rows[0][column] for name, column in STORED.items()}) if rows else None

    def write(self, row: Row, style: StyleName, answer: Answer) -> Answer:
        """Write an answer; a scene that could not be decoded has failed."""
        if answer.code == UNFINISHED:
            return answer
        if row["error"]:
            answer = Answer(code="caption_failed", message=f"{row['error']}: {row['message']}")
        self.write_all([(row, style, answer)])
        return answer

    def write_all(self, answered: Sequence[tuple[Row, StyleName, Answer]]) -> None:
        """Write answers as one part."""
        if answered:
            table = pa.Table.from_pylist([self._row(*one) for one in answered], CAPTIONS)
            self.store.write_part("captions", table, (key for one in answered for key in self._keys(*one[:2])))

    def _keys(self, row: Row, style: StyleName) -> list[str]:
        return [row["video_id"], row["scene_id"], style, self.run]

    def _row(self, row: Row, style: StyleName, answer: Answer) -> Row:
        about = {name: row[name] for name in ("video_id", "scene_id", "caption", *ORIGIN)}
        made_by = {"by": self.config.by, "model": self.config.model, "prompt": self.config.prompt_id(style)}
        columns = {column: getattr(answer, name) for name, column in STORED.items()}
        return {**about, **columns, **made_by, "style": style, "written": time.time()}


def rows_of_batch(batch: Batch) -> list[Row]:
    """The scenes of a batch of `key_frames_of`, with what `packed` has put into them."""
    names = list(batch)
    return [unpacked(dict(zip(names, values, strict=True))) for values in zip(*batch.values(), strict=True)]


def answers_batch(answers: Sequence[Answer]) -> Batch:
    """Answers as columns."""
    return {name: np.array([getattr(answer, name) for answer in answers]) for name in ANSWER}


def answers_of(batch: Batch) -> list[Answer]:
    """Answers from columns."""
    rows = zip(*(batch[name].tolist() for name in ANSWER), strict=True)
    return [Answer(**dict(zip(ANSWER, row, strict=True))) for row in rows]


class ServiceRecaptioner:
    """Ask a service for captions, with many requests in flight.

    Reads:  the columns of `key_frames_of`, with `packed` scenes as captions
    Yields: the fields of Answer, one row for each style of each scene
    Several calls may run at once: they share the requests in flight.
    """

    def __init__(self, answers: Answers, key: Key, turns: Turns, most: int) -> None:
        self._answers = answers
        self._service = load_service(answers.config, key)
        self._pace = Pace(turns, most, answers.config.pause_s)
        self._threads = ThreadPoolExecutor(most)

    def __call__(self, batch: Batch) -> Batch:
        # One at a time: pictures of scenes that wait need not be sent yet.
        asked = [(row, style) for row in rows_of_batch(batch) for style in row["styles"]]
        return answers_batch(list(self._threads.map(lambda one: self._answer(*one), asked)))

    def _answer(self, row: Row, style: StyleName) -> Answer:
        name = json.dumps([row["video_id"], row["scene_id"], style])
        turns = self._pace.turns
        try:
            if before := self._answers.found(row, style):
                return before
            asked = question(self._answers.config, row, style)
            answer = Answer() if row["error"] else ask(self._service, asked, self._pace, name)
            answer = self._answers.write(row, style, answer)
        except BaseException:
            turns.settled(name, None)
            raise
        turns.settled(name, _fault(answer))
        return answer


def _fault(answer: Answer) -> str | None:
    """What `Turns.settled` is told of an answer."""
    if answer.code == UNFINISHED or not answer.attempts:
        return None
    return answer.message if answer.fault else ""


class LocalRecaptioner:
    """Caption with a model that lives in the worker, several captions at once.

    Reads:  the columns of `key_frames_of`, with `packed` scenes as captions
    Yields: the fields of Answer, one row for each style of each scene
    The answers of a call are written as one part.
    """

    def __init__(self, answers: Answers) -> None:
        import torch

        from actors.models.vlm.local import LocalVlm

        config = answers.config
        gpu = config.num_gpus > 0
        if not gpu:
            torch.set_num_threads(max(1, int(config.num_cpus)))
        self._answers = answers
        self._model = LocalVlm(config.model, gpu)

    def __call__(self, batch: Batch) -> Batch:
        from actors.models.vlm.local import ask_all

        config = self._answers.config
        asked = [(row, style) for row in rows_of_batch(batch) for style in row["styles"]]
        found: dict[int, Answer] = {}
        sound = [number for number, (row, _) in enumerate(asked) if not row["error"]]
        for start in range(0, len(sound), config.batch_size):
            some = sound[start : start + config.batch_size]
            answers = ask_all(self._model, [question(config, *asked[number]) for number in some])
            found |= dict(zip(some, answers, strict=True))
        answered = [(*one, found.get(number) or _lost(one[0])) for number, one in enumerate(asked)]
        self._answers.write_all(answered)
        return answers_batch([answer for _, _, answer in answered])


def _lost(row: Row) -> Answer:
    """The answer of a scene that could not be decoded."""
    return Answer(code="caption_failed", message=f"{row['error']}: {row['message']}")

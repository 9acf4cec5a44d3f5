"""Workers that ask a vision-language model for the genres of films and scenes, and write each answer at once."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from actors.core.stage import Batch, Row
from actors.core.store import Store
from actors.genres.zero_shot import FILM, SCENE, ZeroShotVlm, answer_columns, likely, listing
from actors.models.vlm.asking import UNFINISHED, Pace, Turns, ask
from actors.models.vlm.services import Key, load_service

ANSWERS = pa.schema(
    [
        ("film", pa.string()),
        ("uri", pa.string()),
        ("probabilities", pa.list_(pa.float32())),
        ("outside", pa.list_(pa.string())),
        ("code", pa.string()),
        ("message", pa.string()),
        ("rejected", pa.string()),
        ("frames", pa.int32()),
        ("requests", pa.int32()),
        ("tokens_in", pa.int64()),
        ("tokens_out", pa.int64()),
        ("written", pa.float64()),
        ("scene", pa.string()),
        ("first_shot", pa.int32()),
        ("last_shot", pa.int32()),
        ("start_s", pa.float64()),
        ("place", pa.string()),
        ("scenes", pa.int32()),
    ]
)
"""One row an answer. probabilities: of the genres in their order, null where code says why there are none. outside:
genres that the answer names and the vocabulary has not. rejected: JSON of the images that could not be read. scene: its
name, "" for the film; scenes: on the row of a film's last scene, how many it has, else 0."""
OF_SCENES = ("scene", "first_shot", "last_shot", "start_s", "place", "scenes")
"""Columns that outputs of earlier versions lack."""
NO_COST = {"requests": 0, "tokens_in": 0, "tokens_out": 0}


@dataclass(frozen=True)
class Asked:
    """What is asked of every film or scene, and where the answers go."""

    store: Store
    config: ZeroShotVlm
    genres: tuple[str, ...]
    run: str
    """Names the run, so that a film that is asked again has a part of its own."""

    def write(self, row: Row, columns: dict[str, Any]) -> Row:
        """Write an answer; returns its row."""
        about = {name: row[name] for name in ("film", "uri", "rejected", *OF_SCENES)}
        made = {**about, "frames": len(row["frames"]), "outside": [], **NO_COST, **columns, "written": time.time()}
        if columns["code"] != UNFINISHED:
            keys = [row["film"], self.run, *([row["scene"]] if row["scene"] else [])]
            self.store.write_part("answers", pa.Table.from_pylist([made], ANSWERS), keys)
        return made


def _rows(batch: Batch) -> list[Row]:
    return [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]


def _counts(made: list[Row]) -> Batch:
    """What a run counts of its answers."""
    names = ("code", *NO_COST)
    return {name: np.array([row[name] for row in made]) for name in names}


def _what(row: Row) -> str:
    return SCENE if row["scene"] else FILM


def _lost(row: Row) -> dict[str, Any]:
    return {"probabilities": None, "code": row["error"], "message": row["message"]}


class ServiceGenres:
    """Ask a service for genres, with many requests in flight.

    Reads:  the columns of `shown`
    Yields: code, requests, tokens_in, tokens_out, one row a film or scene
    """

    def __init__(self, asked: Asked, key: Key, turns: Turns, most: int) -> None:
        self._asked = asked
        self._service = load_service(asked.config, key)
        self._pace = Pace(turns, most, asked.config.pause_s)
        self._threads = ThreadPoolExecutor(most)

    def __call__(self, batch: Batch) -> Batch:
        return _counts(list(self._threads.map(self._answer, _rows(batch))))

    def _answer(self, row: Row) -> Row:
        turns, asked = self._pace.turns, self._asked
        name = f"{row['film']} {row['scene']}".strip()
        try:
            if row["error"]:
                return asked.write(row, _lost(row))
            answer = ask(self._service, listing(row["frames"], asked.genres, _what(row)), self._pace, name)
            cost = {column: getattr(answer, column) for column in NO_COST}
            made = asked.write(row, {**answer_columns(answer, asked.genres), **cost})
        except BaseException:
            turns.settled(name, None)
            raise
        settled = None if answer.code == UNFINISHED or not answer.attempts else answer.message if answer.fault else ""
        turns.settled(name, settled)
        return made


class LocalGenres:
    """Compute the likelihood of each genre with a model that lives in the worker.

    Reads:  the columns of `shown`
    Yields: code, requests, tokens_in, tokens_out, one row a film or scene
    """

    def __init__(self, asked: Asked) -> None:
        import torch

        from actors.models.vlm.local import LocalVlm

        gpu = asked.config.num_gpus > 0
        if not gpu:
            torch.set_num_threads(max(1, int(asked.config.num_cpus)))
        self._asked = asked
        self._model = LocalVlm(asked.config.model, gpu)
        self._of_grey: dict[tuple[int, str], np.ndarray] = {}

    def __call__(self, batch: Batch) -> Batch:
        return _counts([self._answer(row) for row in _rows(batch)])

    def _answer(self, row: Row) -> Row:
        asked = self._asked
        if row["error"]:
            return asked.write(row, _lost(row))
        most = asked.config.batch_size
        found = likely(self._model, row["frames"], asked.genres, most, self._of_grey, _what(row))
        return asked.write(row, {"probabilities": found.tolist(), "code": "", "message": ""})


def problems(row: Row) -> list[dict[str, str]]:
    """What of an answer belongs into rejected/: name, code, message."""
    found, scene = list(json.loads(row["rejected"])), row["scene"] or ""
    if row["outside"]:
        named = f"outside of the vocabulary: {', '.join(row['outside'])}"
        found.append({"name": scene, "code": "outside_vocabulary", "message": named})
    if row["code"]:
        found.append({"name": scene, "code": row["code"], "message": row["message"]})
    return found

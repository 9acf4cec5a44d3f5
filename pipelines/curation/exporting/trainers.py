"""What a trainer sees of the scenes that are kept: how many, how long, with which texts, in which buckets."""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import pandas as pd

from actors.core import storage
from actors.core.stage import Row
from actors.core.store import Store
from actors.curation.exporting.layouts import Caption, text_of
from pipelines.curation.exporting.fit_clips import ABOUT, FITTED, MADE
from pipelines.curation.kept import Scenes, kept_scenes

REPEATED = 0.01
"""Of the scenes; a caption of more, and of more than two, is no description of each."""
AT_ONCE = 10_000
"""Texts that are counted at once."""
SHOWN = 5
"""Repeated captions that are told."""


@dataclass(frozen=True)
class Seen:
    """What a trainer sees."""

    scenes: int
    seconds: float
    silent: int
    """Scenes without a caption."""
    words: tuple[int, float, int] | None
    """Fewest words of a caption, the median, and most; None where there is no caption."""
    repeated: list[tuple[str, int]]
    """Captions that too many scenes have, with their numbers, at most SHOWN."""
    buckets: dict[str, dict[str, int]] = field(default_factory=dict)
    """Of each preset its clips by bucket."""
    dropped: dict[str, dict[str, int]] = field(default_factory=dict)
    """Of each preset the scenes that become no clip, by reason."""


def seen_by_trainers(store: Store, caption: Caption) -> Seen | None:
    """What trainers see of an output, by export.caption; None where nothing was exported."""
    if store.read_json(MADE) is None:
        return None
    kept = kept_scenes(store)
    # A hash stands for a text: captions of millions of scenes are mostly different ones.
    hashes, lengths = [np.zeros(0, np.uint64)], [np.zeros(0, np.int32)]
    seconds: float = 0
    rows = _texts(kept, caption)
    while some := list(islice(rows, AT_ONCE)):
        seconds = sum((row["end_s"] - row["start_s"] for row, _ in some), seconds)
        texts = np.array([text for _, text in some if text], object)
        hashes.append(pd.util.hash_array(texts, categorize=False))
        lengths.append(np.array([len(text.split()) for text in texts], np.int32))
    words, often = np.sort(np.concatenate(lengths)), _often(np.concatenate(hashes), REPEATED * len(kept))
    told = islice((text for _, text in _texts(kept, caption) if text), max(often, default=-1) + 1)
    said = {place: text for place, text in enumerate(told) if place in often}
    repeated = [(said[place], count) for place, count in often.items()]
    about = (int(words[0]), _median(words), int(words[-1])) if len(words) else None
    seen = Seen(len(kept), seconds, len(kept) - len(words), about, repeated)
    for folder in store.read_json(FITTED) or {}:
        seen.buckets[folder], seen.dropped[folder] = (
            dict(sorted(_counts(store.uri(folder, ABOUT), name).items())) for name in ("bucket", "dropped")
        )
    return seen


def _texts(kept: Scenes, caption: Caption) -> Iterator[tuple[Row, str]]:
    rows = kept.rows("start_s", "end_s", "caption", "recaption", "captions")
    return ((row, text_of(row, caption)) for row in rows)


def _often(hashes: np.ndarray, least: float) -> dict[int, int]:
    """Texts that are there too often, the most frequent first: the place of the first of each, and how many."""
    _, first, counts = np.unique(hashes, return_index=True, return_counts=True)
    order = np.lexsort((first, -counts))[:SHOWN]
    return {int(first[one]): int(counts[one]) for one in order if counts[one] > max(2, least)}


def _median(words: np.ndarray) -> float:
    low, high = int(words[(len(words) - 1) // 2]), int(words[len(words) // 2])
    return low if len(words) % 2 else (low + high) / 2


def _counts(uri: str, name: str) -> Counter[str]:
    """How often each value that is not empty is there in a file of many rows, whose values have a line each."""
    found, begin = Counter[str](), f'"{name}": '.encode()
    with suppress(FileNotFoundError), storage.stream(uri) as file:
        for line in map(bytes.strip, file):
            if line.startswith(begin):
                found[json.loads(line.removeprefix(begin).rstrip(b","))] += 1
    del found[""]
    return found

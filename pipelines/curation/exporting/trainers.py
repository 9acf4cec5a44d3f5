"""What a trainer sees of the scenes that are kept: how many, how long, with which texts, in which buckets."""

from collections import Counter
from dataclasses import dataclass, field
from statistics import median

from actors.core.store import Store
from actors.curation.exporting.layouts import Caption, text_of
from pipelines.curation.exporting.export import kept_scenes
from pipelines.curation.exporting.fit_clips import ABOUT, FITTED, MADE

REPEATED = 0.01
"""Of the scenes; a caption of more, and of more than two, is no description of each."""
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
    texts = Counter(text_of(row, caption) for row in kept)
    silent = texts.pop("", 0)
    lengths = [len(text.split()) for text in texts.elements()]
    often = [(text, n) for text, n in texts.most_common(SHOWN) if n > max(2, REPEATED * len(kept))]
    seconds = sum(row["end_s"] - row["start_s"] for row in kept)
    words = (min(lengths), median(lengths), max(lengths)) if lengths else None
    seen = Seen(len(kept), seconds, silent, words, often)
    for folder in store.read_json(FITTED) or {}:
        clips = store.read_json(folder, ABOUT) or []
        seen.buckets[folder] = dict(sorted(Counter(row["bucket"] for row in clips if row["bucket"]).items()))
        seen.dropped[folder] = dict(sorted(Counter(row["dropped"] for row in clips if row["dropped"]).items()))
    return seen

"""A name for a set of scenes with their recaptions, however many they are."""

import hashlib
import heapq
import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import islice

from actors.core.json_text import write_text
from actors.core.stage import Row
from actors.core.temporary import TemporaryFolder

TOTALS = ("total_caption_score", "total_recaption_score", "total_score_random", "total_score_selected")
"""The reference's names for four means of `evaluate`."""
LINES = 100_000
"""Lines that are sorted at once; more are sorted on disk."""


def digest(scenes: Iterable[Row]) -> str:
    """A name for a set of scenes with their recaptions: their order does not matter."""
    lines = (json.dumps([row["video_id"], row["scene_id"], row["recaption"] or ""]) for row in scenes)
    found, begin = hashlib.sha256(), ""
    for line in _sorted(lines):
        found.update(f"{begin}{line}".encode())
        begin = "\n"
    return found.hexdigest()


def _sorted(lines: Iterator[str]) -> Iterator[str]:
    some = sorted(islice(lines, LINES))
    if len(some) < LINES:
        yield from some
        return
    with TemporaryFolder() as folder, ExitStack() as files:
        paths = []
        while some:
            paths.append(folder / f"{len(paths)}")
            write_text(paths[-1], (f"{line}\n" for line in some))
            some = sorted(islice(lines, LINES))
        opened = [files.enter_context(path.open(encoding="utf-8")) for path in paths]
        yield from (line[:-1] for line in heapq.merge(*opened))

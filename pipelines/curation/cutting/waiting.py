"""Videos of the input that wait until the rows of their range of scores/ are read, on disk where they are many."""

import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from tempfile import SpooledTemporaryFile
from typing import Any

from actors.curation.compacting import shard_of
from actors.curation.sources.origin import Source
from pipelines.curation.cutting.reading import Range
from pipelines.curation.sources.input import Video
from pipelines.curation.sources.records import Scene, Span

MEMORY_BYTES = 1 << 20
"""Of the videos of a range, what is held in memory."""


class Waiting:
    """Videos by the range that their rows are in, without what of them cannot be cut; a context."""

    def __init__(self, ranges: Sequence[Range]) -> None:
        self.ranges = ranges
        self._open = ExitStack()
        self._files = [self._open.enter_context(_file()) for _ in ranges]
        self._starts = [start for start, _ in ranges]

    def __enter__(self) -> "Waiting":
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def add(self, video: Video) -> None:
        """Let a video wait."""
        number = bisect_right(self._starts, shard_of(video.video_id)) - 1
        spans = None if video.spans is None else [vars(span) | {"scenes": _plain(span)} for span in video.spans]
        about = {"index": video.index, "video_id": video.video_id, "url": video.url, "spans": spans}
        about |= {"size": video.source.size, "stamp": video.source.stamp}
        self._files[number].write(f"{json.dumps(about)}\n".encode())

    def of(self, number: int) -> Iterator[Video]:
        """The videos of a range, in the order of the input."""
        file = self._files[number]
        file.seek(0)
        for line in file:
            about = json.loads(line)
            source, spans = Source(about["url"], about.pop("size"), about.pop("stamp")), about.pop("spans")
            yield Video(**about, spans=None if spans is None else tuple(map(_span, spans)), source=source)


def _file() -> SpooledTemporaryFile[bytes]:
    return SpooledTemporaryFile(MEMORY_BYTES)


def _plain(span: Span) -> list[dict[str, Any]]:
    return [vars(scene) for scene in span.scenes]


def _span(about: dict[str, Any]) -> Span:
    whole: dict[str, Any] = about | {"scenes": tuple(Scene(**scene) for scene in about["scenes"])}
    return Span(**whole)

"""What is to be cut: a metadata file or a folder of films, read as a stream of videos with their spans and scenes.

    corpus.json                   HDVG, of any size: {video_id: {"url", "clip": {clip_id: {"span", "scene_split"}}}}
    corpus.jsonl, corpus.ndjson   the same, one or more videos a line
    corpus.csv, corpus.parquet    one scene a row: video_id, url, start, end and, if there is one, caption
    films/, film.mp4              films with no metadata, whose shots are to be detected

Metadata that cannot be understood is a MetadataError, which names the place. A scene that is understood and cannot be
cut stays, as a Rejected: the scenes and the rejected of all videos are the scenes of the input.
"""

import csv
import io
import posixpath
import re
from collections.abc import Iterable, Iterator, Sized
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import ijson
import pyarrow as pa
import pyarrow.parquet as pq

from actors.core import storage
from actors.core.addresses import NAME_BYTES, short_name
from actors.core.errors import UserError
from actors.core.whole_files import TEMPORARY
from actors.curation.origin import Source
from actors.media.film import VIDEO_SUFFIXES
from actors.media.times import parse_time

COLUMNS = ("video_id", "url", "start", "end")
"""What a table must have; start and end are seconds or hh:mm:ss.mmm, empty: from the start, to the end of the film."""

_METADATA_SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".parquet")

# The backend in C, by name: ijson by itself falls back to one in Python without a word.
_kvitems = ijson.get_backend("yajl2_c").kvitems


class MetadataError(UserError):
    """The input cannot be understood; the message says where and what to do."""


@dataclass(frozen=True)
class Scene:
    """A piece of a span that is to be cut."""

    scene_id: str
    """Unique in its video."""
    caption: str
    """What the input says of it, or ""."""
    first: int
    """Its first frame, counted from the start of the span."""
    end: int
    """The frame after its last, counted alike; -1: to the end of the span."""
    ordinal: int
    """Its place among all scenes of the video in the input, rejected ones too, from 0."""


@dataclass(frozen=True)
class Span:
    """A stretch of a video that holds scenes."""

    clip_id: str
    """Unique in its video; HDVG's key as it stands, "<video_id>.<k>.mp4", or "<video_id>.<k>" for row k of a table."""
    start_s: float
    """Seconds in the video."""
    end_s: float | None
    """Seconds in the video; None: the end of the film."""
    scenes: tuple[Scene, ...]
    """In the order of the input, at least one."""


@dataclass(frozen=True)
class Rejected:
    """A scene that cannot be cut."""

    clip_id: str
    """The span that it is in; "" where no span is known."""
    scene_id: str
    """Its id; "" where no scene is known: one such stands for the whole video."""
    caption: str
    """What the input says of it, or ""."""
    code: str
    """duplicate_id, bad_name, bad_span, bad_scene_cut or no_scenes."""
    message: str
    """What was found, in a sentence."""
    ordinal: int
    """Its place among all scenes of the video in the input, from 0."""


@dataclass(frozen=True)
class Video:
    """A source film with all that the input wants of it."""

    index: int
    """Its place in the input, from 0, whatever range is read."""
    video_id: str
    """Usable as a file name; unique, but for a video whose scenes are all rejected as duplicates."""
    url: str
    """https://…, s3://…, file://… or a path, which is absolute."""
    spans: tuple[Span, ...] | None
    """What can be cut, maybe nothing; None: the scenes are unknown, and shots are to be detected."""
    rejected: tuple[Rejected, ...] = ()
    """What cannot."""
    source: Source = field(default=Source(""), compare=False)
    """The film as it lies there now."""


def read_videos(input: str, start: int = 0, end: int | None = None) -> Iterator[Video]:
    """Read the videos of a metadata file, a folder or prefix, or a single film, in the order of the input.

    JSON and JSON Lines hold one video in memory at a time, and the ids of those before it, since ids must be unique.
    A table is held whole, since the rows of a video need not be neighbours. All before `start` is checked all the same,
    so whether a video is a duplicate does not depend on the range.

    Args:
        input: a path, file://… or s3://…; its suffix tells the format. A relative `url` in it starts at its folder.
        start: index of the first video wanted.
        end: index of the last video wanted, itself included; None: to the last. What lies after it is not read.

    Raises:
        MetadataError: nothing there, or metadata that cannot be understood: raised when the reading comes to it.
        UserError: the range leaves the input's bounds: for JSON and folders raised at their end.
    """
    if start < 0 or (end is not None and end < start):
        raise UserError(
            f"videos.start={start}, videos.end={end}: both count from 0, both are included, and the end is no less"
        )
    suffix = PurePosixPath(input).suffix.lower()
    if not input or (suffix in _METADATA_SUFFIXES and not storage.exists(input)):
        raise MetadataError(f"{input or 'empty input'}: no such file; give a metadata file or a folder of films")
    if suffix == ".json":
        videos = _json(input)
    elif suffix in (".jsonl", ".ndjson"):
        videos = _json_lines(input)
    elif suffix == ".csv":
        videos = _grouped(input, _csv_rows(input))
    elif suffix == ".parquet":
        videos = _grouped(input, _parquet_rows(input))
    elif suffix in VIDEO_SUFFIXES and storage.exists(input):
        uri = storage.absolute(input)
        videos = [_film(storage.find(uri))]
    else:
        films = storage.listing(storage.absolute(input), tuple(VIDEO_SUFFIXES), skip_unreadable=True)
        videos = (_film(entry) for entry in films)
    return _ranged(input, videos, start, end)


class _Raw(NamedTuple):
    """A video as it stands in the input."""

    video_id: str
    url: str
    spans: list[Span] | None
    """Its spans, with scenes that may not be sound; None: shots are to be detected."""
    fault: tuple[str, str] | None = None
    """Error code and message of a video that cannot be cut."""
    entry: storage.Entry | None = None
    """Its file, where that was listed."""


def _ranged(input: str, videos: Iterable[_Raw], start: int, end: int | None) -> Iterator[Video]:
    if isinstance(videos, Sized):
        _check_range(input, len(videos), start, end)
    seen: set[str] = set()
    count = 0
    for index, raw in enumerate(videos):
        count += 1
        video = _sifted(index, raw, raw.video_id in seen)
        seen.add(raw.video_id)
        if index >= start:
            yield replace(video, source=_source(raw.url, raw.entry))
        if index == end:
            return
    _check_range(input, count, start, end)


def _source(url: str, entry: storage.Entry | None) -> Source:
    """A film as it lies there, as far as no request to a host is needed to know."""
    if entry is None and url.startswith(("/", "file://")):
        with suppress(OSError):
            entry = storage.find(url)
    return Source(url) if entry is None else Source(url, entry.size, entry.stamp)


def _check_range(input: str, count: int, start: int, end: int | None) -> None:
    if count == 0:
        raise MetadataError(
            f"{input}: no videos here; give a metadata file ({' '.join(_METADATA_SUFFIXES)}) with at least one, "
            f"or a folder or prefix of films ({' '.join(sorted(VIDEO_SUFFIXES))})"
        )
    if max(start, end or 0) >= count:
        raise UserError(f"videos.start={start}, videos.end={end}: {input} has {count} videos, 0 to {count - 1}")


def _sifted(index: int, raw: _Raw, duplicate: bool) -> Video:
    """Part the scenes that can be cut from those that cannot."""
    video_id, url, spans, fault, _ = raw
    if fault:
        return Video(index, video_id, url, (), (Rejected("", "", "", *fault, 0),))
    again = "duplicate_id", f'another video before has the id "{video_id}"'
    if duplicate and not spans:
        return Video(index, video_id, url, (), (Rejected("", "", "", *again, 0),))
    if spans is None:
        return Video(index, video_id, url, None)
    if not spans:
        none = "no_scenes", "the metadata lists no scenes of this video"
        return Video(index, video_id, url, (), (Rejected("", "", "", *none, 0),))
    sound: list[Span] = []
    rejected: list[Rejected] = []
    clips: set[str] = set()
    ids: set[str] = set()
    for span in spans:
        fault = again if duplicate else None
        if fault is None and span.clip_id in clips:
            fault = "duplicate_id", f'another span of this video before has the id "{span.clip_id}"'
        if fault is None and span.end_s is not None and span.end_s <= span.start_s:
            fault = "bad_span", f"the span ends at {span.end_s} s, not after its start at {span.start_s} s"
        clips.add(span.clip_id)
        scenes: list[Scene] = []
        for scene in span.scenes:
            found = fault or _scene_fault(scene, ids)
            ids.add(scene.scene_id)
            if found:
                rejected.append(Rejected(span.clip_id, scene.scene_id, scene.caption, *found, scene.ordinal))
            else:
                scenes.append(scene)
        if scenes:
            sound.append(Span(span.clip_id, span.start_s, span.end_s, tuple(scenes)))
    return Video(index, video_id, url, tuple(sound), tuple(rejected))


def _scene_fault(scene: Scene, ids: set[str]) -> tuple[str, str] | None:
    if scene.scene_id in ids:
        return "duplicate_id", f'another scene of this video before has the id "{scene.scene_id}"'
    if scene.first < 0 or (scene.end <= scene.first and scene.end != -1):
        cut = f"[{scene.first}, {scene.end}]"
        return "bad_scene_cut", f"{cut} is no cut: the first frame is 0 or more, the end after it or -1"
    return None


class _Object(dict[str, Any]):
    """A JSON object that keeps all of its pairs, also those whose key stands twice."""

    def __init__(self) -> None:
        super().__init__()
        self.pairs: list[tuple[str, Any]] = []

    def __setitem__(self, key: str, value: Any) -> None:
        self.pairs.append((key, value))
        super().__setitem__(key, value)


_VIDEO = {"url": str, "clip": dict}
_CLIP = {"span": list, "scene_split": list}
_SCENE = {"clip_id": str, "scene_cut": list, "caption": str}
_KINDS = {str: "text", dict: "an object", list: "a list"}


def _json(input: str) -> Iterator[_Raw]:
    with storage.stream(input) as file:
        _skip_byte_order_mark(file)
        yield from _parsed(file, input, _folder(input))


def _json_lines(input: str) -> Iterator[_Raw]:
    folder = _folder(input)
    with storage.stream(input) as file:
        _skip_byte_order_mark(file)
        for number, line in enumerate(file, 1):
            if line.strip():
                yield from _parsed(io.BytesIO(line), f"{input}, line {number}", folder)


def _parsed(file: Any, source: str, folder: str) -> Iterator[_Raw]:
    """The videos of one JSON document."""
    video_id = None
    try:
        for video_id, value in _kvitems(file, "", map_type=_Object, use_float=True):
            yield _hdvg(video_id, value, source, folder)
    except ijson.JSONError as error:
        text = error.args[0].decode(errors="replace") if isinstance(error.args[0], bytes) else str(error)
        problem, _, drawing = text.partition("\n")
        context = " ".join(drawing.partition("(right here)")[0].split()) or "the end"
        where = f"before byte {file.tell()}" + (f', after the video "{video_id}"' if video_id is not None else "")
        remedy = "repair it, or fetch it again (one object a line is JSON Lines: name it .jsonl)"
        raise MetadataError(f"{source}: broken JSON {where}: {problem}, at: {context}; {remedy}") from error
    if video_id is None:
        raise MetadataError(f'{source}: no videos here; it must be an object {{video_id: {{"url": …, "clip": {{…}}}}}}')


def _hdvg(video_id: str, value: Any, source: str, folder: str) -> _Raw:
    _check_id(video_id, source, (video_id,))
    url, clips = _values(value, _VIDEO, source, (video_id,))
    if not url:
        raise _error(source, (video_id, "url"), "is empty; give https://…, s3://…, file://… or a path")
    spans: list[Span] = []
    ordinal = 0
    for clip_id, clip in clips.pairs:
        at = (video_id, "clip", clip_id)
        _check_id(clip_id, source, at)
        span, scene_split = _values(clip, _CLIP, source, at)
        if len(span) != 2:
            raise _error(source, (*at, "span"), f"must be two times, start and end, not {_shown(span)}")
        start_s, end_s = (_time(time, source, (*at, "span", i)) for i, time in enumerate(span))
        scenes: list[Scene] = []
        for i, item in enumerate(scene_split):
            where = (*at, "scene_split", i)
            scene_id, cut, caption = _values(item, _SCENE, source, where)
            _check_id(scene_id, source, (*where, "clip_id"))
            if len(cut) != 2 or any(type(frame) is not int for frame in cut):
                raise _error(source, (*where, "scene_cut"), f"must be two whole frame numbers, not {_shown(cut)}")
            scenes.append(Scene(scene_id, caption, cut[0], cut[1], ordinal))
            ordinal += 1
        if scenes:
            spans.append(Span(clip_id, start_s, end_s, tuple(scenes)))
    return _Raw(video_id, _resolved(url, folder), spans)


def _values(value: Any, kinds: dict[str, type], source: str, path: tuple[str | int, ...]) -> list[Any]:
    """What an object holds under the keys that it must have."""
    if not isinstance(value, _Object):
        raise _error(source, path, f"must be an object with {', '.join(kinds)}, not {_shown(value)}")
    for key, kind in kinds.items():
        if key not in value:
            raise _error(source, path, f'key "{key}" is missing; it needs {", ".join(kinds)}')
        if not isinstance(value[key], kind):
            raise _error(source, (*path, key), f"must be {_KINDS[kind]}, not {_shown(value[key])}")
        if len(value.pairs) > len(value) and sum(name == key for name, _ in value.pairs) > 1:
            raise _error(source, path, f'key "{key}" stands twice; remove one')
    return [value[key] for key in kinds]


_Place = tuple[str, int]
"""Where a row of a table stands: "line" or "row", and its number from 1."""


def _csv_rows(input: str) -> Iterator[tuple[_Place, dict[str, Any]]]:
    with storage.stream(input) as file:
        _skip_byte_order_mark(file)
        # Strict, since otherwise a quote that is never closed swallows all rows after it.
        reader = csv.reader(io.TextIOWrapper(file, encoding="utf-8", newline=""), strict=True)
        line = 1
        try:
            header = next(reader, [])
            _check_columns(header, input)
            line = reader.line_num + 1
            for fields in reader:
                if fields and len(fields) != len(header):
                    counts = f"{len(fields)} fields under {len(header)} columns"
                    raise MetadataError(f"{input}, line {line}: {counts}; quote what holds a comma")
                if fields:
                    yield ("line", line), dict(zip(header, fields, strict=True))
                line = reader.line_num + 1
        except csv.Error as error:
            raise MetadataError(f"{input}, line {line}: broken CSV: {error}; repair the row") from error
        except UnicodeDecodeError as error:
            where = f"{input}, line {line} or soon after it"
            raise MetadataError(f"{where}: not UTF-8 ({error.reason}); save it as UTF-8") from error


def _parquet_rows(input: str) -> Iterator[tuple[_Place, dict[str, Any]]]:
    data = storage.read_bytes(input)
    try:
        table = pq.ParquetFile(pa.BufferReader(data))
        names = table.schema_arrow.names
        _check_columns(names, input)
        number = 0
        for batch in table.iter_batches(columns=[name for name in (*COLUMNS, "caption") if name in names]):
            for row in batch.to_pylist():
                number += 1
                yield ("row", number), row
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise MetadataError(f"{input}: broken Parquet: {error}; write it again") from error


def _check_columns(names: list[str], input: str) -> None:
    missing = [name for name in COLUMNS if name not in names]
    twice = [name for name in (*COLUMNS, "caption") if names.count(name) > 1]
    if missing or twice:
        problem = f"no column {', '.join(missing)}" if missing else f"column {', '.join(twice)} stands twice"
        has = ", ".join(names) or "none"
        raise MetadataError(f"{input}: {problem}; it has {has}, and needs {', '.join(COLUMNS)}, may have caption")


def _grouped(input: str, rows: Iterable[tuple[_Place, dict[str, Any]]]) -> list[_Raw]:
    """The videos of a table in the order of their first rows; each row is a span with one scene."""
    folder = _folder(input)
    videos: dict[str, tuple[str, list[Span]]] = {}
    for (unit, number), row in rows:
        source = f"{input}, {unit} {number}"
        video_id = str(row["video_id"]) if type(row["video_id"]) is int else row["video_id"]
        for column, value in (("video_id", video_id), ("url", row["url"]), ("caption", row.get("caption") or "")):
            if not isinstance(value, str):
                raise _error(source, (column,), f"must be text, not {_shown(value)}")
        _check_id(video_id, source, ("video_id",))
        if not row["url"]:
            raise _error(source, ("url",), "is empty; give https://…, s3://…, file://… or a path")
        url = _resolved(row["url"], folder)
        known_url, spans = videos.setdefault(video_id, (url, []))
        if url != known_url:
            raise _error(source, ("url",), f"is {url}, but the video's rows before have {known_url}; give it one")
        start_s = 0.0 if row["start"] in (None, "") else _time(row["start"], source, ("start",))
        end_s = None if row["end"] in (None, "") else _time(row["end"], source, ("end",))
        k = len(spans)
        scene = Scene(f"{video_id}.{k}_0", row.get("caption") or "", 0, -1, k)
        spans.append(Span(f"{video_id}.{k}", start_s, end_s, (scene,)))
    return [_Raw(video_id, url, spans) for video_id, (url, spans) in videos.items()]


def _film(entry: storage.Entry) -> _Raw:
    """A film without metadata; its suffix is part of its id, since demo.mp4 and demo.mov may lie side by side."""
    video_id = entry.name.replace("/", "-")
    if not _is_usable(video_id):
        about = f"the path {_shown(entry.name)} ({len(entry.name.encode())} bytes) cannot be an id: rename it; {_RULE}"
        return _Raw(short_name(video_id), entry.uri, None, ("bad_name", about), entry)
    return _Raw(video_id, entry.uri, None, entry=entry)


_RULE = f"use 1 to {NAME_BYTES} bytes of UTF-8, not . or .., and no / or \\"


def _is_usable(value: str) -> bool:
    """Whether files and folders can be named by it."""
    unusable = not value.strip() or value in (".", "..") or re.search(r"[/\\\0\ud800-\udfff]", value)
    return not (unusable or value.startswith(TEMPORARY) or len(value.encode()) > NAME_BYTES)


def _check_id(value: str, source: str, path: tuple[str | int, ...]) -> None:
    if not _is_usable(value):
        raise _error(source, path, f"{_shown(value)} cannot be an id, since files are named by it; {_RULE}")


def _time(value: Any, source: str, path: tuple[str | int, ...]) -> float:
    try:
        return parse_time(value)
    except ValueError as error:
        raise _error(source, path, str(error)) from error


def _error(source: str, path: tuple[str | int, ...], text: str) -> MetadataError:
    """An error at a place: `corpus.json: "abc"."clip"."abc.0.mp4"."scene_split"[2]: …`."""
    keys = "".join(f"[{key}]" if isinstance(key, int) else f'."{key}"' for key in path).removeprefix(".")
    return MetadataError(": ".join(part for part in (source, keys, text) if part))


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"


def _skip_byte_order_mark(file: Any) -> None:
    if file.read(3) != b"\xef\xbb\xbf":
        file.seek(0)


def _folder(input: str) -> str:
    return storage.absolute(input).rpartition("/")[0]


def _resolved(url: str, folder: str) -> str:
    """A url of the metadata, a relative path taken from the metadata's folder."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", url) or url.startswith("/"):
        return url
    root, path = ("s3://", folder.removeprefix("s3://")) if folder.startswith("s3://") else ("", folder)
    return root + posixpath.normpath(f"{path}/{url}")

"""Metadata of HD-VG-130M: {video_id: {"url", "clip": {clip_id: {"span", "scene_split"}}}}, as JSON or JSON Lines."""

import io
import json
import logging
from collections.abc import Generator, Iterator, Mapping
from dataclasses import replace
from typing import Any

import ijson

from actors.core.errors import UserError
from pipelines.curation.sources.json_text import DeepError, StandardJson
from pipelines.curation.sources.pieces import UnevenError, members
from pipelines.curation.sources.records import (
    BAD_METADATA,
    Fault,
    Known,
    Lookup,
    MetadataError,
    Raw,
    Scene,
    Span,
    digest_of,
    folder_of,
    id_fault,
    named,
    nothing_known,
    opened,
    place,
    resolved,
    shown,
    time_of,
)

log = logging.getLogger(__name__)

# The backend in C, by name: ijson by itself falls back to one in Python without a word.
_kvitems = ijson.get_backend("yajl2_c").kvitems


class _Object(dict[str, Any]):
    """A JSON object that keeps all of its pairs, also those whose key stands twice."""

    def __init__(self, pairs: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.pairs: list[tuple[str, Any]] = []
        for key, value in (pairs or {}).items():
            self[key] = value

    def __setitem__(self, key: str, value: Any) -> None:
        self.pairs.append((key, value))
        super().__setitem__(key, value)


_VIDEO = {"url": str, "clip": dict}
_CLIP = {"span": list, "scene_split": list}
_SCENE = {"clip_id": str, "scene_cut": list, "caption": str}
_KINDS = {str: "text", dict: "an object", list: "a list"}


TEXT = 1 << 16
"""Bytes of videos that are parsed together."""


def read_json(input: str, lookup: Lookup = nothing_known) -> Iterator[Raw]:
    """The videos of a JSON file; one that breaks off raises MetadataError where it does.

    The text of those that are known is not parsed, but for the scenes that are wanted of them.
    """
    count = 0
    try:
        for raw in _members(input, lookup):
            count += 1
            yield raw
    except (UnevenError, MetadataError):
        # Parsed as a whole: this tells what is wrong, and where.
        with opened(input) as file:
            whole = _parsed(file, input, folder_of(input))
            _warn(input, (yield from _after(whole, count)))


def _after(whole: Generator[Raw, None, int], count: int) -> Generator[Raw, None, int]:
    """What comes after so many videos."""
    for _ in range(count):
        next(whole)
    return (yield from whole)


def _members(input: str, lookup: Lookup) -> Iterator[Raw]:
    folder, replaced = folder_of(input), 0
    waiting: list[tuple[bytes, bytes]] = []

    def parsed() -> Generator[Raw, None, int]:
        text = b"{%b}" % b",".join(text for text, _ in waiting)
        videos = _parsed(io.BytesIO(text), input, folder)
        for _, digest in waiting:
            yield next(videos)._replace(digest=digest)
        waiting.clear()
        return _rest(videos)

    size = 0
    with opened(input) as file:
        for text in members(file):
            digest = digest_of(text, folder)
            known = lookup(digest)
            if waiting and (known or size > TEXT):
                replaced += yield from parsed()
                size = 0
            if known:
                yield _wanted(text, digest, known, input, folder)
            else:
                waiting.append((text, digest))
                size += len(text)
    if waiting:
        replaced += yield from parsed()
    _warn(input, replaced)


def _rest(videos: Generator[Raw, None, int]) -> int:
    """What a generator returns that is at its end."""
    try:
        next(videos)
    except StopIteration as end:
        return end.value
    raise UnevenError


def _wanted(text: bytes, digest: bytes, known: Known, source: str, folder: str) -> Raw:
    """A known video with the scenes that are wanted; text: of its member of an object."""

    def whole() -> Raw:
        (raw,) = _parsed(io.BytesIO(b"{%b}" % text), source, folder)
        return raw._replace(digest=digest)

    spans: list[Span] = []
    if known.wanted:
        # It was sound when it was parsed: no key stands twice, and each has the value that it must have.
        (video,) = json.loads(_standard(b"{%b}" % text)).values()
        ordinal = 0
        for clip_id, clip in video["clip"].items():
            split = clip["scene_split"]
            numbers = [number for number, scene in enumerate(split) if scene["clip_id"] in known.wanted]
            if numbers:
                some = {"span": clip["span"], "scene_split": [_Object(split[number]) for number in numbers]}
                span, _ = _span(clip_id, _Object(some), 0, source, ())
                placed = zip(span.scenes, numbers, strict=True)
                scenes = tuple(replace(scene, ordinal=ordinal + number) for scene, number in placed)
                spans.append(replace(span, scenes=scenes))
            ordinal += len(split)
    return Raw(known.video_id, known.url, spans, digest=digest, known=known, whole=whole)


def _standard(text: bytes) -> bytes:
    file, pieces = StandardJson(io.BytesIO(text)), []
    while piece := file.read():
        pieces.append(piece)
    return b"".join(pieces)


def read_json_lines(input: str, lookup: Lookup = nothing_known) -> Iterator[Raw]:
    """The videos of a JSON Lines file; a line that is broken is a faulty video of its own. As `read_json`."""
    folder, replaced = folder_of(input), 0
    with opened(input) as file:
        for number, line in enumerate(file, 1):
            if not (text := line.strip()):
                continue
            digest = digest_of(text, folder)
            if known := lookup(digest):
                yield _wanted(text[1:-1], digest, known, f"{input}, line {number}", folder)
                continue
            try:
                replaced += yield from _line(line, f"{input}, line {number}", folder, digest)
            except MetadataError as error:
                yield Raw(f"(line {number})", "", None, Fault(BAD_METADATA, str(error)))
    _warn(input, replaced)


def _line(line: bytes, source: str, folder: str, digest: bytes) -> Generator[Raw, None, int]:
    """The videos of a line; one that has it for itself has its digest."""
    videos = _parsed(io.BytesIO(line), source, folder)
    first = next(videos)
    try:
        second = next(videos)
    except StopIteration as end:
        yield first._replace(digest=digest)
        return end.value
    except MetadataError:
        yield first
        raise
    yield first
    yield second
    return (yield from videos)


def _warn(input: str, replaced: int) -> None:
    if replaced:
        log.warning("%s: %d halves of surrogate pairs, which no text can hold, are read as U+FFFD", input, replaced)


def _parsed(file: Any, source: str, folder: str) -> Generator[Raw, None, int]:
    """The videos of one JSON document; returns how many halves of surrogate pairs it had."""
    video_id, text = None, StandardJson(file)
    try:
        for video_id, value in _kvitems(text, "", map_type=_Object, use_float=True):
            yield _video(video_id, value, source, folder)
    except (ijson.JSONError, DeepError) as error:
        known = error.args[0].decode(errors="replace") if isinstance(error.args[0], bytes) else str(error)
        problem, _, drawing = known.partition("\n")
        context = " ".join(drawing.partition("(right here)")[0].split()) or "the end"
        where = f"before byte {text.tell()}" + (f', after the video "{video_id}"' if video_id is not None else "")
        remedy = "repair it, or fetch it again (one object a line is JSON Lines: name it .jsonl)"
        raise MetadataError(f"{source}: broken JSON {where}: {problem}, at: {context}; {remedy}") from error
    if video_id is None:
        raise MetadataError(f'{source}: no videos here; it must be an object {{video_id: {{"url": …, "clip": {{…}}}}}}')
    return text.replaced


def _video(video_id: str, value: Any, source: str, folder: str) -> Raw:
    if fault := id_fault(video_id, source, (video_id,)):
        return Raw(named(video_id, "(empty id)"), "", None, fault)
    try:
        url, clips = _values(value, _VIDEO, source, (video_id,))
    except MetadataError as error:
        return Raw(video_id, "", None, Fault(BAD_METADATA, str(error)))
    if not url.strip():
        about = "is empty; give https://…, s3://…, file://… or a path"
        return Raw(video_id, "", None, Fault("bad_url", place(source, (video_id, "url"), about)))
    spans: list[Span] = []
    faults: dict[int, Fault] = {}
    ordinal = 0
    for clip_id, clip in clips.pairs:
        span, found = _span(clip_id, clip, ordinal, source, (video_id, "clip", clip_id))
        ordinal += len(span.scenes)
        faults |= found
        if span.scenes:
            spans.append(span)
    return Raw(video_id, resolved(url, folder), spans, faults=faults)


def _span(
    clip_id: str, clip: Any, ordinal: int, source: str, at: tuple[str | int, ...]
) -> tuple[Span, dict[int, Fault]]:
    """A span with all its scenes, and their faults by ordinal; a scene stands for a span that lists none."""
    name = named(clip_id, "(empty id)")
    fault = id_fault(clip_id, source, at)
    try:
        times, scene_split = _values(clip, _CLIP, source, at)
    except MetadataError as error:
        scene = Scene(name, "", 0, -1, ordinal)
        return Span(name, 0.0, None, (scene,)), {ordinal: Fault(BAD_METADATA, str(error))}
    start_s, end_s, wrong = _times(times, source, (*at, "span"))
    fault = fault or wrong
    scenes: list[Scene] = []
    faults: dict[int, Fault] = {}
    for number, item in enumerate(scene_split):
        where = (*at, "scene_split", number)
        scene, found = _scene(item, f"{name}[{number}]", ordinal + number, source, where)
        scenes.append(scene)
        if why := fault or found:
            faults[scene.ordinal] = why
    return Span(name, start_s, end_s, tuple(scenes)), faults


def _times(times: list[Any], source: str, at: tuple[str | int, ...]) -> tuple[float, float | None, Fault | None]:
    """Start and end of a span, and its fault; null and "" are the start and the end of the film."""
    if len(times) != 2:
        about = f"must be two times, start and end, not {shown(times)}"
        return 0.0, None, Fault("bad_span", place(source, at, about))
    found: list[float | None] = []
    for number, time in enumerate(times):
        try:
            found.append(time_of(time))
        except UserError as error:
            return 0.0, None, Fault("bad_span", place(source, (*at, number), str(error)))
    return found[0] or 0.0, found[1], None


def _scene(
    item: Any, instead: str, ordinal: int, source: str, where: tuple[str | int, ...]
) -> tuple[Scene, Fault | None]:
    """A scene, and its fault; `instead` is its id where it has none."""
    nothing = Scene(instead, "", 0, -1, ordinal)
    try:
        scene_id, cut, caption = _values(item, _SCENE, source, where)
    except MetadataError as error:
        return nothing, Fault(BAD_METADATA, str(error))
    scene = Scene(named(scene_id, instead), caption, 0, -1, ordinal)
    if fault := id_fault(scene_id, source, (*where, "clip_id")):
        return scene, fault
    if len(cut) != 2 or any(type(frame) is not int for frame in cut):
        about = f"must be two whole frame numbers, not {shown(cut)}"
        return scene, Fault("bad_scene_cut", place(source, (*where, "scene_cut"), about))
    return Scene(scene_id, caption, cut[0], cut[1], ordinal), None


def _values(value: Any, kinds: dict[str, type], source: str, path: tuple[str | int, ...]) -> list[Any]:
    """What an object holds under the keys that it must have; raises MetadataError where it does not."""
    if not isinstance(value, _Object):
        raise MetadataError(place(source, path, f"must be an object with {', '.join(kinds)}, not {shown(value)}"))
    for key, kind in kinds.items():
        if key not in value:
            raise MetadataError(place(source, path, f'key "{key}" is missing; it needs {", ".join(kinds)}'))
        if not isinstance(value[key], kind) and not _has_none(key, value):
            raise MetadataError(place(source, (*path, key), f"must be {_KINDS[kind]}, not {shown(value[key])}"))
        if len(value.pairs) > len(value) and sum(name == key for name, _ in value.pairs) > 1:
            raise MetadataError(place(source, path, f'key "{key}" stands twice; remove one'))
    return ["" if _has_none(key, value) else value[key] for key in kinds]


def _has_none(key: str, value: _Object) -> bool:
    return key == "caption" and value[key] is None

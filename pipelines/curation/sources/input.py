"""What is to be cut: a metadata file or a folder of films, read as a stream of videos with their spans and scenes.

    corpus.json                   HDVG, of any size: {video_id: {"url", "clip": {clip_id: {"span", "scene_split"}}}}
    corpus.jsonl, corpus.ndjson   the same, one or more videos a line
    corpus.csv, .tsv, .parquet    one scene a row: video_id, url, start, end and, if there is one, caption
    corpus.json.gz, …             any of these packed with gzip, bzip2 or xz
    films/, film.mp4              films with no metadata, whose shots are to be detected

Metadata that cannot be understood as a whole is a MetadataError, which names the place. A video or a scene that cannot
be cut stays, as a Rejected: the scenes and the rejected of all videos are the scenes of the input.
"""

import hashlib
import os
from collections.abc import Collection, Iterable, Iterator, Sized
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

from actors.core import storage
from actors.core.addresses import NAME_BYTES, AddressError, is_s3, local_path, short_name
from actors.core.errors import UserError
from actors.curation.sources.origin import Source
from actors.media.film import VIDEO_SUFFIXES
from pipelines.curation.sources.hdvg import read_json, read_json_lines
from pipelines.curation.sources.records import (
    BAD_METADATA,
    NAME_RULE,
    Fault,
    Known,
    Lookup,
    MetadataError,
    Raw,
    Scene,
    Span,
    digest_of,
    format_of,
    is_usable,
    nothing_known,
    shown,
)
from pipelines.curation.sources.scene_tables import read_csv, read_parquet

LOCAL = ("/", "file://")
"""How urls of files begin that are looked at."""
_METADATA_SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")


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
    """duplicate_id, no_scenes, or the code of a `Fault`."""
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
    """The film as it lies there now; not looked for where it is known and none of ours."""
    digest: bytes = field(default=b"", compare=False)
    """What tells it from others in this input, where all of it can be cut; b"": nothing."""
    known: Known | None = field(default=None, compare=False)
    """What is known of it, where it stands in the input as before and its spans are only those of wanted scenes."""


def read_videos(input: str, start: int = 0, end: int | None = None, lookup: Lookup = nothing_known) -> Iterator[Video]:
    """Read the videos of a metadata file, a folder or prefix, or a single film, in the order of the input.

    JSON and JSON Lines hold one video in memory at a time, and the ids of those before it, since ids must be unique.
    A table is held whole, since the rows of a video need not be neighbours. All before `start` is checked all the same,
    so whether a video is a duplicate does not depend on the range.

    Args:
        input: a path, file://… or s3://…; its suffix tells the format. A relative `url` in it starts at its folder.
        start: index of the first video wanted.
        end: index of the last video wanted, itself included; None: to the last. What lies after it is not read.
        lookup: finds known videos by their digests. Their JSON is not parsed where no scene of theirs is wanted.

    Raises:
        MetadataError: nothing there, or metadata that cannot be understood: raised when the reading comes to it.
        UserError: the range leaves the input's bounds: for JSON and folders raised at their end.
    """
    if start < 0 or (end is not None and end < start):
        raise UserError(
            f"videos.start={start}, videos.end={end}: both count from 0, both are included, and the end is no less"
        )
    check_there(input)
    suffix = format_of(input)
    if suffix == ".json":
        videos = read_json(input, lookup)
    elif suffix in (".jsonl", ".ndjson"):
        videos = read_json_lines(input, lookup)
    elif suffix in (".csv", ".tsv"):
        videos = read_csv(input)
    elif suffix == ".parquet":
        videos = read_parquet(input)
    elif suffix in VIDEO_SUFFIXES and storage.exists(input):
        uri = storage.absolute(input)
        videos = [_film(storage.find(uri))]
    else:
        videos = _films(storage.listing(storage.absolute(input), tuple(VIDEO_SUFFIXES), as_input=True))
    return _ranged(input, videos, start, end, lookup)


def check_there(input: str) -> None:
    """Raise MetadataError where a metadata file, or what a path leads to, is not there; nothing is read."""
    there = (
        storage.exists(input)
        if format_of(input) in _METADATA_SUFFIXES
        else is_s3(input) or os.path.exists(local_path(input))
    )
    if not input or not there:
        raise MetadataError(f"{input or 'empty input'}: no such file; give a metadata file or a folder of films")


def _ranged(input: str, videos: Iterable[Raw], start: int, end: int | None, lookup: Lookup) -> Iterator[Video]:
    if isinstance(videos, Sized):
        _check_range(input, len(videos), start, end)
    seen: set[str] = set()
    count, wrong = 0, ""
    for count, raw in enumerate(videos, 1):
        index, found = count - 1, _other_format(raw)
        wrong = found if index == 0 else wrong if found else ""
        raw, source = _as_known(raw, seen, lookup)
        video = _sifted(index, raw, raw.video_id in seen)
        seen.add(raw.video_id)
        if index >= start:
            digest = b"" if video.rejected else raw.digest
            yield replace(video, source=source or _source(raw.url, raw.entry), digest=digest, known=raw.known)
        if index == end:
            break
    else:
        _check_range(input, count, start, end)
    if wrong:
        raise MetadataError(wrong)


def _as_known(raw: Raw, seen: Collection[str], lookup: Lookup) -> tuple[Raw, Source | None]:
    """A video with its digest, and only the scenes that are wanted where it is known, and its source as far as that was
    looked for. One whose id stood before, or whose film has changed, is read as a whole."""
    if not raw.digest and not raw.fault and not raw.faults:
        whole = raw._replace(digest=digest_of(repr((raw.video_id, raw.url, raw.spans)).encode(), ""))
        known = lookup(whole.digest)
        wanted = known and raw.spans and [_wanted(span, known.wanted) for span in raw.spans]
        spans = wanted and [span for span in wanted if span.scenes]
        raw = whole._replace(known=known, spans=spans, whole=lambda: whole) if known else whole
    if raw.known is None or raw.whole is None:
        return raw, None
    if raw.video_id in seen:
        return raw.whole(), None
    if raw.entry is None and not raw.url.startswith(LOCAL):
        return raw, Source(raw.url)
    source = _source(raw.url, raw.entry)
    return (raw if (source.film, source.version) == raw.known.origin else raw.whole()), source


def _wanted(span: Span, wanted: Collection[str]) -> Span:
    return replace(span, scenes=tuple(scene for scene in span.scenes if scene.scene_id in wanted))


def _other_format(raw: Raw) -> str:
    """What is wrong with a video no scene of which has the form of metadata, else "". An input where all are so is of
    another format."""
    faults = [raw.fault] if raw.fault else [*raw.faults.values()]
    whole = raw.fault is not None or len(faults) == sum(len(span.scenes) for span in raw.spans or ())
    return faults[0].message if faults and whole and {fault.code for fault in faults} == {BAD_METADATA} else ""


def _source(url: str, entry: storage.Entry | None) -> Source:
    """A film as it lies there, as far as no request to a host is needed to know."""
    if entry is None and url.startswith(LOCAL):
        with suppress(OSError, AddressError):
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


def _sifted(index: int, raw: Raw, duplicate: bool) -> Video:
    """Part the scenes that can be cut from those that cannot."""
    video_id, url, spans, fault, _, faults, *_ = raw
    if raw.known:
        return Video(index, video_id, url, None if spans is None else tuple(spans))
    again = Fault("duplicate_id", f'another video before has the id "{video_id}"')
    if duplicate and not spans:
        return Video(index, video_id, url, (), (Rejected("", "", "", *again, 0),))
    if fault:
        return Video(index, video_id, url, (), (Rejected("", "", "", *fault, 0),))
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
            found = fault or faults.get(scene.ordinal) or _scene_fault(scene, ids)
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


def _films(entries: Iterable[storage.Entry]) -> Iterator[Raw]:
    """Films without metadata. Two paths that make one id are two films: the later one gets a digest of its path."""
    seen: set[str] = set()
    for entry in entries:
        raw = _film(entry)
        if raw.video_id in seen:
            digest, name = hashlib.sha256(entry.name.encode()).hexdigest()[:12], PurePosixPath(raw.video_id)
            stem = name.stem.encode()[: NAME_BYTES - len(digest) - len(name.suffix.encode()) - 1]
            raw = raw._replace(video_id=f"{stem.decode(errors='ignore')}~{digest}{name.suffix}")
        seen.add(raw.video_id)
        yield raw


def _film(entry: storage.Entry) -> Raw:
    """A film without metadata; its suffix is part of its id, since demo.mp4 and demo.mov may lie side by side."""
    video_id = entry.name.replace("/", "-")
    if not is_usable(video_id):
        size = len(entry.name.encode())
        about = f"the path {shown(entry.name)} ({size} bytes) cannot be an id: rename it; {NAME_RULE}"
        return Raw(short_name(video_id), entry.uri, None, Fault("bad_name", about), entry)
    return Raw(video_id, entry.uri, None, entry=entry)

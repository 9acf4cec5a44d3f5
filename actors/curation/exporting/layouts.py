"""The files that trainers read beside the clips: which there are, and what they say of each clip."""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from pathlib import PurePosixPath
from typing import Any, Literal, NamedTuple

from actors.core import storage
from actors.core.json_text import json_list
from actors.core.stage import Row
from actors.core.store import Store

Files = Iterator[tuple[str, Iterable[str]]]
"""Files by their paths below the output, each with the pieces of its text."""
Caption = Literal["recaption", "caption", "both", "short", "long", "tags", "structured", "free"]


class Clip(NamedTuple):
    """A clip as trainers see it."""

    path: str
    """Below the output, as clips/a/a.0_0.mp4."""
    text: str
    """What it shows; "" where nobody has said."""
    row: Row
    """What export knows of it, with video_id and scene_id."""
    file: str
    """Where it is, from anywhere; in a store as `path`, since programs read a copy."""


def file_of(store: Store, path: str) -> str:
    """Where a clip is, as `Clip.file`; path: below the store."""
    return path if store.root.startswith("s3://") else storage.absolute(store.uri(path))


def text_of(row: Row, how: Caption) -> str:
    """What trainers are told of a scene: its recaption, or what it has in another style, else its caption; or always
    the caption; or caption and recaption in one text.

    row: caption and recaption, "" for none; captions, by style.
    """
    caption, recaption = row["caption"] or "", row["recaption"] or ""
    if how == "both":
        return " ".join(filter(None, (caption, recaption)))
    if how == "recaption":
        return recaption or caption
    return row.get("captions", {}).get(how) or caption


def _lines(rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    return (f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)


def _jsonl(clips: Iterable[Clip]) -> Files:
    # musubi-tuner, docs/dataset_config.md as of 2026-11: a relative path starts at the working directory, or else at
    # the file. Earlier versions know the former only, and take a missing clip for one without frames.
    yield "dataset.jsonl", _lines({"video_path": clip.file, "caption": clip.text} for clip in clips)


def _metadata_csv(clips: Iterable[Clip]) -> Files:
    # DiffSynth-Studio, its Wan training as of 2026-11: --dataset_base_path is the output, the columns video and prompt.
    def lines() -> Iterator[str]:
        for row in chain([("video", "prompt")], ((clip.path, clip.text) for clip in clips)):
            text = io.StringIO()
            csv.writer(text, lineterminator="\n").writerow(row)
            yield text.getvalue()

    yield "metadata.csv", lines()


def _ltx(clips: Iterable[Clip]) -> Files:
    # LTX-Video's trainer, scripts/process_dataset.py as of 2026-11: paths start at the file.
    yield "ltx.json", json_list({"caption": clip.text, "media_path": clip.path} for clip in clips)


def _videox(clips: Iterable[Clip]) -> Files:
    # VideoX-Fun, README as of 2026-11: train_data_dir is the output.
    yield "videox.json", json_list({"file_path": clip.path, "text": clip.text, "type": "video"} for clip in clips)


def _hf(clips: Iterable[Clip]) -> Files:
    # datasets 5.2, video_dataset: beside the videos, names relative to it. A metadata.csv there would be one too many.
    rows = ({"file_name": clip.path.removeprefix("clips/"), "text": clip.text} for clip in clips)
    yield "clips/metadata.jsonl", _lines(rows)


def _sidecar(clips: Iterable[Clip]) -> Files:
    # musubi-tuner and diffusion-pipe as of 2026-11: the same name with .txt; a folder is read without those below it.
    for clip in clips:
        yield str(PurePosixPath(clip.path).with_suffix(".txt")), [clip.text]


SIDECAR = "sidecar"
"""The layout that has a file for each clip."""
LAYOUTS: dict[str, Callable[[Iterable[Clip]], Files]] = {
    SIDECAR: _sidecar,
    "jsonl": _jsonl,
    "metadata_csv": _metadata_csv,
    "ltx": _ltx,
    "videox": _videox,
    "hf": _hf,
}
"""What makes the files of a layout."""
SHARDS = "webdataset"
"""The layout that holds the clips too, in tars."""

"""The files that trainers read beside the clips: which there are, and what they say of each clip."""

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, Literal, NamedTuple

from actors.core import storage
from actors.core.stage import Row
from actors.core.store import Store

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


def _lines(rows: Sequence[Mapping[str, Any]]) -> bytes:
    return "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows).encode()


def _list(rows: Sequence[Mapping[str, Any]]) -> bytes:
    return json.dumps(rows, indent=1, ensure_ascii=False).encode()


def _jsonl(clips: Sequence[Clip]) -> dict[str, bytes]:
    # musubi-tuner, docs/dataset_config.md as of 2026-11: a relative path starts at the working directory, or else at
    # the file. Earlier versions know the former only, and take a missing clip for one without frames.
    return {"dataset.jsonl": _lines([{"video_path": clip.file, "caption": clip.text} for clip in clips])}


def _metadata_csv(clips: Sequence[Clip]) -> dict[str, bytes]:
    # DiffSynth-Studio, its Wan training as of 2026-11: --dataset_base_path is the output, the columns video and prompt.
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerows([("video", "prompt"), *((clip.path, clip.text) for clip in clips)])
    return {"metadata.csv": text.getvalue().encode()}


def _ltx(clips: Sequence[Clip]) -> dict[str, bytes]:
    # LTX-Video's trainer, scripts/process_dataset.py as of 2026-11: paths start at the file.
    return {"ltx.json": _list([{"caption": clip.text, "media_path": clip.path} for clip in clips])}


def _videox(clips: Sequence[Clip]) -> dict[str, bytes]:
    # VideoX-Fun, README as of 2026-11: train_data_dir is the output.
    return {"videox.json": _list([{"file_path": clip.path, "text": clip.text, "type": "video"} for clip in clips])}


def _hf(clips: Sequence[Clip]) -> dict[str, bytes]:
    # datasets 5.2, video_dataset: beside the videos, names relative to it. A metadata.csv there would be one too many.
    rows = [{"file_name": clip.path.removeprefix("clips/"), "text": clip.text} for clip in clips]
    return {"clips/metadata.jsonl": _lines(rows)}


def _sidecar(clips: Sequence[Clip]) -> dict[str, bytes]:
    # musubi-tuner and diffusion-pipe as of 2026-11: the same name with .txt; a folder is read without those below it.
    return {str(PurePosixPath(clip.path).with_suffix(".txt")): clip.text.encode() for clip in clips}


LAYOUTS: dict[str, Callable[[Sequence[Clip]], dict[str, bytes]]] = {
    "sidecar": _sidecar,
    "jsonl": _jsonl,
    "metadata_csv": _metadata_csv,
    "ltx": _ltx,
    "videox": _videox,
    "hf": _hf,
}
"""What makes the files of a layout, by their paths below the output."""
SHARDS = "webdataset"
"""The layout that holds the clips too, in tars."""

"""Real film labelled by eye, and the loop over it: score, label, fit-filter, select.

The rule, which a person can apply to a second of film without measuring anything: it is good where it is one shot from
its first picture to its last and something in it moves; bad where a cut, a dissolve or a fade lies in it, or where it
is a title card that stands still. Applied by looking at five pictures of every second of the samples.
"""

import json
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from actors.curation.selecting.filter import load_filter, place
from jobs.curation.__main__ import app
from pipelines.curation.selecting.labels import write_labels
from tests.support.films import bikes_mp4, demo_mp4

BAD: dict[str, tuple[int, frozenset[int]]] = {
    "demo": (
        60,
        frozenset({0, 1, 2, 3, 4, 5, 7, 10, 15, 16, 20, 22, 29, 30, 35, 38, 39, 42, 46, 48, 49, 54, 57, 59}),
    ),
    "bikes": (10, frozenset({1, 3, 5, 7, 9})),
    "bigbuckbunny": (5, frozenset()),
    "carphone_pristine": (3, frozenset()),
}
"""Of each film how many whole seconds there are, and which of them are bad."""
PIECE = 5
"""Seconds of film that stand for one video, so that no fold sees half of a piece and is judged by the other."""


def films() -> dict[str, Path]:
    """Where the samples lie."""
    folder = bikes_mp4().parent
    return {"demo": demo_mp4(), **{name: folder / f"{name}.mp4" for name in BAD if name != "demo"}}


def loop(folder: Path) -> dict[str, Any]:
    """Go once round the loop over the samples, with the verbs that a person would use; returns the filter's report."""
    metadata: dict[str, Any] = {}
    labels: dict[tuple[str, str], int] = {}
    for name, path in films().items():
        seconds, bad = BAD[name]
        for second in range(seconds):
            video_id = f"{name}-{second // PIECE:02d}"
            video = metadata.setdefault(video_id, {"url": str(path), "clip": {}})
            span = [f"00:00:{second:02d}.000", f"00:{(second + 1) // 60:02d}:{(second + 1) % 60:02d}.000"]
            scene_id = f"{video_id}.{second}_0"
            scene = {"clip_id": scene_id, "scene_cut": [0, -1], "caption": ""}
            video["clip"][f"{video_id}.{second}.mp4"] = {"span": span, "fps": 25.0, "scene_split": [scene]}
            labels[video_id, scene_id] = int(second not in bad)
    (folder / "samples.json").write_text(json.dumps(metadata))
    output = str(folder / "output")
    write_labels(f"{output}/labels/eye.json", labels)
    settings = ["latents.model=tiny", "frames.interval_ms=125"]
    _verb("score", f"input={folder / 'samples.json'}", f"output={output}", *settings)
    _verb("fit-filter", output)
    _verb("select", output, "select.by=classifier", "select.count=20")
    return load_filter(place(output, None)).about["report"]


def _verb(*arguments: str) -> None:
    result = CliRunner().invoke(app, arguments)
    if result.exit_code:
        raise RuntimeError(result.output)

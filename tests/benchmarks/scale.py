"""What a start costs over many finished rows: python -m tests.benchmarks.scale start 1000000 [FOLDER]

Synthetic rows of scores/ of 53 scenes a video, in parts that `compact` has made, of an input as HD-VG-130M has it. Each
step runs in a process of its own; its CPU-seconds and peak memory are printed, and the files that it opened.

    start ROWS    plan an input all of which is done, whose last plan is that of its first start
    changed ROWS  plan it with 1 % of new videos
    retry ROWS    plan it with 1 % of its rows failed, one here and one there, which are to be tried again
    select ROWS   the verb `select` of it, with its report, in one process
    status ROWS   how far they are
    compact ROWS  compact them, where they lie in parts of 64 rows
    export ROWS   of a million kept scenes, or of all if there are fewer, each with a recaption: all that `export` does
                  in the driver, once where no clip is there and once where all are; no clip is made or listed
    recaption, annotate, evaluate, videos ROWS   what these do in the driver before they ask for something (videos: a
                  family of whole videos), of the same
"""

import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from actors.core import storage
from actors.core.catalog import Replacement
from actors.core.store import Store
from actors.curation.compacting import SCORES_AGAIN, SHARD, SHARD_ROWS, shards
from actors.curation.features.perceptual_hash import HASH_BYTES
from actors.curation.sources.origin import Source, times, with_times
from actors.curation.tables import PICTURES, PLAN_AGAIN, SCORES, VIDEOS
from pipelines.curation.settings import CurationConfig, measured_by
from tests.benchmarks import scale_kept

SHARE = 100
"""Of so many videos one is new, and of so many rows one has failed."""
SCENES = 53
"""Scenes of a video, as HD-VG-130M has them."""
PART_ROWS = 600_000
"""Rows of a compacted part: 100 MB of rows that were measured."""
BARS: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("start", "changed", "retry"), (60.0, 1000.0)),
    **dict.fromkeys(("select", "status", "compact", *scale_kept.STEPS), (float("inf"), 2000.0)),
}
"""CPU-seconds and MB at ten million rows."""


def url(video: int) -> str:
    """Where a video lies."""
    return f"https://host.example/watch?v={video:011d}"


def write_input(path: Path, videos: int) -> None:
    """Metadata of so many videos, as HD-VG-130M has it."""
    with path.open("w") as file:
        file.write("{")
        _write_videos(file, range(videos))
        file.write("}")


def _write_videos(file: TextIO, videos: Iterable[int]) -> None:
    for video in videos:
        cuts = [
            {
                "clip_id": f"{video:011d}.0_{i}.mp4",
                "scene_cut": [60 * i, 60 * i + 60],
                "caption": f"a scene of {video}",
            }
            for i in range(SCENES)
        ]
        clip = {f"{video:011d}.0.mp4": {"span": ["00:00:00.000", "00:10:00.000"], "scene_split": cuts}}
        file.write(("," if video else "") + f'"{video:011d}":' + json.dumps({"url": url(video), "clip": clip}))


def tables(videos: int) -> Iterator[pa.Table]:
    """Rows of scores/ of all scenes, as `compact` sorts them."""
    names = pa.array([f"{video:011d}" for video in range(videos)])
    urls = pa.array([url(video) for video in range(videos)])
    captions = pa.array([f"a scene of {video}" for video in range(videos)])
    films = np.array([Source(one).film for one in urls.to_pylist()])
    of = shards(names).to_numpy()
    step = PART_ROWS // SCENES
    codes = np.array([times(0.0, 600.0, 60 * i, 60 * i + 60) for i in range(SCENES)])
    ends = pa.array([f".0_{i}.mp4" for i in range(SCENES)])
    rng = np.random.default_rng(0)
    join: Any = pc.binary_join_element_wise  # type: ignore[attr-defined]
    for start in range(0, videos, step):
        some = np.arange(start, min(start + step, videos))
        some = some[np.lexsort((some, of[some]))]
        video = np.repeat(some, SCENES)
        number = np.tile(np.arange(SCENES), len(some))
        name = names.take(pa.array(video))
        hashes = pa.py_buffer(rng.bytes(HASH_BYTES * len(video)))
        columns: dict[str, Any] = {
            "video_index": video,
            "video_id": name,
            "uri": urls.take(pa.array(video)),
            "clip_id": join(name, ".0.mp4", ""),
            "scene_id": join(name, ends.take(pa.array(number)), ""),
            "ordinal": number,
            "caption": captions.take(pa.array(video)),
            "first": 60 * number,
            "end": 60 * number + 60,
            "start_s": 2.0 * number,
            "end_s": 2.0 * number + 2,
            "phash": pa.Array.from_buffers(pa.binary(HASH_BYTES), len(video), [None, hashes]),
            "film": films[video],
            "version": with_times(Source("").version, 0) | codes[number],
            "written": rng.random(len(video)),
            "no_frames": np.full(len(video), 8),
            "window": np.full(len(video), -1),
            "scenes": np.full(len(video), 0),
        }
        yield _table(columns, len(video), rng).append_column(SHARD, pa.array(of[video]))


def _table(columns: dict[str, Any], rows: int, rng: np.random.Generator) -> pa.Table:
    nothing = pa.array([""]).take(pa.array(np.zeros(rows, np.int8)))
    for field in SCORES:
        if field.name in columns:
            continue
        if pa.types.is_string(field.type):
            columns[field.name] = nothing
        elif pa.types.is_floating(field.type):
            columns[field.name] = 1 + rng.random(rows, np.float32)
        else:
            columns[field.name] = np.zeros(rows, field.type.to_pandas_dtype())
    arrays = [_cast(columns[name], SCORES.field(name).type) for name in SCORES.names]
    return pa.Table.from_arrays(arrays, schema=SCORES).append_column(PICTURES, nothing)


def _cast(values: Any, kind: pa.DataType) -> pa.Array:
    return values.cast(kind) if isinstance(values, pa.Array) else pa.array(values, kind)


def make(folder: Path, rows: int, whole: bool) -> None:
    """An output of so many rows; whole: with its input, and the plan that is made of it."""
    from pipelines.curation.cutting.plan import make_plan

    videos, config = rows // SCENES, config_of(folder)
    if whole:
        write_input(folder / "corpus.json", videos)
        (folder / "videos.json").write_text(json.dumps(videos))
        make_plan(config)
    else:
        write_plan(Store(config.output), videos)
    with Replacement(config.output, ["scores"], SCORES_AGAIN) as new:
        for number, table in enumerate(tables(videos)):
            new.add(new.writer.write("scores", number, table, row_group_size=SHARD_ROWS))
        new.commit(absorbed={})


def write_plan(store: Store, videos: int) -> None:
    """What `select` needs of a plan, in a hundredth of the time."""
    names = [f"{video:011d}" for video in range(videos)]
    plan = pa.table([range(videos), names, np.full(videos, SCENES)], schema=VIDEOS)
    store.commit_table("plan/videos", [plan], PLAN_AGAIN)
    config = CurationConfig(input="corpus.json", output=store.root)
    store.write_json({"measured_by": measured_by(config), "settings": asdict(config)}, "plan", "settings.json")


def config_of(folder: Path) -> CurationConfig:
    """Settings of the output."""
    return CurationConfig(input=str(folder / "corpus.json"), output=str(folder / "out"))


def start(folder: Path) -> str:
    """Plan again."""
    from pipelines.curation.cutting.plan import make_plan

    plan = make_plan(config_of(folder))
    assert plan.todo == 0, plan
    return f"{plan.scenes} scenes, nothing left"


def add_videos(folder: Path) -> None:
    """Add new videos to the input, in a file of its own."""
    videos = json.loads((folder / "videos.json").read_text())
    shutil.copyfile(folder / "corpus.json", folder / "changed.json")
    with (folder / "changed.json").open("r+") as file:
        file.seek(file.seek(0, 2) - 1)
        _write_videos(file, range(videos, videos + videos // SHARE))
        file.write("}")


def changed(folder: Path) -> str:
    """Plan the input with new videos."""
    from pipelines.curation.cutting.plan import make_plan

    videos = json.loads((folder / "videos.json").read_text())
    plan = make_plan(replace(config_of(folder), input=str(folder / "changed.json")), dry=True)
    assert (plan.videos, plan.todo) == (videos + videos // SHARE, videos // SHARE), plan
    return f"{plan.scenes} scenes, {plan.todo_scenes} left"


def fail_rows(folder: Path) -> None:
    """Let rows fail."""
    store, draw = Store(config_of(folder).output), np.random.default_rng(1)
    with Replacement(store.root, ["scores"], SCORES_AGAIN) as new:
        for number, table in enumerate(store.read_parts("scores")):
            failed = pa.array(np.where(draw.random(len(table)) < 1 / SHARE, "crashed", ""))
            table = table.set_column(table.column_names.index("error"), "error", failed)
            new.add(new.writer.write("scores", number, table, row_group_size=SHARD_ROWS))
        new.commit(absorbed={})


def retry(folder: Path) -> str:
    """Plan to try rows again."""
    from pipelines.curation.cutting.plan import make_plan

    plan = make_plan(config_of(folder), frozenset({"crashed"}), dry=True)
    assert 0.9 / SHARE < plan.todo_scenes / plan.scenes < 1.1 / SHARE, plan
    return f"{plan.scenes} scenes, {plan.todo_scenes} left of {plan.todo} videos"


def select(folder: Path) -> str:
    """Select, with the report."""
    from jobs.curation.__main__ import app

    with suppress(SystemExit):
        app(["select", config_of(folder).output])
    size = (folder / "out" / "report.html").stat().st_size
    return f"{Store(config_of(folder).output).read_json('run.json')['rows']['in']} scenes, report {size / 1e6:.2f} MB"


def status(folder: Path) -> str:
    """How far the run is."""
    from pipelines.curation.rows import how_far

    return f"{how_far(Store(config_of(folder).output)).scenes} scenes"


def compact(folder: Path) -> str:
    """Compact what a run has written."""
    from pipelines.curation.compact import compact_output

    done = compact_output(Store(config_of(folder).output))
    return f"{done.parts} parts with {done.rows} rows to {done.made}"


def loosen(folder: Path) -> None:
    """Write the rows in parts of 64, as a run does."""
    store = Store(config_of(folder).output)
    tables = [table.drop_columns([PICTURES, SHARD]) for table in store.read_parts("scores")]
    store.remove_table("scores")
    for table in tables:
        for start in range(0, len(table), 64):
            part = table.slice(start, 64)
            store.write_part("scores", part, part["scene_id"].to_pylist())


def _of_kept(name: str) -> Callable[[Path], str]:
    return lambda folder: getattr(scale_kept, name)(config_of(folder))


STEPS: dict[str, Callable[[Path], str]] = {
    "start": start,
    "changed": changed,
    "retry": retry,
    "select": select,
    "status": status,
    "compact": compact,
    **{name: _of_kept(name) for name in scale_kept.STEPS},
}
BEFORE: dict[str, Callable[[Path], None]] = {
    "changed": add_videos,
    "retry": fail_rows,
    "compact": loosen,
    **dict.fromkeys(scale_kept.STEPS, lambda folder: scale_kept.keep(config_of(folder))),
}


def step(name: str, folder: Path) -> None:
    """Run a step in this process, and print what it cost."""
    touched = set[str]()
    for door in ("read_bytes", "stream", "find", "listing"):
        whole = getattr(storage, door)
        setattr(storage, door, lambda uri, *more, whole=whole, **named: touched.add(uri) or whole(uri, *more, **named))
    before, began = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
    told = STEPS[name](folder)
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    # The peak of this process: getrusage tells the parent's where that is higher.
    peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
    objects = len(list(storage.listing(str(folder / "out" / "scores"))))
    print(
        f"{name}: {told}; {cpu:.1f} CPU-s, {time.monotonic() - began:.1f} s, peak {peak:.0f} MB; "
        f"{len(touched)} objects and folders read, {objects} objects in scores/",
        flush=True,
    )


def main() -> None:
    """Make an output of so many rows, and run a step over it."""
    name, rows = sys.argv[1], int(sys.argv[2])
    if sys.argv[4:] == ["here"]:
        step(name, Path(sys.argv[3]))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(sys.argv[3] if len(sys.argv) > 3 else temporary)
        if not (folder / "out").exists():
            folder.mkdir(parents=True, exist_ok=True)
            make(folder, rows, whole=name not in ("select", *scale_kept.STEPS))
        if name in BEFORE:
            BEFORE[name](folder)
        subprocess.run(
            [sys.executable, "-m", "tests.benchmarks.scale", name, str(rows), str(folder), "here"], check=True
        )
    seconds, memory = BARS[name]
    print(f"at most {seconds:g} CPU-s and {memory:g} MB of 10,000,000 rows")


if __name__ == "__main__":
    main()

"""Estimates of `--dry-run` beside what the run takes: `python -m tests.benchmarks.estimate OUT`

Every film is measured once as the estimate measures it; estimates of many seeds are made of these. Then `run` does the
work: CPU-seconds of its workers, files and seconds, less those of a run over the three smallest films, which has the
same start.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from statistics import median
from typing import Any

import av
import numpy as np
import psutil

from actors.core import machine
from jobs.core.settings import load
from pipelines.curation.cutting.plan import make_plan
from pipelines.curation.estimating.estimate import RAY_SHARE, Estimate, scaled
from pipelines.curation.estimating.known import Drawn, Known, known_of
from pipelines.curation.estimating.one_film import Cost, OneFilm
from pipelines.curation.estimating.scaling import draw
from pipelines.curation.settings import CurationConfig
from tests.support.data import FOLDER
from tests.support.films import bikes_mp4, demo_mp4

SIZES = ((176, 144), (320, 180), (640, 360), (1280, 720))
SMALL = 3
SEEDS = 200


def sources() -> list[Path]:
    """Real films: those of packages, and those at hand."""
    bikes = bikes_mp4()
    more = [FOLDER / "big_buck_bunny_60s.mp4", FOLDER / "faces/short_hamilton_clip.mp4"]
    return [demo_mp4(), bikes, bikes.with_name("bigbuckbunny.mp4"), *(path for path in more if path.exists())]


def films(folder: Path, count: int) -> None:
    """The real films as they are, and pieces of them in other lengths, sizes and codecs, drawn by seed."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(7)
    for path in sources():
        if not (folder / path.name).exists():
            (folder / path.name).symlink_to(path.resolve())
    for number in range(count):
        source = sources()[number % len(sources())]
        size, seconds = SIZES[rng.integers(len(SIZES))], float(np.exp(rng.uniform(np.log(2), np.log(25))))
        codec, start = ("libx264", "mpeg4")[int(rng.random() < 0.3)], rng.random()
        path = folder / f"piece{number:02d}.mp4"
        if not path.exists():
            piece(source, path.with_suffix(".part.mp4"), size, seconds, codec, start)
            path.with_suffix(".part.mp4").rename(path)


def piece(source: Path, path: Path, size: tuple[int, int], seconds: float, codec: str, start: float) -> None:
    """Some seconds of a film from a share of its length on, in another size."""
    with av.open(source) as film, av.open(path, "w") as out:
        length = (film.duration or 0) / 1e6
        from_s = start * max(0.0, length - seconds)
        stream: Any = out.add_stream(codec, rate=25, options={"preset": "veryfast"} if codec == "libx264" else {})
        (stream.width, stream.height), stream.pix_fmt, stream.bit_rate = size, "yuv420p", size[0] * size[1] * 4
        number = 0
        for frame in film.decode(video=0):
            if frame.time is None or not from_s <= frame.time < from_s + seconds:
                continue
            picture = frame.reformat(*size, format="yuv420p")
            picture.pts, number = number, number + 1
            picture.time_base = Fraction(1, 25)
            out.mux(stream.encode(picture))
        out.mux(stream.encode())


@dataclass
class Taken:
    """What a run took, in all."""

    cpu_s: float
    """Of workers and what they start."""
    driver_cpu_s: float
    ray_cpu_s: float
    """Of Ray's own processes, which take some whether there is work or not."""
    seconds: float
    bytes: int
    files: int


def cpu_of(command: list[str], folder: Path) -> Counter[str]:
    """CPU-seconds of a command by kind of process, also of those that outlive their parents."""
    environment = os.environ | {"RAY_ADDRESS": "local", "RAY_TMPDIR": str(folder), "RAY_AUTH_MODE": "disabled"}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    started, kinds, taken = {process.pid: psutil.Process(process.pid).create_time()}, {process.pid: "driver"}, {}
    while process.poll() is None:
        for one in psutil.process_iter(["pid", "ppid", "create_time", "cpu_times", "cmdline"]):
            pid, parent, born = one.info["pid"], one.info["ppid"], one.info["create_time"]
            if started.get(pid) != born and parent in started and born >= started[parent]:
                started[pid], kinds[pid] = born, "ray"
            if started.get(pid) == born and one.info["cpu_times"]:
                words = " ".join(one.info["cmdline"] or ())
                if words.startswith("ray::") or "actors.core.child" in words or "default_worker" in words:
                    kinds[pid] = "workers"
                taken[pid, born] = kinds[pid], one.info["cpu_times"].user + one.info["cpu_times"].system
        time.sleep(0.3)
    if process.returncode:
        raise RuntimeError((folder / "log").read_text())
    found: Counter[str] = Counter()
    for kind, cpu_s in taken.values():
        found[kind] += cpu_s
    return found


def run(films: Path, output: Path, settings: list[str]) -> Taken:
    """Do the work of `run` in an output of its own."""
    output.mkdir(parents=True)
    began = time.monotonic()
    given = [f"input={films}", f"output={output / 'out'}", *settings]
    cpu_s = cpu_of([sys.executable, "-m", "jobs.curation", "run", *given], output)
    seconds = time.monotonic() - began
    sizes = [path.stat().st_size for path in (output / "out").rglob("*") if path.is_file()]
    return Taken(cpu_s["workers"], cpu_s["driver"], cpu_s["ray"], seconds, sum(sizes), len(sizes))


def measured(config: CurationConfig, kept: Path) -> tuple[Drawn, list[Cost]]:
    """All films of the input, and what each took."""
    drawn = Drawn(np.random.default_rng(0))
    make_plan(config, dry=True, left_to=drawn.add)
    if not kept.exists():
        worker = OneFilm(config, [], export=True)
        worker.measured(drawn.films[0])
        costs = []
        for film in drawn.films:
            costs.append(worker.measured(film))
            print(film["video_id"], costs[-1], file=sys.stderr, flush=True)
        kept.write_text(json.dumps([asdict(cost) for cost in costs]))
    return drawn, [Cost(**one) for one in json.loads(kept.read_text())]


def estimates(config: CurationConfig, drawn: Drawn, known: Known, costs: list[Cost], count: int) -> Iterator[Estimate]:
    """Estimates from so many films, of many seeds."""
    for seed in range(SEEDS):
        sample = draw(known.sizes, count, np.random.default_rng(seed))
        yield scaled(config, drawn, known, sample, [costs[at] for at in sample.chosen])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.estimate", description=__doc__)
    parser.add_argument("folder", type=Path, help="where films and outputs go")
    parser.add_argument("settings", nargs="*", help="settings of `run`, as motion.flow=scaled")
    parser.add_argument("--pieces", type=int, default=25, help="films beside the real ones as they are")
    asked = parser.parse_args()
    folder = asked.folder.resolve()
    films(folder / "films", asked.pieces)
    settings = ["latents.model=tiny", *asked.settings]
    config = load(CurationConfig, [f"input={folder / 'films'}", f"output={folder / 'none'}", *settings])
    drawn, costs = measured(config, folder / "costs.json")
    smallest = np.argsort([cost.cpu_s for cost in costs])[:SMALL].tolist()
    small = folder / "small"
    small.mkdir(exist_ok=True)
    for at in smallest:
        path = Path(drawn.films[at]["url"])
        if not (small / path.name).exists():
            (small / path.name).symlink_to(path.resolve())
    stamp = f"{time.time():.0f}"
    few, whole = (run(folder / name, folder / f"{name}-{stamp}", settings) for name in ("small", "films"))
    print(f"{len(costs)} films: {whole}; {SMALL} films: {few}; CPUs: {machine.cpus():g}")
    table(config, drawn, costs, smallest, few, whole)


def table(
    config: CurationConfig, drawn: Drawn, costs: list[Cost], smallest: list[int], few: Taken, whole: Taken
) -> None:
    """Print estimates ÷ what the run took, both less the smallest films, of many seeds."""
    known, parts, less = known_of(drawn.films, drawn.bytes), config.write.batch_size, [costs[at] for at in smallest]
    print("| films measured | CPU-seconds | storage | files | seconds | within 30 % | interval holds |")
    print("|---|---|---|---|---|---|---|")
    for count in (4, 8, 12, len(costs)):
        ratios: dict[str, list[float]] = {name: [] for name in ("cpu_s", "bytes", "files", "seconds")}
        holds = []
        for found in estimates(config, drawn, known, costs, count):
            values = {
                "cpu_s": found.cpu_s.value - (1 + RAY_SHARE) * sum(one.cpu_s + one.clip_cpu_s for one in less),
                "bytes": found.bytes.value - sum(one.row_bytes + one.clip_bytes for one in less),
                "files": found.puts.value - sum(one.clip_files + one.tables * one.rows / parts for one in less),
            }
            values["seconds"] = values["cpu_s"] / machine.cpus()
            for name, value in values.items():
                ratios[name].append(value / (getattr(whole, name) - getattr(few, name)))
            holds.append(abs(values["cpu_s"] - whole.cpu_s + few.cpu_s) <= found.cpu_s.margin)
        near = [abs(ratio - 1) <= 0.3 for name in ("cpu_s", "bytes", "files") for ratio in ratios[name]]
        cells = [f"{median(all_of):.2f} ({min(all_of):.2f}–{max(all_of):.2f})" for all_of in ratios.values()]
        print(f"| {count} | {' | '.join(cells)} | {np.mean(near):.0%} | {np.mean(holds):.0%} |", flush=True)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()

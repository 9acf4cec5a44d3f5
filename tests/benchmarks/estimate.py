"""Estimates of `--dry-run` beside what the run takes: `python -m tests.benchmarks.estimate OUT`

An estimate from eight films and the run that it is of, one after the other, first with films and output in folders,
then on an S3 server behind a proxy that counts requests, with a family whose worker holds a GPU. Seconds are those of
the machine as it was: what other processes took of its CPUs is printed, and a second ratio leaves that out. Estimates
from four and eight films of many seeds are made of one measurement of all films.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from statistics import median
from typing import Any

import av
import numpy as np
import psutil

from jobs.core.settings import load
from pipelines.curation.cutting.plan import make_plan
from pipelines.curation.estimating.duration import Workers
from pipelines.curation.estimating.estimate import Estimate, Machines, estimate, measured, scaled
from pipelines.curation.estimating.known import Drawn, known_of
from pipelines.curation.estimating.one_film import Cost
from pipelines.curation.estimating.scaling import draw
from pipelines.curation.settings import CurationConfig
from tests.support.data import FOLDER
from tests.support.films import bikes_mp4, demo_mp4
from tests.support.servers import BUCKET, FaultProxy, fault_proxy, s3_client, s3_store

SIZES = ((176, 144), (320, 180), (640, 360), (1280, 720))
FILMS, SEEDS = 8, 200
COUNTED = ("scores", "thumbnails", "keyframes", "measured", "clips", "frames", "videos")
"""Folders of an output whose files grow with films."""
GPU = ["scores=[tests.support.families:Slow]", "measure.own.Slow.num_gpus=1"]
"""A family that computes nothing on the GPU that its worker holds: Ray is told of one that is not there."""
UTILITIES = ("StatsActor", "AutoscalingCoordinator", "ActorLocationTracker", "Agent")
"""Processes of Ray that bear the names of actors."""


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
    """What a command took."""

    seconds: float
    others: float
    """Share of the machine's CPUs that other processes took meanwhile."""
    worker_cpu_s: float
    """Of workers and what they start."""
    cpu_s: float
    """With the driver and Ray's own processes."""
    bytes: int = 0
    files: int = 0
    puts: int = 0
    """PUT, POST and LIST."""
    gets: int = 0
    """GET and HEAD."""
    held_gpu_s: float = 0.0
    """Seconds for which workers lived that hold the GPU."""


def took(command: list[str], folder: Path, environment: Mapping[str, str]) -> Taken:
    """Run a command; its CPU-seconds by kind of process, also of those that outlive their parents."""
    folder.mkdir(parents=True)
    own = {"RAY_ADDRESS": "local", "RAY_TMPDIR": str(folder), "RAY_AUTH_MODE": "disabled"}
    own["RAY_OVERRIDE_RESOURCES"] = json.dumps({"GPU": 1})
    gpus: dict[int, list[float]] = {}
    began, busy = time.monotonic(), busy_s()
    with (folder / "out").open("w") as out, (folder / "log").open("w") as log:
        process = subprocess.Popen(command, env=os.environ | environment | own, stdout=out, stderr=log)
    started, kinds, taken = {process.pid: psutil.Process(process.pid).create_time()}, {process.pid: "driver"}, {}
    while process.poll() is None:
        for one in psutil.process_iter(["pid", "ppid", "create_time", "cpu_times", "cmdline"]):
            pid, parent, born = one.info["pid"], one.info["ppid"], one.info["create_time"]
            if started.get(pid) != born and parent in started and born >= started[parent]:
                started[pid], kinds[pid] = born, "ray"
            if started.get(pid) == born and one.info["cpu_times"]:
                words = " ".join(one.info["cmdline"] or ())
                if "PassScorer" in words:
                    gpus.setdefault(pid, []).append(time.monotonic())
                named = words.startswith("ray::") and not any(name in words for name in UTILITIES)
                if named or "actors.core.child" in words:
                    kinds[pid] = "workers"
                elif words.startswith("ray::"):
                    kinds[pid] = "ray"
                taken[pid, born] = kinds[pid], one.info["cpu_times"].user + one.info["cpu_times"].system
        time.sleep(0.3)
    if process.returncode:
        raise RuntimeError((folder / "log").read_text())
    seconds, busy = time.monotonic() - began, busy_s() - busy
    # Workers of Ray yield to all others, and end when they get a CPU.
    psutil.wait_procs(
        [one for one in psutil.process_iter(["create_time"]) if started.get(one.pid) == one.info["create_time"]], 120
    )
    found: Counter[str] = Counter()
    for kind, cpu_s in taken.values():
        found[kind] += cpu_s
    others = max(0.0, busy - found.total()) / (seconds * (os.cpu_count() or 1))
    held_s = sum(seen[-1] - seen[0] for seen in gpus.values())
    return Taken(seconds, others, found["workers"], found.total(), held_gpu_s=held_s)


def busy_s() -> float:
    """CPU-seconds that all processes of this machine have taken, and other machines of its host in its place."""
    now = psutil.cpu_times()
    return sum(now) - now.idle - getattr(now, "iowait", 0.0) - getattr(now, "guest", 0.0)


def run(films: str, output: str, folder: Path, settings: list[str], proxy: FaultProxy | None) -> Taken:
    """Do the work of `run`; proxy: before the S3 server of its output."""
    given = [f"input={films}", f"output={output}", *settings]
    if proxy:
        proxy.methods.clear()
    taken = took([sys.executable, "-m", "jobs.curation", "run", *given], folder, proxy.environment if proxy else {})
    if proxy:
        taken.puts = sum(proxy.methods[kind] for kind in ("PUT", "POST", "LIST"))
        taken.gets = proxy.methods["GET"] + proxy.methods["HEAD"]
        print("requests:", dict(proxy.methods))
    there = [path for path in Path(output).rglob("*") if path.is_file()]
    taken.bytes = sum(path.stat().st_size for path in there)
    taken.files = sum(path.relative_to(output).parts[0] in COUNTED for path in there)
    return taken


def estimated(films: str, folder: Path, count: int, settings: list[str], environment: Mapping[str, str]) -> tuple:
    """An estimate from so many films, in a process of its own; 0: what each film took, instead. And what that took."""
    given = [f"input={films}", f"output={folder / 'none'}", f"estimate.films={count}", *settings]
    taken = took([sys.executable, "-m", "tests.benchmarks.estimate", "--child", *given], folder, environment)
    return json.loads((folder / "out").read_text().splitlines()[-1]), taken


def child(given: list[str]) -> None:
    """Print an estimate as JSON, or what each film took."""
    from actors.core.store import Store
    from jobs.core.verbs import Run

    config, session = load(CurationConfig, given), Run(Store(""), {}, False)
    try:
        if config.estimate.films:
            found = estimate(config, frozenset(), True, session.ray)
            assert found is not None
            print(json.dumps([told(*found), *map(asdict, found)]))
            return
        drawn = Drawn(np.random.default_rng(0))
        plan = make_plan(config, dry=True, left_to=drawn.add)
        costs, machines = measured(config, drawn.films, drawn.films[0], plan, True, session.ray)
        print(json.dumps([[asdict(cost) for cost in costs], asdict(machines)]))
    finally:
        session.close()


def told(found: Estimate, machines: Machines) -> dict[str, float]:
    """What an estimate says of a run in all."""
    seconds = machines.start_s + found.seconds.whole.value
    return {
        "seconds": seconds,
        "worker_cpu_s": found.cpu_s.value + machines.load_cpu_s,
        "cpu_s": found.cpu_s.value + machines.start_cpu_s + machines.head_cpus * found.seconds.whole.value,
        "bytes": found.bytes.value,
        "files": found.files.value,
        "puts": found.puts.value,
        "gets": found.gets.value,
        "held_gpu_s": found.held_gpu_s.value,
    }


NAMES = {
    "seconds": "seconds",
    "worker_cpu_s": "CPU-seconds of workers",
    "cpu_s": "CPU-seconds with the driver and Ray",
    "bytes": "bytes",
    "files": "files",
    "puts": "PUT, POST and LIST requests",
    "gets": "GET and HEAD requests",
    "held_gpu_s": "GPU-seconds that workers hold",
}


def table(where: str, found: dict[str, float], by: Taken, taken: Taken) -> None:
    """Print an estimate beside what its run took."""
    print(f"\n| {where} | estimate from {FILMS} films | run | ÷ |\n|---|---|---|---|")
    for name, value in found.items():
        if actual := getattr(taken, name):
            print(f"| {NAMES[name]} | {value:,.0f} | {actual:,.0f} | {value / actual:.2f} |")
    shares = f"{by.others:.0%} and {taken.others:.0%} of the CPUs"
    found_s, actual_s = found["seconds"] * (1 - by.others), taken.seconds * (1 - taken.others)
    print(f"| seconds, less the share of others ({shares}) | {found_s:,.0f} | {actual_s:,.0f} |", end=" ")
    print(f"{found_s / actual_s:.2f} |", flush=True)


def seeds(config: CurationConfig, all_of: tuple[list[dict], dict], taken: Taken) -> None:
    """Print estimates ÷ what the run took, of many seeds."""
    costs = [Cost(**one) for one in all_of[0]]
    about: dict[str, Any] = all_of[1] | {"workers": Workers(**all_of[1]["workers"])}
    machines = Machines(**about)
    drawn = Drawn(np.random.default_rng(0))
    make_plan(config, dry=True, left_to=drawn.add)
    known, names = known_of(drawn.films, drawn.bytes), ("seconds", "worker_cpu_s", "cpu_s", "bytes", "files")
    print(f"\n| {SEEDS} seeds, films | {' | '.join(NAMES[name] for name in names)} | within 30 % |")
    print(f"|---|{'---|' * len(names)}---|")
    for count in (4, FILMS, len(costs)):
        ratios: dict[str, list[float]] = {name: [] for name in names}
        for seed in range(SEEDS):
            sample = draw(known.sizes, count, np.random.default_rng(seed))
            found = scaled(config, drawn, known, sample, [costs[at] for at in sample.chosen], machines)
            for name, value in told(found, machines).items():
                if name in ratios:
                    ratios[name].append(value / getattr(taken, name))
        near = [abs(ratio - 1) <= 0.3 for name in names for ratio in ratios[name]]
        cells = [f"{median(some):.2f} ({min(some):.2f}–{max(some):.2f})" for some in ratios.values()]
        print(f"| {count} | {' | '.join(cells)} | {np.mean(near):.0%} |", flush=True)


def places(films: Path, folder: Path, stack: ExitStack) -> Iterator[tuple[str, str, str, FaultProxy | None]]:
    """Where films and output lie: a name, both, and the proxy before a store."""
    yield "in folders", str(films), str(folder / "output"), None
    environment = stack.enter_context(s3_store(folder / "store"))
    proxy = stack.enter_context(fault_proxy(environment, 0, 0))
    client = s3_client(environment)
    for path in sorted(films.glob("*.mp4")):
        client.upload_file(str(path.resolve()), BUCKET, f"films/{path.name}")
    yield "on S3", f"s3://{BUCKET}/films", f"s3://{BUCKET}/output", proxy


def main() -> None:
    """Print the tables."""
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.estimate", description=__doc__)
    parser.add_argument("folder", type=Path, help="where films go, and each time a folder of outputs")
    parser.add_argument("settings", nargs="*", help="settings of `run`, as motion.flow=scaled")
    parser.add_argument("--pieces", type=int, default=20, help="films beside the real ones as they are")
    asked = parser.parse_args()
    drawn, folder = asked.folder.resolve() / "films", asked.folder.resolve() / f"{time.time():.0f}"
    films(drawn, asked.pieces)
    folder.mkdir()
    settings = ["latents.model=tiny", *asked.settings]
    first: Taken | None = None
    with ExitStack() as stack:
        for number, (name, where, output, proxy) in enumerate(places(drawn, folder, stack)):
            environment, given = (proxy.environment, [*settings, *GPU]) if proxy else ({}, settings)
            print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs", flush=True)
            found, by = estimated(where, folder / f"estimate{number}", FILMS, given, environment)
            taken = run(where, output, folder / f"run{number}", given, proxy)
            table(name, found[0], by, taken)
            first = first or taken
    assert first is not None
    config = load(CurationConfig, [f"input={drawn}", f"output={folder / 'none'}", *settings])
    seeds(config, estimated(str(drawn), folder / "all", 0, settings, {})[0], first)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()

"""Speed and memory of curation on real film: `python -m tests.benchmarks.curation [reference] [motion] [export]
[memory] [ray] [labels] [selection] [bars] [keyframes]
[order] [shown] [vectors]`.

Prints a table of what was measured beside the target. Times are CPU-seconds of the process and its children; what is
compared runs alternately, and a ratio is the median of its rounds. Nothing fails for being slow.
"""

import argparse
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter, process_time, sleep
from typing import Any, cast

import av
import cv2
import numpy as np
import pandas as pd
import psutil

from actors.core.child import Child
from actors.core.stage import Row
from actors.core.store import Store
from actors.curation.cutting.cut import cut
from actors.curation.cutting.scenes import FEATURES, FramesConfig
from actors.curation.exporting.clips import ClipsConfig, write_clips
from actors.curation.features.latents import LatentsConfig, encode, latent_distances, load_vae
from actors.curation.features.motion import MotionConfig
from actors.curation.tables import SCORES
from actors.media.film import VideoConfig
from actors.media.shot_detection.shots import ShotsConfig
from tests.benchmarks import reference
from tests.benchmarks.bars import looking, variants
from tests.benchmarks.by_eye import loop
from tests.benchmarks.keyframes import kilobytes, later, scenes_of
from tests.benchmarks.memory import peak_of_scoring
from tests.benchmarks.selection import select, write_corpus
from tests.benchmarks.shown import costs, found, high_range, interlaced
from tests.benchmarks.vectors import FLOWS, compared, samples, scenes
from tests.support.films import bikes_mp4, demo_mp4

RATE = 25
SIZES = {"360p": (640, 360), "720p": (1280, 720), "1080p": (1920, 1080)}
ROUNDS = 5
SDXL_VAE: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
}
"""Shape of stabilityai/sdxl-vae; with random weights it costs the same."""
TINY = LatentsConfig(model="tiny")


# ----------------------------------------------------------------------------------------------------------------- film


@dataclass
class Films:
    """Real film of any length, made once and kept in a folder."""

    folder: Path
    own: Path | None
    """Stands in for the 360p film."""
    share: float
    """Of every length that is asked for."""

    def get(self, size: str, seconds: float) -> Path:
        """That much film, looped where there is less."""
        seconds = max(15, seconds * self.share)
        source = self.own if size == "360p" and self.own else self.loop(size)
        path = self.folder / f"{source.stem}-{seconds:.0f}s.mp4"
        if not path.exists():
            with _whole(path) as part:
                _copy(source, part, seconds)
        return path

    def loop(self, size: str) -> Path:
        path = self.folder / f"{size}.mp4"
        if not path.exists():
            with _whole(path) as part:
                _encode(part, *SIZES[size])
        return path


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A name to write to; the file gets its own name when it is complete."""
    part = path.with_suffix(".part.mp4")
    yield part
    part.rename(path)


def _encode(path: Path, width: int, height: int) -> None:
    """Two minutes: the samples scaled to the height, with black sides or cropped ones, as sites encode them."""
    bunny = bikes_mp4().with_name("bigbuckbunny.mp4")
    with av.open(path, "w") as out:
        stream = out.add_stream("libx264", rate=RATE, options={"preset": "medium", "crf": "23", "g": "250", "bf": "3"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        number = 0
        for source in (demo_mp4(), *(bikes_mp4(), bunny, bunny) * 3):
            with av.open(source) as film:
                for frame in film.decode(video=0):
                    rgb = frame.to_ndarray(format="rgb24")
                    wide = rgb.shape[1] * height // rgb.shape[0]
                    how = cv2.INTER_AREA if rgb.shape[0] > height else cv2.INTER_CUBIC
                    rgb = np.pad(cv2.resize(rgb, (wide, height), interpolation=how), ((0, 0), (width, width), (0, 0)))
                    left = (rgb.shape[1] - width) // 2
                    image = av.VideoFrame.from_ndarray(cast(Any, rgb[:, left : left + width].copy()), format="rgb24")
                    image.pts, image.time_base = number, Fraction(1, RATE)
                    number += 1
                    out.mux(stream.encode(image))
        out.mux(stream.encode())


def _copy(source: Path, path: Path, seconds: float) -> None:
    """The first seconds of a film's pictures and on to the next key frame; the film again where it ends sooner."""
    offset = 0
    with av.open(path, "w") as out:
        stream = None
        while True:
            with av.open(source) as film:
                pictures = film.streams.video[0]
                stream = stream or out.add_stream_from_template(pictures)
                end = offset
                for packet in film.demux(pictures):
                    if packet.pts is None or packet.dts is None or packet.time_base is None:
                        continue
                    packet.pts, packet.dts = packet.pts + offset, packet.dts + offset
                    if packet.is_keyframe and packet.pts * packet.time_base >= seconds:
                        return
                    end = max(end, packet.pts + (packet.duration or 0))
                    packet.stream = stream
                    out.mux(packet)
            offset = end


# ------------------------------------------------------------------------------------------------------------ measuring


def alternate(works: dict[str, Callable[[], Any]], rounds: int = ROUNDS) -> dict[str, np.ndarray]:
    """CPU-seconds of each work in each round, one after the other in every round."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            started = process_time()
            work()
            taken[name].append(process_time() - started)
    return {name: np.array(seconds) for name, seconds in taken.items()}


def ratio(above: np.ndarray, below: np.ndarray) -> str:
    """Median over the rounds, and their range."""
    ratios = above / below
    return f"{median(ratios):.2f} ({ratios.min():.2f}-{ratios.max():.2f})"


def line(figure: str, measured: str, target: str = "") -> None:
    """One line of the table."""
    print(f"| {figure} | {measured} | {target} |", flush=True)


def spans_of(scenes: Sequence[tuple[int, int]]) -> list[Row]:
    """One span over the whole film, as `cut` takes it; scenes: first frame and the one after the last."""
    rows = [
        {"clip_id": "film.0", "scene_id": f"film.0_{i}", "ordinal": i, "caption": "", "first": first, "end": end}
        for i, (first, end) in enumerate(scenes)
    ]
    return [{"start_s": 0.0, "end_s": None, "scenes": rows}]


def scene_rows(
    path: Path, spans: list[Row] | None, flow: Any = "farneback", frames: FramesConfig | None = None
) -> Iterator[Row]:
    """What the decode pass says of each scene."""
    about = (VideoConfig(), frames or FramesConfig(), ShotsConfig(), MotionConfig(flow=flow))
    return (row for row in cut(str(path), "film", spans, frozenset(), *about) if row and row["scene_id"])


# ---------------------------------------------------------------------------------------------------------------- parts


def against_reference(films: Films) -> None:
    """CPU-seconds a scene of the reference's procedure and of ours, on the same frames and with the same VAE."""
    import torch

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    path = films.get("360p", 120)
    wanted = FramesConfig()
    shots = [row for row in scene_rows(path, None) if wanted.min <= row["no_frames"] <= wanted.max]
    scenes = [(round(row["start_s"] * RATE), round(row["end_s"] * RATE)) for row in shots]
    spans = spans_of(scenes)
    theirs = list(reference.score(path, scenes, wanted.interval_ms, wanted.size))
    exact, scaled = list(scene_rows(path, spans)), list(scene_rows(path, spans, "scaled"))
    counts = [len(frames) for *_, frames in theirs]
    if counts != [row["no_frames"] for row in exact]:
        raise RuntimeError("the reference and the decode pass looked at different frames")
    taken = alternate(
        {
            "theirs": lambda: list(reference.score(path, scenes, wanted.interval_ms, wanted.size)),
            "exact": lambda: list(scene_rows(path, spans)),
            "scaled": lambda: list(scene_rows(path, spans, "scaled")),
        }
    )
    a_scene = {name: seconds / len(scenes) for name, seconds in taken.items()}
    per = f"CPU-s a scene, {len(scenes)} scenes with {sum(counts)} frames in {shots[-1]['end_s']:.0f} s of 360p"
    line(f"reference, no VAE: {per}", f"{median(a_scene['theirs']):.3f}")
    line("ours, exact flow", f"{median(a_scene['exact']):.3f}")
    line("ours, scaled flow", f"{median(a_scene['scaled']):.3f}")
    line("reference / ours, exact flow", ratio(a_scene["theirs"], a_scene["exact"]), "at least 1.8")
    line("reference / ours, scaled flow", ratio(a_scene["theirs"], a_scene["scaled"]), "at least 4.5")
    for name in ("max_velocity", "mean_velocity"):
        both = pd.DataFrame({"exact": [r[name] for r in exact], "scaled": [r[name] for r in scaled]}).rank().corr()
        line(f"rank correlation of scaled with exact {name}", f"{both.loc['exact', 'scaled']:.3f}", "at least .97")

    some = min(6, counts[0])
    vae = alternate(_vae_works(exact[0]["frames"][:some], theirs[0][2][:some]))
    each = {name: seconds / some for name, seconds in vae.items()}
    frames = sum(counts) / len(counts)
    theirs_s, ours_s = (a_scene[name] + frames * each[name] for name in ("theirs", "exact"))
    line("VAE of SDXL's size, one thread: CPU-s a frame, reference", f"{median(each['theirs']):.3f}")
    line("ours, bfloat16 channels last", f"{median(each['exact']):.3f}")
    line(
        f"CPU-s a scene with the VAE, {frames:.1f} frames a scene, reference; ours with exact flow",
        f"{median(theirs_s):.2f}; {median(ours_s):.2f}",
    )
    line("reference / ours with the VAE", ratio(theirs_s, ours_s), "at least 2.3")


def _vae_works(ours: np.ndarray, theirs: Any) -> dict[str, Callable[[], Any]]:
    import torch
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    torch.manual_seed(0)
    slow: Any = AutoencoderKL(**SDXL_VAE).eval().requires_grad_(False)
    quick = deepcopy(slow).bfloat16().to(memory_format=torch.channels_last)

    def by_us() -> None:
        with torch.inference_mode():
            latent_distances(encode(quick, torch.from_numpy(ours)))

    def by_reference() -> None:
        with torch.inference_mode():
            reference.latent_distances(slow, theirs)

    return {"theirs": by_reference, "exact": by_us}


def motion(films: Films) -> None:
    """Flow at 2 frames a second, short side 120, against decoding the film and doing nothing."""
    for size, seconds in (("360p", 300), ("720p", 120)):
        path = films.get(size, seconds)
        count = decode(path)
        spans = spans_of([(first, min(count, first + 10 * RATE)) for first in range(0, count, 10 * RATE)])
        works = {"floor": partial(decode, path), "motion": partial(_flow_alone, path, spans)}
        taken = alternate(works)
        line(f"decode floor, {size}, one thread: frames a CPU-s", f"{count / median(taken['floor']):.0f}")
        line(
            f"motion at 2 fps, short side 120, {count / RATE:.0f} s of {size}, / decode floor",
            ratio(taken["motion"], taken["floor"]),
            "at most 1.5",
        )


def export(films: Films) -> None:
    """A clip in the last minutes of ten, against the same pictures at the start: the key frame before it is sought."""
    path = films.get("360p", 600)
    ends = []
    for one in (path, films.loop("360p")):
        with av.open(one) as film:
            ends.append(float((film.streams.video[0].duration or 0) * (film.streams.video[0].time_base or 0)))
    again = ends[1] * int((ends[0] - 5) / ends[1])
    taken = alternate({"start": partial(_three_seconds, path, 1.0), "end": partial(_three_seconds, path, 1.0 + again)})
    line(f"export of 3 s at {1 + again:.0f} s of 360p: CPU-s", f"{median(taken['end']):.2f}", "at most .5")
    line("the same / export of the same pictures at the start", ratio(taken["end"], taken["start"]))


def _three_seconds(path: Path, start_s: float) -> None:
    """Export three seconds; fails where they cannot be had."""
    with TemporaryDirectory() as folder:
        wanted = [{"scene_id": "clip", "start_s": start_s, "end_s": start_s + 3}]
        for row in write_clips(str(path), wanted, folder, ClipsConfig(), None):
            if row and row["error"]:
                raise RuntimeError(row["message"])


def _flow_alone(path: Path, spans: list[Row]) -> None:
    for _ in scene_rows(path, spans, frames=FramesConfig(interval_ms=500, size=120)):
        pass


def decode(path: Path) -> int:
    """Decode a film in one thread; returns its frames."""
    with av.open(path) as film:
        film.streams.video[0].thread_count = 1
        return sum(1 for _ in film.decode(video=0))


def memory(films: Films) -> None:
    """Peak memory of shots, sampling, differences and exact flow, each film in a fresh process."""
    peaks: list[float] = []
    for size, minutes in (("360p", 1), ("360p", 5), ("360p", 30), ("720p", 5)):
        path = films.get(size, 60 * minutes)
        child = Child()
        peaks += child.stream(peak_of_scoring, str(path), stall_s=3600, timeout_s=3600)
        child.kill()
        what = f"peak memory of shots, sampling and exact flow, {minutes * films.share:g} min of {size}"
        line(what, f"{peaks[-1]:.0f} MB", "at most 300 MB")
    line("growth from the shortest 360p film to the longest", f"{peaks[2] - peaks[0]:.0f} MB", "flat")


def under_ray(films: Films) -> None:
    """Rows a CPU-second of the job's scoring on Ray against the same functions in one plain process."""
    film = films.get("360p", 120)
    # Enough films that both runs start all the workers there will be: starts are no part of the steady state.
    few, many = 4, 12
    runs = {count: _job([film] * count) for count in (few, many)}
    plain = _plain([film] * many)
    rows = {count: count * plain.rows // many for count in runs}
    if [run.rows for run in runs.values()] != list(rows.values()):
        raise RuntimeError("the run and the plain process have different rows")
    steady = (rows[many] - rows[few]) / (runs[many].seconds - runs[few].seconds)
    start = runs[few].seconds - rows[few] / steady
    alone = plain.rows / plain.seconds
    what = f"{many} films of {films.share * 120:.0f} s of 360p, {plain.rows} scenes"
    line(f"one plain process, {what}, tiny VAE: scenes a CPU-s", f"{alone:.2f}; start {plain.start:.0f} CPU-s")
    line("the job on Ray, same films: scenes a CPU-s", f"{steady:.2f}; start {start:.0f} CPU-s")
    line("Ray / plain process, without the start", f"{steady / alone:.2f}", "at least .80")
    whole = (rows[many] / runs[many].seconds) / (plain.rows / (plain.seconds + plain.start))
    line("Ray / plain process, with the start", f"{whole:.2f}")


@dataclass
class Cost:
    """What scoring took."""

    rows: int
    seconds: float
    """CPU-seconds."""
    start: float = 0
    """CPU-seconds before the first film, where they are apart."""


def _plain(paths: Sequence[Path]) -> Cost:
    child = Child()
    [cost] = child.stream(score_plainly, paths, stall_s=3600, timeout_s=3600)
    child.kill()
    return cost


def score_plainly(paths: Sequence[Path]) -> Iterator[Cost]:
    """Cut films and encode their scenes as the job's stages do, one after the other."""
    from actors.curation.features.frame_scorer import FrameScorer

    scorer = FrameScorer(TINY, None, TINY.num_cpus, gpu=False, keep_frames=False)
    start, count = process_time(), 0
    for path in paths:
        rows = scene_rows(path, None)
        while some := list(islice(rows, TINY.batch_size)):
            count += len(some)
            empty = np.zeros((0, 0, 0, 3), np.uint8)
            frames = np.empty(len(some), object)
            frames[:] = [empty if row["frames"] is None else row["frames"] for row in some]
            nothing = np.full(len(some), np.nan, np.float32)
            scorer({"frames": frames, "mse": nothing, "cos_sim": nothing, "latents_s": np.zeros_like(nothing)})
    yield Cost(count, process_time() - start, start)


def _job(paths: Sequence[Path]) -> Cost:
    with TemporaryDirectory(prefix="ray-") as folder:
        source = Path(folder) / "films"
        source.mkdir()
        for number, path in enumerate(paths):
            (source / f"{number}.mp4").symlink_to(path.resolve())
        output = Path(folder) / "output"
        settings = [f"input={source}", f"output={output}", f"latents.model={TINY.model}"]
        seconds = _cpu_of([sys.executable, "-m", "jobs.curation", "score", *settings], Path(folder))
        scores = Store(str(output)).read_table("scores", SCORES)
        return Cost(sum(scene != "" for scene in scores["scene_id"].to_pylist()), seconds)


def _cpu_of(command: Sequence[str], folder: Path) -> float:
    """CPU-seconds of a command and every process that it starts, also those that outlive their parents."""
    environment = os.environ | {"RAY_ADDRESS": "local", "RAY_TMPDIR": str(folder), "RAY_AUTH_MODE": "disabled"}
    log = folder / "log"
    with log.open("w") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
    started, taken = {process.pid: psutil.Process(process.pid).create_time()}, {}
    while process.poll() is None:
        for one in psutil.process_iter(["pid", "ppid", "create_time", "cpu_times"]):
            pid, parent, born = one.info["pid"], one.info["ppid"], one.info["create_time"]
            if started.get(pid) != born and parent in started and born >= started[parent]:
                started[pid] = born
            if started.get(pid) == born and one.info["cpu_times"]:
                taken[pid, born] = one.info["cpu_times"].user + one.info["cpu_times"].system
        sleep(0.2)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{log.read_text()}")
    return sum(taken.values())


def labels(films: Films) -> None:
    """What a filter learns from real film labelled by eye, on videos that it has not seen."""
    with _own_ray() as folder:
        report = loop(folder)
    what = f"{report['scenes']} seconds of film labelled by eye, {report['videos']} videos, {report['folds']} folds"
    for name, m in report["metrics"].items():
        measured = f"{m['value']:.3f} ({m['low']:.3f}-{m['high']:.3f}), always answering 'good' {m['always']:.3f}"
        line(f"{name}, {what}", measured, "interval above 0" if name == "gain" else "")


@contextmanager
def _own_ray() -> Iterator[Path]:
    """A folder, and a Ray of its own for what is run meanwhile."""
    with TemporaryDirectory(prefix="ray-") as folder:
        os.environ |= {"RAY_ADDRESS": "local", "RAY_TMPDIR": folder, "RAY_AUTH_MODE": "disabled"}
        yield Path(folder)


def selection(films: Films) -> None:
    """Time and the driver's memory of `select` over millions of scenes: by rule, and by a filter."""
    scenes = int(2_000_000 * films.share)
    with _own_ray() as folder:
        output = str(folder / "output")
        write_corpus(output, scenes)
        for by in ("rule", "classifier"):
            seconds, peak, _ = select(output, "select.count=10000", f"select.by={by}")
            line(f"select over {scenes:,} scenes by {by}, its report and Ray's start included", f"{seconds:.0f} s")
            line("peak memory of its driver", f"{peak:.0f} MB", "at most 2048 MB")


def bars(films: Films) -> None:
    """What black bars change of each feature, measured inside of them and with them; and what finding them costs."""
    for name, plain, barred in variants(films.folder):
        [without] = _features(plain, FramesConfig())
        for how, crop in (("inside of bars", True), ("with bars", False)):
            [row] = _features(barred, FramesConfig(crop_bars=crop))
            changes = ", ".join(f"{name} {row[name] / without[name] - 1:+.1%}" for name in FEATURES[:-1])
            line(f"{name}, change of features measured {how}", changes, "at most 5 % each" if crop else "")
        for which, path in (("with", barred), ("without", plain)):
            spent = looking(path)
            line(f"{name}, {which} bars: finding them / decode, 1080p", f"{spent[0] / spent[1]:.1%}", "at most 3 %")


def shown(films: Films) -> None:
    """What deinterlacing and tone mapping cost, and how surely fields of two times are found."""
    for name, path in (
        ("deinterlacing", interlaced(films.folder / "interlaced.mp4")),
        ("tone mapping", high_range(films.folder / "high_range.mkv")),
    ):
        sampled, whole = costs(path)
        line(f"{name} of 4 frames a second / decode, 1080 lines", f"{sampled:.0%}")
        line(f"{name} of every frame in full size / decode, 1080 lines", f"{whole:.0%}")
    for name, plain, woven in found():
        line(f"{name}, frames taken as of two times: progressive / woven", f"{plain:.1%} / {woven:.1%}")


def _features(path: Path, frames: FramesConfig) -> Iterator[Row]:
    """The features of a film as one scene."""
    import torch

    vae = load_vae("tiny", torch.float32, "cpu")
    for row in scene_rows(path, spans_of([(0, -1)]), frames=frames):
        mse, cos_sim = latent_distances(encode(vae, torch.from_numpy(row["frames"])))
        yield row | {"mse": float(mse.mean()), "cos_sim": float(cos_sim.mean())}


def keyframes(films: Films) -> None:
    """What key frames cost the decode pass, and what pictures of its scenes cost afterwards, with them and without."""
    for size, seconds in (("360p", 120), ("720p", 60)):
        path = films.get(size, seconds)
        rows = scenes_of(path, 512)
        taken = alternate({"with": partial(scenes_of, path, 512), "without": partial(scenes_of, path, 0)})
        per = f"{len(rows)} scenes in {rows[-1]['end_s']:.0f} s of {size}"
        line(f"decode pass with key frames / without, {per}", ratio(taken["with"], taken["without"]), "at most 1.05")
        line("key frames of a scene", f"{kilobytes(rows):.0f} KB")
        with TemporaryDirectory() as folder:
            costs = alternate(later(path, rows, Path(folder)), 3)
        means = {name: median(seconds) * 1000 / len(rows) for name, seconds in costs.items()}
        line(f"CPU-ms a scene of {size}: frames by opening its film (`recaption`, `evaluate`)", f"{means['films']:.1f}")
        line("the same from keyframes/, decoded", f"{means['keyframes']:.1f}")
        line("a clip for `annotate`", f"{means['clips']:.1f}")


def order(films: Films) -> None:
    """Wall time of a run over short films and a long one that comes last in the input, on two workers."""
    short, long = films.get("360p", 75), films.get("360p", 600)
    seconds: dict[str, list[float]] = {}
    for name, code in [*ORDERS.items()] * 2:
        with TemporaryDirectory(prefix="ray-") as folder:
            source = Path(folder) / "films"
            source.mkdir()
            for number, path in enumerate([short] * 6 + [long]):
                (source / f"{number}.mp4").symlink_to(path.resolve())
            # Small frames, so that decoding is what workers wait for.
            small = ["frames.size=64", "latents.model=tiny", "latents.num_cpus=0.2", "video.num_cpus=0.7"]
            settings = [f"input={source}", f"output={folder}/out", *small]
            program = f"{code}from jobs.curation.__main__ import app; app()"
            _cpu_of([sys.executable, "-c", program, "score", *settings], Path(folder))
            rows = Store(f"{folder}/out").read_table("scores", SCORES).to_pandas()
            ended = rows[rows.scene_id == ""]
            seconds.setdefault(name, []).append(rows.written.max() - (ended.written - ended.cut_s).min())
    what = f"6 films of {75 * films.share:.0f} s and one of {600 * films.share:.0f} s, 360p, two workers"
    told = "; ".join(f"{name} {', '.join(f'{one:.0f}' for one in found)} s" for name, found in seconds.items())
    line(f"{what}: from the start of the first to the last row", told)


def vectors(films: Films) -> None:
    """Flow by the codec's motion vectors against Farneback's, exact and scaled: cost, and ranks of scenes."""
    for what, paths in (("sample films", samples()), ("720p, 60 s", [films.get("720p", 60)])):
        taken = alternate({flow: partial(scenes, paths, flow) for flow in FLOWS})
        for other in ("farneback", "scaled"):
            line(f"decode pass with flow by vectors / {other}, {what}", ratio(taken["vectors"], taken[other]))
        for flow in ("scaled", "vectors"):
            alone = ratio(taken[flow] - taken["none"], taken["farneback"] - taken["none"])
            line(f"flow alone: {flow} / farneback, {what}", alone)
    for flow in ("scaled", "vectors"):
        for name in ("mean_velocity", "max_velocity"):
            count, found, (low, high), times = compared(samples(), name, flow)
            told = f"{found:.2f} ({low:.2f}-{high:.2f}); {times:.2f}"
            line(f"rank correlation of {name}, {flow} with farneback, {count} scenes; median ratio", told)


ORDERS = {
    "in the order of the input": "import pipelines.curation.cutting.plan as plan; plan.seconds_of = lambda *_: 0.0; ",
    "longest first": "",
}
"""Code before a run that gives it an order."""


PARTS: dict[str, Callable[[Films], None]] = {
    "reference": against_reference,
    "motion": motion,
    "export": export,
    "memory": memory,
    "ray": under_ray,
    "labels": labels,
    "selection": selection,
    "bars": bars,
    "keyframes": keyframes,
    "order": order,
    "shown": shown,
    "vectors": vectors,
}


def main() -> None:
    """Measure the parts that are asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.curation", description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="default: all")
    parser.add_argument("--cache", type=Path, help="where films are kept from one run to the next")
    parser.add_argument("--film", type=Path, help="a 360p film of 25 frames a second to use instead of the samples")
    parser.add_argument("--share", type=float, default=1, help="of the lengths of film, to try it out")
    asked = parser.parse_args()
    packages = ("av", "opencv-python-headless", "numpy", "torch", "diffusers", "ray")
    print(f"{platform.machine()}, {_cores()} cores, Python {platform.python_version()},")
    print(", ".join(f"{name} {version(name)}" for name in packages) + "\n")
    started = perf_counter()
    with TemporaryDirectory() as folder:
        cache = asked.cache or Path(folder)
        cache.mkdir(parents=True, exist_ok=True)
        films = Films(cache, asked.film, asked.share)
        print("| figure | measured | target |\n|---|---|---|")
        for name in asked.parts or PARTS:
            PARTS[name](films)
    print(f"\n{(perf_counter() - started) / 60:.0f} minutes")


def _cores() -> int:
    return len(os.sched_getaffinity(0))


if __name__ == "__main__":
    main()

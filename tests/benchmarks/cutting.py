"""What cutting a film costs above decoding it, and by several processes above one: `python -m tests.benchmarks.cutting`

Times are CPU-seconds. Those of several processes, divided by their number, are the time that each has to work.
"""

import argparse
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

from actors.curation.cutting.cut import CutConfig, cut
from actors.curation.cutting.parts import cut_in_parts
from actors.curation.cutting.scenes import FramesConfig, Windows
from actors.curation.features.motion import MotionConfig
from actors.media.film import VideoConfig, open_film
from actors.media.shot_detection.in_shots import in_shots
from actors.media.shot_detection.shots import ShotsConfig
from tests.benchmarks.curation import Films, alternate, decode, line, ratio


def config(processes: int = 1) -> CutConfig:
    """The default settings with scaled flow."""
    motion = MotionConfig(flow="scaled")
    return CutConfig(VideoConfig(), FramesConfig(), ShotsConfig(), motion, Windows(60, 0, 4), processes=processes)


def rows(path: Path) -> int:
    """How many scenes one process finds, and measures."""
    settings = config()
    about = settings.video, settings.frames, settings.shots, settings.motion, settings.windows
    return sum(1 for row in cut(str(path), "film", None, frozenset(), *about) if row) - 1


def shots(path: Path) -> None:
    """Find shots and nothing else."""
    for _ in in_shots(open_film(str(path)), ShotsConfig()):
        pass


def by_several(path: Path, processes: int) -> tuple[int, float, float]:
    """Scenes, CPU-seconds of all processes, and seconds."""
    started, count = perf_counter(), -1
    found = cut_in_parts(str(path), "film", config(processes), frozenset())
    while True:
        try:
            next(found)
            count += 1
        except StopIteration as end:
            return count, end.value, perf_counter() - started


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.cutting", description=__doc__)
    parser.add_argument("--cache", type=Path, help="where films are kept from one run to the next")
    parser.add_argument("--minutes", type=float, default=120, help="length of the film that several processes cut")
    asked = parser.parse_args()
    with TemporaryDirectory() as folder:
        films = Films(asked.cache or Path(folder), None, 1)
        films.folder.mkdir(parents=True, exist_ok=True)
        print("| figure | measured | target |\n|---|---|---|")
        for size in ("360p", "1080p"):
            path = films.get(size, 60)
            works = {"floor": partial(decode, path), "shots": partial(shots, path), "all": partial(rows, path)}
            taken = alternate(works)
            line(f"decoding {size}: frames a CPU-s", f"{decode(path) / median(taken['floor']):.0f}")
            line(f"{size}, finding shots / decoding", ratio(taken["shots"], taken["floor"]))
            target = "at most 1.25" if size == "1080p" else ""
            line(f"{size}, scenes with scaled flow / decoding", ratio(taken["all"], taken["floor"]), target)
        path = films.get("360p", 60 * asked.minutes)
        started = perf_counter()
        alone = alternate({"one": partial(rows, path)}, 1)["one"]
        alone_s = perf_counter() - started
        for processes in (2, 4, 16):
            count, cpu_s, seconds = by_several(path, processes)
            name = f"{asked.minutes:g} min of 360p, {count} scenes, by {processes} processes / by one: CPU-seconds"
            line(name, f"{cpu_s / alone[0]:.2f}", "at most 1.2")
            if processes == 2:
                line("the same: seconds", f"{seconds / alone_s:.2f}", "at most .6")


if __name__ == "__main__":
    main()

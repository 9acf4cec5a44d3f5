"""What tasks of several short clips save: `python -m tests.benchmarks.short [CLIPS]`

Clips of real films, 3 to 5 s of 360p, are measured, each in a task of its own and several in one, as by default, one
run after the other, twice. Seconds are those of a run's stages, without the start of Ray.
"""

import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.benchmarks.estimate import piece, sources

DIFFERENT = 60
"""Clips that are made; the others are copies."""


def main() -> None:
    """Print seconds of both, and their ratio."""
    if sys.argv[1:2] == ["--run"]:
        run(*sys.argv[2:])
        return
    count, films = int(sys.argv[1]) if len(sys.argv) > 1 else 300, sources()
    with TemporaryDirectory() as folder:
        clips = Path(folder, "clips")
        clips.mkdir()
        for number in range(count):
            path, first = clips / f"{number}.mp4", clips / f"{number % DIFFERENT}.mp4"
            if number < DIFFERENT:
                seconds = 3 + number % 5 / 2
                piece(films[number % len(films)], path, (640, 360), seconds, "libx264", number / DIFFERENT)
            else:
                shutil.copy(first, path)
        for turn in range(2):
            took = {how: measure(folder, how, turn) for how in ("apart", "together")}
            sys.stdout.write(f"apart ÷ together: {took['apart'] / took['together']:.2f}\n")


def measure(folder: str, how: str, turn: int) -> float:
    """Seconds of a run in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.short", "--run", folder, how, f"{how}{turn}"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    videos, seconds = map(float, told.splitlines()[-1].split())
    sys.stdout.write(f"{how}: {videos:.0f} clips measured in {seconds:.1f} s\n")
    return seconds


def run(folder: str, how: str, output: str) -> None:
    """Measure clips; prints how many, and the seconds."""
    import ray

    from jobs.core.settings import load
    from pipelines.curation.cutting import score
    from pipelines.curation.cutting.plan import make_plan
    from pipelines.curation.settings import CurationConfig

    if how == "apart":
        score.VIDEOS = 1
    config = load(CurationConfig, [f"input={folder}/clips", f"output={folder}/{output}", "latents.model=tiny"])
    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    measured = score.score(config, make_plan(config), partial(make_plan, config))
    sys.stdout.write(f"\n{measured.films} {measured.seconds}\n")


if __name__ == "__main__":
    main()

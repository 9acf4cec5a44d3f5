"""Memory of a worker, in GiB: of families of scores, and of the encoder of latents, on real film.

    python -m tests.benchmarks.workers [NAME ...]

Each runs in a process of its own that has imported what a worker of Ray imports, on the scenes of three sample films.
Told are the resident memory before a model is loaded, and its peak.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from actors.core.stage import Stage
from tests.benchmarks.loaded import LOADED

FAMILIES = ("camera", "faces", "quality", "sound", "text", "watermark")


def memory_gb(field: str) -> float:
    """VmRSS or VmHWM of this process."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) / 2**20


def family(name: str, folder: str) -> Stage:
    """Measure the scenes of an output by a family."""
    from actors.core.store import Store
    from actors.curation.cutting.scenes import FramesConfig
    from actors.curation.measuring.family import scorer_class
    from actors.curation.measuring.scoring import PartScorer
    from pipelines.curation.cutting.frames import bare
    from pipelines.curation.measuring.measure import tasks_of
    from pipelines.curation.measuring.whole_videos import pictures_of
    from pipelines.curation.settings import CurationConfig

    config = CurationConfig(folder, f"{folder}/out", scores=[name])
    (task,), store = tasks_of(config), Store(config.output)
    reads = scorer_class(name).reads
    items = [{"part": part} for part in store.parts("scores")]
    items = list(pictures_of(store, items)) if reads == "video" else items
    scorer = PartScorer(store, task, bare(config, keyframes=FramesConfig().keyframes * (reads == "keyframes")), {})
    scorer({key: np.array([item[key] for item in items], object) for key in items[0]})
    return task.config


def tell(name: str, folder: Path) -> None:
    """Work as a worker does, and print its memory."""
    import ray.data  # noqa: F401

    before = memory_gb("VmRSS")
    if name in LOADED:
        stage, call = LOADED[name].load(folder)
        loaded = memory_gb("VmHWM")
        call()
    else:
        loaded = before
        stage = family(name, str(folder))
    weights = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    found = before, loaded, memory_gb("VmHWM"), weights / 2**30, stage.worker_gb
    sys.stdout.write(f"| {name} | {' | '.join(f'{value:.2f}' for value in found)} |\n")


def main() -> None:
    """Print a row for each name."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", nargs="*", default=[*FAMILIES, *LOADED])
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--save", action="store_true")
    asked = parser.parse_args()
    if asked.folder:
        (name,) = asked.name
        if asked.save:
            LOADED[name].save(asked.folder)
        else:
            tell(name, asked.folder)
        return
    from tests.benchmarks.scores import corpus

    sys.stdout.write("| worker | started | loading | peak | weights | reserved |\n|---|---|---|---|---|---|\n")
    for name in asked.name:
        with TemporaryDirectory() as folder:
            if name not in LOADED:
                corpus(Path(folder))
            # Weights are made by a process whose memory does not count.
            for more in (["--save"], []) if name in LOADED else ([],):
                command = [sys.executable, "-m", "tests.benchmarks.workers", name, "--folder", folder, *more]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                sys.stdout.write(done.stdout or done.stderr[-300:])
                sys.stdout.flush()


if __name__ == "__main__":
    main()

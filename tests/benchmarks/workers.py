"""Memory of a worker, in GiB: of families of scores, and of the encoder of latents, on real film.

    python -m tests.benchmarks.workers [NAME ...]

Each runs in a process of its own that has imported what a worker of Ray imports, on the scenes of three sample films.
Told are the resident memory before a model is loaded, and its peak.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

NAMES = ("camera", "faces", "quality", "sound", "text", "watermark", "latents tiny", "latents sdxl")


def memory_gb(field: str) -> float:
    """VmRSS or VmHWM of this process."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) / 2**20


def family(name: str, folder: str) -> None:
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


def latents(model: str, folder: str) -> None:
    """Encode a batch of scenes of 8 s; sdxl: an encoder of that shape with random weights."""
    from actors.curation.features.frame_scorer import FrameScorer
    from actors.curation.features.latents import LatentsConfig

    if model == "sdxl":
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

        blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
        shape = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4}
        model = f"{folder}/sdxl"
        if not Path(model).exists():
            AutoencoderKL(**blocks, **shape).save_pretrained(model)
            return
    config = LatentsConfig(model=model)
    frames = np.empty(config.batch_size, object)
    frames[:] = [np.random.default_rng(0).integers(0, 255, (32, 240, 240, 3), np.uint8)] * config.batch_size
    nothing = np.full(config.batch_size, np.nan, np.float32)
    batch = {"frames": frames, "mse": nothing, "cos_sim": nothing, "latents_s": nothing}
    FrameScorer(config, None, 1.0, False, False)(batch)


def tell(name: str, folder: str) -> None:
    """Work as a worker does, and print its memory."""
    import ray.data  # noqa: F401

    kind, _, model = name.partition(" ")
    work: Callable[[], None] = (lambda: latents(model, folder)) if model else (lambda: family(kind, folder))
    before = memory_gb("VmRSS")
    work()
    sys.stdout.write(f"| {name} | {before:.2f} | {memory_gb('VmHWM'):.2f} |\n")


def main() -> None:
    """Print a row for each name."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", nargs="*", default=NAMES)
    parser.add_argument("--folder")
    asked = parser.parse_args()
    if asked.folder:
        tell(" ".join(asked.name), asked.folder)
        return
    from tests.benchmarks.scores import corpus

    with TemporaryDirectory() as folder:
        corpus(Path(folder))
        for name in asked.name:
            command = [sys.executable, "-m", "tests.benchmarks.workers", "--folder", folder, *name.split()]
            # Weights are made by a process whose memory does not count.
            done = [
                subprocess.run(command, capture_output=True, text=True, check=False)
                for _ in range(1 + ("sdxl" in name))
            ]
            sys.stdout.write(done[-1].stdout or done[-1].stderr[-300:])
            sys.stdout.flush()


if __name__ == "__main__":
    main()

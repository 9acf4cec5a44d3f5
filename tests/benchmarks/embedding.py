"""Embedding of key frames, and training on what is stored of it: `python -m tests.benchmarks.embedding [MODEL]`.

FRAMES stills of real film as JPEG files of 1280 x 720 and 640 x 272, a CLIP model (by default ViT-B-32 with random
weights, which cost the same), one thread of one process, CPU-seconds, the ways alternating. The reference's loop opens
an image with Pillow, applies the model's own transform and embeds it by itself in float32; ours is what the workers of
`embed` do, in bfloat16, decoding of files included. Training is an epoch of an LSTM over films of FILM frames: from
stored vectors, or with the model run on every frame in every epoch, as fast as `embed` runs it.
"""

import platform
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional

from actors.core.stage import Batch
from actors.genres.head_settings import HeadConfig
from actors.genres.heads import make_head
from actors.media.film import open_film
from actors.media.images import read_images
from actors.models.clip import Clip, EmbeddingsConfig, ImageEmbedder, input_shape, load_clip
from jobs.samples import copy_films
from pipelines.core.epochs import train_epoch
from pipelines.core.training_rows import Share
from tests.benchmarks.curation import alternate, line, ratio

FRAMES, FILM, GENRES = 64, 16, 21
"""Stills in all, stills of a film, and how many genres a head tells."""


def stills(folder: Path) -> list[str]:
    """Every few frames of two films, as JPEG files."""
    paths = []
    films = [path for path in copy_films(folder) if path.name in ("bigbuckbunny.mp4", "bikes.mp4")]
    for source in films:
        film = open_film(str(source))
        for number, picture in enumerate(film.pictures):
            if number % 3 == 0 and number // 3 < FRAMES // 2:
                path = folder / f"{source.stem}_{number}.jpg"
                Image.fromarray(picture.scaled(film.width, film.height)).save(path, quality=90)
                paths.append(str(path))
    return paths


def one_at_a_time(clip: Clip, paths: list[str]) -> np.ndarray:
    """Vectors (N, D) by the reference's loop."""
    found = []
    with torch.inference_mode():
        for path in paths:
            pixels = clip.transform(Image.open(path).convert("RGB"))[None]
            found.append(clip.model.encode_image(pixels, normalize=True)[0].numpy())
    return np.stack(found)


def main() -> None:
    """Print the table."""
    import open_clip

    name = sys.argv[1] if len(sys.argv) > 1 else "ViT-B-32"
    print(f"{platform.machine()}, one thread, Python {platform.python_version()},")
    print(", ".join(f"{package} {version(package)}" for package in ("torch", "open_clip_torch")) + "\n")
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        torch.manual_seed(0)
        weights = Path(folder) / "weights.safetensors"
        save_file(open_clip.create_model(name).state_dict(), weights)
        config = EmbeddingsConfig(model=name, pretrained=str(weights))
        plain, embedder = load_clip(replace(config, dtype="float32")), ImageEmbedder(config)
        paths, shape = stills(Path(folder)), input_shape(config)
        none = np.full(len(paths), "")
        files: Batch = {"uri": np.array(paths), "error": none, "message": none}

        def ours() -> np.ndarray:
            return embedder(read_images(files, shape))["vector"].astype(np.float32)

        vectors = ours()
        alike = float((vectors * one_at_a_time(plain, paths)).sum(1).min())
        stored = {
            "frames": torch.from_numpy(vectors).reshape(-1, FILM, vectors.shape[1]),
            "genres": (torch.rand(len(paths) // FILM, GENRES) < 0.2).float(),
        }
        head = make_head(HeadConfig("lstm"), vectors.shape[1], GENRES)
        optimizer = torch.optim.AdamW(head.parameters(), 1e-3)

        def loss(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            seen = torch.ones(batch["frames"].shape[:2], dtype=torch.bool)
            return functional.binary_cross_entropy_with_logits(model(batch["frames"], seen), batch["genres"])

        def epoch() -> None:
            train_epoch(head, optimizer, [Share(stored, len(stored["genres"]), True)], loss)

        works: dict[str, Callable[[], Any]] = {
            "reference": lambda: one_at_a_time(plain, paths),
            "ours": ours,
            "decoding": lambda: read_images(files, shape),
            "stored": epoch,
            "each epoch": lambda: (ours(), epoch()),
        }
        taken = alternate(works)
    print("| figure | measured | target |\n|---|---|---|")
    for what, told in (("reference", "the reference's loop"), ("ours", "ours"), ("decoding", "of it, decoding")):
        line(f"{name}, {told}: CPU-ms an image", f"{1000 * np.median(taken[what]) / len(paths):.1f}")
    line("the reference's loop / ours", ratio(taken["reference"], taken["ours"]), "at least 3")
    line("an epoch with the model / from stored vectors", ratio(taken["each epoch"], taken["stored"]), "at least 20")
    line("cosine of the vectors of both ways, at least", f"{alike:.4f}")


if __name__ == "__main__":
    main()

"""Real features that are not part of the project; tests that use them are skipped where they are absent."""

import os
from pathlib import Path

import pytest

from pipelines.core.film_vectors import Films, read_films

FOLDER = Path(os.environ.get("FILMRAY_DATA") or Path(__file__).parents[3] / "shared" / "data")


def real_films() -> Films:
    """CLIP embeddings of key frames of 879 films of MovieNet, with genres and directors."""
    path = FOLDER / "movienet_clip_879_films.npz"
    if not path.is_file():
        pytest.skip(f"no {path}: set FILMRAY_DATA to the folder that holds it")
    return read_films(str(path))


def movienet() -> Path:
    """Annotations, shots and the split of MovieNet, as they are downloaded."""
    path = FOLDER / "movienet"
    if not path.is_dir():
        pytest.skip(f"no {path}: set FILMRAY_DATA to the folder that holds it")
    return path

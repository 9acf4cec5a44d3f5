"""Faces of 20 people of the ORL set, answered from one or five pictures of each, beside dlib's own nearest neighbour.

python -m tests.benchmarks.recognition
"""

import itertools
from collections.abc import Iterator
from time import process_time
from typing import Any, get_args

import numpy as np
from PIL import Image

from actors.models.faces import Detector
from actors.movie_characters.faces import FaceEmbedder, FacesConfig
from pipelines.core.metrics import bootstrap
from pipelines.movie_characters.gallery_methods import nearest
from tests.support.data import FOLDER

DRAWS = 100
"""Draws of the pictures of the gallery."""
SEED = 0


def embedded(detector: Detector) -> tuple[np.ndarray, np.ndarray, float]:
    """Vectors float32 (N, 128), NaN where no face was found, the person of each, and CPU-seconds a picture."""
    files = sorted(FOLDER.glob("faces/orl/s*/*.pgm"))
    embedder, before = FaceEmbedder(FacesConfig(detector=detector)), process_time()
    uris = list(map(str, converted(files)))
    blank = np.array([""] * len(uris))
    found = embedder({"uri": np.array(uris), "error": blank, "message": blank})
    people = np.array([file.parent.name for file in files])
    return found["vector"].astype(np.float32), people, (process_time() - before) / len(files)


def converted(files: list[Any]) -> Iterator[Any]:
    """The pictures as PNG, which `identify-faces` reads."""
    import tempfile
    from pathlib import Path

    folder = Path(tempfile.mkdtemp())
    for number, file in enumerate(files):
        Image.open(file).save(folder / f"{number}.png")
        yield folder / f"{number}.png"


def plain(images: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """The nearest of a gallery by Euclidean distance, as dlib's examples do."""
    return ((images[:, None] - gallery[None]) ** 2).sum(-1).argmin(1)


def right(vectors: np.ndarray, people: np.ndarray, shots: int, ours: bool) -> tuple[float, float, float]:
    """Share of right answers, a picture without a face being wrong, and its 95 % interval over people."""
    random = np.random.default_rng(SEED)
    names = np.unique(people)
    hits, asked = np.zeros(len(names)), np.zeros(len(names))
    sound = np.isfinite(vectors).all(1)
    for _ in range(DRAWS):
        shown = np.zeros(len(people), bool)
        for name in names:
            shown[random.choice(np.flatnonzero(people == name), shots, replace=False)] = True
        gallery = np.flatnonzero(shown & sound)
        images = np.flatnonzero(~shown & sound)
        if ours:
            found = nearest(vectors[images], vectors[gallery], 1)[0][:, 0]
        else:
            found = plain(vectors[images], vectors[gallery])
        good = people[images] == people[gallery[found]]
        for number, name in enumerate(names):
            hits[number] += good[people[images] == name].sum()
            asked[number] += (~shown & (people == name)).sum()
    share = hits / asked
    low, high = bootstrap(lambda weights: (weights @ share / weights.sum(1))[:, None], len(share), 2000)
    return float(share.mean()), float(low[0]), float(high[0])


def main() -> None:
    for detector in get_args(Detector):
        vectors, people, spent = embedded(detector)
        lost = int(np.isnan(vectors).any(1).sum())
        print(f"{detector}: {len(vectors)} pictures, {lost} without a face, {spent:.3f} CPU-s a picture")
        for (what, ours), shots in itertools.product((("identify-faces", True), ("plain dlib", False)), (1, 5)):
            share, low, high = right(vectors, people, shots, ours)
            print(f"  {what}, {shots} of each: {share:.1%} [{low:.1%}, {high:.1%}]")
        sound = np.isfinite(vectors).all(1)
        pairs = np.triu_indices(int(sound.sum()), 1)
        cosines = (vectors[sound] @ vectors[sound].T)[pairs]
        same = people[sound][pairs[0]] == people[sound][pairs[1]]
        for least in (0.91, 0.92, 0.924, 0.93):
            passed, refused = (cosines[~same] >= least).mean(), (cosines[same] < least).mean()
            print(f"  pairs at {least}: {passed:.2%} of strangers pass, {refused:.1%} of one person are refused")
        print(f"  greatest cosine of two people {cosines[~same].max():.3f}")


if __name__ == "__main__":
    main()

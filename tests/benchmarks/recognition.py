"""Faces of 20 people of the ORL set, answered from a few pictures of each: `python -m tests.benchmarks.recognition`.

Beside it dlib alone, as its examples are: its detector on pictures of twice the size, five landmarks, the Euclidean
distance of its vectors. The pictures are in FILMRAY_DATA.
"""

import importlib.util
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from time import process_time
from typing import Any, get_args

import dlib
import numpy as np
from PIL import Image

from actors.models.faces import Detector
from actors.movie_characters.recognition.faces import FaceEmbedder, FacesConfig
from pipelines.core.metrics import bootstrap
from pipelines.movie_characters.gallery_methods import nearest
from tests.support.data import FOLDER

DRAWS = 100
"""Draws of the pictures of the gallery."""
SEED = 0


def embedded(detector: Detector, files: list[Path]) -> tuple[np.ndarray, float]:
    """Our vectors float32 (N, 128), NaN where no face was found, and CPU-seconds a picture."""
    embedder = FaceEmbedder(FacesConfig(detector=detector))
    with TemporaryDirectory() as folder:
        for number, file in enumerate(files):
            Image.open(file).save(f"{folder}/{number}.png")
        blank, before = np.array([""] * len(files)), process_time()
        uris = np.array([f"{folder}/{number}.png" for number in range(len(files))])
        found = embedder({"uri": uris, "error": blank, "message": blank})
    return found["vector"].astype(np.float32), (process_time() - before) / len(files)


def by_dlib(files: list[Path]) -> tuple[np.ndarray, float]:
    """The same by dlib alone, of the largest face."""
    library: Any = dlib
    spec = importlib.util.find_spec("face_recognition_models")
    assert spec is not None and spec.origin
    folder = Path(spec.origin).parent / "models"
    detect = library.get_frontal_face_detector()
    landmarks = library.shape_predictor(str(folder / "shape_predictor_5_face_landmarks.dat"))
    network = library.face_recognition_model_v1(str(folder / "dlib_face_recognition_resnet_model_v1.dat"))
    vectors, before = np.full((len(files), 128), np.nan, np.float32), process_time()
    for number, file in enumerate(files):
        image = np.asarray(Image.open(file).convert("RGB"))
        if boxes := detect(image, 1):
            largest = max(boxes, key=lambda box: box.area())
            vectors[number] = network.compute_face_descriptor(image, landmarks(image, largest))
    return vectors, (process_time() - before) / len(files)


def closest(images: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """The nearest of a gallery by Euclidean distance."""
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
            found = closest(vectors[images], vectors[gallery])
        good = people[images] == people[gallery[found]]
        for number, name in enumerate(names):
            hits[number] += good[people[images] == name].sum()
            asked[number] += (~shown & (people == name)).sum()
    share = hits / asked
    low, high = bootstrap(lambda weights: (weights @ share / weights.sum(1))[:, None], len(share), 2000)
    return float(share.mean()), float(low[0]), float(high[0])


def main() -> None:
    """Print the figures."""
    files = sorted(FOLDER.glob("faces/orl/s*/*.pgm"))
    if not files:
        sys.exit("There are no pictures faces/orl/s*/*.pgm in FILMRAY_DATA")
    people = np.array([file.parent.name for file in files])
    for name in (*get_args(Detector), "dlib alone"):
        vectors, spent = by_dlib(files) if name == "dlib alone" else embedded(name, files)
        sound = np.isfinite(vectors).all(1)
        print(f"{name}: {len(files)} pictures, {(~sound).sum()} without a face, {spent:.3f} CPU-s a picture")
        for shots in (1, 5):
            share, low, high = right(vectors, people, shots, name != "dlib alone")
            print(f"  {shots} of each: {share:.1%} [{low:.1%}, {high:.1%}]")
        if name == "dlib alone":
            continue
        pairs = np.triu_indices(int(sound.sum()), 1)
        cosines = (vectors[sound] @ vectors[sound].T)[pairs]
        same = people[sound][pairs[0]] == people[sound][pairs[1]]
        for least in (0.91, 0.92, 0.924, 0.93):
            passed, refused = (cosines[~same] >= least).mean(), (cosines[same] < least).mean()
            print(f"  pairs at {least}: {passed:.2%} of strangers pass, {refused:.1%} of one person are refused")
        print(f"  greatest cosine of two people {cosines[~same].max():.3f}")


if __name__ == "__main__":
    main()

"""How many faces the two detectors find in key frames of real film and in photographs, and at what cost.

python -m tests.benchmarks.faces
"""

from collections.abc import Iterator
from time import process_time
from typing import get_args

import numpy as np
from PIL import Image
from skimage import data

from actors.models.faces import Detector, load_detector
from tests.benchmarks.text import frames
from tests.support.data import FOLDER
from tests.support.films import bikes_mp4

SMALLEST = 40
"""Size of the smallest faces, in pixels, as `movie_characters` searches them by default."""


def pictures() -> Iterator[tuple[str, list[np.ndarray]]]:
    yield "astronaut, one face", [data.astronaut()]
    yield "a cup and a cat, no face", [data.coffee(), data.chelsea()]
    half = [second / 2 for second in range(20)]
    yield "carphone, one face in each", list(frames(bikes_mp4().with_name("carphone_pristine.mp4"), half[:8]))
    yield "bikes, one face and two heads of cyclists", list(frames(bikes_mp4(), half))
    folder = FOLDER / "faces"
    if folder.is_dir():
        orl = sorted(folder.glob("orl/*/1.pgm"))
        yield "ORL, one face in each", [np.asarray(Image.open(file).convert("RGB")) for file in orl]
        clip = list(frames(folder / "short_hamilton_clip.mp4", half))
        yield "short_hamilton_clip, a singer and an audience in the dark", clip


def main() -> None:
    for name in get_args(Detector):
        find = load_detector(name, SMALLEST, 1)
        for what, shown in pictures():
            before = process_time()
            found = sum(len(find(np.ascontiguousarray(picture))) for picture in shown)
            spent = (process_time() - before) / len(shown)
            print(f"{name}: {what}: {found} found in {len(shown)} pictures, {spent:.3f} CPU-s a picture")


if __name__ == "__main__":
    main()

"""Real film with and without black bars, and what finding them costs."""

from collections.abc import Iterator
from pathlib import Path
from time import process_time

import av
import cv2
import numpy as np

from actors.media.film import open_film
from tests.support.films import bikes_mp4, written

SHAPES = {
    "letterbox 2.39:1 in 16:9": ((1920, 804), (1920, 1080)),
    "pillarbox 4:3 in 16:9": ((1440, 1080), (1920, 1080)),
    "both": ((1440, 810), (1920, 1080)),
}
"""Width and height inside of the bars, and of the film with them."""


def variants(folder: Path) -> Iterator[tuple[str, Path, Path]]:
    """The same film without and with bars, of each of SHAPES."""
    for number, (name, (inside, outside)) in enumerate(SHAPES.items()):
        paths = folder / f"plain{number}.mp4", folder / f"barred{number}.mp4"
        for path, size in zip(paths, (inside, outside), strict=True):
            if not path.exists():
                written(path, _pictures(inside, size), 25)
        yield name, *paths


def _pictures(inside: tuple[int, int], outside: tuple[int, int]) -> Iterator[np.ndarray]:
    bunny = bikes_mp4().with_name("bigbuckbunny.mp4")
    with av.open(bunny) as film:
        for frame in film.decode(video=0):
            image = frame.to_ndarray(format="rgb24")
            scale = max(inside[0] / image.shape[1], inside[1] / image.shape[0])
            image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
            y, x = (image.shape[0] - inside[1]) // 2, (image.shape[1] - inside[0]) // 2
            image = image[y : y + inside[1], x : x + inside[0]]
            y, x = (outside[1] - inside[1]) // 2, (outside[0] - inside[0]) // 2
            yield np.pad(image, ((y, y), (x, x), (0, 0)))


def looking(path: Path) -> tuple[float, float]:
    """CPU-seconds of finding bars in 4 frames a second, and of decoding the film."""
    spent = [0.0, 0.0]
    pictures = iter(open_film(str(path)).pictures)
    due, at = 0.0, process_time()
    for picture in pictures:
        spent[1] += process_time() - at
        at = process_time()
        if picture.time >= due:
            due += 0.25
            picture.lines()
            spent[0] += process_time() - at
            at = process_time()
    return spent[0], spent[1]

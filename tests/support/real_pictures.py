"""Real pictures from packages: photographs and frames of films."""

from functools import cache
from importlib import resources

import av
import cv2
import numpy as np

from tests.support.films import bikes_mp4

PHOTOS = (
    *(("sklearn.datasets.images", name) for name in ("china.jpg", "flower.jpg")),
    *(("skimage.data", name) for name in ("astronaut.png", "coffee.png", "rocket.jpg", "chelsea.png")),
)


@cache
def photos() -> tuple[np.ndarray, ...]:
    """Six photographs of 300 to 640 lines: uint8 (H, W, 3) RGB."""
    read = (np.frombuffer((resources.files(where) / name).read_bytes(), np.uint8) for where, name in PHOTOS)
    return tuple(np.asarray(cv2.imdecode(one, cv2.IMREAD_COLOR))[..., ::-1] for one in read)


@cache
def film_frames() -> tuple[np.ndarray, ...]:
    """A frame of each shot of bikes.mp4, 640×272, and two of bigbuckbunny.mp4, 1280×720: uint8 (H, W, 3) RGB."""
    wanted = ((bikes_mp4(), (15, 50, 100, 160, 210, 245)), (bikes_mp4().with_name("bigbuckbunny.mp4"), (20, 110)))
    found = []
    for path, numbers in wanted:
        with av.open(path) as film:
            found += [frame.to_ndarray(format="rgb24") for i, frame in enumerate(film.decode(video=0)) if i in numbers]
    return tuple(found)


def sized(image: np.ndarray, side: int) -> np.ndarray:
    """An image scaled to that short side."""
    scale = side / min(image.shape[:2])
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return cv2.resize(image, (round(image.shape[1] * scale), round(image.shape[0] * scale)), interpolation=way)


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    """An image as it comes out of JPEG."""
    file = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return np.asarray(cv2.imdecode(file, cv2.IMREAD_COLOR))[..., ::-1]

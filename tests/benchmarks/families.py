"""Families of scores: how often marks are found that were drawn on real film, and what each family costs.

python -m tests.benchmarks.families watermark [--films 40]
python -m tests.benchmarks.families cost
"""

from collections.abc import Iterator
from pathlib import Path
from time import process_time
from typing import Any

import av
import cv2
import numpy as np
import typer

from actors.curation.families.camera import Camera, CameraConfig
from actors.curation.families.quality import Quality, QualityConfig
from actors.curation.families.sound import Sound, SoundConfig
from actors.curation.families.watermark import Watermark, WatermarkConfig
from actors.curation.measuring.family import Placed
from actors.media.sound_spans import sound_of
from tests.support.data import FOLDER
from tests.support.films import bikes_mp4, demo_mp4
from tests.support.real_pictures import jpeg, photos, sized

app = typer.Typer()
SIZE = 640, 360
"""Width and height of the films that marks are drawn on."""
OPACITY = (1.0, 0.5, 0.3)
HEIGHTS = (0.05, 0.08, 0.15)
"""Of marks, in short sides of the frame."""
CORNERS = ("top_left", "top_right", "bottom_left", "bottom_right")


def real_films() -> dict[str, list[np.ndarray]]:
    """A frame from each 1.5 s of all real film that is there: uint8 (H, W, 3) RGB."""
    paths = [demo_mp4(), bikes_mp4(), bikes_mp4().with_name("bigbuckbunny.mp4")]
    paths += [FOLDER / "big_buck_bunny_60s.mp4", FOLDER / "faces/short_hamilton_clip.mp4"]
    found = {}
    for path in filter(Path.is_file, paths):
        with av.open(path) as film:
            step = round(float(film.streams.video[0].average_rate or 25) * 1.5)
            decoded = enumerate(film.decode(video=0))
            found[path.name] = [one.to_ndarray(format="rgb24") for i, one in decoded if not i % step]
    return found


def shots() -> list[np.ndarray]:
    """Frames of all real film that is there, and photographs: uint8 (H, W, 3) RGB."""
    return [*photos(), *(image for images in real_films().values() for image in images)]


def film_of(pool: list[np.ndarray], random: np.random.Generator, scenes: int) -> list[np.ndarray]:
    """Pictures of so many scenes: random parts of real frames, some mirrored, uint8 (360, 640, 3)."""
    found = []
    for i in random.choice(len(pool), scenes, replace=scenes > len(pool)):
        image = sized(pool[i], round(SIZE[1] * random.uniform(1, 1.5)))
        image = (
            image
            if image.shape[1] >= SIZE[0]
            else cv2.resize(image, (SIZE[0], round(image.shape[0] * SIZE[0] / image.shape[1])))
        )
        y, x = (random.integers(0, extra + 1) for extra in (image.shape[0] - SIZE[1], image.shape[1] - SIZE[0]))
        image = image[y : y + SIZE[1], x : x + SIZE[0]]
        found.append(np.ascontiguousarray(image[:, ::-1] if random.random() < 0.5 else image))
    return found


def logo(height: int, kind: int) -> np.ndarray:
    """A mark's opacity, float32 (H, W), 0 to 1: a name, a ring with a bar, or a sign of strokes."""
    if kind == 0:
        face, thick = cv2.FONT_HERSHEY_DUPLEX, max(1, height // 10)
        (width, _), base = cv2.getTextSize("STOCK tv", face, height / 30, thick)
        drawn = np.zeros((height + base, width + 4), np.uint8)
        cv2.putText(drawn, "STOCK tv", (2, height - 2), face, height / 30, 255, thick, cv2.LINE_AA)
    elif kind == 1:
        drawn = np.zeros((height, height), np.uint8)
        cv2.circle(drawn, (height // 2, height // 2), height * 2 // 5, 255, max(2, height // 8), cv2.LINE_AA)
        cv2.rectangle(drawn, (height // 3, height * 4 // 9), (height * 2 // 3, height * 5 // 9), 255, -1)
    else:
        drawn = np.zeros((height, 2 * height), np.uint8)
        cv2.fillPoly(drawn, [np.array([[2, height - 2], [height, 2], [2 * height - 2, height - 2]])], 255, cv2.LINE_AA)
        cv2.putText(drawn, "7", (height * 3 // 4, height - 4), cv2.FONT_HERSHEY_DUPLEX, height / 40, 0, 2, cv2.LINE_AA)
    return drawn.astype(np.float32) / 255


def drawn_on(image: np.ndarray, mark: np.ndarray, opacity: float, corner: str, grey: int = 255) -> np.ndarray:
    """An image with a mark near a corner."""
    away = round(0.05 * image.shape[0])
    y = away if corner.startswith("top") else image.shape[0] - away - mark.shape[0]
    x = away if corner.endswith("left") else image.shape[1] - away - mark.shape[1]
    part = np.s_[y : y + mark.shape[0], x : x + mark.shape[1]]
    image = image.copy()
    share = opacity * mark[..., None]
    image[part] = np.rint((1 - share) * image[part] + share * grey)
    return image


def found_in(images: list[np.ndarray], box: tuple[float, float, float, float] = (0, 0, 1, 1)) -> dict[str, Any]:
    """What the family says of a film of these pictures."""
    pictures = [Placed(jpeg(image, 85), box) for image in images]
    height, width = images[0].shape[:2] if images and box == (0, 0, 1, 1) else SIZE[::-1]
    batch: dict[str, Any] = {"video_id": ["v"], "pictures": [pictures], "width": [width], "height": [height]}
    return {name: values[0] for name, values in Watermark(WatermarkConfig())(batch).items()}


@app.command()
def watermark(films: int = 40, scenes: str = "6,8,16,40") -> None:
    """Recall and false rate over films of random parts of real frames."""
    pool, random = shots(), np.random.default_rng(0)
    for name, images in real_films().items():
        print(f"{name}, {len(images)} frames as they are: {found_in(images)}")
    print(f"{len(pool)} frames of real film and photographs")
    for count in map(int, scenes.split(",")):
        plain = [film_of(pool, random, count) for _ in range(films)]
        false = np.mean([bool(found_in(images)["watermark"]) for images in plain])
        line = f"{count:3} scenes: false {false:.3f}"
        for opacity in OPACITY:
            hits, places = [], []
            for number, images in enumerate(plain):
                mark = logo(round(HEIGHTS[number % 3] * SIZE[1]), number // 3 % 3)
                corner = CORNERS[number // 9 % 4]
                found = found_in([drawn_on(image, mark, opacity, corner) for image in images])
                hits.append(bool(found["watermark"]))
                places.append(found["watermark_place"] == corner)
            line += f"  opacity {opacity}: recall {np.mean(hits):.3f}, in its place {np.mean(places):.3f}"
        print(line, flush=True)


def _cost(name: str, scorer: Any, batch: dict[str, Any], scenes: int) -> None:
    scorer(batch)
    started = process_time()
    for _ in range(3):
        scorer(batch)
    print(f"{name}: {(process_time() - started) / 3 / scenes * 1000:.1f} CPU-ms")


@app.command()
def cost() -> None:
    """CPU-ms of each family on real film."""
    pool = [sized(image, 512) for image in shots()[:30]]
    scenes = [np.stack([image] * 3) for image in pool]
    batch: dict[str, Any] = {"frames": scenes, "width": [1920] * len(scenes), "height": [1080] * len(scenes)}
    _cost("quality, a scene of three key frames of 512 lines", Quality(QualityConfig()), batch, len(scenes))
    frames = np.stack(list(_sampled(bikes_mp4())))
    _cost(
        "camera, a pair of frames", Camera(CameraConfig()), {"frames": [frames], "interval_s": [0.25]}, len(frames) - 1
    )
    sound = next(one for one in sound_of(str(demo_mp4()), [(0.0, 20.0)]) if one is not None)
    _cost("sound, a second", Sound(SoundConfig()), {"sound": [sound], "sample_rate": [48_000]}, 20)
    pictures = [Placed(image, (0, 0, 1, 1)) for image in film_of(shots(), np.random.default_rng(0), 64)]
    batch = {"video_id": ["v"], "pictures": [pictures], "width": [SIZE[0]], "height": [SIZE[1]]}
    _cost("watermark, a film of 64 pictures", Watermark(WatermarkConfig()), batch, 1)


def _sampled(path: Path) -> Iterator[np.ndarray]:
    with av.open(path) as film:
        for i, frame in enumerate(film.decode(video=0)):
            if not i % 6:
                image = sized(frame.to_ndarray(format="rgb24"), 240)
                left = (image.shape[1] - 240) // 2
                yield image[:, left : left + 240]


if __name__ == "__main__":
    app()

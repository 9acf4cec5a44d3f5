"""How surely words in pictures are found, and at what cost: frames of real film, as they are and with words drawn.

python -m tests.benchmarks.text [SIDE ...]
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import process_time
from typing import Any

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from sklearn.metrics import roc_auc_score

from actors.curation.families.text import TextConfig, TextScorer
from tests.support.data import FOLDER
from tests.support.films import bikes_mp4, demo_mp4

KEY_FRAME = 512
"""Short side of a key frame, in pixels, as `frames.keyframes` has it."""
WORDS = ["chapter", "one", "the", "last", "train", "home", "directed", "by", "anna", "berg", "paris", "1942"]
WORDS += ["breaking", "news", "at", "ten", "subscribe", "now", "channel", "four", "meanwhile", "in", "another", "city"]


def films() -> Iterator[tuple[Path, Sequence[float]]]:
    """Real films, and seconds at which none has words; looked through by eye."""
    yield demo_mp4(), (6, 7, 8, 9, 10, 16, 17, 18, 20, 21, 30, 31)
    yield bikes_mp4(), tuple(np.arange(0, 10, 0.5))
    yield bikes_mp4().with_name("bigbuckbunny.mp4"), range(6)
    yield bikes_mp4().with_name("carphone_pristine.mp4"), range(3)
    if (FOLDER / "big_buck_bunny_60s.mp4").is_file():
        yield FOLDER / "big_buck_bunny_60s.mp4", range(30, 60, 3)


def frames(path: Path, seconds: Sequence[float]) -> Iterator[np.ndarray]:
    left = list(seconds)
    with av.open(str(path)) as film:
        for frame in film.decode(video=0):
            if left and frame.time >= left[0]:
                left.pop(0)
                picture = frame.to_image()
                scale = min(1, KEY_FRAME / min(picture.size))
                yield np.asarray(picture.resize((round(picture.width * scale), round(picture.height * scale))))


def with_words(frame: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, str, float]:
    """A frame with one to three words drawn anywhere, the words, and the share of the frame that they fill."""
    height, width = frame.shape[:2]
    picture = Image.fromarray(frame)
    draw = ImageDraw.Draw(picture)
    while True:
        text = " ".join(random.choice(WORDS, random.integers(1, 4)))
        text = text.upper() if random.random() < 0.5 else text
        how: Any = {
            "text": text,
            "font": ImageFont.load_default(max(10, height * random.uniform(0.045, 0.12))),
            "stroke_width": 1,
        }
        left, top, right, bottom = draw.textbbox((0, 0), **how)
        if right - left < width and bottom - top < height:
            break
    x, y = random.uniform(-left, width - right), random.uniform(-top, height - bottom)
    draw.text((x, y), **how, fill="white", stroke_fill="black")
    return np.asarray(picture), text, (right - left) * (bottom - top) / width / height


def main(sides: Sequence[int]) -> None:
    random = np.random.default_rng(0)
    plain = [frame for path, seconds in films() for frame in frames(path, seconds)]
    drawn = [with_words(frame, random) for frame in plain]
    for side in sides:
        scorer = TextScorer(TextConfig(side=side))
        scenes = np.empty(2 * len(plain), object)
        scenes[:] = [picture[None] for picture in [*plain, *(one[0] for one in drawn)]]
        scorer({"frames": scenes[-1:]})
        before = process_time()
        found = scorer({"frames": scenes})
        spent = process_time() - before
        area = np.array(found["text_area"])
        without, having = np.split(area, 2)
        letters = ["".join(text.lower().split()) for text in found["text"][len(plain) :]]
        read = np.mean([text == "".join(one[1].lower().split()) for text, one in zip(letters, drawn, strict=True)])
        ratio = np.median([one / other[2] for one, other in zip(having, drawn, strict=True) if one])
        print(
            f"side {side}: {len(plain)} frames without and with words; area-AUC "
            f"{roc_auc_score(np.repeat([0, 1], len(plain)), area):.3f}; without words {np.mean(without > 0):.1%} have "
            f"some; with words {np.mean(having == 0):.1%} have none; {read:.0%} read letter by letter; boxes / "
            f"letters' box {ratio:.2f}; {spent / len(scenes):.3f} CPU-s a picture"
        )


if __name__ == "__main__":
    main([int(side) for side in sys.argv[1:]] or [TextConfig().side])

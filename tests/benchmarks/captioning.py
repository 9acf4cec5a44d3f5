"""Captions by a model in a worker, batched and one at a time: `python -m tests.benchmarks.captioning [BATCH]`.

SCENES scenes of one to three pictures of 910 x 512, a LLaVA of one small layer with random weights, float32, one
thread of one process, CPU-seconds, the ways alternating. Few tokens end its texts, which are as long as captions.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from actors.curation.captioning.recaptioners import styled
from actors.curation.captioning.styles import fill, prompt_of
from actors.models.vlm.asking import Question
from actors.models.vlm.local import LocalVlm
from tests.benchmarks.curation import alternate, line, ratio
from tests.support.tiny_models import captioning_model

SCENES = 64
ENDS = [2, 4, 5, 6]
"""Of the 64 tokens of the model."""


def questions() -> list[Question]:
    """Scenes that differ in their pictures, in how many there are, and in their captions."""
    random, prompt = np.random.default_rng(0), prompt_of("improved")
    made = []
    for number in range(SCENES):
        frames = random.integers(0, 256, (1 + number % 3, 512, 910, 3), np.uint8)
        caption = " ".join(f"w{word}" for word in random.integers(0, 60, 3 + number % 20))
        made.append(styled(frames, fill(prompt, caption), "improved", prompt))
    return made


def main() -> None:
    """Print the table."""
    batch = int(sys.argv[1]) if len(sys.argv) > 1 else 8
    torch.set_num_threads(1)
    asked = questions()
    with TemporaryDirectory() as folder:
        captioner = LocalVlm(captioning_model(Path(folder), [f"w{word}" for word in range(60)]), gpu=False)
        captioner._ends = ENDS
        found = {}

        def by(size: int) -> None:
            replies = (captioner.replies(asked[at : at + size], 0) for at in range(0, SCENES, size))
            found[size] = [reply for some in replies for reply in some]

        seconds = alternate({"one": lambda: by(1), "batched": lambda: by(batch)})
        assert found[1] == found[batch]
    tokens = sum(reply.tokens_out for reply in found[1])
    print("| figure | measured | target |\n|---|---|---|")
    line(f"captions of {SCENES} scenes, one at a time ÷ {batch} at once", ratio(*seconds.values()), "≥ 2")
    line("CPU-ms a scene, one at a time and at once", "{:.1f}, {:.1f}".format(*means(seconds)))
    line("tokens a scene, of the same texts both ways", f"{tokens / SCENES:.0f}")


def means(seconds: dict[str, np.ndarray]) -> list[float]:
    """CPU-milliseconds a scene."""
    return [1000 * float(np.median(taken)) / SCENES for taken in seconds.values()]


if __name__ == "__main__":
    main()

"""What tests of captions ask."""

import numpy as np

from actors.curation.captioning.recaptioners import styled
from actors.curation.captioning.styles import StyleName, fill, prompt_of
from actors.models.vlm.asking import Question

GOOD = "a woman in a red coat walks along the river at dusk"


def frames(count: int = 3) -> np.ndarray:
    """Frames of one colour each: 0, 30, 60, ... of red."""
    made = np.zeros((count, 32, 48, 3), np.uint8)
    made[..., 0] = 30 * np.arange(count)[:, None, None]
    return made


def question(caption: str = "a man", style: StyleName = "improved", count: int = 3) -> Question:
    """What is asked of a scene with so many pictures."""
    prompt = prompt_of(style)
    return styled(frames(count), fill(prompt, caption, "film", 2.5), style, prompt)

"""Folders of images of characters, each in a colour of its own, for the CLIP model that knows colours."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image


def write(folder: Path, colours: Mapping[str, tuple[int, int, int]], size: int = 40) -> str:
    """One PNG a name, in its colour. Returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, colour in colours.items():
        Image.fromarray(np.full((size, size, 3), colour, np.uint8)).save(folder / f"{name}.png")
    return str(folder)

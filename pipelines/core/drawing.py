"""Text on pictures."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
from PIL import ImageFont


def letters(size: int) -> Any:
    """Letters of so many pixels, in the one font that is there on every machine."""
    return ImageFont.truetype(str(Path(mpl.get_data_path(), "fonts/ttf/DejaVuSans.ttf")), size)

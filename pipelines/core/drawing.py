"""Text on pictures."""

from pathlib import Path
from typing import Any

from PIL import ImageFont


def letters(size: int) -> Any:
    """Letters of so many pixels, in the one font that is there on every machine."""
    import matplotlib as mpl

    return ImageFont.truetype(str(Path(mpl.get_data_path(), "fonts/ttf/DejaVuSans.ttf")), size)

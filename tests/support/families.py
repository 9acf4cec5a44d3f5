"""Families of scores as a user writes them."""

import time
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from actors.core.stage import Batch, Stage


class Brightness:
    reads = "keyframes"
    columns: ClassVar = {"brightness": pa.float32(), "pictures": pa.int32()}

    def __call__(self, batch: Batch) -> dict[str, Any]:
        return {
            "brightness": [frames.mean() / 255 for frames in batch["frames"]],
            "pictures": [len(frames) for frames in batch["frames"]],
        }


@dataclass(frozen=True)
class ChangeConfig(Stage):
    """Settings of `Change`."""

    scale: float = 1.0
    """What changes are multiplied by."""
    workers: int = 0
    """Workers at once."""


class Change:
    """How much the sampled frames change, in grey levels a second; fails where the caption says so."""

    reads = "frames"
    columns: ClassVar = {"change": pa.float32(), "word": pa.string(), "mean_colour": pa.list_(pa.float16(), 3)}
    settings = ChangeConfig

    def __init__(self, config: ChangeConfig) -> None:
        self._scale = config.scale

    def __call__(self, batch: Batch) -> dict[str, Any]:
        steps = [np.abs(np.diff(frames.astype(int), axis=0)).mean() for frames in batch["frames"]]
        bad = ["bad" in caption for caption in batch["caption"]]
        return {
            "change": self._scale * np.array(steps) / batch["interval_s"],
            "word": ["" if "none" in caption else caption.partition(" ")[0] for caption in batch["caption"]],
            "mean_colour": np.array([frames[0].mean((0, 1)) / 255 for frames in batch["frames"]]),
            "error": np.where(bad, "odd", ""),
            "message": np.where(bad, "the caption says so", ""),
        }


class Slow(Brightness):
    columns: ClassVar = {"slow": pa.float32()}

    def __call__(self, batch: Batch) -> dict[str, Any]:
        time.sleep(0.5)
        return {"slow": super().__call__(batch)["brightness"]}


class Words:
    """How many words captions have; measured again where they change."""

    reads = "keyframes"
    columns: ClassVar = {"words": pa.int32(), "new_words": pa.int32()}
    texts = True

    def __call__(self, batch: Batch) -> dict[str, Any]:
        said = [len(caption.split()) for caption in batch["recaption"]]
        return {
            "words": [len(caption.split()) for caption in batch["caption"]],
            "new_words": [count or None for count in said],
        }


class Video:
    """How many pictures stand for the video of a scene, and what they show."""

    reads = "video"
    columns: ClassVar = {"seen": pa.int32(), "wide": pa.float32()}

    def __call__(self, batch: Batch) -> dict[str, Any]:
        return {
            "seen": [len(pictures) for pictures in batch["pictures"]],
            "wide": [max(one.box[2] - one.box[0] for one in pictures) for pictures in batch["pictures"]],
        }

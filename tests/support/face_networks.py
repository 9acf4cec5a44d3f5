"""Tiny networks with the inputs and outputs of known detectors and embedders of faces, whose answers are known.

A face is a bright square of 16 pixels on a black picture, at a multiple of 8 pixels. Detectors see it at the cell of
stride 8 in its middle, and give its box and five points around that.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

FACE = 16
"""Side of a face in pixels."""
POINTS = np.array([(-4, -4), (4, -4), (0, 0), (-3, 4), (3, 4)], float)
"""Points of a face, x and y in pixels from its middle."""


def drawn(*places: tuple[int, int], height: int = 96, width: int = 128) -> np.ndarray:
    """A picture uint8 (height, width, 3) with faces whose left and top lie at multiples of 8 pixels."""
    picture = np.zeros((height, width, 3), np.uint8)
    for x, y in places:
        picture[y : y + FACE, x : x + FACE] = 255
    return picture


def _bright(pixels: torch.Tensor, stride: int, low: float, high: float) -> torch.Tensor:
    """1 where all of 16 x 16 pixels around the corner of a cell of stride 8 are bright, else 0; 0 of other strides."""
    light = (pixels.mean(1, keepdim=True) - low) / (high - low)
    if stride != 8:
        return 0 * F.avg_pool2d(light, stride)
    return F.relu(50 * F.avg_pool2d(F.pad(light, (8, 0, 8, 0)), FACE, 8) - 49)


class Scrfd(nn.Module):
    """Scores, distances and points of strides 8, 16 and 32, with two anchors a cell."""

    def __init__(self, points: bool = True) -> None:
        super().__init__()
        self.with_points = points

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        scores, boxes, points = [], [], []
        moves = torch.from_numpy(POINTS.ravel()).float()
        for stride in (8, 16, 32):
            bright = 0.9 * _bright(pixels, stride, -127.5 / 128, 127.5 / 128)
            # The second anchor of a cell is less sure.
            both = torch.stack([bright, 0.8 * bright], 4).reshape(-1, 1)
            scores.append(both)
            boxes.append(0 * both + torch.full((1, 4), FACE / 2 / stride))
            points.append(0 * both + moves / stride)
        return (*scores, *boxes, *(points if self.with_points else ()))


class YuNet(nn.Module):
    """The twelve outputs of YuNet."""

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        moves = torch.from_numpy(POINTS.ravel()).float()
        classes, objects, boxes, points = [], [], [], []
        for stride in (8, 16, 32):
            flat = _bright(pixels, stride, 0, 255).reshape(1, -1, 1)
            classes.append(0.81 * flat)
            objects.append(flat)
            # Shift of the middle from the cell's corner, and logarithm of the size, in strides.
            size = float(np.log(FACE / stride))
            boxes.append(0 * flat + torch.tensor([0, 0, size, size]))
            points.append(0 * flat + moves / stride)
        return (*classes, *objects, *boxes, *points)


YUNET = tuple(f"{name}_{stride}" for name in ("cls", "obj", "bbox", "kps") for stride in (8, 16, 32))


class YoloFace(nn.Module):
    """(N, 20, cells), as YOLOv8-face: box, score, and points with their visibility; or (N, 5, cells) without points."""

    def __init__(self, points: bool = True) -> None:
        super().__init__()
        self.with_points = points

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        bright = _bright(pixels, 8, 0, 1)[:, 0]
        columns = 8.0 * torch.arange(bright.shape[2]).expand_as(bright)
        rows = 8.0 * torch.arange(bright.shape[1])[:, None].expand_as(bright)
        side = torch.full_like(bright, float(FACE))
        parts = [columns, rows, side, side, 0.7 * bright]
        for x, y in POINTS.tolist() if self.with_points else ():
            parts += [columns + x, rows + y, torch.ones_like(bright)]
        return torch.stack(parts, 1).flatten(2)


class Colours(nn.Module):
    """An embedder: the mean colour of the picture, of its upper and of its lower half, as it is normalised."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        half = pixels.shape[2] // 2
        return torch.cat([part.mean((2, 3)) for part in (pixels, pixels[:, :, :half], pixels[:, :, half:])], 1)


def save(
    network: nn.Module,
    path: Path,
    shape: tuple[int, ...],
    outputs: tuple[str, ...] = ("output",),
    free: tuple[int, ...] = (0,),
) -> Path:
    """Write it as TorchScript, or as ONNX where the name ends in .onnx; free: dimensions of its input of any size."""
    example = torch.zeros(1, *shape)
    if path.suffix != ".onnx":
        jit: Any = torch.jit
        jit.trace(network, example).save(str(path))
        return path
    axes: Any = {"input": {dimension: f"dim{dimension}" for dimension in free}}
    axes |= {name: {0: f"rows_{name}"} for name in outputs if free}
    torch.onnx.export(
        network, (example,), str(path), input_names=["input"], output_names=[*outputs], dynamic_axes=axes, dynamo=False
    )
    return path

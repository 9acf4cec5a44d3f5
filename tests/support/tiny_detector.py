"""A small detector of faces and bodies, trained on drawn pages: a heat map of centres for each (Zhou et al. 2019)."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from actors.models.detection import letterbox, network_input
from tests.support.drawn import Cast, identities
from tests.support.pages import HEIGHT, WIDTH, Page, draw_page

STRIDE = 4
CLASSES = ("face", "body")


class TinyDetector(nn.Module):
    """float (N, 3, S, S) to (N, 6, 2 * (S / 4) ** 2), as YOLOv8 has it: box, score of face, score of body."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()

        def block(before: int, after: int, stride: int, dilation: int = 1) -> nn.Module:
            wide = nn.Conv2d(before, after, 3, stride, dilation, dilation, bias=False)
            return nn.Sequential(wide, nn.BatchNorm2d(after), nn.ReLU())

        self.body = nn.Sequential(
            block(3, width // 2, 2),
            block(width // 2, width, 2),
            *(block(width, width, 1, dilation) for dilation in (1, 2, 4, 8, 2, 1)),
        )
        self.heat, self.box = nn.Conv2d(width, 2, 1), nn.Conv2d(width, 8, 1)
        # Most places are no centre.
        self.heat.bias = nn.Parameter(torch.full((2,), -4.0))

    def maps(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of centres (N, 2, h, w), and of each class shift and log of the size in cells (N, 8, h, w)."""
        features = self.body(pixels - 0.5)
        return self.heat(features), self.box(features)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        heat, box = self.maps(pixels)
        scores = heat.sigmoid()
        # Only the peaks: what is beside a centre is no other one.
        scores = scores * (scores == F.max_pool2d(scores, 3, 1, 1)).float()
        rows = torch.arange(heat.shape[2], device=heat.device).view(1, 1, -1, 1)
        columns = torch.arange(heat.shape[3], device=heat.device).view(1, 1, 1, -1)
        shifts = torch.stack(
            [box[:, 0::4] + columns + 0.5, box[:, 1::4] + rows + 0.5, box[:, 2::4].exp(), box[:, 3::4].exp()], 1
        )
        none = torch.zeros_like(scores[:, :1])
        both = torch.cat([torch.cat([scores[:, :1], none], 1), torch.cat([none, scores[:, 1:]], 1)], 2)
        return torch.cat([(4 * shifts).flatten(2), both.flatten(2)], 1)


def targets(page: Page, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Heat map float32 (2, h, w), boxes (8, h, w), and where they are bool (2, h, w), of a page in `letterbox`."""
    cells = size // STRIDE
    heat, boxes = np.zeros((2, cells, cells), np.float32), np.zeros((8, cells, cells), np.float32)
    there = np.zeros((2, cells, cells), bool)
    scale = min(size / HEIGHT, size / WIDTH)
    bars = np.array([size - WIDTH * scale, size - HEIGHT * scale]) // 2
    y, x = np.mgrid[:cells, :cells]
    for _, _, *parts in page.people:
        for number, box in enumerate(parts):
            corners = (np.asarray(box).reshape(2, 2) * scale + bars) / STRIDE
            middle, sides = corners.mean(0), np.maximum(corners[1] - corners[0], 0.5)
            column, row = np.clip(middle.astype(int), 0, cells - 1)
            spread = max(0.6, float(sides.min()) / 8)
            bump = np.exp(-((x - column) ** 2 + (y - row) ** 2) / (2 * spread**2))
            heat[number] = np.maximum(heat[number], bump)
            for down in range(max(0, row - 1), min(cells, row + 2)):
                for right in range(max(0, column - 1), min(cells, column + 2)):
                    there[number, down, right] = True
                    shift = middle - (right + 0.5, down + 0.5)
                    boxes[4 * number : 4 * number + 4, down, right] = [*shift, *np.log(sides)]
    return heat, boxes, there


def train(cast: Cast, steps: int, size: int = 384, seed: int = 0, batch: int = 6, pages: int = 200) -> TinyDetector:
    """Train on so many drawn pages of identities that are dealt by the seed."""
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    everybody = identities(cast, 40, seed)
    drawn = [draw_page(cast, everybody, random) for _ in range(pages)]
    squares = np.stack([letterbox(page.pixels, (size, size)) for page in drawn])
    truths = [targets(page, size) for page in drawn]
    network = TinyDetector()
    optimiser = torch.optim.AdamW(network.parameters(), 4e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, steps)
    for _ in range(steps):
        chosen = random.integers(pages, size=batch)
        pixels = torch.from_numpy(network_input(squares[chosen], normalise=False))
        heat, boxes, there = (torch.from_numpy(np.stack([truths[i][part] for i in chosen])) for part in range(3))
        logits, found = network.maps(pixels)
        loss = (
            _focal(logits, heat)
            + 0.5 * (F.l1_loss(found, boxes, reduction="none") * _fourfold(there)).sum() / there.sum()
        )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return network.eval()


def _fourfold(there: torch.Tensor) -> torch.Tensor:
    return there.repeat_interleave(4, 1).float()


def _focal(logits: torch.Tensor, heat: torch.Tensor) -> torch.Tensor:
    """The focal loss of CenterNet."""
    chance, is_peak = logits.sigmoid().clamp(1e-4, 1 - 1e-4), (heat == 1).float()
    right = is_peak * (1 - chance) ** 2 * chance.log()
    wrong = (1 - is_peak) * (1 - heat) ** 4 * chance**2 * (1 - chance).log()
    return -(right + wrong).sum() / is_peak.sum().clamp(min=1)


def save(network: nn.Module, path: Path, size: int) -> None:
    """Write it as TorchScript, or as ONNX where the name ends in .onnx."""
    example: Any = torch.zeros(1, 3, size, size)
    if path.suffix == ".onnx":
        axes: Any = {"images": {0: "batch"}, "output0": {0: "batch"}}
        torch.onnx.export(
            network,
            (example,),
            str(path),
            input_names=["images"],
            output_names=["output0"],
            dynamic_axes=axes,
            dynamo=False,
        )
    else:
        jit: Any = torch.jit
        jit.trace(network, example).save(str(path))

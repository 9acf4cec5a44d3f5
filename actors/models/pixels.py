"""Pictures as a model takes them: its steps for single images, done on many at once, and on the device."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def fitted(pixels: "torch.Tensor", steps: Sequence[Any]) -> "torch.Tensor":
    """Pictures uint8 (N, 3, H, W) in the size of the model, by the steps of open_clip or timm that resize and crop."""
    from torchvision.transforms import Resize
    from torchvision.transforms.v2.functional import resize

    for step in steps:
        if type(step).__name__ == "ResizeKeepRatio":
            # It asks a PIL image for its width and height.
            image: Any = SimpleNamespace(size=(pixels.shape[3], pixels.shape[2]))
            pixels = resize(pixels, step.get_params(image, step.size, step.longest), step.interpolation)
        elif isinstance(step, Resize):
            # Torchvision's older one, which they use, is no match for PIL on tensors.
            pixels = resize(pixels, [step.size] if isinstance(step.size, int) else list(step.size), step.interpolation)
        else:
            pixels = step(pixels)
    return pixels

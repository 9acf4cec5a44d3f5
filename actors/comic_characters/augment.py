"""Random views of pictures for contrastive learning, computed for a whole batch at once.

torchvision's transforms change all pictures of a batch alike, or each in a step of its own. These have one parameter
per picture, so that a GPU does not wait.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, conv2d, grid_sample, pad

from actors.comic_characters.augment_settings import ViewsConfig

GREY = (0.2989, 0.587, 0.114)
"""Weights of red, green and blue in brightness, as in torchvision."""
Uniform = Callable[..., Tensor]
"""(low, high, *shape) to random numbers (N, *shape)."""
KERNEL = 9
"""Side of the blur's kernel in pixels."""


def views(pictures: Tensor, config: ViewsConfig, generator: torch.Generator | None = None) -> Tensor:
    """One view of each picture uint8 (N, S, S, 3): float32 (N, 3, S, S) in -1..1."""
    count, device = len(pictures), pictures.device

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=generator, device=device) * (high - low) + low

    def chosen(share: float) -> Tensor:
        return uniform(0, 1) < share

    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        pixels = pictures.permute(0, 3, 1, 2).float().div(255)
        pixels = resized_crop(pixels, _windows(uniform, config.min_scale), chosen(config.flip))
        changed = chosen(config.jitter)
        factors = {
            name: torch.where(changed, uniform(max(0, 1 - strength), 1 + strength), 1.0)
            for name, strength in (
                ("brightness", config.brightness),
                ("contrast", config.contrast),
                ("saturation", config.saturation),
            )
        }
        factors["hue"] = torch.where(changed, uniform(-config.hue, config.hue), 0.0)
        order = torch.randperm(len(factors), generator=generator, device=device).tolist()
        for step in order:
            name = list(factors)[step]
            pixels = ADJUST[name](pixels, factors[name])
        if config.light:
            gains = torch.where(changed[:, None], uniform(1 - config.light, 1 + config.light, 3), 1.0)
            pixels = adjust_light(pixels, gains)
        grey = torch.where(chosen(config.grey), 0.0, 1.0)
        pixels = blur(adjust_saturation(pixels, grey), uniform(0.1, config.max_sigma))
        view = pixels.mul(2).sub(1)
        if config.mask:
            hidden = rectangles(uniform, pixels.shape[-1]) & chosen(config.mask)[:, None, None]
            view = view.masked_fill(hidden[:, None], 0)
    return view.contiguous(memory_format=torch.channels_last)


def _windows(uniform: Uniform, min_scale: float) -> Tensor:
    """Windows (N, 4) of left, top, width, height as shares of the picture, drawn as by torchvision's RandomResizedCrop.

    The first of ten draws that fits is used; where none fits, the whole picture.
    """
    area, ratio = uniform(min_scale, 1, 10), uniform(math.log(3 / 4), math.log(4 / 3), 10).exp()
    width, height = (area * ratio).sqrt(), (area / ratio).sqrt()
    fits = (width <= 1) & (height <= 1)
    first = fits.int().argmax(1, keepdim=True)
    size = torch.stack([width.gather(1, first), height.gather(1, first)], -1)[:, 0]
    size = torch.where(fits.any(1, keepdim=True), size, 1.0)
    return torch.cat([uniform(0, 1, 2) * (1 - size), size], 1)


def resized_crop(pixels: Tensor, windows: Tensor, flipped: Tensor) -> Tensor:
    """The windows of `_windows` at the size of the picture, bilinear; mirrored where `flipped`, bool (N,)."""
    left, top, width, height = windows.unbind(1)
    zero = torch.zeros_like(left)
    # From -1..1 over the view to -1..1 over the picture.
    right = torch.stack([torch.where(flipped, -width, width), zero, 2 * left + width - 1], 1)
    down = torch.stack([zero, height, 2 * top + height - 1], 1)
    grid = affine_grid(torch.stack([right, down], 1), list(pixels.shape), align_corners=False)
    return grid_sample(pixels, grid, "bilinear", "border", align_corners=False)


def adjust_brightness(pixels: Tensor, factors: Tensor) -> Tensor:
    """Pixels (N, 3, H, W) in 0..1 times factors (N,)."""
    return (pixels * factors[:, None, None, None]).clamp(0, 1)


def adjust_light(pixels: Tensor, gains: Tensor) -> Tensor:
    """Pixels (N, 3, H, W) in 0..1 in a light whose red, green and blue are gains (N, 3)."""
    return (pixels * gains[:, :, None, None]).clamp(0, 1)


def adjust_contrast(pixels: Tensor, factors: Tensor) -> Tensor:
    """Away from the mean brightness of each picture by a factor, 1 for none."""
    return _blend(pixels, _grey(pixels).mean((1, 2, 3), keepdim=True), factors)


def adjust_saturation(pixels: Tensor, factors: Tensor) -> Tensor:
    """Away from grey by a factor; 0 leaves no colour."""
    return _blend(pixels, _grey(pixels), factors)


def adjust_hue(pixels: Tensor, factors: Tensor) -> Tensor:
    """Turn the colour wheel by so many turns, through hue, saturation and value."""
    high, low = pixels.amax(1), pixels.amin(1)
    spread = high - low
    red, green, blue = pixels.unbind(1)
    safe = torch.where(spread > 0, spread, 1.0)
    hue = torch.where(
        high == red,
        (green - blue) / safe,
        torch.where(high == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    hue = hue + 6 * factors[:, None, None]
    # Wikipedia, "HSL and HSV", HSV to RGB alternative.
    channels = [
        high - spread * torch.minimum(k, 4 - k).clamp(0, 1) for k in ((hue + shift).remainder(6) for shift in (5, 3, 1))
    ]
    return torch.stack(channels, 1)


def _grey(pixels: Tensor) -> Tensor:
    return torch.einsum("nchw,c->nhw", pixels, pixels.new_tensor(GREY))[:, None]


def _blend(pixels: Tensor, other: Tensor, factors: Tensor) -> Tensor:
    share = factors[:, None, None, None]
    return (share * pixels + (1 - share) * other).clamp(0, 1)


def blur(pixels: Tensor, sigmas: Tensor) -> Tensor:
    """Gaussian blur of KERNEL pixels with a sigma for each picture, (N,)."""
    places = torch.arange(KERNEL, device=pixels.device) - KERNEL // 2
    weights = (-0.5 * (places / sigmas[:, None]).square()).softmax(1)
    count, channels, height, width = pixels.shape
    planes = pad(pixels, [KERNEL // 2] * 4, "reflect").flatten(0, 1)[None]
    across = weights.repeat_interleave(channels, 0)[:, None, None]
    planes = conv2d(planes, across, groups=count * channels)
    planes = conv2d(planes, across.transpose(2, 3), groups=count * channels)
    return planes.reshape(count, channels, height, width)


def rectangles(uniform: Uniform, size: int) -> Tensor:
    """A rectangle of each picture, bool (N, size, size): 2 to 33 % of its area, sides at most 1 : 3.3."""
    area, ratio = uniform(0.02, 0.33), uniform(math.log(0.3), math.log(3.3)).exp()
    places = (torch.arange(size, device=area.device) + 0.5) / size

    def within(length: Tensor, start: Tensor) -> Tensor:
        length = length.clamp(max=1)
        first = start * (1 - length)
        return (places >= first[:, None]) & (places < (first + length)[:, None])

    across = within((area * ratio).sqrt(), uniform(0, 1))
    down = within((area / ratio).sqrt(), uniform(0, 1))
    return down[:, :, None] & across[:, None, :]


ADJUST = {
    "brightness": adjust_brightness,
    "contrast": adjust_contrast,
    "saturation": adjust_saturation,
    "hue": adjust_hue,
}

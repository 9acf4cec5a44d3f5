"""Style features of a picture, without a model: shape, letterbox bars, light, colours, sharpness."""

import cv2
import numpy as np

from actors.media.bars import bars

HUES = ("red", "yellow", "green", "cyan", "blue", "magenta")
"""Sixths of the circle of hues, each about its name."""
FEATURES = ("aspect", "bars", "lightness", "contrast", "saturation", "warmth", "sharpness", *HUES)
"""
aspect      width divided by height of the picture within its bars
bars        share of the picture that is letterbox or pillarbox, 0 to 1
lightness   mean of CIELAB's L, 0 to 1
contrast    standard deviation of L, 0 to 0.5
saturation  mean of CIELAB's chroma, 0 grey, about 1 the purest colours
warmth      mean of CIELAB's b, -1 blue to 1 yellow
sharpness   logarithm of 1 + the variance of the Laplacian of grey at a height of 240 pixels
red ...     share of chroma that has this hue; all 0 in a picture without colour
"""
HEIGHT = 240
"""Height in pixels to which taller pictures are scaled down before they are measured."""


def style(image: np.ndarray) -> np.ndarray:
    """FEATURES of a picture uint8 (H, W, 3) RGB, as float32 (13,)."""
    top, bottom, left, right = bars(image)
    height, width = image.shape[:2]
    inner = image[top : height - bottom, left : width - right]
    rows, columns = inner.shape[:2]
    if rows > HEIGHT:
        size = max(1, round(columns * HEIGHT / rows)), HEIGHT
        inner = cv2.resize(inner, size, interpolation=cv2.INTER_AREA)
    lab = cv2.cvtColor(inner.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    light, green_red, blue_yellow = lab[..., 0] / 100, lab[..., 1] / 100, lab[..., 2] / 100
    chroma = np.hypot(green_red, blue_yellow)
    hue = cv2.cvtColor(inner, cv2.COLOR_RGB2HSV)[..., 0]  # 0 to 179, red at 0
    shares = np.bincount((((hue.astype(int) + 15) % 180) // 30).ravel(), chroma.ravel(), 6)
    laplacian = cv2.Laplacian(cv2.cvtColor(inner, cv2.COLOR_RGB2GRAY), cv2.CV_32F)
    # In grey pictures, rounding alone would give a hue.
    shares = shares / shares.sum() if chroma.mean() > 0.005 else np.zeros(6)
    values = (
        columns / rows,
        1 - rows * columns / (height * width),
        *(light.mean(), light.std(), chroma.mean(), blue_yellow.mean()),
        np.log1p(laplacian.var()),
        *shares,
    )
    return np.array(values, np.float32)


def palette(images: list[np.ndarray], colours: int = 6) -> np.ndarray:
    """Dominant colours of pictures uint8 (H, W, 3) RGB by k-means, the commonest first: uint8 (C, 3), C <= colours."""
    small = [cv2.resize(image, (24, 24), interpolation=cv2.INTER_AREA) for image in images]
    pixels = cv2.cvtColor((np.stack(small) / 255).astype(np.float32).reshape(1, -1, 3), cv2.COLOR_RGB2LAB)[0]
    count = min(colours, len(np.unique(pixels, axis=0)))
    criteria = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 20, 0.5)
    cv2.setRNGSeed(0)
    start = np.zeros((len(pixels), 1), np.int32)
    _, labels, centres = cv2.kmeans(pixels, count, start, criteria, 2, cv2.KMEANS_PP_CENTERS)
    order = np.argsort(-np.bincount(labels.ravel(), minlength=count))
    rgb = cv2.cvtColor(centres[order][None], cv2.COLOR_LAB2RGB)[0]
    return (rgb * 255).round().clip(0, 255).astype(np.uint8)

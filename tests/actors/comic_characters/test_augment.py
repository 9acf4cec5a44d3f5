"""Each picture of a batch is changed as torchvision would change it alone, as often as is asked for."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as one_by_one

from actors.comic_characters.augment import (
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    blur,
    resized_crop,
    views,
)
from actors.comic_characters.augment_settings import ViewsConfig

NOTHING = ViewsConfig(flip=0, min_scale=1, jitter=0, grey=0, max_sigma=0.1)


@pytest.fixture
def pixels() -> Tensor:
    return torch.rand(5, 3, 24, 24, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("ours", "theirs", "factors"),
    [
        (adjust_brightness, one_by_one.adjust_brightness, [0.5, 1.0, 1.5, 0.0, 0.7]),
        (adjust_contrast, one_by_one.adjust_contrast, [0.5, 1.0, 1.5, 0.0, 0.7]),
        (adjust_saturation, one_by_one.adjust_saturation, [0.5, 1.0, 1.5, 0.0, 0.7]),
        (adjust_hue, one_by_one.adjust_hue, [-0.5, 0.0, 0.1, -0.1, 0.37]),
    ],
)
def test_colours_change_as_in_torchvision(
    pixels: Tensor, ours: Callable[..., Tensor], theirs: Callable[..., Tensor], factors: list[float]
) -> None:
    expected = torch.stack([theirs(picture, factor) for picture, factor in zip(pixels, factors, strict=True)])
    torch.testing.assert_close(ours(pixels, torch.tensor(factors)), expected, atol=2e-5, rtol=0)


def test_blur_is_that_of_torchvision(pixels: Tensor) -> None:
    sigmas = [0.1, 0.5, 1.0, 1.5, 2.0]
    expected = [one_by_one.gaussian_blur(p, [9, 9], [sigma, sigma]) for p, sigma in zip(pixels, sigmas, strict=True)]
    torch.testing.assert_close(blur(pixels, torch.tensor(sigmas)), torch.stack(expected), atol=1e-5, rtol=0)


def test_a_window_is_resized_as_in_torchvision_but_for_its_rim(pixels: Tensor) -> None:
    boxes = torch.tensor([[0, 0, 24, 24], [4, 2, 12, 16], [10, 10, 14, 14], [0, 7, 20, 11], [3, 0, 9, 24]])
    flipped = torch.tensor([False, True, False, True, False])
    ours = resized_crop(pixels, boxes / 24, flipped)
    for picture, (left, top, width, height), mirror, view in zip(pixels, boxes.tolist(), flipped, ours, strict=True):
        expected = one_by_one.resized_crop(picture, top, left, height, width, [24, 24])
        expected = expected.flip(-1) if mirror else expected
        torch.testing.assert_close(view[:, 2:-2, 2:-2], expected[:, 2:-2, 2:-2], atol=1e-4, rtol=0)


def pictures(count: int) -> Tensor:
    return torch.randint(0, 256, (count, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_a_view_without_changes_is_the_picture_and_the_seed_decides() -> None:
    batch = pictures(4)
    plain = batch.permute(0, 3, 1, 2).float() / 127.5 - 1
    torch.testing.assert_close(views(batch, NOTHING), plain, atol=0.01, rtol=0)
    first, same, other = (views(batch, ViewsConfig(), torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, same) and not torch.allclose(first, other)
    assert first.amin() >= -1 and first.amax() <= 1
    # Every picture is changed in a way of its own.
    alike = views(batch[:1].expand(4, -1, -1, -1), ViewsConfig(), torch.Generator().manual_seed(0))
    assert not torch.allclose(alike[0], alike[1])


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_shares_are_kept(share: float) -> None:
    batch = pictures(400)
    generator = torch.Generator().manual_seed(2)
    plain = views(batch, NOTHING, generator)
    for name in ("mask", "flip", "grey"):
        view = views(batch, replace(NOTHING, **{name: share}), generator)
        changed = (view - plain).abs().amax((1, 2, 3)) > 0.02
        # Three standard deviations of 400 draws.
        assert abs(changed.float().mean().item() - share) <= 4 * (share * (1 - share) / 400) ** 0.5


def test_a_coloured_light_falls_on_all_of_a_picture() -> None:
    grey = torch.full((400, 16, 16, 3), 100, dtype=torch.uint8)
    lit = replace(NOTHING, jitter=1.0, brightness=0, contrast=0, saturation=0, hue=0, light=0.5)
    gains = (views(grey, lit, torch.Generator().manual_seed(3)) + 1) * 127.5 / 100
    assert gains.amin() >= 0.49 and gains.amax() <= 1.51
    assert gains.std((2, 3)).max() < 1e-3, "one light for the whole picture"
    colours = gains.mean((2, 3))
    assert (colours.std(0) - 1 / 12**0.5).abs().max() < 0.03, "as a uniform number of a width of 1 has it"
    assert colours.T.corrcoef().triu(1).abs().max() < 0.2, "and each channel has its own"
    plain = (views(grey, replace(lit, jitter=0.0)) + 1) * 127.5 / 100
    torch.testing.assert_close(plain, torch.ones_like(plain), atol=1e-3, rtol=0)


def test_a_mask_hides_a_part() -> None:
    view = views(torch.full((200, 16, 16, 3), 255, dtype=torch.uint8), replace(NOTHING, mask=1.0))
    hidden = (view == 0).all(1).float().mean((1, 2))
    assert hidden.min() > 0.01 and hidden.max() < 0.4 and 0.12 < hidden.mean() < 0.22


@pytest.mark.parametrize("wrong", [{"mask": 1.1}, {"light": -0.1}, {"hue": 0.6}, {"min_scale": 0.0}])
def test_settings_that_cannot_be_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ViewsConfig(**wrong)

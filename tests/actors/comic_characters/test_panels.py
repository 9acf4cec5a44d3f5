"""Panels of drawn pages, with bleeds, insets and borderless ones, in the order in which they were drawn."""

from collections.abc import Sequence

import cv2
import numpy as np
import pytest
from PIL import Image

from actors.comic_characters.crops import decode
from actors.comic_characters.panels import Panel, find_panels, in_order
from actors.media.images import picture_bytes
from tests.support.drawn import Sketches, identities
from tests.support.pages import HEIGHT, WIDTH, Page, draw_page, mirrored


def overlap(one: Panel, other: Panel) -> float:
    common = one.common(other)
    return common / (one.area + other.area - common)


def matches(page: Page, found: Sequence[Panel]) -> list[int]:
    """Of each drawn panel, which of the found ones overlaps it by 0.9 or more; -1: none."""
    best = [max(range(len(found)), key=lambda i: overlap(one, found[i])) for one in page.panels]
    return [i if overlap(one, found[i]) >= 0.9 else -1 for one, i in zip(page.panels, best, strict=True)]


@pytest.fixture(scope="module")
def pages() -> list[Page]:
    cast = Sketches()
    everybody = identities(cast, 24, 0)
    drawn = [draw_page(cast, everybody, np.random.default_rng(seed)) for seed in range(1000, 1024)]
    for page in drawn:
        page.pixels = np.asarray(decode(picture_bytes(Image.fromarray(page.pixels), quality=88)))
    return drawn


@pytest.mark.slow
@pytest.mark.parametrize("reading", ["left_to_right", "right_to_left"])
def test_panels_of_all_kinds_are_found_in_order(pages: list[Page], reading: str) -> None:
    right_to_left = reading == "right_to_left"
    hits: dict[str, list[bool]] = {}
    extra = ordered = 0
    for page in map(mirrored, pages) if right_to_left else pages:
        found = find_panels(page.pixels, "right_to_left" if right_to_left else "left_to_right")
        which = matches(page, found)
        for kind, number in zip(page.kinds, which, strict=True):
            hits.setdefault(kind, []).append(number >= 0)
        seen = [number for number in which if number >= 0]
        extra += len(found) - len(set(seen))
        ordered += seen == sorted(seen)
    assert set(hits) == {"framed", "bare", "figures", "bleed", "inset"}
    every = [hit for kind in hits.values() for hit in kind]
    assert np.mean(every) >= 0.95, {kind: np.mean(hit) for kind, hit in hits.items()}
    assert extra <= 0.08 * len(every) and ordered >= len(pages) - 1


def test_a_page_of_any_size_has_its_panels(pages: list[Page]) -> None:
    page = pages[0]
    small, large = find_panels(page.pixels), find_panels(cv2.resize(page.pixels, None, fx=2, fy=2))
    assert len(small) == len(large) > 2
    assert np.allclose(np.array(large) / 2, small, atol=5)


@pytest.mark.parametrize("colour", [0, 128, 255])
def test_a_page_without_panels_is_one(colour: int) -> None:
    assert find_panels(np.full((90, 60, 3), colour, np.uint8)) == [Panel(0, 0, 60, 90)]


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (20, 5000), (5000, 20), (15, 300)])
def test_a_strip_or_a_speck_is_one_panel_within_its_picture(size: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8)
    assert find_panels(noise) == [Panel(0, 0, size[1], size[0])]


def test_panels_lie_within_a_page_whose_sides_are_scaled_to_fractions() -> None:
    page = np.full((1801, 1203, 3), 255, np.uint8)
    page[:900], page[930:] = 80, 120
    for panel in find_panels(page):
        assert 0 <= panel.left < panel.right <= 1203 and 0 <= panel.top < panel.bottom <= 1801


def test_reading_order_is_by_rows_then_by_columns_and_an_inset_follows_its_panel() -> None:
    """A tall panel beside two, over a row of two of unequal height."""
    tall, upper, lower = Panel(10, 10, 100, 210), Panel(110, 10, 200, 100), Panel(110, 110, 200, 210)
    left, right, inset = Panel(10, 220, 120, 300), Panel(130, 222, 200, 310), Panel(20, 20, 50, 60)
    given = [lower, right, inset, tall, left, upper]
    assert in_order(given) == [tall, inset, upper, lower, left, right]
    assert in_order(given, "right_to_left") == [upper, lower, tall, inset, right, left]


def test_pages_are_drawn_by_seed() -> None:
    cast = Sketches()
    one, other = (draw_page(cast, identities(cast, 4, 0), np.random.default_rng(3)) for _ in range(2))
    assert (one.pixels == other.pixels).all() and one.pixels.shape == (HEIGHT, WIDTH, 3)

"""Boxes in colours that can be told apart, of however many identities."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from pipelines.comic_characters.panels import FIRST, Panel, Person, distinct, draw_panels


def drawn(*panels: Panel) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(draw_panels(panels))).convert("RGB")).astype(int)


def near(picture: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Where a picture has a colour, up to what JPEG makes of it."""
    return np.abs(picture - colour).max(-1) < 40


@pytest.mark.parametrize(("count", "apart"), [(5, 28), (12, 25), (40, 15)])
def test_any_number_of_colours_can_be_told_apart(count: int, apart: float) -> None:
    found = distinct(count)
    lab: np.ndarray = cv2.cvtColor(np.array([found], np.float32) / 255, cv2.COLOR_RGB2LAB)[0]
    distances = np.linalg.norm(lab[:, None] - lab, axis=-1)[~np.eye(count, dtype=bool)]
    assert distances.min() > apart
    white = np.linalg.norm(lab - (100, 0, 0), axis=-1)
    assert white.min() > 30
    assert found[:4] == list(FIRST) and found == distinct(count + 3)[:count]
    assert distinct(0) == []


def test_a_box_is_where_the_person_is_in_the_colour_of_the_identity() -> None:
    paper = Image.new("RGB", (150, 180), (128, 128, 128))
    seen = drawn(
        Panel("one", paper, [Person([(75, 90, 149, 179)], "1", 0)]),
        Panel("two", paper, [Person([(75, 90, 149, 179)], "2", 1), Person([(10, 60, 40, 120)], "1", 0)]),
    )
    left, right = seen[:, : seen.shape[1] // 2], seen[:, seen.shape[1] // 2 :]
    assert near(left, FIRST[0]).any() and not near(left, FIRST[1]).any()
    assert near(right, FIRST[0]).any() and near(right, FIRST[1]).any()
    # The paper is twice as large in the picture: the box fills its lower right quarter.
    y, x = np.nonzero(near(left, FIRST[0]))
    paper_y, paper_x = np.nonzero(near(left, (128, 128, 128)))
    middle = (paper_x.min() + paper_x.max()) / 2
    assert abs(x.min() - middle) < 8 and x.max() <= paper_x.max() + 2
    assert abs(y.max() - paper_y.max()) < 6


def test_panels_stand_four_in_a_row_and_what_cannot_be_read_is_grey() -> None:
    lost = Panel("lost", None, [Person([(10, 10, 60, 90), (20, 0, 50, 30)], "Anna", 0)])
    one, five = drawn(lost), drawn(*[lost] * 5)
    assert five.shape[1] > 3.5 * one.shape[1] and five.shape[0] > 1.8 * one.shape[0]
    assert near(one, (225, 225, 225)).mean() > 0.3


def test_names_do_not_hide_one_another() -> None:
    people = [Person([(50, 50 + i, 120, 150)], "a very long name of somebody " * 3, i) for i in range(3)]
    seen = drawn(Panel("", Image.new("RGB", (300, 300), (128, 128, 128)), people))
    tags = [np.nonzero(near(seen, FIRST[i]).sum(1) > 120)[0] for i in range(3)]
    assert all(len(rows) >= 4 for rows in tags)
    assert len(np.unique(np.concatenate(tags))) == sum(map(len, tags))

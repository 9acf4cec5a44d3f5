"""Marks are found where they were drawn on films of real pictures, and not on the same films without."""

from typing import Any

import cv2
import numpy as np
import pytest

from actors.curation.families.watermark import Watermark, WatermarkConfig
from actors.curation.measuring.family import Placed, scorer_class
from tests.benchmarks.families import SIZE, drawn_on, film_of, found_in, logo, real_films
from tests.support.films import blacked
from tests.support.real_pictures import film_frames, photos

WHOLE = (0.0, 0.0, 1.0, 1.0)


def film(seed: int, scenes: int = 10) -> list[np.ndarray]:
    """Real pictures, 640×360, one a scene."""
    return film_of([*photos(), *film_frames()], np.random.default_rng(seed), scenes)


@pytest.mark.parametrize("opacity", [1.0, 0.5, 0.3])
@pytest.mark.parametrize(("kind", "corner"), list(enumerate(("top_left", "top_right", "bottom_right"))))
def test_a_logo_is_found_in_its_corner(kind: int, corner: str, opacity: float) -> None:
    mark = logo((20, 30, 50)[kind], kind)
    images = film(kind)
    assert found_in(images) == {"watermark": False, "watermark_area": 0, "watermark_place": ""}
    found = found_in([drawn_on(image, mark, opacity, corner) for image in images])
    assert found["watermark"] is True and found["watermark_place"] == corner
    drawn = mark.size / (SIZE[0] * SIZE[1])
    assert 0.4 * drawn < found["watermark_area"] < 3 * drawn + 0.01


def test_the_faint_logo_of_a_real_film_is_found() -> None:
    found = found_in(real_films()["demo.mp4"])
    assert found["watermark"] is True and found["watermark_place"] == "bottom_right"
    assert found_in(real_films()["bikes.mp4"])["watermark"] is False


def test_a_mark_across_the_middle_is_found() -> None:
    mark = np.pad(logo(60, 0), ((150, 150), (100, 100)))[: SIZE[1] - 40, : SIZE[0] - 40]
    found = found_in([drawn_on(image, mark, 0.4, "top_left") for image in film(5)])
    assert found["watermark"] is True and found["watermark_place"] == "center"


def test_black_bars_are_no_mark_and_one_inside_of_them_is_found() -> None:
    images = film(6)
    inside = (0.0, 0.125, 1.0, 0.875)
    mark = logo(30, 0)
    for found, expected in (
        (found_in([image[45:315] for image in images], inside), False),
        (found_in([drawn_on(image[45:315], mark, 0.5, "top_left") for image in images], inside), True),
        # Each picture has bars of its own.
        (mixed(images), False),
    ):
        assert found["watermark"] is expected
        assert found["watermark_place"] == ("top_left" if expected else "")


def mixed(images: list[np.ndarray]) -> dict[str, Any]:
    tops = [0.0, 0.1, 0.2] * len(images)
    pictures = [
        Placed(image[round(top * SIZE[1]) : SIZE[1] - round(top * SIZE[1])], (0.0, top, 1.0, 1 - top))
        for image, top in zip(images, tops, strict=False)
    ]
    return measured({"v": pictures})["v"]


def measured(films: dict[str, list[Placed]]) -> dict[str, dict[str, Any]]:
    batch: dict[str, Any] = {"video_id": list(films), "pictures": list(films.values())}
    batch |= {"width": [SIZE[0]] * len(films), "height": [SIZE[1]] * len(films)}
    found = Watermark(WatermarkConfig())(batch)
    return {name: {column: values[i] for column, values in found.items()} for i, name in enumerate(films)}


def test_too_few_scenes_and_one_place_are_not_measured() -> None:
    nothing = {"watermark": None, "watermark_area": None, "watermark_place": None}
    mark = logo(50, 0)
    few = [drawn_on(image, mark, 1, "top_left") for image in film(7, 5)]
    random = np.random.default_rng(0)
    still = [np.clip(few[0] + random.normal(0, 8, few[0].shape), 0, 255).astype(np.uint8) for _ in range(20)]
    black = [np.zeros_like(few[0])] * 12
    for images in (few, still, black, []):
        assert found_in(images) == nothing


def test_a_mark_that_is_there_for_a_third_of_the_film_is_none() -> None:
    images, mark = film(8, 12), logo(40, 0)
    found = found_in([drawn_on(one, mark, 0.5, "top_left") if i % 3 == 0 else one for i, one in enumerate(images)])
    assert found["watermark"] is False


def test_films_of_a_batch_do_not_touch_each_other_and_odd_pictures_do_no_harm() -> None:
    mark = logo(40, 1)
    plain = [Placed(image, WHOLE) for image in film(9)]
    drawn = [Placed(drawn_on(image, mark, 1, "bottom_left"), WHOLE) for image in film(10)]
    odd = [
        Placed(np.zeros((1, 1, 3), np.uint8), WHOLE),
        Placed(np.zeros((0, 0, 3), np.uint8), WHOLE),
        Placed(np.full((90, 160, 3), 255, np.uint8), (0.4, 0.4, 0.4, 0.4)),
        # Of another size than the canvas.
        *(Placed(cv2.resize(one.image, (213, 120)), WHOLE) for one in drawn),
    ]
    films = {"plain": plain, "drawn": drawn, "odd": odd}
    together = measured(films)
    assert [found["watermark"] for found in together.values()] == [False, True, True]
    for name, pictures in films.items():
        assert measured({name: pictures})[name] == together[name]
    barred = [Placed(blacked(one.image, 40, 40, 0, 0), WHOLE) for one in plain]
    # Bars that were not cut off reach from side to side.
    assert measured({"barred": barred})["barred"]["watermark"] is False
    assert scorer_class("watermark") is Watermark

"""Words that are drawn on frames of real film are found, read and placed; film without words has none."""

import importlib.util
from collections.abc import Sequence
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from actors.core.errors import UserError
from actors.core.stage import Batch
from actors.curation.families.text import TextConfig, TextScorer
from actors.curation.measuring.family import fingerprint, scorer_class
from tests.support.films import bikes_mp4, demo_mp4

pytest.importorskip("rapidocr")


@pytest.fixture(scope="module")
def scorer() -> TextScorer:
    return TextScorer(TextConfig())


@pytest.fixture(scope="module")
def street() -> np.ndarray:
    """Frames of a street, without words: uint8 (3, 272, 640, 3)."""
    return frames_at(bikes_mp4(), [2.0, 4.0, 6.0])


def frames_at(path: Any, seconds: Sequence[float]) -> np.ndarray:
    left, found = list(seconds), []
    with av.open(str(path)) as film:
        for frame in film.decode(video=0):
            if left and frame.time >= left[0]:
                left.pop(0)
                found.append(frame.to_ndarray(format="rgb24"))
    return np.stack(found)


def written(frame: np.ndarray, text: str, x: float, y: float, share: float = 0.1) -> tuple[np.ndarray, float]:
    """Write on a frame, the middle of the text at shares of its width and height; returns how much of it letters fill.

    share: height of the letters, of the frame's.
    """
    picture = Image.fromarray(frame)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(share * picture.height)
    place: Any = {"xy": (x * picture.width, y * picture.height), "text": text, "font": font, "anchor": "mm"}
    draw.text(**place, fill="white", stroke_width=1, stroke_fill="black")
    left, top, right, bottom = draw.textbbox(**place)
    return np.asarray(picture), (right - left) * (bottom - top) / picture.width / picture.height


def batch(*scenes: np.ndarray) -> Batch:
    frames = np.empty(len(scenes), object)
    frames[:] = [*scenes]
    return {"frames": frames}


def rows(found: Any) -> list[dict[str, Any]]:
    return [dict(zip(found, values, strict=True)) for values in zip(*found.values(), strict=True)]


def test_frames_of_film_without_words_have_none(scorer: TextScorer, street: np.ndarray) -> None:
    gray, black = np.full((1, 90, 160, 3), 128, np.uint8), np.zeros((2, 144, 176, 3), np.uint8)
    for row in rows(scorer(batch(street, gray, black))):
        assert (row["text_area"], row["text_words"], row["text"]) == (0, 0, "")
        assert np.isnan([row["text_corner"], row["text_lower_third"]]).all()


def test_words_are_read_and_their_boxes_cover_what_was_drawn(scorer: TextScorer, street: np.ndarray) -> None:
    titled, drawn = zip(*(written(frame, "THE LAST TRAIN", 0.5, 0.4, 0.14) for frame in street), strict=True)
    [row] = rows(scorer(batch(np.stack(titled))))
    assert (row["text"], row["text_words"]) == ("THE LAST TRAIN", 3)
    assert drawn[0] < row["text_area"] < 2.2 * drawn[0]
    assert (row["text_corner"], row["text_lower_third"]) == (0, 0)


def test_a_title_in_one_of_three_key_frames_has_a_third_of_the_area(scorer: TextScorer, street: np.ndarray) -> None:
    titled, _ = written(street[1], "MEANWHILE", 0.5, 0.4)
    once, always = rows(scorer(batch(np.stack([street[0], titled, street[2]]), titled[None])))
    assert once["text_area"] == pytest.approx(always["text_area"] / 3)
    assert once["text_words"] == always["text_words"] == 1
    assert once["text"] == always["text"] == "MEANWHILE"


def test_subtitles_lie_in_the_lower_third_and_watermarks_in_a_corner(scorer: TextScorer, street: np.ndarray) -> None:
    subtitle, _ = written(street[0], "where are you going", 0.5, 0.9, 0.08)
    watermark, _ = written(street[0], "CHANNEL", 0.12, 0.1, 0.08)
    below, above = rows(scorer(batch(subtitle[None], watermark[None])))
    assert below["text_lower_third"] > 0.95 and above["text_lower_third"] == 0
    assert below["text_corner"] < 0.3 and above["text_corner"] > 0.95


def test_each_line_is_told_once_and_words_are_of_one_key_frame(scorer: TextScorer, street: np.ndarray) -> None:
    two, _ = written(written(street[0], "DIRECTED BY", 0.5, 0.3)[0], "Anna Berg", 0.5, 0.55)
    [row] = rows(scorer(batch(np.stack([two, two]))))
    assert row["text"].split("\n") == ["DIRECTED BY", "Anna Berg"]
    assert row["text_words"] == 4


def test_titles_of_a_real_film_are_read(scorer: TextScorer) -> None:
    title, name = frames_at(demo_mp4(), [4.0, 13.0])
    opening, band = rows(scorer(batch(title[None], name[None])))
    assert "SPIRAL" in opening["text"] and opening["text_words"] > 1
    assert "ANOKATO" in band["text"] and band["text_lower_third"] > 0.5


def test_scenes_of_a_call_do_not_change_each_other(scorer: TextScorer, street: np.ndarray) -> None:
    small = written(street[1][:120, :160], "RADIO", 0.5, 0.5, 0.2)[0][None]
    large = np.repeat(np.repeat(written(street[2], "paris 1942", 0.5, 0.7)[0][None], 2, axis=1), 2, axis=2)
    scenes = [street, small, large]
    together = rows(scorer(batch(*scenes)))
    alone = [rows(scorer(batch(scene)))[0] for scene in scenes]
    for one, other in zip(together, alone, strict=True):
        for name, value in one.items():
            assert value == other[name] or (np.isnan(value) and np.isnan(other[name]))
    assert [row["text"] for row in together] == ["", "RADIO", "paris 1942"]


def test_a_worker_computes_with_as_many_threads_as_it_reserves(scorer: TextScorer, street: np.ndarray) -> None:
    scorer(batch(written(street[0], "THREADS", 0.5, 0.5)[0][None]))
    reader: Any = scorer._read
    for part in (reader.text_det, reader.text_rec):
        options = part.session.session.get_session_options()
        assert (options.intra_op_num_threads, options.inter_op_num_threads) == (1, 1)


def test_what_cannot_work_is_told_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"text\.num_gpus=1: words are read on CPUs only"):
        TextConfig(num_gpus=1)
    with pytest.raises(UserError, match=r"text\.side=8"):
        TextConfig(side=8)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "rapidocr" else find(name))
    with pytest.raises(UserError, match="extra `text`"):
        TextScorer.check(TextConfig())


def test_it_is_a_family_whose_values_depend_on_size_and_package(monkeypatch: pytest.MonkeyPatch) -> None:
    assert scorer_class("text") is TextScorer
    assert fingerprint("text", TextConfig()) == fingerprint("text", TextConfig(workers=3, batch_size=2))
    assert fingerprint("text", TextConfig()) != fingerprint("text", TextConfig(side=736))
    before = fingerprint("text", TextConfig())
    monkeypatch.setattr("actors.curation.families.text.metadata.version", lambda name: f"{name} of the future")
    assert fingerprint("text", TextConfig()) != before

"""What a model is shown of a film, and what its answer says of genres."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from actors.genres.film_images import ImagesConfig
from actors.genres.shown import shown, spread
from actors.genres.zero_shot import checked, likely
from actors.media.images import Shape
from tests.support import films
from tests.support.tars import pack

GENRES = ("War", "Western", "Sci-Fi")


def test_a_list_of_genres_in_whatever_spelling():
    text, problem = checked('```json\n{"war": 0.9, " Sci-fi": 1}\n```', GENRES)
    assert not problem and json.loads(text) == {"genres": {"War": 0.9, "Sci-Fi": 1.0}, "outside": []}
    text, problem = checked('{"War": 0.5, "Noir": 0.7}', GENRES)
    assert not problem and json.loads(text) == {"genres": {"War": 0.5}, "outside": ["Noir"]}
    # None of them is an answer, too.
    assert checked("{}", GENRES) == ('{"genres": {}, "outside": []}', "")


@pytest.mark.parametrize(
    ("reply", "problem"),
    [
        ("It is a war film.", "not JSON"),
        ('["War"]', "no JSON object"),
        ('{"War": 90}', "no number from 0 to 1"),
        ('{"War": true}', "no number from 0 to 1"),
        ('{"War": NaN}', "no number from 0 to 1"),
        ('{"Noir": 0.9}', "outside of the vocabulary: Noir"),
    ],
)
def test_what_is_no_answer(reply: str, problem: str):
    text, found = checked(reply, GENRES)
    assert text == "" and problem in found


def test_a_genre_counts_by_what_the_pictures_add_to_it():
    class Model:
        """Likes the first genre best whatever it sees, and finds twice as much of the second in pictures of colour."""

        def likelihoods(self, frames: np.ndarray, text: str, answers: Any, at_once: int) -> np.ndarray:
            assert all(name in text for name in GENRES) and tuple(answers) == GENRES
            return np.log([0.8, 0.1, 0.05]) + np.array([0, np.log(2), 0]) * (frames != 128).any()

    colour = np.zeros((2, 4, 4, 3), np.uint8)
    np.testing.assert_allclose(likely(Model(), colour, GENRES, 8, {}), [0.25, 0.5, 0.25])
    np.testing.assert_allclose(likely(Model(), np.full_like(colour, 128), GENRES, 8, {}), 1 / 3)


def test_frames_lie_at_equal_steps():
    assert spread(100, 4) == [12, 37, 62, 87] and spread(3, 8) == [0, 1, 2] and spread(0, 8) == []


def folder_of(folder: Path, count: int) -> Path:
    """A film whose frames are ever brighter, in an order that only people count in."""
    folder.mkdir(parents=True)
    for shot in range(count):
        Image.new("RGB", (40, 20), (20 * shot,) * 3).save(folder / f"shot_{shot}_img_0.png")
    return folder


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_of_images_some_are_read(tmp_path: Path, kind: str):
    folder = folder_of(tmp_path / "tt1", 12)
    (folder / "shot_7_img_0.png").write_bytes(b"none")
    uri = folder if kind == "folder" else pack(folder, tmp_path / "tars" / "tt1.tar")
    about = {"film": "tt1", "uri": str(uri), "kind": kind, "done": '["0001"]'}
    row, *scenes = shown(about, Shape(8, mode="longest"), 4, ImagesConfig(), scenes=5)
    # The middles of four steps are 1, 4, 7 and 10; all of a picture is there, between bars.
    assert row["frames"][:, 4, 4, 0].tolist() == [20, 80, 200] and not row["error"]
    assert (row["frames"][:, 0] == 0).all() and row["frames"].shape == (3, 8, 8, 3)
    assert [(one["name"], one["code"]) for one in json.loads(row["rejected"])] == [("shot_7_img_0.png", "not_an_image")]
    # Of scenes that are left the frames are at equal steps of their own; the last one says how many there are.
    assert [(one["scene"], one["first_shot"], one["last_shot"], one["scenes"]) for one in scenes] == [
        ("0000", 0, 4, 0),
        ("0002", 10, 11, 3),
    ]
    assert [one["frames"][:, 4, 4, 0].tolist() for one in scenes] == [[0, 20, 60, 80], [200, 220]]


def test_of_a_video_the_middles_of_shots(tmp_path: Path):
    shots = [8] * 9
    path = films.film(tmp_path / "tt1.mp4", shots)
    about = {"film": "tt1", "uri": str(path), "kind": "video", "done": "[]"}
    # Shots are thinned out while the film is read: eight are kept at most.
    *scenes, row = sorted(shown(about, Shape(120), 2, ImagesConfig(), scenes=4), key=lambda one: one["scene"] or "9")
    numbers = [films.read_stamp(frame) // 8 for frame in row["frames"]]
    assert not row["error"] and numbers == sorted(numbers) and len(numbers) == 2
    assert numbers[0] in (1, 2, 3) and numbers[1] in (5, 6, 7)
    # Scenes follow each other; the last one says how many there are.
    of_scenes = [[films.read_stamp(frame) // 8 for frame in one["frames"]] for one in scenes]
    flat = [number for some in of_scenes for number in some]
    assert flat == sorted(flat) and all(of_scenes)
    assert [one["scene"] for one in scenes] == [f"{number:04d}" for number in range(len(scenes))]
    assert len(scenes) >= 2 and [one["scenes"] for one in scenes] == [*[0] * (len(scenes) - 1), len(scenes)]
    assert [(one["first_shot"], one["start_s"] > 0) for one in scenes[:2]] == [(0, False), (4, True)]


@pytest.mark.parametrize(
    ("kind", "name", "code"),
    [("folder", "empty", "no_images"), ("tar", "broken.tar", "broken_archive"), ("video", "gone.mp4", "not_found")],
)
def test_a_film_that_cannot_be_shown_says_why(tmp_path: Path, kind: str, name: str, code: str):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.tar").write_bytes(b"no tar" * 200)
    about = {"film": "a", "uri": str(tmp_path / name), "kind": kind, "done": "[]"}
    (row,) = shown(about, Shape(8), 4, ImagesConfig(), scenes=2)
    assert row["error"] == code and row["message"] and row["frames"].shape == (0, 8, 8, 3)

"""Votes over a shot, and the tables that they end in."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle
from PIL import Image

from actors.core.store import Store
from jobs.movie_characters.pages import bands, timeline_page
from pipelines.movie_characters.films import timeline as film
from pipelines.movie_characters.gallery_settings import ClipSettings
from pipelines.movie_characters.models import ClipModel
from pipelines.movie_characters.results import read_results, write_about
from tests.support import results


def test_most_votes_win_and_of_as_many_the_higher_score():
    scores = pd.DataFrame({"Ann": [0.9, 0.2, 0.3], "Bob": [0.1, 0.8, 0.5]})
    found = film.ballot(pd.Series(["Ann", "Bob", "Bob"]), scores)
    assert found.character.to_list() == ["Bob", "Ann"]
    assert found.share.to_list() == pytest.approx([2 / 3, 1 / 3])
    tied = film.ballot(pd.Series(["Ann", "Bob", "unknown"]), scores)
    assert tied.character.to_list()[-1] == "unknown"
    assert np.isnan(tied.score.iloc[-1])


def test_tables_hold_every_shot(tmp_path: Path):
    store = Store(str(tmp_path))
    shots = [
        {"shot": 0, "start_s": 0.0, "end_s": 2.0, "times": [0.0, 1.0], "images": ["f_000000.jpg", "f_000001.jpg"]},
        {"shot": 1, "start_s": 2.0, "end_s": 3.0, "times": [2.0], "images": ["f_000002.jpg"]},
        {"shot": 2, "start_s": 3.0, "end_s": 3.1, "times": [], "images": []},
    ]
    store.write_json({"film": "f", "uri": "", "shots": shots, "error": "", "message": ""}, "shots", "f.json")
    store.write_json({"film": "g", "uri": "", "shots": [], "error": "empty_file", "message": "no"}, "failed", "g.json")
    cosines = {
        "f_000000.jpg": {"Ann_1": 0.9, "Bob_1": 0.2},
        "f_000001.jpg": {"Ann_1": 0.8, "Bob_1": 0.1},
        "f_000002.jpg": {"Ann_1": 0.1, "Bob_1": 0.3},
    }
    config = film.TimelineConfig("films", str(tmp_path), ClipModel("clip", ClipSettings("gallery")), threshold=0.5)
    said = read_results(results.write(tmp_path / "r", cosines), True)
    found = film.appearances(config, ["f", "g"], said, lead=False)
    assert found.shots.answer.to_list() == ["Ann", "unknown", "unknown"]
    assert found.shots.frames.to_list() == [2, 1, 0]
    assert found.films["g"]["error"] == "empty_file"
    parts = pd.read_csv(tmp_path / "segments.csv")
    assert parts[["shot", "start_s", "end_s", "character", "frames", "image"]].to_numpy().tolist() == [
        [0, 0, 2, "Ann", 2, "f_000000.jpg"],
        [1, 2, 3, "unknown", 1, "f_000002.jpg"],
    ]
    assert found.characters == ["Ann", "Bob"]
    table = pd.read_csv(tmp_path / "appearances.csv")
    assert table[["film", "shot", "character", "votes"]].to_numpy().tolist() == [
        ["f", 0, "Ann", 2],
        ["f", 1, "unknown", 1],
    ]


def test_films_are_found_by_names_that_images_can_bear(tmp_path: Path):
    (tmp_path / "my film.mp4").write_bytes(b"")
    assert list(film.find_films(str(tmp_path))) == ["my_film"]
    assert list(film.find_films(str(tmp_path / "my film.mp4"))) == ["my_film"]
    (tmp_path / "my_film.mkv").write_bytes(b"")
    with pytest.raises(ValueError, match="two films are named my_film"):
        film.find_films(str(tmp_path))
    with pytest.raises(ValueError, match="has no films"):
        film.find_films(str(tmp_path / "none.mp4"))


def test_one_false_face_in_a_long_shot_is_a_second_of_it_and_not_the_shot(tmp_path: Path):
    """A face in one of nine frames: the others have none, and so no answer."""
    images = [f"Ann_{number:06d}.jpg" for number in range(9)]
    shot = {"shot": 0, "start_s": 0.0, "end_s": 8.8, "times": [float(number) for number in range(9)], "images": images}
    store = Store(str(tmp_path))
    store.write_json({"film": "Ann", "uri": "", "shots": [shot], "error": "", "message": ""}, "shots", "Ann.json")
    # The film is called like the character, but for its case.
    folder = results.write(tmp_path / "r", {images[4]: {"ANN_1": 0.9, "Bob_1": 0.2}})
    write_about(folder, "gallery of faces", True, [images[4]], [*images[:4], *images[5:]])
    config = film.TimelineConfig("films", str(tmp_path), ClipModel("clip", ClipSettings("gallery")))
    found = film.appearances(config, ["Ann"], read_results(folder, None), lead=False)
    assert found.shots.iloc[0][["frames", "answer"]].to_list() == [9, "ANN"]
    assert found.shots.share[0] == pytest.approx(1 / 9)
    assert found.segments.drop(columns="film").to_numpy().tolist() == [
        [0, 4.0, 5.0, "ANN", 1, pytest.approx(1 / 9), 0.9, images[4]]
    ]
    # The page paints that second, and counts it.
    colours = {"ANN": "#123456", "Bob": "#654321"}
    (bar,) = bands(found.segments, 8.8, colours).axes[0].patches
    assert isinstance(bar, Rectangle)
    assert (bar.get_x(), bar.get_width(), bar.get_facecolor()[:3]) == (4, 1, to_rgb("#123456"))
    Image.new("RGB", (640, 360), "red").save(tmp_path / "face.jpg")
    (tmp_path / "frames" / "Ann").mkdir(parents=True)
    (tmp_path / "face.jpg").rename(tmp_path / "frames" / "Ann" / images[4])
    page = Path(timeline_page(config, found)).read_text()
    assert "ANN: 1 s" in page and '<p class="totals">ANN 1 s</p>' in page


def test_a_film_without_frames_has_a_page_that_says_why(tmp_path: Path):
    Store(str(tmp_path)).write_json(
        {"film": "g", "uri": "", "shots": [], "error": "empty_file", "message": "no"}, "failed", "g.json"
    )
    config = film.TimelineConfig("films", str(tmp_path), ClipModel("clip", ClipSettings("gallery")))
    assert "empty_file: no" in Path(timeline_page(config, film.appearances(config, ["g"], None, False))).read_text()


def test_a_gallery_that_cannot_be_used_is_refused_before_films_are_cut(tmp_path: Path):
    (tmp_path / "film.mp4").write_bytes(b"")
    config = film.TimelineConfig(str(tmp_path), str(tmp_path / "out"), ClipModel("clip", ClipSettings(str(tmp_path))))
    with pytest.raises(ValueError, match="but no images"):
        film.plan_timeline(config)

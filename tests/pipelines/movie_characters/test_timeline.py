"""Votes over a shot, and the tables that they end in."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from actors.core.store import Store
from pipelines.movie_characters import timeline as film
from pipelines.movie_characters.identify_gallery import ClipSettings
from pipelines.movie_characters.models import ClipModel
from pipelines.movie_characters.results import read_results
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

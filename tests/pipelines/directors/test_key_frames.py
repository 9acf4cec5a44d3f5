"""Key frames of MovieNet as it is downloaded, with directors, shots and camera from its other files."""

import json
import logging
import math
from pathlib import Path

import pytest

from actors.core.errors import UserError
from actors.media.images import read_image
from pipelines.directors.key_frames import FilmFiles, read_key_frames
from tests.support import pictures, tars
from tests.support.colours import BLUE, RED


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Four films, one of them a tar: one with all files, one with two directors, two without a director."""
    for film, colour in {"tt1": RED, "tt2": BLUE, "tt3": RED, "tt4": RED}.items():
        pictures.write(tmp_path / "in" / film, {f"shot_000{i}_img_0": colour for i in range(3)})
    tars.pack(tmp_path / "in" / "tt2", tmp_path / "in" / "tt2.tar")
    for file in (tmp_path / "in" / "tt2").iterdir():
        file.unlink()
    (tmp_path / "in" / "tt2").rmdir()
    known = {"tt1": ["Agnès Varda"], "tt2": [{"name": "Joel Coen"}, {"name": "Ethan Coen"}], "tt3": []}
    for folder in ("meta", "annotation", "shot"):
        (tmp_path / folder).mkdir()
    for film, director in known.items():
        (tmp_path / "meta" / f"{film}.json").write_text(json.dumps({"director": director}))
    about = {
        "story": [{"frame": [0, 100], "duration": [0, 10]}],
        "cinematic_style": [
            {"shot_idx": 0, "scale": "LS", "movement": "push"},
            {"shot_idx": 1, "scale": None, "movement": "static"},
        ],
    }
    (tmp_path / "annotation" / "tt1.json").write_text(json.dumps(about))
    (tmp_path / "shot" / "shot_tt1.txt").write_text("0 19 5 10 15\n20 24 21 22 23\n")
    (tmp_path / "shot" / "shot_tt2.txt").write_text("0 23 5 10 15\n")
    return tmp_path


def test_films_have_the_directors_shots_and_camera_that_files_say(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = FilmFiles(str(data / "meta"), str(data / "annotation"), str(data / "shot"))
    with caplog.at_level(logging.WARNING):
        found = read_key_frames(str(data / "in"), files)
    assert {one.film: one.director for one in found} == {"tt1": "Agnès Varda", "tt2": "Joel Coen; Ethan Coen"}
    assert len(found) == 6 and "2 of 4 films are left out: no_director 1, no_meta 1" in caplog.text
    # At 10 frames a second, as the story says; else at 24.
    assert [one.shot_s for one in found[:2]] == [2, 0.5] and found[3].shot_s == 1
    assert all(math.isnan(found[i].shot_s) for i in (2, 4, 5))
    assert found[0].camera == {"shot_scale": 4, "camera_static": 0, "camera_push": 1, "camera_pull": 0}
    assert found[1].camera == {"camera_static": 1, "camera_push": 0, "camera_pull": 0} and not found[2].camera
    assert read_image(found[4].uri).getpixel((0, 0)) == BLUE and found[4].path == "tt2/shot_0001_img_0.png"


def test_without_further_files_there_are_directors_alone(data: Path) -> None:
    found = read_key_frames(str(data / "in"), FilmFiles(str(data / "meta"), "", ""))
    assert len(found) == 6 and all(math.isnan(one.shot_s) and not one.camera for one in found)


def test_a_broken_file_leaves_its_film_out_and_no_film_is_refused(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    (data / "annotation" / "tt1.json").write_text("{")
    with caplog.at_level(logging.WARNING):
        found = read_key_frames(str(data / "in"), FilmFiles(str(data / "meta"), str(data / "annotation"), ""))
    assert {one.film for one in found} == {"tt2"} and "broken_annotation 1" in caplog.text
    with pytest.raises(UserError, match=r"no key frames of a film whose director is known \(no_meta 4\)"):
        read_key_frames(str(data / "in"), FilmFiles(str(data / "shot"), "", ""))
    pictures.write(data / "in", {"loose": RED})
    with pytest.raises(UserError, match=r"loose\.png is in no film's folder or tar"):
        read_key_frames(str(data / "in"), FilmFiles(str(data / "meta"), "", ""))

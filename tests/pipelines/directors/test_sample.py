"""Whose films there are, which screenshots of them are missing, and that a film that is taken is whole."""

import csv
import io
from pathlib import Path

import numpy as np
import pytest

from actors.core import storage
from actors.core.child import CHILD
from actors.core.errors import UserError
from actors.directors.screenshots import ScreenshotsConfig, sample_films
from actors.directors.style import FEATURES
from pipelines.directors.baselines import known_style
from pipelines.directors.frames import STYLE, frames_of_pictures
from pipelines.directors.sample import SampleConfig, plan_sample, read_film_list, read_screenshots, sample
from pipelines.directors.settings import DirectorsConfig
from pipelines.directors.vectors import Pictures
from tests.support import films

SHOTS = ScreenshotsConfig(per_film=5)


def take(config: SampleConfig) -> int:
    """The stage over what is missing, without Ray; returns how many screenshots it took."""
    todo = plan_sample(config).todo
    names = ("director", "film", "uri")
    batch = {name: np.array([film[name] for film in todo]) for name in names}
    return int(sample_films(batch, config.screenshots, config.output)["screenshots"].sum())


def told(config: SampleConfig) -> list[dict[str, str]]:
    """The manifest of an output in which nothing is missing."""
    plan = plan_sample(config)
    plan.todo.clear()
    sample(config, plan)
    return list(csv.DictReader(io.StringIO(storage.read_bytes(f"{config.output}/manifest.csv").decode())))


def named(input: str) -> dict[tuple[str, str], str]:
    return {(film["director"], film["film"]): film["error"] for film in read_film_list(input)}


def test_directors_are_folders_and_films_are_named_by_what_lies_below(tmp_path: Path):
    for name in ("Varda/Cleo.mp4", "Varda/shorts/Du cote.mkv", "Agnès, la/Cleo.MP4", "Varda/notes.txt"):
        films.empty_file(tmp_path / name)
    expected = {("Varda", "Cleo"), ("Varda", "shorts/Du cote"), ("Agnès, la", "Cleo")}
    assert named(str(tmp_path)) == dict.fromkeys(expected, "")


def test_what_is_not_clear_has_a_code(tmp_path: Path):
    for name in ("stray.mp4", "Varda/Cleo.mp4", "Varda/Cleo.mkv", "features/Cleo.mp4"):
        films.empty_file(tmp_path / name)
    codes = [film["error"] for film in read_film_list(str(tmp_path))]
    assert sorted(codes) == ["", "bad_name", "duplicate_id", "no_director"]


def test_a_table_tells_paths_and_directors(tmp_path: Path):
    table = tmp_path / "films.csv"
    table.write_text("director,path,film\nVarda,a/cleo.mp4,\nVarda,s3://corpus/x.mkv,Vagabond\nAC/DC,x.mp4,\n,y.mp4,\n")
    found = list(read_film_list(str(table)))
    assert [film["film"] for film in found] == ["cleo", "Vagabond", "x", "y"]
    assert [film["uri"] for film in found[:2]] == [f"{tmp_path}/a/cleo.mp4", "s3://corpus/x.mkv"]
    assert [film["error"] for film in found] == ["", "", "bad_name", "no_director"]
    table.write_text("director,url\nVarda,x.mp4\n")
    with pytest.raises(ValueError, match="no column path"):
        list(read_film_list(str(table)))


def test_an_input_without_films_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="has no films"):
        plan_sample(SampleConfig(str(tmp_path), str(tmp_path / "out")))
    with pytest.raises(ValueError, match="input and output are required"):
        SampleConfig(str(tmp_path))


def test_what_is_missing_is_taken_and_a_broken_film_tried_again(tmp_path: Path):
    films.film(tmp_path / "films/A/one.mp4")
    films.truncated(tmp_path / "films/B/two.mp4")
    config = SampleConfig(str(tmp_path / "films"), str(tmp_path / "out"), SHOTS)
    assert take(config) == 5
    assert [film["film"] for film in plan_sample(config).todo] == ["two"]
    first = told(config)
    assert {row["film"] for row in first} == {"one"}
    films.film(tmp_path / "films/B/two.mp4")
    assert take(config) == 5
    rows = told(config)
    assert [row for row in rows if row["film"] == "one"] == first
    assert len(rows) == 10 and not plan_sample(config).todo


def test_the_manifest_names_files_that_show_their_frame(tmp_path: Path):
    films.film(tmp_path / "films/A/one.mp4")
    config = SampleConfig(str(tmp_path / "films"), str(tmp_path / "out"), SHOTS)
    take(config)
    rows = told(config)
    assert list(rows[0]) == ["film", "director", "time_s", "frame", "path"]
    for row in rows:
        picture = films.read_stamp(read_image(tmp_path / "out" / row["path"]))
        assert picture == int(row["frame"]) == round(float(row["time_s"]) * films.RATE)
        assert row["path"].startswith("A/one.")


def read_image(path: Path) -> np.ndarray:
    import cv2

    image = cv2.imread(str(path))
    assert image is not None
    return image[..., ::-1]


def test_other_settings_need_another_output(tmp_path: Path):
    films.film(tmp_path / "films/A/one.mp4")
    config = SampleConfig(str(tmp_path / "films"), str(tmp_path / "out"), SHOTS)
    take(config)
    with pytest.raises(ValueError, match="Use another output"):
        plan_sample(SampleConfig(config.input, config.output, ScreenshotsConfig(per_film=6)))


def test_films_and_screenshots_may_lie_in_a_store(tmp_path: Path, s3: str):
    path = films.film(tmp_path / "one.mp4")
    storage.upload(path, f"{s3}/films/A/one.mp4")
    config = SampleConfig(f"{s3}/films", f"{s3}/out", ScreenshotsConfig(per_film=2))
    # A child that an earlier test has started does not know the store.
    CHILD.kill()
    assert take(config) == 2
    rows = told(config)
    assert len(rows) == 2 and all(storage.size(f"{s3}/out/{row['path']}") for row in rows)


def test_other_files_beside_screenshots_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    for name in ("Varda/Cleo/1.png", "Varda/Cleo/2.avif", "Lang/M/1.png", "features/1.npy", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert [shot.path for shot in read_screenshots(str(tmp_path))] == ["Lang/M/1.png", "Varda/Cleo/1.png"]
    assert "1 files beside the images are left out, such as Varda/Cleo/2.avif" in caplog.text


def test_a_manifest_is_held_against_the_pictures_beside_it(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    for name in ("a.png", "b.png"):
        (tmp_path / name).touch()
    manifest = tmp_path / "manifest.csv"
    manifest.write_text("director,path,film\nVarda,a.png,Cleo\nVarda,a.png,Cleo\nLang,c.png,M\n")
    assert [(shot.path, shot.size) for shot in read_screenshots(str(tmp_path))] == [("a.png", 0), ("c.png", -1)]
    assert "1 pictures have no row in manifest.csv and are left out, such as b.png" in caplog.text
    for text, told in {
        "director,path\nVarda,a.png\nLang,a.png\n": "line 3: a.png is of Lang/ here, and of Varda/ above",
        "director,path\nVarda,\n": "line 2: path is empty",
        "director,path\nVarda\n": "line 2: path is empty",
        "director,path,time_s\nVarda,a.png,soon\n": "line 2: time_s is no number: 'soon'",
        'director,path\nVarda,"a.png\n': "is not a CSV table",
        "director,file\nVarda,a.png\n": "has no column path",
    }.items():
        manifest.write_text(text)
        with pytest.raises(UserError, match=told):
            read_screenshots(str(tmp_path))


def test_shot_and_camera_of_a_manifest_become_style(tmp_path: Path):
    rows = ["director,film,path,shot_s,shot_scale,camera_static,camera_zoom"]
    for director in ("Lang", "Varda"):
        for film in range(3):
            for number in range(2):
                path = tmp_path / director / str(film) / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
                camera = "1.5,4,0.25," if number else ",,,-0.5"
                rows.append(f"{director},{film},{path.relative_to(tmp_path)},{camera}")
    (tmp_path / "manifest.csv").write_text("\n".join(rows))
    shots = read_screenshots(str(tmp_path))
    assert [shot.camera for shot in shots[:2]] == [{"camera_zoom": -0.5}, {"shot_scale": 4, "camera_static": 0.25}]
    own = np.zeros((len(shots), len(FEATURES)), np.float32)
    pictures = Pictures([shot.path for shot in shots], np.zeros(len(shots), int), np.ones((len(shots), 2)), own, [], [])
    frames = frames_of_pictures(shots, pictures, DirectorsConfig(input="x", output="y"))
    known = {STYLE[i] for i in known_style(frames)} - set(FEATURES)
    assert known == {"shot_s", "shot_scale", "camera_static", "camera_zoom"}
    assert np.isnan(frames.style[0, STYLE.index("shot_scale")]) and frames.style[1, STYLE.index("shot_scale")] == 4


def test_a_row_without_a_path_is_told_as_such(tmp_path: Path):
    (tmp_path / "films.csv").write_text("path,director,film\n,Varda,Cleo\nM.mp4,,\nM.mp4,Lang,\n")
    found = [(film["director"], film["film"], film["error"]) for film in read_film_list(str(tmp_path / "films.csv"))]
    assert found == [("Varda", "Cleo", "no_path"), ("", "M", "no_director"), ("Lang", "M", "")]

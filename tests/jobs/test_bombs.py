"""Small files that unfold large, through the verbs of every capability: a row with a code each, the next one sound."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from actors.core.child import CHILD
from actors.core.stage import Batch, Row
from actors.directors.pictures import ViewsConfig, read_pictures
from actors.directors.screenshots import ScreenshotsConfig, screenshots
from actors.genres.film_images import ImagesConfig, cut_films
from actors.genres.key_frames import key_frames
from actors.media.film import VideoConfig
from actors.media.images import Shape, read_images
from actors.media.shot_detection.shots import ShotsConfig
from actors.movie_characters.disturbances import disturb_files
from actors.movie_characters.film_frames import Interval, frames_in, frames_of_shots
from tests.support import bombs, films
from tests.support.corpus import FAST, run_here, table

READERS: dict[str, Callable[[str], Iterator[Row | None]]] = {
    "movie_characters extract": lambda path: frames_in(path, [Interval("who", 0.0, 9.0)], False, frozenset()),
    "movie_characters timeline": lambda path: frames_of_shots(path, ShotsConfig(), 1.0, 320),
    "genres embed": lambda path: key_frames(path, Shape(32), VideoConfig(), ShotsConfig()),
    "directors sample": lambda path: screenshots(path, "film", ScreenshotsConfig()),
}
"""What opens films, by its verb; `curation` is below."""


@pytest.mark.parametrize("verb", READERS)
@pytest.mark.parametrize("name", ["png.mov", "wide.mp4", "thin.mp4", "streams.mkv"])
def test_each_verb_tells_a_film_that_is_too_large(verb: str, name: str, tmp_path: Path) -> None:
    rows = [row for row in READERS[verb](str(bombs.TOO_LARGE[name](tmp_path / name))) if row is not None]
    assert [row["error"] for row in rows] == ["too_large"]


@pytest.mark.slow
def test_a_film_of_genres_that_takes_more_memory_is_told(tmp_path: Path) -> None:
    paths = [bombs.large(tmp_path / "film.mov"), films.film(tmp_path / "good.mp4", (24,))]
    images = ImagesConfig(video=VideoConfig(memory_gb=0.5))
    batch = {"film": np.array(["film", "good"]), "uri": np.array([str(path) for path in paths])}
    rows = [
        (str(made["film"][i]), str(made["error"][i]))
        for made in cut_films(batch, shape=Shape(32), images=images)
        for i in range(len(made["film"]))
    ]
    assert rows[0] == ("film", "too_large") and {code for film, code in rows if film == "good"} == {""}
    CHILD.kill()


def _disturbed(uris: list[str], folder: Path) -> Batch:
    count = len(uris)
    batch: Batch = {
        "uri": np.array(uris),
        "target": np.array([str(folder / f"{number}.png") for number in range(count)]),
        "filter": np.array(["blur"] * count),
        "strength": np.ones(count),
        "seed": np.zeros(count, int),
    }
    return disturb_files(batch)


@pytest.mark.parametrize("kind", bombs.PICTURES)
def test_each_reader_of_images_tells_one_that_is_too_large(kind: str, tmp_path: Path) -> None:
    bomb, good = tmp_path / f"a.{kind}", tmp_path / "b.png"
    bomb.write_bytes(bombs.PICTURES[kind]())
    Image.fromarray(films.stamp(0, 64, 64)).save(good)
    uris = [str(bomb), str(good)]
    blank = np.array(["", ""])
    answers = [
        read_images({"uri": np.array(uris), "error": blank, "message": blank}, Shape(32)),
        read_pictures({"uri": np.array(uris), "view": np.zeros(2, int)}, Shape(32), ViewsConfig()),
        _disturbed(uris, tmp_path),
    ]
    assert [list(answer["error"]) for answer in answers] == [["too_large", ""]] * len(answers)


@pytest.mark.slow
def test_curation_measures_the_films_between_those_that_are_too_large(ray_cluster: None, tmp_path: Path) -> None:
    folder, output = tmp_path / "films", tmp_path / "out"
    folder.mkdir()
    for name in ("png.mov", "jpeg.mkv", "av1.mkv", "high.mp4", "streams.mp4"):
        bombs.TOO_LARGE[name](folder / name)
    bombs.large(folder / "memory.mov")
    for number in range(2):
        films.film(folder / f"good{number}.mp4", (36, 36))
    run_here("run", f"input={folder}", f"output={output}", "video.memory_gb=0.5", *FAST)
    rows = table(output, "scores")
    lost = rows[(rows.scene_id == "") & (rows.error != "")]
    assert set(lost.video_id) == {path.name for path in folder.iterdir() if not path.name.startswith("good")}
    assert set(lost.error) == {"too_large"}
    assert json.loads((output / "run.json").read_text())["lost_videos"] == {"too_large": 6}
    assert set(rows[rows.no_frames > 0].video_id) == {"good0.mp4", "good1.mp4"}
